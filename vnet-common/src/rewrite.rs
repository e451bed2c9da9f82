//! Writing a flow's new addresses and ports into a packet.

use crate::addr::Address;
use crate::checksum;
use crate::flow::Rewrite;
use crate::packet::Packet;
use crate::parse::{ETH, Headers};

/// Which side of the packet is the balanced one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Client → VIP becomes client → member.
    Destination,
    /// Member → client becomes VIP → client.
    Source,
}

/// Rewrites one side's address and port and the other side's port, and every checksum. TCP and UDP only.
#[inline(always)]
pub fn apply<P: Packet, A: Address>(p: &mut P, h: &Headers<A>, r: &Rewrite<A>, side: Side) -> Option<()> {
    let (sport, dport) = match side {
        Side::Destination => (r.client_port, r.port),
        Side::Source => (r.port, r.client_port),
    };
    let old_ports = [h.sport[0], h.sport[1], h.dport[0], h.dport[1]];
    let new_ports = [sport[0], sport[1], dport[0], dport[1]];
    let ports =
        if old_ports == new_ports { 0 } else { checksum::add(!u32::from_ne_bytes(old_ports), u32::from_ne_bytes(new_ports)) };

    let addresses = address(p, h, &r.addr, side)?;
    if ports != 0 {
        p.write(h.l4, new_ports)?;
    }
    checksum::replace(p, h.l4_checksum(), h.is_udp(), A::VERSION == 6, addresses, ports)?;
    Some(())
}

/// Rewrites one side's address, and the IP header's checksum; gives by how much the sum of the addresses changed. Enough for a fragment that is not
/// the first: the datagram's checksum is in that.
#[inline(always)]
pub fn address<P: Packet, A: Address>(p: &mut P, h: &Headers<A>, new: &A, side: Side) -> Option<u32> {
    let (old, at) = match side {
        Side::Destination => (h.dst, ETH + dst_in::<A>()),
        Side::Source => (h.src, ETH + src_in::<A>()),
    };
    let diff = checksum::diff(&old, new);
    if A::VERSION == 4 {
        let c: [u8; 2] = p.read(ETH + 10)?;
        p.write(ETH + 10, checksum::updated(c, diff))?;
    }
    new.write(p, at)?;
    Some(diff)
}

/// Rewrites the ports alone. A flow whose client is its member has both addresses swapped besides, which no checksum notices.
#[inline(always)]
pub fn ports<P: Packet, A: Address>(p: &mut P, h: &Headers<A>, r: &Rewrite<A>, side: Side) -> Option<()> {
    let (sport, dport) = match side {
        Side::Destination => (r.client_port, r.port),
        Side::Source => (r.port, r.client_port),
    };
    let new = [sport[0], sport[1], dport[0], dport[1]];
    let old = [h.sport[0], h.sport[1], h.dport[0], h.dport[1]];
    p.write(h.l4, new)?;
    let diff = checksum::add(!u32::from_ne_bytes(old), u32::from_ne_bytes(new));
    checksum::replace(p, h.l4_checksum(), h.is_udp(), A::VERSION == 6, 0, diff)?;
    Some(())
}

/// Swaps source and destination address.
#[inline(always)]
pub fn swap_addresses<P: Packet, A: Address>(p: &mut P, h: &Headers<A>) -> Option<()> {
    h.dst.write(p, ETH + src_in::<A>())?;
    h.src.write(p, ETH + dst_in::<A>())
}

/// Where the source address is in the IP header.
pub const fn src_in<A: Address>() -> usize {
    if A::VERSION == 4 { 12 } else { 8 }
}
/// Where the destination address is in the IP header.
pub const fn dst_in<A: Address>() -> usize {
    if A::VERSION == 4 { 16 } else { 24 }
}

/// One hop less to live, on a path that the host would have routed.
#[inline(always)]
pub fn decrement_ttl<P: Packet, A: Address>(p: &mut P, h: &Headers<A>) -> Option<()> {
    if A::VERSION == 4 {
        let old = [h.ttl, h.protocol];
        let new = [h.ttl.wrapping_sub(1), h.protocol];
        let c: [u8; 2] = p.read(ETH + 10)?;
        p.write(ETH + 10, checksum::updated(c, checksum::diff16(old, new)))?;
        p.write(ETH + 8, new)
    } else {
        let b: [u8; 2] = p.read(ETH + 6)?;
        p.write(ETH + 6, [b[0], h.ttl.wrapping_sub(1)])
    }
}
