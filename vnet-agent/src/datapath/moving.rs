//! Making flows that were begun elsewhere.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use vnet_common::addr::{Address, V4, V6};
use vnet_common::endpoint::EndpointRow;
use vnet_common::flow::{FlowEntry, FlowKey, Rewrite, flags};
use vnet_common::verdict::Direction;

use super::Datapath;
use super::flows::FlowTables;
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

impl Datapath {
    /// Puts a flow of the endpoint in this row into the tables, to be judged at its next packet; says if it was not there yet.
    pub fn insert_flow(&self, endpoint: &EndpointRow, flow: &NewFlow) -> Result<bool> {
        let maps = self.maps();
        // Of another generation than that in force: that comes before the last.
        let times = Times {
            generation: maps.generation()?.wrapping_sub(1),
            last_seen: self.ticks_ago(flow.idle)?,
            created: self.ticks_ago(flow.age)?,
        };
        let inserted = match flow.local.is_ipv4() {
            true => insert::<V4>(&maps.flows4, endpoint, flow, &times),
            false => insert::<V6>(&maps.flows6, endpoint, flow, &times),
        }?;
        if inserted && let Some(created) = maps.flow_counts.word32(endpoint.slot, 0) {
            created.fetch_add(1, Ordering::Relaxed);
        }
        Ok(inserted)
    }

    fn ticks_ago(&self, time: Duration) -> Result<u32> {
        let ticks = time.as_secs().saturating_mul(self.ticks_per_second().into()).min(u64::from(u32::MAX / 4));
        Ok(self.now()?.wrapping_sub(ticks as u32))
    }
}

struct Times {
    generation: u32,
    last_seen: u32,
    created: u32,
}

fn insert<A: Address>(tables: &FlowTables<A>, endpoint: &EndpointRow, flow: &NewFlow, times: &Times) -> Result<bool> {
    let addr = |of: SocketAddr| A::narrow(&wide(of.ip()));
    let port = |of: SocketAddr| of.port().to_be_bytes();
    let key = FlowKey {
        endpoint: endpoint.id,
        network: endpoint.network,
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
    let entry = |flags: u16, rewrite: Rewrite<A>, traffic: Traffic| {
        #[cfg_attr(feature = "previous-abi", allow(unused_mut))]
        let mut entry = FlowEntry {
            packets: traffic.packets,
            bytes: traffic.bytes,
            rewrite,
            generation: times.generation,
            member: flow.member_row.0,
            serial: flow.member_row.1,
            group: flow.group,
            last_seen: times.last_seen,
            flags,
            tcp: flow.tcp,
            ..FlowEntry::default()
        };
        #[cfg(not(feature = "previous-abi"))]
        {
            entry.created = times.created;
        }
        entry
    };
    let back = if flow.flags & flags::DNAT != 0 { flow.flags ^ flags::NAT } else { flow.flags };
    // As programs do: who finds the forward entry can count on its reply.
    let entries = &tables.main.entries;
    if !entries.insert(&partner, &entry(back, key.unrewrite(), flow.traffic[1]))? {
        return Ok(false);
    }
    if !entries.insert(&key, &entry(flow.flags, rewrite, flow.traffic[0]))? {
        entries.remove(&partner).context("removing half of a flow")?;
        return Ok(false);
    }
    Ok(true)
}
