//! How many groups want what groups share: bits of the filters, and the rows of VIPs themselves.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use vnet_common::lb::{Filter, VipKey};

use super::compile::Group;
use super::live::{FILTER_WORDS, filter_bit, length_bit, port_keys, protocol_number, vip_key};

/// Counts, or differences of counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By word, and bit in it.
    bits: HashMap<(usize, u64), i64>,
    /// By the key of an address itself.
    addresses: HashMap<VipKey, i64>,
    /// Rows for several ports, by the key of their address and their [`length_bit`].
    ranges: HashMap<(VipKey, u32), i64>,
}

impl Tally {
    /// Of groups.
    pub fn of(groups: &[Group]) -> Self {
        let mut tally = Self::default();
        tally.add(groups, 1);
        tally
    }

    /// What it means that `new` are there instead of `old`.
    pub fn between(old: &[Group], new: &[Group]) -> Self {
        let mut tally = Self::of(new);
        tally.add(old, -1);
        tally
    }

    /// Adds a difference.
    pub fn change(&mut self, by: &Self) {
        by.bits.iter().for_each(|(k, n)| add(&mut self.bits, *k, *n));
        by.addresses.iter().for_each(|(k, n)| add(&mut self.addresses, *k, *n));
        by.ranges.iter().for_each(|(k, n)| add(&mut self.ranges, *k, *n));
    }

    /// What the rows of addresses should say when `change` has been added to this, where that is not zero.
    pub fn lengths_after(&self, change: &Self) -> HashMap<VipKey, u32> {
        let mut lengths = HashMap::new();
        let count = |of: &Self, key: &(VipKey, u32)| of.ranges.get(key).copied().unwrap_or(0);
        for key @ (address, bit) in self.ranges.keys().chain(change.ranges.keys()) {
            if count(self, key) + count(change, key) > 0 {
                *lengths.entry(*address).or_default() |= bit;
            }
        }
        lengths
    }

    /// The addresses with more or fewer rows for several ports.
    pub fn with_ranges(&self) -> impl Iterator<Item = VipKey> {
        self.ranges.keys().map(|(address, _)| *address)
    }

    /// The keys of the addresses that no group has any more when `change` has been added to this.
    pub fn given_up(&self, change: &Self) -> impl Iterator<Item = VipKey> {
        let after = |key: &VipKey, more: i64| self.addresses.get(key).copied().unwrap_or(0) + more;
        change.addresses.iter().filter(move |(key, more)| after(key, **more) == 0).map(|(key, _)| *key)
    }

    /// What all words of the filters should be.
    pub fn filter(&self) -> BTreeMap<usize, u64> {
        let mut words = (0..FILTER_WORDS).map(|word| (word, 0)).collect();
        Self::default().set_bits(self, &mut words);
        words
    }

    /// What the words that `change` is about should be when it has been added to this; they are as in `now`.
    pub fn filter_after(&self, change: &Self, now: &[u64]) -> BTreeMap<usize, u64> {
        let word = |(word, _): &(usize, u64)| (*word, now.get(*word).copied().unwrap_or(0));
        let mut words = change.bits.keys().map(word).collect();
        self.set_bits(change, &mut words);
        words
    }

    fn set_bits(&self, change: &Self, words: &mut BTreeMap<usize, u64>) {
        for (key @ (word, bit), more) in &change.bits {
            let before = self.bits.get(key).copied().unwrap_or(0);
            let bits = words.entry(*word).or_default();
            *bits = if before + more > 0 { *bits | bit } else { *bits & !bit };
        }
    }

    fn add(&mut self, groups: &[Group], n: i64) {
        let mut bit = |kind, address: IpAddr| add(&mut self.bits, filter_bit(kind, address), n);
        for g in groups {
            g.vips.iter().for_each(|vip| bit(Filter::Vip, *vip));
            g.members.iter().for_each(|m| bit(Filter::Member, m.address));
        }
        for (g, vip) in groups.iter().flat_map(|g| g.vips.iter().map(move |vip| (g, vip))) {
            let address = vip_key(*vip, 0, 0);
            add(&mut self.addresses, address, n);
            for key in port_keys(*vip, (g.port, g.last_port), protocol_number(g.protocol)).iter().filter(|k| k.is_range()) {
                add(&mut self.ranges, (address, length_bit(key)), n);
            }
        }
    }
}

fn add<K: Hash + Eq>(counts: &mut HashMap<K, i64>, key: K, n: i64) {
    match counts.entry(key) {
        Entry::Vacant(entry) => drop(entry.insert(n)),
        Entry::Occupied(mut entry) => {
            *entry.get_mut() += n;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}
