//! Changes of what is desired: all of a change takes effect, or none.
//!
//! Everything that can refuse a change comes before the first write. Then the store is written, then the maps; if the
//! maps fail, both are taken back.

use std::time::Instant;

use anyhow::{Context, Result};
use vnet_common::api::{Action, ApplyResponse, Change, MemberChange};
use vnet_common::lb::state;

use super::inputs::{Inputs, Key, Nic, key};
use super::{diff, warn};
use crate::api::Refusal;
use crate::lb::apply::{Applier, PlanError, Rows};
use crate::lb::compile::Desired;
use crate::lb::health::Health;
use crate::lb::live::Live;
use crate::lb::status::MemberRows;
use crate::resource::{Resource, to_yaml};
use crate::store::{MemberOverride, Store};

/// What is desired, and the maps that follow it.
pub struct Policy<R: Rows> {
    store: Box<dyn Store>,
    rows: R,
    applier: Applier,
    inputs: Inputs,
    endpoints: Vec<Nic>,
    desired: Desired,
    /// Why the maps do not say what is desired.
    trouble: Option<String>,
    /// Why the last change could not be stored.
    store_trouble: Option<String>,
}

/// A change of the store and its opposite.
struct StoreChange<'a> {
    commit: &'a dyn Fn(&dyn Store) -> Result<()>,
    undo: &'a dyn Fn(&dyn Store) -> Result<()>,
}

impl<R: Rows> Policy<R> {
    /// Reads what is desired. `inputs` has what the store has not: patterns and devices.
    pub fn load(store: Box<dyn Store>, rows: R, mut inputs: Inputs) -> Result<Self> {
        let resources = store.resources().context("reading the resources from the store")?;
        inputs.resources = resources.into_iter().map(|r| (key(&r), r)).collect();
        let overrides = store.overrides().context("reading what operators changed from the store")?;
        inputs.overrides = overrides.into_iter().map(|(lb, member, o)| ((lb, member), o)).collect();
        let (applier, endpoints, desired) = (Applier::default(), Vec::new(), Desired::default());
        let trouble = Some("the datapath does not follow the resources: the agent is starting".to_owned());
        Ok(Self { store, rows, applier, inputs, endpoints, desired, trouble, store_trouble: None })
    }

    /// What everything follows from.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Changes what comes from this host: devices, neighbours, health. Call [`Policy::refresh`] afterwards.
    pub fn inputs_mut(&mut self) -> &mut Inputs {
        &mut self.inputs
    }

    /// The endpoints, as of the last change or refresh.
    pub fn endpoints(&self) -> &[Nic] {
        &self.endpoints
    }

    /// What the maps say, or should say.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What the maps say, if that is known.
    pub fn live(&self) -> Option<&Live> {
        self.applier.live()
    }

    /// Why the maps do not say what is desired, if they do not.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Why the store does not take changes, if the last one failed.
    pub fn store_trouble(&self) -> Option<&str> {
        self.store_trouble.as_deref()
    }

    /// The number of the endpoint with this device.
    pub fn endpoint_id(&self, device: &str) -> Result<u32> {
        self.store.endpoint_id(device).with_context(|| format!("asking the store for the number of endpoint {device}"))
    }

    /// Takes over what the maps say of health: a member that was down when the agent before this one ended is down until a
    /// check says otherwise.
    pub fn recall_health(&mut self) -> Result<()> {
        let desired = self.inputs.desired(&self.inputs.endpoints());
        let live = self.applier.read(&self.rows)?;
        let rows = MemberRows::new(live);
        for (g, m) in desired.groups.iter().flat_map(|g| g.members.iter().map(move |m| (g, m))) {
            let Some((row, check)) = rows.find(g, m).and_then(|(row, _)| live.members.get(&row)).zip(m.check) else { continue };
            if row.state == state::DOWN {
                let why = format!("{} was down when the agent started", check.target);
                self.inputs.health.insert(check, (Health::Down, Some(why)));
            }
        }
        Ok(())
    }

    /// Brings the maps to what follows from the inputs now. On an error they keep saying what they can.
    pub fn refresh(&mut self) {
        self.endpoints = self.inputs.endpoints();
        let desired = self.inputs.desired(&self.endpoints);
        if desired == self.desired && self.trouble.is_none() {
            return;
        }
        self.desired = desired;
        self.trouble = self.write().err().map(|e| format!("the datapath does not follow the resources: {e:#}"));
    }

    fn write(&mut self) -> Result<()> {
        let start = Instant::now();
        let plan = self.applier.plan(&self.rows, &self.desired.groups)?;
        self.applier.run(&self.rows, &plan)?;
        log::debug!("{} writes, planned and done in {:?}", plan.writes.len(), start.elapsed());
        Ok(())
    }

    /// Puts and deletes resources together, or says what that would do.
    pub fn change(&mut self, put: Vec<Resource>, delete: Vec<Key>, dry_run: bool) -> Result<ApplyResponse, Refusal> {
        let mut next = self.inputs.clone();
        let mut changes = Vec::new();
        for r in &put {
            let old = next.resources.insert(key(r), r.clone());
            changes.push(describe(&key(r), old.as_ref(), Some(r)));
        }
        for k in &delete {
            let old = next.resources.remove(k);
            changes.push(describe(k, old.as_ref(), None));
        }
        let changed: Vec<Key> =
            put.iter().map(key).chain(delete).filter(|k| self.inputs.resources.get(k) != next.resources.get(k)).collect();
        let split = |resources: &super::inputs::Resources| {
            let there: Vec<Resource> = changed.iter().filter_map(|k| resources.get(k).cloned()).collect();
            let gone: Vec<Key> = changed.iter().filter(|k| !resources.contains_key(*k)).cloned().collect();
            (there, gone)
        };
        let (new, old) = (split(&next.resources), split(&self.inputs.resources));
        let change = StoreChange { commit: &|s| s.change(&new.0, &new.1), undo: &|s| s.change(&old.0, &old.1) };
        let mut warnings = self.transact(next, &change, dry_run)?;
        if !dry_run && let Err(e) = self.drop_overrides() {
            warnings.push(format!("{e:#}"));
        }
        Ok(ApplyResponse { changes, warnings })
    }

    /// What operators changed about a load balancer goes with it: one of the same name later is another.
    fn drop_overrides(&mut self) -> Result<()> {
        let Inputs { overrides, resources, .. } = &mut self.inputs;
        let gone = |lb: &str| !resources.contains_key(&("LoadBalancer".to_owned(), lb.to_owned()));
        for (lb, member) in overrides.keys().filter(|(lb, _)| gone(lb)) {
            let dropped = self.store.set_override(lb, member, &MemberOverride::default());
            dropped.with_context(|| format!("forgetting that member {member} of {lb} was changed"))?;
        }
        overrides.retain(|(lb, _), _| !gone(lb));
        Ok(())
    }

    /// Drains a member, or gives it another weight.
    pub fn change_member(&mut self, lb: &str, member: &str, change: &MemberChange) -> Result<(), Refusal> {
        let mut groups = self.desired.groups.iter().filter(|g| g.lb == lb);
        if !self.inputs.resources.contains_key(&("LoadBalancer".into(), lb.into())) {
            return Err(Refusal::not_found(format!("there is no load balancer '{lb}'")));
        }
        if !groups.any(|g| g.members.iter().any(|m| m.name == member)) {
            return Err(Refusal::not_found(format!("load balancer '{lb}' has no member '{member}'")));
        }
        let id = (lb.to_owned(), member.to_owned());
        let old = self.inputs.overrides.get(&id).cloned().unwrap_or_default();
        let weight = match change.weight {
            None => old.weight,
            Some(-1) => None,
            Some(w) => Some(u16::try_from(w).map_err(|_| Refusal::invalid(format!("weight {w}: give 0 to 1000, or -1")))?),
        };
        let new = MemberOverride { drained: change.drained.unwrap_or(old.drained), weight };
        let mut next = self.inputs.clone();
        next.overrides.insert(id, new.clone());
        let change = StoreChange { commit: &|s| s.set_override(lb, member, &new), undo: &|s| s.set_override(lb, member, &old) };
        self.transact(next, &change, false).map(drop)
    }

    /// Gives the warnings.
    fn transact(&mut self, next: Inputs, change: &StoreChange, dry_run: bool) -> Result<Vec<String>, Refusal> {
        let endpoints = next.endpoints();
        let desired = next.desired(&endpoints);
        let plan = self.applier.plan(&self.rows, &desired.groups).map_err(|e| match e {
            PlanError::NoRoom(e) => Refusal::invalid(format!("{e}. Nothing was changed")),
            PlanError::Maps(e) => Refusal::from(e.context("nothing was changed")),
        })?;
        let mut warnings = desired.warnings.clone();
        if dry_run {
            warnings.extend(warn::of_removal(&self.desired.groups, &desired.groups));
            return Ok(warnings);
        }
        let stored = (change.commit)(self.store.as_ref()).context("writing the store; nothing was changed");
        self.store_trouble = stored.as_ref().err().map(|e| format!("{e:#}"));
        stored?;
        if let Err(e) = self.applier.run(&self.rows, &plan) {
            return Err(self.take_back(change, &e));
        }
        (self.inputs, self.endpoints, self.desired, self.trouble) = (next, endpoints, desired, None);
        Ok(warnings)
    }

    /// Goes back to what was before, in the store and in the maps.
    fn take_back(&mut self, change: &StoreChange, why: &anyhow::Error) -> Refusal {
        let stored = (change.undo)(self.store.as_ref());
        let written = self.write();
        match stored.context("taking the change out of the store").and(written.context("taking the change out of the maps")) {
            Ok(()) => Refusal::from(anyhow::anyhow!("{why:#}; the change was taken back")),
            Err(e) => {
                let trouble = format!("a change failed half-way ({why:#}), and could not be taken back: {e:#}");
                self.trouble = Some(trouble.clone());
                Refusal::from(anyhow::anyhow!(trouble))
            }
        }
    }
}

fn describe(k: &Key, old: Option<&Resource>, new: Option<&Resource>) -> Change {
    let action = match (old, new) {
        (Some(old), Some(new)) if old == new => Action::Unchanged,
        (Some(_), Some(_)) => Action::Configured,
        (None, _) => Action::Created,
        (_, None) => Action::Deleted,
    };
    let text = |r: Option<&Resource>| r.map(to_yaml).unwrap_or_default();
    Change { kind: k.0.clone(), name: k.1.clone(), action, diff: diff::unified(&text(old), &text(new)) }
}

#[cfg(test)]
mod tests;
