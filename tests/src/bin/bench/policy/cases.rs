//! ns per packet of policed endpoints.

use super::tables::{self, Known, LARGE, SMALL, Size, USUAL};
use crate::Options;
use crate::packets::{Case, Family, Kernel, Peer, Protocol, Traffic, stay_on};
use crate::report::{Better, Row};
use anyhow::{Context as _, Result, ensure};
use vnet_common::event::kind;
use vnet_common::verdict::{Direction, Reason};

const SUITE: &str = "policy packets";
/// What 10,000 rules may cost an established flow, compared to 10.
const AS_BEFORE: f64 = 1.05;
/// ns that rules may add to a new flow.
const NEW_FLOW: f64 = 450.0;
/// ns that reporting a packet may cost.
const REPORTED: f64 = 60.0;
/// Packets in one run where each is reported: the ring buffer has room for 13,000.
const REPORTS: u32 = 8192;
/// Runs of those a round.
const REPORT_RUNS: u32 = 16;
const TO_VIP: &str = "to a VIP";
const TO_MANY: &str = "to many";
const BY_NETWORK: &str = "to many, by network";
const COUNTS: [(u32, &str); 2] = [(1 << 10, "1K"), (1 << 16, "64K")];

/// How the endpoint is policed while a case is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    size: Size,
    known: Known,
    /// Are the rules asked at all? Else this is only what a flow costs that is tracked.
    asked: bool,
    set: Option<u32>,
    events: u8,
    rate: u32,
}

const TEN: Setting = Setting { size: Size::Ten, known: Known::Exactly, asked: true, set: Some(SMALL), events: 0, rate: 0 };
const USUALLY: Setting = Setting { size: Size::TenThousand, set: Some(USUAL), ..TEN };
const LARGELY: Setting = Setting { set: Some(LARGE), ..USUALLY };
const UNPOLICED: Setting = Setting { set: None, ..USUALLY };
const NETWORKS: Setting = Setting { known: Known::ByNetwork, ..TEN };
const NOBODY_ASKED: Setting = Setting { asked: false, ..TEN };

/// What a case is compared to: `times` that one, and `plus` ns.
struct Goal {
    with: String,
    times: f64,
    plus: f64,
}

struct Measured {
    case: Case,
    setting: Setting,
    goal: Option<Goal>,
}

/// Measures every wanted case.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut all = cases();
    let compared: Vec<String> = all
        .iter()
        .filter(|m| options.wants(SUITE, &m.case.name))
        .filter_map(|m| m.goal.as_ref().map(|g| g.with.clone()))
        .collect();
    all.retain(|m| options.wants(SUITE, &m.case.name) || compared.contains(&m.case.name));
    if all.is_empty() {
        return Ok(Vec::new());
    }
    stay_on(0)?;
    let object = options.object()?;
    let mut kernels = Vec::new();
    for setting in [TEN, USUALLY, NETWORKS, NOBODY_ASKED] {
        let kind = setting.tables();
        if all.iter().any(|m| m.setting.tables() == kind) {
            kernels.push((kind, set_up(&object, setting)?));
        }
    }
    let (rounds, repeat) = if options.quick { (3, 200_000) } else { (15, 1_000_000) };
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for m in &mut all {
            let kind = m.setting.tables();
            let kernel = kernels.iter_mut().find(|k| k.0 == kind).map(|k| &mut k.1).context("no datapath for this case")?;
            m.measure(kernel, repeat).with_context(|| format!("measuring {}", m.case.name))?;
        }
    }
    Ok(all.iter().map(|m| m.row(&all)).collect())
}

impl Setting {
    /// Of what its datapath is.
    fn tables(self) -> (Size, Known, bool) {
        (self.size, self.known, self.asked)
    }
}

fn set_up(object: &[u8], setting: Setting) -> Result<Kernel> {
    let mut kernel = if setting.asked { Kernel::load(object, None, false)? } else { Kernel::load_without_rules(object)? };
    tables::write(&mut kernel, setting.size, setting.known, 1 << 16)?;
    for family in [Family::V4, Family::V6] {
        for protocol in [Protocol::Udp, Protocol::Ack] {
            kernel.note_peers(Traffic { family, protocol, direction: Direction::Egress, peer: Peer::Many, flows: 1 << 16 })?;
        }
    }
    Ok(kernel)
}

fn cases() -> Vec<Measured> {
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let f = if family == Family::V4 { "IPv4" } else { "IPv6" };
        for (protocol, p) in [(Protocol::Udp, "UDP"), (Protocol::Ack, "TCP")] {
            for (direction, way) in [(Direction::Egress, "egress"), (Direction::Ingress, "ingress")] {
                for (flows, count) in COUNTS {
                    let traffic = Traffic { family, protocol, direction, peer: Peer::Many, flows };
                    let name = |rules: &str| format!("established, {f} {p}, {way}, {count} flows, {rules} rules");
                    all.push(measured(name("10"), traffic, Reason::Established, TEN, None));
                    let goal = Goal { with: name("10"), times: AS_BEFORE, plus: 0.0 };
                    all.push(measured(name("10,000"), traffic, Reason::Established, USUALLY, Some(goal)));
                }
            }
        }
        all.extend(new_flows(family, f));
        all.extend(events(family, f));
    }
    all
}

/// New flows to a VIP, with and without rules; and to others, which without rules are not tracked at all: those are compared with the same
/// flows when nobody is asked about them.
fn new_flows(family: Family, f: &str) -> Vec<Measured> {
    let mut all = Vec::new();
    for (flows, count) in COUNTS {
        let name = |kind: &str, rules: &str| format!("new flow, {f} UDP, {kind}, {count} flows, {rules}");
        let mut add = |kind: &str, setting, rules: &str, goal: Option<String>| {
            let (peer, expect) = if kind == TO_VIP { (Peer::Vip, Reason::NewFlow) } else { (Peer::Many, Reason::Allowed) };
            let traffic = Traffic { family, protocol: Protocol::Udp, direction: Direction::Egress, peer, flows };
            let goal = goal.map(|with| Goal { with, times: 1.0, plus: NEW_FLOW });
            all.push(measured(name(kind, rules), traffic, expect, setting, goal));
        };
        for (kind, base, none) in [(TO_VIP, UNPOLICED, "not policed"), (TO_MANY, NOBODY_ASKED, "nobody asked")] {
            add(kind, base, none, None);
            for (setting, rules) in [(TEN, "10 rules"), (USUALLY, "10,000 rules"), (LARGELY, "4,000 rules in one set")] {
                add(kind, setting, rules, Some(name(kind, none)));
            }
        }
        add(BY_NETWORK, NETWORKS, "10 rules", Some(name(TO_MANY, "nobody asked")));
    }
    all
}

fn events(family: Family, f: &str) -> Vec<Measured> {
    let traffic = |peer| Traffic { family, protocol: Protocol::Udp, direction: Direction::Egress, peer, flows: 1024 };
    let name = |what: &str| format!("denied, {f} UDP, {what}");
    let denied = |what: &str, events, rate, goal: Option<f64>| {
        let goal = goal.map(|plus| Goal { with: name("events off"), times: 1.0, plus });
        measured(name(what), traffic(Peer::Stranger), Reason::Denied, Setting { events, rate, ..USUALLY }, goal)
    };
    let established = format!("established, {f} UDP, egress, 1K flows, 10,000 rules");
    let goal = Some(Goal { with: established.clone(), times: AS_BEFORE, plus: 0.0 });
    let all = Setting { events: kind::DROP | kind::LOG | kind::STAGED | kind::FLOW, rate: u32::MAX, ..USUALLY };
    vec![
        denied("events off", 0, 0, None),
        denied("other events wanted", kind::LOG | kind::STAGED, u32::MAX, None),
        denied("reported", kind::DROP, u32::MAX, Some(REPORTED)),
        denied("above the rate", kind::DROP, 0, Some(REPORTED)),
        measured(format!("{established}, all events wanted"), traffic(Peer::Many), Reason::Established, all, goal),
    ]
}

fn measured(name: String, traffic: Traffic, expect: Reason, setting: Setting, goal: Option<Goal>) -> Measured {
    Measured { case: Case::new(SUITE, name, traffic, expect, None), setting, goal }
}

impl Measured {
    fn measure(&mut self, kernel: &mut Kernel, repeat: u32) -> Result<()> {
        tables::police(kernel, self.setting.set)?;
        tables::want_events(kernel, self.setting.events, self.setting.rate)?;
        let reported = self.setting.events & kind::DROP != 0 && self.setting.rate != 0;
        if reported && self.case.name.starts_with("denied") {
            kernel.drain_events()?;
            return self.case.measure_runs(kernel, REPORTS, REPORT_RUNS, |kernel| {
                let events = kernel.drain_events()?;
                ensure!(events == u64::from(REPORTS), "{events} of {REPORTS} packets were reported");
                Ok(())
            });
        }
        self.case.measure(kernel, repeat)?;
        kernel.drain_events().map(drop)
    }

    fn row(&self, all: &[Self]) -> Row {
        let row = self.case.row();
        let goal = self.goal.as_ref().and_then(|g| all.iter().find(|m| m.case.name == g.with).map(|m| (g, m.case.median())));
        match goal {
            Some((g, floor)) => row.with_goal(floor, floor * g.times + g.plus, Better::Less),
            None => row,
        }
    }
}
