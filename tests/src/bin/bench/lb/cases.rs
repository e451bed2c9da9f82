//! ns per packet.

use super::frames::{Family, Peer, Protocol, Traffic};
use super::kernel::{Kernel, Target};
use super::traffic::stay_on;
use crate::Options;
use crate::report::{Better, Row, median};
use anyhow::{Context as _, Result, ensure};
use vnet_common::verdict::{Direction, Reason};

const SUITE: &str = "lb packets";
/// More flows than this do not fit the default tables.
const DEFAULT_FLOWS: u32 = 1 << 16;
/// Entries in the main tables of a datapath for more.
const MORE_ENTRIES: u32 = 1 << 21;
const COUNTS: [(u32, &str); 4] = [(1, "1"), (1 << 10, "1K"), (1 << 16, "64K"), (1 << 19, "512K")];

/// What is measured.
struct Case {
    name: String,
    traffic: Traffic,
    /// What every packet must be counted as.
    expect: Reason,
    /// The members are endpoints of this host, delivered to past its stack.
    past_the_stack: bool,
    /// ns above the floor.
    goal: Option<f64>,
    /// One value a round; and of the null program in the same harness.
    values: Vec<f64>,
    floors: Vec<f64>,
}

/// Measures every wanted case.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut cases = cases();
    cases.retain(|case| options.wants(SUITE, &case.name));
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    // The caches are per CPU.
    stay_on(0)?;
    let object = options.object()?;
    let mut usual = Kernel::load(&object, None, false)?;
    let past = cases.iter().any(|case| case.past_the_stack);
    let mut past = past.then(|| Kernel::load(&object, None, true)).transpose()?;
    let big = cases.iter().any(|case| case.traffic.flows > DEFAULT_FLOWS);
    let mut big = big.then(|| Kernel::load(&object, Some(MORE_ENTRIES), false)).transpose()?;
    let (rounds, repeat) = if options.quick { (3, 200_000) } else { (15, 1_000_000) };
    let mut null = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        null.push(usual.bare_null(repeat)?);
        for case in &mut cases {
            let other = if case.past_the_stack { &mut past } else { &mut big };
            let kernel =
                if case.past_the_stack || case.traffic.flows > DEFAULT_FLOWS { other.as_mut() } else { Some(&mut usual) };
            let kernel = kernel.context("no datapath for this case")?;
            case.measure(kernel, repeat).with_context(|| format!("measuring {}", case.name))?;
        }
    }
    let mut rows = vec![Row::new(SUITE, "null program alone", "ns", &null)];
    rows.extend(cases.iter().map(Case::row));
    Ok(rows)
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        for direction in [Direction::Egress, Direction::Ingress] {
            all.push(not_ours(family, direction));
        }
        for protocol in [Protocol::Udp, Protocol::Ack] {
            all.extend(COUNTS.map(|count| established(family, protocol, Direction::Egress, count)));
            all.push(established(family, protocol, Direction::Ingress, COUNTS[1]));
            all.push(past_the_stack(family, protocol));
        }
        for protocol in [Protocol::Udp, Protocol::Syn] {
            all.extend(COUNTS.map(|count| new(family, protocol, count)));
        }
    }
    all
}

fn names(family: Family, protocol: Protocol) -> (&'static str, &'static str) {
    let family = if family == Family::V4 { "IPv4" } else { "IPv6" };
    (family, if protocol == Protocol::Udp { "UDP" } else { "TCP" })
}

fn not_ours(family: Family, direction: Direction) -> Case {
    let traffic = Traffic { family, protocol: Protocol::Udp, direction, peer: Peer::Stranger, flows: 1024 };
    let way = if direction == Direction::Egress { "egress" } else { "ingress" };
    Case::new(format!("not for a group, {}, {way}", names(family, Protocol::Udp).0), traffic, Reason::NotOurs, Some(50.0))
}

fn established(family: Family, protocol: Protocol, direction: Direction, (flows, count): (u32, &str)) -> Case {
    let (peer, expect, way) = match direction {
        Direction::Egress => (Peer::Vip, Reason::Established, "egress"),
        Direction::Ingress => (Peer::Member, Reason::Reply, "ingress"),
    };
    let goal = match (flows, family) {
        (0..=1024, Family::V4) => Some(60.0),
        (0..=1024, Family::V6) => Some(90.0),
        (1025..=DEFAULT_FLOWS, _) => Some(200.0),
        _ => None,
    };
    let (f, p) = names(family, protocol);
    Case::new(
        format!("established, {f} {p}, {way}, {count} flows"),
        Traffic { family, protocol, direction, peer, flows },
        expect,
        goal,
    )
}

fn past_the_stack(family: Family, protocol: Protocol) -> Case {
    let (f, p) = names(family, protocol);
    let traffic = Traffic { family, protocol, direction: Direction::Egress, peer: Peer::Vip, flows: 1024 };
    let case = Case::new(format!("established, {f} {p}, past the stack, 1K flows"), traffic, Reason::Established, None);
    Case { past_the_stack: true, ..case }
}

fn new(family: Family, protocol: Protocol, (flows, count): (u32, &str)) -> Case {
    let (f, p) = names(family, protocol);
    let traffic = Traffic { family, protocol, direction: Direction::Egress, peer: Peer::Vip, flows };
    let goal = (flows == 1024).then_some(600.0);
    Case::new(format!("new flow, {f} {p}, {count} flows"), traffic, Reason::NewFlow, goal)
}

impl Case {
    fn new(name: String, traffic: Traffic, expect: Reason, goal: Option<f64>) -> Self {
        Self { name, traffic, expect, past_the_stack: false, goal, values: Vec::new(), floors: Vec::new() }
    }

    fn measure(&mut self, kernel: &mut Kernel, repeat: u32) -> Result<()> {
        let t = self.traffic;
        kernel.empty_caches(t)?;
        if self.expect == Reason::NewFlow {
            return self.measure_new(kernel);
        }
        let target = Target::from(t.direction);
        if self.expect != Reason::NotOurs {
            kernel.establish(t)?;
        }
        // The first packet of a flow puts it into the cache, where there is room; twice, since that may take a while.
        kernel.send(t, target, (2 * t.flows).max(10_000))?;
        let value = self.counted(kernel, repeat, |kernel| kernel.send(t, target, repeat))?;
        self.values.push(value);
        self.floors.push(kernel.send(t, Target::Null, repeat)?);
        if self.expect != Reason::NotOurs {
            kernel.forget(t)?;
        }
        Ok(())
    }

    /// Every flow once, and again after all were removed, if they are few.
    fn measure_new(&mut self, kernel: &mut Kernel) -> Result<()> {
        let t = self.traffic;
        let times = ((1 << 16) / t.flows).clamp(1, 64);
        let (mut values, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..times {
            values.push(self.counted(kernel, t.flows, |kernel| kernel.send(t, Target::Egress, t.flows))?);
            floors.push(kernel.send(t, Target::Null, t.flows)?);
            kernel.forget(t)?;
        }
        self.values.push(median(&values));
        self.floors.push(median(&floors));
        Ok(())
    }

    /// Runs something, and makes sure that the packets met the fate that is measured.
    fn counted(&self, kernel: &mut Kernel, packets: u32, f: impl FnOnce(&mut Kernel) -> Result<f64>) -> Result<f64> {
        let before = kernel.count(self.traffic.direction, self.expect)?;
        let value = f(kernel)?;
        let counted = kernel.count(self.traffic.direction, self.expect)? - before;
        ensure!(counted == u64::from(packets), "{counted} of {packets} packets were {}", self.expect.name());
        Ok(value)
    }

    fn row(&self) -> Row {
        let row = Row::new(SUITE, &self.name, "ns", &self.values);
        let floor = median(&self.floors);
        match self.goal {
            Some(goal) => row.with_goal(floor, floor + goal, Better::Less),
            None => row,
        }
    }
}
