//! What comes before all rules: an endpoint sends as itself, and what keeps a network going may pass.

use std::net::{IpAddr, Ipv6Addr};

use vnet_common::endpoint::flags;
use vnet_common::event::kind;
use vnet_common::host::Frame;
use vnet_common::policy::{action, rule_flags};
use vnet_common::verdict::Reason;

use super::neighbors::{arp, frame, solicitation, source_option, who_has};
use super::packet::{ACK, L4, Packet, SYN};
use super::row::{Row, row, run};
use super::rules::{SET, allow, default};
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, NEAR, World};

const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const BROADCAST: [u8; 6] = [0xff; 6];
/// The rules that say no where nothing else does.
const NO: [u32; 2] = [8, 9];

/// A client that is policed in every respect, and to which every rule says no. Another endpoint of the host has `net 0, host 20` and
/// `fe80::20`.
fn strict() -> World {
    let mut w = World::balanced(8080);
    w.police(CLIENT, SET);
    w.at(CLIENT).flags |= flags::CHECK_MAC | flags::CHECK_IP;
    w.set(SET, &[default(NO[0], action::DENY)], &[default(NO[1], action::DENY)]);
    w.endpoint(NEAR, 2, OTHER_MAC);
    for f in FAMILIES {
        w.local(f.ip(0, 20), NEAR);
    }
    w.local(link_local(0x20), NEAR);
    w.maps.tunnel_ports = [4789u16, 6081].map(u16::to_be_bytes).to_vec();
    w.maps.events.set(kind::DROP);
    w
}

/// The same with rules that say yes to all.
fn open() -> World {
    let mut w = strict();
    w.set(SET, &[allow(1)], &[allow(2)]);
    w
}

fn link_local(n: u16) -> IpAddr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n).into()
}

/// What is said of a packet.
#[derive(Clone, Copy)]
enum Is {
    /// Let through before any rule.
    System,
    /// Dropped before any rule.
    Refused(Reason),
    /// The rules are asked, and say no.
    Asked,
}
use Is::{Asked, Refused, System};

const FORGED_MAC: Is = Refused(Reason::SpoofedMac);
const FORGED: Is = Refused(Reason::SpoofedNeighbor);
const FORGED_ADDRESS: Is = Refused(Reason::SpoofedAddress);
const HELD: Is = Refused(Reason::Quarantined);

fn egress(name: &str, w: World, frame: impl Into<Frame>, is: Is) -> Row {
    outcome(row(name, w).egress(CLIENT, frame), is, NO[0])
}
fn ingress(name: &str, w: World, frame: impl Into<Frame>, is: Is) -> Row {
    outcome(row(name, w).ingress(CLIENT, frame), is, NO[1])
}
fn outcome(r: Row, is: Is, no: u32) -> Row {
    match is {
        System => r.passes(Reason::System),
        Refused(reason) => r.dropped(reason).reported(kind::DROP, 0, reason),
        Asked => r.dropped(Reason::Denied).decided(no).reported(kind::DROP, no, Reason::Denied),
    }
}

fn with(mut w: World, on: u16, off: u16) -> World {
    let row = w.at(CLIENT);
    row.flags = row.flags & !off | on;
    w
}

#[test]
fn arp_of_policed_endpoints() {
    let f = Family::V4;
    let (me, peer, nobody) = (f.client(), f.outside(), IpAddr::from([0, 0, 0, 0]));
    let ask = |sender| frame(arp(BROADCAST, CLIENT_MAC, 1, sender, ([0; 6], peer)));
    let probe = |target| frame(arp(BROADCAST, CLIENT_MAC, 1, (CLIENT_MAC, nobody), ([0; 6], target)));
    let own = ask((CLIENT_MAC, me));
    let bytes = |change: fn(&mut Vec<u8>)| {
        let mut b = who_has(peer, me);
        change(&mut b);
        frame(b)
    };
    let no_mac = || with(strict(), 0, flags::CHECK_MAC);
    let no_ip = || with(strict(), 0, flags::CHECK_IP);
    let held = || with(strict(), 0, flags::NEIGHBORS);
    let answer = arp(CLIENT_MAC, HOST_MAC, 2, (HOST_MAC, f.vip()), (CLIENT_MAC, me));
    run([
        egress("a question", strict(), own.clone(), System),
        egress("an answer", strict(), frame(arp(HOST_MAC, CLIENT_MAC, 2, (CLIENT_MAC, me), (HOST_MAC, peer))), System),
        egress("an announcement", strict(), frame(who_has(me, me)), System),
        egress("a probe", strict(), probe(me), System),
        egress("a probe for another's address", strict(), probe(f.ip(0, 20)), FORGED),
        egress("a probe for an address that nobody has", strict(), probe(peer), FORGED),
        egress("a probe for a VIP", strict(), probe(f.vip()), FORGED),
        egress("a probe that is cut off", strict(), frame(probe(me).bytes[..14 + 26].to_vec()), FORGED),
        egress("a probe, addresses do not matter", no_ip(), probe(peer), System),
        egress("padded", strict(), bytes(|b| b.resize(60, 0)), System),
        egress("from another MAC", strict(), bytes(|b| b[11] ^= 1), FORGED_MAC),
        egress("another's MAC inside", strict(), ask((OTHER_MAC, me)), FORGED),
        egress("another's address inside", strict(), ask((CLIENT_MAC, f.ip(0, 99))), FORGED),
        egress("the address of another endpoint", strict(), ask((CLIENT_MAC, f.ip(0, 20))), FORGED),
        egress(
            "an answer for another",
            strict(),
            frame(arp(HOST_MAC, CLIENT_MAC, 2, (CLIENT_MAC, peer), (HOST_MAC, me))),
            FORGED,
        ),
        egress("cut off in the sender's address", strict(), bytes(|b| b.truncate(14 + 17)), FORGED),
        egress("cut off in the sender's MAC", strict(), bytes(|b| b.truncate(14 + 9)), FORGED),
        egress("cut off before all fields", strict(), bytes(|b| b.truncate(15)), FORGED),
        egress("addresses of eight bytes", strict(), bytes(|b| b[14 + 5] = 8), FORGED),
        egress("hardware addresses of eight bytes", strict(), bytes(|b| b[14 + 4] = 8), FORGED),
        egress("of another protocol", strict(), bytes(|b| b[14 + 2] = 0x80), FORGED),
        egress("MACs do not matter", no_mac(), bytes(|b| b[11] ^= 1), System),
        egress("MACs do not matter, inside", no_mac(), ask((OTHER_MAC, me)), System),
        egress("MACs do not matter, addresses do", no_mac(), ask((OTHER_MAC, peer)), FORGED),
        egress("addresses do not matter", no_ip(), ask((CLIENT_MAC, peer)), System),
        egress("addresses do not matter, MACs do", no_ip(), ask((OTHER_MAC, peer)), FORGED),
        egress("no neighbours", held(), own.clone(), HELD),
        ingress("to it", strict(), own.clone(), System),
        ingress("to it, no neighbours", held(), own, HELD),
        row("for a VIP", strict()).egress(CLIENT, frame(who_has(f.vip(), me))).answered_bytes(Reason::VipNeighbor, answer),
        egress(
            "for a VIP, forged",
            strict(),
            frame(arp(BROADCAST, CLIENT_MAC, 1, (CLIENT_MAC, peer), ([0; 6], f.vip()))),
            FORGED,
        ),
        egress("for a VIP, no neighbours", held(), frame(who_has(f.vip(), me)), HELD),
    ]);
}

/// An ICMPv6 packet that stays on the link.
fn discovery(kind: u8, src: IpAddr, body: &[u8]) -> Packet {
    let l4 = L4::Icmp { kind, code: 0, rest: [0; 4] };
    Packet::new(src, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(), l4)
        .macs([0x33, 0x33, 0, 0, 0, 1], CLIENT_MAC)
        .ttl(255)
        .with(body)
}
fn octets(a: IpAddr) -> [u8; 16] {
    super::world::wide(a)
}
/// An advertisement of `target` with these options.
fn advertises(src: IpAddr, target: IpAddr, options: &[u8]) -> Packet {
    discovery(136, src, &[&octets(target)[..], options].concat())
}
fn option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

#[test]
fn neighbour_solicitations_and_advertisements() {
    let f = Family::V6;
    let (me, peer, nobody) = (f.client(), f.outside(), IpAddr::from(Ipv6Addr::UNSPECIFIED));
    let (mine, theirs) = (option(2, CLIENT_MAC), option(2, OTHER_MAC));
    let asks = |src, options: &[u8]| solicitation(src, peer, options);
    let padding = vec![14, 1, 0, 0, 0, 0, 0, 0]; // a nonce (RFC 3971)
    // Behind an option of 1992 bytes. Should offsets wrap, the source address is taken for an option that leads into it, and to the end.
    let mut far_back = vec![0; 249 * 8];
    (far_back[0], far_back[1]) = (14, 249);
    (far_back[1046 - 78], far_back[1047 - 78]) = (14, 255);
    far_back.extend(option(1, OTHER_MAC));
    let no_mac = || with(strict(), 0, flags::CHECK_MAC);
    let no_ip = || with(strict(), 0, flags::CHECK_IP);
    let held = || with(strict(), 0, flags::NEIGHBORS);
    let e = |name: &str, p: Packet, is| egress(name, strict(), &p, is);
    run([
        e("a solicitation", asks(me, &source_option()), System),
        e("without an option", asks(me, &[]), System),
        e("from a link-local address", asks(link_local(1), &source_option()), System),
        e("duplicate address detection", solicitation(nobody, me, &[]), System),
        e("duplicate address detection, link-local", solicitation(nobody, link_local(1), &[]), System),
        e("duplicate address detection of another's", solicitation(nobody, f.ip(0, 20), &[]), FORGED),
        e("duplicate address detection of another's, link-local", solicitation(nobody, link_local(0x20), &[]), FORGED),
        e("duplicate address detection of what nobody has", asks(nobody, &[]), FORGED),
        egress("duplicate address detection, addresses do not matter", no_ip(), &asks(nobody, &[]), System),
        e("another's MAC in the option", asks(me, &option(1, OTHER_MAC)), FORGED),
        e("another's MAC in the second option", asks(me, &[source_option(), option(1, OTHER_MAC)].concat()), FORGED),
        e(
            "another's MAC in the fourth option",
            asks(me, &[padding.clone(), padding.clone(), padding.clone(), option(1, OTHER_MAC)].concat()),
            FORGED,
        ),
        e("more options than are looked at", asks(me, &padding.repeat(5)), FORGED),
        e("four options", asks(me, &padding.repeat(4)), System),
        e("another's MAC far back", asks(link_local(1), &far_back), FORGED),
        e("an option of no length", asks(me, &[1, 0, 2, 0, 0, 0, 0, 1]), FORGED),
        e("an option that is cut off", asks(me, &source_option()[..5]), FORGED),
        e("another's address", asks(f.ip(0, 99), &source_option()), FORGED_ADDRESS),
        e("another's link-local address", asks(link_local(0x20), &source_option()), FORGED_ADDRESS),
        e("from another MAC", asks(me, &source_option()).macs([0x33; 6], OTHER_MAC), FORGED_MAC),
        e("an advertisement", advertises(me, me, &mine), System),
        e("an advertisement without an option", advertises(me, me, &[]), System),
        e("an advertisement of a link-local address", advertises(link_local(1), link_local(1), &mine), System),
        e("an advertisement of another's address", advertises(me, f.ip(0, 99), &mine), FORGED),
        e("an advertisement of another's link-local address", advertises(me, link_local(0x20), &mine), FORGED),
        e("an advertisement with another's MAC", advertises(me, me, &theirs), FORGED),
        e("an advertisement that is cut off", discovery(136, me, &octets(me)[..15]), FORGED),
        egress("MACs do not matter", no_mac(), &asks(me, &option(1, OTHER_MAC)).macs([0x33; 6], OTHER_MAC), System),
        egress("addresses do not matter", no_ip(), &asks(f.ip(0, 99), &source_option()), System),
        egress("addresses do not matter, advertised", no_ip(), &advertises(me, peer, &mine), System),
        egress("no neighbours", held(), &asks(me, &source_option()), HELD),
        ingress("to it", strict(), &advertises(peer, peer, &theirs).macs(CLIENT_MAC, OTHER_MAC), System),
        ingress("to it, no neighbours", held(), &advertises(peer, peer, &theirs).macs(CLIENT_MAC, OTHER_MAC), HELD),
        // What a router has forwarded is none: its type alone gets nobody past the rules.
        e("to another link", asks(me, &source_option()).ttl(254), Asked),
        ingress("from another link", strict(), &advertises(peer, peer, &theirs).ttl(254), Asked),
    ]);
    run([row("to another link, by the rules", open())
        .egress(CLIENT, &asks(me, &source_option()).ttl(64))
        .passes(Reason::Allowed)]);
}

#[test]
fn routers_and_listeners() {
    let f = Family::V6;
    let me = f.client();
    let router = || with(strict(), flags::ROUTER, 0);
    let advertises = |options: &[u8]| discovery(134, link_local(1), &[&[0; 8], options].concat());
    let redirects = discovery(137, link_local(1), &[0; 32]);
    let e = |name: &str, p: Packet, is| egress(name, strict(), &p, is);
    // Multicast listeners (RFC 3810): hop limit 1, behind a router alert.
    let group: IpAddr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16).into();
    let listener = |dst: IpAddr, ttl| Packet {
        extensions: vec![(0, vec![5, 2, 0, 0, 1, 0])],
        dst,
        ..discovery(143, link_local(1), &[4, 0, 0, 0]).ttl(ttl)
    };
    run([
        e("a router is asked for", discovery(133, me, &option(1, CLIENT_MAC)), System),
        e("a router is asked for with another's MAC", discovery(133, me, &option(1, OTHER_MAC)), FORGED),
        e("it calls itself a router", advertises(&option(1, CLIENT_MAC)), FORGED),
        egress("a router calls itself one", router(), &advertises(&option(1, CLIENT_MAC)), System),
        egress("a router calls another one", router(), &advertises(&option(1, OTHER_MAC)), FORGED),
        e("it redirects", redirects.clone(), FORGED),
        egress("a router redirects", router(), &redirects, System),
        egress("a router may not ask if neighbours are none", with(router(), 0, flags::NEIGHBORS), &redirects, HELD),
        ingress("a router's advertisement", strict(), &advertises(&option(1, OTHER_MAC)), System),
        e("a listener's report", listener(group, 1), System),
        e("a listener's report that goes further", listener(group, 64), Asked),
        e("a listener's report to one host", Packet { src: me, ..listener(f.outside(), 1) }, Asked),
        e("a listener's report in another's name", Packet { src: f.outside(), ..listener(group, 1) }, FORGED_ADDRESS),
        ingress("a listener's query", strict(), &discovery(130, link_local(9), &[0; 16]).ttl(1), System),
        ingress(
            "a listener's query, no neighbours",
            with(strict(), 0, flags::NEIGHBORS),
            &discovery(130, link_local(9), &[0; 16]).ttl(1),
            HELD,
        ),
    ]);
}

#[test]
fn addresses_of_policed_endpoints() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let ask = |src: IpAddr| Packet::udp(src, 4000, f.outside(), 53);
        let nobody = if f == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let e = |name: &str, p: Packet, is| egress(&format!("{f:?} {name}"), strict(), &p, is);
        rows.extend([
            e("its own", ask(f.client()), Asked),
            e("from another MAC", ask(f.client()).macs(HOST_MAC, OTHER_MAC), FORGED_MAC),
            e("in the last byte of the MAC", ask(f.client()).macs(HOST_MAC, [2, 0, 0, 0, 0, 0x81]), FORGED_MAC),
            e("in the first byte of the MAC", ask(f.client()).macs(HOST_MAC, [4, 0, 0, 0, 0, 1]), FORGED_MAC),
            e("nobody's", ask(f.ip(0, 99)), FORGED_ADDRESS),
            e("another endpoint's", ask(f.ip(0, 20)), FORGED_ADDRESS),
            e("a VIP's", ask(f.vip()), FORGED_ADDRESS),
            e("none", ask(nobody), FORGED_ADDRESS),
            e("nobody's, of a fragment", fragment(ask(f.ip(0, 99)), 8, false), FORGED_ADDRESS),
            e("nobody's, ping", Packet::ping(f.ip(0, 99), f.outside()), FORGED_ADDRESS),
            e("nobody's, another protocol", Packet::new(f.ip(0, 99), f.outside(), L4::Other(132)).with(&[1; 12]), FORGED_ADDRESS),
            egress(&format!("{f:?} addresses do not matter"), with(strict(), 0, flags::CHECK_IP), &ask(f.ip(0, 99)), Asked),
            egress(
                &format!("{f:?} MACs do not matter"),
                with(strict(), 0, flags::CHECK_MAC),
                &ask(f.client()).macs(HOST_MAC, OTHER_MAC),
                Asked,
            ),
            // What reaches it may have any.
            ingress(&format!("{f:?} to it"), strict(), &ask(f.client()).back().macs(CLIENT_MAC, OTHER_MAC), Asked),
        ]);
        // Of an endpoint that is not policed, nothing matters.
        let mut w = strict();
        w.at(CLIENT).flags &= !flags::POLICED;
        rows.push(
            row(format!("{f:?} not policed"), w)
                .egress(CLIENT, &ask(f.ip(0, 99)).macs(HOST_MAC, OTHER_MAC))
                .passes(Reason::NotOurs),
        );
    }
    let link = |src, dst| Packet::udp(src, 5353, dst, 5353);
    let all = IpAddr::from(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb));
    let e = |name: &str, p: Packet, is| egress(name, strict(), &p, is);
    rows.extend([
        e("link-local to link-local", link(link_local(1), link_local(2)), Asked),
        e("link-local to all", link(link_local(1), all), Asked),
        e("link-local to further", link(link_local(1), Family::V6.outside()), FORGED_ADDRESS),
        e("another's link-local", link(link_local(0x20), link_local(2)), FORGED_ADDRESS),
        e("the end of link-local", link(Ipv6Addr::new(0xfebf, 0, 0, 0, 0, 0, 0, 1).into(), all), Asked),
        e("not link-local", link(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 1).into(), all), FORGED_ADDRESS),
    ]);
    run(rows);
}

#[test]
fn dhcp_clients() {
    let broadcast = IpAddr::from([255; 4]);
    let servers = IpAddr::from(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2));
    let off = || with(strict(), 0, flags::DHCP);
    let held = || with(strict(), flags::QUARANTINED, 0);
    let mut rows = Vec::new();
    for f in FAMILIES {
        let (client, server) = if f == Family::V4 { (68, 67) } else { (546, 547) };
        let (nobody, all) = if f == Family::V4 { (IpAddr::from([0; 4]), broadcast) } else { (link_local(1), servers) };
        let beyond =
            if f == Family::V4 { IpAddr::from([255, 1, 2, 3]) } else { Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3).into() };
        let discover = Packet::udp(nobody, client, all, server);
        let renew = Packet::udp(f.client(), client, f.outside(), server);
        let offer = Packet::udp(f.outside(), server, f.client(), client);
        let name = |n: &str| format!("{f:?} {n}");
        rows.extend([
            egress(&name("discover"), strict(), &discover, System),
            egress(&name("renew"), strict(), &renew, System),
            egress(&name("in another's name"), strict(), &renew.clone().from(f.ip(0, 99), client), FORGED_ADDRESS),
            egress(&name("from another MAC"), strict(), &discover.clone().macs(BROADCAST, OTHER_MAC), FORGED_MAC),
            egress(&name("from another port"), strict(), &renew.clone().sport(4000), Asked),
            egress(&name("a server's"), strict(), &renew.clone().from(f.client(), server).to(f.outside(), client), Asked),
            egress(&name("by TCP"), strict(), &Packet::tcp(f.client(), client, f.outside(), server, SYN), Asked),
            ingress(&name("offer"), strict(), &offer, System),
            ingress(&name("to another port"), strict(), &offer.clone().to(f.client(), 4000), Asked),
            ingress(&name("from another port"), strict(), &offer.clone().sport(4000), Asked),
            ingress(&name("a client's"), strict(), &renew.clone().back().from(f.outside(), client).to(f.client(), server), Asked),
            egress(&name("renew, no DHCP"), off(), &renew, Asked),
            ingress(&name("offer, no DHCP"), off(), &offer, Asked),
            egress(&name("held: discover"), held(), &discover, System),
            // Kept alive by asking all, once nobody answers the client's questions by name.
            egress(&name("held: renew"), held(), &renew, Asked),
            egress(&name("held: rebind"), held(), &Packet { dst: all, ..renew.clone() }, System),
            egress(&name("held: to a group beyond the link"), held(), &Packet { dst: beyond, ..renew.clone() }, Asked),
            ingress(&name("held: offer"), held(), &offer, System),
        ]);
        if f == Family::V4 {
            rows.push(egress("discover, no DHCP", off(), &discover, HELD));
            rows.push(egress("a fragment", strict(), &Packet { more_fragments: true, ..renew }, Asked));
        } else {
            rows.push(egress("discover, no DHCP", off(), &discover, Asked));
        }
    }
    run(rows);
}

#[test]
fn tunnels() {
    const FORBIDDEN: Is = Refused(Reason::TunnelForbidden);
    let mut rows = Vec::new();
    for f in FAMILIES {
        let to = |port| Packet::udp(f.client(), 4789, f.outside(), port);
        let name = |n: &str| format!("{f:?} {n}");
        let first = |p: Packet| fragment(p, 0, true);
        let short = |mut p: Packet, payload: usize| {
            (p.l4, p.payload) = (L4::Other(17), vec![0x12, 0xb5, 0x12, 0xb5][..payload].to_vec());
            first(p)
        };
        rows.extend([
            egress(&name("VXLAN"), strict(), &to(4789), FORBIDDEN),
            egress(&name("Geneve"), strict(), &to(6081), FORBIDDEN),
            egress(&name("another port"), strict(), &to(4790), Asked),
            egress(&name("port 0 is none"), strict(), &to(0), Asked),
            egress(&name("by TCP"), strict(), &Packet::tcp(f.client(), 1024, f.outside(), 4789, SYN), Asked),
            egress(&name("allowed to"), with(strict(), flags::TUNNELS, 0), &to(4789), Asked),
            egress(&name("the first fragment"), strict(), &first(to(4789)), FORBIDDEN),
            egress(&name("the first fragment to another port"), strict(), &first(to(53)), Asked),
            row(name("a first fragment too short for its port"), strict())
                .egress(CLIENT, &short(to(53), 2))
                .dropped(Reason::Malformed),
            row(name("a first fragment with its port at the end"), strict())
                .egress(CLIENT, &short(to(53), 4))
                .dropped(Reason::Malformed),
            egress(&name("a later fragment"), strict(), &fragment(to(4789), 8, true), Asked),
            egress(&name("the last fragment"), strict(), &fragment(to(4789), 8, false), Asked),
            ingress(&name("to it"), strict(), &to(4789).back(), Asked),
        ]);
        // Off: port 0 is not a port.
        let mut w = strict();
        w.maps.tunnel_ports.clear();
        rows.push(egress(&name("no tunnel ports"), w, &to(4789), Asked));
        // The rules say yes to all: it is not they who forbid it.
        let yes = row(name("rules say yes"), open()).egress(CLIENT, &to(4789)).dropped(Reason::TunnelForbidden);
        rows.push(yes.egress(CLIENT, &to(53)).passes(Reason::Allowed).holds(1, 0).quota(1, 1));
    }
    let hidden = |kind| {
        let mut p = fragment(Packet::udp(Family::V6.client(), 1, Family::V6.outside(), 4789), 0, true);
        p.extensions.push((kind, vec![1, 4, 0, 0, 0, 0]));
        p
    };
    for kind in [0, 43, 60] {
        rows.push(egress(&format!("hidden behind extension header {kind}"), strict(), &hidden(kind), FORBIDDEN));
    }
    let mut later = hidden(60);
    later.extensions[0].1[0..2].copy_from_slice(&(8u16 << 3).to_be_bytes());
    rows.push(egress("a later fragment says nothing of headers", strict(), &later, Asked));
    run(rows);
}

/// Makes a packet into a fragment: `at` in units of eight bytes.
pub fn fragment(mut p: Packet, at: u16, more: bool) -> Packet {
    if p.src.is_ipv4() {
        (p.fragment_offset, p.more_fragments) = (at, more);
    } else {
        let [a, b] = (at << 3 | u16::from(more)).to_be_bytes();
        p.extensions = vec![(44, vec![a, b, 0, 0, 0, 7])];
    }
    p
}

#[test]
fn what_cannot_be_judged() {
    let unpoliced = || with(strict(), flags::TUNNELS, flags::POLICED);
    let both = |name: &str, b: Vec<u8>, reason| {
        let drop = row(format!("{name}: dropped"), open()).egress(CLIENT, frame(b.clone())).dropped(reason);
        let pass = row(format!("{name}: left alone"), unpoliced()).egress(CLIENT, frame(b.clone())).passes(reason);
        [drop.ingress(CLIENT, frame(b.clone())).dropped(reason), pass.ingress(CLIENT, frame(b)).passes(reason)]
    };
    let ether = |kind: [u8; 2]| [&HOST_MAC[..], &CLIENT_MAC, &kind, &[0; 46]].concat();
    let mut rows = Vec::new();
    for f in FAMILIES {
        let udp = Packet::udp(f.client(), 4000, f.outside(), 53).bytes();
        let tcp = Packet::tcp(f.client(), 4000, f.outside(), 53, ACK).bytes();
        let cut = |b: &[u8], n: usize| b[..b.len() - n].to_vec();
        rows.extend(both(&format!("{f:?} UDP, cut off"), cut(&udp, 9), Reason::Malformed));
        rows.extend(both(&format!("{f:?} TCP, cut off"), cut(&tcp, 1), Reason::Malformed));
        let mut tagged = udp.clone();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        rows.extend(both(&format!("{f:?} a tag in the packet"), tagged, Reason::NotIp));
        let r = row(format!("{f:?} a tag beside the packet"), open());
        let r = r.egress(CLIENT, frame(udp.clone())).vlan().dropped(Reason::Vlan);
        rows.push(r.ingress(CLIENT, frame(udp.clone())).vlan().dropped(Reason::Vlan));
    }
    rows.extend(both("LLDP", ether([0x88, 0xcc]), Reason::NotIp));
    rows.extend(both("RARP", ether([0x80, 0x35]), Reason::NotIp));
    rows.extend(both("PPPoE", ether([0x88, 0x64]), Reason::NotIp));
    rows.extend(both("no EtherType", vec![2; 13], Reason::Malformed));
    run(rows);
}

#[test]
fn the_short_way_looks_at_the_mac_too() {
    run(FAMILIES.map(|f| {
        let ask = Packet::udp(f.client(), 4000, f.outside(), 53);
        let forged = ask.clone().macs(HOST_MAC, OTHER_MAC);
        let mut r = row(format!("{f:?} a cached flow, forged"), open()).egress(CLIENT, &ask).passes(Reason::Allowed);
        for _ in 0..3 {
            r = r.egress(CLIENT, &ask).passes(Reason::Established);
            r = r.egress(CLIENT, &forged).dropped(Reason::SpoofedMac).reported(kind::DROP, 0, Reason::SpoofedMac);
        }
        // And the VIP's flows.
        let m = super::udp::udp_member(f);
        let (vip, there) = (ask.clone().to(f.vip(), 80), ask.clone().to(f.member(0), 8080));
        let r = r.egress(CLIENT, &vip).becomes(Reason::NewFlow, &there).by(m).events(m);
        let mut r = r.egress(CLIENT, &vip).becomes(Reason::Established, &there).by(m);
        for _ in 0..2 {
            r = r.egress(CLIENT, &vip).becomes(Reason::Established, &there).by(m);
            let forged = vip.clone().macs(HOST_MAC, OTHER_MAC);
            r = r.egress(CLIENT, &forged).dropped(Reason::SpoofedMac).reported(kind::DROP, 0, Reason::SpoofedMac);
        }
        r.holds(2, 0).quota(1, 2)
    }));
}

/// A rule's own flags have no part in what comes before it.
#[test]
fn events_are_off_unless_asked_for() {
    run(FAMILIES.map(|f| {
        let mut w = strict();
        w.maps.events.set(0);
        w.set(SET, &[default(NO[0], action::DENY).flags(rule_flags::LOG)], &[default(NO[1], action::DENY)]);
        let ask = Packet::udp(f.client(), 4000, f.outside(), 53);
        let r = row(format!("{f:?} no event is wanted"), w).egress(CLIENT, &ask).dropped(Reason::Denied).decided(NO[0]);
        r.egress(CLIENT, &ask.macs(HOST_MAC, OTHER_MAC)).dropped(Reason::SpoofedMac).no_reports()
    }));
}
