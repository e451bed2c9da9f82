//! Explanations: on what is in force, or as if files were applied.

use std::collections::HashMap;
use std::sync::Arc;

use vnet_common::api::{ExplainRequest, Explanation};
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_common::lb::LocalKey;

use super::change::Preview;
use super::inputs::Nic;
use super::{Agent, State, attachments, parse};
use crate::api::Refusal;
use crate::datapath::Datapath;
use crate::explain;
use crate::explain::rows::{Image, Live};
use crate::explain::target::{Place, Scene};
use crate::lb::live::wide;
use crate::observe::Names;
use crate::policy::plan::Assignment;

/// What an endpoint that is not attached yet is known by, in an explanation.
const NEW: u32 = u32::MAX;
/// What cannot be checked without the endpoint being policed.
const GUARDS: u16 = flags::CHECK_MAC | flags::CHECK_IP;

/// Answers a request.
pub fn explain(agent: &Agent, request: &ExplainRequest) -> Result<Explanation, Refusal> {
    if !request.files.is_empty() {
        return after(agent, request);
    }
    let names = agent.parts.observer.names.get();
    let (scene, datapath) = agent.ask(|s| {
        let scene = Scene { places: places(s.policy.endpoints()), host: s.policy.inputs().world.addresses.clone(), names };
        Ok((scene, Arc::clone(&s.datapath)))
    })?;
    explain::loaded(&datapath, &agent.rehearsals, &scene, request)
}

fn places(nics: &[Nic]) -> Vec<Place> {
    let place = |nic: &Nic| Place {
        name: nic.name.clone(),
        device: nic.device.clone(),
        ifindex: nic.ifindex(),
        mac: nic.mac,
        host_mac: nic.host_mac,
        addresses: nic.addresses.clone(),
    };
    nics.iter().map(place).collect()
}

/// As if the request's files were applied.
fn after(agent: &Agent, request: &ExplainRequest) -> Result<Explanation, Refusal> {
    let located = parse(&request.files)?;
    let mut names = agent.parts.observer.names.get();
    let (preview, host, datapath) = agent.ask(|s: &mut State| {
        let edit = s.edit_and_delete(located, Vec::new())?;
        Ok((s.preview(&edit)?, s.policy.inputs().world.addresses.clone(), Arc::clone(&s.datapath)))
    })?;
    rename(&mut names, &preview);
    let scene = Scene { places: places(&preview.nics), host, names };
    let live = Live::new(&datapath)?;
    let explanation = explain::imagined(&datapath, &scene, &image(&live, &datapath, preview)?, request)?;
    live.check()?;
    Ok(explanation)
}

fn rename(names: &mut Names, preview: &Preview) {
    let addresses = preview.nics.iter().flat_map(|n| n.addresses.iter().map(|a| (*a, n.name.as_str().into())));
    names.addresses = Arc::new(names.addresses.iter().map(|(a, n)| (*a, Arc::clone(n))).chain(addresses).collect());
    names.rules = preview.image.rules_by_number();
}

/// The maps as they would be.
fn image<'a>(live: &'a Live<'a>, datapath: &Datapath, preview: Preview) -> Result<Image<'a>, Refusal> {
    let here: Vec<&Nic> = preview.nics.iter().filter(|n| n.ifindex() != 0).collect();
    let local: Vec<&str> = here.iter().map(|n| n.name.as_str()).collect();
    let filled = preview.image.fill(&local).map_err(|e| Refusal::invalid(format!("{e}. Nothing was changed")))?;
    let (tables, assigned) = filled;
    let (mut endpoints, mut locals) = (HashMap::new(), HashMap::new());
    for nic in here {
        let there = datapath.maps().endpoint(nic.ifindex())?;
        let row = there.unwrap_or_else(|| attachments::row(nic, NEW, 0, false));
        endpoints.insert(nic.ifindex(), assigned.get(nic.name.as_str()).map_or(row, |a| judged(row, a)));
        for address in &nic.addresses {
            let version = if address.is_ipv4() { 4 } else { 6 };
            locals.insert(LocalKey { network: 0, version, addr: wide(*address) }, nic.ifindex());
        }
    }
    Ok(Image { endpoints, locals: Some(locals), balancing: preview.balancing, ..Image::new(live, tables) })
}

/// An endpoint's row with another set. Who is held stays held.
fn judged(row: EndpointRow, to: &Assignment) -> EndpointRow {
    let policed = to.policed || row.flags & (GUARDS | flags::QUARANTINED) != 0;
    let alive = if row.flags & flags::POLICED == 0 { flags::NEIGHBORS | flags::DHCP } else { 0 };
    let bits = match policed {
        true => row.flags | flags::POLICED | alive,
        false => row.flags & !flags::POLICED,
    };
    EndpointRow { set: to.set, identity: to.identity, flags: bits, ..row }
}
