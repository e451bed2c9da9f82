//! ARP, and what a VIP answers to questions for its link-layer address.

use super::{Maps, Scratch};
use crate::addr::V6;
use crate::answer;
use crate::deliver::FAILED;
use crate::endpoint::EndpointRow;
use crate::lb::vip;
use crate::packet::Packet;
use crate::parse::{ETH, Headers};
use crate::policy::guard::{self, Guard};
use crate::report::refuse_arp;
use crate::verdict::{Direction, Reason, Verdict};

/// Judges an ARP packet that an endpoint sends.
#[inline(always)]
pub fn egress_arp<'s, P: Packet, M: Maps>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    p.pull(ETH as u32 + 28);
    if ep.is_policed() {
        let guard = guard::arp_egress(p, m, ep);
        if guard != Guard::Pass {
            return room().map_or(FAILED, |s| refuse_arp(p, m, &mut s.v4, ep, guard, Direction::Egress));
        }
    }
    if arp(p, m, ep) {
        return Verdict::Reply(Reason::VipNeighbor);
    }
    Verdict::Next(if ep.is_policed() { Reason::System } else { Reason::NotIp })
}

// The functions below are subprograms of their own in the kernel: a program's whole call chain shares one stack of 512 bytes, and what is
// called in sequence uses the same part of it.

/// Answers an ARP request for a VIP; says if it was one.
#[inline(never)]
fn arp<P: Packet, M: Maps>(p: &mut P, m: &M, ep: &EndpointRow) -> bool {
    let target = answer::arp_target(p).filter(|target| vip::is_vip(m, ep, target));
    target.and_then(|_| answer::arp(p, ep.host_mac)).is_some()
}

/// Answers a neighbour solicitation for a VIP; says if it was one.
#[inline(never)]
pub fn neighbor<P: Packet, M: Maps>(p: &mut P, m: &M, h: &Headers<V6>, ep: &EndpointRow) -> bool {
    let target = answer::solicited(p, h).filter(|target| vip::is_vip(m, ep, target));
    target.and_then(|target| answer::advertise(p, h, target, ep.host_mac)).is_some()
}
