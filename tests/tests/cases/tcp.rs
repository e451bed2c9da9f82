//! Connections from the handshake to the reuse of their ports.

use vnet_common::lb::MemberEvent::{Established, NewFlow, Reset};
use vnet_common::verdict::Reason;

use super::packet::{ACK, FIN, Packet, RST, SYN};
use super::row::{Row, row, run};
use super::world::{CLIENT, FAMILIES, Family, World};

/// Member row of a family's TCP group in [`World::balanced`].
pub fn tcp_member(f: Family) -> u32 {
    if f == Family::V4 { 0 } else { 2 }
}

/// A connection from the client to the VIP's port 80, and the member that it leads to.
#[derive(Clone, Copy)]
pub struct Connection {
    pub f: Family,
    pub sport: u16,
    pub port: u16,
    pub member: u32,
}

impl Connection {
    pub fn new(f: Family, port: u16) -> Self {
        Self { f, sport: 40000, port, member: tcp_member(f) }
    }
    /// From the client.
    pub fn up(self, flags: u8) -> Packet {
        Packet::tcp(self.f.client(), self.sport, self.f.vip(), 80, flags)
    }
    /// As the member gets it.
    pub fn up_there(self, flags: u8) -> Packet {
        self.up(flags).to(self.f.member(0), self.port)
    }
    /// From the member.
    pub fn down(self, flags: u8) -> Packet {
        Packet::tcp(self.f.member(0), self.port, self.f.client(), self.sport, flags)
    }
    /// As the client gets it.
    pub fn down_there(self, flags: u8) -> Packet {
        self.down(flags).from(self.f.vip(), 80)
    }

    /// A packet from the client.
    pub fn sends(self, r: Row, flags: u8, reason: Reason) -> Row {
        r.egress(CLIENT, &self.up(flags)).becomes(reason, &self.up_there(flags)).by(self.member)
    }
    /// A packet from the member.
    pub fn gets(self, r: Row, flags: u8, reason: Reason) -> Row {
        r.ingress(CLIENT, &self.down(flags)).becomes(reason, &self.down_there(flags)).by(self.member)
    }
    pub fn syn(self, r: Row) -> Row {
        self.sends(r, SYN, Reason::NewFlow).event(self.member, NewFlow)
    }
    pub fn half_open(self, r: Row) -> Row {
        self.gets(self.syn(r), SYN | ACK, Reason::HalfOpen)
    }
    /// The whole handshake.
    pub fn open(self, r: Row) -> Row {
        self.sends(self.half_open(r), ACK, Reason::Established).event(self.member, Established)
    }
    /// Data both ways, each more than once: the second comes from the cache.
    pub fn talk(self, mut r: Row) -> Row {
        for _ in 0..3 {
            r = self.sends(r, ACK, Reason::Established);
            r = self.gets(r, ACK, Reason::Reply);
        }
        r
    }
}

/// A row for each family, with the port as it is and with the port rewritten.
fn each(name: &str, f: impl Fn(Connection, Row) -> Row) -> Vec<Row> {
    let mut rows = Vec::new();
    for family in FAMILIES {
        for port in [80, 8080] {
            let name = format!("{family:?}, member port {port}: {name}");
            rows.push(f(Connection::new(family, port), row(name, World::balanced(port))));
        }
    }
    rows
}

#[test]
fn handshake() {
    run(each("SYN", |c, r| c.syn(r).holds(0, 1)));
    run(each("SYN, twice", |c, r| c.sends(c.syn(r), SYN, Reason::HalfOpen).holds(0, 1)));
    run(each("SYN, SYN-ACK", |c, r| c.half_open(r).holds(0, 1)));
    run(each("SYN, SYN-ACK twice", |c, r| c.gets(c.half_open(r), SYN | ACK, Reason::HalfOpen).holds(0, 1)));
    run(each("an ACK without a SYN-ACK promotes nothing", |c, r| c.sends(c.syn(r), ACK, Reason::HalfOpen).holds(0, 1)));
    run(each("a second SYN after the SYN-ACK promotes nothing", |c, r| {
        c.sends(c.half_open(r), SYN, Reason::HalfOpen).holds(0, 1)
    }));
    run(each("the ACK promotes", |c, r| c.open(r).holds(1, 0).quota(1, 1)));
    run(each("data with the ACK promotes", |c, r| {
        let r = c.half_open(r);
        r.egress(CLIENT, &c.up(ACK).with(b"hello"))
            .becomes(Reason::Established, &c.up_there(ACK).with(b"hello"))
            .by(c.member)
            .event(c.member, Established)
            .holds(1, 0)
            .quota(1, 1)
    }));
    run(each("data both ways", |c, r| c.talk(c.open(r)).holds(1, 0).quota(1, 1)));
}

#[test]
fn refused_and_reset() {
    run(each("the member refuses", |c, r| {
        let r = c.syn(r);
        c.gets(r, RST | ACK, Reason::HalfOpen).event(c.member, Reset).holds(0, 0)
    }));
    run(each("the client gives up before the SYN-ACK", |c, r| {
        c.sends(c.syn(r), RST, Reason::HalfOpen).event(c.member, Reset).holds(0, 0)
    }));
    run(each("reset by the client", |c, r| {
        let r = c.talk(c.open(r));
        c.sends(r, RST, Reason::Established).event(c.member, Reset).holds(1, 0).quota(1, 1)
    }));
    run(each("reset by the member, and what is still on its way", |c, r| {
        let r = c.gets(c.talk(c.open(r)), RST, Reason::Reply).event(c.member, Reset);
        c.sends(r, ACK, Reason::Established).holds(1, 0).quota(1, 1)
    }));
    run(each("a reset of no connection", |c, r| r.egress(CLIENT, &c.up(RST)).dropped(Reason::RejectSilent)));
    run(each("a reset from the member of no connection", |c, r| r.ingress(CLIENT, &c.down(RST)).passes(Reason::NotOurs)));
    run(each("data from the member of no connection", |c, r| r.ingress(CLIENT, &c.down(ACK)).passes(Reason::NotOurs)));
}

fn close(c: Connection, r: Row) -> Row {
    let r = c.sends(c.talk(c.open(r)), FIN | ACK, Reason::Established);
    let r = c.gets(r, FIN | ACK, Reason::Reply);
    c.sends(r, ACK, Reason::Established)
}

#[test]
fn closing_and_reuse_of_the_port() {
    run(each("closed by both", |c, r| close(c, r).holds(1, 0).quota(1, 1)));
    run(each("a SYN after the FINs is a new connection", |c, r| c.syn(close(c, r)).holds(0, 1)));
    run(each("a SYN after one FIN is not", |c, r| {
        let r = c.sends(c.open(r), FIN | ACK, Reason::Established);
        c.sends(r, SYN, Reason::Established).holds(1, 0).quota(1, 1)
    }));
    run(each("a new connection after a reset", |c, r| {
        let r = c.gets(c.talk(c.open(r)), RST, Reason::Reply).event(c.member, Reset);
        c.talk(c.open(r)).holds(1, 0).quota(1, 1)
    }));
    // The copies of the old connection in the cache are as fresh as can be: only the stamp tells that they are void.
    run(each("the cached copy of the old connection is not used", |c, r| {
        let r = c.syn(close(c, reset_one(c, r)));
        let r = c.sends(r, ACK, Reason::HalfOpen);
        c.gets(r, ACK, Reason::HalfOpen).holds(0, 1)
    }));
    run(each("the port is used three times", |c, r| {
        let r = close(c, close(c, close(c, r)));
        r.holds(1, 0).quota(1, 1)
    }));
}

/// A first connection that is closed by a reset, so that the next may take its port.
fn reset_one(c: Connection, r: Row) -> Row {
    c.gets(c.talk(c.open(r)), RST, Reason::Reply).event(c.member, Reset)
}

#[test]
fn picked_up_in_mid_stream() {
    run(each("data without a handshake", |c, r| c.sends(r, ACK, Reason::NewFlow).event(c.member, NewFlow).holds(0, 1)));
    run(each("data both ways without a handshake", |c, r| {
        let r = c.sends(r, ACK, Reason::NewFlow).event(c.member, NewFlow);
        let r = c.gets(r, ACK, Reason::HalfOpen);
        let r = c.sends(r, ACK, Reason::Established).event(c.member, Established);
        c.talk(r).holds(1, 0).quota(1, 1)
    }));
}

#[test]
fn connections_apart() {
    // Same ports, other addresses: a second client port, and the other family.
    let mut rows = Vec::new();
    for f in FAMILIES {
        let one = Connection::new(f, 8080);
        let two = Connection { sport: 40001, ..one };
        let r = row(format!("{f:?} two connections"), World::balanced(8080));
        rows.push(two.talk(one.talk(two.open(one.open(r)))).holds(2, 0).quota(1, 2));
    }
    let (four, six) = (Connection::new(Family::V4, 8080), Connection::new(Family::V6, 8080));
    let r = row("one connection of each family", World::balanced(8080));
    rows.push(four.talk(six.talk(six.open(four.open(r)))).holds(2, 0).quota(1, 2));
    run(rows);
}
