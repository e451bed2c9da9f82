//! Policy rows: sets with their rules, ports and bits, peers, identities, and what rules counted.
//!
//! A set is immutable once an endpoint's row leads to it. So: write its bits, ports, rules and peers, then its row, then
//! the endpoints' rows ([`Maps::set_endpoint`]), then bump the generation; free the old ones when no program can be in them any more
//! ([`super::wait_for_programs`]). Nothing here checks that order.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use vnet_common::event::EventBudget;
use vnet_common::policy::{AddressKey, NetworkKey, PeerKey, PortRow, RuleCounters, RuleRow, SetRow, identity};

use super::batch::Table;
use super::maps::{Maps, Source, collect, count, in_range, written};
use super::mmap::Mapped;
use super::percpu::PerCpu;

/// The maps of policy and events.
pub(super) struct PolicyTables {
    pub(super) sets: Mapped<SetRow>,
    pub(super) rules: Mapped<RuleRow>,
    pub(super) ports: Mapped<PortRow>,
    pub(super) bits: Mapped<u64>,
    pub(super) peers: Table<PeerKey, u32>,
    identities: Table<AddressKey, u32>,
    networks: Table<NetworkKey, u32>,
    counters: PerCpu<RuleCounters>,
    budget: PerCpu<EventBudget>,
}

impl PolicyTables {
    pub(super) fn new(s: &Source<'_>) -> Result<Self> {
        Ok(Self {
            sets: s.mapped("SETS")?,
            rules: s.mapped("RULES")?,
            ports: s.mapped("PORTS")?,
            bits: s.mapped("BITS")?,
            peers: s.table("PEERS")?,
            identities: s.table("IPCACHE")?,
            networks: s.table("CIDRS")?,
            counters: s.per_cpu("RULE_COUNTERS")?,
            budget: s.per_cpu("EVENT_BUDGET")?,
        })
    }

    pub(super) fn used(&self, name: &str) -> Result<Option<u32>> {
        Ok(match name {
            "SETS" => Some(written(&self.sets, |s| s.serial).len() as u32),
            "PEERS" => Some(count(&self.peers)?),
            "IPCACHE" => Some(count(&self.identities)?),
            "CIDRS" => Some(count(&self.networks)?),
            _ => None,
        })
    }
}

fn rows<T: aya::Pod>(map: &str, rows: &Mapped<T>, first: u32, count: u32) -> Result<Vec<T>> {
    let all: Option<Vec<T>> = (first..first.saturating_add(count)).map(|row| rows.load(row)).collect();
    all.with_context(|| format!("map {map} has no {count} rows from {first} on"))
}

fn put_rows<T: aya::Pod>(map: &str, rows: &Mapped<T>, first: u32, values: &[T]) -> Result<()> {
    if values.len() > rows.rows().saturating_sub(first) as usize {
        bail!("map {map} has no {} rows from {first} on", values.len());
    }
    let all = (first..).zip(values).all(|(row, value)| rows.store(row, value));
    in_range(map, first, all)
}

fn put_all<K: aya::Pod, V: aya::Pod>(table: &Table<K, V>, rows: &[(K, V)]) -> Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = rows.iter().copied().unzip();
    table.put_all(&keys, &values)
}

impl Maps {
    /// Every set, by its row.
    pub fn sets(&self) -> BTreeMap<u32, SetRow> {
        written(&self.policy.sets, |s| s.serial)
    }

    /// Writes a set's row. No endpoint may have it yet.
    pub fn put_set(&self, row: u32, set: &SetRow) -> Result<()> {
        in_range("SETS", row, self.policy.sets.store(row, set))
    }

    /// `count` rules, from row `first` on.
    pub fn rules(&self, first: u32, count: u32) -> Result<Vec<RuleRow>> {
        rows("RULES", &self.policy.rules, first, count)
    }

    /// Writes rules, from row `first` on.
    pub fn put_rules(&self, first: u32, values: &[RuleRow]) -> Result<()> {
        put_rows("RULES", &self.policy.rules, first, values)
    }

    /// `count` rows of ports, from row `first` on.
    pub fn ports(&self, first: u32, count: u32) -> Result<Vec<PortRow>> {
        rows("PORTS", &self.policy.ports, first, count)
    }

    /// Writes rows of ports, from row `first` on.
    pub fn put_ports(&self, first: u32, values: &[PortRow]) -> Result<()> {
        put_rows("PORTS", &self.policy.ports, first, values)
    }

    /// `count` words of bits, from word `first` on.
    pub fn bits(&self, first: u32, count: u32) -> Result<Vec<u64>> {
        rows("BITS", &self.policy.bits, first, count)
    }

    /// Writes words of bits, from word `first` on.
    pub fn put_bits(&self, first: u32, values: &[u64]) -> Result<()> {
        put_rows("BITS", &self.policy.bits, first, values)
    }

    /// Every peer row.
    pub fn peers(&self) -> Result<Vec<(PeerKey, u32)>> {
        collect(&self.policy.peers)
    }

    /// Sets peer rows.
    pub fn put_peers(&self, rows: &[(PeerKey, u32)]) -> Result<()> {
        put_all(&self.policy.peers, rows)
    }

    /// Removes peer rows; those that are not there are no fault.
    pub fn remove_peers(&self, keys: &[PeerKey]) -> Result<()> {
        self.policy.peers.remove_all(keys)
    }

    /// The identity of every address that has one of its own.
    pub fn identities(&self) -> Result<Vec<(AddressKey, u32)>> {
        collect(&self.policy.identities)
    }

    /// Sets the identities of addresses.
    pub fn put_identities(&self, rows: &[(AddressKey, u32)]) -> Result<()> {
        put_all(&self.policy.identities, rows)
    }

    /// Removes the identities of addresses; those that are not there are no fault.
    pub fn remove_identities(&self, keys: &[AddressKey]) -> Result<()> {
        self.policy.identities.remove_all(keys)
    }

    /// The identity of every network.
    pub fn networks(&self) -> Result<Vec<(NetworkKey, u32)>> {
        collect(&self.policy.networks)
    }

    /// Sets the identities of networks.
    pub fn put_networks(&self, rows: &[(NetworkKey, u32)]) -> Result<()> {
        put_all(&self.policy.networks, rows)
    }

    /// Removes the identities of networks; those that are not there are no fault.
    pub fn remove_networks(&self, keys: &[NetworkKey]) -> Result<()> {
        self.policy.networks.remove_all(keys)
    }

    /// The identity of an address, as the programs find it.
    pub fn identity_of(&self, address: &AddressKey) -> Result<u32> {
        if let Some(id) = self.policy.identities.get(address)? {
            return Ok(id);
        }
        Ok(self.policy.networks.get(&NetworkKey::of(*address))?.unwrap_or(identity::UNKNOWN))
    }

    /// What the rules with numbers below `count` have counted, all CPUs together.
    pub fn rule_counters(&self, count: u32) -> Result<Vec<RuleCounters>> {
        let mut all = Vec::with_capacity(count as usize);
        self.policy.counters.for_each(count, |cpus| {
            all.push(cpus.iter().fold(RuleCounters::default(), |sum, c| RuleCounters {
                hits: sum.hits + c.hits,
                bytes: sum.bytes + c.bytes,
                staged: sum.staged + c.staged,
            }));
        })?;
        Ok(all)
    }

    /// Sets a rule's counters to 0. No set may have the rule: decisions counted meanwhile may be lost.
    pub fn reset_rule_counters(&self, id: u32) -> Result<()> {
        self.policy.counters.reset(id)
    }

    /// Events reported and suppressed, all CPUs together; `window` and `used` are 0.
    pub fn event_budget(&self) -> Result<EventBudget> {
        let cpus = self.policy.budget.get(0)?;
        Ok(cpus.iter().fold(EventBudget::default(), |sum, b| EventBudget {
            suppressed: sum.suppressed + b.suppressed,
            reported: sum.reported + b.reported,
            ..sum
        }))
    }
}
