//! What a program did with a packet, in stages and sentences, from the steps that were noted.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vnet_common::api::{Hop, RuleRef, Stage};
use vnet_common::endpoint::{EndpointRow, flags as endpoint_flags};
use vnet_common::flow::{Table, flags as flow_flags};
use vnet_common::policy::evaluate::{NONE, Search};
use vnet_common::policy::{AddressKey, RuleRow, action, rule_flags};
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::rows::Rows;
use super::target::{Place, Scene};
use super::view::{Known, Step};
use crate::observe::names::reserved;
use crate::policy::PEER_QUARANTINE;

/// Rules that are named as shadowed, at most.
const SHADOWED: usize = 100;

/// One program's run.
pub struct Run<'a> {
    /// Where.
    pub place: &'a Place,
    /// Its row; `None`: the device has none.
    pub row: Option<EndpointRow>,
    /// Which of the device's programs.
    pub direction: Direction,
    /// What was noted.
    pub steps: &'a [Step],
    /// What came out.
    pub verdict: Verdict,
    /// It is IPv4.
    pub v4: bool,
    /// The packet before, in one line.
    pub before: String,
    /// The packet afterwards, if it is another.
    pub after: Option<String>,
}

/// Tells a run.
pub fn hop<R: Rows>(scene: &Scene, rows: &R, run: &Run<'_>) -> Hop {
    let teller = Teller { scene, rows, run };
    let found = teller.decision();
    let rule = found.as_ref().map(|d| d.id).and_then(|id| scene.names.rule(id)).as_deref().cloned();
    let shadowed = found.iter().flat_map(|d| teller.shadowed(d)).collect();
    Hop {
        endpoint: run.place.name.clone(),
        device: run.place.device.clone(),
        direction: if run.direction == Direction::Egress { "egress" } else { "ingress" }.to_owned(),
        stages: teller.stages(found.as_ref()),
        verdict: verdict_name(run.verdict).to_owned(),
        reason: run.verdict.reason().name().to_owned(),
        rule,
        shadowed,
        packet: run.before.clone(),
        rewritten: run.after.clone(),
    }
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Next(_) => "next",
        Verdict::Redirect { .. } => "redirect",
        Verdict::Reply(_) | Verdict::Bounce(_) => "reply",
        Verdict::Drop(_) => "drop",
    }
}

/// The rule that decided.
struct Decision {
    /// Its number.
    id: u32,
    /// Where it was found, if rules were searched: rows of bits, and the first of the list's rows in `RULES`.
    found: Option<(Search, u32)>,
}

struct Teller<'a, R> {
    scene: &'a Scene,
    rows: &'a R,
    run: &'a Run<'a>,
}

impl<R: Rows> Teller<'_, R> {
    fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.run.steps.iter()
    }

    fn known(&self) -> Option<&Known> {
        self.steps().find_map(|s| if let Step::Flow(known) = s { Some(known) } else { None })
    }

    /// Where each rule was found: the search, its place in the list and the rule.
    fn searches(&self) -> Vec<(Search, u32, u32, RuleRow)> {
        let pairs = self.run.steps.iter().zip(self.run.steps.iter().skip(1));
        let found = pairs.filter_map(|pair| match pair {
            (Step::Search(search, place), Step::Rule(row, rule)) if *place != NONE => {
                Some((*search, *place, row.wrapping_sub(*place), *rule))
            }
            _ => None,
        });
        found.collect()
    }

    fn decision(&self) -> Option<Decision> {
        let hit = self.steps().rev().find_map(|s| match s {
            Step::Hit { id, staged: false } if *id != 0 => Some(*id),
            _ => None,
        });
        let renewed = self.steps().rev().find_map(|s| if let Step::Renewed(id) = s { Some(*id) } else { None });
        let known = || self.known().map(|k| k.rule);
        let id = hit.or(renewed).or_else(known).filter(|id| *id != 0)?;
        let found = self.searches().into_iter().find(|(_, _, _, rule)| rule.id == id);
        Some(Decision { id, found: found.map(|(search, _, first, _)| (search, first)) })
    }

    /// Every rule that matches, by its place in the list.
    fn matching(&self, search: &Search, first: u32) -> Vec<(u32, RuleRow)> {
        let mut all = Vec::new();
        for word in 0..search.words {
            let at = |row: u32| self.rows.bits(row.wrapping_add(word)).unwrap_or_default();
            let mut bits = at(search.by_peer) & at(search.by_port);
            while bits != 0 {
                let place = word << 6 | bits.trailing_zeros();
                all.extend(self.rows.rule(first.wrapping_add(place)).map(|rule| (place, rule)));
                bits &= bits - 1;
            }
        }
        all
    }

    /// Rules that match and are not asked, since the one that decided, or one that passed to a later tier, comes before them.
    fn shadowed(&self, decision: &Decision) -> Vec<RuleRef> {
        let Some((search, first)) = &decision.found else { return Vec::new() };
        let asked: BTreeSet<u32> = self.searches().iter().map(|(_, _, _, rule)| rule.id).collect();
        let matching = self.matching(search, *first);
        let others = matching.iter().filter(|(_, r)| r.flags & rule_flags::STAGED == 0 && !asked.contains(&r.id));
        others.take(SHADOWED).filter_map(|(_, r)| self.scene.names.rule(r.id)).map(|r| RuleRef::clone(&r)).collect()
    }

    fn stages(&self, decision: Option<&Decision>) -> Vec<Stage> {
        let mut stages = Stages::default();
        stages.add("endpoint", self.endpoint());
        let Some(row) = &self.run.row else { return stages.0 };
        stages.add("parse", self.run.before.clone());
        if row.flags & endpoint_flags::QUARANTINED != 0 {
            let name = &self.run.place.name;
            stages.add("quarantine", format!("{name} is in quarantine: only the rules of its quarantine group count"));
        }
        if row.flags & endpoint_flags::POLICED != 0 {
            stages.maybe("anti-spoofing", self.guard(row));
        }
        stages.maybe("flow", self.flow());
        stages.maybe("lb", self.balanced());
        let mut told = BTreeSet::new();
        for step in self.steps() {
            if let Step::Identity(key, identity) = step
                && told.insert(key.addr)
            {
                stages.add("identity", self.identity(key, *identity));
            }
        }
        for sentence in self.policy(decision) {
            stages.add("policy", sentence);
        }
        stages.add("deliver", self.deliver());
        stages.0
    }

    fn endpoint(&self) -> String {
        let Place { name, device, .. } = self.run.place;
        match &self.run.row {
            None => format!("{name} at {device} is not attached: the packet passes untouched"),
            Some(r) if r.flags & endpoint_flags::POLICED == 0 => {
                format!("{name} (number {}) at {device}: no policy applies to it", r.id)
            }
            Some(r) => format!("{name} (number {}) at {device}: policed by set {}, its identity is {}", r.id, r.set, r.identity),
        }
    }

    fn guard(&self, row: &EndpointRow) -> Option<String> {
        let reason = self.run.verdict.reason();
        let told = match reason {
            Reason::SpoofedMac => "the source MAC is not the endpoint's",
            Reason::SpoofedAddress => "the source address is not the endpoint's",
            Reason::SpoofedNeighbor => "ARP or neighbour discovery in the name of another",
            Reason::TunnelForbidden => "it may not originate tunnel packets",
            Reason::System => "let through before all rules: it keeps the network going",
            Reason::Probe => "one of the agent's own probes",
            Reason::Ours => "made by the datapath itself",
            Reason::Flooded => "addressed to another MAC",
            _ if self.run.direction == Direction::Ingress => return None,
            _ => match (row.flags & endpoint_flags::CHECK_MAC != 0, row.flags & endpoint_flags::CHECK_IP != 0) {
                (true, true) => "source MAC and address are the endpoint's",
                (true, false) => "the source MAC is the endpoint's; its address is not checked",
                (false, true) => "the source address is the endpoint's; its MAC is not checked",
                (false, false) => "neither MAC nor address is checked",
            },
        };
        Some(told.to_owned())
    }

    fn flow(&self) -> Option<String> {
        let made = self.steps().any(|s| *s == Step::Made);
        let Some(k) = self.known() else {
            return made.then(|| "not known yet: its entries are made".to_owned());
        };
        let table = if k.table == Table::HalfOpen { "being opened" } else { "known" };
        let opener = if k.flags & flow_flags::INBOUND != 0 { "the peer" } else { "the endpoint" };
        let judged = if k.current { "what was decided holds" } else { "the policy has changed since: judged again" };
        let again = if made { ", and it is made anew" } else { "" };
        Some(format!("{table}, opened by {opener}, {} packets this way: {judged}{again}", k.packets))
    }

    fn balanced(&self) -> Option<String> {
        let vips: Vec<_> = self.steps().filter_map(|s| if let Step::Vip(k, row) = s { Some((k, row)) } else { None }).collect();
        let member = self.steps().rev().find_map(|s| if let Step::Member(row, m) = s { Some((row, m)) } else { None });
        let nat = self.known().is_some_and(|k| k.flags & flow_flags::NAT != 0);
        if vips.is_empty() && member.is_none() {
            return None;
        }
        if let Some((row, m)) = member {
            let address = address(&m.addr, if self.run.v4 { 4 } else { 6 });
            let names = self.scene.names.members.get(&(*row, m.serial));
            let of = names.map_or(String::new(), |(lb, name)| format!(" ({name} of load balancer {lb})"));
            let how = if nat { "its flow belongs to" } else { "goes to" };
            return Some(format!("{how} member {address}, port {}{of}", u16::from_be_bytes(m.port)));
        }
        let found = |port: bool| vips.iter().any(|(k, row)| row.is_some() && (k.protocol != 0) == port);
        let told = match (found(true), found(false)) {
            (true, _) => "a VIP's port; no member takes new flows",
            (false, true) => "a VIP, without a group on this port",
            (false, false) => "no VIP",
        };
        Some(told.to_owned())
    }

    fn identity(&self, key: &AddressKey, identity: u32) -> String {
        let address = address(&key.addr, key.version as u8);
        if let Some((name, endpoint)) = self.scene.names.elsewhere(address) {
            let (name, host) = (endpoint.own_name(name), &endpoint.host);
            return format!(
                "{address} is endpoint {name} on host {host}: identity {identity} (at its host {})",
                endpoint.identity
            );
        }
        let name = self.scene.names.peer(address, identity);
        match (name.is_empty(), reserved(identity)) {
            (_, Some(reserved)) => format!("{address} is {name}: identity {identity} ({reserved})"),
            (true, None) => format!("{address} is in a network that rules name: identity {identity}"),
            (false, None) => format!("{address} is {name}: identity {identity}"),
        }
    }

    fn policy(&self, decision: Option<&Decision>) -> Vec<String> {
        let mut told = Vec::new();
        let searches = self.searches();
        for (_, _, _, rule) in &searches {
            if rule.action == action::PASS && rule.flags & rule_flags::STAGED == 0 && Some(rule.id) != decision.map(|d| d.id) {
                let sentence = format!("{} passes it on to a later tier", self.rule(rule.id));
                if !told.contains(&sentence) {
                    told.push(sentence);
                }
            }
        }
        match decision {
            Some(Decision { id, found: Some((search, first)) }) => {
                let rule = self.matching(search, *first).into_iter().find(|(_, r)| r.id == *id);
                let does = rule.map_or("decides about", |(_, r)| does(&r));
                let place = rule.map_or(String::new(), |(place, _)| format!(" (no. {} of its list)", place + 1));
                told.push(format!("{} {does} it{place}", self.rule(*id)));
            }
            Some(Decision { id, found: None }) => told.push(format!("{} allowed its flow", self.rule(*id))),
            None => {}
        }
        let staged = self.steps().filter_map(|s| match s {
            Step::Hit { id, staged: true } => Some(format!("{} would decide about it, if it were not staged", self.rule(*id))),
            _ => None,
        });
        told.extend(staged);
        told
    }

    fn rule(&self, id: u32) -> String {
        match self.scene.names.rule(id) {
            Some(r) if r.kind.is_empty() => format!("rule {id}"),
            Some(r) => {
                let place = if r.place.is_empty() { String::new() } else { format!(" at {}", r.place) };
                match r.kind.as_str() {
                    PEER_QUARANTINE => {
                        format!("rule '{}'{place} of quarantine group {}, which holds the peer,", r.rule, r.resource)
                    }
                    kind => format!("rule '{}' of {kind} {}{place}", r.rule, r.resource),
                }
            }
            None => "no rule".to_owned(),
        }
    }

    fn deliver(&self) -> String {
        let reason = self.run.verdict.reason().name();
        let changed = if self.run.after.is_some() { ", rewritten" } else { "" };
        match self.run.verdict {
            Verdict::Next(_) if self.run.direction == Direction::Ingress => format!("to the endpoint{changed} ({reason})"),
            Verdict::Next(_) => format!("to the host's stack{changed} ({reason})"),
            Verdict::Redirect { ifindex, .. } => {
                let device =
                    self.scene.at(ifindex).map_or_else(|| format!("device {ifindex}"), |p| format!("{} at {}", p.name, p.device));
                format!("past the stack to {device}{changed} ({reason})")
            }
            Verdict::Reply(
                Reason::NewFlow | Reason::HalfOpen | Reason::Established | Reason::Reply | Reason::Steered | Reason::Related,
            ) => format!("back to the endpoint, which is the member itself{changed} ({reason})"),
            Verdict::Reply(_) => format!("answered in the destination's place ({reason})"),
            Verdict::Bounce(_) => format!("answered in the endpoint's name ({reason})"),
            Verdict::Drop(_) => format!("dropped ({reason})"),
        }
    }
}

fn does(rule: &RuleRow) -> &'static str {
    match rule.action {
        action::ALLOW => "allows",
        action::DENY => "denies",
        action::REJECT => "rejects",
        action::REDIRECT => "redirects",
        _ => "decides about",
    }
}

fn address(wide: &[u8; 16], version: u8) -> IpAddr {
    match version {
        4 => IpAddr::V4(Ipv4Addr::new(wide[0], wide[1], wide[2], wide[3])),
        _ => IpAddr::V6(Ipv6Addr::from(*wide)),
    }
}

#[derive(Default)]
struct Stages(Vec<Stage>);

impl Stages {
    fn add(&mut self, stage: &str, found: String) {
        self.0.push(Stage { stage: stage.to_owned(), found });
    }

    fn maybe(&mut self, stage: &str, found: Option<String>) {
        self.0.extend(found.map(|found| Stage { stage: stage.to_owned(), found }));
    }
}
