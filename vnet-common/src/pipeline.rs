//! The whole datapath. [`egress`] is what an endpoint sends, [`ingress`] what reaches it; both run at its host-side device.
//!
//! ```text
//! egress:  endpoint → parse → ARP/ND for a VIP → flow or pick → rewrite → deliver
//! ingress: endpoint → parse → flow → rewrite back
//! ```

use crate::addr::{Address, V4, V6};
use crate::answer;
use crate::deliver::{self, Todo};
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps, flags as endpoint_flags};
use crate::flow::track::{self, Treatment};
use crate::flow::{FlowMaps, Work};
use crate::lb::LbMaps;
use crate::lb::vip::{self, Decision};
use crate::packet::Packet;
use crate::parse::{self, Headers, ethertype, protocol};
use crate::rewrite::{self, Side};
use crate::verdict::{Direction, Reason, Verdict};

/// Room to work in, per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Scratch {
    /// For an IPv4 packet.
    pub v4: Work<V4>,
    /// For an IPv6 packet.
    pub v6: Work<V6>,
}

/// All the maps of the datapath.
pub trait Maps: HostMaps + EndpointMaps + LbMaps + FlowMaps<V4> + FlowMaps<V6> {}
impl<M: HostMaps + EndpointMaps + LbMaps + FlowMaps<V4> + FlowMaps<V6>> Maps for M {}

/// Judges a packet that enters at the device `ifindex`: one that its endpoint sends. `room` is asked for only where it is needed.
#[inline(always)]
pub fn egress<'s, P: Packet, M: Maps>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ifindex: u32,
    vlan: bool,
) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.size();
    let v = if vlan { Verdict::Next(Reason::Vlan) } else { egress_frame(p, m, room, ep) };
    m.count(ep.slot, Direction::Egress, v.reason(), bytes);
    v
}

/// Judges a packet that leaves through the device `ifindex`: one that reaches its endpoint.
#[inline(always)]
pub fn ingress<'s, P: Packet, M: Maps>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ifindex: u32,
    vlan: bool,
) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.size();
    let v = if vlan { Verdict::Next(Reason::Vlan) } else { ingress_frame(p, m, room, ep) };
    m.count(ep.slot, Direction::Ingress, v.reason(), bytes);
    v
}

#[inline(always)]
fn egress_frame<'s, P: Packet, M: Maps>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    let Some(kind) = p.read(12) else { return Verdict::Next(Reason::Malformed) };
    let known = match kind {
        ethertype::IPV4 => egress_known(p, m, parse::plain4(p), ep),
        ethertype::IPV6 => egress_known(p, m, parse::plain6(p), ep),
        _ => Known::No,
    };
    if let Known::Done(verdict) = known {
        return verdict;
    }
    let Some(s) = room() else { return Verdict::Drop(Reason::NoMemory) };
    match kind {
        ethertype::IPV4 if parse4(p, &mut s.v4) => egress_ip(p, m, &mut s.v4, ep),
        ethertype::IPV6 if parse6(p, &mut s.v6) => {
            let h = &s.v6.headers;
            if h.protocol == protocol::ICMPV6 && h.dport == answer::SOLICITATION && neighbor(p, m, h, ep) {
                return Verdict::Reply(Reason::VipNeighbor);
            }
            egress_ip(p, m, &mut s.v6, ep)
        }
        ethertype::ARP if arp(p, m, ep) => Verdict::Reply(Reason::VipNeighbor),
        ethertype::IPV4 | ethertype::IPV6 => Verdict::Next(Reason::Malformed),
        _ => Verdict::Next(Reason::NotIp),
    }
}

#[inline(always)]
fn ingress_frame<'s, P: Packet, M: Maps>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    let Some(kind) = p.read(12) else { return Verdict::Next(Reason::Malformed) };
    let known = match kind {
        ethertype::IPV4 => ingress_known(p, m, parse::plain4(p), ep),
        ethertype::IPV6 => ingress_known(p, m, parse::plain6(p), ep),
        _ => Known::No,
    };
    if let Known::Done(verdict) = known {
        return verdict;
    }
    let Some(s) = room() else { return Verdict::Drop(Reason::NoMemory) };
    match kind {
        ethertype::IPV4 if parse4(p, &mut s.v4) => ingress_ip(p, m, &mut s.v4, ep),
        ethertype::IPV6 if parse6(p, &mut s.v6) => ingress_ip(p, m, &mut s.v6, ep),
        ethertype::IPV4 | ethertype::IPV6 => Verdict::Next(Reason::Malformed),
        _ => Verdict::Next(Reason::NotIp),
    }
}

/// What the short way makes of a packet: most are in the middle of a flow that this CPU has cached, or for no VIP at all.
enum Known {
    /// That was all.
    Done(Verdict),
    /// To be judged the long way.
    No,
}

#[inline(always)]
fn egress_known<A, P, M>(p: &mut P, m: &M, h: Option<Headers<A>>, ep: &EndpointRow) -> Known
where
    A: Address,
    P: Packet,
    M: Maps + FlowMaps<A>,
{
    let Some(h) = h else { return Known::No };
    if vip::is_no_vip(m, ep, &h.dst) {
        return if ep.flags & endpoint_flags::REDIRECT_BACK == 0 {
            Known::Done(Verdict::Next(Reason::NotOurs))
        } else {
            Known::No
        };
    }
    if ep.segment != 0 {
        return Known::No;
    }
    let key = vip::key(ep, Direction::Egress, &h);
    match track::hit::<_, _, true>(m, &key, p.size()) {
        Some(t) => rewritten(p, &h, &t, Side::Destination, Reason::Established),
        None => Known::No,
    }
}

#[inline(always)]
fn ingress_known<A, P, M>(p: &mut P, m: &M, h: Option<Headers<A>>, ep: &EndpointRow) -> Known
where
    A: Address,
    P: Packet,
    M: Maps + FlowMaps<A>,
{
    let Some(h) = h else { return Known::No };
    if vip::is_no_member(m, ep, &h.src) {
        return Known::Done(Verdict::Next(Reason::NotOurs));
    }
    let key = vip::key(ep, Direction::Ingress, &h);
    match track::hit::<_, _, false>(m, &key, p.size()) {
        Some(t) => rewritten(p, &h, &t, Side::Source, Reason::Reply),
        None => Known::No,
    }
}

#[inline(always)]
fn rewritten<A: Address, P: Packet>(p: &mut P, h: &Headers<A>, t: &Treatment<A>, side: Side, reason: Reason) -> Known {
    let done = rewrite::apply(p, h, &t.rewrite, side).is_some();
    Known::Done(if done { Verdict::Next(reason) } else { Verdict::Drop(Reason::NoMemory) })
}

#[inline(always)]
fn egress_ip<A: Address, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
    let (bytes, segment) = (p.size(), p.segment());
    if !vip::is_no_vip(m, ep, &w.headers.dst) {
        judge_egress(m, w, ep, bytes, segment);
    } else if ep.flags & endpoint_flags::REDIRECT_BACK != 0 {
        judge_way_back(m, w, ep, bytes, segment);
    } else {
        return Verdict::Next(Reason::NotOurs);
    }
    deliver::carry_out(p, m, w)
}

#[inline(always)]
fn ingress_ip<A: Address, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
    if vip::is_no_member(m, ep, &w.headers.src) {
        return Verdict::Next(Reason::NotOurs);
    }
    match judge_ingress(m, w, ep, p.size()) {
        Decision::Forward if deliver::change(p, w, Side::Source) => Verdict::Next(w.reason),
        Decision::Forward => Verdict::Drop(Reason::NoMemory),
        Decision::Drop => Verdict::Drop(w.reason),
        _ => Verdict::Next(Reason::NotOurs),
    }
}

// The functions below are subprograms of their own in the kernel: a program's whole call chain shares one stack of 512
// bytes, and what is called in sequence uses the same part of it.

#[inline(never)]
fn parse4<P: Packet>(p: &P, w: &mut Work<V4>) -> bool {
    parse::ipv4(p).map(|h| w.headers = h).is_some()
}

#[inline(never)]
fn parse6<P: Packet>(p: &P, w: &mut Work<V6>) -> bool {
    parse::ipv6(p).map(|h| w.headers = h).is_some()
}

/// Answers an ARP request for a VIP; says if it was one.
#[inline(never)]
fn arp<P: Packet, M: Maps>(p: &mut P, m: &M, ep: &EndpointRow) -> bool {
    let target = answer::arp_target(p).filter(|target| vip::is_vip(m, ep, target));
    target.and_then(|_| answer::arp(p, ep.host_mac)).is_some()
}

/// Answers a neighbour solicitation for a VIP; says if it was one.
#[inline(never)]
fn neighbor<P: Packet, M: Maps>(p: &mut P, m: &M, h: &Headers<V6>, ep: &EndpointRow) -> bool {
    let target = answer::solicited(p, h).filter(|target| vip::is_vip(m, ep, target));
    target.and_then(|target| answer::advertise(p, h, target, ep.host_mac)).is_some()
}

#[inline(always)]
fn judge_egress<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &mut Work<A>, ep: &EndpointRow, bytes: u32, segment: u32) {
    vip::see(m, ep, Direction::Egress, bytes, w);
    w.todo = match vip::egress(m, ep, w) {
        Decision::NotOurs => Todo::Pass,
        Decision::Forward => deliver::route(m, w, ep, bytes, segment),
        Decision::Reject => Todo::Reject,
        Decision::Echo => Todo::Echo,
        Decision::Drop => Todo::Drop,
    };
}

#[inline(always)]
fn judge_way_back<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &mut Work<A>, ep: &EndpointRow, bytes: u32, segment: u32) {
    w.todo = match deliver::local_client(m, w, ep) {
        Some(to) => deliver::route_back(m, w, ep, to, bytes, segment),
        None => Todo::Pass,
    };
}

/// Judges what reaches `ep`.
#[inline(always)]
pub(crate) fn judge_ingress<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &mut Work<A>, ep: &EndpointRow, bytes: u32) -> Decision {
    vip::see(m, ep, Direction::Ingress, bytes, w);
    vip::ingress(m, ep.slot, w)
}
