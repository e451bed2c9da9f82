//! The long way: whatever the short one does not settle.

use super::related::{self, is_error, is_related};
use super::{Maps, unjudged};
use crate::addr::Address;
use crate::deliver::{self, FAILED, Todo};
use crate::endpoint::{EndpointRow, flags as endpoint_flags};
use crate::family::Family;
use crate::flow::{FlowMaps, Work, flags as flow_flags, fragment, open, track};
use crate::judge::{Decision, Judge};
use crate::lb::vip;
use crate::packet::Packet;
use crate::policy::guard::{self, Guard};
use crate::report::refuse;
use crate::rewrite::Side;
use crate::verdict::{Direction, Reason, Verdict};

/// What the long way reads: Ethernet, IPv6, three extension headers of usual size and TCP; or an ICMPv6 error with the headers that it quotes, of
/// a fragment, too.
const HEADERS: u32 = 136;

/// Of what an endpoint sends.
#[inline(always)]
pub fn egress_ip<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
) -> Verdict {
    p.pull(HEADERS);
    let (bytes, segment) = (p.size(), p.segment());
    if !A::parse(p, w) {
        // A tunnel's packet may be behind more headers than are followed here: its receiver follows them all.
        let may_tunnel = A::VERSION == 4 || ep.flags & endpoint_flags::TUNNELS != 0;
        return if may_tunnel { unjudged(ep, Reason::Malformed) } else { Verdict::Drop(Reason::Malformed) };
    }
    let vip = !vip::is_no_vip(m, ep, &w.headers.dst);
    let known = if ep.is_policed() {
        track::see(m, ep, Direction::Egress, bytes, w);
        match guard::egress(p, m, &w.headers, ep) {
            Guard::Ask => {}
            Guard::Pass if A::neighbor(p, m, &w.headers, ep) => return Verdict::Reply(Reason::VipNeighbor),
            Guard::Pass => return Verdict::Next(Reason::System),
            no => return refuse(m, ep, w, no),
        }
        is_related(p, m, w, ep) || (w.headers.later && fragment::follow(m, ep, w, Direction::Egress))
    } else {
        if A::neighbor(p, m, &w.headers, ep) {
            return Verdict::Reply(Reason::VipNeighbor);
        }
        if ep.flags & endpoint_flags::TUNNELS == 0 && guard::is_tunnel(m, &w.headers) {
            track::see(m, ep, Direction::Egress, bytes, w);
            return refuse(m, ep, w, Guard::Tunnel);
        }
        if !vip {
            if ep.flags & endpoint_flags::REDIRECT_BACK == 0 {
                return Verdict::Next(Reason::NotOurs);
            }
            judge_way_back(m, w, ep, bytes, segment);
            return deliver::carry_out(p, m, w);
        }
        track::see(m, ep, Direction::Egress, bytes, w);
        is_related(p, m, w, ep) || (w.headers.later && fragment::follow(m, ep, w, Direction::Egress))
    };
    if !known {
        judge_egress(m, w, ep, bytes, segment, vip);
    } else if w.treatment.flags & flow_flags::NAT != 0 {
        w.todo = deliver::route(m, w, ep, bytes, segment);
    } else {
        w.todo = Todo::Go;
    }
    deliver::carry_out(p, m, w)
}

/// Of what reaches an endpoint.
#[inline(always)]
pub fn ingress_ip<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
) -> Verdict {
    p.pull(HEADERS);
    if !A::parse(p, w) {
        return unjudged(ep, Reason::Malformed);
    }
    if ep.is_policed() {
        w.flooded = guard::is_flooded(p, ep);
        track::see(m, ep, Direction::Ingress, p.size(), w);
        match guard::ingress(&w.headers, ep) {
            Guard::Ask => {}
            Guard::Pass => return Verdict::Next(Reason::System),
            no => return refuse(m, ep, w, no),
        }
    } else if is_error(&w.headers) || !vip::is_no_member(m, ep, &w.headers.src) {
        // An error about a balanced flow comes from anywhere on the way.
        track::see(m, ep, Direction::Ingress, p.size(), w);
    } else {
        return Verdict::Next(Reason::NotOurs);
    }
    if is_related(p, m, w, ep) || (w.headers.later && fragment::follow(m, ep, w, Direction::Ingress)) {
        if w.reason == Reason::Related && A::is_unreachable(w.headers.dport) {
            related::note_unreachable(m, w);
        }
        return if deliver::change(p, w, Side::Source) { Verdict::Next(w.reason) } else { FAILED };
    }
    let decision = Judge::<A>::ingress(m, ep, w);
    if w.headers.is_first() && decision == Decision::Forward {
        fragment::note(m, ep, w, Direction::Ingress);
    }
    match decision {
        Decision::Forward if deliver::change(p, w, Side::Source) => Verdict::Next(w.reason),
        Decision::Forward => FAILED,
        Decision::Drop => Verdict::Drop(w.reason),
        // The name that an answer would go in is another's.
        Decision::Reject if !guard::is_to_own_mac(p, ep) => Verdict::Drop(Reason::RejectSilent),
        Decision::Reject => {
            w.todo = Todo::RejectBack;
            deliver::carry_out(p, m, w)
        }
        _ => Verdict::Next(Reason::NotOurs),
    }
}

/// The way of a probe: it passes, and its flow is noted, so that the answers do too.
#[inline(always)]
pub fn ingress_probe<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
) -> Verdict {
    p.pull(HEADERS);
    if A::parse(p, w) {
        track::see(m, ep, Direction::Ingress, p.size(), w);
        open::note_probe(m, ep, w);
    }
    Verdict::Next(Reason::Probe)
}

/// Judges a packet that was seen.
#[inline(always)]
fn judge_egress<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
    bytes: u32,
    segment: u32,
    vip: bool,
) {
    let decision = Judge::<A>::egress(m, ep, w, vip);
    if w.headers.is_first() && decision == Decision::Forward {
        fragment::note(m, ep, w, Direction::Egress);
    }
    w.todo = match decision {
        Decision::NotOurs => Todo::Pass,
        Decision::Forward if w.treatment.flags & flow_flags::NAT != 0 => deliver::route(m, w, ep, bytes, segment),
        Decision::Forward => Todo::Go,
        Decision::Reject => Todo::Reject,
        Decision::Echo => Todo::Echo,
        Decision::Steer | Decision::Drop => Todo::Drop,
    };
    if w.todo == Todo::Go && ep.flags & endpoint_flags::REDIRECT_BACK != 0 {
        let reason = w.reason;
        judge_way_back(m, w, ep, bytes, segment);
        if w.todo == Todo::Pass {
            (w.todo, w.reason) = (Todo::Go, reason);
        }
    }
}

#[inline(always)]
fn judge_way_back<A: Address, M: Maps + FlowMaps<A> + Judge<A>>(
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
    bytes: u32,
    segment: u32,
) {
    w.todo = match deliver::local(m, ep, &w.headers.dst) {
        Some(to) => deliver::route_back(m, w, ep, to, bytes, segment),
        None => Todo::Pass,
    };
}
