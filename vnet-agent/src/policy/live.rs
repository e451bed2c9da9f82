//! What is in the maps.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use vnet_common::policy::{ADDRESS_BITS, AddressKey, PeerKey, PolicyMaps, PortRow, RuleRow, SetRow, identity};

use super::compile::address_key;
use super::known::remove_all;
use crate::resource::Cidr;

/// Key of `CIDRS`: how many bits count, those before the address among them, and the network.
pub type CidrKey = (u32, AddressKey);

/// The key of a network.
pub fn cidr_key(cidr: &Cidr) -> CidrKey {
    (ADDRESS_BITS + u32::from(cidr.prefix()), address_key(0, cidr.address()))
}

/// How many rows the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `SETS`; row 0 is never used.
    pub sets: u32,
    /// `RULES`.
    pub rules: u32,
    /// `PORTS`.
    pub ports: u32,
    /// `BITS`, in words.
    pub bits: u32,
    /// `PEERS`.
    pub peers: u32,
    /// `IPCACHE`.
    pub addresses: u32,
    /// `CIDRS`.
    pub cidrs: u32,
}

impl Limits {
    /// Of maps in memory.
    pub const NONE: Self = Self {
        sets: u32::MAX,
        rules: u32::MAX,
        ports: u32::MAX,
        bits: u32::MAX,
        peers: u32::MAX,
        addresses: u32::MAX,
        cidrs: u32::MAX,
    };
}

/// One write. Rows that belong together are written with one call, as far as the kernel can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Words of `BITS` from this one on.
    Bits(u32, Vec<u64>),
    /// Rows of `PORTS` from this one on.
    Ports(u32, Vec<PortRow>),
    /// Rows of `RULES` from this one on.
    Rules(u32, Vec<RuleRow>),
    /// Counters of these rules begin at zero.
    ResetCounters(Vec<u32>),
    /// Rows of `PEERS`.
    Peers(Vec<(PeerKey, u32)>),
    /// No such rows of `PEERS`.
    RemovePeers(Vec<PeerKey>),
    /// A row of `SETS`.
    Set(u32, SetRow),
    /// Rows of `IPCACHE`.
    Addresses(Vec<(AddressKey, u32)>),
    /// No such rows of `IPCACHE`.
    RemoveAddresses(Vec<AddressKey>),
    /// Rows of `CIDRS`.
    Cidrs(Vec<(CidrKey, u32)>),
    /// No such rows of `CIDRS`.
    RemoveCidrs(Vec<CidrKey>),
}

impl Write {
    /// What is written, for messages.
    pub fn what(&self) -> String {
        match self {
            Self::Bits(first, words) => format!("{} words of BITS from {first} on", words.len()),
            Self::Ports(first, rows) => format!("{} rows of PORTS from {first} on", rows.len()),
            Self::Rules(first, rows) => format!("{} rows of RULES from {first} on", rows.len()),
            Self::ResetCounters(ids) => format!("{} rows of RULE_COUNTERS", ids.len()),
            Self::Peers(rows) => format!("{} rows of PEERS", rows.len()),
            Self::RemovePeers(keys) => format!("the removal of {} rows of PEERS", keys.len()),
            Self::Set(row, _) => format!("row {row} of SETS"),
            Self::Addresses(rows) => format!("{} rows of IPCACHE", rows.len()),
            Self::RemoveAddresses(keys) => format!("the removal of {} rows of IPCACHE", keys.len()),
            Self::Cidrs(rows) => format!("{} rows of CIDRS", rows.len()),
            Self::RemoveCidrs(keys) => format!("the removal of {} rows of CIDRS", keys.len()),
        }
    }
}

/// The policy's maps.
pub trait PolicyRows {
    /// How much they hold.
    fn limits(&self) -> Result<Limits>;
    /// All that is in them.
    fn read(&self) -> Result<Tables>;
    /// One write.
    fn write(&self, write: &Write) -> Result<()>;
    /// Starts a new policy generation.
    fn bump_generation(&self) -> Result<()>;
    /// Waits until every program that is running now has ended.
    fn wait_for_programs(&self);
}

/// What the maps say, as plain values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `SETS`: rows in use.
    pub sets: HashMap<u32, SetRow>,
    /// `RULES`, from row 0 on.
    pub rules: Vec<RuleRow>,
    /// `PORTS`, from row 0 on.
    pub ports: Vec<PortRow>,
    /// `BITS`, from word 0 on.
    pub bits: Vec<u64>,
    /// `PEERS`.
    pub peers: HashMap<PeerKey, u32>,
    /// `IPCACHE`.
    pub addresses: HashMap<AddressKey, u32>,
    /// `CIDRS`.
    pub cidrs: BTreeMap<CidrKey, u32>,
}

impl Tables {
    /// Does to these what `write` does to the maps.
    pub fn record(&mut self, write: &Write) {
        match write {
            Write::Bits(first, words) => put(&mut self.bits, *first, words),
            Write::Ports(first, rows) => put(&mut self.ports, *first, rows),
            Write::Rules(first, rows) => put(&mut self.rules, *first, rows),
            Write::ResetCounters(_) => {}
            Write::Peers(rows) => self.peers.extend(rows.iter().copied()),
            Write::RemovePeers(keys) => remove_all(keys, |key| self.peers.remove(key)),
            Write::Set(row, value) if value.serial == 0 => remove_all(&[*row], |row| self.sets.remove(row)),
            Write::Set(row, value) => self.sets.extend([(*row, *value)]),
            Write::Addresses(rows) => self.addresses.extend(rows.iter().copied()),
            Write::RemoveAddresses(keys) => remove_all(keys, |key| self.addresses.remove(key)),
            Write::Cidrs(rows) => self.cidrs.extend(rows.iter().copied()),
            Write::RemoveCidrs(keys) => remove_all(keys, |key| self.cidrs.remove(key)),
        }
    }

    /// A row of bits; `None` where there is no such row.
    pub(super) fn row_of_bits(&self, first: u32, words: u32) -> Option<&[u64]> {
        self.bits.get(first as usize..(first as usize).checked_add(words as usize)?)
    }
}

fn put<T: Copy + Default>(table: &mut Vec<T>, first: u32, rows: &[T]) {
    let (first, end) = (first as usize, first as usize + rows.len());
    if table.len() < end {
        table.resize(end, T::default());
    }
    table[first..end].copy_from_slice(rows);
}

/// The datapath's own questions, for evaluations outside of the kernel. Nothing is counted.
impl PolicyMaps for Tables {
    fn identity(&self, key: &AddressKey) -> u32 {
        if let Some(identity) = self.addresses.get(key) {
            return *identity;
        }
        let longest = if key.version == 4 { 32 } else { 128 };
        let by_prefix = |bits: u32| {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            let addr = (u128::from_be_bytes(key.addr) & mask).to_be_bytes();
            self.cidrs.get(&(ADDRESS_BITS + bits, AddressKey { addr, ..*key })).copied()
        };
        (0..=longest).rev().find_map(by_prefix).unwrap_or(identity::UNKNOWN)
    }
    fn set(&self, row: u32) -> Option<&SetRow> {
        self.sets.get(&row)
    }
    fn peer(&self, key: &PeerKey) -> Option<u32> {
        self.peers.get(key).copied()
    }
    fn port(&self, row: u32) -> Option<&PortRow> {
        self.ports.get(row as usize)
    }
    fn bits(&self, word: u32) -> Option<u64> {
        self.bits.get(word as usize).copied()
    }
    fn rule(&self, row: u32) -> Option<&RuleRow> {
        self.rules.get(row as usize)
    }
    fn rule_hit(&self, _: u32, _: u32, _: bool) {}
}
