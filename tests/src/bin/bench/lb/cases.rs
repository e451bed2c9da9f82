//! ns per packet.

use crate::Options;
use crate::packets::{Case, Family, Kernel, Peer, Protocol, Traffic, stay_on};
use crate::report::Row;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use vnet_common::lb::flags as group_flags;
use vnet_common::verdict::{Direction, Reason};

const SUITE: &str = "lb packets";
/// More flows than this do not fit the default tables.
const DEFAULT_FLOWS: u32 = 1 << 16;
/// Entries in the main tables of a datapath for more.
const MORE_ENTRIES: u32 = 1 << 21;
const COUNTS: [(u32, &str); 4] = [(1, "1"), (1 << 10, "1K"), (1 << 16, "64K"), (1 << 19, "512K")];

/// What a case is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Bed {
    /// Eight members on other hosts, and tables of the default sizes.
    Usual,
    /// The members are endpoints of this host, delivered to past its stack.
    PastTheStack,
    /// Larger flow tables.
    ManyFlows,
    /// 10,000 members, and 10,000 other groups.
    Crowded,
}

impl Bed {
    fn load(self, object: &[u8]) -> Result<Kernel> {
        match self {
            Self::Usual => Kernel::load(object, None, false),
            Self::PastTheStack => Kernel::load(object, None, true),
            Self::ManyFlows => Kernel::load(object, Some(MORE_ENTRIES), false),
            Self::Crowded => Kernel::load_crowded(object),
        }
    }
}

/// Measures every wanted case.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut cases = cases();
    cases.retain(|(_, case)| options.wants(SUITE, &case.name));
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    // The caches are per CPU.
    stay_on(0)?;
    let object = options.object()?;
    let mut beds = BTreeMap::new();
    for bed in cases.iter().map(|(bed, _)| *bed).chain([Bed::Usual]) {
        if let Entry::Vacant(place) = beds.entry(bed) {
            place.insert(bed.load(&object).with_context(|| format!("setting up {bed:?}"))?);
        }
    }
    let (rounds, repeat) = if options.quick { (3, 200_000) } else { (15, 1_000_000) };
    let mut null = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        null.push(beds.get_mut(&Bed::Usual).context("no datapath")?.bare_null(repeat)?);
        for (bed, case) in &mut cases {
            let kernel = beds.get_mut(bed).context("no datapath for this case")?;
            case.measure(kernel, repeat).with_context(|| format!("measuring {}", case.name))?;
        }
    }
    let mut rows = vec![Row::new(SUITE, "null program alone", "ns", &null)];
    rows.extend(cases.iter().map(|(_, case)| case.row()));
    Ok(rows)
}

fn cases() -> Vec<(Bed, Case)> {
    let (mut all, mut past) = (Vec::new(), Vec::new());
    for family in [Family::V4, Family::V6] {
        for direction in [Direction::Egress, Direction::Ingress] {
            all.push(not_ours(family, direction));
        }
        for protocol in [Protocol::Udp, Protocol::Ack] {
            all.extend(COUNTS.map(|count| established(family, protocol, Direction::Egress, count)));
            all.push(established(family, protocol, Direction::Ingress, COUNTS[1]));
            past.push(past_the_stack(family, protocol));
        }
        for protocol in [Protocol::Udp, Protocol::Syn] {
            all.extend(COUNTS.map(|count| new(family, protocol, count)));
        }
    }
    all.extend(algorithms());
    let bed = |case: &Case| if case.traffic.flows > DEFAULT_FLOWS { Bed::ManyFlows } else { Bed::Usual };
    let mut all: Vec<_> = all.into_iter().map(|case| (bed(&case), case)).collect();
    all.extend(past.into_iter().map(|case| (Bed::PastTheStack, case)));
    all.extend(crowded().into_iter().map(|case| (Bed::Crowded, case)));
    all
}

/// What new flows cost by how their member is picked.
fn algorithms() -> Vec<Case> {
    const KINDS: [(&str, u32); 4] = [
        ("roundRobin", group_flags::ROUND_ROBIN),
        ("leastConnections", group_flags::LEAST_CONNECTIONS),
        ("sourceHash", group_flags::SOURCE_HASH),
        // After its first flows a client sticks.
        ("affinity", group_flags::affinity(60)),
    ];
    KINDS.map(|(name, flags)| new(Family::V4, Protocol::Udp, COUNTS[1]).called(name).picking(flags)).into()
}

/// The same as usual, among many.
fn crowded() -> Vec<Case> {
    let mut all = vec![not_ours(Family::V4, Direction::Egress)];
    all.extend(COUNTS[1..3].iter().map(|count| established(Family::V4, Protocol::Udp, Direction::Egress, *count)));
    all.extend(COUNTS[1..3].iter().map(|count| new(Family::V4, Protocol::Udp, *count)));
    all.push(new(Family::V4, Protocol::Udp, COUNTS[1]).called("leastConnections").picking(group_flags::LEAST_CONNECTIONS));
    all.into_iter().map(|case| case.called("10,000 members and groups")).collect()
}

fn names(family: Family, protocol: Protocol) -> (&'static str, &'static str) {
    let family = if family == Family::V4 { "IPv4" } else { "IPv6" };
    (family, if protocol == Protocol::Udp { "UDP" } else { "TCP" })
}

fn not_ours(family: Family, direction: Direction) -> Case {
    let traffic = Traffic { family, protocol: Protocol::Udp, direction, peer: Peer::Stranger, flows: 1024 };
    let way = if direction == Direction::Egress { "egress" } else { "ingress" };
    Case::new(SUITE, format!("not for a group, {}, {way}", names(family, Protocol::Udp).0), traffic, Reason::NotOurs, Some(50.0))
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
        SUITE,
        format!("established, {f} {p}, {way}, {count} flows"),
        Traffic { family, protocol, direction, peer, flows },
        expect,
        goal,
    )
}

fn past_the_stack(family: Family, protocol: Protocol) -> Case {
    let (f, p) = names(family, protocol);
    let traffic = Traffic { family, protocol, direction: Direction::Egress, peer: Peer::Vip, flows: 1024 };
    Case::new(SUITE, format!("established, {f} {p}, past the stack, 1K flows"), traffic, Reason::Established, None)
}

fn new(family: Family, protocol: Protocol, (flows, count): (u32, &str)) -> Case {
    let (f, p) = names(family, protocol);
    let traffic = Traffic { family, protocol, direction: Direction::Egress, peer: Peer::Vip, flows };
    let goal = (flows == 1024).then_some(600.0);
    Case::new(SUITE, format!("new flow, {f} {p}, {count} flows"), traffic, Reason::NewFlow, goal)
}
