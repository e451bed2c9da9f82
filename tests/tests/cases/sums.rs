//! Checksums, independently of the pipeline: etherparse's.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// The checksum of bytes that hold their own field as zero.
pub fn plain(bytes: &[u8]) -> [u8; 2] {
    Sum16BitWords::new().add_slice(bytes).ones_complement().to_ne_bytes()
}

fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Sum16BitWords {
    let sum = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => Sum16BitWords::new().add_4bytes(s.octets()).add_4bytes(d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => Sum16BitWords::new().add_16bytes(s.octets()).add_16bytes(d.octets()),
        mixed => panic!("{mixed:?}: two families"),
    };
    sum.add_2bytes([0, protocol]).add_4bytes((len as u32).to_be_bytes())
}

/// The checksum of an L4 header and payload; of ICMP without a pseudo-header.
pub fn l4(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> [u8; 2] {
    let start = if protocol == 1 { Sum16BitWords::new() } else { pseudo_header(src, dst, protocol, bytes.len()) };
    start.clone().add_slice(bytes).ones_complement().to_ne_bytes()
}

/// The pseudo-header's sum alone: what a partial checksum field holds.
pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> [u8; 2] {
    (!pseudo_header(src, dst, protocol, len).ones_complement()).to_ne_bytes()
}

/// Completes a partial checksum as a device does: the sum from `start` on goes into the field.
pub fn complete(frame: &mut [u8], start: usize, field: usize, udp: bool) {
    let mut sum = plain(&frame[start..]);
    if udp && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    frame[field..field + 2].copy_from_slice(&sum);
}

/// Recomputes every checksum of a frame; `Ok` also for what has none.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let s = SlicedPacket::from_ethernet(frame).map_err(|e| format!("not a whole packet: {e}"))?;
    let (src, dst, fragment): (IpAddr, IpAddr, bool) = match &s.net {
        Some(NetSlice::Ipv4(ip)) => {
            let h = ip.header();
            if h.to_header().calc_header_checksum() != h.header_checksum() {
                return Err(format!("IPv4 header checksum {:#06x}", h.header_checksum()));
            }
            (h.source_addr().into(), h.destination_addr().into(), ip.is_payload_fragmented())
        }
        Some(NetSlice::Ipv6(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.is_payload_fragmented())
        }
        _ => return Ok(()),
    };
    if fragment {
        return Ok(());
    }
    let (protocol, bytes) = match &s.transport {
        Some(TransportSlice::Tcp(t)) => (6, t.slice()),
        Some(TransportSlice::Udp(u)) if u.checksum() == 0 && src.is_ipv4() => return Ok(()),
        Some(TransportSlice::Udp(u)) => (17, u.slice()),
        Some(TransportSlice::Icmpv4(i)) => (1, i.slice()),
        Some(TransportSlice::Icmpv6(i)) => (58, i.slice()),
        _ => return Ok(()),
    };
    // With the right checksum in it, the sum comes out as zero.
    match l4(src, dst, protocol, bytes) {
        [0, 0] => Ok(()),
        off => Err(format!("checksum of protocol {protocol} is off by {off:02x?}")),
    }
}
