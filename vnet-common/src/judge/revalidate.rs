//! A flow that is known: it is followed, and after a change of policy judged again first, from the side of whoever opened it.

use super::admit::admit;
use super::{Admission, Judge, Known};
use crate::addr::Address;
use crate::endpoint::EndpointRow;
use crate::event::kind;
use crate::flow::track::{Course, find, forget, proceed};
use crate::flow::{FlowMaps, Work, flags};
use crate::lb::pick;
use crate::parse::protocol;
use crate::pipeline::Maps;
use crate::policy::evaluate::Question;
use crate::policy::{AddressKey, port_key};
use crate::report::{note_drop, report};
use crate::verdict::{Direction, Reason};

/// Finds the packet's flow; an entry of another generation is judged again. What may not stay is removed.
#[inline(always)]
pub fn known<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Known
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    if !find(m, w) {
        return Known::None;
    }
    if w.entry.generation != w.seen.generation {
        let judged = judge_again(m, ep, w);
        w.partner = w.seen.key.partner(&w.entry.rewrite);
        if judged != Known::Valid {
            // A reset is for the client to see: until its next packet the entry says so.
            let waits =
                matches!(judged, Known::GoneReset | Known::GoneRepick) && w.seen.key.direction == Direction::Ingress as u8;
            if !waits {
                forget(m, ep.slot, w.table, &w.seen.key, &w.partner);
            }
            if matches!(judged, Known::Denied | Known::Rejected) {
                note_drop(m, ep, w);
            }
            return judged;
        }
        renew(m, w);
    }
    match proceed(m, ep.slot, w) {
        Course::Valid => Known::Valid,
        Course::Refused => {
            (w.judged.identity, w.judged.rule.id) = (0, 0);
            report(m, ep, w, kind::DROP, 0);
            Known::Refused
        }
        Course::None => Known::None,
    }
}

/// Notes the generation in the entry, and the rule that allows it now in both; but only where it is still the entry that was read. The kernel gives
/// the memory of a removed one to another flow at once.
#[inline(always)]
fn renew<A: Address, M: FlowMaps<A>>(m: &M, w: &mut Work<A>) {
    let (read, generation) = (w.entry.generation, w.seen.generation);
    w.entry.generation = generation;
    let mut is_it = false;
    m.update(w.table, &w.seen.key, |e| {
        is_it = e.generation == read;
        if is_it {
            e.generation = generation;
        }
    });
    let rule = w.judged.rule.id;
    #[cfg(not(feature = "previous-abi"))]
    if is_it && w.entry.rule != rule {
        w.entry.rule = rule;
        m.update(w.table, &w.seen.key, |e| e.rule = rule);
        m.update(w.table, &w.partner, |e| e.rule = rule);
    }
    #[cfg(feature = "previous-abi")]
    let _ = rule;
}

/// May the flow of [`Work::entry`] stay?
#[inline(always)]
fn judge_again<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Known {
    let nat = w.entry.flags & flags::NAT != 0;
    if ep.is_policed() && w.entry.flags & flags::PROBE != 0 {
        w.judged.rule.id = 0;
        return Known::Valid;
    }
    if ep.is_policed() {
        ask_again(ep, w);
        match admit(m, w, nat && w.entry.flags & flags::STEERED == 0) {
            Admission::Denied => return Known::Denied,
            Admission::Rejected => return Known::Rejected,
            Admission::Allowed if w.entry.flags & flags::STEERED == 0 => {}
            // Still the same service?
            Admission::Steered if w.entry.flags & flags::STEERED != 0 && w.group.group == w.entry.group => {}
            _ => return gone(w, Reason::Quarantined),
        }
    } else {
        w.judged.rule.id = 0;
        // Of a time when the endpoint was policed:
        if !nat {
            return Known::None;
        }
        if w.entry.flags & flags::STEERED != 0 {
            return gone(w, Reason::Quarantined);
        }
    }
    if !nat { Known::Valid } else { may_stay(m, w) }
}

#[inline(always)]
fn gone<A: Address>(w: &mut Work<A>, reason: Reason) -> Known {
    w.reason = reason;
    Known::GoneReset
}

/// A flow keeps its member while the VIP's port still has the group and the group still has the member, in any state.
#[inline(always)]
fn may_stay<A: Address, M: Maps>(m: &M, w: &mut Work<A>) -> Known {
    let (key, e) = (&w.seen.key, &w.entry);
    let group = if e.flags & flags::STEERED != 0 {
        m.group(e.group).filter(|g| g.serial == w.group.serial)
    } else {
        let vip = if key.direction == Direction::Egress as u8 {
            pick::find_vip(m, key.network, &key.dst, key.dport, key.protocol)
        } else {
            pick::find_vip(m, key.network, &e.rewrite.addr, e.rewrite.port, key.protocol)
        };
        vip.filter(|v| v.group == e.group).and_then(|v| m.group(v.group))
    };
    w.reason = Reason::MemberRemoved;
    let Some(group) = group else { return Known::GoneReset };
    match m.member(e.member) {
        Some(row) if row.state != crate::lb::state::NONE && row.serial == e.serial && row.group == e.group => Known::Valid,
        _ if group.flags & crate::lb::flags::REMOVED_REPICK != 0 => Known::GoneRepick,
        _ => Known::GoneReset,
    }
}

/// Protocol and port that a flow is opened to.
#[inline(always)]
fn opened_port<A: Address>(protocol: u8, dport: [u8; 2]) -> u32 {
    match protocol {
        protocol::ICMP if A::VERSION == 4 => port_key(protocol, [8, 0]),
        protocol::ICMPV6 if A::VERSION == 6 => port_key(protocol, [128, 0]),
        _ => port_key(protocol, dport),
    }
}

/// Asks about the flow of [`Work::entry`], as who opened it did. A balanced one's member goes into [`Work::group`].
#[inline(never)]
fn ask_again<A: Address>(ep: &EndpointRow, w: &mut Work<A>) {
    let opener = if w.entry.flags & flags::INBOUND != 0 { Direction::Ingress } else { Direction::Egress };
    if w.seen.key.direction == opener as u8 {
        w.spare = w.seen.key;
        (w.group.member, w.group.port) = (w.entry.rewrite.addr, w.entry.rewrite.port);
    } else {
        w.spare = w.seen.key.partner(&w.entry.rewrite);
        (w.group.member, w.group.port) = (w.seen.key.src, w.seen.key.sport);
    }
    let key = &w.spare;
    let peer = if opener == Direction::Egress { key.dst } else { key.src };
    let port = opened_port::<A>(key.protocol, key.dport);
    w.question = Question { peer: AddressKey::of(ep.network, &peer), set: ep.set, direction: opener as u32, port };
}
