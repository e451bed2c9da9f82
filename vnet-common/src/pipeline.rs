//! The whole datapath. [`egress`] is what an endpoint sends, [`ingress`] what reaches it; both run at its host-side device.
//!
//! ```text
//! egress:  endpoint → copy → parse → guard → ARP/ND for a VIP → known flow, or rules and pick → rewrite → deliver
//! ingress: endpoint → copy → parse → guard → known flow, or rules → rewrite back
//! ```
//!
//! Most packets take a short way through it ([`short`]) that needs no subprogram and no room to work in; what it cannot settle goes the
//! long way ([`long`]) from the beginning. Only policed endpoints have rules, and a guard that looks for more than tunnels (that after what is
//! answered for a VIP); packets of others that are for no VIP are passed on untouched.

use crate::addr::{V4, V6};
use crate::deliver::FAILED;
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps, flags as endpoint_flags};
use crate::event::EventMaps;
use crate::family::Family;
use crate::flow::fragment::FragmentMaps;
use crate::flow::{FlowMaps, Work};
use crate::judge::Judge;
use crate::lb::LbMaps;
use crate::packet::Packet;
use crate::parse::ethertype;
use crate::policy::PolicyMaps;
use crate::policy::guard::{self, Guard};
use crate::report::refuse_arp;
use crate::verdict::{Direction, Reason, Verdict};

pub mod long;
pub mod neighbor;
pub mod related;
pub mod short;

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
pub trait Maps:
    HostMaps + EndpointMaps + LbMaps + PolicyMaps + EventMaps + FragmentMaps + FlowMaps<V4> + FlowMaps<V6> + Judge<V4> + Judge<V6>
{
}
impl<M> Maps for M where
    M: HostMaps
        + EndpointMaps
        + LbMaps
        + PolicyMaps
        + EventMaps
        + FragmentMaps
        + FlowMaps<V4>
        + FlowMaps<V6>
        + Judge<V4>
        + Judge<V6>
{
}

/// The ways, as functions of their own: see [`Judge`]. The stack of a way that was left is free for the next.
pub trait Ways<P: Packet, A: Family>: Maps + FlowMaps<A> + Judge<A> + Sized {
    /// The short one of what an endpoint sends.
    #[inline(always)]
    fn egress_known(&self, p: &mut P, ep: &EndpointRow) -> Option<Verdict> {
        short::egress_known::<A, P, Self>(p, self, ep)
    }
    /// The short one of what reaches an endpoint.
    #[inline(always)]
    fn ingress_known(&self, p: &mut P, ep: &EndpointRow) -> Option<Verdict> {
        short::ingress_known::<A, P, Self>(p, self, ep)
    }
    /// The long one of what an endpoint sends.
    #[inline(always)]
    fn egress(&self, p: &mut P, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
        long::egress_ip(p, self, w, ep)
    }
    /// The long one of what reaches an endpoint.
    #[inline(always)]
    fn ingress(&self, p: &mut P, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
        long::ingress_ip(p, self, w, ep)
    }
    /// That of a probe.
    #[inline(always)]
    fn probe(&self, p: &mut P, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
        long::ingress_probe(p, self, w, ep)
    }
}

/// Judges a packet that enters at the device `ifindex`: one that its endpoint sends. `room` is asked for only where it
/// is needed; there always is some, but the verifier wants to see the question.
#[inline(always)]
pub fn egress<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ifindex: u32,
    vlan: bool,
) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.size();
    let v = match exempt(p, ep, vlan, Direction::Egress) {
        Some(v) => v,
        None => egress_frame(p, m, room, ep),
    };
    m.count(ep.slot, Direction::Egress, v.reason(), bytes);
    v
}

/// Judges a packet that leaves through the device `ifindex`: one that reaches its endpoint.
#[inline(always)]
pub fn ingress<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ifindex: u32,
    vlan: bool,
) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.size();
    let v = match exempt(p, ep, vlan, Direction::Ingress) {
        Some(Verdict::Next(Reason::Probe)) => probe_frame(p, m, room, ep),
        Some(v) => v,
        None => ingress_frame(p, m, room, ep),
    };
    m.count(ep.slot, Direction::Ingress, v.reason(), bytes);
    v
}

/// What nobody looks into: our own packets, and what carries a VLAN tag. Sends the copy that the endpoint's row asks for.
#[inline(always)]
fn exempt<P: Packet>(p: &mut P, ep: &EndpointRow, vlan: bool, direction: Direction) -> Option<Verdict> {
    if ep.is_policed() {
        if let Some(reason) = guard::marked(p, direction) {
            p.set_mark(0);
            return Some(Verdict::Next(reason));
        }
        if ep.mirror() != 0 {
            p.copy_to(ep.mirror());
        }
    }
    vlan.then(|| unjudged(ep, Reason::Vlan))
}

/// What cannot be judged is left to the stack, but not from or to a policed endpoint.
#[inline(always)]
pub fn unjudged(ep: &EndpointRow, reason: Reason) -> Verdict {
    if ep.is_policed() { Verdict::Drop(reason) } else { Verdict::Next(reason) }
}

#[inline(always)]
fn egress_frame<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    let Some(kind) = p.read(12) else { return unjudged(ep, Reason::Malformed) };
    match kind {
        ethertype::IPV4 => match Ways::<P, V4>::egress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V4>::egress(m, p, &mut s.v4, ep)),
        },
        ethertype::IPV6 => match Ways::<P, V6>::egress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V6>::egress(m, p, &mut s.v6, ep)),
        },
        ethertype::ARP => neighbor::egress_arp(p, m, room, ep),
        _ => unjudged(ep, Reason::NotIp),
    }
}

#[inline(always)]
fn ingress_frame<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    let Some(kind) = p.read(12) else { return unjudged(ep, Reason::Malformed) };
    match kind {
        ethertype::IPV4 => match Ways::<P, V4>::ingress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V4>::ingress(m, p, &mut s.v4, ep)),
        },
        ethertype::IPV6 => match Ways::<P, V6>::ingress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V6>::ingress(m, p, &mut s.v6, ep)),
        },
        ethertype::ARP if ep.is_policed() && ep.flags & endpoint_flags::NEIGHBORS == 0 => {
            room().map_or(FAILED, |s| refuse_arp(p, m, &mut s.v4, ep, Guard::Quarantine, Direction::Ingress))
        }
        ethertype::ARP if ep.is_policed() => Verdict::Next(Reason::System),
        _ => unjudged(ep, Reason::NotIp),
    }
}

/// Lets one of the agent's probes through, whatever it carries.
#[inline(always)]
fn probe_frame<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    match p.read(12) {
        Some(ethertype::IPV4) => room().map_or(FAILED, |s| Ways::<P, V4>::probe(m, p, &mut s.v4, ep)),
        Some(ethertype::IPV6) => room().map_or(FAILED, |s| Ways::<P, V6>::probe(m, p, &mut s.v6, ep)),
        _ => Verdict::Next(Reason::Probe),
    }
}
