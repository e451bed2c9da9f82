//! Making flows that were begun elsewhere.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use vnet_common::addr::{Address, V4, V6};
use vnet_common::endpoint::EndpointRow;
use vnet_common::flow::{FlowEntry, FlowKey, Rewrite, flags, tcp};
use vnet_common::verdict::Direction;

use super::Datapath;
use super::flows::FlowTables;
use super::maps::Maps;
use super::pending::Traffic;
use crate::lb::live::wide;

/// A flow of an endpoint of this host. Both sides are of one address family.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// IP protocol number.
    pub protocol: u8,
    /// The endpoint's side.
    pub local: SocketAddr,
    /// The other side, as the endpoint knows it.
    pub remote: SocketAddr,
    /// Who serves it; as `remote` if the flow is not balanced.
    pub member: SocketAddr,
    /// The endpoint's port there.
    pub local_port_there: u16,
    /// Row and serial of the member; [`vnet_common::flow::NO_MEMBER`] and 0 for none.
    pub member_row: (u32, u32),
    /// Row of the group, or 0.
    pub group: u32,
    /// See [`flags`]: of the entry for what the endpoint sends.
    pub flags: u16,
    /// See [`vnet_common::flow::tcp`].
    pub tcp: u8,
    /// From and to the endpoint.
    pub traffic: [Traffic; 2],
    /// Since the first packet.
    pub age: Duration,
    /// Since the last one.
    pub idle: Duration,
}

/// What became of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the tables.
    New,
    /// It was there already.
    Known,
    /// Another flow has its addresses and ports, in one of the directions.
    Taken,
    /// The endpoint has as many flows as it may.
    Full,
}

/// Puts flows of an endpoint into the tables, to be judged at their next packet.
pub struct Inserter<'a> {
    maps: &'a Maps,
    endpoint: EndpointRow,
    generation: u32,
    quota: u32,
    now: u32,
    /// Ticks a second.
    rate: u32,
}

impl Datapath {
    /// For the endpoint in this row.
    pub fn inserter(&self, endpoint: EndpointRow) -> Result<Inserter<'_>> {
        let maps = self.maps();
        Ok(Inserter {
            maps,
            endpoint,
            // Of another generation than that in force: that comes before the last.
            generation: maps.generation()?.wrapping_sub(1),
            quota: maps.flow_quota()?,
            now: self.now()?,
            rate: self.ticks_per_second(),
        })
    }
}

impl Inserter<'_> {
    /// Puts one in.
    pub fn insert(&self, flow: &NewFlow) -> Result<Inserted> {
        let inserted = match flow.local.is_ipv4() {
            true => self.insert_into::<V4>(&self.maps.flows4, flow),
            false => self.insert_into::<V6>(&self.maps.flows6, flow),
        }?;
        if inserted == Inserted::New {
            if let Some(created) = self.maps.flow_counts.word32(self.endpoint.slot, 0) {
                created.fetch_add(1, Ordering::Relaxed);
            }
            if !tcp::is_closed(flow.tcp) {
                super::gc::add_active(self.maps, flow.member_row.0, 1);
            }
        }
        Ok(inserted)
    }

    fn ticks_ago(&self, time: Duration) -> u32 {
        let ticks = time.as_secs().saturating_mul(self.rate.into()).min(u64::from(u32::MAX / 4));
        self.now.wrapping_sub(ticks as u32)
    }

    fn insert_into<A: Address>(&self, tables: &FlowTables<A>, flow: &NewFlow) -> Result<Inserted> {
        let addr = |of: SocketAddr| A::narrow(&wide(of.ip()));
        let port = |of: SocketAddr| of.port().to_be_bytes();
        let key = FlowKey {
            endpoint: self.endpoint.id,
            network: self.endpoint.network,
            src: addr(flow.local),
            dst: addr(flow.remote),
            sport: port(flow.local),
            dport: port(flow.remote),
            protocol: flow.protocol,
            direction: Direction::Egress as u8,
            pad: [0; 2],
        };
        let there = flow.local_port_there.to_be_bytes();
        let rewrite = Rewrite { addr: addr(flow.member), port: port(flow.member), client_port: there };
        let partner = key.partner(&rewrite);
        let entries = &tables.main.entries;
        match entries.get(&key)? {
            Some(e) if e.rewrite.is(&rewrite) && (e.member, e.serial) == flow.member_row => return Ok(Inserted::Known),
            None if entries.get(&partner)?.is_none() => {}
            _ => return Ok(Inserted::Taken),
        }
        if self.maps.flow_count(self.endpoint.slot).is_some_and(|flows| flows >= self.quota) {
            return Ok(Inserted::Full);
        }
        let back = if flow.flags & flags::DNAT != 0 { flow.flags ^ flags::NAT } else { flow.flags };
        // As programs do: who finds the forward entry can count on its reply.
        if !entries.insert(&partner, &self.entry(flow, back, key.unrewrite(), flow.traffic[1]))? {
            return Ok(Inserted::Taken);
        }
        match entries.insert(&key, &self.entry(flow, flow.flags, rewrite, flow.traffic[0])) {
            Ok(true) => Ok(Inserted::New),
            other => {
                entries.remove(&partner).context("removing half of a flow")?;
                // A packet may have brought it into a cache meanwhile.
                self.maps.bump_stamp(&partner);
                other.map(|_| Inserted::Taken)
            }
        }
    }

    fn entry<A: Address>(&self, flow: &NewFlow, flags: u16, rewrite: Rewrite<A>, traffic: Traffic) -> FlowEntry<A> {
        FlowEntry {
            packets: traffic.packets,
            bytes: traffic.bytes,
            rewrite,
            generation: self.generation,
            member: flow.member_row.0,
            serial: flow.member_row.1,
            group: flow.group,
            last_seen: self.ticks_ago(flow.idle),
            flags,
            tcp: flow.tcp,
            #[cfg(not(feature = "previous-abi"))]
            created: self.ticks_ago(flow.age),
            ..FlowEntry::default()
        }
    }
}
