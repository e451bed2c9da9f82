//! The addresses and packets that are measured.

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;
use vnet_common::addr::{Address, V4, V6};
use vnet_common::bench::{FRAME, FRAME_AT, Plan, way};
use vnet_common::flow::FlowKey;
use vnet_common::lb::VipKey;
use vnet_common::verdict::Direction;

/// The endpoint whose packets they are, and its row in counters.
pub const ENDPOINT: u32 = 7;
/// See [`ENDPOINT`].
pub const SLOT: u32 = 1;
/// Members of the group, where nothing else is said.
pub const MEMBERS: u32 = 8;
/// The VIP's port.
pub const VIP_PORT: u16 = 80;
/// The members' port.
pub const MEMBER_PORT: u16 = 8080;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Syn,
    Ack,
}

/// Who a packet is from or to, on the other side than the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Vip,
    Member,
    /// Nobody whom the load balancer knows.
    Stranger,
    /// The flows have [`PEERS`] in turn.
    Many,
}

/// What kind of packets a run makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub family: Family,
    pub protocol: Protocol,
    pub direction: Direction,
    pub peer: Peer,
    pub flows: u32,
}

/// An address: of a family, in one of the networks that are used here, with a number.
fn ip4(net: u8, host: u8) -> V4 {
    V4::from([10, net, 0, host])
}
fn ip6(net: u8, host: u8) -> V6 {
    V6::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, net, 0, 0, 0, 0, 0, host])
}
fn place(peer: Peer) -> (u8, u8) {
    match peer {
        Peer::Vip => (255, 1),
        Peer::Member => (1, 1),
        Peer::Stranger => (2, 1),
        Peer::Many => (3, 0),
    }
}
const CLIENT: (u8, u8) = (0, 10);
/// How many peers there are of [`Peer::Many`].
pub const PEERS: u32 = 10_000;

/// The client's first address, in IPv4 or in IPv6.
pub fn client4() -> V4 {
    ip4(CLIENT.0, CLIENT.1)
}
/// See [`client4`].
pub fn client6() -> V6 {
    ip6(CLIENT.0, CLIENT.1)
}
/// The address of a peer.
pub fn peer4(peer: Peer) -> V4 {
    ip4(place(peer).0, place(peer).1)
}
/// See [`peer4`].
pub fn peer6(peer: Peer) -> V6 {
    ip6(place(peer).0, place(peer).1)
}
/// The address of member `n`, below 65,535, as in its row.
pub fn member(family: Family, n: u32) -> [u8; 16] {
    let [.., high, low] = (n + 1).to_be_bytes();
    let (mut addr, end) = match family {
        Family::V4 => (ip4(1, 0).widen(), 4),
        Family::V6 => (ip6(1, 0).widen(), 16),
    };
    (addr[end - 2], addr[end - 1]) = (high, low);
    addr
}

/// The address of a VIP that gets no packets.
pub fn other_vip(n: u32) -> [u8; 16] {
    let [.., high, low] = n.to_be_bytes();
    V4::from([10, 254, high, low]).widen()
}

/// The address of peer `n` of [`Peer::Many`], as in map rows.
pub fn peer(family: Family, n: u32) -> [u8; 16] {
    let [.., high, low] = n.to_be_bytes();
    let mut addr = match family {
        Family::V4 => peer4(Peer::Many).widen(),
        Family::V6 => peer6(Peer::Many).widen(),
    };
    let end = if family == Family::V4 { 4 } else { 16 };
    (addr[end - 2], addr[end - 1]) = (high, low);
    addr
}

/// The addresses of the client's that are used by so many flows.
pub fn clients(family: Family, flows: u32) -> Vec<[u8; 16]> {
    let (mut addr, end) = match family {
        Family::V4 => (client4().widen(), 4),
        Family::V6 => (client6().widen(), 16),
    };
    let last = addr[end - 1];
    let of = |n: u32| {
        addr[end - 1] = last + n as u8;
        addr
    };
    (0..flows.div_ceil(1 << 14)).map(of).collect()
}

/// The addresses of all members, and …
pub fn members(family: Family) -> Vec<[u8; 16]> {
    (0..MEMBERS).map(|n| member(family, n)).collect()
}

/// … that of the VIP.
pub fn vip(family: Family) -> [u8; 16] {
    match family {
        Family::V4 => peer4(Peer::Vip).widen(),
        Family::V6 => peer6(Peer::Vip).widen(),
    }
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        if self == Self::Udp { 17 } else { 6 }
    }
}

impl Traffic {
    /// The packets that these are of the flows of, as the client sends them.
    pub fn request(self) -> Self {
        let peer = if self.peer == Peer::Many { Peer::Many } else { Peer::Vip };
        Self { direction: Direction::Egress, peer, ..self }
    }
    /// The answers to [`Traffic::request`].
    pub fn answer(self) -> Self {
        let peer = if self.peer == Peer::Many { Peer::Many } else { Peer::Member };
        Self { direction: Direction::Ingress, peer, ..self }
    }

    /// The key of the VIP's row.
    pub fn vip_key(self) -> VipKey {
        let (addr, version) = match self.family {
            Family::V4 => (peer4(Peer::Vip).widen(), 4),
            Family::V6 => (peer6(Peer::Vip).widen(), 6),
        };
        VipKey { network: 0, addr, port: VIP_PORT.to_be_bytes(), protocol: self.protocol.number(), version }
    }

    /// Where the members of these flows begin in `BENCH_MEMBERS`.
    pub fn members_at(self) -> u32 {
        let tcp = u32::from(self.protocol != Protocol::Udp);
        (u32::from(self.family == Family::V6) * 2 + tcp) << 19
    }

    /// A packet of the first flow, 100 bytes long (so that all headers of any kind are in it).
    pub fn frame(self) -> Result<Vec<u8>> {
        let ports = match (self.direction, self.peer) {
            (Direction::Egress, _) => (1 << 14, VIP_PORT),
            (Direction::Ingress, Peer::Many) => (VIP_PORT, 1 << 14),
            (Direction::Ingress, _) => (MEMBER_PORT, 1 << 14),
        };
        let (client, peer) = ((client4(), client6()), (peer4(self.peer), peer6(self.peer)));
        let (src, dst) = if self.direction == Direction::Egress { (client, peer) } else { (peer, client) };
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = match self.family {
            Family::V4 => ethernet.ipv4(src.0.octets(), dst.0.octets(), 64),
            Family::V6 => ethernet.ipv6(src.1.octets(), dst.1.octets(), 64),
        };
        let mut frame = Vec::new();
        let headers = 14 + if self.family == Family::V4 { 20 } else { 40 };
        let payload = |l4: usize| vec![0x55; 100 - headers - l4];
        let reply = self.direction == Direction::Ingress;
        match self.protocol {
            Protocol::Udp => ip.udp(ports.0, ports.1).write(&mut frame, &payload(8))?,
            Protocol::Syn if reply => ip.tcp(ports.0, ports.1, 1, 1024).syn().ack(1).write(&mut frame, &payload(20))?,
            Protocol::Syn => ip.tcp(ports.0, ports.1, 1, 1024).syn().write(&mut frame, &payload(20))?,
            Protocol::Ack => ip.tcp(ports.0, ports.1, 1, 1024).ack(1).write(&mut frame, &payload(20))?,
        }
        ensure!(frame.len() == 100, "a frame of {} bytes", frame.len());
        Ok(frame)
    }

    /// A plan that makes these packets.
    pub fn plan(self) -> Result<Plan> {
        let mut bytes = [0; FRAME];
        bytes.copy_from_slice(&self.frame()?[FRAME_AT..FRAME_AT + FRAME]);
        let mut frame = [0; FRAME / 8];
        for (word, b) in frame.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        }
        let c = if self.family == Family::V4 { client4().octets() } else { [0, 0, 0, client6().octets()[15]] };
        let bits = self.flows.ilog2();
        Ok(Plan {
            frame,
            client: u32::from_be_bytes(c),
            program: 0,
            mask: self.flows - 1,
            shift: (bits / 2).max(1),
            multiplier: 1,
            increment: 1,
            state: u32::MAX,
            way: match (self.direction, self.peer) {
                (Direction::Ingress, Peer::Member | Peer::Many) => way::FROM_PEERS,
                (Direction::Egress, Peer::Many) => way::TO_PEERS,
                _ => way::TO_ONE,
            },
            slot: SLOT,
            key4: self.key(client4(), peer4(self.request().peer)),
            key6: self.key(client6(), peer6(self.request().peer)),
            members: self.members_at(),
        })
    }

    /// The key of the forward entry of the flow with this source.
    pub fn key<A: Address>(self, src: A, dst: A) -> FlowKey<A> {
        FlowKey {
            endpoint: ENDPOINT,
            network: 0,
            src,
            dst,
            sport: (1u16 << 14).to_be_bytes(),
            dport: VIP_PORT.to_be_bytes(),
            protocol: self.protocol.number(),
            direction: Direction::Egress as u8,
            pad: [0; 2],
        }
    }
}
