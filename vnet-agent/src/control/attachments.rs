//! Keeps the programs on the endpoints' devices, and their rows right.
//!
//! A row is written before the programs are attached and removed after they are detached. What an agent before this one
//! left is found at the first call, and taken over or removed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result};
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_common::lb::LocalKey;

use super::inputs::Nic;
use super::placements::Placements;
use crate::datapath::{Attached, Datapath};
use crate::lb::live::wide;
use crate::observe::Saying;

/// What is attached, and how that went.
#[derive(Debug, Default)]
pub struct Attachments {
    /// By device.
    devices: BTreeMap<u32, Attachment>,
    locals: Option<HashMap<LocalKey, u32>>,
    /// Why something could not be brought to what it should be.
    trouble: Vec<String>,
    /// Endpoints that got a device with the programs since somebody asked.
    fresh: Vec<String>,
}

/// One device.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its endpoint; empty if an agent before this one left it.
    endpoint: String,
    /// Its row.
    pub row: EndpointRow,
    /// What attaching gave.
    pub state: Result<Attached, String>,
}

impl Attachments {
    /// The attachment of a device.
    pub fn get(&self, ifindex: u32) -> Option<&Attachment> {
        self.devices.get(&ifindex)
    }

    /// How many devices have the programs.
    pub fn count(&self) -> usize {
        self.devices.values().filter(|a| a.state.is_ok()).count()
    }

    /// Endpoints that got a device with the programs since this was asked last.
    pub fn take_fresh(&mut self) -> Vec<String> {
        std::mem::take(&mut self.fresh)
    }

    /// Why something is not as it should be.
    pub fn trouble(&self) -> &[String] {
        &self.trouble
    }

    /// These devices went away; others may have their indices now.
    pub fn forget(&mut self, dp: &Datapath, placements: &Placements, gone: &[u32]) {
        for ifindex in gone {
            if let Err(e) = self.remove(dp, placements, *ifindex) {
                log::warn!("{e:#}");
            }
        }
    }

    /// Makes what is attached what should be. `id` gives an endpoint's number; `members` are the devices of endpoints that
    /// answer by redirect. `again`: also look after what should be right already.
    pub fn reconcile(
        &mut self,
        dp: &Datapath,
        placements: &Placements,
        wanted: &[Nic],
        members: &HashSet<u32>,
        id: impl Fn(&str) -> Result<u32>,
        again: bool,
    ) {
        self.trouble.clear();
        if self.locals.is_none()
            && let Err(e) = self.adopt(dp)
        {
            self.trouble.push(format!("{e:#}"));
            return;
        }
        let there: BTreeSet<u32> = wanted.iter().map(Nic::ifindex).collect();
        let gone: Vec<u32> = self.devices.keys().filter(|i| !there.contains(i)).copied().collect();
        for ifindex in gone {
            if let Err(e) = self.remove(dp, placements, ifindex) {
                self.trouble.push(format!("{e:#}"));
            }
        }
        for nic in wanted.iter().filter(|n| n.ifindex() != 0) {
            if let Err(e) = self.put((dp, placements), nic, members.contains(&nic.ifindex()), &id, again) {
                self.trouble.push(format!("endpoint {}: {e:#}", nic.name));
            }
        }
        if let Err(e) = self.put_locals(dp, wanted) {
            self.trouble.push(format!("{e:#}"));
        }
    }

    /// Finds what is there.
    fn adopt(&mut self, dp: &Datapath) -> Result<()> {
        let unknown = || Err("left by an agent before this one".to_owned());
        for row in dp.maps().endpoints().context("reading the endpoint rows")? {
            self.devices.insert(row.ifindex, Attachment { endpoint: String::new(), row, state: unknown() });
        }
        for ifindex in dp.devices().context("looking which devices have programs")? {
            let row = EndpointRow { ifindex, ..EndpointRow::default() };
            self.devices.entry(ifindex).or_insert(Attachment { endpoint: String::new(), row, state: unknown() });
        }
        self.locals = Some(dp.maps().locals().context("reading the addresses of endpoints")?.into_iter().collect());
        Ok(())
    }

    fn remove(&mut self, dp: &Datapath, placements: &Placements, ifindex: u32) -> Result<()> {
        if self.devices.contains_key(&ifindex) {
            dp.detach(ifindex)?;
            placements.forget(ifindex);
            dp.maps().remove_endpoint(ifindex)?;
            self.devices.remove(&ifindex);
        }
        Ok(())
    }

    fn put(
        &mut self,
        (dp, placements): (&Datapath, &Placements),
        nic: &Nic,
        member: bool,
        id: impl Fn(&str) -> Result<u32>,
        again: bool,
    ) -> Result<()> {
        let ifindex = nic.ifindex();
        let old = self.devices.get(&ifindex);
        let (id, slot) = match old.filter(|a| a.row.id != 0 && a.state.is_ok()) {
            Some(a) => (a.row.id, a.row.slot),
            None => {
                let id = id(&nic.device)?;
                (id, dp.maps().slot_for(id)?)
            }
        };
        let row = row(nic, id, slot, member);
        let right = old.is_some_and(|a| a.endpoint == nic.name && a.row == row && a.state.is_ok());
        if right && !again {
            return Ok(());
        }
        placements.put(&nic.name, row, old.map_or("", |a| &a.endpoint))?;
        let state = dp.attach(ifindex).map_err(|e| format!("{e:#}"));
        let failed = state.as_ref().err().cloned();
        match (&failed, old) {
            (Some(e), Some(Attachment { state: Err(before), .. })) if e == before => {}
            (Some(e), _) => {
                log::error!("endpoint {}: {e}", nic.name);
                placements.events().say(Saying::Device, &nic.name, "failed", e.as_str());
            }
            (None, Some(a)) if a.state.is_ok() => {
                if a.endpoint != nic.name {
                    self.fresh.push(nic.name.clone());
                }
            }
            (None, _) => {
                self.fresh.push(nic.name.clone());
                let what = format!("attached to {} (index {ifindex})", nic.device);
                log::info!("endpoint {}: {what}", nic.name);
                placements.events().say(Saying::Device, &nic.name, "attached", what);
            }
        }
        self.devices.insert(ifindex, Attachment { endpoint: nic.name.clone(), row, state });
        failed.map_or(Ok(()), |e| Err(anyhow::anyhow!(e)))
    }

    fn put_locals(&mut self, dp: &Datapath, wanted: &[Nic]) -> Result<()> {
        let mut should = HashMap::new();
        for nic in wanted.iter().filter(|n| self.devices.get(&n.ifindex()).is_some_and(|a| a.state.is_ok())) {
            for a in &nic.addresses {
                let version = if a.is_ipv4() { 4 } else { 6 };
                should.insert(LocalKey { network: 0, version, addr: wide(*a) }, nic.ifindex());
            }
        }
        let Some(is) = &mut self.locals else { return Ok(()) };
        let gone: Vec<LocalKey> = is.keys().filter(|k| !should.contains_key(k)).copied().collect();
        for key in &gone {
            dp.maps().remove_local(key)?;
            is.remove(key);
        }
        if !gone.is_empty() {
            // Flows from addresses that an endpoint has no more are judged again.
            dp.maps().bump_generation()?;
        }
        for (key, ifindex) in should {
            if is.get(&key) != Some(&ifindex) {
                dp.maps().put_local(&key, ifindex)?;
                is.insert(key, ifindex);
            }
        }
        Ok(())
    }
}

/// A device's row, without what follows from rules.
pub(super) fn row(nic: &Nic, id: u32, slot: u32, member: bool) -> EndpointRow {
    let mut bits = nic.guards | if member { flags::REDIRECT_BACK } else { 0 };
    if nic.link.as_ref().is_some_and(|d| d.peer_elsewhere) {
        bits |= flags::PEER;
    }
    EndpointRow {
        ifindex: nic.ifindex(),
        id,
        slot,
        segment: nic.segment,
        mtu: nic.link.as_ref().map_or(0, |d| d.mtu),
        mac: nic.mac,
        host_mac: nic.host_mac,
        flags: bits,
        ..EndpointRow::default()
    }
}
