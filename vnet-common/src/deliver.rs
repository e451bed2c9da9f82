//! Carrying out what was decided: rewriting, answering, and the way to the member and back.
//!
//! A packet for a member goes on by the stack (a host that routes), by the bridge (with the member's MAC), or, where the
//! group says so and both ends are endpoints of this host, straight to the member's device. The replies then go straight
//! back. Such a shortcut behaves like the path it replaces: on a routed one the TTL drops and the MTU holds.
//!
//! The device's own program judges what is handed to a policed endpoint: rules, copies and counters are in one place. Only others are
//! entered directly (`is_entered`).

use crate::addr::Address;
use crate::answer;
use crate::endpoint::{EndpointRow, flags as endpoint_flags};
use crate::family::Family;
use crate::flow::track;
use crate::flow::{FlowMaps, Work, flags as flow_flags};
use crate::judge::{self, Decision, Judge};
use crate::lb::vip;
use crate::packet::Packet;
use crate::parse::{ETH, Headers};
use crate::pipeline::{Maps, related};
use crate::policy::AddressKey;
use crate::rewrite::{self, Side};
use crate::verdict::{Direction, Reason, Verdict};

/// What is to be done with a packet. New addresses are in [`Work::treatment`], the cause is in [`Work::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Leave it as it is: not ours.
    Pass,
    /// Leave it as it is, for [`Work::reason`].
    Go,
    /// Rewrite the destination; the stack takes it on.
    Stack,
    /// Rewrite both sides; it goes back to the endpoint, which is its own member.
    Turn,
    /// Rewrite the destination; the stack takes it on, addressed to the member's MAC.
    Segment,
    /// Rewrite the destination, and send it to the endpoint behind [`Work::device`].
    Hand,
    /// Rewrite the source, and send it to the endpoint behind [`Work::device`].
    HandBack,
    /// Refuse as a host would: TCP reset, or ICMP port (for other protocols: protocol) unreachable; as prohibited if a rule says so.
    Reject,
    /// The same, of a packet to an endpoint: the answer goes in the endpoint's name.
    RejectBack,
    /// Answer that at most [`Work::mtu`] fits.
    TooBig,
    /// Answer the echo request.
    Echo,
    /// Drop.
    Drop,
}

/// The way of a packet to its member. [`crate::pipeline::short`] has the same rules for packets of cached flows.
#[inline(never)]
pub fn route<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
    bytes: u32,
    segment: u32,
) -> Todo {
    if w.treatment.flags & flow_flags::HAIRPIN != 0 {
        return Todo::Turn;
    }
    // Fragments go by the stack: one way for all of a datagram.
    let redirect = w.treatment.flags & flow_flags::REDIRECT != 0 && !w.headers.fragment;
    if !redirect && ep.segment == 0 {
        return Todo::Stack;
    }
    let Some(member) = m.member(w.treatment.member) else {
        w.reason = Reason::BadRow;
        return Todo::Drop;
    };
    // A member that left this host has no device: 0 would find an empty row.
    if redirect
        && member.ifindex != 0
        && let Some(to) = m.endpoint(member.ifindex)
    {
        match note_passage(ep, w, to, bytes, segment) {
            Passage::Fits => return Todo::Hand,
            Passage::TooBig => return Todo::TooBig,
            Passage::Stack => {}
        }
    }
    if ep.segment != 0 && ep.segment == member.segment && member.mac != [0; 6] { Todo::Segment } else { Todo::Stack }
}

/// The endpoint of this host that has the address.
#[inline(always)]
pub fn local<'m, A: Address, M: Maps>(m: &'m M, from: &EndpointRow, addr: &A) -> Option<&'m EndpointRow> {
    m.endpoint(m.local(&AddressKey::of(from.network, addr))?)
}

/// The way of a member's reply to a client on this host: as the request came.
#[inline(always)]
pub fn route_back<A, M>(m: &M, w: &mut Work<A>, ep: &EndpointRow, to: &EndpointRow, bytes: u32, segment: u32) -> Todo
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    if note_passage(ep, w, to, bytes, segment) != Passage::Fits {
        return Todo::Pass;
    }
    track::see(m, to, Direction::Ingress, bytes, w);
    if !went_past_the_stack(m, w) {
        return Todo::Pass;
    }
    if to.is_policed() {
        // As it is: it is judged, and rewritten, at the client's device.
        (w.treatment.flags, w.reason) = (0, Reason::Reply);
        return Todo::HandBack;
    }
    match judge::follow(m, to, w) {
        Decision::Forward => {
            if is_entered(to) {
                m.count(to.slot, Direction::Ingress, w.reason, bytes);
            }
            Todo::HandBack
        }
        _ => Todo::Pass,
    }
}

/// Did the request of this reply go past the stack? Asked before the reply is tracked: one that goes by the stack is
/// tracked, and counted, at the client's device.
#[inline(never)]
fn went_past_the_stack<A: Address, M: FlowMaps<A>>(m: &M, w: &mut Work<A>) -> bool {
    !w.headers.fragment && track::find(m, w) && w.entry.flags & flow_flags::REDIRECT != 0
}

/// Is the endpoint's device entered directly, past its own program?
#[inline(always)]
pub fn is_entered(to: &EndpointRow) -> bool {
    to.flags & (endpoint_flags::PEER | endpoint_flags::POLICED) == endpoint_flags::PEER
}

/// Whether a packet can go past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It can.
    Fits,
    /// It is larger than the device takes, and may not be cut up.
    TooBig,
    /// Only the stack can do it: cut the packet up, answer that its time is over, or find out the receiver's MAC.
    Stack,
}

/// [`passage`], and notes the way in `w`.
#[inline(never)]
fn note_passage<A: Address>(from: &EndpointRow, w: &mut Work<A>, to: &EndpointRow, bytes: u32, segment: u32) -> Passage {
    (w.routed, w.device, w.mtu) = (is_routed(from, to), to.ifindex, to.mtu);
    passage(&w.headers, to, w.routed, bytes, segment)
}

/// Would a router be between the two?
#[inline(always)]
pub fn is_routed(from: &EndpointRow, to: &EndpointRow) -> bool {
    from.segment == 0 || from.segment != to.segment
}

/// Can the packet go straight to the device of `to`?
#[inline(always)]
pub fn passage<A: Address>(h: &Headers<A>, to: &EndpointRow, routed: bool, bytes: u32, segment: u32) -> Passage {
    if to.mac == [0; 6] || (routed && h.ttl <= 1) {
        return Passage::Stack;
    }
    // What a GSO packet is cut into: the headers (TCP: 20 to 60 bytes, of which options take 12 in practice) and a segment.
    let size = if segment == 0 { bytes } else { h.l4 as u32 + if h.is_tcp() { 32 } else { 8 } + segment };
    if size <= to.mtu + ETH as u32 {
        Passage::Fits
    } else if routed && h.dont_fragment {
        Passage::TooBig
    } else {
        Passage::Stack
    }
}

/// Does it.
#[inline(always)]
pub fn carry_out<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(p: &mut P, m: &M, w: &mut Work<A>) -> Verdict {
    let r = w.reason;
    match w.todo {
        Todo::Pass => Verdict::Next(Reason::NotOurs),
        Todo::Go => Verdict::Next(r),
        Todo::Drop => Verdict::Drop(r),
        Todo::Echo => reply(answer(p, w), Reason::VipEcho),
        Todo::Reject => reply(answer(p, w), r),
        Todo::RejectBack => match answer(p, w) {
            true => Verdict::Bounce(r),
            false => Verdict::Drop(Reason::RejectSilent),
        },
        Todo::TooBig => reply(answer(p, w), Reason::PacketTooBig),
        Todo::Turn if turn(p, w) => Verdict::Reply(r),
        Todo::Stack if change(p, w, Side::Destination) => Verdict::Next(r),
        Todo::Segment if to_segment(p, m, w) && change(p, w, Side::Destination) => Verdict::Next(r),
        Todo::Turn | Todo::Stack | Todo::Segment => Verdict::Drop(Reason::NoMemory),
        Todo::Hand | Todo::HandBack => hand(p, m, w, r),
    }
}

/// Rewrites the packet and sends it to the endpoint behind [`Work::device`].
#[inline(always)]
fn hand<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(p: &mut P, m: &M, w: &mut Work<A>, reason: Reason) -> Verdict {
    let Some(to) = m.endpoint(w.device) else { return Verdict::Drop(Reason::BadRow) };
    let back = w.todo == Todo::HandBack;
    let mut done = change(p, w, if back { Side::Source } else { Side::Destination });
    if is_entered(to) && !back {
        // What enters the device directly skips the device's own program: its ingress stages run here. They rewrite where
        // the member is itself a client.
        match ingress_of_peer(m, w, to, p.size()) {
            Decision::Forward => done = done && change(p, w, Side::Source),
            Decision::Drop | Decision::Reject => return Verdict::Drop(w.reason),
            _ => {}
        }
    }
    if done { put_onto(p, &w.headers, to, w.routed, reason) } else { FAILED }
}

/// Addresses the frame to the member's MAC.
#[inline(always)]
fn to_segment<A: Address, P: Packet, M: Maps>(p: &mut P, m: &M, w: &Work<A>) -> bool {
    m.member(w.treatment.member).and_then(|member| p.write(0, member.mac)).is_some()
}

/// Makes the packet into the answer that is due; says if it could.
#[inline(never)]
fn answer<A: Address, P: Packet>(p: &mut P, w: &Work<A>) -> bool {
    let h = &w.headers;
    let error = match w.todo {
        Todo::Echo => return answer::echo(p, h).is_some(),
        Todo::Reject | Todo::RejectBack if h.is_tcp() => return answer::reset(p, h).is_some(),
        Todo::TooBig => answer::Error::TooBig(if w.mtu > 0xffff { 0xffff } else { w.mtu as u16 }),
        _ if matches!(w.reason, Reason::Rejected | Reason::Quarantined) => answer::Error::Prohibited,
        _ => answer::Error::Unreachable,
    };
    answer::icmp_error(p, h, error).is_some()
}

/// Rewrites one side of the packet as [`Work::treatment`] says; says if it could.
#[inline(never)]
pub fn change<A: Family, P: Packet>(p: &mut P, w: &Work<A>, side: Side) -> bool {
    if w.treatment.flags & flow_flags::NAT == 0 {
        return true;
    }
    // No flow of ICMP is rewritten: it is an error about one.
    let done = if w.headers.later {
        rewrite::address(p, &w.headers, &w.treatment.rewrite.addr, side).map(drop)
    } else if w.headers.is_icmp() {
        related::rewrite(p, w, side)
    } else {
        rewrite::apply(p, &w.headers, &w.treatment.rewrite, side)
    };
    done.is_some()
}

/// Rewrites both sides of the packet, and turns it round; says if it could.
#[inline(never)]
fn turn<A: Family, P: Packet>(p: &mut P, w: &Work<A>) -> bool {
    let side = if w.treatment.flags & flow_flags::UNNAT != 0 { Side::Source } else { Side::Destination };
    let (h, r) = (&w.headers, &w.treatment.rewrite);
    let done = match h.later {
        true => Some(()),
        false if h.is_icmp() => related::rewrite(p, w, side),
        false => rewrite::ports(p, h, r, side),
    };
    done.and_then(|()| rewrite::swap_addresses(p, h)).and_then(|()| answer::turn_round(p)).is_some()
}

#[inline(never)]
fn ingress_of_peer<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(
    m: &M,
    w: &mut Work<A>,
    to: &EndpointRow,
    bytes: u32,
) -> Decision {
    let r = &w.treatment.rewrite;
    (w.headers.dst, w.headers.sport, w.headers.dport) = (r.addr, r.client_port, r.port);
    let mut d = Decision::NotOurs;
    if !vip::is_no_member(m, to, &w.headers.src) {
        track::see(m, to, Direction::Ingress, bytes, w);
        d = judge::follow(m, to, w);
    }
    let reason = if matches!(d, Decision::Forward | Decision::Drop | Decision::Reject) { w.reason } else { Reason::NotOurs };
    m.count(to.slot, Direction::Ingress, reason, bytes);
    d
}

/// Addresses the frame to the endpoint `to`; one hop less to live if a router was spared.
#[inline(always)]
fn address_to<A: Address, P: Packet>(p: &mut P, h: &Headers<A>, to: &EndpointRow, routed: bool) -> Option<()> {
    let (d, s) = (to.mac, to.host_mac);
    if !routed {
        return p.write(0, d);
    }
    p.write(0, [d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1]])?;
    p.write(8, [s[2], s[3], s[4], s[5]])?;
    rewrite::decrement_ttl(p, h)
}

/// The kernel had no memory for what was to be done.
pub const FAILED: Verdict = Verdict::Drop(Reason::NoMemory);

/// Addresses a packet whose ingress stages are done to the endpoint `to`, and sends it there.
#[inline(always)]
pub fn put_onto<A: Address, P: Packet>(p: &mut P, h: &Headers<A>, to: &EndpointRow, routed: bool, reason: Reason) -> Verdict {
    if address_to(p, h, to, routed).is_none() {
        return FAILED;
    }
    let peer = is_entered(to);
    if peer {
        p.set_to_host();
    }
    Verdict::Redirect { ifindex: to.ifindex, peer, reason }
}

/// The packet was made into an answer, or must go unanswered.
#[inline(always)]
fn reply(done: bool, reason: Reason) -> Verdict {
    if done { Verdict::Reply(reason) } else { Verdict::Drop(Reason::RejectSilent) }
}
