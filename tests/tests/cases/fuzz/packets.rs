//! Random packets: new ones, damaged ones, and further ones of flows that were seen.

use std::net::IpAddr;

use vnet_common::host::Frame;
use vnet_common::policy::{MARK_OURS, MARK_PROBE};
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::super::neighbors::{arp, solicitation};
use super::super::packet::{L4, Packet};
use super::super::world::{CLIENT, CLIENT_MAC, FAMILIES, FAR, Family, NEAR};
use super::random::Random;
use super::worlds::{TUNNEL, peer, vip};

fn random_l4(r: &mut Random, f: Family) -> L4 {
    let (sport, dport) = (r.of(&[40000, 40001, 80, 8080, 53]), r.of(&[80, 80, 80, 80, 53, 53, TUNNEL]));
    match r.below(32) {
        0..=15 => {
            let flags = r.of(&[2, 2, 16, 16, 16, 18, 17, 4, 20, 0, 3]);
            let options = if r.one_in(3) { r.bytes(4) } else { Vec::new() };
            L4::Tcp { sport, dport, flags, seq: r.next() as u32, ack: r.next() as u32, options }
        }
        16..=24 => L4::Udp { sport, dport, checksum: !r.one_in(6) },
        25 => {
            let (client, server) = if f == Family::V4 { (68, 67) } else { (546, 547) };
            let (sport, dport) = r.of(&[(client, server), (server, client)]);
            L4::Udp { sport, dport, checksum: true }
        }
        26..=29 => {
            let kind = if f == Family::V4 { r.of(&[8, 8, 0, 3, 128]) } else { r.of(&[128, 128, 129, 1, 8, 134, 135, 136, 143]) };
            L4::Icmp { kind, code: r.of(&[0, 0, 0, 1]), rest: [1, 2, 3, 4] }
        }
        _ => L4::Other(r.of(&[132, 47, 4, 59])),
    }
}

fn random_packet(r: &mut Random) -> Packet {
    let f = r.of(&FAMILIES);
    let src = r.of(&[f.client(), f.client(), f.client(), f.client(), f.client(), f.member(0), f.outside()]);
    let dsts =
        [vip(f, 0), vip(f, 0), vip(f, 0), vip(f, 1), vip(f, 1), vip(f, 1), peer(f, 1), peer(f, 2), f.client(), f.member(0)];
    let mut p = Packet::new(src, r.of(&dsts), random_l4(r, f));
    let len = r.of(&[0, 1, 7, 8, 64, 64, 555, 1400]);
    p.payload = r.bytes(len);
    p.ttl = r.of(&[64, 64, 64, 255, 1, 2]);
    p.dont_fragment = !r.one_in(4);
    p.padding = if r.one_in(5) { r.below(12) as usize } else { 0 };
    if r.one_in(30) {
        p.dst_mac = [0xff; 6];
    }
    if r.one_in(10) {
        let words = r.below(11);
        (p.options, p.extensions) = match f {
            Family::V4 => (r.bytes(4 * words), Vec::new()),
            Family::V6 => (Vec::new(), (0..words % 6).map(|_| (r.of(&[0, 43, 60, 44]), r.of(&[6, 6, 14]))).map(body).collect()),
        };
    }
    if f == Family::V4 && r.one_in(12) {
        (p.fragment_offset, p.more_fragments) = (r.of(&[0, 0, 8]), r.one_in(2));
    }
    if f == Family::V6 && r.one_in(12) {
        let [a, b] = r.of(&[1u16, 1, 8 << 3, 8 << 3 | 1]).to_be_bytes();
        p.extensions.push((44, vec![a, b, 0, 0, 0, 1]));
    }
    p
}

/// An extension header; a fragment header has eight bytes always.
fn body((kind, len): (u8, usize)) -> (u8, Vec<u8>) {
    (kind, vec![0; if kind == 44 { 6 } else { len }])
}

/// A question for a neighbour, or an answer; mostly in the client's name.
fn random_neighbor(r: &mut Random) -> Vec<u8> {
    let mac = r.of(&[CLIENT_MAC, CLIENT_MAC, CLIENT_MAC, [2, 0, 0, 0, 1, 2]]);
    let (v4, v6) = (Family::V4, Family::V6);
    if r.one_in(2) {
        let sender = r.of(&[v4.client(), v4.client(), v4.outside(), v4.member(0), IpAddr::from([0; 4])]);
        return arp([0xff; 6], CLIENT_MAC, r.of(&[1, 2]), (mac, sender), ([0; 6], r.of(&[vip(v4, 0), v4.outside()])));
    }
    let src = r.of(&[v6.client(), v6.client(), v6.outside(), IpAddr::from([0; 16])]);
    let options = [&[r.of(&[1, 1, 2, 14]), r.of(&[1, 1, 1, 0, 2])][..], &mac].concat();
    let mut p = solicitation(src, r.of(&[vip(v6, 0), v6.client(), v6.outside()]), &options);
    if let L4::Icmp { kind, .. } = &mut p.l4 {
        *kind = r.of(&[135, 135, 136, 136, 133, 134, 137, 143]);
    }
    p.ttl = r.of(&[255, 255, 255, 1, 64]);
    p.bytes()
}

/// Damages a frame in one of the ways in which frames are damaged.
fn damage(r: &mut Random, b: &mut Vec<u8>) {
    match r.below(4) {
        0 => b.truncate(r.below(b.len() as u64) as usize),
        1 => {
            for _ in 0..=r.below(3) {
                let at = r.below(b.len().min(90) as u64) as usize;
                b[at] ^= 1 << r.below(8);
            }
        }
        2 => {
            let at = 12 + r.below((b.len() - 12).min(60) as u64) as usize;
            b[at] = r.of(&[0, 1, 4, 5, 6, 15, 17, 44, 58, 60, 0x45, 0x4f, 0x60, 0xff]);
        }
        _ => {
            let extra = r.below(40);
            b.extend(r.bytes(extra));
        }
    }
}

/// Where the addresses of a plain TCP, UDP or ICMP frame are, their width, where its L4 header is, and its protocol.
fn layout(b: &[u8]) -> Option<(usize, usize, usize, u8)> {
    let (at, width, l4, protocol) = match b.get(12..15)? {
        [8, 0, 0x45] => (26, 4, 34, *b.get(23)?),
        [0x86, 0xdd, 0x60] => (22, 16, 54, *b.get(20)?),
        _ => return None,
    };
    let size = if protocol == 6 { 20 } else { 8 };
    let known = matches!((width, protocol), (_, 6 | 17) | (4, 1) | (16, 58));
    (b.len() >= l4 + size && known).then_some((at, width, l4, protocol))
}

/// The reply to a packet. Sums stay as they are when both sides are swapped.
fn reply_to(b: &[u8]) -> Option<Vec<u8>> {
    let (at, width, l4, protocol) = layout(b)?;
    let mut out = b.to_vec();
    out[at..at + 2 * width].rotate_left(width);
    match protocol {
        6 | 17 => out[l4..l4 + 4].rotate_left(2),
        _ => {
            let kind = match out[l4] {
                8 if width == 4 => 0,
                0 if width == 4 => 8,
                128 if width == 16 => 129,
                129 if width == 16 => 128,
                other => other,
            };
            change_word(&mut out, l4, l4 + 2, |w| w[0] = kind);
        }
    }
    Some(out)
}

/// Changes the word at `at`, and the checksum at `sum` accordingly (RFC 1624).
fn change_word(b: &mut [u8], at: usize, sum: usize, f: impl FnOnce(&mut [u8])) {
    let word = |b: &[u8], at: usize| u32::from(u16::from_be_bytes([b[at], b[at + 1]]));
    let (old, old_sum) = (word(b, at), word(b, sum));
    f(&mut b[at..at + 2]);
    let s = (!old_sum & 0xffff) + (!old & 0xffff) + word(b, at);
    let s = (s & 0xffff) + (s >> 16);
    let s = !((s & 0xffff) + (s >> 16)) as u16;
    b[sum..sum + 2].copy_from_slice(&s.to_be_bytes());
}

/// The packet with other TCP flags.
fn with_flags(mut b: Vec<u8>, flags: u8) -> Vec<u8> {
    if let Some((_, _, l4, 6)) = layout(&b) {
        change_word(&mut b, l4 + 12, l4 + 16, |w| w[1] = flags);
    }
    b
}

/// An IPv4 packet as a fragment of a larger datagram: the first, or another.
fn as_fragment(r: &mut Random, mut b: Vec<u8>) -> Vec<u8> {
    if let Some((_, 4, ..)) = layout(&b) {
        let bits = r.of(&[0x2000_u16, 0x2000, 0x2008, 0x0008, 0x0010, 0x2001]);
        change_word(&mut b, 20, 24, |w| w.copy_from_slice(&bits.to_be_bytes()));
    }
    b
}

/// The ICMP error about a packet, from a router or from its destination to its source.
fn error_about(r: &mut Random, b: &[u8]) -> Option<Vec<u8>> {
    let (at, width, l4, _) = layout(b)?;
    let address = |at: usize| match width {
        4 => <[u8; 4]>::try_from(&b[at..at + 4]).map(IpAddr::from).ok(),
        _ => <[u8; 16]>::try_from(&b[at..at + 16]).map(IpAddr::from).ok(),
    };
    let (f, kinds) = if width == 4 { (Family::V4, [3, 11, 12, 5]) } else { (Family::V6, [1, 2, 3, 4]) };
    let from = if r.one_in(2) { f.outside() } else { address(at + width)? };
    let icmp = L4::Icmp { kind: r.of(&kinds), code: r.of(&[0, 1, 4]), rest: [0, 0, 5, 0] };
    Some(Packet::new(from, address(at)?, icmp).with(&b[14..l4 + 8]).bytes())
}

/// A packet that went through: where, as it came, as it left.
pub struct Past {
    pub direction: Direction,
    pub ifindex: u32,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    /// It went back to where it came from, which is its own member.
    pub turned: bool,
}

pub fn is_of_flow(v: Verdict) -> bool {
    use Reason::{Allowed, Established, HalfOpen, NewFlow, Probe, Reply, Steered};
    matches!(v.reason(), NewFlow | HalfOpen | Established | Reply | Allowed | Steered | Probe)
}

/// A further packet of a flow that was seen: the same way, or back.
fn next_of_flow(r: &mut Random, past: &Past) -> Option<(Direction, u32, Vec<u8>)> {
    let flags = r.of(&[16, 16, 16, 16, 18, 18, 17, 4, 2]);
    if r.one_in(3) {
        let again = with_flags(past.before.clone(), flags);
        let again = if r.one_in(6) { as_fragment(r, again) } else { again };
        return Some((past.direction, past.ifindex, again));
    }
    let (direction, ifindex) = match past.direction {
        _ if past.turned => (Direction::Egress, past.ifindex),
        Direction::Ingress => (Direction::Egress, past.ifindex),
        Direction::Egress if r.one_in(3) => (Direction::Egress, r.of(&[NEAR, FAR])),
        Direction::Egress => (Direction::Ingress, past.ifindex),
    };
    if r.one_in(8) {
        return Some((direction, ifindex, error_about(r, &past.after)?));
    }
    let reply = with_flags(reply_to(&past.after)?, flags);
    Some((direction, ifindex, if r.one_in(8) { as_fragment(r, reply) } else { reply }))
}

/// The MAC of the endpoint behind a device.
fn mac_of(ifindex: u32) -> [u8; 6] {
    match ifindex {
        CLIENT => CLIENT_MAC,
        NEAR => [2, 0, 0, 0, 1, 2],
        _ => [2, 0, 0, 0, 1, 3],
    }
}

pub fn next_packet(r: &mut Random, seen: &[Past]) -> (Direction, u32, Frame) {
    let (direction, ifindex, mut frame) = unmarked(r, seen);
    if direction == Direction::Egress && frame.bytes.len() >= 12 && !r.one_in(12) {
        frame.bytes[6..12].copy_from_slice(&mac_of(ifindex));
    }
    if r.one_in(25) {
        frame.mark = r.of(&[MARK_PROBE, MARK_PROBE, MARK_OURS, 7]);
    }
    (direction, ifindex, frame)
}

fn unmarked(r: &mut Random, seen: &[Past]) -> (Direction, u32, Frame) {
    if !seen.is_empty() && !r.one_in(4) {
        let past = &seen[seen.len() - 1 - r.below(seen.len().min(4) as u64) as usize];
        if let Some((direction, ifindex, mut bytes)) = next_of_flow(r, past) {
            if r.one_in(20) {
                damage(r, &mut bytes);
            }
            return (direction, ifindex, Frame { bytes, ..Frame::default() });
        }
    }
    let mut bytes = if r.one_in(8) { random_neighbor(r) } else { random_packet(r).bytes() };
    if r.one_in(4) {
        damage(r, &mut bytes);
    }
    let segment = if r.one_in(10) { r.of(&[100, 1400]) } else { 0 };
    let direction = if r.one_in(6) { Direction::Ingress } else { Direction::Egress };
    (direction, r.of(&[CLIENT, CLIENT, CLIENT, CLIENT, NEAR]), Frame { bytes, segment, ..Frame::default() })
}
