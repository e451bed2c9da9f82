//! What happened: packets that the programs report, and what the agent says it does, in one order.
//!
//! The newest [`KEPT`] are kept. Who follows gets each through a queue of their own: where one is too slow, the others and the datapath do
//! not wait, and it is told how many it missed. So is everybody of those that the programs did not report.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use vnet_common::api::{Event, PacketRef, RuleRef};
use vnet_common::event::{EventRow, kind};
use vnet_common::parse::{ethertype, protocol};
use vnet_common::verdict::{Direction, Reason};

use super::names::Names;

/// Events that are kept: about 12 MB.
pub const KEPT: usize = 1 << 16;
/// Events in the queue of one follower.
const QUEUE: usize = 4096;

/// What the agent reports about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saying {
    /// An endpoint came into another security group.
    Move,
    /// A tag was set, cleared or has expired.
    Tag,
    /// A member is up or down, was ejected, or is back.
    Health,
    /// A device came, went, or could not be attached.
    Device,
    /// The policy changed.
    Policy,
    /// A tag source.
    Source,
    /// The store that the fleet shares.
    Store,
}

impl Saying {
    /// As the API names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Tag => "tag",
            Self::Health => "health",
            Self::Device => "device",
            Self::Policy => "policy",
            Self::Source => "source",
            Self::Store => "store",
        }
    }
}

/// The kinds that the programs report, by their bits.
const PACKETS: [(u8, &str); 4] = [(kind::DROP, "drop"), (kind::LOG, "log"), (kind::STAGED, "staged"), (kind::FLOW, "flow")];
const SUPPRESSED: &str = "suppressed";

/// The bits of kinds that the programs report.
pub fn packet_kinds(names: &[String]) -> u8 {
    PACKETS.iter().filter(|(_, name)| names.iter().any(|n| n == name)).fold(0, |bits, (bit, _)| bits | bit)
}

/// One event, as it is kept: names are looked up when it comes, since they may change; words are made when it is read.
#[derive(Debug)]
pub struct Record {
    number: u64,
    at_ms: u64,
    count: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Packet { row: EventRow, endpoint: Arc<str>, peer: Arc<str>, rule: Option<Arc<RuleRef>> },
    Said { kind: Saying, endpoint: Box<str>, reason: Box<str>, message: Box<str> },
    Suppressed { message: &'static str },
}

impl Record {
    fn kind(&self) -> &'static str {
        match &self.what {
            What::Packet { row, .. } => PACKETS.iter().find(|(bit, _)| row.kind & bit != 0).map_or("", |(_, name)| *name),
            What::Said { kind, .. } => kind.name(),
            What::Suppressed { .. } => SUPPRESSED,
        }
    }

    fn endpoint(&self) -> &str {
        match &self.what {
            What::Packet { endpoint, .. } => endpoint,
            What::Said { endpoint, .. } => endpoint,
            What::Suppressed { .. } => "",
        }
    }

    fn reason(&self) -> &str {
        match &self.what {
            What::Packet { row, .. } => reason(row.reason),
            What::Said { reason, .. } => reason,
            What::Suppressed { .. } => "",
        }
    }

    /// As the API gives it.
    pub fn event(&self) -> Event {
        let mut event = Event {
            number: self.number,
            at_ms: self.at_ms,
            kind: self.kind().to_owned(),
            endpoint: self.endpoint().to_owned(),
            reason: self.reason().to_owned(),
            count: self.count,
            ..Event::default()
        };
        match &self.what {
            What::Packet { row, peer, rule, .. } => {
                event.direction = direction(row.direction).to_owned();
                event.rule = rule.as_deref().cloned();
                event.packet = Some(packet(row, peer));
            }
            What::Said { message, .. } => event.message = message.as_ref().to_owned(),
            What::Suppressed { message } => event.message = (*message).to_owned(),
        }
        event
    }
}

fn reason(number: u8) -> &'static str {
    Reason::ALL.get(usize::from(number)).map_or("(of a newer datapath)", |r| r.name())
}

/// A direction as the API names it.
pub fn direction(number: u8) -> &'static str {
    if number == Direction::Egress as u8 { "egress" } else { "ingress" }
}

/// The source and the destination.
fn addresses(row: &EventRow) -> [Option<IpAddr>; 2] {
    [row.src, row.dst].map(|wide| match row.version {
        4 => Some(IpAddr::V4(Ipv4Addr::new(wide[0], wide[1], wide[2], wide[3]))),
        6 => Some(IpAddr::V6(Ipv6Addr::from(wide))),
        _ => None,
    })
}

/// A protocol by its name, or its number.
pub fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".into(),
        protocol::UDP => "UDP".into(),
        protocol::ICMP => "ICMP".into(),
        protocol::ICMPV6 => "ICMPv6".into(),
        other => other.to_string(),
    }
}

/// TCP flags as letters.
pub fn tcp_letters(flags: u8) -> String {
    "FSRPAU".chars().enumerate().filter(|(bit, _)| flags >> bit & 1 != 0).map(|(_, letter)| letter).collect()
}

fn packet(row: &EventRow, peer: &str) -> PacketRef {
    let [src, dst] = addresses(row).map(|a| a.map(|a| a.to_string()).unwrap_or_default());
    let is_icmp = matches!(row.protocol, protocol::ICMP | protocol::ICMPV6);
    let has_ports = matches!(row.protocol, protocol::TCP | protocol::UDP);
    let port = |p: [u8; 2]| has_ports.then_some(u16::from_be_bytes(p));
    let protocol = match (row.version, row.ethertype) {
        (0, ethertype::ARP) => "ARP".into(),
        (0, other) => format!("EtherType 0x{:04x}", u16::from_be_bytes(other)),
        _ => protocol_name(row.protocol),
    };
    PacketRef {
        protocol,
        src,
        sport: port(row.sport),
        dst,
        dport: port(row.dport),
        icmp: is_icmp.then_some((row.dport[0], row.dport[1])),
        flags: tcp_letters(row.tcp),
        bytes: row.bytes,
        peer: peer.to_owned(),
    }
}

/// Which events somebody wants; what is empty wants all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of these endpoints.
    pub endpoints: Vec<String>,
    /// Of these kinds. That something was suppressed is told in any case.
    pub kinds: Vec<String>,
    /// For these reasons.
    pub reasons: Vec<String>,
}

impl Filter {
    fn wants(&self, record: &Record) -> bool {
        let has = |list: &[String], value: &str| list.is_empty() || list.iter().any(|v| v == value);
        matches!(record.what, What::Suppressed { .. })
            || (has(&self.endpoints, record.endpoint()) && has(&self.kinds, record.kind()) && has(&self.reasons, record.reason()))
    }
}

/// What happened.
#[derive(Debug, Default)]
pub struct Events(Mutex<Log>);

#[derive(Debug, Default)]
struct Log {
    kept: VecDeque<Arc<Record>>,
    last: u64,
    queues: Vec<Queue>,
    closed: bool,
}

/// The writing end of a follower's queue.
#[derive(Debug)]
struct Queue {
    filter: Filter,
    to: mpsc::Sender<Arc<Record>>,
    missed: u64,
}

impl Queue {
    /// Passes a record on if it is wanted and there is room; says if anybody still listens.
    fn put(&mut self, record: &Arc<Record>) -> bool {
        if !self.filter.wants(record) {
            return !self.to.is_closed();
        }
        if self.missed > 0 {
            let what = What::Suppressed { message: "too slow: this reader missed them" };
            let missed = Record { number: record.number - 1, at_ms: record.at_ms, count: self.missed, what };
            match self.to.try_send(Arc::new(missed)) {
                Ok(()) => self.missed = 0,
                Err(TrySendError::Full(_)) => self.missed += record.count,
                Err(TrySendError::Closed(_)) => return false,
            }
            if self.missed > 0 {
                return true;
            }
        }
        match self.to.try_send(Arc::clone(record)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed += record.count;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

/// Reads events.
#[derive(Debug)]
pub struct Follower {
    past: VecDeque<Arc<Record>>,
    queue: Option<mpsc::Receiver<Arc<Record>>>,
}

impl Follower {
    /// The next event; `None`: that was all.
    pub async fn next(&mut self) -> Option<Event> {
        match self.past.pop_front() {
            Some(record) => Some(record.event()),
            None => self.queue.as_mut()?.recv().await.map(|r| r.event()),
        }
    }

    /// The next event, if it has come already.
    pub fn ready(&mut self) -> Option<Event> {
        let next = self.past.pop_front().or_else(|| self.queue.as_mut()?.try_recv().ok());
        next.map(|record| record.event())
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports something of the agent's. `endpoint` may be empty; `reason` is a word or two to filter by, `message` a sentence.
    pub fn say(&self, kind: Saying, endpoint: &str, reason: &str, message: impl Into<String>) {
        let what = What::Said { kind, endpoint: endpoint.into(), reason: reason.into(), message: message.into().into() };
        self.lock().put(now_ms(), 1, what);
    }

    /// Takes what the programs reported. `at_ms` gives the time of a row.
    pub fn packets(&self, rows: &[EventRow], names: &Names, at_ms: impl Fn(&EventRow) -> u64) {
        let mut log = self.lock();
        for row in rows {
            let [src, dst] = addresses(row);
            let address = if row.direction == Direction::Egress as u8 { dst } else { src };
            // An identity that was not looked up is 0, which would be the unknown one.
            let peer = match address {
                Some(a) if row.peer != 0 => names.peer(a, row.peer),
                Some(a) => names.at(a).map_or_else(Arc::default, Arc::clone),
                None => Arc::default(),
            };
            let what = What::Packet { row: *row, endpoint: names.endpoint(row.endpoint), peer, rule: names.rule(row.rule) };
            log.put(at_ms(row), 1, what);
        }
    }

    /// The programs did not report so many.
    pub fn suppressed(&self, count: u64) {
        self.left_out(count, "the datapath reports no more than --event-rate says");
    }

    /// So many records of the audit log came too fast to be made events of.
    pub fn untold(&self, count: u64) {
        self.left_out(count, "too many moves and tags at once: vnet-ctl quarantine log has them all");
    }

    fn left_out(&self, count: u64, message: &'static str) {
        self.lock().put(now_ms(), count, What::Suppressed { message });
    }

    /// Reads what is kept and, if `follow`, what comes. `since`: only events with larger numbers.
    pub fn read(&self, filter: Filter, since: Option<u64>, follow: bool) -> Follower {
        let mut log = self.lock();
        let since = since.unwrap_or(0);
        let past = log.kept.iter().filter(|r| r.number > since && filter.wants(r)).cloned().collect();
        let queue = (follow && !log.closed).then(|| {
            let (to, from) = mpsc::channel(QUEUE);
            log.queues.push(Queue { filter, to, missed: 0 });
            from
        });
        Follower { past, queue }
    }

    /// How many are reading now.
    pub fn followers(&self) -> usize {
        let mut log = self.lock();
        log.queues.retain(|q| !q.to.is_closed());
        log.queues.len()
    }

    /// Does somebody who reads now ask for the flows that are made? They are many: nobody else gets them.
    pub fn wants_flows(&self) -> bool {
        let mut log = self.lock();
        log.queues.retain(|q| !q.to.is_closed());
        log.queues.iter().any(|q| packet_kinds(&q.filter.kinds) & kind::FLOW != 0)
    }

    /// The agent ends: so do all who follow, when they have read what there is.
    pub fn close(&self) {
        let mut log = self.lock();
        (log.closed, log.queues) = (true, Vec::new());
    }
}

impl Log {
    fn put(&mut self, at_ms: u64, count: u64, what: What) {
        self.last += 1;
        let record = Arc::new(Record { number: self.last, at_ms, count, what });
        self.queues.retain_mut(|q| q.put(&record));
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(record);
    }
}

/// The time, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
