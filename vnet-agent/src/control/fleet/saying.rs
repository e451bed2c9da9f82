//! What this host says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Result;
use vnet_common::fleet::{EndpointState, HostState, IdentityLabels, Key, STATE};

use super::super::State;
use super::now;
use crate::fleet::Hold;
use crate::resource::DEFAULT_GROUP;

/// Who is held stays so for its peers, however long this host is not heard of; the others go after a while.
fn lasting(endpoint: &EndpointState) -> Hold {
    if endpoint.quarantined { Hold::Kept } else { Hold::Lingering }
}

/// Others can mean this host by it.
fn is_shared(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

impl State {
    /// Says what is here, if it is not what was said before.
    pub(in super::super) fn say_what_is_here(&mut self) {
        if let Err(e) = self.say() {
            log::error!("telling the fleet what is here: {e:#}");
        }
    }

    fn say(&mut self) -> Result<()> {
        // Before the first look at the devices nobody knows what is here.
        if self.sharing.is_none() || self.policy.known().is_none() {
            return Ok(());
        }
        let mut here = self.what_is_here();
        let capacity = self.datapath.maps().capacity("ENDPOINTS").unwrap_or(0);
        let Some(sharing) = self.sharing.as_mut() else { return Ok(()) };
        let (fleet, view, inputs) = (&sharing.fleet, &sharing.view, self.policy.inputs());
        let host = fleet.host();
        let upper = view.registered.get(host).map(|r| r.number);
        for (labels, (_, state)) in &mut here {
            state.identity = sharing.numbers.number(view, host, upper, labels);
        }
        let ours: BTreeSet<u32> = here.iter().map(|(_, (_, state))| state.identity).collect();
        let numbers: BTreeMap<Key, IdentityLabels> = sharing
            .numbers
            .settle(view, &ours, now())
            .iter()
            .map(|(number, labels)| (Key::Identity(host.to_owned(), *number), labels.clone()))
            .collect();
        fleet.say_all(&format!("{STATE}identities/{}/", Key::part(host)), &numbers, |_| Hold::Kept)?;
        let endpoints: BTreeMap<Key, EndpointState> =
            here.into_iter().map(|(_, (name, state))| (Key::Endpoint(host.to_owned(), name), state)).collect();
        fleet.say_all(&format!("{STATE}endpoints/{}/", Key::part(host)), &endpoints, lasting)?;
        let state = HostState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            zone: inputs.zone.clone(),
            addresses: inputs.world.addresses.iter().copied().filter(is_shared).collect(),
            capacity,
        };
        fleet.say(&Key::Alive(host.to_owned()), Some(&state), Hold::Alive)?;
        fleet.said_all();
        Ok(())
    }

    /// The endpoints that have a device here, each with what its identity stands for; the numbers are to be filled in.
    fn what_is_here(&self) -> Vec<(IdentityLabels, (String, EndpointState))> {
        let assignments = self.parts.quarantine.assignments();
        let nics = self.policy.endpoints().iter().filter(|nic| nic.ifindex() != 0);
        let each = nics.map(|nic| {
            let assigned = assignments.get(&nic.name);
            let held = assigned.filter(|a| a.quarantined);
            let base = assigned.map(|a| &a.base).filter(|base| !base.is_empty());
            let group = held.map(|a| &a.group).or(base).map_or(DEFAULT_GROUP, String::as_str).to_owned();
            let state = EndpointState {
                discovered: nic.discovered,
                labels: nic.labels.clone(),
                addresses: nic.addresses.clone(),
                given: nic.given,
                group: group.clone(),
                quarantined: held.is_some(),
                identity: 0,
            };
            (IdentityLabels { group, labels: nic.labels.clone() }, (nic.name.clone(), state))
        });
        each.collect()
    }
}
