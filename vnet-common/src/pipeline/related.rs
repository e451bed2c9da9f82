//! ICMP errors about flows that may be.
//!
//! Of a balanced flow the error quotes the packet as the member's side has it, where the client knows the VIP only, and the other way round. So what
//! is quoted is rewritten as the flow's packets are: path MTU discovery and "port unreachable" work through a VIP. The error itself comes from
//! whoever sent it; from the member, it comes from the VIP.

use super::Maps;
use crate::answer;
use crate::checksum::{self, Field};
use crate::endpoint::EndpointRow;
use crate::family::Family;
use crate::flow::track::Treatment;
use crate::flow::{FlowKey, FlowMaps, Table, Work, flags};
use crate::judge::Judge;
use crate::lb::MemberEvent;
use crate::packet::Packet;
use crate::parse::{ETH, Headers, protocol};
use crate::rewrite::{Side, dst_in, src_in};
use crate::verdict::{Direction, Reason};

/// Where the packet that an error quotes starts in the frame. So many bits: the verifier must see that it is not negative.
#[inline(always)]
const fn quote_at<A: Family>(h: &Headers<A>) -> usize {
    (h.l4 & 0x7ff) + 8
}

/// Is it a whole ICMP error?
#[inline(always)]
pub fn is_error<A: Family>(h: &Headers<A>) -> bool {
    h.is_icmp() && !h.fragment && A::is_error(h.dport[0])
}

/// Is it an ICMP error about a packet of a flow that may be? The packet that it quotes went the other way, so the flow's entry for this
/// way has its tuple turned round. What that entry says is then in [`Work::treatment`].
#[inline(never)]
pub fn is_related<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &P,
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
) -> bool {
    let h = &w.headers;
    if !is_error(h) {
        return false;
    }
    let Some(quoted) = A::quoted(p, quote_at(h)) else { return false };
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
        // Of a hairpin the endpoint answers the reverse entry's packets too.
        w.spare.direction = Direction::Ingress as u8;
        let turned = w.seen.key.direction == Direction::Egress as u8 && found(&w.spare, &mut w.other);
        if !turned || w.other.flags & flags::HAIRPIN == 0 {
            return false;
        }
    }
    w.treatment = Treatment { rewrite: w.other.rewrite, member: w.other.member, flags: w.other.flags };
    w.reason = Reason::Related;
    if w.other.generation == generation {
        return true;
    }
    w.partner = w.spare.partner(&w.other.rewrite);
    found(&w.partner, &mut w.other) && w.other.generation == generation
}

/// Counts a flow whose member cannot be reached, as the related error at hand says: once, however many packets are answered so.
#[inline(never)]
pub fn note_unreachable<A: Family, M: Maps + FlowMaps<A>>(m: &M, w: &Work<A>) -> bool {
    let balanced = w.treatment.flags & flags::NAT != 0;
    if !balanced || w.treatment.flags & flags::UNREACHABLE != 0 {
        return false;
    }
    m.member_event(w.treatment.member, MemberEvent::Unreachable);
    for table in [Table::Main, Table::HalfOpen] {
        m.update(table, &w.spare, |e| e.flags |= flags::UNREACHABLE);
    }
    true
}

/// Rewrites a related error as [`Work::treatment`] says. [`Side::Source`]: it goes to the client, about what the client sent; else it is the
/// client's, about what that got.
#[inline(always)]
pub fn rewrite<A: Family, P: Packet>(p: &mut P, w: &Work<A>, side: Side) -> Option<()> {
    let (h, r, at) = (&w.headers, &w.treatment.rewrite, quote_at(&w.headers));
    let quoted = A::quoted(p, at)?;
    let (old, old_in, ports) = match side {
        Side::Source => (quoted.dst, dst_in::<A>(), [r.client_port, r.port]),
        Side::Destination => (quoted.src, src_in::<A>(), [r.port, r.client_port]),
    };
    let hairpin = w.treatment.flags & flags::HAIRPIN != 0;
    let addresses = if hairpin { 0 } else { checksum::diff(&old, &r.addr) };
    if hairpin {
        quoted.dst.write(p, at + src_in::<A>())?;
        quoted.src.write(p, at + dst_in::<A>())?;
    } else {
        if A::VERSION == 4 {
            let c: [u8; 2] = p.read(at + 10)?;
            p.write(at + 10, checksum::updated(c, addresses))?;
        }
        r.addr.write(p, at + old_in)?;
    }
    let old_ports: [u8; 4] = p.read(quoted.l4)?;
    let [[a, b], [c, d]] = ports;
    p.write(quoted.l4, [a, b, c, d])?;
    let ports = checksum::add(!u32::from_ne_bytes(old_ports), u32::from_ne_bytes([a, b, c, d]));

    // By how much the sum of what the error's checksum covers has changed: a quoted IPv4 header evens itself out.
    let (field, l4) = quoted_checksum(p, &quoted, answer::ip_end::<P, A>(p)?, [addresses, ports])?;
    let mut covered = if A::VERSION == 4 { l4 } else { checksum::add(l4, addresses) };
    let named = match side {
        // Its own addresses are the caller's to swap.
        _ if hairpin => None,
        Side::Source if h.src == old => Some(ETH + src_in::<A>()),
        Side::Source => None,
        Side::Destination => Some(ETH + dst_in::<A>()),
    };
    if let Some(named) = named {
        r.addr.write(p, named)?;
        if A::VERSION == 4 {
            let c: [u8; 2] = p.read(ETH + 10)?;
            p.write(ETH + 10, checksum::updated(c, addresses))?;
        } else {
            covered = checksum::add(covered, addresses);
        }
    }
    let at = quote_at(h) - 6;
    if field == Some(Field::Complete) {
        // As for the quoted field: what the kernel has summed up already follows.
        return p.l4_checksum(at, covered, true, false, A::VERSION == 6);
    }
    let c: [u8; 2] = p.read(at)?;
    p.write(at, checksum::updated(c, covered))
}

/// Updates the L4 checksum of the packet that is quoted, if there is one up to `end`: gives its kind, and by how much the sum of all from the
/// quoted L4 header on has changed. Of a packet that our own programs made into an error (see [`crate::answer`]) the device may still complete
/// the one that is quoted.
#[inline(always)]
fn quoted_checksum<A: Family, P: Packet>(
    p: &mut P,
    quoted: &Quoted<A>,
    end: u32,
    [addresses, ports]: [u32; 2],
) -> Option<(Option<Field>, u32)> {
    let udp = quoted.protocol == protocol::UDP;
    let at = quoted.l4 + if udp { 6 } else { 16 };
    if at as u32 + 2 > end || (udp && p.read(at) == Some([0; 2])) {
        return Some((None, ports));
    }
    let field = match checksum::replace(p, at, udp, A::VERSION == 6, addresses, ports)? {
        Field::Partial => Field::Partial,
        Field::Complete | Field::Unknown => Field::Complete,
    };
    Some((Some(field), !addresses))
}

/// The start of a packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// IP protocol number.
    pub protocol: u8,
    /// Where its L4 header starts in the frame.
    pub l4: usize,
}
