//! What becomes of a flow: what was decided stays as long as it holds; what is new is decided by the rules and the load balancer.
//!
//! - A packet whose flow is known follows it, in both directions: so the replies of what is allowed pass. An entry of another generation
//!   is judged again first, from the side of whoever opened it, and is removed when it may not stay.
//! - A new flow of a policed endpoint is asked about at each side's own device: by the set's egress rules where it is opened, by the ingress
//!   rules where it arrives. One to a VIP is asked about twice, as the VIP and as the member: a rule that denies either decides; else
//!   one that allows either; else the default.
//! - ICMP errors about a known flow pass. What makes no flow (other ICMP, fragments, resets of no connection) is asked about packet by packet.

use crate::addr::Address;
use crate::endpoint::{EndpointRow, flags as endpoint_flags};
use crate::event::{EventRow, kind};
use crate::flow::track::{Course, find, forget, insert_pair, proceed, treat};
use crate::flow::{FlowEntry, FlowKey, FlowMaps, InsertError, NO_MEMBER, Table, Work, flags};
use crate::hash;
use crate::lb::pick::{self, Outcome, Reverse};
use crate::lb::vip;
use crate::parse::{Headers, protocol, tcp};
use crate::pipeline::Maps;
use crate::policy::evaluate::{Judged, Question, evaluate};
use crate::policy::{AddressKey, action, port_key, rule_flags};
use crate::verdict::{Direction, Reason};

/// The large steps, as functions of their own: the kernel's verifier looks at each once, not for every way that leads to it.
pub trait Judge<A: Address>: Sized {
    /// [`egress`].
    #[inline(always)]
    fn egress(&self, ep: &EndpointRow, w: &mut Work<A>, vip: bool) -> Decision
    where
        Self: Maps + FlowMaps<A>,
    {
        egress(self, ep, w, vip)
    }
    /// [`ingress`].
    #[inline(always)]
    fn ingress(&self, ep: &EndpointRow, w: &mut Work<A>) -> Decision
    where
        Self: Maps + FlowMaps<A>,
    {
        ingress(self, ep, w)
    }
    /// [`known`].
    #[inline(always)]
    fn known(&self, ep: &EndpointRow, w: &mut Work<A>) -> Known
    where
        Self: Maps + FlowMaps<A>,
    {
        known(self, ep, w)
    }
    /// [`evaluate`] for [`Work::question`], into [`Work::judged`] or, if it is about a `member`, [`Work::judged_member`].
    #[inline(always)]
    fn evaluate(&self, w: &mut Work<A>, member: bool) -> bool
    where
        Self: Maps + FlowMaps<A>,
    {
        evaluate(self, &w.question, if member { &mut w.judged_member } else { &mut w.judged })
    }
    /// [`pick::from_group`].
    #[inline(always)]
    fn pick(&self, ep: &EndpointRow, w: &mut Work<A>, bits: u32) -> Outcome
    where
        Self: Maps + FlowMaps<A>,
    {
        pick::from_group(self, ep, w, bits)
    }
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Decision {
    /// Not for us.
    NotOurs,
    /// Rewrite as [`Work::treatment`] says (which may be nothing), and deliver; counted as [`Work::reason`].
    Forward,
    /// Refuse it for [`Work::reason`]: TCP reset, or an ICMP error.
    Reject,
    /// Answer the echo request.
    Echo,
    /// A rule sends it to a member of [`Work::group`]: the flow is still to be made.
    Steer,
    /// Drop, for [`Work::reason`].
    Drop,
}

/// What the rules say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may be.
    Allowed,
    /// It may not, for [`Work::reason`].
    Denied,
    /// It is refused aloud, for [`Work::reason`].
    Rejected,
    /// It goes to a member of [`Work::group`].
    Steered,
}

/// What is known of a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Known {
    /// It goes on.
    Valid,
    /// It may not go on, for [`Work::reason`].
    Refused,
    /// There is none.
    None,
    /// The rules say no now.
    Denied,
    /// The same, aloud.
    Rejected,
    /// The member, the group or the VIP is no more, or another treatment is due: the client is told by a reset.
    GoneReset,
    /// The same, and another member is picked instead.
    GoneRepick,
}

macro_rules! numbered {
    ($name:ident: $first:ident $(, $other:ident)* $(,)?) => {
        impl $name {
            /// What has this number; the first, for a number that none has.
            #[inline(always)]
            pub const fn of(number: u32) -> Self {
                $(if number == Self::$other as u32 {
                    return Self::$other;
                })*
                Self::$first
            }
        }
    };
}
numbered!(Decision: Drop, NotOurs, Forward, Reject, Echo, Steer);
numbered!(Known: Refused, Valid, None, Denied, Rejected, GoneReset, GoneRepick);
numbered!(Outcome: Drop, Picked, NoGroup, Reject, Steer);

/// Notes what tracking needs to know of a packet.
#[inline(never)]
pub fn see<A: Address, M: Maps + FlowMaps<A>>(m: &M, ep: &EndpointRow, direction: Direction, bytes: u32, w: &mut Work<A>) {
    w.seen.key = key(ep, direction, &w.headers);
    if w.headers.is_icmp() {
        let id = w.headers.sport;
        (w.seen.key.sport, w.seen.key.dport) = if w.headers.is_echo(true) { ([0; 2], id) } else { (id, [0; 2]) };
    }
    (w.seen.tcp, w.seen.bytes) = (u32::from(w.headers.tcp), bytes);
    (w.seen.generation, w.seen.now) = (m.generation(), m.now());
    w.seen.hash = hash::flow(&w.seen.key);
    w.seen.stamp = FlowMaps::<A>::stamp(m, w.seen.hash);
}

/// The key of a packet's flow; not for ICMP.
#[inline(always)]
pub fn key<A: Address>(ep: &EndpointRow, direction: Direction, h: &Headers<A>) -> FlowKey<A> {
    FlowKey {
        endpoint: ep.id,
        network: ep.network,
        src: h.src,
        dst: h.dst,
        sport: h.sport,
        dport: h.dport,
        protocol: h.protocol,
        direction: direction as u8,
        pad: [0; 2],
    }
}

#[inline(always)]
fn is_policed(ep: &EndpointRow) -> bool {
    ep.flags & endpoint_flags::POLICED != 0
}

/// Does the packet belong to something that has an entry, or may get one?
#[inline(always)]
fn is_tracked<A: Address>(h: &Headers<A>, ep: &EndpointRow) -> bool {
    if h.fragment {
        return false;
    }
    h.is_tcp() || h.is_udp() || (is_policed(ep) && (!h.is_icmp() || h.is_echo(false) || h.is_echo(true)))
}

/// Decides about a packet that an endpoint sends. `vip`: its destination may be one.
#[inline(always)]
pub fn egress<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, vip: bool) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let tracked = is_tracked(&w.headers, ep);
    if tracked {
        match Judge::<A>::known(m, ep, w) {
            Known::Valid => return Decision::Forward,
            Known::Refused | Known::Denied => return Decision::Drop,
            Known::Rejected => return Decision::Reject,
            Known::None => {}
            gone @ (Known::GoneReset | Known::GoneRepick) => {
                let fresh_syn = w.headers.tcp & (tcp::SYN | tcp::ACK) == tcp::SYN;
                if gone == Known::GoneReset && w.headers.is_tcp() && !fresh_syn {
                    return Decision::Reject;
                }
            }
        }
    }
    let mut decision = if vip { vip::egress(m, ep, w, tracked) } else { Decision::NotOurs };
    if decision == Decision::NotOurs && is_policed(ep) {
        decision = fresh(m, ep, w);
    }
    if decision == Decision::Steer { pick::steer(m, ep, w) } else { decision }
}

/// Decides about a packet that reaches an endpoint.
#[inline(always)]
pub fn ingress<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let decision = follow(m, ep, w);
    if decision == Decision::NotOurs && is_policed(ep) { fresh(m, ep, w) } else { decision }
}

/// The same, by what is known of its flow only: enough for endpoints that are not policed.
#[inline(always)]
pub fn follow<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    if !is_tracked(&w.headers, ep) {
        return Decision::NotOurs;
    }
    match Judge::<A>::known(m, ep, w) {
        Known::Valid => Decision::Forward,
        Known::Refused | Known::Denied | Known::GoneReset | Known::GoneRepick => Decision::Drop,
        Known::Rejected => Decision::Reject,
        Known::None => Decision::NotOurs,
    }
}

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

/// Notes the generation in the entry, and the rule that allows it now in both.
#[inline(always)]
fn renew<A: Address, M: FlowMaps<A>>(m: &M, w: &mut Work<A>) {
    let generation = w.seen.generation;
    w.entry.generation = generation;
    m.update(w.table, &w.seen.key, |e| e.generation = generation);
    let rule = w.judged.rule.id;
    #[cfg(not(feature = "previous-abi"))]
    if w.entry.rule != rule {
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
    if is_policed(ep) && w.entry.flags & flags::PROBE != 0 {
        w.judged.rule.id = 0;
        return Known::Valid;
    }
    if is_policed(ep) {
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
            pick::vip_key(key.network, &key.dst, key.dport, key.protocol)
        } else {
            pick::vip_key(key.network, &e.rewrite.addr, e.rewrite.port, key.protocol)
        };
        m.vip(&vip).filter(|v| v.group == e.group).and_then(|v| m.group(v.group))
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

#[inline(always)]
fn address<A: Address>(ep: &EndpointRow, addr: &A) -> AddressKey {
    AddressKey { network: ep.network, version: u32::from(A::VERSION), addr: addr.widen() }
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
    w.question = Question { peer: address(ep, &peer), set: ep.set, direction: opener as u32, port };
}

/// Asks about the packet at hand.
#[inline(never)]
fn ask<A: Address>(ep: &EndpointRow, w: &mut Work<A>) {
    let h = &w.headers;
    let egress = w.seen.key.direction == Direction::Egress as u8;
    let peer = if egress { h.dst } else { h.src };
    let port = if h.fragment { [0; 2] } else { h.dport };
    let direction = u32::from(w.seen.key.direction);
    w.question = Question { peer: address(ep, &peer), set: ep.set, direction, port: port_key(h.protocol, port) };
}

/// Asks the rules, [`Work::question`] being set. `member`: also about that in [`Work::group`], whose answer counts as much.
#[inline(always)]
fn admit<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(m: &M, w: &mut Work<A>, member: bool) -> Admission {
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
    w.question.direction == Direction::Egress as u32 && !h.fragment && (h.is_tcp() || h.is_udp())
}

/// Of the answers about a VIP and its member: a rule that denies comes before one that allows, and that before a default.
#[inline(always)]
fn outweighs(new: &Judged, old: &Judged) -> bool {
    let weight = |j: &Judged| match (j.rule.flags & rule_flags::DEFAULT != 0, j.rule.action) {
        (true, _) => 0,
        (false, action::ALLOW) => 1,
        (false, _) => 2,
    };
    weight(new) > weight(old)
}

/// Asks about a new flow to a VIP, whose member is in [`Work::group`].
#[inline(always)]
pub fn admit_balanced<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Admission {
    ask(ep, w);
    let admission = admit(m, w, true);
    note(m, ep, w, admission);
    admission
}

/// Asks about a packet to a VIP that no group takes.
#[inline(never)]
pub fn admit_unbalanced<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Admission {
    ask(ep, w);
    let admission = admit(m, w, false);
    note(m, ep, w, admission);
    admission
}

/// Decides about a packet of no known flow, from or to a policed endpoint.
#[inline(never)]
fn fresh<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    ask(ep, w);
    let admission = admit(m, w, false);
    note(m, ep, w, admission);
    match admission {
        Admission::Denied => Decision::Drop,
        Admission::Rejected => Decision::Reject,
        Admission::Steered => Decision::Steer,
        Admission::Allowed => {
            w.reason = Reason::Allowed;
            w.treatment.flags = 0;
            if !makes_flow(&w.headers) || open(m, ep, w, 0) {
                return Decision::Forward;
            }
            let id = w.judged.rule.id;
            report(m, ep, w, kind::DROP, id);
            Decision::Drop
        }
    }
}

/// Notes the flow of one of the agent's probes to an endpoint. It passes even where there is no room for its flow.
#[inline(never)]
pub fn note_probe<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>)
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let known = is_tracked(&w.headers, ep) && find(m, w) && proceed(m, ep.slot, w) != Course::None;
    if !known && makes_flow(&w.headers) {
        w.judged.rule.id = 0;
        open(m, ep, w, flags::PROBE);
    }
}

/// Does the first packet of this kind make a flow? A reset or an echo's answer of no known flow does not.
#[inline(always)]
fn makes_flow<A: Address>(h: &Headers<A>) -> bool {
    match h.protocol {
        _ if h.fragment => false,
        protocol::TCP => h.tcp & tcp::RST == 0,
        _ => !h.is_icmp() || h.is_echo(false),
    }
}

/// Makes the two entries of a flow that is not rewritten, with these [`flags`] besides its own; says if it could, else [`Work::reason`] says
/// why not.
#[inline(never)]
fn open<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, bits: u16) -> bool
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let is_tcp = w.headers.is_tcp();
    w.table = if is_tcp { Table::HalfOpen } else { Table::Main };
    w.entry.rewrite = w.seen.key.unrewrite();
    w.partner = w.seen.key.partner(&w.entry.rewrite);
    match pick::reverse(m, w) {
        Reverse::Free => {}
        Reverse::Dead => drop(pick::clear_dead(m, ep, w)),
        Reverse::Taken => {
            w.reason = Reason::FlowCollision;
            return false;
        }
    }
    if !is_tcp && !m.take_flow(ep.slot) {
        w.reason = Reason::FlowQuota;
        return false;
    }
    fill(w, bits);
    if let Err(e) = insert_pair(m, w.table, &w.seen.key, &w.entry, &w.partner, &w.other) {
        if !is_tcp {
            m.give_flow(ep.slot);
        }
        w.reason = match e {
            InsertError::Exists => Reason::FlowCollision,
            InsertError::Full => Reason::FlowTableFull,
        };
        return false;
    }
    treat(w);
    w.reason = Reason::Allowed;
    if is_tcp {
        pick::make_room(m, ep, w);
    }
    true
}

/// Fills in both entries; the first one's rewrite is there already.
#[inline(never)]
fn fill<A: Address>(w: &mut Work<A>, bits: u16) {
    let inbound = if w.seen.key.direction == Direction::Ingress as u8 { flags::INBOUND } else { 0 };
    let picked_up = w.headers.is_tcp() && w.headers.tcp & tcp::SYN == 0;
    let bits = bits | inbound | if picked_up { flags::PICKED_UP } else { 0 };
    let rule = w.judged.rule.id;
    let Work { seen, entry, other, partner, .. } = w;
    for e in [&mut *entry, &mut *other] {
        (e.generation, e.member, e.serial, e.group) = (seen.generation, NO_MEMBER, 0, 0);
        begin(e, seen.now, rule);
        e.flags = bits;
    }
    (entry.packets, entry.bytes) = (1, u64::from(seen.bytes));
    (other.packets, other.bytes) = (0, 0);
    other.rewrite = partner.unrewrite();
}

/// What every new entry has.
#[inline(always)]
pub fn begin<A: Address>(e: &mut FlowEntry<A>, now: u32, rule: u32) {
    e.last_seen = now;
    #[cfg(not(feature = "previous-abi"))]
    {
        (e.created, e.rule) = (now, rule);
    }
    #[cfg(feature = "previous-abi")]
    let _ = rule;
    (e.tcp, e.pad, e.entry_pad) = (0, 0, Default::default());
}

/// Counts a decision for its rule, and reports what is asked for.
#[inline(always)]
fn note<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>, admission: Admission) {
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
fn note_drop<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>) {
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
        ethertype: if A::VERSION == 4 { crate::parse::ethertype::IPV4 } else { crate::parse::ethertype::IPV6 },
        ..EventRow::default()
    };
    m.report(&mut w.event);
}
