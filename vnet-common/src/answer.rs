//! Turning a packet into the answer that a host would give to it, to be sent back where it came from.
//!
//! Only packets without IP options and extension headers are answered. An answer is the sender's own packet, cut down and
//! turned round; where the device or the kernel is still to complete a checksum in it (see [`crate::checksum::Field`]), the
//! answer is made so that this gives the right sum.

use crate::addr::{Address, V4, V6};
use crate::checksum::{self, Field};
use crate::packet::Packet;
use crate::parse::{ETH, Headers, protocol, tcp};

/// TTL and hop limit of answers; neighbour advertisements must have 255.
const TTL: u8 = 64;

/// Swaps the MAC addresses.
#[inline(always)]
pub fn turn_round<P: Packet>(p: &mut P) -> Option<()> {
    let m: [u8; 12] = p.read(0)?;
    p.write(0, [m[6], m[7], m[8], m[9], m[10], m[11], m[0], m[1], m[2], m[3], m[4], m[5]])
}

/// May the packet be refused aloud? Not if it came to all on the link, or from no single host; nor if it is itself an error, or a fragment: two
/// that answer each other would never end (RFC 1122 §3.2.2, RFC 4443 §2.4).
#[inline(always)]
fn may_be_refused<P: Packet, A: Address>(p: &P, h: &Headers<A>) -> bool {
    let first = h.src.widen()[0];
    let one_host = if A::VERSION == 4 { first != 0 && first < 224 } else { first != 0xff && h.src != A::default() };
    let plain = h.is_plain() && !h.fragment && !is_error(h);
    one_host && plain && p.read::<2>(0).is_some_and(|mac| mac[0] & 1 == 0)
}

/// An ICMP error: unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792); of ICMPv6 all below 128 (RFC 4443 §2.1).
#[inline(always)]
fn is_error<A: Address>(h: &Headers<A>) -> bool {
    let kind = h.dport[0];
    h.is_icmp() && if A::VERSION == 4 { matches!(kind, 3..=5 | 11 | 12) } else { kind < 128 }
}

/// Where the IP packet ends in the frame: a short frame is padded behind it.
#[inline(always)]
pub fn ip_end<P: Packet, A: Address>(p: &P) -> Option<u32> {
    let (at, before) = if A::VERSION == 4 { (ETH + 2, ETH as u32) } else { (ETH + 4, ETH as u32 + 40) };
    let len = u32::from(u16::from_be_bytes(p.read(at)?));
    // A length of 0 is a segmentation candidate over 64 KiB (BIG TCP).
    Some(if len == 0 { p.size() } else { len + before })
}

/// Writes an IP header of 20 or 40 bytes from `src` to `dst`.
#[inline(always)]
fn ip_header<P: Packet, A: Address>(p: &mut P, src: &A, dst: &A, protocol: u8, payload: u16, ttl: u8) -> Option<()> {
    if A::VERSION == 4 {
        let total = (payload + 20).to_be_bytes();
        let (s, d) = (src.widen(), dst.widen());
        let mut b =
            [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, ttl, protocol, 0, 0, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]];
        let c = (!checksum::fold(checksum::sum(&b))).to_ne_bytes();
        (b[10], b[11]) = (c[0], c[1]);
        p.write(ETH, b)
    } else {
        let n = payload.to_be_bytes();
        p.write(ETH, [0x60, 0, 0, 0, n[0], n[1], protocol, ttl])?;
        src.write(p, ETH + 8)?;
        dst.write(p, ETH + 24)
    }
}

/// The pseudo-header's sum (RFC 9293 §3.1, RFC 8200 §8.1).
#[inline(always)]
fn pseudo<A: Address>(src: &A, dst: &A, protocol: u8, payload: u16) -> u32 {
    let rest = u32::from(u16::from_ne_bytes([0, protocol])) + u32::from(payload.to_be());
    checksum::add(checksum::add(src.sum(), dst.sum()), rest)
}

/// Finds out what the L4 checksum field holds; its value is of no use afterwards.
#[inline(always)]
fn probe<P: Packet, A: Address>(p: &mut P, h: &Headers<A>) -> Option<(Field, [u8; 2])> {
    let at = h.l4_checksum();
    let old: [u8; 2] = p.read(at)?;
    if h.is_udp() && old == [0, 0] {
        return Some((Field::Complete, old));
    }
    // Any difference other than 0 and 0xffff tells the two kinds apart.
    let kind = checksum::replace_pseudo(p, at, old, h.is_udp(), A::VERSION == 6, 1)?;
    p.write(at, old)?;
    Some((kind, old))
}

/// Makes a TCP segment into the reset that a host without such a connection sends (RFC 9293 §3.10.7.1).
/// `None` also for a reset, which is never answered.
#[inline(always)]
pub fn reset<P: Packet, A: Address>(p: &mut P, h: &Headers<A>) -> Option<()> {
    if !may_be_refused(p, h) || h.tcp & tcp::RST != 0 {
        return None;
    }
    let t: [u8; 14] = p.read(h.l4)?;
    let payload = ip_end::<P, A>(p)?.checked_sub(h.l4 as u32 + (u32::from(t[12] >> 4) << 2))?;
    let (kind, _) = probe(p, h)?;
    p.set_len(h.l4 as u32 + 20)?;
    turn_round(p)?;
    ip_header(p, &h.dst, &h.src, protocol::TCP, 20, TTL)?;

    let (sequence, acknowledge, flags) = if h.tcp & tcp::ACK != 0 {
        ([t[8], t[9], t[10], t[11]], [0; 4], tcp::RST)
    } else {
        let taken = payload + u32::from(h.tcp & tcp::SYN != 0) + u32::from(h.tcp & tcp::FIN != 0);
        let next = u32::from_be_bytes([t[4], t[5], t[6], t[7]]).wrapping_add(taken);
        ([0; 4], next.to_be_bytes(), tcp::RST | tcp::ACK)
    };
    let (s, a) = (sequence, acknowledge);
    let mut b = [
        h.dport[0], h.dport[1], h.sport[0], h.sport[1], s[0], s[1], s[2], s[3], a[0], a[1], a[2], a[3], 0x50, flags, 0, 0, 0, 0,
        0, 0,
    ];
    let pseudo = pseudo(&h.dst, &h.src, protocol::TCP, 20);
    let c = match kind {
        Field::Partial => checksum::fold(pseudo),
        Field::Complete | Field::Unknown => !checksum::fold(checksum::add(pseudo, checksum::sum(&b))),
    };
    [b[16], b[17]] = c.to_ne_bytes();
    p.write(h.l4, b)
}

/// An ICMP or ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nobody listens on the port, or speaks the protocol.
    Unreachable,
    /// A policy forbids it (RFC 1812 §5.2.7.1, RFC 4443 §3.1).
    Prohibited,
    /// The packet is larger than this MTU.
    TooBig(u16),
}

/// Makes a packet into the ICMP (RFC 792, RFC 1191) or ICMPv6 (RFC 4443) error about it, from the address it was sent to.
/// It quotes the IP header and 8 bytes, of TCP 20.
#[inline(always)]
pub fn icmp_error<P: Packet, A: Address>(p: &mut P, h: &Headers<A>, error: Error) -> Option<()> {
    if !may_be_refused(p, h) {
        return None;
    }
    let has_checksum = h.is_tcp() || h.is_udp();
    let field = if has_checksum { probe(p, h)? } else { (Field::Complete, [0; 2]) };
    let ip = A::PLAIN_L4 - ETH;
    let quoted_l4 = if h.is_tcp() { 20 } else { 8 };
    let quote = ip + quoted_l4;
    p.set_len((ETH + quote) as u32)?;
    let l4_sum = match field {
        // The kernel will complete the quoted checksum; all from there on then sums to the negated seed.
        (Field::Partial, seed) => u32::from(!u16::from_ne_bytes(seed)),
        _ if h.is_tcp() => checksum::sum(&p.read::<20>(h.l4)?),
        _ => checksum::sum(&p.read::<8>(h.l4)?),
    };
    let ip_sum = if A::VERSION == 4 {
        checksum::sum(&p.read::<20>(ETH)?)
    } else {
        let fixed: [u8; 8] = p.read(ETH)?;
        checksum::add(checksum::add(checksum::sum(&fixed), h.src.sum()), h.dst.sum())
    };

    let macs: [u8; 14] = p.read(0)?;
    p.push_front(ip as u32 + 8)?;
    p.write(0, macs)?;
    turn_round(p)?;
    let (number, payload) = (if A::VERSION == 4 { protocol::ICMP } else { protocol::ICMPV6 }, (8 + quote) as u16);
    ip_header(p, &h.dst, &h.src, number, payload, TTL)?;

    let head = icmp_head::<A>(error, has_checksum);
    let mut s = checksum::add(checksum::add(checksum::sum(&head), ip_sum), l4_sum);
    if A::VERSION == 6 {
        s = checksum::add(s, pseudo(&h.dst, &h.src, number, payload));
    }
    let c = (!checksum::fold(s)).to_ne_bytes();
    p.write(ETH + ip, [head[0], head[1], c[0], c[1], head[4], head[5], head[6], head[7]])
}

#[inline(always)]
fn icmp_head<A: Address>(error: Error, has_ports: bool) -> [u8; 8] {
    let (kind, code, mtu) = match (A::VERSION, error) {
        (4, Error::Unreachable) => (3, if has_ports { 3 } else { 2 }, 0),
        (4, Error::TooBig(mtu)) => (3, 4, mtu),
        (4, Error::Prohibited) => (3, 13, 0),
        (_, Error::Prohibited) => (1, 1, 0),
        (_, Error::Unreachable) if has_ports => (1, 4, 0),
        // RFC 4443 has no "protocol unreachable": an unknown next header is a parameter problem at its place.
        (_, Error::Unreachable) => (4, 1, 6),
        (_, Error::TooBig(mtu)) => (2, 0, mtu),
    };
    let m = mtu.to_be_bytes();
    [kind, code, 0, 0, 0, 0, m[0], m[1]]
}

/// Makes an echo request into its reply.
#[inline(always)]
pub fn echo<P: Packet, A: Address>(p: &mut P, h: &Headers<A>) -> Option<()> {
    if !h.is_plain() {
        return None;
    }
    let reply = if A::VERSION == 4 { 0 } else { 129 };
    let b: [u8; 4] = p.read(h.l4)?;
    let c = checksum::updated([b[2], b[3]], checksum::diff16([b[0], b[1]], [reply, b[1]]));
    p.write(h.l4, [reply, b[1], c[0], c[1]])?;
    turn_round(p)?;
    if A::VERSION == 4 {
        // Same addresses the other way round: the header's sum changes by the TTL alone.
        let (s, d) = (h.src.widen(), h.dst.widen());
        let c: [u8; 2] = p.read(ETH + 10)?;
        p.write(ETH + 10, checksum::updated(c, checksum::diff16([h.ttl, h.protocol], [TTL, h.protocol])))?;
        p.write(ETH + 8, [TTL, h.protocol])?;
        p.write(ETH + 12, [d[0], d[1], d[2], d[3], s[0], s[1], s[2], s[3]])
    } else {
        p.write(ETH + 6, [h.protocol, TTL])?;
        h.dst.write(p, ETH + 8)?;
        h.src.write(p, ETH + 24)
    }
}

/// The IPv4 address that an ARP request (RFC 826) asks for; `None` for anything else, and for probes (RFC 5227).
#[inline(always)]
pub fn arp_target<P: Packet>(p: &P) -> Option<V4> {
    let b: [u8; 28] = p.read(ETH)?;
    let request = b[..8] == [0, 1, 0x08, 0, 6, 4, 0, 1];
    let probe = b[14..18] == [0; 4];
    (request && !probe).then_some(V4::from([b[24], b[25], b[26], b[27]]))
}

/// Makes an ARP request into the reply that its target has `mac`.
#[inline(always)]
pub fn arp<P: Packet>(p: &mut P, mac: [u8; 6]) -> Option<()> {
    let b: [u8; 28] = p.read(ETH)?;
    let m = mac;
    p.write(0, [b[8], b[9], b[10], b[11], b[12], b[13], m[0], m[1], m[2], m[3], m[4], m[5]])?;
    p.write(ETH + 6, [0, 2, m[0], m[1], m[2], m[3], m[4], m[5], b[24], b[25], b[26], b[27]])?;
    p.write(ETH + 18, [b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15], b[16], b[17]])
}

/// ICMPv6 type and code of a neighbour solicitation.
pub const SOLICITATION: [u8; 2] = [135, 0];

/// The IPv6 address that a neighbour solicitation (RFC 4861 §4.3) asks for; `None` for anything else, and for duplicate
/// address detection.
#[inline(always)]
pub fn solicited<P: Packet>(p: &P, h: &Headers<V6>) -> Option<V6> {
    if h.protocol != protocol::ICMPV6 || h.dport != SOLICITATION || h.ttl != 255 || h.src == V6::default() || !h.is_plain() {
        return None;
    }
    Some(V6::of(p.read(h.l4 + 8)?, p.read(h.l4 + 16)?))
}

/// Makes a neighbour solicitation into the advertisement (RFC 4861 §4.4) that `target` has `mac`.
#[inline(always)]
pub fn advertise<P: Packet>(p: &mut P, h: &Headers<V6>, target: V6, mac: [u8; 6]) -> Option<()> {
    const SIZE: u16 = 32;
    p.set_len(h.l4 as u32 + u32::from(SIZE))?;
    let from: [u8; 6] = p.read(6)?;
    let (f, m) = (from, mac);
    p.write(0, [f[0], f[1], f[2], f[3], f[4], f[5], m[0], m[1], m[2], m[3], m[4], m[5]])?;
    ip_header(p, &target, &h.src, protocol::ICMPV6, SIZE, 255)?;
    // Solicited and override; not a router.
    let head = [136, 0, 0, 0, 0x60, 0, 0, 0];
    let option = [2, 1, m[0], m[1], m[2], m[3], m[4], m[5]];
    let body = checksum::add(checksum::add(checksum::sum(&head), checksum::sum(&option)), target.sum());
    let c = (!checksum::fold(checksum::add(body, pseudo(&target, &h.src, protocol::ICMPV6, SIZE)))).to_ne_bytes();
    p.write(h.l4, [head[0], head[1], c[0], c[1], head[4], head[5], head[6], head[7]])?;
    target.write(p, h.l4 + 8)?;
    p.write(h.l4 + 24, option)
}
