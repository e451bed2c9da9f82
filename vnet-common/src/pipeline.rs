//! The whole datapath. [`egress`] is what an endpoint sends, [`ingress`] what reaches it; both run at its host-side device.
//!
//! ```text
//! egress:  endpoint → parse → ARP/ND for a VIP → flow or pick → rewrite → deliver
//! ingress: endpoint → parse → flow → rewrite back
//! ```

use crate::addr::Address;
use crate::answer;
use crate::deliver::{self, Todo};
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps, flags as endpoint_flags};
use crate::flow::{FlowMaps, Work};
use crate::lb::LbMaps;
use crate::lb::vip::{self, Decision};
use crate::packet::Packet;
use crate::parse::{self, ethertype};
use crate::rewrite::Side;
use crate::verdict::{Direction, Reason, Verdict};

/// Room to work in, per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Scratch {
    /// For an IPv4 packet.
    pub v4: Work<[u8; 4]>,
    /// For an IPv6 packet.
    pub v6: Work<[u8; 16]>,
}

/// All the maps of the datapath.
pub trait Maps: HostMaps + EndpointMaps + LbMaps + FlowMaps<[u8; 4]> + FlowMaps<[u8; 16]> {}
impl<M: HostMaps + EndpointMaps + LbMaps + FlowMaps<[u8; 4]> + FlowMaps<[u8; 16]>> Maps for M {}

/// Judges a packet that enters at the device `ifindex`: one that its endpoint sends.
#[inline(always)]
pub fn egress<P: Packet, M: Maps>(p: &mut P, m: &M, s: &mut Scratch, ifindex: u32, vlan: bool) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.len();
    let v = if vlan { Verdict::Next(Reason::Vlan) } else { egress_frame(p, m, s, ep) };
    m.count(ep.slot, Direction::Egress, v.reason(), bytes);
    v
}

/// Judges a packet that leaves through the device `ifindex`: one that reaches its endpoint.
#[inline(always)]
pub fn ingress<P: Packet, M: Maps>(p: &mut P, m: &M, s: &mut Scratch, ifindex: u32, vlan: bool) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.len();
    let v = if vlan { Verdict::Next(Reason::Vlan) } else { ingress_frame(p, m, s, ep) };
    m.count(ep.slot, Direction::Ingress, v.reason(), bytes);
    v
}

#[inline(always)]
fn egress_frame<P: Packet, M: Maps>(p: &mut P, m: &M, s: &mut Scratch, ep: &EndpointRow) -> Verdict {
    match p.read::<2>(12) {
        Some(ethertype::IPV4) => match parse::ipv4(p) {
            Ok(h) => {
                s.v4.headers = h;
                egress_ip(p, m, &mut s.v4, ep)
            }
            Err(r) => Verdict::Next(r),
        },
        Some(ethertype::IPV6) => match parse::ipv6(p) {
            Ok(h) => {
                s.v6.headers = h;
                match answer::solicited(p, &h).filter(|target| vip::is_vip(m, ep, target)) {
                    Some(target) => deliver::reply(answer::advertise(p, &h, target, ep.host_mac), Reason::VipNeighbor),
                    None => egress_ip(p, m, &mut s.v6, ep),
                }
            }
            Err(r) => Verdict::Next(r),
        },
        Some(ethertype::ARP) => match answer::arp_target(p).filter(|target| vip::is_vip(m, ep, target)) {
            Some(_) => deliver::reply(answer::arp(p, ep.host_mac), Reason::VipNeighbor),
            None => Verdict::Next(Reason::NotIp),
        },
        Some(_) => Verdict::Next(Reason::NotIp),
        None => Verdict::Next(Reason::Malformed),
    }
}

#[inline(always)]
fn ingress_frame<P: Packet, M: Maps>(p: &mut P, m: &M, s: &mut Scratch, ep: &EndpointRow) -> Verdict {
    match p.read::<2>(12) {
        Some(ethertype::IPV4) => match parse::ipv4(p) {
            Ok(h) => {
                s.v4.headers = h;
                ingress_ip(p, m, &mut s.v4, ep)
            }
            Err(r) => Verdict::Next(r),
        },
        Some(ethertype::IPV6) => match parse::ipv6(p) {
            Ok(h) => {
                s.v6.headers = h;
                ingress_ip(p, m, &mut s.v6, ep)
            }
            Err(r) => Verdict::Next(r),
        },
        Some(_) => Verdict::Next(Reason::NotIp),
        None => Verdict::Next(Reason::Malformed),
    }
}

#[inline(always)]
fn egress_ip<A: Address, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
    let todo = if !vip::is_no_vip(m, ep, &w.headers.dst) {
        let (bytes, segment) = (p.len(), p.segment());
        judge_egress(m, w, ep, bytes, segment)
    } else if ep.flags & endpoint_flags::REDIRECT_BACK != 0 {
        let (bytes, segment) = (p.len(), p.segment());
        judge_way_back(m, w, ep, bytes, segment)
    } else {
        return Verdict::Next(Reason::NotOurs);
    };
    deliver::carry_out(p, m, w, todo)
}

#[inline(always)]
fn ingress_ip<A: Address, P: Packet, M: Maps + FlowMaps<A>>(p: &mut P, m: &M, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
    if vip::is_no_member(m, ep, &w.headers.src) {
        return Verdict::Next(Reason::NotOurs);
    }
    match judge_ingress(m, w, ep, p.len()) {
        Decision::Forward(r) => deliver::rewritten(p, w, Side::Source, r),
        Decision::Drop(r) => Verdict::Drop(r),
        _ => Verdict::Next(Reason::NotOurs),
    }
}

// The judges see headers and maps, not the packet. Each is a subprogram of its own: the verifier follows packet pointers
// only within one function, and the stack holds one at a time.

#[inline(never)]
fn judge_egress<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &mut Work<A>, ep: &EndpointRow, bytes: u32, segment: u32) -> Todo {
    vip::see(m, ep, Direction::Egress, bytes, w);
    match vip::egress(m, ep, w) {
        Decision::NotOurs => Todo::Pass(Reason::NotOurs),
        Decision::Forward(r) => deliver::route(m, w, ep, bytes, segment, r),
        Decision::Reject(r) => Todo::Reject(r),
        Decision::Echo => Todo::Echo,
        Decision::Drop(r) => Todo::Drop(r),
    }
}

#[inline(never)]
fn judge_way_back<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &mut Work<A>, ep: &EndpointRow, bytes: u32, segment: u32) -> Todo {
    let Some(to) = deliver::local_client(m, w, ep) else { return Todo::Pass(Reason::NotOurs) };
    deliver::route_back(m, w, ep, to, bytes, segment)
}

/// Judges what reaches `ep`.
#[inline(never)]
pub(crate) fn judge_ingress<A: Address, M: Maps + FlowMaps<A>>(m: &M, w: &mut Work<A>, ep: &EndpointRow, bytes: u32) -> Decision {
    vip::see(m, ep, Direction::Ingress, bytes, w);
    vip::ingress(m, ep.slot, w)
}
