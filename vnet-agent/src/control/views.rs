//! What users see. The lock is held only to copy names and rows; counters and flow tables are read without it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use vnet_common::api::{EndpointStatus, FlowList, FlowStatus, LbStatus, MapStatus, RuleRef, RuleStatus, SourceStatus, Status};
use vnet_common::endpoint::{EndpointCounters, flags as endpoint_flags};
use vnet_common::flow::ABI;
use vnet_common::lb::{MemberAnswers, MemberCounters, state};
use vnet_common::verdict::{Direction, Reason};

use super::attachments::Attachment;
use super::inputs::Nic;
use super::{Agent, State};
use crate::api::{Quarantine as _, Refusal};
use crate::datapath::{Datapath, ForeignProgram};
use crate::lb::compile::{Group, Mac};
use crate::lb::eject::Ejected;
use crate::lb::health::{Check, Health};
use crate::lb::live::{Live, protocol_number, table_blocks};
use crate::lb::status::{self, MemberRows, Sources, protocol_name};
use crate::resource::{LoadBalancer, Protocol};

/// A table is worth an alarm from here on, in per cent.
const NEARLY_FULL: u64 = 80;

/// The agent as a whole.
pub fn status(agent: &Agent) -> Result<Status, Refusal> {
    let (mut status, datapath, used) = agent.ask(|s| {
        let mut used = s.policy.known().map(|known| used_rows(known.live())).unwrap_or_default();
        let usage = s.security.usage();
        used.extend([("RULES", usage.rules), ("PORTS", usage.ports), ("BITS", usage.bits)]);
        Ok((summary(s), Arc::clone(&s.datapath), used))
    })?;
    let maps = datapath.maps();
    status.generation = maps.generation()?;
    status.maps = maps.status()?;
    for m in &mut status.maps {
        m.used = m.used.or_else(|| used.iter().find(|(name, _)| *name == m.name).map(|(_, n)| *n));
        status.alarms.extend(nearly_full(m));
    }
    status.map_memory_bytes = status.maps.iter().map(|m| m.memory_bytes).sum();
    status.uptime_seconds = agent.started.elapsed().as_secs();
    status.rss_bytes = rss()?;
    Ok(status)
}

fn summary(s: &State) -> Status {
    let troubles =
        [s.blind.as_deref(), s.policy.trouble(), s.security.trouble(), s.policy.store_trouble(), s.policy.feedback_trouble()];
    let mut alarms: Vec<String> = troubles.into_iter().flatten().map(str::to_owned).collect();
    alarms.extend(s.parts.quarantine.alarms());
    alarms.extend(s.parts.sources.status().iter().filter_map(source_alarm));
    alarms.extend(s.attachments.trouble().iter().cloned());
    for nic in s.policy.endpoints() {
        let Some(a) = s.attachments.get(nic.ifindex()) else { continue };
        alarms.extend(foreign_alarm(nic, a));
        alarms.extend(s.drops.alarms(a.row.id, &nic.name));
    }
    alarms.extend(health_alarms(s.policy.desired().groups()));
    alarms.extend(s.fleet_alarms());
    let late = s.checker.late();
    if late > 0 {
        alarms.push(format!(
            "{late} health checks came late, since too many members do not answer: use fewer checks or shorter timeouts"
        ));
    }
    Status {
        version: crate::VERSION.to_owned(),
        abi: ABI,
        pid: std::process::id(),
        endpoints: s.attachments.count() as u32,
        load_balancers: s.policy.inputs().load_balancers().count() as u32,
        alarms,
        fleet: s.fleet_brief(),
        ..Status::default()
    }
}

fn source_alarm(source: &SourceStatus) -> Option<String> {
    let failed = source.state.strip_prefix("failed: ")?;
    Some(format!("tag source {} does not listen: {failed}", source.name))
}

fn foreign_alarm(nic: &Nic, a: &Attachment) -> Option<String> {
    let foreign = &a.state.as_ref().ok()?.foreign;
    let names: Vec<String> = foreign.iter().map(ForeignProgram::to_string).collect();
    (!names.is_empty()).then(|| {
        format!(
            "endpoint {}: programs of others run before ours on {}: {}; see that they let packets through",
            nic.name,
            nic.device,
            names.join(", ")
        )
    })
}

fn health_alarms(groups: &[Group]) -> Vec<String> {
    let mut alarms = Vec::new();
    for g in groups {
        let down: Vec<&str> = g.members.iter().filter(|m| m.state == state::DOWN).map(|m| m.name.as_str()).collect();
        let place = format!("load balancer {}, port {}", g.lb, g.port);
        if g.members.iter().all(|m| m.state != state::ACTIVE) {
            alarms.push(format!(
                "{place}: no member takes new connections ({} down of {}); see `vnet-ctl lb members {}`",
                down.len(),
                g.members.len(),
                g.lb
            ));
        } else if !down.is_empty() {
            alarms.push(format!("{place}: {} of {} members down: {}", down.len(), g.members.len(), down.join(", ")));
        }
    }
    alarms
}

fn nearly_full(m: &MapStatus) -> Option<String> {
    let used = m.used.filter(|used| m.capacity > 1 && u64::from(*used) * 100 >= u64::from(m.capacity) * NEARLY_FULL)?;
    Some(format!("map {} ({}) is nearly full: {used} of {}; start the agent with a larger one", m.name, m.holds, m.capacity))
}

/// Rows of arrays that are in use.
fn used_rows(live: &Live) -> Vec<(&'static str, u32)> {
    let groups = live.groups.values().filter(|g| g.row.table != 0 || g.row.flags != 0).count();
    let members = live.members.values().filter(|m| m.state != state::NONE).count();
    let blocks = live.groups.values().map(|g| table_blocks(g.row.table).len()).sum::<usize>();
    [("GROUPS", groups), ("MEMBERS", members), ("MEMBER_COUNTERS", members), ("MEMBER_ANSWERS", members), ("MAGLEV", blocks)]
        .map(|(m, n)| (m, n as u32))
        .into()
}

fn rss() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("reading /proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).context("/proc/self/statm has no second number")?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).context("asking for the page size")?.unwrap_or(4096);
    Ok(pages * page as u64)
}

/// Every endpoint.
pub fn endpoints(agent: &Agent) -> Result<Vec<EndpointStatus>, Refusal> {
    let (nics, datapath) = agent.ask(|s| {
        let with = |n: &Nic| (n.clone(), s.attachments.get(n.ifindex()).cloned());
        Ok((s.policy.endpoints().iter().map(with).collect::<Vec<_>>(), Arc::clone(&s.datapath)))
    })?;
    let assignments = agent.parts.quarantine.assignments();
    let mut tags: HashMap<String, Vec<String>> = HashMap::new();
    for tag in agent.parts.quarantine.tags(None)? {
        let value = if tag.value.is_empty() { String::new() } else { format!("={}", tag.value) };
        tags.entry(tag.subject).or_default().push(format!("{}/{}{value}", tag.source, tag.name));
    }
    let status = |(nic, a): &(Nic, Option<Attachment>)| -> Result<EndpointStatus> {
        let row = datapath.maps().endpoint(nic.ifindex())?.unwrap_or_default();
        let policy = match row.flags {
            flags if flags & endpoint_flags::QUARANTINED != 0 => "quarantined",
            flags if flags & endpoint_flags::POLICED != 0 => "policed",
            _ => "allowed",
        };
        let status = endpoint(nic, a.as_ref(), &datapath)?;
        let shut = status.state == "attached" && agent.parts.placements.is_shut(&nic.name);
        Ok(EndpointStatus {
            state: if shut {
                "failed: its rules could not be made, and nothing passes: see the agent's alarms".into()
            } else {
                status.state
            },
            group: assignments.get(&nic.name).map_or_else(String::new, |a| a.group.clone()),
            policy: policy.to_owned(),
            identity: row.identity,
            tags: tags.get(&nic.name).cloned().unwrap_or_default(),
            ..status
        })
    };
    Ok(nics.iter().map(status).collect::<Result<_>>()?)
}

/// Every rule, or an endpoint's in their order, with what they decided.
pub fn rules(agent: &Agent, endpoint: Option<&str>) -> Result<Vec<RuleStatus>, Refusal> {
    let (image, datapath) = agent.ask(|s| Ok((s.security.image().cloned(), Arc::clone(&s.datapath))))?;
    let Some(image) = image else { return Ok(Vec::new()) };
    let last = image.rules().map(|(rule, _)| rule.id).max().unwrap_or(0);
    let counters = datapath.maps().rule_counters(last + 1)?;
    let users = image.rule_users();
    let status = |(rule, tier): (&RuleRef, &str)| {
        let counted = counters.get(rule.id as usize).copied().unwrap_or_default();
        RuleStatus {
            rule: rule.clone(),
            tier: tier.to_owned(),
            hits: counted.hits,
            bytes: counted.bytes,
            would_hit: counted.staged,
            endpoints: users.get(&rule.id).copied().unwrap_or(0),
        }
    };
    let mut rules: Vec<RuleStatus> = match endpoint {
        None => image.rules().map(status).collect(),
        Some(name) => {
            let lists = [Direction::Egress, Direction::Ingress].map(|direction| image.rules_of(name, direction));
            let [Some(egress), Some(ingress)] = lists else {
                return Err(Refusal::not_found(format!("there is no endpoint '{name}' on this host")));
            };
            egress.into_iter().chain(ingress).filter_map(|id| image.rule(id)).map(status).collect()
        }
    };
    // The redirect to a load balancer is one rule to people, and several rows.
    rules.dedup_by(|a, b| a.rule.id == b.rule.id);
    Ok(rules)
}

/// Load balancer and member by the member's row and serial.
pub fn member_names(s: &State) -> HashMap<(u32, u32), (String, String)> {
    let groups = s.policy.desired().groups();
    let Some(known) = s.policy.known() else { return HashMap::new() };
    let rows = MemberRows::new(known, groups);
    let named = groups.iter().flat_map(|g| g.members.iter().map(move |m| (g, m)));
    named.filter_map(|(g, m)| Some((rows.find(g, m)?, (g.lb.clone(), m.name.clone())))).collect()
}

fn endpoint(nic: &Nic, attachment: Option<&Attachment>, datapath: &Datapath) -> Result<EndpointStatus> {
    let state = match attachment.map(|a| &a.state) {
        None if nic.ifindex() == 0 => "absent".to_owned(),
        None => "failed: see the agent's alarms".to_owned(),
        Some(Ok(_)) => "attached".to_owned(),
        Some(Err(e)) => format!("failed: {e}"),
    };
    let counters = match attachment.filter(|a| a.row.id != 0) {
        Some(a) => datapath.maps().endpoint_counters(a.row.slot)?,
        None => EndpointCounters::default(),
    };
    let foreign = attachment.and_then(|a| a.state.as_ref().ok()).map(|a| a.foreign.as_slice()).unwrap_or_default();
    Ok(EndpointStatus {
        name: nic.name.clone(),
        discovered: nic.discovered,
        id: attachment.map_or(0, |a| a.row.id),
        device: nic.device.clone(),
        ifindex: nic.ifindex(),
        state,
        mac: (nic.mac != Mac::default()).then(|| mac(&nic.mac)),
        addresses: nic.addresses.iter().map(IpAddr::to_string).collect(),
        labels: nic.labels.clone(),
        foreign_programs: foreign.iter().map(ForeignProgram::to_string).collect(),
        bytes: counters.bytes,
        packets: packets(&counters),
        ..EndpointStatus::default()
    })
}

fn mac(mac: &Mac) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn packets(c: &EndpointCounters) -> BTreeMap<String, BTreeMap<String, u64>> {
    let directions = [("egress", Direction::Egress), ("ingress", Direction::Ingress)];
    let of = |d: Direction| {
        let counts = Reason::ALL.iter().map(|r| (r.name().to_owned(), c.packets[d as usize][*r as usize]));
        counts.filter(|(_, n)| *n != 0).collect::<BTreeMap<_, _>>()
    };
    directions.into_iter().map(|(name, d)| (name.to_owned(), of(d))).filter(|(_, counts)| !counts.is_empty()).collect()
}

/// What the status of load balancers is made from.
struct Copied {
    datapath: Arc<Datapath>,
    load_balancers: Vec<LoadBalancer>,
    groups: Vec<Group>,
    rows: MemberRows,
    health: HashMap<Check, (Health, Option<String>)>,
    ejected: Ejected,
    devices: HashMap<u32, String>,
    /// Names of endpoints by their numbers.
    endpoints: HashMap<u32, String>,
}

fn copy(agent: &Agent, lb: Option<&str>) -> Result<Copied, Refusal> {
    agent.ask(|s| {
        let inputs = s.policy.inputs();
        let wanted = |name: &str| lb.is_none_or(|lb| lb == name);
        let groups = lb.map_or(s.policy.desired().groups(), |lb| s.policy.desired().of(lb));
        let endpoints =
            s.policy.endpoints().iter().filter_map(|n| Some((s.attachments.get(n.ifindex())?.row.id, n.name.clone())));
        Ok(Copied {
            datapath: Arc::clone(&s.datapath),
            load_balancers: inputs.load_balancers().filter(|l| wanted(&l.metadata.name)).cloned().collect(),
            rows: s.policy.known().map(|known| MemberRows::new(known, groups)).unwrap_or_default(),
            groups: groups.to_vec(),
            health: inputs.health.clone(),
            ejected: inputs.ejected.clone(),
            devices: inputs.world.devices.values().map(|d| (d.ifindex, d.name.clone())).collect(),
            endpoints: endpoints.collect(),
        })
    })
}

/// One load balancer, or all.
pub fn lbs(agent: &Agent, name: Option<&str>) -> Result<Vec<LbStatus>, Refusal> {
    let c = copy(agent, name)?;
    if c.load_balancers.is_empty() {
        return Ok(Vec::new());
    }
    let maps = c.datapath.maps();
    let (flows, pending) = (maps.active_flows()?, maps.pending()?);
    let (health, ejected) = (&c.health, &c.ejected);
    let sources = Sources { groups: &c.groups, rows: &c.rows, health, ejected, devices: &c.devices, flows: &flows };
    let counters = |row: u32| -> Result<(MemberCounters, MemberAnswers)> {
        let (mut sum, held) = (maps.member_counters(row)?, pending.member(row));
        for (d, held) in held.iter().enumerate() {
            sum.packets[d] += held.packets;
            sum.bytes[d] += held.bytes;
        }
        Ok((sum, maps.member_answers(row)?))
    };
    Ok(c.load_balancers.iter().map(|lb| status::status(lb, &sources, &counters)).collect::<Result<_>>()?)
}

/// Flows, with names.
pub fn flows(agent: &Agent, lb: Option<&str>, limit: usize) -> Result<FlowList, Refusal> {
    let c = copy(agent, lb)?;
    if lb.is_some() && c.load_balancers.is_empty() {
        return Err(Refusal::not_found(format!("there is no load balancer '{}'", lb.unwrap_or_default())));
    }
    let (mut groups, mut members) = (HashMap::new(), HashMap::new());
    for g in &c.groups {
        groups.extend(c.rows.group(g).map(|row| (row, g.lb.clone())));
        members.extend(g.members.iter().filter_map(|m| Some((c.rows.find(g, m)?, m.name.clone()))));
    }
    let (flows, total) = c.datapath.flows(limit, |group| lb.is_none() || groups.contains_key(&group))?;
    let named = flows.into_iter().map(|f| FlowStatus {
        endpoint: c.endpoints.get(&f.endpoint).cloned().unwrap_or_else(|| format!("(gone, number {})", f.endpoint)),
        protocol: protocol(f.protocol),
        client: f.client.to_string(),
        vip: f.vip.to_string(),
        member: f.member.to_string(),
        lb: groups.get(&f.group).cloned().unwrap_or_else(|| "(removed)".into()),
        member_name: members.get(&(f.member_row, f.serial)).cloned().unwrap_or_else(|| "(removed)".into()),
        state: f.state.name().into(),
        packets: f.traffic.map(|t| t.packets),
        bytes: f.traffic.map(|t| t.bytes),
        age_seconds: f.age.as_secs(),
        idle_seconds: f.idle.as_secs(),
    });
    Ok(FlowList { flows: named.collect(), total })
}

fn protocol(number: u8) -> String {
    let known = [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| protocol_number(*p) == number);
    known.map_or_else(|| number.to_string(), |p| protocol_name(p).to_owned())
}
