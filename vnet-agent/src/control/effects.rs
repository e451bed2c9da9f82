//! What a change would do, beside what it changes in the resources: to rules, endpoints, and flows that are alive.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use vnet_common::api::{Effects, EndpointFlow, RuleRef};
use vnet_common::flow::flags;
use vnet_common::parse::protocol;
use vnet_common::policy::evaluate::{Judged, Question, evaluate};
use vnet_common::policy::{action, port_key};
use vnet_common::verdict::Direction;

use super::inputs::Inputs;
use crate::datapath::Datapath;
use crate::datapath::flows::Flow;
use crate::lb::compile::{Group, Surroundings};
use crate::observe::Names;
use crate::observe::flows::describe;
use crate::policy::Image;
use crate::policy::compile::address_key;

/// Flows that are looked at; of more, a note says so.
const FLOWS: usize = 1 << 16;
/// Flows that are listed.
const LISTED: usize = 100;

/// What is compared.
pub struct Change<'a> {
    /// What is in force; `None`: nothing yet.
    pub old: Option<&'a Image>,
    /// What would be.
    pub new: &'a Image,
    /// The inputs that it would follow from.
    pub inputs: &'a Inputs,
    /// Where members would be.
    pub surroundings: &'a Surroundings,
    /// Load balancers that change, or go.
    pub balancers: &'a [String],
}

/// What the change does.
pub fn of(change: &Change<'_>, datapath: &Datapath, names: &Names) -> Result<Effects> {
    let mut effects = Effects::default();
    rules(change, &mut effects);
    endpoints(change, &mut effects);
    let (flows, _) = datapath.endpoint_flows(FLOWS, |_| true).context("reading the flows that are alive")?;
    cut(change, &flows, datapath, names, &mut effects)?;
    moved(change, &flows, datapath, names, &mut effects)?;
    Ok(effects)
}

fn rules(change: &Change<'_>, effects: &mut Effects) {
    let all = |image: Option<&Image>| -> BTreeMap<_, RuleRef> {
        let rules = image.into_iter().flat_map(Image::rules);
        let rules = rules.map(|(r, _)| RuleRef { place: String::new(), id: 0, ..r.clone() });
        let key =
            |r: &RuleRef| (r.kind.clone(), r.resource.clone(), r.direction.clone(), r.rule.clone(), r.action.clone(), r.staged);
        rules.map(|r| (key(&r), r)).collect()
    };
    let (old, new) = (all(change.old), all(Some(change.new)));
    effects.rules_added = new.iter().filter(|(key, _)| !old.contains_key(*key)).map(|(_, rule)| rule.clone()).collect();
    effects.rules_removed = old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(_, rule)| rule.clone()).collect();
}

fn endpoints(change: &Change<'_>, effects: &mut Effects) {
    let shown = |image: &Image, name: &str| {
        let lists = [Direction::Egress, Direction::Ingress].map(|d| image.rules_of(name, d));
        (image.endpoint(name).map(|placed| placed.subject.group.clone()), lists)
    };
    let mut names: Vec<&str> = change.new.endpoints().map(|placed| &*placed.subject.name).collect();
    names.sort_unstable();
    for name in names {
        let (group, lists) = shown(change.new, name);
        let before = change.old.map(|old| shown(old, name));
        let what = match &before {
            None | Some((None, _)) => continue,
            Some((was, _)) if *was != group => {
                format!("group {} becomes {}", was.as_deref().unwrap_or(""), group.as_deref().unwrap_or(""))
            }
            Some((_, were)) if *were != lists => "other rules".to_owned(),
            Some(_) => continue,
        };
        effects.endpoints.push((name.to_owned(), what));
    }
}

/// What would become of each flow of a policed endpoint.
fn cut(change: &Change<'_>, flows: &[Flow], datapath: &Datapath, names: &Names, effects: &mut Effects) -> Result<()> {
    let there: Vec<&str> = change.new.endpoints().filter(|p| p.local.is_some()).map(|p| &*p.subject.name).collect();
    let (tables, assigned) = change.new.fill(&there).context("laying out the rules")?;
    for flow in flows {
        let name = names.endpoint(flow.endpoint);
        let Some(to) = assigned.get(&name).filter(|a| a.policed) else { continue };
        let judge = |peer: SocketAddr, direction: Direction| {
            let port = match flow.protocol {
                protocol::ICMP => [8, 0],
                protocol::ICMPV6 => [128, 0],
                _ => if direction == Direction::Egress { peer.port() } else { flow.client.port() }.to_be_bytes(),
            };
            let question = Question {
                peer: address_key(0, peer.ip()),
                set: to.set,
                direction: direction as u32,
                port: port_key(flow.protocol, port),
            };
            let mut judged = Judged::default();
            evaluate(&tables, &question, &mut judged).then_some(judged)
        };
        let direction = if flow.flags & flags::INBOUND != 0 { Direction::Ingress } else { Direction::Egress };
        let mut answers = vec![judge(flow.vip, direction)];
        if flow.is_balanced() && flow.flags & flags::STEERED == 0 {
            answers.push(judge(flow.member, direction));
        }
        let steered = flow.flags & flags::STEERED != 0;
        let stays = |rule: u8| rule == if steered { action::REDIRECT } else { action::ALLOW };
        let decided = answers.iter().flatten().max_by_key(|j| weight(j));
        if decided.is_some_and(|j| stays(j.rule.action)) {
            continue;
        }
        effects.flows_total[0] += 1;
        if effects.flows_cut.len() < LISTED {
            let rule = decided.and_then(|j| change.new.rule(j.rule.id)).map(|(rule, _)| rule.clone());
            effects.flows_cut.push((describe(flow, names, datapath.maps())?, rule));
        }
    }
    Ok(())
}

/// As the datapath weighs what is said of a VIP against what is said of its member.
fn weight(judged: &Judged) -> u8 {
    use vnet_common::policy::rule_flags::DEFAULT;
    match (judged.rule.flags & DEFAULT != 0, judged.rule.action) {
        (true, _) => 0,
        (false, action::ALLOW) => 1,
        (false, _) => 2,
    }
}

/// Flows of load balancers whose members would go.
fn moved(change: &Change<'_>, flows: &[Flow], datapath: &Datapath, names: &Names, effects: &mut Effects) -> Result<()> {
    let groups: HashMap<&str, Vec<Group>> =
        change.balancers.iter().map(|lb| (lb.as_str(), change.inputs.compile(lb, change.surroundings).1)).collect();
    for flow in flows.iter().filter(|f| f.is_balanced()) {
        let Some((lb, _)) = names.members.get(&(flow.member_row, flow.serial)) else { continue };
        let Some(groups) = groups.get(lb.as_str()) else { continue };
        let fate = match groups.iter().find(|g| leads_here(g, flow)) {
            None => "reset: the VIP's port is not balanced any more",
            Some(g) if g.members.iter().any(|m| SocketAddr::new(m.address, m.port) == flow.member) => continue,
            Some(g) if g.flags & vnet_common::lb::flags::REMOVED_REPICK != 0 => "goes to another member: its own is removed",
            Some(_) => "reset: its member is removed",
        };
        effects.flows_total[1] += 1;
        if effects.flows_moved.len() < LISTED {
            let shown: EndpointFlow = describe(flow, names, datapath.maps())?;
            effects.flows_moved.push((shown, fate.to_owned()));
        }
    }
    Ok(())
}

fn leads_here(group: &Group, flow: &Flow) -> bool {
    let vip: IpAddr = flow.vip.ip();
    let protocol = crate::lb::live::protocol_number(group.protocol);
    group.vips.contains(&vip) && (group.port..=group.last_port).contains(&flow.vip.port()) && protocol == flow.protocol
}
