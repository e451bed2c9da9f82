//! ARP and neighbour discovery for VIPs, and packets that are none of ours.

use std::net::{IpAddr, Ipv6Addr};

use vnet_common::verdict::Reason;

use super::packet::{L4, Packet};
use super::row::{Row, row, run};
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, STRANGER, World};

const BROADCAST: [u8; 6] = [0xff; 6];

/// An ARP frame (RFC 826).
pub fn arp(dst: [u8; 6], src: [u8; 6], op: u8, sender: ([u8; 6], IpAddr), target: ([u8; 6], IpAddr)) -> Vec<u8> {
    let octets = |a: IpAddr| match a {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(a) => panic!("{a} in ARP"),
    };
    let mut b = [&dst[..], &src, &[8, 6, 0, 1, 8, 0, 6, 4, 0, op]].concat();
    b.extend(sender.0);
    b.extend(octets(sender.1));
    b.extend(target.0);
    b.extend(octets(target.1));
    b
}

pub fn who_has(target: IpAddr, sender: IpAddr) -> Vec<u8> {
    arp(BROADCAST, CLIENT_MAC, 1, (CLIENT_MAC, sender), ([0; 6], target))
}

/// The solicited-node multicast address and MAC (RFC 4291 §2.7.1, RFC 2464 §7).
fn solicited_node(target: Ipv6Addr) -> ([u8; 6], IpAddr) {
    let o = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(o[13]), u16::from_be_bytes([o[14], o[15]]));
    ([0x33, 0x33, 0xff, o[13], o[14], o[15]], group.into())
}

/// A neighbour solicitation (RFC 4861 §4.3) with these options.
pub fn solicitation(src: IpAddr, target: IpAddr, options: &[u8]) -> Packet {
    let IpAddr::V6(t) = target else { panic!("{target} in neighbour discovery") };
    let (mac, group) = solicited_node(t);
    let payload = [&t.octets()[..], options].concat();
    let l4 = L4::Icmp { kind: 135, code: 0, rest: [0; 4] };
    Packet::new(src, group, l4).macs(mac, CLIENT_MAC).ttl(255).with(&payload)
}

fn advertisement(target: IpAddr, to: IpAddr) -> Packet {
    let IpAddr::V6(t) = target else { panic!("{target} in neighbour discovery") };
    let payload = [&t.octets()[..], &[2, 1], &HOST_MAC].concat();
    let l4 = L4::Icmp { kind: 136, code: 0, rest: [0x60, 0, 0, 0] };
    Packet::new(target, to, l4).macs(CLIENT_MAC, HOST_MAC).ttl(255).with(&payload)
}

pub fn source_option() -> Vec<u8> {
    [&[1, 1], &CLIENT_MAC[..]].concat()
}

#[test]
fn arp_for_vips() {
    let (vip, client) = (Family::V4.vip(), Family::V4.client());
    let reply = arp(CLIENT_MAC, HOST_MAC, 2, (HOST_MAC, vip), (CLIENT_MAC, client));
    let padded = |mut b: Vec<u8>| {
        b.resize(60, 0);
        b
    };
    let world = || World::balanced(8080);
    let other = |name: &str, b: Vec<u8>| row(name, world()).egress(CLIENT, frame(b)).passes(Reason::NotIp);
    run([
        row("ARP for a VIP", world())
            .egress(CLIENT, frame(who_has(vip, client)))
            .answered_bytes(Reason::VipNeighbor, reply.clone()),
        row("ARP for a VIP, padded", world())
            .egress(CLIENT, frame(padded(who_has(vip, client))))
            .answered_bytes(Reason::VipNeighbor, padded(reply.clone())),
        row("ARP for a VIP, asked of one host", world())
            .egress(CLIENT, frame(arp(HOST_MAC, CLIENT_MAC, 1, (CLIENT_MAC, client), (HOST_MAC, vip))))
            .answered_bytes(Reason::VipNeighbor, reply),
        other("ARP for another address", who_has(Family::V4.outside(), client)),
        other("an ARP probe of a VIP's address", who_has(vip, IpAddr::from([0, 0, 0, 0]))),
        other("an ARP reply", arp(HOST_MAC, CLIENT_MAC, 2, (CLIENT_MAC, client), (HOST_MAC, vip))),
        other("ARP that is cut off", who_has(vip, client)[..41].to_vec()),
        row("ARP to a client", world()).ingress(CLIENT, frame(who_has(vip, client))).passes(Reason::NotIp),
    ]);
}

#[test]
fn neighbour_discovery_for_vips() {
    let (vip, client) = (Family::V6.vip(), Family::V6.client());
    let world = || World::balanced(8080);
    let answer = |name: &str, p: Packet| -> Row {
        row(name, world()).egress(CLIENT, &p).answered(Reason::VipNeighbor, &advertisement(vip, client))
    };
    let other = |name: &str, p: Packet| -> Row { row(name, world()).egress(CLIENT, &p).passes(Reason::NotOurs) };
    let padded = Packet { padding: 30, ..solicitation(client, vip, &source_option()) };
    let unspecified = Ipv6Addr::UNSPECIFIED.into();
    run([
        answer("a solicitation for a VIP", solicitation(client, vip, &source_option())),
        answer("a solicitation without a source address option", solicitation(client, vip, &[])),
        answer("a solicitation with padding", padded),
        answer("a solicitation sent to the VIP itself", {
            Packet { dst: vip, ..solicitation(client, vip, &source_option()) }.macs(HOST_MAC, CLIENT_MAC)
        }),
        other("a solicitation for another address", solicitation(client, Family::V6.outside(), &source_option())),
        other("duplicate address detection of a VIP's address", solicitation(unspecified, vip, &[])),
        other("a solicitation from another link", solicitation(client, vip, &source_option()).ttl(254)),
    ]);
}

#[test]
fn not_for_a_group() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let world = || World::balanced(8080);
        for p in [
            Packet::tcp(f.client(), 1024, f.outside(), 80, super::packet::SYN),
            Packet::udp(f.client(), 1024, f.outside(), 53),
            Packet::ping(f.client(), f.outside()),
            Packet::new(f.client(), f.outside(), L4::Other(132)).with(&[7; 20]),
            Packet { fragment_offset: 100, ..Packet::udp(f.client(), 1024, f.outside(), 53) },
        ] {
            rows.push(row(format!("{f:?} to no VIP: {:?}", p.l4), world()).egress(CLIENT, &p).passes(Reason::NotOurs));
            rows.push(
                row(format!("{f:?} from no member: {:?}", p.l4), world())
                    .ingress(CLIENT, &p.clone().back())
                    .passes(Reason::NotOurs),
            );
            rows.push(row(format!("{f:?} no endpoint: {:?}", p.l4), world()).egress(STRANGER, &p).passes(Reason::NoEndpoint));
        }
        let syn = Packet::tcp(f.client(), 1024, f.vip(), 80, super::packet::SYN);
        rows.push(row(format!("{f:?} a VIP, but no endpoint"), world()).egress(STRANGER, &syn).passes(Reason::NoEndpoint));
        rows.push(row(format!("{f:?} a VLAN tag beside the packet"), world()).egress(CLIENT, &syn).vlan().passes(Reason::Vlan));
        rows.push(row(format!("{f:?} a VLAN tag beside a reply"), world()).ingress(CLIENT, &syn).vlan().passes(Reason::Vlan));
        let mut tagged = syn.bytes();
        tagged.splice(12..12, [0x81, 0x00, 0, 7]);
        rows.push(row(format!("{f:?} a VLAN tag in the packet"), world()).egress(CLIENT, frame(tagged)).passes(Reason::NotIp));
        let mut other_network = world();
        other_network.at(CLIENT).network = 5;
        rows.push(row(format!("{f:?} a VIP of another network"), other_network).egress(CLIENT, &syn).passes(Reason::NotOurs));
    }
    rows.push(
        row("neither IP nor ARP", World::balanced(80))
            .egress(CLIENT, frame([&BROADCAST[..], &CLIENT_MAC, &[0x88, 0xcc], &[0; 46]].concat()))
            .passes(Reason::NotIp),
    );
    run(rows);
}

pub fn frame(bytes: Vec<u8>) -> vnet_common::host::Frame {
    vnet_common::host::Frame { bytes, ..Default::default() }
}
