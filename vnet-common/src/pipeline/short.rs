//! The short way: for a packet in the middle of a flow that this CPU has cached, or that nobody asks about; most are.

use crate::addr::Address;
use crate::deliver::{FAILED, Passage, is_entered, is_routed, local, passage, put_onto};
use crate::endpoint::{EndpointRow, flags as endpoint_flags};
use crate::family::Family;
use crate::flow::track::{self, Treatment};
use crate::flow::{FlowMaps, flags as flow_flags};
use crate::judge::Judge;
use crate::lb::{MemberRow, vip};
use crate::packet::Packet;
use crate::parse::Headers;
use crate::pipeline::Maps;
use crate::policy::guard;
use crate::rewrite::{self, Side};
use crate::verdict::{Direction, Reason, Verdict};

/// What the short way reads, and writes: up to a TCP header without options. It is linear nearly always, where more would have to be copied out
/// of the payload's pages.
const fn plain_headers<A: Address>() -> u32 {
    A::PLAIN_L4 as u32 + 20
}

/// What an endpoint sends. `None`: the long way, from the beginning.
#[inline(always)]
pub fn egress_known<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    ep: &EndpointRow,
) -> Option<Verdict> {
    p.pull(plain_headers::<A>());
    let h = A::plain(p)?;
    let back = ep.flags & endpoint_flags::REDIRECT_BACK != 0;
    if ep.is_policed() {
        if !guard::is_own_mac(p, ep) {
            return None;
        }
    } else if h.is_udp() && ep.flags & endpoint_flags::TUNNELS == 0 && m.is_tunnel_port(h.dport) {
        return None;
    } else if vip::is_no_vip(m, ep, &h.dst) {
        return if back { take_back(p, m, &h, ep) } else { Some(Verdict::Next(Reason::NotOurs)) };
    }
    let key = track::key(ep, Direction::Egress, &h);
    let (bytes, segment) = (p.size(), p.segment());
    let way_back = if back && ep.is_policed() { shortcut_back(m, &h, ep, bytes, segment)? } else { Shortcut::default() };
    let mut route = way_back;
    let t = track::hit(m, &key, bytes, |t| {
        if t.flags & flow_flags::NAT == 0 {
            return true;
        }
        let shortcut = shortcut(m, &h, t, ep, bytes, segment);
        route = shortcut.unwrap_or_default();
        shortcut.is_some()
    })?;
    Some(take(p, m, &h, &t, ep, route))
}

/// The same for what reaches an endpoint.
#[inline(always)]
pub fn ingress_known<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    ep: &EndpointRow,
) -> Option<Verdict> {
    p.pull(plain_headers::<A>());
    let h = A::plain(p)?;
    if !ep.is_policed() && vip::is_no_member(m, ep, &h.src) {
        return Some(Verdict::Next(Reason::NotOurs));
    }
    let key = track::key(ep, Direction::Ingress, &h);
    let t = track::hit(m, &key, p.size(), |_| true)?;
    if t.flags & flow_flags::NAT == 0 {
        return Some(Verdict::Next(track::usual(t.flags)));
    }
    let done = rewrite::apply(p, &h, &t.rewrite, Side::Source).is_some();
    Some(if done { Verdict::Next(Reason::Reply) } else { FAILED })
}

/// Where the short way leads, if not to the stack.
#[derive(Clone, Copy, Default)]
struct Shortcut<'m> {
    /// To this endpoint of the host.
    to: Option<&'m EndpointRow>,
    /// To this member, over the client's bridge.
    via: Option<&'m MemberRow>,
}

/// [`crate::deliver::route`] for the short way, by the same rules; `None` where only the long way can tell.
#[inline(always)]
fn shortcut<'m, A: Address, M: Maps>(
    m: &'m M,
    h: &Headers<A>,
    t: &Treatment<A>,
    from: &EndpointRow,
    bytes: u32,
    segment: u32,
) -> Option<Shortcut<'m>> {
    let redirect = t.flags & flow_flags::REDIRECT != 0;
    if !redirect && from.segment == 0 {
        return Some(Shortcut::default());
    }
    let member = m.member(t.member)?;
    if redirect && member.ifindex != 0 {
        let to = m.endpoint(member.ifindex)?;
        // A member that may itself be a client has ingress stages of its own.
        let client = is_entered(to) && !vip::is_no_member(m, to, &h.src);
        let fits = passage(h, to, is_routed(from, to), bytes, segment) == Passage::Fits;
        return (fits && !client).then_some(Shortcut { to: Some(to), via: None });
    }
    let near = from.segment != 0 && from.segment == member.segment && member.mac != [0; 6];
    Some(Shortcut { to: None, via: near.then_some(member) })
}

/// The same for what a policed endpoint sends that may be a member's reply: to a policed client on this host it goes as it is.
#[inline(always)]
fn shortcut_back<'m, A, M>(m: &'m M, h: &Headers<A>, from: &EndpointRow, bytes: u32, segment: u32) -> Option<Shortcut<'m>>
where
    A: Address,
    M: Maps + FlowMaps<A>,
{
    let to = local(m, from, &h.dst).filter(|to| passage(h, to, is_routed(from, to), bytes, segment) == Passage::Fits);
    let Some(to) = to else { return Some(Shortcut::default()) };
    if !to.is_policed() {
        return None;
    }
    // Of an unknown flow the long way looks into the tables.
    let past = track::cached_flags(m, &track::key(to, Direction::Ingress, h))? & flow_flags::REDIRECT != 0;
    Some(Shortcut { to: past.then_some(to), via: None })
}

/// [`crate::deliver::carry_out`] for the short way.
#[inline(always)]
fn take<A, P, M>(p: &mut P, m: &M, h: &Headers<A>, t: &Treatment<A>, from: &EndpointRow, way: Shortcut<'_>) -> Verdict
where
    A: Address,
    P: Packet,
    M: Maps,
{
    if t.flags & flow_flags::NAT == 0 {
        let back = |to| put_onto(p, h, to, is_routed(from, to), Reason::Reply);
        return way.to.map_or(Verdict::Next(Reason::Established), back);
    }
    if rewrite::apply(p, h, &t.rewrite, Side::Destination).is_none() {
        return FAILED;
    }
    if let Some(to) = way.to {
        return send_to(p, m, h, from, to, [Reason::Established, Reason::NotOurs]);
    }
    let done = way.via.is_none_or(|member| p.write(0, member.mac).is_some());
    if done { Verdict::Next(Reason::Established) } else { FAILED }
}

/// The short way of a member's reply to a client on this host; `None` where only the long way can tell.
#[inline(always)]
fn take_back<A, P, M>(p: &mut P, m: &M, h: &Headers<A>, from: &EndpointRow) -> Option<Verdict>
where
    A: Address,
    P: Packet,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    // As the long way has it: what is not for this host, or does not fit, is not ours here.
    let to = local(m, from, &h.dst).filter(|to| passage(h, to, is_routed(from, to), p.size(), p.segment()) == Passage::Fits);
    let Some(to) = to else { return Some(Verdict::Next(Reason::NotOurs)) };
    let key = track::key(to, Direction::Ingress, h);
    if to.is_policed() {
        // As in `deliver::route_back`.
        let past = track::cached_flags(m, &key)? & flow_flags::REDIRECT != 0;
        let stack = Verdict::Next(Reason::NotOurs);
        return Some(if past { put_onto(p, h, to, is_routed(from, to), Reason::Reply) } else { stack });
    }
    let t = track::hit(m, &key, p.size(), |t| t.flags & flow_flags::REDIRECT != 0)?;
    if rewrite::apply(p, h, &t.rewrite, Side::Source).is_none() {
        return Some(FAILED);
    }
    Some(send_to(p, m, h, from, to, [Reason::Reply; 2]))
}

/// Sends a rewritten packet to the endpoint `to`; counted for these reasons at either end.
#[inline(always)]
fn send_to<A: Address, P: Packet, M: Maps>(
    p: &mut P,
    m: &M,
    h: &Headers<A>,
    from: &EndpointRow,
    to: &EndpointRow,
    [here, there]: [Reason; 2],
) -> Verdict {
    if is_entered(to) {
        m.count(to.slot, Direction::Ingress, there, p.size());
    }
    put_onto(p, h, to, is_routed(from, to), here)
}
