//! The load balancer's stages in the pipeline: known flows, new flows, and what a VIP answers itself.

use super::pick::{self, Outcome, vip_key};
use super::{Filter, LbMaps, flags as group_flags, state};
use crate::addr::Address;
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps};
use crate::flow::track::{Found, find, forget};
use crate::flow::{FlowKey, FlowMaps, Table, Work};
use crate::hash;
use crate::parse::{Headers, protocol, tcp};
use crate::verdict::{Direction, Reason};

/// What the load balancer wants done with a packet.
pub enum Decision {
    /// Not for it.
    NotOurs,
    /// Rewrite as [`Work::treatment`] says, and deliver.
    Forward(Reason),
    /// Refuse as a host would: TCP reset, or ICMP port (for other protocols: protocol) unreachable.
    Reject(Reason),
    /// Answer the echo request.
    Echo,
    /// Drop.
    Drop(Reason),
}

/// Is the address surely no VIP of the network?
#[inline(always)]
pub fn is_no_vip<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, addr: &A) -> bool {
    !m.filter(Filter::Vip, hash::filter(ep.network, addr))
}

/// Is the address surely no member of a group in the network?
#[inline(always)]
pub fn is_no_member<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, addr: &A) -> bool {
    !m.filter(Filter::Member, hash::filter(ep.network, addr))
}

/// Is the address a VIP of the network?
#[inline(always)]
pub fn is_vip<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, addr: &A) -> bool {
    !is_no_vip(m, ep, addr) && m.vip(&vip_key(ep.network, addr, [0; 2], 0)).is_some()
}

/// Decides about a packet that an endpoint sends to an address whose VIP filter bit is set.
#[inline(always)]
pub fn egress<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    if w.headers.fragment || !(w.headers.is_tcp() || w.headers.is_udp()) {
        return unbalanced(m, ep, &w.headers);
    }
    let gone = match known(m, ep.slot, w) {
        Known::Valid(r) => return Decision::Forward(r),
        Known::Refused(r) => return Decision::Drop(r),
        Known::None => false,
        Known::Gone { table, reset } => {
            w.partner = w.seen.key.partner(&w.entry.rewrite);
            forget(m, ep.slot, table, &w.seen.key, &w.partner);
            reset && w.headers.is_tcp()
        }
    };
    let fresh_syn = w.headers.tcp & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if gone && !fresh_syn {
        return Decision::Reject(Reason::MemberRemoved);
    }
    let h = &w.headers;
    let Some(vip) = m.vip(&vip_key(ep.network, &h.dst, h.dport, h.protocol)) else { return unbalanced(m, ep, h) };
    match pick::new_flow(m, ep, w, &vip) {
        Outcome::Picked => Decision::Forward(Reason::NewFlow),
        Outcome::Reject(r) => Decision::Reject(r),
        Outcome::Drop(r) => Decision::Drop(r),
    }
}

/// Decides about a packet to a VIP's address that no group takes: the VIP behaves like a host.
#[inline(always)]
fn unbalanced<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, h: &Headers<A>) -> Decision {
    if m.vip(&vip_key(ep.network, &h.dst, [0; 2], 0)).is_none() {
        return Decision::NotOurs;
    }
    if h.fragment {
        return Decision::Drop(Reason::Fragment);
    }
    match (h.protocol, h.dport[0]) {
        (protocol::ICMP, 8) if A::VERSION == 4 => Decision::Echo,
        (protocol::ICMPV6, 128) if A::VERSION == 6 => Decision::Echo,
        (protocol::ICMP | protocol::ICMPV6, _) => Decision::Drop(Reason::RejectSilent),
        _ => Decision::Reject(Reason::VipPortClosed),
    }
}

/// Decides about a packet from a possible member that reaches an endpoint.
#[inline(always)]
pub fn ingress<A, M>(m: &M, slot: u32, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    if w.headers.fragment || !(w.headers.is_tcp() || w.headers.is_udp()) {
        return Decision::NotOurs;
    }
    match known(m, slot, w) {
        Known::Valid(r) => Decision::Forward(r),
        Known::Refused(r) => Decision::Drop(r),
        Known::None => Decision::NotOurs,
        Known::Gone { .. } => Decision::Drop(Reason::MemberRemoved),
    }
}

enum Known {
    Valid(Reason),
    Refused(Reason),
    None,
    Gone { table: Table, reset: bool },
}

/// Finds the packet's flow; an entry of another generation is judged again, and used if it may stay.
#[inline(always)]
fn known<A, M>(m: &M, slot: u32, w: &mut Work<A>) -> Known
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    // Twice at most: after the entry was brought up to date. A loop, so that the programs hold `find` once.
    for _ in 0..2 {
        match find(m, slot, w) {
            Found::Valid(r) => return Known::Valid(r),
            Found::Refused(r) => return Known::Refused(r),
            Found::None => return Known::None,
            Found::Stale(table) => match judge_again(m, w) {
                Judgement::Keep => {
                    let generation = w.seen.generation;
                    m.update(table, &w.seen.key, |e| e.generation = generation);
                }
                Judgement::Gone { reset } => return Known::Gone { table, reset },
            },
        }
    }
    Known::Refused(Reason::BadRow)
}

enum Judgement {
    Keep,
    Gone { reset: bool },
}

/// A flow keeps its member while the VIP's port still has the group and the group still has the member, in any state.
#[inline(always)]
fn judge_again<A: Address, M: LbMaps>(m: &M, w: &Work<A>) -> Judgement {
    let (key, e) = (&w.seen.key, &w.entry);
    let vip = if key.direction == Direction::Egress as u8 {
        vip_key(key.network, &key.dst, key.dport, key.protocol)
    } else {
        vip_key(key.network, &e.rewrite.addr, e.rewrite.port, key.protocol)
    };
    let Some(group) = m.vip(&vip).filter(|v| v.group == e.group).and_then(|v| m.group(v.group)) else {
        return Judgement::Gone { reset: true };
    };
    match m.member(e.member) {
        Some(row) if row.state != state::NONE && row.serial == e.serial && row.group == e.group => Judgement::Keep,
        _ => Judgement::Gone { reset: group.flags & group_flags::REMOVED_REPICK == 0 },
    }
}

/// Notes what tracking needs to know of a packet.
#[inline(always)]
pub fn see<A: Address, M: HostMaps>(m: &M, ep: &EndpointRow, direction: Direction, bytes: u32, w: &mut Work<A>) {
    let h = &w.headers;
    w.seen.key = FlowKey {
        endpoint: ep.id,
        network: ep.network,
        src: h.src,
        dst: h.dst,
        sport: h.sport,
        dport: h.dport,
        protocol: h.protocol,
        direction: direction as u8,
        pad: [0; 2],
    };
    (w.seen.tcp, w.seen.bytes) = (u32::from(w.headers.tcp), bytes);
    (w.seen.generation, w.seen.now) = (m.generation(), m.now());
}
