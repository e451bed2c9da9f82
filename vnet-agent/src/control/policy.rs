//! Changes of what is desired: all of a change takes effect, or none.
//!
//! Everything that can refuse a change comes before the first write. Then the store is written, then the maps; if the
//! maps fail, both are taken back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem::{replace, take};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vnet_common::api::{Action, ApplyResponse, Change, DeleteRequest, MemberChange};
use vnet_common::lb::state;

use super::inputs::{Inputs, Key, Nic, endpoint_key, key, load_balancer_key};
use super::world::World;
use super::{diff, warn};
use crate::api::Refusal;
use crate::elsewhere::Elsewhere;
use crate::lb::apply::{Applier, PlanError, Rows, Target};
use crate::lb::compile::{Desired, Group, Surroundings, members};
use crate::lb::eject::Place;
use crate::lb::health::{Check, Health};
use crate::lb::known::Known;
use crate::lb::share::Warming;
use crate::lb::status::MemberRows;
use crate::resource::{Origin, Resource, needed, to_yaml};
use crate::store::{MemberOverride, Store};

/// What is desired, and the maps that follow it.
pub struct Policy<R: Rows> {
    store: Box<dyn Store>,
    rows: R,
    applier: Applier,
    inputs: Inputs,
    endpoints: Vec<Nic>,
    surroundings: Surroundings,
    /// What follows from the inputs, but for what is stale.
    desired: Desired,
    /// Load balancers of which something changed that their groups follow from.
    stale: BTreeSet<String>,
    /// Members that do not have their full share yet.
    warming: Warming,
    /// Checks that groups began to ask for, or stopped to.
    checks: HashSet<Check>,
    /// Why the maps do not say what is desired.
    trouble: Option<String>,
    /// Why the last change could not be stored.
    store_trouble: Option<String>,
    /// Why weights do not follow the members' load.
    feedback_trouble: Option<String>,
}

/// A change of what is desired.
enum Edit {
    /// Resources by their keys; `None` takes one away.
    Resources(Vec<(Key, Option<Resource>)>),
    /// What operators changed about a member of a load balancer.
    Override((String, String), MemberOverride),
}

/// Groups that are not to be as they were: what they were, and what they are to be.
#[derive(Default)]
struct Turn {
    old: Vec<Group>,
    new: Vec<Group>,
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
        let origins = store.origins().context("reading from the store where resources were written")?;
        inputs.origins = origins.into_iter().collect();
        let bindings = store.bindings().context("reading the devices of endpoints from the store")?;
        inputs.bindings = bindings.into_iter().collect();
        let stale = inputs.load_balancers().map(|lb| lb.metadata.name.clone()).collect();
        let trouble = Some("the datapath does not follow the resources: the agent is starting".to_owned());
        let mut policy = Self {
            store,
            rows,
            inputs,
            stale,
            trouble,
            applier: Applier::default(),
            endpoints: Vec::new(),
            surroundings: Surroundings::default(),
            desired: Desired::default(),
            warming: Warming::default(),
            checks: HashSet::new(),
            store_trouble: None,
            feedback_trouble: None,
        };
        policy.look_around();
        Ok(policy)
    }

    /// What everything follows from.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Where it is kept.
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Notes where resources were written.
    pub fn set_origins(&mut self, mut origins: Vec<(Key, Origin)>) -> Result<()> {
        origins.retain(|(k, origin)| self.inputs.origins.get(k) != Some(origin));
        if origins.is_empty() {
            return Ok(());
        }
        let stored = self.store.set_origins(&origins).context("noting where the resources were written");
        self.inputs.origins.extend(origins);
        stored
    }

    /// Gives an endpoint a device, until it gets another, or another endpoint gets that. Call [`Policy::refresh`] afterwards.
    pub fn bind(&mut self, endpoint: &str, device: &str) -> Result<()> {
        self.store.bind(endpoint, device).with_context(|| format!("storing that endpoint {endpoint} has device {device}"))?;
        self.inputs.bindings.retain(|_, bound| bound != device);
        self.inputs.bindings.insert(endpoint.to_owned(), device.to_owned());
        self.look_around();
        Ok(())
    }

    /// This host changed. Call [`Policy::refresh`] afterwards.
    pub fn set_world(&mut self, world: World) {
        self.inputs.world = world;
        self.inputs.let_go();
        self.look_around();
    }

    /// These endpoints are here, and stay until their device is gone, whatever host their resource names.
    pub fn keep_here(&mut self, names: impl IntoIterator<Item = String>) {
        self.inputs.staying.extend(names);
    }

    /// A member's health changed. Call [`Policy::refresh`] afterwards.
    pub fn set_health(&mut self, check: Check, health: Health, error: Option<String>) {
        self.stale.extend(self.desired.checked_by(&check).cloned());
        self.inputs.health.insert(check, (health, error));
    }

    /// These members of a load balancer are out since their connections failed, for these reasons. Call [`Policy::refresh`] afterwards.
    pub fn set_ejected(&mut self, lb: &str, out: HashMap<Place, String>) {
        match out.is_empty() {
            true => self.inputs.ejected.remove(lb),
            false => self.inputs.ejected.insert(lb.to_owned(), out),
        };
        self.stale.insert(lb.to_owned());
    }

    /// The checks that groups began to ask for, or stopped to, since this was asked last. What is known of the latter is
    /// forgotten.
    pub fn take_checks(&mut self) -> HashSet<Check> {
        let checks = take(&mut self.checks);
        checks.iter().filter(|c| !self.desired.has_check(c)).for_each(|c| drop(self.inputs.health.remove(c)));
        checks
    }

    /// Time passed for members that get their share little by little: says if there are any. Call [`Policy::refresh`] afterwards.
    pub fn warm(&mut self) -> bool {
        let Self { warming, inputs, stale, .. } = self;
        warming.retain(|lb| inputs.load_balancer(lb).is_some());
        let names = warming.load_balancers();
        stale.extend(names.iter().cloned());
        !names.is_empty()
    }

    /// Other hosts changed; says if it matters to which endpoints are on this one. Call [`Policy::refresh`] afterwards.
    pub fn set_elsewhere(&mut self, elsewhere: Arc<Elsewhere>) -> bool {
        let before = replace(&mut self.inputs.elsewhere, elsewhere);
        let Inputs { elsewhere: after, resources, .. } = &self.inputs;
        let moved = |name: &&Arc<str>| before.has(name) != after.has(name) && resources.contains_key(&endpoint_key(name));
        let matters = before.differing(after).iter().any(moved);
        if matters {
            self.look_around()
        } else {
            self.look_for_members()
        }
        matters
    }

    /// Finds out what endpoints there are, and where members may be.
    fn look_around(&mut self) {
        self.endpoints = self.inputs.endpoints();
        self.look_for_members();
    }

    fn look_for_members(&mut self) {
        let now = self.inputs.surroundings(&self.endpoints);
        if now != self.surroundings {
            self.stale.extend(self.surroundings.affected(&now, &self.desired));
            self.surroundings = now;
        }
    }

    /// Makes the desired groups follow from the inputs again.
    fn follow(&mut self) -> Turn {
        let mut turn = Turn::default();
        let mut stale = take(&mut self.stale);
        if !stale.is_empty() {
            self.inputs.add_containing(&mut stale);
        }
        let now = Instant::now();
        for name in stale {
            let (lb, mut groups) = self.inputs.compile(&name, &self.surroundings);
            let slow_start = lb.map_or(Duration::ZERO, |lb| Duration::from_secs(lb.spec.slow_start_seconds.into()));
            self.warming.apply(&name, self.desired.of(&name), &mut groups, slow_start, now);
            if self.desired.of(&name) == groups {
                self.desired.put(&name, lb, groups);
                continue;
            }
            turn.new.extend_from_slice(&groups);
            let old = self.desired.put(&name, lb, groups);
            let both = members(&old).chain(members(self.desired.of(&name)));
            self.checks.extend(both.filter_map(|(_, m)| m.check.clone()));
            turn.old.extend(old);
        }
        turn
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
    pub fn known(&self) -> Option<&Known> {
        self.applier.known()
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
    /// check says otherwise. To be called before the first [`Policy::refresh`].
    pub fn recall_health(&mut self) -> Result<()> {
        self.follow();
        self.applier.unsettle();
        let known = self.applier.read(&self.rows)?;
        let rows = MemberRows::new(known, self.desired.groups());
        let mut down = Vec::new();
        for (g, m) in members(self.desired.groups()) {
            let row = rows.find(g, m).and_then(|(row, _)| known.live().members.get(&row));
            down.extend(m.check.clone().filter(|_| row.is_some_and(|row| row.state == state::DOWN)));
        }
        for check in down {
            let why = format!("{} was down when the agent started", check.whom());
            self.set_health(check, Health::Down, Some(why));
        }
        Ok(())
    }

    /// Brings the maps to what follows from the inputs now. On an error they keep saying what they can.
    pub fn refresh(&mut self) {
        let turn = self.follow();
        if turn.old.is_empty() && turn.new.is_empty() && self.trouble.is_none() {
            return;
        }
        self.trouble = self.write(&turn).err().map(|e| format!("the datapath does not follow the resources: {e:#}"));
    }

    fn write(&mut self, turn: &Turn) -> Result<()> {
        let start = Instant::now();
        let target = Target { all: self.desired.groups(), old: &turn.old, new: &turn.new };
        let plan = self.applier.plan(&self.rows, target).inspect_err(|_| self.applier.unsettle())?;
        self.applier.run(&self.rows, &plan, target)?;
        log::debug!("{} writes, planned and done in {:?}", plan.writes.len(), start.elapsed());
        Ok(())
    }

    /// Puts and deletes resources together, or says what that would do. Call [`Policy::drop_overrides`] once it is not to be taken back
    /// any more.
    pub fn change(&mut self, put: Vec<Resource>, delete: Vec<Key>, dry_run: bool) -> Result<ApplyResponse, Refusal> {
        // The last one of a name counts.
        let mut wanted: BTreeMap<Key, Option<Resource>> = put.iter().map(|r| (key(r), Some(r.clone()))).collect();
        wanted.extend(delete.iter().map(|k| (k.clone(), None)));
        let named = put.iter().map(key).chain(delete);
        let changes =
            named.map(|k| describe(&k, self.inputs.resources.get(&k), wanted.get(&k).and_then(Option::as_ref))).collect();
        wanted.retain(|k, r| self.inputs.resources.get(k) != r.as_ref());
        let there = |k: &Key| self.inputs.resources.get(k).cloned();
        let old: Vec<Resource> = wanted.keys().filter_map(there).collect();
        let created: Vec<Key> = wanted.keys().filter(|k| !self.inputs.resources.contains_key(*k)).cloned().collect();
        let new: Vec<Resource> = wanted.values().flatten().cloned().collect();
        let deleted: Vec<Key> = wanted.iter().filter(|(_, r)| r.is_none()).map(|(k, _)| k.clone()).collect();
        let is_deleted = |endpoint: &str| deleted.iter().any(|(kind, name)| kind == "Endpoint" && name == endpoint);
        let bound: Vec<(String, String)> =
            self.inputs.bindings.iter().filter(|(e, _)| is_deleted(e)).map(|(e, d)| (e.clone(), d.clone())).collect();
        let undo = |s: &dyn Store| {
            s.change(&old, &created)?;
            bound.iter().try_for_each(|(endpoint, device)| s.bind(endpoint, device))
        };
        let change = StoreChange { commit: &|s| s.change(&new, &deleted), undo: &undo };
        let warnings = self.transact(Edit::Resources(wanted.into_iter().collect()), &change, dry_run)?;
        if !dry_run {
            self.inputs.origins.retain(|k, _| !deleted.contains(k));
            self.inputs.bindings.retain(|endpoint, _| !is_deleted(endpoint));
        }
        Ok(ApplyResponse { changes, warnings, effects: None })
    }

    /// The resources to delete: all of them, or none if some are not there.
    pub fn deletable(&self, request: DeleteRequest) -> Result<Vec<Key>, Refusal> {
        deletable(request, &self.inputs.resources.iter().map(|(k, r)| (k.clone(), r)).collect())
    }

    /// What operators changed about a load balancer goes with it: one of the same name later is another.
    pub fn drop_overrides(&mut self) -> Result<()> {
        let Inputs { overrides, resources, .. } = &mut self.inputs;
        let gone = |lb: &str| !resources.contains_key(&load_balancer_key(lb));
        for (lb, member) in overrides.keys().filter(|(lb, _)| gone(lb)) {
            let dropped = self.store.set_override(lb, member, &MemberOverride::default());
            dropped.with_context(|| format!("forgetting that member {member} of {lb} was changed"))?;
        }
        overrides.retain(|(lb, _), _| !gone(lb));
        Ok(())
    }

    /// What is changed of a member, and what is to be when this comes to it.
    pub fn overridden(&self, lb: &str, member: &str, change: &MemberChange) -> Result<(MemberOverride, MemberOverride), Refusal> {
        if !self.inputs.resources.contains_key(&load_balancer_key(lb)) {
            return Err(Refusal::not_found(format!("there is no load balancer '{lb}'")));
        }
        if !members(self.desired.of(lb)).any(|(_, m)| m.name == member) {
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
        Ok((old, new))
    }

    /// Drains a member, or gives it another weight.
    pub fn change_member(&mut self, lb: &str, member: &str, change: &MemberChange) -> Result<(), Refusal> {
        let (_, new) = self.overridden(lb, member, change)?;
        self.put_override((lb.to_owned(), member.to_owned()), new)
    }

    /// This is changed of a member, by load balancer and name; the default value: nothing.
    pub fn put_override(&mut self, id: (String, String), new: MemberOverride) -> Result<(), Refusal> {
        let old = self.inputs.overrides.get(&id).cloned().unwrap_or_default();
        if old == new {
            return Ok(());
        }
        let (lb, member) = (id.0.clone(), id.1.clone());
        let change =
            StoreChange { commit: &|s| s.set_override(&lb, &member, &new), undo: &|s| s.set_override(&lb, &member, &old) };
        self.transact(Edit::Override(id, new.clone()), &change, false).map(drop)
    }

    /// Gives the warnings.
    fn transact(&mut self, edit: Edit, change: &StoreChange, dry_run: bool) -> Result<Vec<String>, Refusal> {
        let undo = self.edit(edit);
        let turn = self.follow();
        let back = |policy: &mut Self| {
            policy.edit(undo);
            policy.follow();
        };
        let target = Target { all: self.desired.groups(), old: &turn.old, new: &turn.new };
        let planned = self.applier.plan(&self.rows, target).map_err(|e| match e {
            PlanError::NoRoom(e) => Refusal::invalid(format!("{e}. Nothing was changed")),
            PlanError::Maps(e) => Refusal::from(e.context("nothing was changed")),
        });
        let mut warnings = self.desired.warnings();
        let plan = match planned {
            Ok(plan) if !dry_run => plan,
            other => {
                back(self);
                warnings.extend(warn::of_removal(&turn.old, &turn.new));
                return other.map(|_| warnings);
            }
        };
        let stored = (change.commit)(self.store.as_ref()).context("writing the store; nothing was changed");
        self.store_trouble = stored.as_ref().err().map(|e| format!("{e:#}"));
        if let Err(e) = stored {
            back(self);
            return Err(e.into());
        }
        let target = Target { all: self.desired.groups(), old: &turn.old, new: &turn.new };
        if let Err(e) = self.applier.run(&self.rows, &plan, target) {
            back(self);
            return Err(self.take_back(change, &e));
        }
        self.trouble = None;
        Ok(warnings)
    }

    /// Changes the inputs; gives what undoes it.
    fn edit(&mut self, edit: Edit) -> Edit {
        match edit {
            Edit::Resources(resources) => {
                let names = resources.iter().filter(|((kind, _), _)| kind == "LoadBalancer").map(|((_, name), _)| name.clone());
                self.stale.extend(names);
                let endpoints = resources.iter().any(|((kind, _), _)| kind == "Endpoint");
                let undo = self.inputs.replace(resources);
                if endpoints {
                    self.look_around();
                }
                Edit::Resources(undo)
            }
            Edit::Override(id, value) => {
                self.stale.insert(id.0.clone());
                let old = match value == MemberOverride::default() {
                    true => self.inputs.overrides.remove(&id),
                    false => self.inputs.overrides.insert(id.clone(), value),
                };
                Edit::Override(id, old.unwrap_or_default())
            }
        }
    }

    /// Goes back to what was before, in the store and in the maps.
    fn take_back(&mut self, change: &StoreChange, why: &anyhow::Error) -> Refusal {
        let stored = (change.undo)(self.store.as_ref());
        let written = self.write(&Turn::default());
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

/// The keys of resources that are to be deleted, if all are there and nothing that stays needs them.
pub fn deletable(request: DeleteRequest, resources: &BTreeMap<Key, &Resource>) -> Result<Vec<Key>, Refusal> {
    let all: BTreeSet<Key> = request.resources.into_iter().collect();
    let (there, missing): (BTreeSet<Key>, BTreeSet<Key>) = all.into_iter().partition(|k| resources.contains_key(k));
    if !missing.is_empty() && !request.ignore_not_found {
        let names: Vec<String> = missing.iter().map(|(kind, name)| format!("{kind} '{name}'")).collect();
        return Err(Refusal::not_found(format!("nothing was deleted: there is no {}", names.join(", no "))));
    }
    let stay = resources.iter().filter(|(k, _)| !there.contains(*k)).map(|(_, r)| *r);
    let there: Vec<Key> = there.iter().cloned().collect();
    let needed = needed(&there, stay);
    if !needed.is_empty() {
        let needed = needed.join("; ");
        return Err(Refusal::conflict(format!(
            "nothing was deleted: {needed}. Change or delete that before, or together with it"
        )));
    }
    Ok(there)
}

/// What becomes of a resource.
pub fn describe(k: &Key, old: Option<&Resource>, new: Option<&Resource>) -> Change {
    let action = match (old, new) {
        (Some(old), Some(new)) if old == new => Action::Unchanged,
        (Some(_), Some(_)) => Action::Configured,
        (None, _) => Action::Created,
        (_, None) => Action::Deleted,
    };
    let text = |r: Option<&Resource>| r.map(to_yaml).unwrap_or_default();
    Change { kind: k.0.clone(), name: k.1.clone(), action, diff: diff::unified(&text(old), &text(new)) }
}

mod feedback;
#[cfg(test)]
mod tests;
