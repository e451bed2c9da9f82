//! What the rules say of a packet of no known flow.

use super::{Admission, Decision, Judge};
use crate::addr::Address;
use crate::endpoint::EndpointRow;
use crate::event::kind;
use crate::flow::{FlowMaps, Work, open};
use crate::pipeline::Maps;
use crate::policy::evaluate::{Judged, Question};
use crate::policy::{AddressKey, action, port_key, rule_flags};
use crate::report::{note, report};
use crate::verdict::{Direction, Reason};

/// Decides about a packet of no known flow, from or to a policed endpoint.
#[inline(never)]
pub fn fresh<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    ask(ep, w, w.headers.is_opened());
    let mut admission = admit(m, w, false);
    if admission == Admission::Steered && w.seen.key.direction == Direction::Ingress as u8 {
        // Who answers here is not whom the endpoint would have been led to.
        (admission, w.reason) = (Admission::Denied, Reason::Quarantined);
    }
    note(m, ep, w, admission);
    match admission {
        Admission::Denied => Decision::Drop,
        Admission::Rejected => Decision::Reject,
        Admission::Steered => Decision::Steer,
        Admission::Allowed => {
            w.reason = Reason::Allowed;
            w.treatment.flags = 0;
            if !open::makes_flow(&w.headers) || open::open(m, ep, w, 0) {
                return Decision::Forward;
            }
            let id = w.judged.rule.id;
            report(m, ep, w, kind::DROP, id);
            Decision::Drop
        }
    }
}

/// Asks about the packet at hand, counts the answer and reports it. `member`: it is the first of a flow to a VIP, whose member is in
/// [`Work::group`].
#[inline(always)]
pub fn admit_packet<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, member: bool) -> Admission
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    ask(ep, w, false);
    let admission = admit(m, w, member);
    note(m, ep, w, admission);
    admission
}

/// The same of a packet to a VIP that no group takes.
#[inline(never)]
pub fn admit_unbalanced<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Admission {
    admit_packet(m, ep, w, false)
}

/// Asks about the packet at hand: as the first of its flow, or (`opened`) as the answer to that, which went the other way.
#[inline(never)]
fn ask<A: Address>(ep: &EndpointRow, w: &mut Work<A>, opened: bool) {
    let h = &w.headers;
    let egress = w.seen.key.direction == Direction::Egress as u8;
    let peer = if egress { h.dst } else { h.src };
    let direction = u32::from(w.seen.key.direction) ^ u32::from(opened);
    let port = port_key(h.protocol, if opened { h.sport } else { h.dport });
    w.question = Question { peer: AddressKey::of(ep.network, &peer), set: ep.set, direction, port };
}

/// Asks the rules, [`Work::question`] being set. `member`: also about that in [`Work::group`], whose answer counts as much.
#[inline(always)]
pub fn admit<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(m: &M, w: &mut Work<A>, member: bool) -> Admission {
    w.reason = Reason::BadRow;
    w.judged.rule = Default::default();
    if !Judge::<A>::evaluate(m, w, false) {
        return Admission::Denied;
    }
    if member {
        w.question.peer.addr = w.group.member.widen();
        w.question.port = w.question.port & !0xffff | u32::from(u16::from_be_bytes(w.group.port));
        if !Judge::<A>::evaluate(m, w, true) {
            return Admission::Denied;
        }
        let staged = [w.judged.staged, w.judged_member.staged];
        if outweighs(&w.judged_member, &w.judged) {
            w.judged = w.judged_member;
        }
        // One that is staged for the other of the two would have been asked as well.
        w.judged.staged = if w.judged.staged != 0 { w.judged.staged } else { staged[0] | staged[1] };
    }
    let rule = &w.judged.rule;
    let quarantine = rule.flags & rule_flags::QUARANTINE != 0;
    match rule.action {
        action::ALLOW => Admission::Allowed,
        action::REJECT => {
            w.reason = if quarantine { Reason::Quarantined } else { Reason::Rejected };
            Admission::Rejected
        }
        action::REDIRECT if is_steerable(w) => {
            (w.group.group, w.group.serial) = (rule.group, rule.serial);
            Admission::Steered
        }
        _ => {
            w.reason = if quarantine { Reason::Quarantined } else { Reason::Denied };
            Admission::Denied
        }
    }
}

/// Can the flow be led to another destination?
#[inline(always)]
fn is_steerable<A: Address>(w: &Work<A>) -> bool {
    let h = &w.headers;
    w.question.direction == Direction::Egress as u32 && !h.later && (h.is_tcp() || h.is_udp())
}

/// Of the answers about a VIP and its member: a rule that denies comes before one that allows, and that before a default. To be led elsewhere is
/// what a quarantine does by default: what it allows comes first.
#[inline(always)]
fn outweighs(new: &Judged, old: &Judged) -> bool {
    let weight = |j: &Judged| match (j.rule.flags & rule_flags::DEFAULT != 0, j.rule.action) {
        (true, _) | (false, action::REDIRECT) => 0,
        (false, action::ALLOW) => 1,
        (false, _) => 2,
    };
    weight(new) > weight(old)
}
