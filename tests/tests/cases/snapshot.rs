//! Every counter and every flow, in a form that host and kernel share.

use std::collections::BTreeMap;

use vnet_common::addr::Address;
use vnet_common::endpoint::EndpointCounters;
use vnet_common::event::EventRow;
use vnet_common::flow::{CacheSlot, FlowEntry, FlowKey, NO_MEMBER, Table};
use vnet_common::host::{Flows, Maps};
use vnet_common::lb::{MemberAnswers, MemberCounters};
use vnet_common::policy::RuleCounters;

/// Counters, with what flow caches still hold added, and flow entries, without their times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// By slot; rows without a packet are left out.
    pub endpoints: BTreeMap<u32, EndpointCounters>,
    /// By row; likewise.
    pub members: BTreeMap<u32, MemberCounters>,
    /// Resets by the member, ICMP errors about it, connections that were given up, and those that it answered, by row; likewise.
    pub answers: BTreeMap<u32, [u64; 4]>,
    /// Flows that are not closed, by member; likewise.
    pub active: BTreeMap<u32, i64>,
    /// Flows that endpoints have of their quota; likewise.
    pub quota: BTreeMap<u32, u32>,
    /// By rule number; likewise.
    pub rules: BTreeMap<u32, RuleCounters>,
    /// What was reported, in order.
    pub events: Vec<EventRow>,
    /// Entries in the main tables of both families.
    pub main: Vec<String>,
    /// Entries in the half-open ones.
    pub half_open: Vec<String>,
}

impl Snapshot {
    /// Of the host.
    pub fn of(maps: &Maps) -> Self {
        let mut s = Self::default();
        maps.counters.borrow().iter().for_each(|(slot, c)| s.add_endpoint(*slot, *c));
        maps.member_counters.borrow().iter().for_each(|(row, c)| s.add_member(*row, *c));
        maps.member_answers.borrow().iter().for_each(|(row, a)| s.add_answers(*row, a));
        maps.active.borrow().iter().for_each(|(row, n)| s.add_active(*row, *n));
        maps.flow_counts.borrow().iter().for_each(|(slot, n)| s.add_quota(*slot, *n));
        maps.policy.counters.borrow().iter().for_each(|(id, c)| s.add_rule(*id, *c));
        s.events = maps.reported.borrow().iter().map(|e| EventRow { jiffies: 0, ..*e }).collect();
        s.add_host_flows(&maps.flows4);
        s.add_host_flows(&maps.flows6);
        s.sorted()
    }

    fn add_host_flows<A: Address>(&mut self, flows: &Flows<A>) {
        let cache: Vec<_> = flows.cache.borrow().values().copied().collect();
        let entries =
            |t: &std::cell::RefCell<std::collections::HashMap<_, _>>| t.borrow().iter().map(|(k, e)| (*k, *e)).collect();
        self.add_flows(&cache, entries(&flows.main), entries(&flows.half_open));
    }

    /// Adds the counters of an endpoint.
    pub fn add_endpoint(&mut self, slot: u32, c: EndpointCounters) {
        if c != EndpointCounters::default() {
            self.endpoints.insert(slot, c);
        }
    }
    /// Adds the counters of a member.
    pub fn add_member(&mut self, row: u32, c: MemberCounters) {
        if c != MemberCounters::default() {
            self.members.insert(row, c);
        }
    }
    /// Adds how a member answered; the times are the kernel's own.
    pub fn add_answers(&mut self, row: u32, a: &MemberAnswers) {
        let counts = [a.resets, a.unreachable, a.given_up, a.connects.iter().sum()];
        if counts != [0; 4] {
            let sum = self.answers.entry(row).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
    }
    /// Adds the flows that a member has.
    pub fn add_active(&mut self, row: u32, n: i64) {
        if n != 0 {
            self.active.insert(row, n);
        }
    }
    /// Adds the counters of a rule.
    pub fn add_rule(&mut self, id: u32, c: RuleCounters) {
        if c != RuleCounters::default() {
            self.rules.insert(id, c);
        }
    }
    /// Adds what an endpoint has of its quota.
    pub fn add_quota(&mut self, slot: u32, n: u32) {
        if n != 0 {
            self.quota.insert(slot, n);
        }
    }

    /// Adds the flows of one family, after its members' counters.
    pub fn add_flows<A: Address>(
        &mut self,
        cache: &[CacheSlot<A>],
        main: Vec<(FlowKey<A>, FlowEntry<A>)>,
        half_open: Vec<(FlowKey<A>, FlowEntry<A>)>,
    ) {
        let held: Vec<_> = cache.iter().filter(|s| s.key.endpoint != 0 && s.packets != 0).collect();
        for s in held.iter().filter(|s| s.member != NO_MEMBER) {
            let c = self.members.entry(s.member).or_default();
            c.packets[usize::from(s.key.direction)] += u64::from(s.packets);
            c.bytes[usize::from(s.key.direction)] += u64::from(s.bytes);
        }
        for (key, mut e) in main {
            for s in held.iter().filter(|s| s.key == key) {
                e.packets += u64::from(s.packets);
                e.bytes += u64::from(s.bytes);
            }
            self.main.push(line(Table::Main, &key, e));
        }
        self.half_open.extend(half_open.into_iter().map(|(key, e)| line(Table::HalfOpen, &key, e)));
    }

    /// In the order in which snapshots are compared.
    pub fn sorted(mut self) -> Self {
        self.main.sort();
        self.half_open.sort();
        self
    }

    /// What differs from `other`, in words; empty if nothing does.
    pub fn differences(&self, mine: &str, other: &Self, others: &str) -> Vec<String> {
        let mut out = Vec::new();
        let mut compare = |what: &str, a: String, b: String| {
            if a != b {
                out.push(format!("{what}:\n    {mine}: {a}\n    {others}: {b}"));
            }
        };
        compare("endpoint counters", endpoints(&self.endpoints), endpoints(&other.endpoints));
        compare("member counters", format!("{:?}", self.members), format!("{:?}", other.members));
        compare("answers", format!("{:?}", self.answers), format!("{:?}", other.answers));
        compare("active", format!("{:?}", self.active), format!("{:?}", other.active));
        compare("quota", format!("{:?}", self.quota), format!("{:?}", other.quota));
        compare("rules", format!("{:?}", self.rules), format!("{:?}", other.rules));
        compare("events", format!("{:?}", self.events), format!("{:?}", other.events));
        compare("main table", lines(&self.main), lines(&other.main));
        compare("half-open table", lines(&self.half_open), lines(&other.half_open));
        out
    }
}

fn lines(entries: &[String]) -> String {
    entries.iter().map(|e| format!("\n      {e}")).collect()
}

fn line<A: Address>(table: Table, key: &FlowKey<A>, e: FlowEntry<A>) -> String {
    format!("{table:?} {key:?} {:?}", FlowEntry { last_seen: 0, created: 0, ..e })
}

/// Endpoint counters, only those that count something.
pub fn endpoints(rows: &BTreeMap<u32, EndpointCounters>) -> String {
    use vnet_common::verdict::Reason;
    let mut out = String::new();
    for (slot, c) in rows {
        for (d, name) in [(0, "egress"), (1, "ingress")] {
            let counts: Vec<_> = Reason::ALL
                .iter()
                .filter(|r| c.packets[d][**r as usize] != 0)
                .map(|r| format!("{} {}", r.name(), c.packets[d][*r as usize]))
                .collect();
            if c.bytes[d] != 0 || !counts.is_empty() {
                out += &format!("[{slot} {name}: {} B, {}] ", c.bytes[d], counts.join(", "));
            }
        }
    }
    out
}
