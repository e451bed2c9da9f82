//! Headers, copied out of the packet by value.
//!
//! IPv4 with options, IPv6 with extension headers (RFC 8200: hop-by-hop, routing, destination options, fragment), TCP,
//! UDP, ICMP. A header that is cut off or contradicts itself is malformed: `None`. The first fragment of a datagram has all of them
//! (RFC 7112, RFC 1858); later ones have no L4 header, and alone assemble to nothing.

use crate::addr::{Address, V4, V6};
use crate::packet::Packet;

/// Length of an Ethernet header.
pub const ETH: usize = 14;
/// Extension headers that are followed in one packet; more are malformed for us.
const MAX_EXTENSIONS: usize = 4;

/// An L4 header that starts further back in the frame is malformed for us: what reads from there on has an offset that the verifier knows a
/// bound of.
const MAX_L4: usize = 0x400;

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6's fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// EtherTypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// ARP.
    pub const ARP: [u8; 2] = [0x08, 0x06];
    /// IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
}

/// TCP flags, as in the 14th byte of the header.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 1 << 1;
    /// Ends a connection at once.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 1 << 4;
    /// Those of packets that open or end a connection: a flow cache does not see them.
    pub const EDGES: u8 = SYN | FIN | RST;
}

/// What the datapath needs of a packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Headers<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, big-endian; zero for other protocols than TCP and UDP, and for later fragments. ICMP: the 5th and 6th byte, an echo's
    /// identifier.
    pub sport: [u8; 2],
    /// Destination port, likewise. ICMP: type and code; of a later fragment [`NO_TYPE`].
    pub dport: [u8; 2],
    /// IP protocol number of the L4 header.
    pub protocol: u8,
    /// TCP flags, or 0.
    pub tcp: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Part of a fragmented datagram.
    pub fragment: bool,
    /// And not the first part: it has no L4 header.
    pub later: bool,
    /// The first part, but with further headers before L4, which the others do not name and may write over: they are not to follow it.
    pub alone: bool,
    /// The identification of that datagram. Of a whole packet anything.
    pub id: u32,
    /// IPv4: the sender asks not to fragment. IPv6: always.
    pub dont_fragment: bool,
    /// Where the L4 header starts in the frame.
    pub l4: usize,
}

impl<A: Address> Headers<A> {
    /// Where the L4 checksum is in the frame; TCP and UDP only.
    #[inline(always)]
    pub fn l4_checksum(&self) -> usize {
        self.l4 + if self.protocol == protocol::TCP { 16 } else { 6 }
    }
    /// Is it UDP?
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.protocol == protocol::UDP
    }
    /// Is it TCP?
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == protocol::TCP
    }
    /// Is it ICMP or ICMPv6?
    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.protocol == if A::VERSION == 4 { protocol::ICMP } else { protocol::ICMPV6 }
    }
    /// An echo request, or (`reply`) an answer to one. Another code than 0 makes it something else.
    #[inline(always)]
    pub fn is_echo(&self, reply: bool) -> bool {
        let (request, answer) = if A::VERSION == 4 { (8, 0) } else { (128, 129) };
        self.is_icmp() && self.dport == [if reply { answer } else { request }, 0]
    }
    /// Does it answer the opening of a TCP connection? One of no known connection tells that the other side opened it.
    #[inline(always)]
    pub fn is_opened(&self) -> bool {
        self.is_tcp() && self.tcp & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
    }
    /// Is it the first fragment of a datagram, which the others may follow?
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        self.fragment && !self.later && !self.alone
    }
    /// No options or extension headers between the IP header and L4.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.l4 == A::PLAIN_L4
    }
}

/// What stands for type and code of an ICMP packet whose header is in another fragment: type 255 is reserved (RFC 3692 §4, RFC 4443 §2.1), and
/// type 0 is an echo's answer.
pub const NO_TYPE: [u8; 2] = [255; 2];

/// Fills in what stands for the L4 header of a later fragment, whose place in the datagram is counted in units of 8 bytes. One that would write over
/// the TCP header that the first brought is malformed (RFC 3128).
#[inline(always)]
fn no_l4<A: Address>(h: &mut Headers<A>, place: u16) -> Option<()> {
    h.later = true;
    if matches!(h.protocol, protocol::ICMP | protocol::ICMPV6) {
        h.dport = NO_TYPE;
    }
    (h.protocol != protocol::TCP || place >= 3).then_some(())
}

/// Fills in what the L4 header says. It must end where the IP packet ends at `end`, or before: padding is no header.
#[inline(always)]
fn parse_l4<P: Packet, A: Address>(p: &P, h: &mut Headers<A>, end: u32) -> Option<()> {
    let room = end.checked_sub(h.l4 as u32)?;
    match h.protocol {
        protocol::TCP => {
            let b: [u8; 20] = p.read(h.l4)?;
            let size = u32::from(b[12] >> 4) << 2;
            if size < 20 || size > room {
                return None;
            }
            (h.sport, h.dport, h.tcp) = ([b[0], b[1]], [b[2], b[3]], b[13]);
        }
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 if room < 8 => return None,
        protocol::UDP => {
            let b: [u8; 8] = p.read(h.l4)?;
            (h.sport, h.dport) = ([b[0], b[1]], [b[2], b[3]]);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let b: [u8; 8] = p.read(h.l4)?;
            (h.sport, h.dport) = ([b[4], b[5]], [b[0], b[1]]);
        }
        _ => {}
    }
    Some(())
}

/// Does a TCP or UDP header start at `l4`, and is it of no packet that opens or ends a connection?
#[inline(always)]
fn is_plain_l4<P: Packet>(p: &P, protocol: u8, l4: usize, room: u32) -> bool {
    if protocol == protocol::UDP {
        return room >= 8;
    }
    let Some([offset, flags]) = p.read(l4 + 12) else { return false };
    let size = u32::from(offset >> 4) << 2;
    protocol == protocol::TCP && size >= 20 && size <= room && flags & tcp::EDGES == 0
}

/// Parses an IPv4 packet as most are.
#[inline(always)]
pub fn plain4<P: Packet>(p: &P) -> Option<Headers<V4>> {
    let [first, _, high, low] = p.read(ETH)?;
    let [o1, o2, ttl, protocol] = p.read(ETH + 6)?;
    let total = u32::from(u16::from_be_bytes([high, low]));
    let fragment = u16::from_be_bytes([o1, o2]) & 0x3fff != 0;
    if first != 0x45 || fragment || total < 20 || total + ETH as u32 > p.size() || !is_plain_l4(p, protocol, ETH + 20, total - 20)
    {
        return None;
    }
    let (src, dst) = (V4::from(p.read(ETH + 12)?), V4::from(p.read(ETH + 16)?));
    Some(plain(src, dst, p.read(ETH + 20)?, protocol, ttl, o1 & 0x40 != 0))
}

/// Parses an IPv6 packet as most are.
#[inline(always)]
pub fn plain6<P: Packet>(p: &P) -> Option<Headers<V6>> {
    let [first, _] = p.read(ETH)?;
    let [high, low, protocol, ttl] = p.read(ETH + 4)?;
    let payload = u32::from(u16::from_be_bytes([high, low]));
    if first >> 4 != 6 || payload == 0 || payload + 40 + ETH as u32 > p.size() || !is_plain_l4(p, protocol, ETH + 40, payload) {
        return None;
    }
    let src = V6::of(p.read(ETH + 8)?, p.read(ETH + 16)?);
    let dst = V6::of(p.read(ETH + 24)?, p.read(ETH + 32)?);
    Some(plain(src, dst, p.read(ETH + 40)?, protocol, ttl, true))
}

/// The headers of a packet as most are. Its TCP flags are none of [`tcp::EDGES`], and are not asked for again.
#[inline(always)]
fn plain<A: Address>(src: A, dst: A, [a, b, c, d]: [u8; 4], protocol: u8, ttl: u8, dont_fragment: bool) -> Headers<A> {
    let (sport, dport) = ([a, b], [c, d]);
    Headers {
        src,
        dst,
        sport,
        dport,
        protocol,
        tcp: 0,
        ttl,
        fragment: false,
        later: false,
        alone: false,
        id: 0,
        dont_fragment,
        l4: A::PLAIN_L4,
    }
}

/// Parses an IPv4 packet whose EtherType said so.
#[inline(always)]
pub fn ipv4<P: Packet>(p: &P) -> Option<Headers<V4>> {
    // Field by field: what is taken out of one large read is copied byte by byte.
    let [first, _] = p.read(ETH)?;
    let header = usize::from(first & 0x0f) << 2;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let total = u32::from(u16::from_be_bytes(p.read(ETH + 2)?));
    // A total length of 0 is a segmentation candidate over 64 KiB (BIG TCP).
    if total != 0 && (total < header as u32 || total + ETH as u32 > p.size()) {
        return None;
    }
    let offset = u16::from_be_bytes(p.read(ETH + 6)?);
    let [ttl, protocol] = p.read(ETH + 8)?;
    let mut h = Headers {
        src: V4::from(p.read(ETH + 12)?),
        dst: V4::from(p.read(ETH + 16)?),
        sport: [0; 2],
        dport: [0; 2],
        protocol,
        tcp: 0,
        ttl,
        fragment: offset & 0x3fff != 0,
        later: false,
        alone: false,
        id: u32::from(u16::from_be_bytes(p.read(ETH + 4)?)),
        dont_fragment: offset & 0x4000 != 0,
        l4: ETH + header,
    };
    if offset & 0x1fff == 0 {
        let end = if total == 0 { p.size() } else { total + ETH as u32 };
        parse_l4(p, &mut h, end)?;
    } else {
        no_l4(&mut h, offset & 0x1fff)?;
    }
    Some(h)
}

/// Parses an IPv6 packet whose EtherType said so.
#[inline(always)]
pub fn ipv6<P: Packet>(p: &P) -> Option<Headers<V6>> {
    // In two reads: 40 bytes by value weigh on the 512-byte stack.
    let b: [u8; 8] = p.read(ETH)?;
    if b[0] >> 4 != 6 {
        return None;
    }
    let payload = u32::from(u16::from_be_bytes([b[4], b[5]]));
    if payload != 0 && payload + 40 + ETH as u32 > p.size() {
        return None;
    }
    let mut h = Headers {
        src: V6::of(p.read(ETH + 8)?, p.read(ETH + 16)?),
        dst: V6::of(p.read(ETH + 24)?, p.read(ETH + 32)?),
        sport: [0; 2],
        dport: [0; 2],
        protocol: b[6],
        tcp: 0,
        ttl: b[7],
        fragment: false,
        later: false,
        alone: false,
        id: 0,
        dont_fragment: true,
        l4: ETH + 40,
    };
    let mut place = 0;
    if !matches!(h.protocol, protocol::TCP | protocol::UDP | protocol::ICMPV6) {
        place = skip_extensions(p, &mut h)?;
        if h.l4 > MAX_L4 {
            return None;
        }
    }
    if place != 0 {
        no_l4(&mut h, place)?;
    } else {
        // As in IPv4; extension headers count as payload.
        let end = if payload == 0 { p.size() } else { payload + 40 + ETH as u32 };
        parse_l4(p, &mut h, end)?;
    }
    Some(h)
}

/// Moves `l4` and `protocol` past the extension headers (RFC 8200 §4); gives the place of what follows in its datagram, in units of 8 bytes.
#[inline(always)]
fn skip_extensions<P: Packet>(p: &P, h: &mut Headers<V6>) -> Option<u16> {
    let mut behind = h.l4;
    for _ in 0..MAX_EXTENSIONS {
        match h.protocol {
            0 | 43 | 60 => {
                let b: [u8; 2] = p.read(h.l4)?;
                h.protocol = b[0];
                h.l4 += (usize::from(b[1]) + 1) << 3;
            }
            protocol::FRAGMENT => {
                let b: [u8; 8] = p.read(h.l4)?;
                h.protocol = b[0];
                h.l4 += 8;
                // An atomic fragment (RFC 6946) is a whole datagram.
                let at = u16::from_be_bytes([b[2], b[3]]);
                behind = h.l4;
                if at & 0xfff9 != 0 {
                    (h.fragment, h.id) = (true, u32::from_be_bytes([b[4], b[5], b[6], b[7]]));
                }
                if at & 0xfff8 != 0 {
                    return Some(at >> 3);
                }
            }
            _ => break,
        }
    }
    h.alone = h.fragment && h.l4 != behind;
    match h.protocol {
        0 | 43 | 60 | protocol::FRAGMENT => None,
        _ => Some(0),
    }
}
