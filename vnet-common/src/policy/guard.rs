//! What comes before all rules: an endpoint sends as itself, and what keeps a network going may pass.
//!
//! - Anti-spoofing: the source MAC and address are the endpoint's own (a link-local IPv6 address may be any that nobody else is known to
//!   have, for as long as the packet stays on the link); so are those inside of ARP (RFC 826) and neighbour discovery (RFC 4861). Only a
//!   router advertises itself as one.
//! - ARP, neighbour and multicast listener discovery, and a DHCP client's packets are let through, unless a quarantine says otherwise.
//!   What only looks like them, having come or going further than the link, is left to the rules.
//! - An endpoint that may not is kept from originating tunnel packets: whoever receives them would take them for another host's.

use crate::addr::{Address, V4, V6};
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps, flags};
use crate::lb::LbMaps;
use crate::packet::Packet;
use crate::parse::{ETH, Headers, protocol};
use crate::policy::{AddressKey, MARK_OURS, MARK_PROBE};
use crate::verdict::{Direction, Reason};

/// Link-layer options in one neighbour discovery message that are looked at; further ones are refused.
const ND_OPTIONS: usize = 4;

/// What the guard says of a packet. Without fields: see [`crate::flow::Work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The rules decide.
    Ask,
    /// It may pass, whatever they say.
    Pass,
    /// Dropped: the MAC is not the endpoint's.
    Mac,
    /// Dropped: the address is not the endpoint's.
    Address,
    /// Dropped: ARP or neighbour discovery in the name of another.
    Neighbor,
    /// Dropped: a tunnel packet.
    Tunnel,
    /// Dropped: what it asks for is not kept alive.
    Quarantine,
}

impl Guard {
    /// The reason, for a packet that the rules are not asked about.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Ask | Self::Pass => Reason::System,
            Self::Mac => Reason::SpoofedMac,
            Self::Address => Reason::SpoofedAddress,
            Self::Neighbor => Reason::SpoofedNeighbor,
            Self::Tunnel => Reason::TunnelForbidden,
            Self::Quarantine => Reason::Quarantined,
        }
    }
}

/// Is the frame marked as one of ours, and as what? Probes only come to endpoints, never from them.
#[inline(always)]
pub fn marked<P: Packet>(p: &P, direction: Direction) -> Option<Reason> {
    match p.mark() {
        MARK_PROBE if direction == Direction::Ingress => Some(Reason::Probe),
        MARK_OURS => Some(Reason::Ours),
        _ => None,
    }
}

/// Does the frame come from the endpoint's own MAC, if that matters?
#[inline(always)]
pub fn is_own_mac<P: Packet>(p: &P, ep: &EndpointRow) -> bool {
    if ep.flags & flags::CHECK_MAC == 0 {
        return true;
    }
    let m = &ep.mac;
    p.read(6) == Some([m[0], m[1], m[2], m[3]]) && p.read(10) == Some([m[4], m[5]])
}

/// Is the frame addressed to the endpoint's own MAC, as far as that is known? A bridge floods what it does not know the port of.
#[inline(always)]
pub fn is_to_own_mac<P: Packet>(p: &P, ep: &EndpointRow) -> bool {
    let m = &ep.mac;
    *m == [0; 6] || p.read(0) == Some([m[0], m[1], m[2], m[3]]) && p.read(4) == Some([m[4], m[5]])
}

/// Is it a frame for one other host, at the port of an endpoint that has but one MAC?
#[inline(always)]
pub fn is_flooded<P: Packet>(p: &P, ep: &EndpointRow) -> bool {
    let to_one = p.read::<2>(0).is_some_and(|mac| mac[0] & 1 == 0);
    ep.flags & flags::CHECK_MAC != 0 && to_one && !is_to_own_mac(p, ep)
}

/// Judges an ARP packet from an endpoint (RFC 826): its sender fields are the endpoint's. A probe (RFC 5227) has no address there: it asks for the
/// one that it wants to have, and keeps others from it.
#[inline(never)]
pub fn arp_egress<P: Packet, M: LbMaps>(p: &P, m: &M, ep: &EndpointRow) -> Guard {
    if ep.flags & flags::NEIGHBORS == 0 {
        return Guard::Quarantine;
    }
    if !is_own_mac(p, ep) {
        return Guard::Mac;
    }
    // Of Ethernet and IPv4, else the fields are elsewhere.
    if p.read(ETH + 2) != Some([8, 0, 6, 4]) {
        return Guard::Neighbor;
    }
    let (Some([a, b, c, d]), Some([e, f]), Some(ip)) = (p.read::<4>(ETH + 8), p.read::<2>(ETH + 12), p.read::<4>(ETH + 14))
    else {
        return Guard::Neighbor;
    };
    if ep.flags & flags::CHECK_MAC != 0 && [a, b, c, d, e, f] != ep.mac {
        return Guard::Neighbor;
    }
    let claimed = if ip == [0; 4] { p.read(ETH + 24) } else { Some(ip) };
    if claimed.is_some_and(|ip| claims(m, ep, &V4::from(ip), false)) { Guard::Pass } else { Guard::Neighbor }
}

/// Judges an IP packet from an endpoint.
#[inline(never)]
pub fn egress<A, P, M>(p: &P, m: &M, h: &Headers<A>, ep: &EndpointRow) -> Guard
where
    A: Address,
    P: Packet,
    M: HostMaps + EndpointMaps + LbMaps,
{
    if !is_own_mac(p, ep) {
        return Guard::Mac;
    }
    if is_dhcp(h, true) {
        // A quarantined client's go to all on the link only: who is asked by name could be anyone.
        let to_all = is_to_link(&h.dst);
        let named = ep.flags & flags::QUARANTINED != 0 && !to_all;
        if ep.flags & flags::DHCP == 0 && h.src == A::default() {
            return Guard::Quarantine;
        }
        if ep.flags & flags::DHCP != 0 && !named && (h.src == A::default() || owns(m, ep, h)) {
            return Guard::Pass;
        }
    }
    if A::VERSION == 6 && is_discovery(h) {
        return discovery_egress(p, m, h, ep);
    }
    if !owns(m, ep, h) {
        return Guard::Address;
    }
    if ep.flags & flags::TUNNELS == 0 && is_tunnel(m, h) {
        return Guard::Tunnel;
    }
    Guard::Ask
}

/// Judges an IP packet to an endpoint.
#[inline(always)]
pub fn ingress<A: Address>(h: &Headers<A>, ep: &EndpointRow) -> Guard {
    if ep.flags & flags::DHCP != 0 && is_dhcp(h, false) {
        return Guard::Pass;
    }
    match A::VERSION == 6 && is_discovery(h) {
        true if ep.flags & flags::NEIGHBORS != 0 => Guard::Pass,
        true => Guard::Quarantine,
        false => Guard::Ask,
    }
}

/// May the endpoint send from the packet's source address?
#[inline(always)]
fn owns<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, h: &Headers<A>) -> bool {
    let stays_on_link = is_link_local(&h.dst) || h.dst.widen()[0] == 0xff;
    claims(m, ep, &h.src, stays_on_link)
}

/// May the endpoint call the address its own? One that nobody is known to have it may if it is a link-local one, where those are taken.
#[inline(always)]
fn claims<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, addr: &A, on_link: bool) -> bool {
    ep.flags & flags::CHECK_IP == 0
        || match m.local(&AddressKey::of(ep.network, addr)) {
            Some(ifindex) => ifindex == ep.ifindex,
            None => on_link && A::VERSION == 6 && is_link_local(addr),
        }
}

#[inline(always)]
fn is_link_local<A: Address>(addr: &A) -> bool {
    let [a, b, ..] = addr.widen();
    a == 0xfe && b & 0xc0 == 0x80
}

/// Is it addressed to all, or to a group, on the link and no further?
#[inline(always)]
fn is_to_link<A: Address>(addr: &A) -> bool {
    let [a, b, c, d, ..] = addr.widen();
    if A::VERSION == 4 { [a, b, c, d] == [0xff; 4] } else { [a, b] == [0xff, 0x02] }
}

/// A DHCP (RFC 2131) or DHCPv6 (RFC 8415) packet of a client, or to one?
#[inline(always)]
fn is_dhcp<A: Address>(h: &Headers<A>, from_client: bool) -> bool {
    let (client, server) = if A::VERSION == 4 { (68_u16, 67_u16) } else { (546, 547) };
    let (sport, dport) = if from_client { (client, server) } else { (server, client) };
    h.is_udp() && !h.fragment && h.sport == sport.to_be_bytes() && h.dport == dport.to_be_bytes()
}

/// Neighbour discovery (RFC 4861) or multicast listener discovery (RFC 2710, 3810)? Both stay on the link: their hop limits say so.
#[inline(always)]
fn is_discovery<A: Address>(h: &Headers<A>) -> bool {
    let kind = h.dport[0];
    let neighbors = h.ttl == 255 && matches!(kind, 133..=137);
    let listeners = h.ttl == 1 && (matches!(kind, 130..=132) || kind == 143) && h.dst.widen()[0] == 0xff;
    h.protocol == protocol::ICMPV6 && !h.fragment && (neighbors || listeners)
}

/// Judges neighbour discovery from an endpoint: it advertises its own addresses, looks only for those for duplicates, and every link-layer address
/// in it is its own.
#[inline(always)]
fn discovery_egress<A, P, M>(p: &P, m: &M, h: &Headers<A>, ep: &EndpointRow) -> Guard
where
    A: Address,
    P: Packet,
    M: LbMaps,
{
    let (kind, l4) = (h.dport[0], h.l4 & 0x7ff);
    if ep.flags & flags::NEIGHBORS == 0 {
        return Guard::Quarantine;
    }
    if matches!(kind, 134 | 137) && ep.flags & flags::ROUTER == 0 {
        return Guard::Neighbor;
    }
    if h.src != A::default() && !claims(m, ep, &h.src, true) {
        return Guard::Address;
    }
    let options = match kind {
        133 => 8,
        134 => 16,
        135 | 136 => 24,
        _ => return Guard::Pass,
    };
    let claims_target = kind == 136 || kind == 135 && h.src == A::default();
    if claims_target && ep.flags & flags::CHECK_IP != 0 {
        let mut target = V6::default();
        if !read_address(p, l4 + 8, &mut target) {
            return Guard::Neighbor;
        }
        if !claims(m, ep, &target, true) {
            return Guard::Neighbor;
        }
    }
    if ep.flags & flags::CHECK_MAC != 0 && !own_link_options(p, l4 + options, &ep.mac) { Guard::Neighbor } else { Guard::Pass }
}

/// Reads an address. A function of its own: else the compiler calculates with what was not read, which the verifier refuses.
#[inline(never)]
fn read_address<P: Packet>(p: &P, at: usize, into: &mut V6) -> bool {
    let (Some(upper), Some(lower)) = (p.read(at), p.read(at + 8)) else { return false };
    *into = V6::of(upper, lower);
    true
}

/// Is every link-layer address option from `at` on (RFC 4861 §4.6.1) this MAC?
#[inline(always)]
fn own_link_options<P: Packet>(p: &P, at: usize, mac: &[u8; 6]) -> bool {
    // No loop: the compiler would keep registers across it that the verifier takes for unset.
    const { assert!(ND_OPTIONS == 4) };
    let at = own_link_option(p, at, mac);
    let at = own_link_option(p, at, mac);
    let at = own_link_option(p, at, mac);
    let at = own_link_option(p, at, mac);
    at != FOREIGN && at as u32 >= p.size()
}

/// An option further back in the frame is not looked at, and so refused.
const MAX_OPTION: usize = 0x7ff;

/// Where to go on after a link-layer address option that is somebody else's, or broken: nowhere.
const FOREIGN: usize = usize::MAX;

/// Looks at the option at `at`; gives where the next one is.
#[inline(never)]
fn own_link_option<P: Packet>(p: &P, at: usize, mac: &[u8; 6]) -> usize {
    if at == FOREIGN || at as u32 >= p.size() {
        return at;
    }
    if at > MAX_OPTION {
        return FOREIGN;
    }
    let Some([kind, units]) = p.read::<2>(at) else { return FOREIGN };
    if units == 0 {
        return FOREIGN;
    }
    if matches!(kind, 1 | 2) {
        let (Some([a, b, c, d]), Some([e, f])) = (p.read::<4>(at + 2), p.read::<2>(at + 6)) else { return FOREIGN };
        if [a, b, c, d, e, f] != *mac {
            return FOREIGN;
        }
    }
    at + (usize::from(units) << 3)
}

/// Is a packet for a tunnel's port? Of a fragmented one the first fragment says so.
#[inline(always)]
pub fn is_tunnel<A: Address, M: HostMaps>(m: &M, h: &Headers<A>) -> bool {
    h.is_udp() && m.is_tunnel_port(h.dport)
}
