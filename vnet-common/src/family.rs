//! Where the address families differ.

use crate::addr::{Address, V4, V6};
use crate::answer;
use crate::endpoint::EndpointRow;
use crate::flow::Work;
use crate::packet::Packet;
use crate::parse::{self, Headers, protocol};
use crate::pipeline::related::Quoted;
use crate::pipeline::{Maps, neighbor};

/// An address, and how its family does things.
pub trait Family: Address {
    /// Headers as most packets have them.
    fn plain<P: Packet>(p: &P) -> Option<Headers<Self>>;
    /// All headers; says if they are well-formed.
    fn parse<P: Packet>(p: &P, w: &mut Work<Self>) -> bool;
    /// Is this ICMP type an error's?
    fn is_error(kind: u8) -> bool;
    /// Does an error of this type and code say that the destination cannot be reached? That a packet is too big does not.
    fn is_unreachable(kind: [u8; 2]) -> bool;
    /// The packet at `at`; `None` for a later fragment, whose ports are in another.
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
    /// RFC 792, RFC 1122 §3.2.2.1: all codes but "fragmentation needed".
    #[inline(always)]
    fn is_unreachable([kind, code]: [u8; 2]) -> bool {
        kind == 3 && code != 4
    }
    #[inline(always)]
    fn quoted<P: Packet>(p: &P, at: usize) -> Option<Quoted<Self>> {
        let [first, _] = p.read(at)?;
        let [_, protocol] = p.read(at + 8)?;
        if u16::from_be_bytes(p.read(at + 6)?) & 0x1fff != 0 {
            return None;
        }
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
    fn is_unreachable([kind, _]: [u8; 2]) -> bool {
        kind == 1
    }
    #[inline(always)]
    fn quoted<P: Packet>(p: &P, at: usize) -> Option<Quoted<Self>> {
        let [mut protocol, _] = p.read(at + 6)?;
        let mut l4 = at + 40;
        if protocol == protocol::FRAGMENT {
            let [next, _, high, low] = p.read(l4)?;
            if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                return None;
            }
            (protocol, l4) = (next, l4 + 8);
        }
        let (src, dst) = (V6::of(p.read(at + 8)?, p.read(at + 16)?), V6::of(p.read(at + 24)?, p.read(at + 32)?));
        Some(Quoted { src, dst, protocol, l4 })
    }
    #[inline(always)]
    fn neighbor<P: Packet, M: Maps>(p: &mut P, m: &M, h: &Headers<Self>, ep: &EndpointRow) -> bool {
        h.protocol == protocol::ICMPV6 && !h.fragment && h.dport == answer::SOLICITATION && neighbor::neighbor(p, m, h, ep)
    }
}
