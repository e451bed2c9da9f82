//! Flows of an endpoint that moves between hosts.
//!
//! The tuples go along, and who serves: rows and numbers are each agent's own. What is taken over is judged at its next packet by what is in force
//! here, like a flow that was here when that changed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use vnet_common::api::moving::{FLOW_EXPORT, FlowExport, FlowImport, MovedFlow, RefusedFlow};
use vnet_common::endpoint::EndpointRow;
use vnet_common::flow::{NO_MEMBER, flags, tcp};
use vnet_common::lb::flags as group_flags;

use super::inputs::Nic;
use super::{Agent, State};
use crate::api::Refusal;
use crate::datapath::Datapath;
use crate::datapath::flows::{Flow, FlowState};
use crate::datapath::moving::{Inserted, NewFlow};
use crate::datapath::pending::Traffic;
use crate::lb::compile::{Group, Member};
use crate::lb::live::protocol_number;
use crate::lb::status::MemberRows;

/// What flows are made from here.
struct Place {
    endpoint: EndpointRow,
    /// Addresses of the endpoint.
    addresses: Vec<IpAddr>,
    groups: Vec<Group>,
    /// Those of a VIP and protocol.
    by_vip: HashMap<(IpAddr, u8), Vec<usize>>,
    /// Members by group and by where they serve; port 0: where the client connects to.
    members: HashMap<(usize, SocketAddr), usize>,
    rows: MemberRows,
}

fn find<'a>(s: &'a State, name: &str) -> Result<&'a Nic, Refusal> {
    let found = s.policy.endpoints().iter().find(|nic| nic.name == name);
    found.ok_or_else(|| Refusal::not_found(format!("there is no endpoint '{name}' on this host: see `vnet-ctl get endpoints`")))
}

impl Place {
    fn of(agent: &Agent, name: &str) -> Result<(Self, Arc<Datapath>), Refusal> {
        let (mut place, datapath) = agent.ask(|s| {
            let nic = find(s, name)?;
            let row = s.attachments.get(nic.ifindex()).map(|a| a.row).filter(|row| row.id != 0);
            let endpoint = row.ok_or_else(|| {
                Refusal::conflict(format!(
                    "endpoint '{name}' has no device that is attached: `vnet-ctl endpoint attach` does that"
                ))
            })?;
            let groups = s.policy.desired().groups();
            let place = Self {
                endpoint,
                addresses: nic.addresses.clone(),
                groups: groups.to_vec(),
                by_vip: HashMap::new(),
                members: HashMap::new(),
                rows: s.policy.known().map(|known| MemberRows::new(known, groups)).unwrap_or_default(),
            };
            Ok((place, Arc::clone(&s.datapath)))
        })?;
        for (n, group) in place.groups.iter().enumerate() {
            for vip in &group.vips {
                place.by_vip.entry((*vip, protocol_number(group.protocol))).or_default().push(n);
            }
            let at = |(m, member): (usize, &Member)| ((n, SocketAddr::new(member.address, member.port)), m);
            place.members.extend(group.members.iter().enumerate().map(at));
        }
        Ok((place, datapath))
    }

    /// The flow as it is made here, or why not.
    fn make(&self, flow: &MovedFlow) -> Result<NewFlow, String> {
        let member = flow.member.unwrap_or(flow.remote);
        if [flow.remote, member].iter().any(|other| other.is_ipv4() != flow.local.is_ipv4()) {
            return Err("its sides are of different address families".to_owned());
        }
        if flow.member.is_none() && flow.local_port_there.is_some() {
            return Err("only a balanced flow has another port at the other side".to_owned());
        }
        if flow.member.is_some() && flow.inbound {
            return Err("a balanced flow is opened by its client".to_owned());
        }
        if !self.addresses.is_empty() && !self.addresses.contains(&flow.local.ip()) {
            return Err(format!("{} is no address of the endpoint", flow.local.ip()));
        }
        let mut bits = 0;
        for (is_so, bit) in [(flow.inbound, flags::INBOUND), (flow.replied, flags::REPLIED), (flow.picked_up, flags::PICKED_UP)] {
            bits |= if is_so { bit } else { 0 };
        }
        let (mut member_row, mut group) = ((NO_MEMBER, 0), 0);
        if let Some(member) = flow.member {
            let (to, served) = self.member(flow, member)?;
            let rows = self.rows.group(to).zip(self.rows.find(to, served));
            (group, member_row) =
                rows.ok_or_else(|| format!("load balancer {} is not in force yet: import again in a moment", to.lb))?;
            bits |= flags::DNAT;
            if member.ip() == flow.local.ip() {
                bits |= flags::HAIRPIN;
            } else if to.flags & group_flags::REDIRECT != 0
                && served.place.ifindex != 0
                && self.addresses.contains(&flow.local.ip())
            {
                bits |= flags::REDIRECT;
            }
        }
        let ended = |by: usize, bit: u8| if flow.ended[by] { bit } else { 0 };
        let traffic = [0, 1].map(|d| Traffic { packets: flow.packets[d], bytes: flow.bytes[d] });
        Ok(NewFlow {
            protocol: flow.protocol,
            local: flow.local,
            remote: flow.remote,
            member,
            local_port_there: flow.local_port_there.unwrap_or(flow.local.port()),
            member_row,
            group,
            flags: bits,
            tcp: ended(0, tcp::FIN_CLIENT) | ended(1, tcp::FIN_MEMBER),
            traffic,
            age: Duration::from_secs(flow.age_seconds),
            idle: Duration::from_secs(flow.idle_seconds),
        })
    }

    /// Who serves a flow here.
    fn member(&self, flow: &MovedFlow, member: SocketAddr) -> Result<(&Group, &Member), String> {
        let (vip, port) = (flow.remote.ip(), flow.remote.port());
        let leads = |n: &&usize| {
            let g = &self.groups[**n];
            g.port == 0 || (g.port..=g.last_port).contains(&port)
        };
        // The smallest range counts.
        let width = |n: &&usize| {
            let g = &self.groups[**n];
            if g.port == 0 { u16::MAX } else { g.last_port - g.port }
        };
        let all = self.by_vip.get(&(vip, flow.protocol)).into_iter().flatten();
        let n = *all
            .filter(leads)
            .min_by_key(width)
            .ok_or_else(|| format!("no load balancer here has the VIP {}: apply it, and import again", flow.remote))?;
        let group = &self.groups[n];
        let at = |port| self.members.get(&(n, SocketAddr::new(member.ip(), port)));
        let found = at(member.port()).or_else(|| at(0).filter(|_| member.port() == port));
        let m = *found.ok_or_else(|| format!("load balancer {} has no member {member} here", group.lb))?;
        Ok((group, &group.members[m]))
    }
}

/// All flows of an endpoint, also when its device is gone, as long as they are in the tables.
pub fn export(agent: &Agent, name: &str) -> Result<FlowExport, Refusal> {
    let device = agent.ask(|s| Ok(find(s, name)?.device.clone()))?;
    let export = exports(agent, &[(name, &device)])?.pop();
    export.ok_or_else(|| Refusal::not_found(format!("endpoint '{name}' has no flows")))
}

/// The same of endpoints that need not be here any more, in this order, with the devices that they have or had. However many, the tables
/// are read once.
pub fn exports(agent: &Agent, endpoints: &[(&str, &str)]) -> Result<Vec<FlowExport>, Refusal> {
    let (numbers, datapath) = agent.ask(|s| {
        let numbers: anyhow::Result<Vec<u32>> = endpoints.iter().map(|(_, device)| s.policy.endpoint_id(device)).collect();
        Ok((numbers?, Arc::clone(&s.datapath)))
    })?;
    let wanted: HashMap<u32, usize> = numbers.iter().enumerate().map(|(n, number)| (*number, n)).collect();
    let export =
        |(name, _): &(&str, &str)| FlowExport { version: FLOW_EXPORT, endpoint: (*name).to_owned(), ..FlowExport::default() };
    let mut exports: Vec<FlowExport> = endpoints.iter().map(export).collect();
    let (flows, _) = datapath.endpoint_flows(usize::MAX, |endpoint| wanted.contains_key(&endpoint))?;
    for flow in &flows {
        let Some(export) = wanted.get(&flow.endpoint).and_then(|n| exports.get_mut(*n)) else { continue };
        match moves(flow) {
            true => export.flows.push(moved(flow)),
            false => export.left += 1,
        }
    }
    Ok(exports)
}

fn moves(flow: &Flow) -> bool {
    let over = matches!(flow.state, FlowState::HalfOpen | FlowState::Closed);
    !over && flow.flags & (flags::STEERED | flags::PROBE) == 0
}

fn moved(flow: &Flow) -> MovedFlow {
    MovedFlow {
        protocol: flow.protocol,
        local: flow.client,
        remote: flow.vip,
        member: flow.is_balanced().then_some(flow.member),
        local_port_there: (flow.client_port_there != flow.client.port()).then_some(flow.client_port_there),
        inbound: flow.flags & flags::INBOUND != 0,
        replied: flow.flags & flags::REPLIED != 0,
        picked_up: flow.flags & flags::PICKED_UP != 0,
        ended: [tcp::FIN_CLIENT, tcp::FIN_MEMBER].map(|bit| flow.tcp & bit != 0),
        packets: flow.traffic.map(|t| t.packets),
        bytes: flow.traffic.map(|t| t.bytes),
        age_seconds: flow.age.as_secs(),
        idle_seconds: flow.idle.as_secs(),
    }
}

/// Takes flows over. Those that cannot be taken are named, each with the reason.
pub fn import(agent: &Agent, name: &str, export: &FlowExport) -> Result<FlowImport, Refusal> {
    if export.version != FLOW_EXPORT {
        return Err(Refusal::bad_request(format!(
            "these flows were exported in version {}; this agent reads version {FLOW_EXPORT}: export them with an agent of its age",
            export.version
        )));
    }
    let (place, datapath) = Place::of(agent, name)?;
    let inserter = datapath.inserter(place.endpoint)?;
    let mut done = FlowImport { endpoint: name.to_owned(), ..FlowImport::default() };
    for flow in &export.flows {
        // What one fails for, the next need not.
        let reason = match place.make(flow).map(|new| inserter.insert(&new)) {
            Ok(Ok(Inserted::New)) => {
                done.taken += 1;
                continue;
            }
            Ok(Ok(Inserted::Known)) => {
                done.known += 1;
                continue;
            }
            Ok(Ok(Inserted::Taken)) => "another flow has these addresses and ports here".to_owned(),
            Ok(Ok(Inserted::Full)) => "the endpoint has as many flows as it may (vnet-agent --flows-per-endpoint)".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(reason) => reason,
        };
        done.refused.push(RefusedFlow { local: flow.local, remote: flow.remote, reason });
    }
    log::info!(
        "endpoint {name}: took over {} flows from another host ({} were there, {} could not be taken)",
        done.taken,
        done.known,
        done.refused.len()
    );
    Ok(done)
}
