//! Flows of an endpoint that moves between hosts.
//!
//! The tuples go along, and who serves: rows and numbers are each agent's own. What is taken over is judged at its next packet by what is in force
//! here, like a flow that was here when that changed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use vnet_common::api::moving::{FLOW_EXPORT, FlowExport, FlowImport, MovedFlow, RefusedFlow};
use vnet_common::endpoint::EndpointRow;
use vnet_common::flow::{NO_MEMBER, flags, tcp};
use vnet_common::lb::flags as group_flags;

use super::Agent;
use crate::api::Refusal;
use crate::datapath::Datapath;
use crate::datapath::flows::{Flow, FlowState};
use crate::datapath::moving::NewFlow;
use crate::datapath::pending::Traffic;
use crate::lb::compile::{Group, Member};
use crate::lb::live::protocol_number;
use crate::lb::status::MemberRows;

/// What flows are made from here.
struct Place {
    datapath: Arc<Datapath>,
    endpoint: EndpointRow,
    groups: Vec<Group>,
    rows: MemberRows,
    /// Addresses of the endpoint.
    addresses: Vec<IpAddr>,
}

impl Place {
    fn of(agent: &Agent, name: &str) -> Result<Self, Refusal> {
        agent.ask(|s| {
            let nics = s.policy.endpoints();
            let nic = nics.iter().find(|nic| nic.name == name).ok_or_else(|| {
                Refusal::not_found(format!("there is no endpoint '{name}' on this host: see `vnet-ctl get endpoints`"))
            })?;
            let row = s.attachments.get(nic.ifindex()).map(|a| a.row).filter(|row| row.id != 0);
            let endpoint = row.ok_or_else(|| {
                Refusal::conflict(format!(
                    "endpoint '{name}' has no device that is attached: `vnet-ctl endpoint attach` does that"
                ))
            })?;
            let groups = s.policy.desired().groups();
            Ok(Self {
                datapath: Arc::clone(&s.datapath),
                endpoint,
                rows: s.policy.known().map(|known| MemberRows::new(known, groups)).unwrap_or_default(),
                groups: groups.to_vec(),
                addresses: nic.addresses.clone(),
            })
        })
    }

    /// The flow as it is made here, or why not.
    fn make(&self, flow: &MovedFlow) -> Result<NewFlow, String> {
        let member = flow.member.unwrap_or(flow.remote);
        if [flow.remote, member].iter().any(|other| other.is_ipv4() != flow.local.is_ipv4()) {
            return Err("its sides are of different address families".to_owned());
        }
        let mut bits = 0;
        for (is_so, bit) in [(flow.inbound, flags::INBOUND), (flow.replied, flags::REPLIED), (flow.picked_up, flags::PICKED_UP)] {
            bits |= if is_so { bit } else { 0 };
        }
        let (mut member_row, mut group) = ((NO_MEMBER, 0), 0);
        if let Some(member) = flow.member {
            let (to, served) = self.member(flow, member)?;
            let rows = self.rows.group(to).zip(self.rows.find(to, served));
            (group, member_row) = rows.ok_or_else(|| format!("load balancer {} is not in force yet", to.lb))?;
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
        let leads = |g: &&Group| {
            let ports = if g.port == 0 { 0..=u16::MAX } else { g.port..=g.last_port };
            protocol_number(g.protocol) == flow.protocol && g.vips.contains(&vip) && ports.contains(&port)
        };
        // The smallest range counts.
        let width = |g: &&Group| if g.port == 0 { u16::MAX } else { g.last_port - g.port };
        let group = self.groups.iter().filter(leads).min_by_key(width);
        let group = group.ok_or_else(|| format!("no load balancer here has the VIP {}", flow.remote))?;
        let is_it = |m: &&Member| m.address == member.ip() && (if m.port == 0 { port } else { m.port }) == member.port();
        let found = group.members.iter().find(is_it);
        Ok((group, found.ok_or_else(|| format!("load balancer {} has no member {member} here", group.lb))?))
    }
}

/// All flows of an endpoint.
pub fn export(agent: &Agent, name: &str) -> Result<FlowExport, Refusal> {
    let place = Place::of(agent, name)?;
    let (flows, total) = place.datapath.endpoint_flows(usize::MAX, |endpoint| endpoint == place.endpoint.id)?;
    let flows: Vec<MovedFlow> = flows.iter().filter(|flow| moves(flow)).map(moved).collect();
    Ok(FlowExport { version: FLOW_EXPORT, endpoint: name.to_owned(), left: total - flows.len() as u64, flows })
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

/// Takes flows over. Those that cannot be taken are named; more than the endpoint may have are refused together, and then none is taken.
pub fn import(agent: &Agent, name: &str, export: &FlowExport) -> Result<FlowImport, Refusal> {
    if export.version != FLOW_EXPORT {
        return Err(Refusal::bad_request(format!(
            "these flows were exported in version {}; this agent reads version {FLOW_EXPORT}: export them with an agent of its age",
            export.version
        )));
    }
    let place = Place::of(agent, name)?;
    let maps = place.datapath.maps();
    let (quota, has) = (maps.flow_quota()?, maps.flow_count(place.endpoint.slot).unwrap_or(0));
    let room = u64::from(quota.saturating_sub(has));
    if export.flows.len() as u64 > room {
        return Err(Refusal::conflict(format!(
            "these are {} flows, and endpoint '{name}' may have {room} more: start the agent with a larger --flows-per-endpoint",
            export.flows.len()
        )));
    }
    let mut done = FlowImport { endpoint: name.to_owned(), ..FlowImport::default() };
    for flow in &export.flows {
        match place.make(flow) {
            Ok(new) => match place.datapath.insert_flow(&place.endpoint, &new)? {
                true => done.taken += 1,
                false => done.known += 1,
            },
            Err(reason) => done.refused.push(RefusedFlow { local: flow.local, remote: flow.remote, reason }),
        }
    }
    log::info!(
        "endpoint {name}: took over {} flows from another host ({} were there, {} could not be taken)",
        done.taken,
        done.known,
        done.refused.len()
    );
    Ok(done)
}
