//! Carrying out what was decided: rewriting, answering, and the way to the member and back.
//!
//! A packet for a member goes on by the stack (a host that routes), by the bridge (with the member's MAC), or, where the
//! group says so and both ends are endpoints of this host, straight to the member's device. The replies then go straight
//! back. Such a shortcut behaves like the path it replaces: on a routed one the TTL drops and the MTU holds.

use crate::addr::Address;
use crate::answer;
use crate::endpoint::{EndpointRow, flags as endpoint_flags};
use crate::flow::{FlowMaps, Work, flags};
use crate::lb::LocalKey;
use crate::lb::vip::{self, Decision};
use crate::packet::Packet;
use crate::parse::{ETH, Headers};
use crate::pipeline::{Maps, judge_ingress};
use crate::rewrite::{self, Side};
use crate::verdict::{Direction, Reason, Verdict};

/// What is to be done with a packet; new addresses are in [`Work::treatment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Leave it as it is.
    Pass(Reason),
    /// Rewrite the destination; the stack takes it on.
    Stack(Reason),
    /// The same, addressed to the member's MAC.
    Segment(Reason),
    /// Rewrite one side, and send the packet to the endpoint behind this device.
    Hand {
        /// The device.
        ifindex: u32,
        /// The path replaces a routed one.
        routed: bool,
        /// The source is rewritten (the way back) instead of the destination.
        back: bool,
        /// For the counters.
        reason: Reason,
    },
    /// Refuse as a host would: TCP reset, or ICMP port (for other protocols: protocol) unreachable.
    Reject(Reason),
    /// Answer that at most this MTU fits.
    TooBig(u16),
    /// Answer the echo request.
    Echo,
    /// Drop.
    Drop(Reason),
}

/// The way of a packet to its member.
#[inline(always)]
pub fn route<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &Work<A>, ep: &EndpointRow, bytes: u32, segment: u32, reason: Reason) -> Todo {
    let redirect = w.treatment.flags & flags::REDIRECT != 0;
    if !redirect && ep.segment == 0 {
        return Todo::Stack(reason);
    }
    let Some(member) = m.member(w.treatment.member) else { return Todo::Drop(Reason::BadRow) };
    if redirect && let Some(to) = m.endpoint(member.ifindex) {
        match passage(ep, &w.headers, to, bytes, segment) {
            Passage::Fits { routed } => return Todo::Hand { ifindex: to.ifindex, routed, back: false, reason },
            Passage::TooBig(mtu) => return Todo::TooBig(mtu),
            Passage::Stack => {}
        }
    }
    if ep.segment != 0 && ep.segment == member.segment && member.mac != [0; 6] { Todo::Segment(reason) } else { Todo::Stack(reason) }
}

/// The endpoint of this host that a packet is addressed to.
#[inline(always)]
pub fn local_client<'m, A: Address, M: Maps>(m: &'m M, w: &Work<A>, ep: &EndpointRow) -> Option<&'m EndpointRow> {
    let key = LocalKey { network: ep.network, version: u32::from(A::VERSION), addr: w.headers.dst.widen() };
    m.endpoint(m.local(&key)?)
}

/// The way of a member's reply to a client on this host: as the request came.
#[inline(always)]
pub fn route_back<A, M>(m: &M, w: &mut Work<A>, ep: &EndpointRow, to: &EndpointRow, bytes: u32, segment: u32) -> Todo
where
    A: Address,
    M: Maps + FlowMaps<A>,
{
    let Passage::Fits { routed } = passage(ep, &w.headers, to, bytes, segment) else { return Todo::Pass(Reason::NotOurs) };
    match judge_ingress(m, w, to, bytes) {
        Decision::Forward(reason) if w.treatment.flags & flags::REDIRECT != 0 => {
            if to.flags & endpoint_flags::PEER != 0 {
                m.count(to.slot, Direction::Ingress, reason, bytes);
            }
            Todo::Hand { ifindex: to.ifindex, routed, back: true, reason }
        }
        _ => Todo::Pass(Reason::NotOurs),
    }
}

enum Passage {
    Fits { routed: bool },
    TooBig(u16),
    /// Only the stack can do it: cut the packet up, or answer that its time is over.
    Stack,
}

/// Can the packet go straight to the device of `to`?
#[inline(always)]
fn passage<A: Address>(from: &EndpointRow, h: &Headers<A>, to: &EndpointRow, bytes: u32, segment: u32) -> Passage {
    let routed = from.segment == 0 || from.segment != to.segment;
    if routed && h.ttl <= 1 {
        return Passage::Stack;
    }
    // What a GSO packet is cut into: the headers (TCP: 20 to 60 bytes, of which options take 12 in practice) and a segment.
    let size = if segment == 0 { bytes } else { h.l4 as u32 + if h.is_tcp() { 32 } else { 8 } + segment };
    if size <= to.mtu + ETH as u32 {
        Passage::Fits { routed }
    } else if routed && h.dont_fragment {
        Passage::TooBig(if to.mtu > 0xffff { 0xffff } else { to.mtu as u16 })
    } else {
        Passage::Stack
    }
}

/// Does it.
#[inline(always)]
pub fn carry_out<A: Address, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, todo: Todo) -> Verdict {
    match todo {
        Todo::Pass(r) => Verdict::Next(r),
        Todo::Drop(r) => Verdict::Drop(r),
        Todo::Echo => reply(answer::echo(p, &w.headers), Reason::VipEcho),
        Todo::Reject(r) if w.headers.is_tcp() => reply(answer::reset(p, &w.headers), r),
        Todo::Reject(_) | Todo::TooBig(_) => {
            let (error, reason) = match todo {
                Todo::TooBig(mtu) => (answer::Error::TooBig(mtu), Reason::PacketTooBig),
                Todo::Reject(r) => (answer::Error::Unreachable, r),
                _ => return Verdict::Drop(Reason::BadRow),
            };
            reply(answer::icmp_error(p, &w.headers, error), reason)
        }
        Todo::Stack(_) | Todo::Segment(_) | Todo::Hand { .. } => carry(p, m, w, todo),
    }
}

/// Rewrites and sends off. One place for all the ways, so that the programs hold the rewriting once.
#[inline(always)]
fn carry<A: Address, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, todo: Todo) -> Verdict {
    let (to, routed, back, reason) = match todo {
        Todo::Hand { ifindex, routed, back, reason } => (m.endpoint(ifindex), routed, back, reason),
        Todo::Segment(r) => {
            let Some(member) = m.member(w.treatment.member) else { return Verdict::Drop(Reason::BadRow) };
            if p.write(0, member.mac).is_none() {
                return Verdict::Drop(Reason::NoMemory);
            }
            (None, false, false, r)
        }
        Todo::Stack(r) => (None, false, false, r),
        _ => return Verdict::Drop(Reason::BadRow),
    };
    let mut side = if back { Side::Source } else { Side::Destination };
    // The second round is for a member that is itself a client: what enters its device directly skips the device's own
    // program, so that its ingress stages run here.
    for _ in 0..2 {
        if rewrite::apply(p, &w.headers, &w.treatment.rewrite, side).is_none() {
            return Verdict::Drop(Reason::NoMemory);
        }
        let Some(to) = to.filter(|to| side == Side::Destination && to.flags & endpoint_flags::PEER != 0) else { break };
        let r = &w.treatment.rewrite;
        (w.headers.dst, w.headers.sport, w.headers.dport) = (r.addr, r.client_port, r.port);
        match ingress_of_peer(m, w, to, p.len()) {
            Decision::Forward(_) => side = Side::Source,
            Decision::Drop(r) => return Verdict::Drop(r),
            _ => break,
        }
    }
    match to {
        None => Verdict::Next(reason),
        Some(to) => launch(p, &w.headers, to, routed, reason),
    }
}

#[inline(always)]
fn ingress_of_peer<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &mut Work<A>, to: &EndpointRow, bytes: u32) -> Decision {
    let d = if vip::is_no_member(m, to, &w.headers.src) { Decision::NotOurs } else { judge_ingress(m, w, to, bytes) };
    let reason = match d {
        Decision::Forward(r) | Decision::Drop(r) => r,
        _ => Reason::NotOurs,
    };
    m.count(to.slot, Direction::Ingress, reason, bytes);
    d
}

/// Addresses the frame to the endpoint `to` and sends it off.
#[inline(always)]
fn launch<A: Address, P: Packet>(p: &mut P, h: &Headers<A>, to: &EndpointRow, routed: bool, reason: Reason) -> Verdict {
    let (d, s) = (to.mac, to.host_mac);
    let done = if routed {
        p.write(0, [d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5]])
            .and_then(|()| rewrite::decrement_ttl(p, h))
    } else {
        p.write(0, d)
    };
    if done.is_none() {
        return Verdict::Drop(Reason::NoMemory);
    }
    let peer = to.flags & endpoint_flags::PEER != 0;
    if peer {
        p.set_to_host();
    }
    Verdict::Redirect { ifindex: to.ifindex, peer, reason }
}

/// Rewrites one side; the packet goes on.
#[inline(always)]
pub fn rewritten<A: Address, P: Packet>(p: &mut P, w: &Work<A>, side: Side, reason: Reason) -> Verdict {
    match rewrite::apply(p, &w.headers, &w.treatment.rewrite, side) {
        Some(()) => Verdict::Next(reason),
        None => Verdict::Drop(Reason::NoMemory),
    }
}

/// The packet was made into an answer, or could not be.
#[inline(always)]
pub fn reply(done: Option<()>, reason: Reason) -> Verdict {
    match done {
        Some(()) => Verdict::Reply(reason),
        None => Verdict::Drop(Reason::RejectSilent),
    }
}
