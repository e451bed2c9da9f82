//! The policy's rows in the real maps.

use std::sync::Arc;

use anyhow::{Context, Result};
use vnet_common::policy::{NetworkKey, SetRow};

use crate::datapath::{Datapath, wait_for_programs};
use crate::policy::live::{CidrKey, Limits, PolicyRows, Tables, Write};

fn network_key((bits, address): CidrKey) -> NetworkKey {
    NetworkKey { bits, address }
}

impl PolicyRows for Arc<Datapath> {
    fn limits(&self) -> Result<Limits> {
        let size = |name| self.maps().capacity(name).with_context(|| format!("there is no map {name}"));
        Ok(Limits {
            sets: size("SETS")?,
            rules: size("RULES")?,
            ports: size("PORTS")?,
            bits: size("BITS")?,
            peers: size("PEERS")?,
            addresses: size("IPCACHE")?,
            cidrs: size("CIDRS")?,
        })
    }

    fn read(&self) -> Result<Tables> {
        let maps = self.maps();
        let sets = maps.sets();
        let mut tables = Tables { sets: sets.iter().map(|(row, set)| (*row, *set)).collect(), ..Tables::default() };
        // Of the arrays, as much as sets lead to.
        let sides = || sets.values().flat_map(|set: &SetRow| set.sides);
        let last = |end: fn(&vnet_common::policy::Side) -> u32| sides().map(|side| end(&side)).max().unwrap_or(0);
        let rules = last(|s| s.rules + s.words * 64).min(maps.capacity("RULES").unwrap_or(0));
        tables.rules = maps.rules(0, rules)?;
        tables.ports = maps.ports(0, last(|s| s.ports + s.port_rows))?;
        let peers = maps.peers()?;
        let rows = tables.ports.iter().map(|p| p.bits).chain(peers.iter().map(|(_, bits)| *bits));
        let words = sides().map(|s| s.words).max().unwrap_or(0);
        let bits = rows.chain(sides().flat_map(|s| [s.any_peer, s.enforced])).max().map_or(0, |first| first + words);
        tables.bits = maps.bits(0, bits.min(maps.capacity("BITS").unwrap_or(0)))?;
        tables.peers = peers.into_iter().collect();
        tables.addresses = maps.identities()?.into_iter().collect();
        tables.cidrs = maps.networks()?.into_iter().map(|(key, identity)| ((key.bits, key.address), identity)).collect();
        Ok(tables)
    }

    fn write(&self, write: &Write) -> Result<()> {
        let maps = self.maps();
        match write {
            Write::Bits(first, words) => maps.put_bits(*first, words),
            Write::Ports(first, rows) => maps.put_ports(*first, rows),
            Write::Rules(first, rows) => maps.put_rules(*first, rows),
            Write::ResetCounters(ids) => ids.iter().try_for_each(|id| maps.reset_rule_counters(*id)),
            Write::Peers(rows) => maps.put_peers(rows),
            Write::RemovePeers(keys) => maps.remove_peers(keys),
            Write::Set(row, value) => maps.put_set(*row, value),
            Write::Addresses(rows) => maps.put_identities(rows),
            Write::RemoveAddresses(keys) => maps.remove_identities(keys),
            Write::Cidrs(rows) => {
                let rows: Vec<_> = rows.iter().map(|(key, identity)| (network_key(*key), *identity)).collect();
                maps.put_networks(&rows)
            }
            Write::RemoveCidrs(keys) => maps.remove_networks(&keys.iter().copied().map(network_key).collect::<Vec<_>>()),
        }
    }

    fn bump_generation(&self) -> Result<()> {
        self.maps().bump_generation().map(drop)
    }

    fn wait_for_programs(&self) {
        wait_for_programs();
    }
}
