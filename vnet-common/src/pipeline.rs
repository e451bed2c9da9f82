//! The whole datapath. [`egress`] is what an endpoint sends, [`ingress`] what reaches it; both run at its host-side device.
//!
//! ```text
//! egress:  endpoint → parse → ARP/ND for a VIP → flow or pick → rewrite → deliver
//! ingress: endpoint → parse → flow → rewrite back
//! ```
//!
//! Most packets take a short way through it (`egress_known`, `ingress_known`) that needs no subprogram and no room to work in; what it cannot settle goes the
//! long way from the beginning.

use crate::addr::{Address, V4, V6};
use crate::answer;
use crate::deliver::{self, FAILED, Shortcut, Todo};
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps, flags as endpoint_flags};
use crate::flow::{FlowMaps, Work, track};
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

/// Judges a packet that enters at the device `ifindex`: one that its endpoint sends. `room` is asked for only where it
/// is needed; there always is some, but the verifier wants to see the question.
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
    match kind {
        ethertype::IPV4 => match egress_known::<V4, _, _>(p, m, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| egress_ip(p, m, &mut s.v4, ep)),
        },
        ethertype::IPV6 => match egress_known::<V6, _, _>(p, m, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| egress_ip(p, m, &mut s.v6, ep)),
        },
        ethertype::ARP if arp(p, m, ep) => Verdict::Reply(Reason::VipNeighbor),
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
    match kind {
        ethertype::IPV4 => match ingress_known::<V4, _, _>(p, m, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| ingress_ip(p, m, &mut s.v4, ep)),
        },
        ethertype::IPV6 => match ingress_known::<V6, _, _>(p, m, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| ingress_ip(p, m, &mut s.v6, ep)),
        },
        _ => Verdict::Next(Reason::NotIp),
    }
}

/// The short way: for a packet in the middle of a flow that this CPU has cached, or for no VIP at all; most are. `None`: the long way, from
/// the beginning.
#[inline(always)]
fn egress_known<A: Family, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, ep: &EndpointRow) -> Option<Verdict> {
    let h = A::plain(p)?;
    if vip::is_no_vip(m, ep, &h.dst) {
        let back = ep.flags & endpoint_flags::REDIRECT_BACK != 0;
        return if back { deliver::take_back(p, m, &h, ep) } else { Some(Verdict::Next(Reason::NotOurs)) };
    }
    let key = vip::key(ep, Direction::Egress, &h);
    let (bytes, segment) = (p.size(), p.segment());
    let mut route = Shortcut::default();
    let t = track::hit(m, &key, bytes, |t| {
        let shortcut = deliver::shortcut(m, &h, t, ep, bytes, segment);
        route = shortcut.unwrap_or_default();
        shortcut.is_some()
    })?;
    Some(deliver::take(p, m, &h, &t, ep, route))
}

#[inline(always)]
fn ingress_known<A: Family, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, ep: &EndpointRow) -> Option<Verdict> {
    let h = A::plain(p)?;
    if vip::is_no_member(m, ep, &h.src) {
        return Some(Verdict::Next(Reason::NotOurs));
    }
    let key = vip::key(ep, Direction::Ingress, &h);
    let t = track::hit(m, &key, p.size(), |_| true)?;
    let done = rewrite::apply(p, &h, &t.rewrite, Side::Source).is_some();
    Some(if done { Verdict::Next(Reason::Reply) } else { FAILED })
}

#[inline(always)]
fn egress_ip<A: Family, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
    let (bytes, segment) = (p.size(), p.segment());
    if !A::parse(p, w) {
        return Verdict::Next(Reason::Malformed);
    }
    if A::neighbor(p, m, &w.headers, ep) {
        return Verdict::Reply(Reason::VipNeighbor);
    }
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
fn ingress_ip<A: Family, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
    if !A::parse(p, w) {
        return Verdict::Next(Reason::Malformed);
    }
    if vip::is_no_member(m, ep, &w.headers.src) {
        return Verdict::Next(Reason::NotOurs);
    }
    match judge_ingress(m, w, ep, p.size()) {
        Decision::Forward if deliver::change(p, w, Side::Source) => Verdict::Next(w.reason),
        Decision::Forward => FAILED,
        Decision::Drop => Verdict::Drop(w.reason),
        _ => Verdict::Next(Reason::NotOurs),
    }
}

/// Where the families differ.
trait Family: Address {
    /// Headers as most packets have them.
    fn plain<P: Packet>(p: &P) -> Option<Headers<Self>>;
    /// All headers; says if they are well-formed.
    fn parse<P: Packet>(p: &P, w: &mut Work<Self>) -> bool;
    /// Answers a question for a VIP's link-layer address; says if it was one.
    #[inline(always)]
    fn neighbor<P: Packet, M: Maps>(_: &mut P, _: &M, _: &Headers<Self>, _: &EndpointRow) -> bool {
        false
    }
}

impl Family for V4 {
    #[inline(always)]
    fn plain<P: Packet>(p: &P) -> Option<Headers<Self>> {
        parse::plain4(p)
    }
    #[inline(never)]
    fn parse<P: Packet>(p: &P, w: &mut Work<Self>) -> bool {
        parse::ipv4(p).map(|h| w.headers = h).is_some()
    }
}

impl Family for V6 {
    #[inline(always)]
    fn plain<P: Packet>(p: &P) -> Option<Headers<Self>> {
        parse::plain6(p)
    }
    #[inline(never)]
    fn parse<P: Packet>(p: &P, w: &mut Work<Self>) -> bool {
        parse::ipv6(p).map(|h| w.headers = h).is_some()
    }
    #[inline(always)]
    fn neighbor<P: Packet, M: Maps>(p: &mut P, m: &M, h: &Headers<Self>, ep: &EndpointRow) -> bool {
        h.protocol == protocol::ICMPV6 && h.dport == answer::SOLICITATION && neighbor(p, m, h, ep)
    }
}

// The functions below, and `Family::parse`, are subprograms of their own in the kernel: a program's whole call chain shares one
// stack of 512 bytes, and what is called in sequence uses the same part of it.

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
    w.todo = match deliver::local(m, ep, &w.headers.dst) {
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
