//! The policy's rows in the real maps.

use std::sync::Arc;

use anyhow::{Context, Result};
use vnet_common::policy::{NetworkKey, SetRow};

use crate::datapath::{Datapath, wait_for_programs};
use crate::policy::live::{CidrKey, Limits, PolicyRows, Tables, Write};

fn network((bits, address): &CidrKey) -> NetworkKey {
    NetworkKey { bits: *bits, address: *address }
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
        let (maps, limits) = (self.maps(), PolicyRows::limits(self)?);
        let sets: std::collections::HashMap<u32, SetRow> = maps.sets().into_iter().collect();
        Ok(Tables {
            sets,
            rules: maps.rules(0, limits.rules)?,
            ports: maps.ports(0, limits.ports)?,
            bits: maps.bits(0, limits.bits)?,
            peers: maps.peers()?.into_iter().collect(),
            addresses: maps.identities()?.into_iter().collect(),
            cidrs: maps.networks()?.into_iter().map(|(key, id)| ((key.bits, key.address), id)).collect(),
        })
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
                let rows: Vec<_> = rows.iter().map(|(key, id)| (network(key), *id)).collect();
                maps.put_networks(&rows)
            }
            Write::RemoveCidrs(keys) => maps.remove_networks(&keys.iter().map(network).collect::<Vec<_>>()),
        }
    }

    fn bump_generation(&self) -> Result<()> {
        self.maps().bump_generation().map(drop)
    }

    fn wait_for_programs(&self) {
        wait_for_programs();
    }
}
