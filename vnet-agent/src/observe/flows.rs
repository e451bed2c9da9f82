//! Flows of endpoints, with names.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use vnet_common::api::{EndpointFlow, EndpointFlowList};
use vnet_common::flow::flags;
use vnet_common::policy::AddressKey;

use super::events::protocol_name;
use super::names::Names;
use crate::datapath::flows::Flow;
use crate::datapath::{Datapath, Maps};
use crate::lb::live::wide;

/// Up to `limit` flows of an endpoint (by its number), or of all; and how many there are.
pub fn list(datapath: &Datapath, names: &Names, endpoint: Option<u32>, limit: usize) -> Result<EndpointFlowList> {
    let (flows, total) = datapath.endpoint_flows(limit, |number| endpoint.is_none_or(|e| e == number))?;
    let flows = flows.iter().map(|f| describe(f, names, datapath.maps())).collect::<Result<_>>()?;
    Ok(EndpointFlowList { flows, total })
}

/// One flow.
pub fn describe(flow: &Flow, names: &Names, maps: &Maps) -> Result<EndpointFlow> {
    let remote = flow.vip.ip();
    // A name needs no look into the maps.
    let peer = match names.at(remote) {
        Some(name) => name.to_string(),
        None => names.peer(remote, identity_of(maps, remote)?).to_string(),
    };
    let (lb, member) = match flow.is_balanced() {
        false => (None, None),
        true => {
            let lb = names.members.get(&(flow.member_row, flow.serial)).map(|(lb, _)| lb.clone());
            (lb, Some(shown(flow.member)))
        }
    };
    let verdict = match (flow.flags & flags::STEERED != 0, flow.rule) {
        (true, _) => "redirected",
        (false, 0) => "unpoliced",
        _ => "allowed",
    };
    Ok(EndpointFlow {
        endpoint: names.endpoint(flow.endpoint).to_string(),
        opened: if flow.flags & flags::INBOUND != 0 { "in" } else { "out" }.to_owned(),
        protocol: protocol_name(flow.protocol),
        local: shown(flow.client),
        remote: shown(flow.vip),
        peer,
        member,
        lb,
        verdict: verdict.to_owned(),
        rule: names.rule(flow.rule).as_deref().cloned(),
        state: flow.state.name().to_owned(),
        packets: flow.traffic.map(|t| t.packets),
        bytes: flow.traffic.map(|t| t.bytes),
        age_seconds: flow.age.as_secs(),
        idle_seconds: flow.idle.as_secs(),
    })
}

fn shown(address: SocketAddr) -> String {
    if address.port() == 0 { address.ip().to_string() } else { address.to_string() }
}

/// The identity of an address in the default network.
pub fn identity_of(maps: &Maps, address: IpAddr) -> Result<u32> {
    let version = if address.is_ipv4() { 4 } else { 6 };
    maps.identity_of(&AddressKey { network: 0, version, addr: wide(address) })
}
