//! The load balancer's stages in the pipeline: new flows, and what a VIP answers itself.

use super::pick::{self, Outcome, vip_key};
use super::{Filter, LbMaps};
use crate::addr::Address;
use crate::endpoint::EndpointRow;
use crate::flow::{FlowMaps, Work};
use crate::hash;
use crate::judge::admit::admit_unbalanced;
use crate::judge::{Admission, Decision, Judge};
use crate::parse::protocol;
use crate::pipeline::Maps;
use crate::verdict::Reason;

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

/// Decides about a packet of no known flow that an endpoint sends to an address whose VIP filter bit is set.
#[inline(always)]
pub fn egress<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, tracked: bool) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let balanced = tracked && (w.headers.is_tcp() || w.headers.is_udp());
    let outcome = if balanced { pick::new_flow(m, ep, w) } else { Outcome::NoGroup };
    match outcome {
        Outcome::Picked => Decision::Forward,
        Outcome::NoGroup => unbalanced(m, ep, w),
        Outcome::Reject => Decision::Reject,
        Outcome::Drop => Decision::Drop,
        Outcome::Steer => Decision::Steer,
    }
}

/// Decides about a packet to a VIP's address that no group takes: the VIP behaves like a host.
#[inline(never)]
fn unbalanced<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision {
    if m.vip(&vip_key(ep.network, &w.headers.dst, [0; 2], 0)).is_none() {
        return Decision::NotOurs;
    }
    if ep.is_policed() {
        match admit_unbalanced(m, ep, w) {
            Admission::Allowed => {}
            Admission::Rejected => return Decision::Reject,
            Admission::Denied => return Decision::Drop,
            Admission::Steered => return Decision::Steer,
        }
    }
    let h = &w.headers;
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
