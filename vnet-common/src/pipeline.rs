//! The whole datapath. [`egress`] is what an endpoint sends, [`ingress`] what reaches it; both run at its host-side device.
//!
//! ```text
//! egress:  endpoint → copy → parse → ARP/ND for a VIP → guard → known flow, or rules and pick → rewrite → deliver
//! ingress: endpoint → copy → parse → guard → known flow, or rules → rewrite back
//! ```
//!
//! Most packets take a short way through it (`egress_known`, `ingress_known`) that needs no subprogram and no room to work in; what it cannot settle goes the
//! long way from the beginning. Only policed endpoints have guard and rules; those of others that are for no VIP are passed on untouched.

use crate::addr::{Address, V4, V6};
use crate::answer;
use crate::deliver::{self, FAILED, Shortcut, Todo};
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps, flags as endpoint_flags};
use crate::event::{EventMaps, EventRow, kind};
use crate::flow::{FlowKey, FlowMaps, Table, Work, flags as flow_flags, track};
use crate::judge::{self, Decision, Judge};
use crate::lb::LbMaps;
use crate::lb::vip;
use crate::packet::Packet;
use crate::parse::{self, ETH, Headers, ethertype, protocol};
use crate::policy::PolicyMaps;
use crate::policy::guard::{self, Guard};
use crate::rewrite::{self, Side};
use crate::verdict::{Direction, Reason, Verdict};

/// Room to work in, per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Scratch {
    /// For an IPv4 packet.
    pub v4: Work<V4>,
    /// For an IPv6 packet.
    pub v6: Work<V6>,
}

/// All the maps of the datapath.
pub trait Maps:
    HostMaps + EndpointMaps + LbMaps + PolicyMaps + EventMaps + FlowMaps<V4> + FlowMaps<V6> + Judge<V4> + Judge<V6>
{
}
impl<M: HostMaps + EndpointMaps + LbMaps + PolicyMaps + EventMaps + FlowMaps<V4> + FlowMaps<V6> + Judge<V4> + Judge<V6>> Maps
    for M
{
}

/// The ways, as functions of their own: see [`Judge`]. The stack of a way that was left is free for the next.
pub trait Ways<P: Packet, A: Family>: Maps + FlowMaps<A> + Judge<A> + Sized {
    /// The short one of what an endpoint sends.
    #[inline(always)]
    fn egress_known(&self, p: &mut P, ep: &EndpointRow) -> Option<Verdict> {
        egress_known::<A, P, Self>(p, self, ep)
    }
    /// The short one of what reaches an endpoint.
    #[inline(always)]
    fn ingress_known(&self, p: &mut P, ep: &EndpointRow) -> Option<Verdict> {
        ingress_known::<A, P, Self>(p, self, ep)
    }
    /// The long one of what an endpoint sends.
    #[inline(always)]
    fn egress(&self, p: &mut P, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
        egress_ip(p, self, w, ep)
    }
    /// The long one of what reaches an endpoint.
    #[inline(always)]
    fn ingress(&self, p: &mut P, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
        ingress_ip(p, self, w, ep)
    }
    /// That of a probe.
    #[inline(always)]
    fn probe(&self, p: &mut P, w: &mut Work<A>, ep: &EndpointRow) -> Verdict {
        ingress_probe(p, self, w, ep)
    }
}

/// Judges a packet that enters at the device `ifindex`: one that its endpoint sends. `room` is asked for only where it
/// is needed; there always is some, but the verifier wants to see the question.
#[inline(always)]
pub fn egress<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ifindex: u32,
    vlan: bool,
) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.size();
    let v = match exempt(p, ep, vlan, Direction::Egress) {
        Some(v) => v,
        None => egress_frame(p, m, room, ep),
    };
    m.count(ep.slot, Direction::Egress, v.reason(), bytes);
    v
}

/// Judges a packet that leaves through the device `ifindex`: one that reaches its endpoint.
#[inline(always)]
pub fn ingress<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ifindex: u32,
    vlan: bool,
) -> Verdict {
    let Some(ep) = m.endpoint(ifindex) else { return Verdict::Next(Reason::NoEndpoint) };
    let bytes = p.size();
    let v = match exempt(p, ep, vlan, Direction::Ingress) {
        Some(Verdict::Next(Reason::Probe)) => probe_frame(p, m, room, ep),
        Some(v) => v,
        None => ingress_frame(p, m, room, ep),
    };
    m.count(ep.slot, Direction::Ingress, v.reason(), bytes);
    v
}

#[inline(always)]
fn is_policed(ep: &EndpointRow) -> bool {
    ep.flags & endpoint_flags::POLICED != 0
}

/// What nobody looks into: our own packets, and what carries a VLAN tag. Sends the copy that the endpoint's row asks for.
#[inline(always)]
fn exempt<P: Packet>(p: &mut P, ep: &EndpointRow, vlan: bool, direction: Direction) -> Option<Verdict> {
    if is_policed(ep) {
        if let Some(reason) = guard::marked(p, direction) {
            p.set_mark(0);
            return Some(Verdict::Next(reason));
        }
        if ep.mirror() != 0 {
            p.copy_to(ep.mirror());
        }
    }
    vlan.then(|| unjudged(ep, Reason::Vlan))
}

/// What cannot be judged is left to the stack, but not from or to a policed endpoint.
#[inline(always)]
fn unjudged(ep: &EndpointRow, reason: Reason) -> Verdict {
    if is_policed(ep) { Verdict::Drop(reason) } else { Verdict::Next(reason) }
}

#[inline(always)]
fn egress_frame<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    let Some(kind) = p.read(12) else { return unjudged(ep, Reason::Malformed) };
    match kind {
        ethertype::IPV4 => match Ways::<P, V4>::egress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V4>::egress(m, p, &mut s.v4, ep)),
        },
        ethertype::IPV6 => match Ways::<P, V6>::egress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V6>::egress(m, p, &mut s.v6, ep)),
        },
        ethertype::ARP => egress_arp(p, m, room, ep),
        _ => unjudged(ep, Reason::NotIp),
    }
}

#[inline(always)]
fn egress_arp<'s, P: Packet, M: Maps>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    if is_policed(ep) {
        let guard = guard::arp_egress(p, m, ep);
        if guard != Guard::Pass {
            return room().map_or(FAILED, |s| refuse_arp(p, m, &mut s.v4, ep, guard, Direction::Egress));
        }
    }
    if arp(p, m, ep) {
        return Verdict::Reply(Reason::VipNeighbor);
    }
    Verdict::Next(if is_policed(ep) { Reason::System } else { Reason::NotIp })
}

/// Drops an ARP packet.
#[inline(always)]
fn refuse_arp<P: Packet, M: Maps>(
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

#[inline(always)]
fn ingress_frame<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    let Some(kind) = p.read(12) else { return unjudged(ep, Reason::Malformed) };
    match kind {
        ethertype::IPV4 => match Ways::<P, V4>::ingress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V4>::ingress(m, p, &mut s.v4, ep)),
        },
        ethertype::IPV6 => match Ways::<P, V6>::ingress_known(m, p, ep) {
            Some(verdict) => verdict,
            None => room().map_or(FAILED, |s| Ways::<P, V6>::ingress(m, p, &mut s.v6, ep)),
        },
        ethertype::ARP if is_policed(ep) && ep.flags & endpoint_flags::NEIGHBORS == 0 => {
            room().map_or(FAILED, |s| refuse_arp(p, m, &mut s.v4, ep, Guard::Quarantine, Direction::Ingress))
        }
        ethertype::ARP if is_policed(ep) => Verdict::Next(Reason::System),
        _ => unjudged(ep, Reason::NotIp),
    }
}

/// Lets one of the agent's probes through, whatever it carries.
#[inline(always)]
fn probe_frame<'s, P: Packet, M: Ways<P, V4> + Ways<P, V6>>(
    p: &mut P,
    m: &M,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
    ep: &EndpointRow,
) -> Verdict {
    match p.read(12) {
        Some(ethertype::IPV4) => room().map_or(FAILED, |s| Ways::<P, V4>::probe(m, p, &mut s.v4, ep)),
        Some(ethertype::IPV6) => room().map_or(FAILED, |s| Ways::<P, V6>::probe(m, p, &mut s.v6, ep)),
        _ => Verdict::Next(Reason::Probe),
    }
}

/// The short way: for a packet in the middle of a flow that this CPU has cached, or that nobody asks about; most are. `None`: the long
/// way, from the beginning.
#[inline(always)]
pub fn egress_known<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    ep: &EndpointRow,
) -> Option<Verdict> {
    let h = A::plain(p)?;
    let back = ep.flags & endpoint_flags::REDIRECT_BACK != 0;
    if is_policed(ep) {
        if !guard::is_own_mac(p, ep) {
            return None;
        }
    } else if h.is_udp() && ep.flags & endpoint_flags::TUNNELS == 0 && m.is_tunnel_port(h.dport) {
        return None;
    } else if vip::is_no_vip(m, ep, &h.dst) {
        return if back { deliver::take_back(p, m, &h, ep) } else { Some(Verdict::Next(Reason::NotOurs)) };
    }
    let key = judge::key(ep, Direction::Egress, &h);
    let (bytes, segment) = (p.size(), p.segment());
    let way_back = if back && is_policed(ep) { deliver::shortcut_back(m, &h, ep, bytes, segment)? } else { Shortcut::default() };
    let mut route = way_back;
    let t = track::hit(m, &key, bytes, |t| {
        if t.flags & flow_flags::NAT == 0 {
            return true;
        }
        let shortcut = deliver::shortcut(m, &h, t, ep, bytes, segment);
        route = shortcut.unwrap_or_default();
        shortcut.is_some()
    })?;
    Some(deliver::take(p, m, &h, &t, ep, route))
}

/// The same for what reaches an endpoint.
#[inline(always)]
pub fn ingress_known<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    ep: &EndpointRow,
) -> Option<Verdict> {
    let h = A::plain(p)?;
    if !is_policed(ep) && vip::is_no_member(m, ep, &h.src) {
        return Some(Verdict::Next(Reason::NotOurs));
    }
    let key = judge::key(ep, Direction::Ingress, &h);
    let t = track::hit(m, &key, p.size(), |_| true)?;
    if t.flags & flow_flags::NAT == 0 {
        return Some(Verdict::Next(track::usual(t.flags)));
    }
    let done = rewrite::apply(p, &h, &t.rewrite, Side::Source).is_some();
    Some(if done { Verdict::Next(Reason::Reply) } else { FAILED })
}

/// The long way of what an endpoint sends.
#[inline(always)]
pub fn egress_ip<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
) -> Verdict {
    let (bytes, segment) = (p.size(), p.segment());
    if !A::parse(p, w) {
        return unjudged(ep, Reason::Malformed);
    }
    let vip = !vip::is_no_vip(m, ep, &w.headers.dst);
    if is_policed(ep) {
        judge::see(m, ep, Direction::Egress, bytes, w);
        match guard::egress(p, m, &w.headers, ep) {
            Guard::Ask => {}
            Guard::Pass if A::neighbor(p, m, &w.headers, ep) => return Verdict::Reply(Reason::VipNeighbor),
            Guard::Pass => return Verdict::Next(Reason::System),
            no => return refuse(m, ep, w, no),
        }
        if is_related(p, m, w, ep) {
            return Verdict::Next(Reason::Related);
        }
    } else {
        if A::neighbor(p, m, &w.headers, ep) {
            return Verdict::Reply(Reason::VipNeighbor);
        }
        if ep.flags & endpoint_flags::TUNNELS == 0 && guard::is_tunnel(p, m, &w.headers) {
            judge::see(m, ep, Direction::Egress, bytes, w);
            return refuse(m, ep, w, Guard::Tunnel);
        }
        if !vip {
            if ep.flags & endpoint_flags::REDIRECT_BACK == 0 {
                return Verdict::Next(Reason::NotOurs);
            }
            judge_way_back(m, w, ep, bytes, segment);
            return deliver::carry_out(p, m, w);
        }
        judge::see(m, ep, Direction::Egress, bytes, w);
    }
    judge_egress(m, w, ep, bytes, segment, vip);
    deliver::carry_out(p, m, w)
}

/// The long way of what reaches an endpoint.
#[inline(always)]
pub fn ingress_ip<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &mut P,
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
) -> Verdict {
    if !A::parse(p, w) {
        return unjudged(ep, Reason::Malformed);
    }
    if is_policed(ep) {
        judge::see(m, ep, Direction::Ingress, p.size(), w);
        match guard::ingress(&w.headers, ep) {
            Guard::Ask => {}
            Guard::Pass => return Verdict::Next(Reason::System),
            no => return refuse(m, ep, w, no),
        }
        if is_related(p, m, w, ep) {
            return Verdict::Next(Reason::Related);
        }
    } else if vip::is_no_member(m, ep, &w.headers.src) {
        return Verdict::Next(Reason::NotOurs);
    } else {
        judge::see(m, ep, Direction::Ingress, p.size(), w);
    }
    match Judge::<A>::ingress(m, ep, w) {
        Decision::Forward if deliver::change(p, w, Side::Source) => Verdict::Next(w.reason),
        Decision::Forward => FAILED,
        Decision::Drop => Verdict::Drop(w.reason),
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
    if A::parse(p, w) {
        judge::see(m, ep, Direction::Ingress, p.size(), w);
        judge::note_probe(m, ep, w);
    }
    Verdict::Next(Reason::Probe)
}

/// Drops what the guard does not let through.
#[inline(always)]
fn refuse<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>, guard: Guard) -> Verdict {
    w.reason = guard.reason();
    w.judged.identity = 0;
    judge::report(m, ep, w, kind::DROP, 0);
    Verdict::Drop(w.reason)
}

/// Is it an ICMP error about a packet of a flow that may be? The packet that it quotes went the other way, so the flow's entry for this
/// way has its tuple turned round.
#[inline(never)]
fn is_related<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(p: &P, m: &M, w: &mut Work<A>, ep: &EndpointRow) -> bool {
    let h = &w.headers;
    if !h.is_icmp() || h.fragment || !A::is_error(h.dport[0]) {
        return false;
    }
    // So many bits: the verifier must see that it is not negative.
    let Some(quoted) = A::quoted(p, (h.l4 & 0x7ff) + 8) else { return false };
    let Some([a, b, c, d]) = p.read::<4>(quoted.l4) else { return false };
    let (sport, dport) = if matches!(quoted.protocol, protocol::TCP | protocol::UDP) {
        ([c, d], [a, b])
    } else if quoted.protocol == h.protocol {
        let id = p.read::<2>(quoted.l4 + 4).unwrap_or_default();
        match (A::VERSION, a) {
            (4, 8) | (6, 128) => ([0; 2], id),
            (4, 0) | (6, 129) => (id, [0; 2]),
            _ => return false,
        }
    } else {
        ([0; 2], [0; 2])
    };
    if quoted.src != h.dst {
        return false;
    }
    w.spare = FlowKey {
        endpoint: ep.id,
        network: ep.network,
        src: quoted.dst,
        dst: quoted.src,
        sport,
        dport,
        protocol: quoted.protocol,
        direction: w.seen.key.direction,
        pad: [0; 2],
    };
    // Of another generation, the flow may be none any more; but the packet that is quoted may have been judged since.
    let generation = w.seen.generation;
    let found = |key: &FlowKey<A>, into: &mut _| m.flow(Table::Main, key, into) || m.flow(Table::HalfOpen, key, into);
    if !found(&w.spare, &mut w.other) {
        return false;
    }
    if w.other.generation == generation {
        return true;
    }
    w.partner = w.spare.partner(&w.other.rewrite);
    found(&w.partner, &mut w.other) && w.other.generation == generation
}

/// The start of a packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<A> {
    src: A,
    dst: A,
    protocol: u8,
    l4: usize,
}

/// Where the families differ.
pub trait Family: Address {
    /// Headers as most packets have them.
    fn plain<P: Packet>(p: &P) -> Option<Headers<Self>>;
    /// All headers; says if they are well-formed.
    fn parse<P: Packet>(p: &P, w: &mut Work<Self>) -> bool;
    /// Is this ICMP type an error's?
    fn is_error(kind: u8) -> bool;
    /// The packet at `at`.
    fn quoted<P: Packet>(p: &P, at: usize) -> Option<Quoted<Self>>;
    /// Answers a question for a VIP's link-layer address; says if it was one.
    #[inline(always)]
    fn neighbor<P: Packet, M: Maps>(_: &mut P, _: &M, _: &Headers<Self>, _: &EndpointRow) -> bool {
        false
    }
}

impl Family for V4 {
    #[inline(always)]
    fn plain<P: Packet>(p: &P) -> Option<Headers<Self>> {
        parse::plain4(p)
    }
    #[inline(never)]
    fn parse<P: Packet>(p: &P, w: &mut Work<Self>) -> bool {
        parse::ipv4(p).map(|h| w.headers = h).is_some()
    }
    /// Unreachable, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }
    #[inline(always)]
    fn quoted<P: Packet>(p: &P, at: usize) -> Option<Quoted<Self>> {
        let [first, _] = p.read(at)?;
        let [_, protocol] = p.read(at + 8)?;
        let l4 = at + (usize::from(first & 0x0f) << 2);
        Some(Quoted { src: V4::from(p.read(at + 12)?), dst: V4::from(p.read(at + 16)?), protocol, l4 })
    }
}

impl Family for V6 {
    #[inline(always)]
    fn plain<P: Packet>(p: &P) -> Option<Headers<Self>> {
        parse::plain6(p)
    }
    #[inline(never)]
    fn parse<P: Packet>(p: &P, w: &mut Work<Self>) -> bool {
        parse::ipv6(p).map(|h| w.headers = h).is_some()
    }
    /// Unreachable, too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }
    #[inline(always)]
    fn quoted<P: Packet>(p: &P, at: usize) -> Option<Quoted<Self>> {
        let [protocol, _] = p.read(at + 6)?;
        let (src, dst) = (V6::of(p.read(at + 8)?, p.read(at + 16)?), V6::of(p.read(at + 24)?, p.read(at + 32)?));
        Some(Quoted { src, dst, protocol, l4: at + 40 })
    }
    #[inline(always)]
    fn neighbor<P: Packet, M: Maps>(p: &mut P, m: &M, h: &Headers<Self>, ep: &EndpointRow) -> bool {
        h.protocol == protocol::ICMPV6 && h.dport == answer::SOLICITATION && neighbor(p, m, h, ep)
    }
}

// The functions below, and `Family::parse`, are subprograms of their own in the kernel: a program's whole call chain shares one
// stack of 512 bytes, and what is called in sequence uses the same part of it.

/// Answers an ARP request for a VIP; says if it was one.
#[inline(never)]
fn arp<P: Packet, M: Maps>(p: &mut P, m: &M, ep: &EndpointRow) -> bool {
    let target = answer::arp_target(p).filter(|target| vip::is_vip(m, ep, target));
    target.and_then(|_| answer::arp(p, ep.host_mac)).is_some()
}

/// Answers a neighbour solicitation for a VIP; says if it was one.
#[inline(never)]
fn neighbor<P: Packet, M: Maps>(p: &mut P, m: &M, h: &Headers<V6>, ep: &EndpointRow) -> bool {
    let target = answer::solicited(p, h).filter(|target| vip::is_vip(m, ep, target));
    target.and_then(|target| answer::advertise(p, h, target, ep.host_mac)).is_some()
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
    w.todo = match Judge::<A>::egress(m, ep, w, vip) {
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
