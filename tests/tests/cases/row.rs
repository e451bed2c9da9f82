//! One packet case: a world, packets with what must become of them, and what must have been counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vnet_common::endpoint::EndpointCounters;
use vnet_common::event::EventRow;
use vnet_common::host::{Frame, scratch};
use vnet_common::lb::{MemberCounters, MemberEvent};
use vnet_common::pipeline;
use vnet_common::policy::MARK_OURS;
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::kernel::{self, Kernel};
use super::packet::Packet;
use super::snapshot::Snapshot;
use super::sums;
use super::world::World;

const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// Shorter than the time after which a cached flow is written back: after a longer run counts may lie elsewhere.
pub const SHORT: Duration = Duration::from_millis(100);

type Check = Box<dyn Fn(&[u8]) -> Result<(), String>>;

/// A packet, and what must become of it.
struct Sent {
    direction: Direction,
    ifindex: u32,
    frame: Frame,
    vlan: bool,
    verdict: Verdict,
    /// The frame afterwards; `None`: of no interest, since it is dropped.
    out: Option<Vec<u8>>,
    /// Where the device sums up a partial checksum, and the field: in the output.
    completed_at: Option<(usize, usize)>,
    check: Option<Check>,
    /// The devices that get a copy of the packet as it came.
    copies: Vec<u32>,
    /// What is reported about it: kind, rule, reason.
    reports: Vec<(u8, u32, Reason)>,
}

enum Step {
    Send(Box<Sent>),
    Change(Box<dyn Fn(&mut World)>),
}

/// One row of a table of cases.
pub struct Row {
    name: String,
    world: World,
    steps: Vec<Step>,
    host_only: bool,
    expected: Snapshot,
    /// Entries in the main and in the half-open tables at the end.
    holds: (usize, usize),
    /// The row says which rules decided.
    judged: bool,
    /// The row says what was reported.
    reported: bool,
    at_end: Option<Box<AtEnd>>,
}

/// What has to hold of the maps when all packets went through.
type AtEnd = dyn Fn(&World) -> Result<(), String>;

/// Starts a row.
pub fn row(name: impl Into<String>, world: World) -> Row {
    Row {
        name: name.into(),
        world,
        steps: Vec::new(),
        host_only: false,
        expected: Snapshot::default(),
        holds: (0, 0),
        judged: false,
        reported: false,
        at_end: None,
    }
}

impl Row {
    /// What cannot be set up in the kernel by a test run.
    pub fn host_only(mut self) -> Self {
        self.host_only = true;
        self
    }
    /// A packet from the endpoint behind `ifindex`.
    pub fn egress(self, ifindex: u32, frame: impl Into<Frame>) -> Self {
        self.send(Direction::Egress, ifindex, frame.into())
    }
    /// A packet to the endpoint behind `ifindex`.
    pub fn ingress(self, ifindex: u32, frame: impl Into<Frame>) -> Self {
        self.send(Direction::Ingress, ifindex, frame.into())
    }
    fn send(mut self, direction: Direction, ifindex: u32, frame: Frame) -> Self {
        self.host_only |= !kernel::takes(&frame.bytes);
        let verdict = Verdict::Next(Reason::NotOurs);
        let sent = Sent {
            direction,
            ifindex,
            frame,
            vlan: false,
            verdict,
            out: None,
            completed_at: None,
            check: None,
            copies: Vec::new(),
            reports: Vec::new(),
        };
        self.steps.push(Step::Send(Box::new(sent)));
        self
    }
    /// A change that the agent makes.
    pub fn change(mut self, f: impl Fn(&mut World) + 'static) -> Self {
        self.steps.push(Step::Change(Box::new(f)));
        self
    }

    fn last(&mut self) -> &mut Sent {
        match self.steps.last_mut() {
            Some(Step::Send(sent)) => sent,
            _ => panic!("{}: no packet was sent yet", self.name),
        }
    }
    /// The last packet will be cut into segments of so many bytes.
    pub fn segment(mut self, bytes: u32) -> Self {
        self.last().frame.segment = bytes;
        self
    }
    /// The last packet has this mark.
    pub fn mark(mut self, mark: u32) -> Self {
        self.last().frame.mark = mark;
        self
    }
    /// The rule with this number decided about the last packet.
    pub fn decided(mut self, id: u32) -> Self {
        let bytes = self.last().frame.bytes.len();
        self.decided_by(id, bytes)
    }
    /// The rule with this number decided about an earlier packet of so many bytes.
    pub fn decided_by(mut self, id: u32, bytes: usize) -> Self {
        self.judged = true;
        let c = self.expected.rules.entry(id).or_default();
        c.hits += 1;
        c.bytes += bytes as u64;
        self
    }
    /// A staged rule would have decided about it.
    pub fn staged(mut self, id: u32) -> Self {
        self.judged = true;
        self.expected.rules.entry(id).or_default().staged += 1;
        self
    }
    /// This is reported about the last packet: a [`vnet_common::event::kind`], the rule, the reason. A row that says so of one packet says
    /// it of all.
    pub fn reported(mut self, kind: u8, rule: u32, reason: Reason) -> Self {
        self.reported = true;
        self.last().reports.push((kind, rule, reason));
        self
    }
    /// Nothing is reported, or nothing but what else the row says.
    pub fn no_reports(mut self) -> Self {
        self.reported = true;
        self
    }
    /// A copy of the last packet, as it came, goes out of this device.
    pub fn copied(mut self, ifindex: u32) -> Self {
        self.last().copies.push(ifindex);
        self
    }
    /// The last packet has a VLAN tag beside it.
    pub fn vlan(mut self) -> Self {
        self.last().vlan = true;
        self.host_only()
    }
    /// The output's partial checksum is completed from `start` on, in the field at `start + field`.
    pub fn completed(mut self, start: usize, field: usize) -> Self {
        self.last().completed_at = Some((start, field));
        self.host_only()
    }

    fn outcome(mut self, verdict: Verdict, out: Option<Vec<u8>>) -> Self {
        let (slots, sent) = (self.slots(), self.last());
        (sent.verdict, sent.out) = (verdict, out);
        let (direction, bytes, ifindex) = (sent.direction, sent.frame.bytes.len() as u32, sent.ifindex);
        if verdict.reason() != Reason::NoEndpoint {
            self.count(slots[&ifindex], direction, verdict.reason(), bytes);
        }
        self
    }
    fn slots(&self) -> BTreeMap<u32, u32> {
        self.world.maps.endpoints.values().map(|e| (e.ifindex, e.slot)).collect()
    }
    fn count(&mut self, slot: u32, direction: Direction, reason: Reason, bytes: u32) {
        let c: &mut EndpointCounters = self.expected.endpoints.entry(slot).or_default();
        c.bytes[direction as usize] += u64::from(bytes);
        c.packets[direction as usize][reason as usize] += 1;
    }

    /// The last packet goes on as it is.
    pub fn passes(mut self, reason: Reason) -> Self {
        let bytes = self.last().frame.bytes.clone();
        self.outcome(Verdict::Next(reason), Some(bytes))
    }
    /// The last packet goes on, changed.
    pub fn becomes(self, reason: Reason, out: &Packet) -> Self {
        let bytes = out.bytes();
        self.outcome(Verdict::Next(reason), Some(bytes))
    }
    /// The last packet goes on, changed to something that `check` accepts.
    pub fn becomes_some(mut self, reason: Reason, check: impl Fn(&[u8]) -> Result<(), String> + 'static) -> Self {
        self.last().check = Some(Box::new(check));
        self.outcome(Verdict::Next(reason), None)
    }
    /// The last packet is dropped.
    pub fn dropped(self, reason: Reason) -> Self {
        self.outcome(Verdict::Drop(reason), None)
    }
    /// The last packet is answered in the endpoint's name.
    pub fn bounced(self, reason: Reason, out: &Packet) -> Self {
        let bytes = out.bytes();
        self.outcome(Verdict::Bounce(reason), Some(bytes))
    }
    /// The last packet is answered.
    pub fn answered(self, reason: Reason, out: &Packet) -> Self {
        self.answered_bytes(reason, out.bytes())
    }
    /// The last packet is answered with this frame.
    pub fn answered_bytes(self, reason: Reason, out: Vec<u8>) -> Self {
        self.outcome(Verdict::Reply(reason), Some(out))
    }
    /// The last packet is answered with something that `check` accepts.
    pub fn answered_some(mut self, reason: Reason, check: impl Fn(&[u8]) -> Result<(), String> + 'static) -> Self {
        self.last().check = Some(Box::new(check));
        self.outcome(Verdict::Reply(reason), None)
    }
    /// The last packet is handed to the device `ifindex`.
    pub fn handed(self, ifindex: u32, peer: bool, reason: Reason, out: &Packet) -> Self {
        let bytes = out.bytes();
        self.outcome(Verdict::Redirect { ifindex, peer, reason }, Some(bytes))
    }

    /// The last packet is counted for a member.
    pub fn by(mut self, member: u32) -> Self {
        let sent = self.last();
        let (d, bytes) = (sent.direction as usize, sent.frame.bytes.len() as u64);
        self.traffic(member, d, bytes)
    }
    /// The last packet is counted for a member as one that goes in `direction`.
    pub fn by_as(mut self, member: u32, direction: Direction) -> Self {
        let bytes = self.last().frame.bytes.len() as u64;
        self.traffic(member, direction as usize, bytes)
    }
    fn traffic(mut self, member: u32, d: usize, bytes: u64) -> Self {
        let c = self.expected.members.entry(member).or_default();
        c.packets[d] += 1;
        c.bytes[d] += bytes;
        self
    }
    /// An event of a member is counted.
    pub fn event(mut self, member: u32, event: MemberEvent) -> Self {
        let c: &mut MemberCounters = self.expected.members.entry(member).or_default();
        match event {
            MemberEvent::NewFlow => c.new_flows += 1,
            MemberEvent::Established => c.established += 1,
            MemberEvent::Reset | MemberEvent::GivenUp | MemberEvent::ResetByMember => c.resets += 1,
            MemberEvent::Unreachable => {}
        }
        self
    }
    /// A UDP flow's events of a member are counted.
    pub fn events(self, member: u32) -> Self {
        self.event(member, MemberEvent::NewFlow).event(member, MemberEvent::Established)
    }
    /// The last packet is also counted at the endpoint behind `ifindex`.
    pub fn also(mut self, ifindex: u32, direction: Direction, reason: Reason) -> Self {
        let (slot, bytes) = (self.slots()[&ifindex], self.last().frame.bytes.len() as u32);
        self.count(slot, direction, reason, bytes);
        self
    }
    /// At the end the endpoint in `slot` has `flows` of its quota.
    pub fn quota(mut self, slot: u32, flows: u32) -> Self {
        self.expected.add_quota(slot, flows);
        self
    }
    /// At the end this holds of the host's tables, with which the kernel's agree.
    pub fn finally(mut self, check: impl Fn(&World) -> Result<(), String> + 'static) -> Self {
        self.at_end = Some(Box::new(check));
        self
    }
    /// At the end there are so many flows in the main and in the half-open tables; each has two entries.
    pub fn holds(mut self, main: usize, half_open: usize) -> Self {
        self.holds = (main, half_open);
        self
    }
}

/// Runs rows, all of them, and fails with everything that was not as it says.
pub fn run(rows: impl IntoIterator<Item = Row>) {
    let mut kernel = kernel::lock();
    let failures: Vec<String> = rows.into_iter().flat_map(|row| run_row(row, &mut kernel)).collect();
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

fn run_row(row: Row, kernel: &mut Kernel) -> Vec<String> {
    let Row { name, mut world, steps, host_only, expected, holds, judged, reported, at_end } = row;
    let (mut out, started) = (Vec::new(), Instant::now());
    if !host_only {
        kernel.configure(&world.maps);
        kernel.reset();
    }
    for (i, step) in steps.into_iter().enumerate() {
        match step {
            Step::Change(f) => {
                f(&mut world);
                if !host_only {
                    kernel.configure(&world.maps);
                }
            }
            Step::Send(sent) => {
                let k = if host_only { None } else { Some(&mut *kernel) };
                let events = world.maps.reported.borrow().len();
                let mut failures = run_packet(&world, k, &sent);
                if reported {
                    failures.extend(check_reports(&world.maps.reported.borrow()[events..], &sent));
                }
                out.extend(failures.into_iter().map(|e| format!("{name}, step {}: {e}", i + 1)));
            }
        }
    }
    let host = Snapshot::of(&world.maps);
    let mut expected = Snapshot { main: host.main.clone(), half_open: host.half_open.clone(), ..expected };
    if !judged {
        // A row that says nothing of rules: they are held against the kernel's only.
        expected.rules.clone_from(&host.rules);
    }
    expected.events.clone_from(&host.events);
    // Held against the kernel's only, and looked at by the rows about picking.
    expected.active.clone_from(&host.active);
    expected.answers.clone_from(&host.answers);
    let mut differences = expected.differences("expected", &host, "host");
    differences.extend(at_end.and_then(|check| check(&world).err()));
    let entries = (host.main.len(), host.half_open.len());
    if entries != (2 * holds.0, 2 * holds.1) {
        differences.push(format!("flows: expected {holds:?}, host {entries:?} entries"));
    }
    if !host_only {
        let mut theirs = kernel.snapshot();
        if started.elapsed() > SHORT {
            // The kernel's clock ran on: a count held for a flow may have been written to it before its port was used again.
            theirs.main.clone_from(&host.main);
        }
        differences.extend(host.differences("host", &theirs, "kernel"));
    }
    out.extend(differences.into_iter().map(|d| format!("{name}, at the end: {d}")));
    out
}

/// Are the events about a packet those that the row says?
fn check_reports(events: &[EventRow], sent: &Sent) -> Option<String> {
    let got: Vec<_> = events.iter().map(|e| (e.kind, e.rule, Reason::of(u32::from(e.reason)))).collect();
    let of_packet = |e: &EventRow| e.direction == sent.direction as u8 && e.bytes == sent.frame.bytes.len() as u32;
    if got != sent.reports {
        return Some(format!("expected reports {:?}, host {got:?}", sent.reports));
    }
    (!events.iter().all(of_packet)).then(|| format!("reports about another packet: {events:?}"))
}

/// Runs the pipeline on the host.
pub fn on_host(world: &World, direction: Direction, ifindex: u32, frame: &mut Frame, vlan: bool) -> Verdict {
    let mut s = scratch();
    match direction {
        Direction::Egress => pipeline::egress(frame, &world.maps, || Some(&mut s), ifindex, vlan),
        Direction::Ingress => pipeline::ingress(frame, &world.maps, || Some(&mut s), ifindex, vlan),
    }
}

/// The TC action that a verdict becomes.
pub fn action(v: Verdict) -> i32 {
    match v {
        Verdict::Next(_) => NEXT,
        Verdict::Drop(_) => SHOT,
        Verdict::Reply(_) | Verdict::Bounce(_) | Verdict::Redirect { .. } => REDIRECT,
    }
}

/// The mark that the packet has afterwards: an answer is let through by the endpoint's own program.
pub fn mark(v: Verdict, on_host: u32) -> u32 {
    match v {
        Verdict::Reply(_) | Verdict::Bounce(_) => MARK_OURS,
        Verdict::Next(_) | Verdict::Drop(_) | Verdict::Redirect { .. } => on_host,
    }
}

fn run_packet(world: &World, kernel: Option<&mut Kernel>, sent: &Sent) -> Vec<String> {
    let mut out = Vec::new();
    let mut frame = sent.frame.clone();
    let verdict = on_host(world, sent.direction, sent.ifindex, &mut frame, sent.vlan);
    if verdict != sent.verdict {
        out.push(format!("expected {:?}, host {verdict:?}", sent.verdict));
    }
    let dropped = matches!(verdict, Verdict::Drop(_));
    let mut wire = frame.bytes.clone();
    if let Some((start, field)) = sent.completed_at {
        sums::complete(&mut wire, start, start + field, field == 6);
    }
    if let Some(expected) = &sent.out
        && *expected != wire
    {
        out.push(format!("bytes\n    expected {}\n    host     {}", hex(expected), hex(&wire)));
    }
    if let Some(Err(e)) = sent.check.as_ref().map(|check| check(&wire)) {
        out.push(e);
    }
    let copies: Vec<_> = sent.copies.iter().map(|device| (*device, sent.frame.bytes.clone())).collect();
    if frame.copies != copies {
        out.push(format!("expected copies {copies:02x?}, host {:02x?}", frame.copies));
    }
    // Our marks end here; others are not ours to touch.
    let kept = if matches!(verdict.reason(), Reason::Probe | Reason::Ours) { 0 } else { sent.frame.mark };
    if frame.mark != kept {
        out.push(format!("host: the mark is {:#x}", frame.mark));
    }
    let sound = sums::verify(&sent.frame.bytes).is_ok() || sent.completed_at.is_some();
    if sound
        && !dropped
        && let Err(e) = sums::verify(&wire)
    {
        out.push(format!("host: {e}"));
    }
    if let Some(kernel) = kernel {
        let ran = kernel.run(sent.direction, sent.ifindex, &sent.frame);
        if ran.action != action(verdict) {
            out.push(format!("host {verdict:?}, kernel action {}", ran.action));
        }
        if ran.mark != mark(verdict, kept) {
            out.push(format!("host {verdict:?}, the kernel leaves the mark {:#x}", ran.mark));
        }
        let copies: Vec<_> = copies.into_iter().map(|(_, bytes)| bytes).collect();
        if kernel.copies() != copies {
            out.push(format!("copies, kernel: expected {copies:02x?}"));
        }
        if ran.bytes != frame.bytes {
            out.push(format!("bytes\n    host   {}\n    kernel {}", hex(&frame.bytes), hex(&ran.bytes)));
        }
    }
    out
}

/// Bytes, as a person reads them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.chunks(2).map(|b| b.iter().map(|b| format!("{b:02x}")).collect::<String>()).collect::<Vec<_>>().join(" ")
}
