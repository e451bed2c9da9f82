//! What users see of a load balancer.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use vnet_common::api::{LbStatus, MemberStatus};
use vnet_common::lb::{MemberAnswers, MemberCounters, state};

use super::compile::{Group, Member};
use super::eject::Ejected;
use super::health::{Check, Health};
use super::known::Known;
use super::live::{MemberKey, member_key, port_keys, protocol_number};
use crate::resource::{Algorithm, Delivery, LoadBalancer, Protocol};

/// What a status is made from.
pub struct Sources<'a> {
    /// The groups in force.
    pub groups: &'a [Group],
    /// Where the rows are.
    pub rows: &'a MemberRows,
    /// What is known of health.
    pub health: &'a HashMap<Check, (Health, Option<String>)>,
    /// Members that are out, since their connections failed.
    pub ejected: &'a Ejected,
    /// The names of devices, by ifindex.
    pub devices: &'a HashMap<u32, String>,
    /// Flows by member row and serial.
    pub flows: &'a HashMap<(u32, u32), u64>,
}

/// Finds the rows of members.
#[derive(Clone, Debug, Default)]
pub struct MemberRows {
    groups: HashMap<(IpAddr, (u16, u16), u8), u32>,
    members: HashMap<MemberKey, (u32, u32)>,
}

impl MemberRows {
    /// Of these groups, in what is in the maps.
    pub fn new<'a>(known: &Known, groups: impl IntoIterator<Item = &'a Group>) -> Self {
        let mut rows = Self::default();
        for g in groups {
            let protocol = protocol_number(g.protocol);
            for vip in &g.vips {
                let key = port_keys(*vip, (g.port, g.last_port), protocol).first().copied();
                let Some(row) = key.and_then(|key| known.live().vips.get(&key)) else { continue };
                rows.groups.insert((*vip, (g.port, g.last_port), protocol), row.group);
                for member in known.members_of(row.group) {
                    let found = known.live().members.get(&member);
                    rows.members.extend(found.map(|m| ((m.group, m.addr, m.port), (member, m.serial))));
                }
            }
        }
        rows
    }

    /// Row and serial of a group's member.
    pub fn find(&self, group: &Group, member: &Member) -> Option<(u32, u32)> {
        self.members.get(&member_key(self.group(group)?, member)).copied()
    }

    /// The row of a group.
    pub fn group(&self, group: &Group) -> Option<u32> {
        self.groups.get(&(*group.vips.first()?, (group.port, group.last_port), protocol_number(group.protocol))).copied()
    }
}

/// The status of one load balancer. `counters` reads those of a member row.
pub fn status(
    lb: &LoadBalancer,
    s: &Sources,
    counters: &dyn Fn(u32) -> Result<(MemberCounters, MemberAnswers)>,
) -> Result<LbStatus> {
    let mut members: BTreeMap<(IpAddr, &str), MemberStatus> = BTreeMap::new();
    for group in s.groups.iter().filter(|g| g.lb == lb.metadata.name) {
        let all: u64 = group.members.iter().map(|m| u64::from(m.share)).sum();
        for m in &group.members {
            let status = members.entry((m.address, &m.name)).or_insert_with(|| describe(lb, m, s));
            status.target_percent = (u64::from(m.share) * 1000 / all.max(1)) as f64 / 10.0;
            status.factor_percent = lb.spec.active_feedback().map(|_| m.hint.percent);
            status.flows_elsewhere += u64::from(m.hint.elsewhere);
            let ejected = s.ejected.get(&group.lb).and_then(|out| out.get(&(group.port, SocketAddr::new(m.address, m.port))));
            add_state(status, m, m.check.as_ref().and_then(|c| s.health.get(c)), ejected);
            if let Some((row, serial)) = s.rows.find(group, m) {
                status.active_flows += s.flows.get(&(row, serial)).copied().unwrap_or(0);
                let (counters, answers) = counters(row)?;
                add_counters(status, &counters);
                add_answers(status, &answers);
            }
        }
    }
    Ok(LbStatus {
        name: lb.metadata.name.clone(),
        vips: lb.spec.vips.iter().map(IpAddr::to_string).collect(),
        protocol: protocol_name(lb.spec.protocol).into(),
        ports: lb.spec.ports.clone(),
        port_ranges: ranges(lb),
        algorithm: algorithm(lb.spec.algorithm).into(),
        delivery: if lb.spec.delivery == Delivery::Redirect { "redirect" } else { "stack" }.into(),
        members: members.into_values().collect(),
    })
}

fn ranges(lb: &LoadBalancer) -> Vec<String> {
    let ranges = lb.spec.port_ranges.iter().map(|r| format!("{}-{}", r.port, r.end_port));
    ranges.chain(lb.spec.any_port.then(|| "any".to_owned())).collect()
}

/// As users write it.
fn algorithm(a: Algorithm) -> &'static str {
    match a {
        Algorithm::Maglev => "maglev",
        Algorithm::RoundRobin => "roundRobin",
        Algorithm::LeastConnections => "leastConnections",
        Algorithm::SourceHash => "sourceHash",
    }
}

/// As users write it.
pub fn protocol_name(p: Protocol) -> &'static str {
    match p {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

fn describe(lb: &LoadBalancer, m: &Member, s: &Sources) -> MemberStatus {
    let listed = lb.spec.members.iter().find(|r| r.address == m.address && r.port.is_none_or(|p| p == m.port));
    let port = match listed {
        Some(resource) => resource.port,
        None => lb.spec.member_selector.as_ref().and_then(|s| s.port),
    };
    MemberStatus {
        name: m.name.clone(),
        address: m.address.to_string(),
        port,
        weight: m.weight,
        zone: m.zone.clone(),
        backup: m.backup,
        device: s.devices.get(&m.place.ifindex).cloned(),
        ..MemberStatus::default()
    }
}

/// A member of several groups may fail in one only: the worse shows.
fn add_state(status: &mut MemberStatus, m: &Member, checked: Option<&(Health, Option<String>)>, ejected: Option<&String>) {
    const WORSE_LAST: [&str; 6] = ["", "active", "unknown", "draining", "ejected", "down"];
    let health = checked.map(|c| c.0).unwrap_or_default();
    let state = match m.state {
        state::DRAINING => "draining",
        state::DOWN if ejected.is_some() && health != Health::Down => "ejected",
        state::DOWN => "down",
        _ if m.check.is_some() && health == Health::Unknown => "unknown",
        _ => "active",
    };
    let rank = |s: &str| WORSE_LAST.iter().position(|w| *w == s);
    if rank(state) > rank(&status.state) {
        status.state = state.into();
    }
    if health == Health::Down && status.health.is_none() {
        status.health = checked.and_then(|c| c.1.clone());
    }
    if state == "ejected" && status.health.is_none() {
        status.health = ejected.cloned();
    }
}

fn add_answers(status: &mut MemberStatus, a: &MemberAnswers) {
    status.resets_by_member += a.resets;
    status.unreachable += a.unreachable;
    status.connect.total_us += a.connect_us;
    status.connect.buckets.iter_mut().zip(a.connects).for_each(|(sum, n)| *sum += n);
}

fn add_counters(status: &mut MemberStatus, c: &MemberCounters) {
    status.new_flows += c.new_flows;
    status.established += c.established;
    status.resets += c.resets;
    for d in 0..2 {
        status.packets[d] += c.packets[d];
        status.bytes[d] += c.bytes[d];
    }
}
