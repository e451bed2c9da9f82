//! What the scenes of fleets share.

use anyhow::{Context as _, Result};
use std::time::Duration;
use vnet_tests::{Agent, Fleet, wait_for};

/// A fleet whose store is set up: it checks its clients, and knows the hosts.
pub struct Scene {
    /// The hosts and etcd.
    pub fleet: Fleet,
}

impl Scene {
    /// With these hosts, and as many VMs each.
    pub fn new(hosts: &[&str], vms: u8) -> Result<Self> {
        let fleet = Fleet::new(hosts, vms)?;
        fleet.init_store()?;
        Ok(Self { fleet })
    }

    /// Waits until an agent knows of as many living hosts.
    pub fn alive(&self, agent: &Agent<'_>, hosts: usize) -> Result<()> {
        let all = || agent.ctl(&["host", "ls"]).ok().filter(|text| text.matches("alive").count() == hosts);
        wait_for(&format!("{hosts} hosts to be alive"), Duration::from_secs(20), all).map(drop).with_context(|| agent.logged())
    }
}
