//! The load balancer's stages in the pipeline: known flows, new flows, and what a VIP answers itself.

use super::pick::{self, Outcome, vip_key};
use super::{Filter, LbMaps, flags as group_flags, state};
use crate::addr::Address;
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps};
use crate::flow::track::{Course, find, forget, proceed};
use crate::flow::{FlowKey, FlowMaps, Work};
use crate::hash;
use crate::parse::{Headers, protocol, tcp};
use crate::verdict::{Direction, Reason};

/// What the load balancer wants done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not for it.
    NotOurs,
    /// Rewrite as [`Work::treatment`] says, and deliver; counted as [`Work::reason`].
    Forward,
    /// Refuse as a host would, for [`Work::reason`]: TCP reset, or ICMP port (for other protocols: protocol) unreachable.
    Reject,
    /// Answer the echo request.
    Echo,
    /// Drop, for [`Work::reason`].
    Drop,
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
        return unbalanced(m, ep, w);
    }
    match known(m, ep.slot, w) {
        Known::Valid => return Decision::Forward,
        Known::Refused => return Decision::Drop,
        Known::None => {}
        gone @ (Known::GoneReset | Known::GoneRepick) => {
            w.partner = w.seen.key.partner(&w.entry.rewrite);
            forget(m, ep.slot, w.table, &w.seen.key, &w.partner);
            let fresh_syn = w.headers.tcp & (tcp::SYN | tcp::ACK) == tcp::SYN;
            if gone == Known::GoneReset && w.headers.is_tcp() && !fresh_syn {
                w.reason = Reason::MemberRemoved;
                return Decision::Reject;
            }
        }
    }
    match pick::new_flow(m, ep, w) {
        Outcome::Picked => Decision::Forward,
        Outcome::NoGroup => unbalanced(m, ep, w),
        Outcome::Reject => Decision::Reject,
        Outcome::Drop => Decision::Drop,
    }
}

/// Decides about a packet to a VIP's address that no group takes: the VIP behaves like a host.
#[inline(never)]
fn unbalanced<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision {
    let h = &w.headers;
    if m.vip(&vip_key(ep.network, &h.dst, [0; 2], 0)).is_none() {
        return Decision::NotOurs;
    }
    if h.fragment {
        w.reason = Reason::Fragment;
        return Decision::Drop;
    }
    match (h.protocol, h.dport[0]) {
        (protocol::ICMP, 8) if A::VERSION == 4 => Decision::Echo,
        (protocol::ICMPV6, 128) if A::VERSION == 6 => Decision::Echo,
        (protocol::ICMP | protocol::ICMPV6, _) => {
            w.reason = Reason::RejectSilent;
            Decision::Drop
        }
        _ => {
            w.reason = Reason::VipPortClosed;
            Decision::Reject
        }
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
        Known::Valid => Decision::Forward,
        Known::Refused => Decision::Drop,
        Known::None => Decision::NotOurs,
        Known::GoneReset | Known::GoneRepick => {
            w.reason = Reason::MemberRemoved;
            Decision::Drop
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Valid,
    Refused,
    None,
    /// The member, the group or the VIP is no more: the client is told by a reset.
    GoneReset,
    /// The same, and another member is picked instead.
    GoneRepick,
}

/// Finds the packet's flow; an entry of another generation is judged again, and used if it may stay.
#[inline(never)]
fn known<A, M>(m: &M, slot: u32, w: &mut Work<A>) -> Known
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    if !find(m, w) {
        return Known::None;
    }
    if w.entry.generation != w.seen.generation {
        let judged = judge_again(m, w);
        if judged != Known::Valid {
            return judged;
        }
        w.entry.generation = w.seen.generation;
        let generation = w.seen.generation;
        m.update(w.table, &w.seen.key, |e| e.generation = generation);
    }
    match proceed(m, slot, w) {
        Course::Valid => Known::Valid,
        Course::Refused => Known::Refused,
        Course::None => Known::None,
    }
}

/// A flow keeps its member while the VIP's port still has the group and the group still has the member, in any state.
#[inline(always)]
fn judge_again<A: Address, M: LbMaps>(m: &M, w: &Work<A>) -> Known {
    let (key, e) = (&w.seen.key, &w.entry);
    let vip = if key.direction == Direction::Egress as u8 {
        vip_key(key.network, &key.dst, key.dport, key.protocol)
    } else {
        vip_key(key.network, &e.rewrite.addr, e.rewrite.port, key.protocol)
    };
    let Some(group) = m.vip(&vip).filter(|v| v.group == e.group).and_then(|v| m.group(v.group)) else {
        return Known::GoneReset;
    };
    match m.member(e.member) {
        Some(row) if row.state != state::NONE && row.serial == e.serial && row.group == e.group => Known::Valid,
        _ if group.flags & group_flags::REMOVED_REPICK != 0 => Known::GoneRepick,
        _ => Known::GoneReset,
    }
}

/// Notes what tracking needs to know of a packet.
#[inline(never)]
pub fn see<A: Address, M: HostMaps + FlowMaps<A>>(m: &M, ep: &EndpointRow, direction: Direction, bytes: u32, w: &mut Work<A>) {
    w.seen.key = key(ep, direction, &w.headers);
    (w.seen.tcp, w.seen.bytes) = (u32::from(w.headers.tcp), bytes);
    (w.seen.generation, w.seen.now) = (m.generation(), m.now());
    w.seen.hash = hash::flow(&w.seen.key);
    w.seen.stamp = m.stamp(w.seen.hash);
}

/// The key of a packet's flow.
#[inline(always)]
pub fn key<A: Address>(ep: &EndpointRow, direction: Direction, h: &Headers<A>) -> FlowKey<A> {
    FlowKey {
        endpoint: ep.id,
        network: ep.network,
        src: h.src,
        dst: h.dst,
        sport: h.sport,
        dport: h.dport,
        protocol: h.protocol,
        direction: direction as u8,
        pad: [0; 2],
    }
}
