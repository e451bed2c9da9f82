//! What is counted for rules, and reported: see [`crate::event`].

use crate::addr::{Address, V4};
use crate::endpoint::EndpointRow;
use crate::event::{EventRow, kind};
use crate::flow::Work;
use crate::judge::Admission;
use crate::packet::Packet;
use crate::parse::{ETH, ethertype};
use crate::pipeline::Maps;
use crate::policy::guard::Guard;
use crate::policy::rule_flags;
use crate::verdict::{Direction, Reason, Verdict};

/// Counts a decision for its rule, and reports what is asked for.
#[inline(always)]
pub fn note<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>, admission: Admission) {
    let (id, staged, bytes) = (w.judged.rule.id, w.judged.staged, w.seen.bytes);
    m.rule_hit(id, bytes, false);
    if staged != 0 {
        m.rule_hit(staged, bytes, true);
        report(m, ep, w, kind::STAGED, staged);
    }
    if matches!(admission, Admission::Denied | Admission::Rejected) {
        report(m, ep, w, kind::DROP, id);
    } else if w.judged.rule.flags & rule_flags::LOG != 0 {
        report(m, ep, w, kind::LOG, id);
    } else {
        report(m, ep, w, kind::FLOW, id);
    }
}

/// The same for a flow that is cut.
#[inline(always)]
pub fn note_drop<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>) {
    let id = w.judged.rule.id;
    m.rule_hit(id, w.seen.bytes, false);
    report(m, ep, w, kind::DROP, id);
}

/// Reports the packet at hand, if somebody wants to know of this kind.
#[inline(always)]
pub fn report<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>, kind: u8, rule: u32) {
    if m.events() & kind != 0 {
        w.event.kind = kind;
        w.event.rule = rule;
        describe(m, ep, w);
    }
}

#[inline(never)]
fn describe<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>) {
    let reason = if w.event.kind & (kind::DROP) != 0 { w.reason } else { Reason::Allowed };
    let h = &w.headers;
    w.event = EventRow {
        endpoint: ep.id,
        rule: w.event.rule,
        peer: w.judged.identity,
        bytes: w.seen.bytes,
        src: h.src.widen(),
        dst: h.dst.widen(),
        sport: h.sport,
        dport: h.dport,
        protocol: h.protocol,
        version: A::VERSION,
        direction: w.seen.key.direction,
        reason: reason as u8,
        kind: w.event.kind,
        tcp: h.tcp,
        ethertype: if A::VERSION == 4 { ethertype::IPV4 } else { ethertype::IPV6 },
        ..EventRow::default()
    };
    m.report(&mut w.event);
}

/// Drops what the guard does not let through.
#[inline(always)]
pub fn refuse<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>, guard: Guard) -> Verdict {
    w.reason = guard.reason();
    w.judged.identity = 0;
    report(m, ep, w, kind::DROP, 0);
    Verdict::Drop(w.reason)
}

/// Drops an ARP packet.
#[inline(always)]
pub fn refuse_arp<P: Packet, M: Maps>(
    p: &P,
    m: &M,
    w: &mut Work<V4>,
    ep: &EndpointRow,
    guard: Guard,
    direction: Direction,
) -> Verdict {
    if m.events() & kind::DROP != 0 {
        report_arp(p, m, w, ep, guard.reason() as u32 | (direction as u32) << 8);
    }
    Verdict::Drop(guard.reason())
}

/// Reports an ARP packet that is dropped. `why`: the reason, and above it the direction.
#[inline(never)]
fn report_arp<P: Packet, M: Maps>(p: &P, m: &M, w: &mut Work<V4>, ep: &EndpointRow, why: u32) -> bool {
    w.event = EventRow {
        endpoint: ep.id,
        bytes: p.size(),
        src: p.read::<4>(ETH + 14).map_or_else(Default::default, |ip| V4::from(ip).widen()),
        dst: p.read::<4>(ETH + 24).map_or_else(Default::default, |ip| V4::from(ip).widen()),
        direction: (why >> 8) as u8,
        reason: why as u8,
        kind: kind::DROP,
        ethertype: ethertype::ARP,
        ..EventRow::default()
    };
    m.report(&mut w.event);
    true
}
