//! Packets: made from what was asked, and told in one line.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use etherparse::{
    EtherType, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, PacketBuilder,
    PacketBuilderStep, SlicedPacket, TcpHeader, TransportSlice,
};
use vnet_common::parse::protocol;

use crate::observe::events::protocol_name;

/// Frames that are taken: an Ethernet header at least, and no more than a device passes on.
const FRAME: std::ops::RangeInclusive<usize> = 14..=16_384;
/// The MAC of whoever has none that is known.
const SOME_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const TTL: u8 = 64;

/// The packet that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Source and destination MAC; zero: not known.
    pub macs: [[u8; 6]; 2],
    /// Source and destination, of one family.
    pub addresses: [IpAddr; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination port; ICMP: the source port is the echo's identifier.
    pub ports: [u16; 2],
    /// TCP flags.
    pub flags: u8,
}

/// TCP flags of letters as [`crate::observe::events::tcp_letters`] has them.
pub fn tcp_flags(letters: &str) -> Option<u8> {
    letters.chars().try_fold(0, |flags, c| Some(flags | 1 << "FSRPAU".find(c.to_ascii_uppercase())?))
}

/// The frame of a packet, without payload, with the right checksums.
pub fn build(w: &Wanted) -> Result<Vec<u8>> {
    let mac = |mac: [u8; 6]| if mac == [0; 6] { SOME_MAC } else { mac };
    let [source, destination] = w.macs.map(mac);
    let number = IpNumber(w.protocol);
    let ip = match w.addresses {
        [IpAddr::V4(src), IpAddr::V4(dst)] => {
            let header = Ipv4Header::new(0, TTL, number, src.octets(), dst.octets()).context("making an IPv4 header")?;
            IpHeaders::Ipv4(header, Default::default())
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: number,
                hop_limit: TTL,
                source: source.octets(),
                destination: destination.octets(),
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        [src, dst] => bail!("{src} and {dst} are addresses of two families"),
    };
    finish(PacketBuilder::ethernet2(source, destination).ip(ip), w)
}

fn finish(step: PacketBuilderStep<IpHeaders>, w: &Wanted) -> Result<Vec<u8>> {
    let (mut frame, [sport, dport]) = (Vec::new(), w.ports);
    let written = match w.protocol {
        protocol::TCP => {
            let bit = |n: u8| w.flags >> n & 1 != 0;
            let mut header = TcpHeader::new(sport, dport, 1, 64_240);
            (header.fin, header.syn, header.rst) = (bit(0), bit(1), bit(2));
            (header.psh, header.ack, header.urg) = (bit(3), bit(4), bit(5));
            header.acknowledgment_number = u32::from(header.ack);
            step.tcp_header(header).write_to_vec(&mut frame, &[])
        }
        protocol::UDP => step.udp(sport, dport).write_to_vec(&mut frame, &[]),
        protocol::ICMP => step.icmpv4_echo_request(sport, 1).write_to_vec(&mut frame, &[]),
        protocol::ICMPV6 => step.icmpv6_echo_request(sport, 1).write_to_vec(&mut frame, &[]),
        other => step.write_to_vec(&mut frame, IpNumber(other), &[]),
    };
    written.map_err(|e| anyhow::anyhow!("{e}")).context("making a packet")?;
    Ok(frame)
}

/// A frame from hexadecimal digits; white space and colons between them do not matter.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b':').collect();
    let value = |digit: u8| char::from(digit).to_digit(16).map(|v| v as u8);
    if !digits.len().is_multiple_of(2) {
        bail!("the frame has half a byte: {} hexadecimal digits", digits.len());
    }
    let frame: Option<Vec<u8>> = digits.chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect();
    let frame = frame.context("the frame is not in hexadecimal digits")?;
    if !FRAME.contains(&frame.len()) {
        bail!("the frame has {} bytes; {} to {} can be explained", frame.len(), FRAME.start(), FRAME.end());
    }
    Ok(frame)
}

/// A frame in one line.
pub fn line(frame: &[u8]) -> String {
    let length = format!("{} bytes", frame.len());
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return format!("{length} that are no well-formed packet");
    };
    let (src, dst, number) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let h = ip.header();
            (h.source_addr().to_string(), h.destination_addr().to_string(), h.protocol().0)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let h = ip.header();
            (h.source_addr().to_string(), h.destination_addr().to_string(), ip.payload().ip_number.0)
        }
        Some(NetSlice::Arp(_)) => return format!("ARP, {length}"),
        None => return format!("EtherType {}, {length}", ether_type(&packet)),
    };
    let name = protocol_name(number);
    let port = |address: &str, port: u16| {
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(t)) => {
            let flags = crate::observe::events::tcp_letters(t.slice().get(13).copied().unwrap_or_default());
            format!("{name} {} > {} [{flags}], {length}", port(&src, t.source_port()), port(&dst, t.destination_port()))
        }
        Some(TransportSlice::Udp(u)) => {
            format!("{name} {} > {}, {length}", port(&src, u.source_port()), port(&dst, u.destination_port()))
        }
        Some(TransportSlice::Icmpv4(i)) => format!("{name} {src} > {dst}, {}, {length}", icmp4(&i.icmp_type())),
        Some(TransportSlice::Icmpv6(i)) => format!("{name} {src} > {dst}, {}, {length}", icmp6(&i.icmp_type())),
        _ => format!("{name} {src} > {dst}, {length}"),
    }
}

fn ether_type(packet: &SlicedPacket<'_>) -> String {
    let number = packet.payload_ether_type().unwrap_or(EtherType(0));
    format!("0x{:04x}", number.0)
}

fn icmp4(kind: &Icmpv4Type) -> String {
    match kind {
        Icmpv4Type::EchoRequest(_) => "echo request".into(),
        Icmpv4Type::EchoReply(_) => "echo reply".into(),
        Icmpv4Type::DestinationUnreachable(h) => format!("destination unreachable (code {})", h.code_u8()),
        Icmpv4Type::Unknown { type_u8, code_u8, .. } => format!("type {type_u8}, code {code_u8}"),
        _ => "another type".into(),
    }
}

fn icmp6(kind: &Icmpv6Type) -> String {
    match kind {
        Icmpv6Type::EchoRequest(_) => "echo request".into(),
        Icmpv6Type::EchoReply(_) => "echo reply".into(),
        Icmpv6Type::DestinationUnreachable(code) => format!("destination unreachable (code {})", code.code_u8()),
        Icmpv6Type::PacketTooBig { mtu } => format!("packet too big (MTU {mtu})"),
        other => format!("type {}, code {}", other.type_u8(), other.code_u8()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(protocol: u8, v6: bool) -> Wanted {
        let addresses = if v6 { ["fd00::1", "fd00::9"] } else { ["10.0.0.1", "10.0.0.9"] };
        let addresses = addresses.map(|a| a.parse().unwrap());
        Wanted { macs: [[2; 6], [0; 6]], addresses, protocol, ports: [40_000, 443], flags: 0x12 }
    }

    #[test]
    fn packets_are_told_as_they_are_made() {
        for (protocol, v6, told) in [
            (protocol::TCP, false, "TCP 10.0.0.1:40000 > 10.0.0.9:443 [SA], 54 bytes"),
            (protocol::TCP, true, "TCP [fd00::1]:40000 > [fd00::9]:443 [SA], 74 bytes"),
            (protocol::UDP, false, "UDP 10.0.0.1:40000 > 10.0.0.9:443, 42 bytes"),
            (protocol::ICMP, false, "ICMP 10.0.0.1 > 10.0.0.9, echo request, 42 bytes"),
            (protocol::ICMPV6, true, "ICMPv6 fd00::1 > fd00::9, echo request, 62 bytes"),
            (47, false, "47 10.0.0.1 > 10.0.0.9, 34 bytes"),
        ] {
            let frame = build(&wanted(protocol, v6)).unwrap();
            assert_eq!(line(&frame), told);
            assert_eq!((&frame[6..12], &frame[..6]), (&[2; 6][..], &SOME_MAC[..]));
            let hex: String = frame.iter().map(|b| format!("{b:02X} ")).collect();
            assert_eq!(from_hex(&hex).unwrap(), frame);
        }
        let mixed = Wanted { addresses: ["10.0.0.1".parse().unwrap(), "fd00::9".parse().unwrap()], ..wanted(6, false) };
        assert!(build(&mixed).unwrap_err().to_string().contains("two families"));
    }

    #[test]
    fn checksums_are_right() {
        for (protocol, v6) in [(6, false), (17, false), (1, false), (6, true), (17, true), (58, true)] {
            let frame = build(&wanted(protocol, v6)).unwrap();
            let packet = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let transport = packet.transport.unwrap();
            let mut again = transport.clone();
            match packet.net.unwrap() {
                etherparse::NetHeaders::Ipv4(ip, _) => {
                    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    again.update_checksum_ipv4(&ip, &[]).unwrap();
                }
                etherparse::NetHeaders::Ipv6(ip, _) => again.update_checksum_ipv6(&ip, &[]).unwrap(),
                etherparse::NetHeaders::Arp(_) => panic!(),
            }
            assert_eq!(transport, again);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_with_the_reason() {
        let refused = |text: &str| from_hex(text).unwrap_err().to_string();
        assert!(refused("abc").contains("half a byte"));
        assert!(refused(&"0g".repeat(20)).contains("hexadecimal"));
        assert!(refused("00").contains("has 1 bytes"));
        assert!(refused(&"00".repeat(20_000)).contains("20000 bytes"));
        assert!(refused("\u{20ac}\u{20ac}").contains("hexadecimal"));
    }

    #[test]
    fn anything_can_be_told() {
        assert_eq!(line(&[0; 20]), "EtherType 0x0000, 20 bytes");
        let mut frame = build(&wanted(6, false)).unwrap();
        frame.truncate(40);
        assert_eq!(line(&frame), "40 bytes that are no well-formed packet");
        assert_eq!((tcp_flags("S"), tcp_flags("fa"), tcp_flags("SX"), tcp_flags("")), (Some(2), Some(0x11), None, Some(0)));
    }
}
