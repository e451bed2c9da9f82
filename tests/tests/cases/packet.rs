//! A small frame builder. Nothing here shares code with the pipeline; checksums come from etherparse.

use std::net::IpAddr;

use vnet_common::host::Frame;

use super::sums;
use super::world::{CLIENT_MAC, FAMILIES, HOST_MAC};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum L4 {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
        seq: u32,
        ack: u32,
        options: Vec<u8>,
    },
    Udp {
        sport: u16,
        dport: u16,
        checksum: bool,
    },
    /// ICMP or ICMPv6, by the family of the addresses.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    /// Any other protocol; the payload follows at once.
    Other(u8),
}

/// One packet, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of eight bytes.
    pub fragment_offset: u16,
    /// IPv4 options: a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number, and all bytes after the first two (6 + a multiple of 8).
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub l4: L4,
    pub payload: Vec<u8>,
    /// Bytes behind the IP packet: Ethernet padding.
    pub padding: usize,
    /// Of TCP.
    pub window: u16,
}

impl Packet {
    /// Between the client and its host: to the client if it has the address, else from it.
    pub fn new(src: IpAddr, dst: IpAddr, l4: L4) -> Self {
        let to_client = FAMILIES.iter().any(|f| f.client() == dst);
        let (dst_mac, src_mac) = if to_client { (CLIENT_MAC, HOST_MAC) } else { (HOST_MAC, CLIENT_MAC) };
        Self {
            dst_mac,
            src_mac,
            src,
            dst,
            ttl: 64,
            id: 0x1234,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            options: Vec::new(),
            extensions: Vec::new(),
            l4,
            payload: Vec::new(),
            padding: 0,
            window: 0x2000,
        }
    }
    pub fn tcp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, flags: u8) -> Self {
        Self::new(src, dst, L4::Tcp { sport, dport, flags, seq: 1000, ack: 2000, options: Vec::new() })
    }
    pub fn udp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self::new(src, dst, L4::Udp { sport, dport, checksum: true }).with(b"question")
    }
    /// An echo request.
    pub fn ping(src: IpAddr, dst: IpAddr) -> Self {
        let kind = if src.is_ipv4() { 8 } else { 128 };
        Self::new(src, dst, L4::Icmp { kind, code: 0, rest: [0x77, 0x01, 0, 9] }).with(b"are you there?")
    }

    pub fn with(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }
    pub fn to(mut self, dst: IpAddr, port: u16) -> Self {
        self.dst = dst;
        *self.ports().1 = port;
        self
    }
    pub fn from(mut self, src: IpAddr, port: u16) -> Self {
        self.src = src;
        *self.ports().0 = port;
        self
    }
    pub fn sport(mut self, port: u16) -> Self {
        *self.ports().0 = port;
        self
    }
    pub fn flags(mut self, set: u8) -> Self {
        if let L4::Tcp { flags, .. } = &mut self.l4 {
            *flags = set;
        }
        self
    }
    pub fn numbers(mut self, s: u32, a: u32) -> Self {
        if let L4::Tcp { seq, ack, .. } = &mut self.l4 {
            (*seq, *ack) = (s, a);
        }
        self
    }
    pub fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        (self.dst_mac, self.src_mac) = (dst, src);
        self
    }
    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }
    /// The same packet the other way: MACs, addresses and ports swapped.
    pub fn back(mut self) -> Self {
        (self.src, self.dst) = (self.dst, self.src);
        (self.src_mac, self.dst_mac) = (self.dst_mac, self.src_mac);
        if !matches!(self.l4, L4::Icmp { .. } | L4::Other(_)) {
            let (s, d) = self.ports();
            std::mem::swap(s, d);
        }
        self
    }
    /// As a host that answers makes it: no identification, TTL 64.
    pub fn answer(mut self) -> Self {
        (self.id, self.ttl, self.dont_fragment, self.padding) = (0, 64, true, 0);
        self
    }

    fn ports(&mut self) -> (&mut u16, &mut u16) {
        match &mut self.l4 {
            L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } => (sport, dport),
            other => panic!("{other:?} has no ports"),
        }
    }

    fn protocol(&self) -> u8 {
        match self.l4 {
            L4::Tcp { .. } => TCP,
            L4::Udp { .. } => UDP,
            L4::Icmp { .. } => {
                if self.src.is_ipv4() {
                    1
                } else {
                    58
                }
            }
            L4::Other(n) => n,
        }
    }

    /// Where the L4 header starts.
    pub fn l4_at(&self) -> usize {
        14 + if self.src.is_ipv4() {
            20 + self.options.len()
        } else {
            40 + self.extensions.iter().map(|(_, b)| b.len() + 2).sum::<usize>()
        }
    }

    fn l4_bytes(&self) -> Vec<u8> {
        let mut b = match &self.l4 {
            L4::Tcp { sport, dport, flags, seq, ack, options } => {
                let mut b = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &seq.to_be_bytes(), &ack.to_be_bytes()].concat();
                b.extend([((5 + options.len() / 4) as u8) << 4, *flags]);
                b.extend(self.window.to_be_bytes());
                b.extend([0; 4]);
                b.extend(options);
                b
            }
            L4::Udp { sport, dport, .. } => {
                let len = (8 + self.payload.len()) as u16;
                [sport.to_be_bytes(), dport.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat()
            }
            L4::Icmp { kind, code, rest } => [&[*kind, *code, 0, 0], &rest[..]].concat(),
            L4::Other(_) => Vec::new(),
        };
        b.extend(&self.payload);
        let at = match self.l4 {
            L4::Tcp { .. } => 16,
            L4::Udp { checksum: true, .. } => 6,
            L4::Icmp { .. } => 2,
            _ => return b,
        };
        let mut sum = sums::l4(self.src, self.dst, self.protocol(), &b);
        if sum == [0, 0] && self.protocol() == UDP {
            sum = [0xff, 0xff];
        }
        b[at..at + 2].copy_from_slice(&sum);
        b
    }

    fn v4_header(&self, src: [u8; 4], dst: [u8; 4], l4: usize) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let total = ((words * 4 + l4) as u16).to_be_bytes();
        let fragment = self.fragment_offset | u16::from(self.more_fragments) << 13 | u16::from(self.dont_fragment) << 14;
        let mut b = vec![0x40 | words as u8, 0, total[0], total[1]];
        b.extend(self.id.to_be_bytes());
        b.extend(fragment.to_be_bytes());
        b.extend([self.ttl, self.protocol(), 0, 0]);
        b.extend(src);
        b.extend(dst);
        b.extend(&self.options);
        let sum = sums::plain(&b);
        b[10..12].copy_from_slice(&sum);
        b
    }

    fn v6_header(&self, src: [u8; 16], dst: [u8; 16], l4: usize) -> Vec<u8> {
        let extensions: usize = self.extensions.iter().map(|(_, b)| b.len() + 2).sum();
        let mut b = vec![0x60, 0, 0, 0];
        b.extend(((extensions + l4) as u16).to_be_bytes());
        let next = |i: usize| self.extensions.get(i).map_or(self.protocol(), |e| e.0);
        b.extend([next(0), self.ttl]);
        b.extend(src);
        b.extend(dst);
        for (i, (kind, body)) in self.extensions.iter().enumerate() {
            // The fragment header (44) has no length field.
            b.extend([next(i + 1), if *kind == 44 { 0 } else { (body.len() / 8) as u8 }]);
            b.extend(body);
        }
        b
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut l4 = self.l4_bytes();
        let (kind, ip) = match (self.src, self.dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => ([8, 0], self.v4_header(s.octets(), d.octets(), l4.len())),
            (IpAddr::V6(s), IpAddr::V6(d)) => ([0x86, 0xdd], self.v6_header(s.octets(), d.octets(), l4.len())),
            mixed => panic!("{mixed:?}: two families"),
        };
        l4.resize(l4.len() + self.padding, 0);
        [&self.dst_mac[..], &self.src_mac, &kind, &ip, &l4].concat()
    }

    /// The frame as a sender leaves it to a device to complete the L4 checksum: only the pseudo-header's sum is there.
    pub fn partial(&self) -> Frame {
        let mut bytes = self.bytes();
        let at = self.l4_at();
        let field = at + if self.protocol() == TCP { 16 } else { 6 };
        let len = bytes.len() - at - self.padding;
        bytes[field..field + 2].copy_from_slice(&sums::pseudo(self.src, self.dst, self.protocol(), len));
        Frame { bytes, partial: true, ..Frame::default() }
    }

    /// The ICMP error about this packet that its destination sends.
    pub fn error(&self, kind: u8, code: u8, mtu: u16) -> Self {
        let quote = self.l4_at() - 14 + if self.protocol() == TCP { 20 } else { 8 };
        let m = mtu.to_be_bytes();
        let mut quoted = self.bytes()[14..].to_vec();
        quoted.truncate(quote);
        let l4 = L4::Icmp { kind, code, rest: [0, 0, m[0], m[1]] };
        Self::new(self.dst, self.src, l4).macs(self.src_mac, self.dst_mac).answer().with(&quoted)
    }
}

impl From<&Packet> for Frame {
    fn from(p: &Packet) -> Self {
        Self { bytes: p.bytes(), ..Self::default() }
    }
}
