//! ns per packet.

use crate::Options;
use crate::packets::{Case, Family, Kernel, Peer, Protocol, Traffic, stay_on};
use crate::report::Row;
use anyhow::{Context as _, Result};
use vnet_common::verdict::{Direction, Reason};

const SUITE: &str = "lb packets";
/// More flows than this do not fit the default tables.
const DEFAULT_FLOWS: u32 = 1 << 16;
/// Entries in the main tables of a datapath for more.
const MORE_ENTRIES: u32 = 1 << 21;
/// In the name of each case of its kind.
const PAST: &str = "past the stack";
const COUNTS: [(u32, &str); 4] = [(1, "1"), (1 << 10, "1K"), (1 << 16, "64K"), (1 << 19, "512K")];

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
    let past = cases.iter().any(is_past_the_stack);
    let mut past = past.then(|| Kernel::load(&object, None, true)).transpose()?;
    let big = cases.iter().any(|case| case.traffic.flows > DEFAULT_FLOWS);
    let mut big = big.then(|| Kernel::load(&object, Some(MORE_ENTRIES), false)).transpose()?;
    let (rounds, repeat) = if options.quick { (3, 200_000) } else { (15, 1_000_000) };
    let mut null = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        null.push(usual.bare_null(repeat)?);
        for case in &mut cases {
            let other = if is_past_the_stack(case) { &mut past } else { &mut big };
            let kernel =
                if is_past_the_stack(case) || case.traffic.flows > DEFAULT_FLOWS { other.as_mut() } else { Some(&mut usual) };
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

/// Are the members endpoints of this host, delivered to past its stack?
fn is_past_the_stack(case: &Case) -> bool {
    case.name.contains(PAST)
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
    Case::new(SUITE, format!("established, {f} {p}, {PAST}, 1K flows"), traffic, Reason::Established, None)
}

fn new(family: Family, protocol: Protocol, (flows, count): (u32, &str)) -> Case {
    let (f, p) = names(family, protocol);
    let traffic = Traffic { family, protocol, direction: Direction::Egress, peer: Peer::Vip, flows };
    let goal = (flows == 1024).then_some(600.0);
    Case::new(SUITE, format!("new flow, {f} {p}, {count} flows"), traffic, Reason::NewFlow, goal)
}
