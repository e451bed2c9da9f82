//! What this host says of itself.

use std::net::IpAddr;

use anyhow::Result;
use vnet_common::fleet::{EndpointState, HostState};

use super::super::State;
use super::now;
use crate::fleet::here::Here;
use crate::resource::DEFAULT_GROUP;

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
        self.follow_holds(None);
        let mut endpoints = self.what_is_here();
        self.with_holds(&mut endpoints);
        let capacity = self.datapath.maps().capacity("ENDPOINTS").unwrap_or(0);
        let Some(sharing) = self.sharing.as_mut() else { return Ok(()) };
        let inputs = self.policy.inputs();
        let host = HostState {
            version: crate::VERSION.to_owned(),
            zone: inputs.zone.clone(),
            addresses: inputs.world.addresses.iter().copied().filter(is_shared).collect(),
            capacity,
        };
        sharing.fleet.say_here(&sharing.view, &mut sharing.numbers, Here { host, endpoints }, now())
    }

    /// The endpoints that have a device here.
    fn what_is_here(&self) -> Vec<(String, EndpointState)> {
        let assignments = self.parts.quarantine.assignments();
        let nics = self.policy.endpoints().iter().filter(|nic| nic.ifindex() != 0);
        let each = nics.map(|nic| {
            let assigned = assignments.get(&nic.name);
            let held = assigned.filter(|a| a.quarantined);
            let base = assigned.map(|a| &a.base).filter(|base| !base.is_empty());
            let group = held.map(|a| &a.group).or(base).map_or(DEFAULT_GROUP, String::as_str).to_owned();
            let state = EndpointState {
                discovered: nic.discovered,
                labels: nic.labels.clone().into(),
                addresses: nic.addresses.clone(),
                given: nic.given,
                group,
                quarantined: held.is_some(),
                ..EndpointState::default()
            };
            (nic.name.clone(), state)
        });
        each.collect()
    }
}
