//! What the agent does: it ties the store, the resources, the host's devices, the members' health and the datapath
//! together.
//!
//! [`inputs`] holds all that the datapath follows from and says what follows; [`policy`] changes what is desired;
//! [`attachments`] follows the devices; `fleet` the store that hosts share; `views` is what users see; `requests` answers
//! clients; [`run`] brings events. One lock guards it all, and is not held while flow tables are read.

pub mod attachments;
mod change;
mod diff;
mod drops;
mod effects;
pub mod elsewhere;
mod explain;
mod feedback;
mod fleet;
pub mod glob;
pub mod inputs;
mod members;
mod moving;
mod observe;
pub mod placements;
pub mod policy;
mod policy_rows;
mod requests;
mod rows;
pub mod run;
mod security;
mod tags;
mod views;
mod warn;
pub mod world;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tokio::sync::watch;
use vnet_common::api::{DeleteRequest, Fault, File};

use crate::api::Refusal;
use crate::datapath::Datapath;
use crate::device::Snapshot;
use crate::explain::Rehearsals;
use crate::fleet::Fleet;
use crate::lb::health::{self, Checker};
use crate::observe::{Observer, Reader, Saying};
use crate::policy::ids::RuleIds;
use crate::quarantine::clock::Clock;
use crate::quarantine::{self, Enforce, Journal};
use crate::resource::{self, Cidr, Resource};
use crate::source;
use crate::store::Store;
use attachments::Attachments;
use change::Edit;
use drops::Drops;
use inputs::{Inputs, Key, key};
use placements::Placements;
use policy::Policy;
use security::Security;
use world::World;

/// The agent, but for what it runs on.
pub struct Agent {
    /// `None` once everything was detached.
    state: Mutex<Option<State>>,
    parts: Parts,
    started: Instant,
    ending: watch::Sender<bool>,
    /// Reads the programs' events.
    reader: Mutex<Option<Reader>>,
    rehearsals: Rehearsals,
    /// Why nobody can ask for the metrics at the TCP address.
    metrics_trouble: Mutex<Option<String>>,
}

/// What the lock guards.
struct State {
    datapath: Arc<Datapath>,
    policy: Policy<Arc<Datapath>>,
    security: Security,
    attachments: Attachments,
    checker: Checker,
    runtime: Handle,
    /// What keeps the agent from following the host, if anything does.
    blind: Option<String>,
    drops: Drops,
    passive: members::Passive,
    /// What it shares with other hosts, if it does.
    sharing: Option<fleet::Sharing>,
    parts: Parts,
}

/// What has locks of its own. Their threads may take these while the agent's is held, never the other way round.
#[derive(Clone)]
pub struct Parts {
    /// The endpoints' rows.
    pub placements: Arc<Placements>,
    /// Tags, and who is held.
    pub quarantine: Arc<quarantine::Service>,
    /// Where tags come from.
    pub sources: Arc<source::Sources>,
    /// The endpoints, for these.
    directory: Arc<source::Current>,
    /// What users see of what happens.
    pub observer: Arc<Observer>,
}

/// What an agent runs on.
pub struct Ground {
    /// Desired state.
    pub store: Box<dyn Store>,
    /// Tags and holds.
    pub journal: Arc<dyn Journal>,
    /// The datapath.
    pub datapath: Datapath,
    /// Devices that are endpoints without a resource.
    pub patterns: Vec<glob::Pattern>,
    /// This host's zone.
    pub zone: Option<String>,
    /// Checks members.
    pub checker: Checker,
    /// Networks that endpoints are in.
    pub networks: Vec<Cidr>,
    /// Where the agent has its own files.
    pub own: source::Own,
    /// What tells the time of holds.
    pub clock: Arc<dyn Clock>,
    /// The hosts that this one shares a store with.
    pub fleet: Option<Arc<Fleet>>,
}

impl Agent {
    /// Reads what is desired, and who is held. Nothing is written before the first [`Agent::devices_changed`].
    ///
    /// Call it within a tokio runtime: health checks run there.
    pub fn new(ground: Ground) -> Result<Self> {
        let Ground { store, journal, datapath, patterns, zone, checker, networks, own, clock, fleet } = ground;
        let datapath = Arc::new(datapath);
        let host = fleet.as_ref().map(|fleet| fleet.host().to_owned());
        let inputs = Inputs { attach: patterns, zone, host, ..Inputs::default() };
        let policy = Policy::load(store, Arc::clone(&datapath), inputs)?;
        let ids = RuleIds::new(policy.store().rule_ids().context("reading the numbers of rules from the store")?);
        let security = Security::new(ids, networks);
        let observer = Arc::new(Observer::default());
        let placements = Arc::new(Placements::new(Arc::clone(&datapath), Arc::clone(&observer)));
        let (pinned, numbers) = tags::pinned(&datapath, &policy, journal.as_ref())?;
        placements.recall(pinned, numbers);
        let enforce = Arc::clone(&placements) as Arc<dyn Enforce>;
        let quarantine = Arc::new(quarantine::Service::open(journal, enforce, clock)?);
        let directory = Arc::new(source::Current::default());
        let sink = Arc::new(tags::Sink::new(Arc::clone(&quarantine), Arc::clone(&observer)));
        let sources = Arc::new(source::Sources::new(own, Arc::clone(&directory) as Arc<dyn source::Directory>, sink));
        let parts = Parts { placements, quarantine, sources, directory, observer };
        let (attachments, runtime) = (Attachments::default(), Handle::current());
        let joined = policy.store().has_joined()?;
        let sharing = fleet.map(|fleet| fleet::Sharing::new(fleet, joined));
        if sharing.is_none() {
            // What it has is its own from now on.
            policy.store().set_joined(false)?;
        }
        let (blind, drops, passive) = (None, Drops::default(), members::Passive::default());
        let mut state = State {
            datapath,
            policy,
            security,
            attachments,
            checker,
            runtime,
            blind,
            drops,
            passive,
            sharing,
            parts: parts.clone(),
        };
        state.recall_fleet();
        Ok(Self {
            state: Mutex::new(Some(state)),
            parts,
            started: Instant::now(),
            ending: watch::Sender::new(false),
            reader: Mutex::default(),
            rehearsals: Rehearsals::default(),
            metrics_trouble: Mutex::default(),
        })
    }

    /// What has locks of its own.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Says why nobody can ask for the metrics at the TCP address; `None`: they can.
    pub fn set_metrics_trouble(&self, trouble: Option<String>) {
        let mut known = self.metrics_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = trouble.as_ref().filter(|_| *known != trouble) {
            log::error!("{why}; trying again");
        }
        *known = trouble;
    }

    /// Becomes `true` when the agent is to end.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Says that the agent is to end.
    pub fn end(&self) {
        self.ending.send_replace(true);
        self.parts.observer.events.close();
    }

    /// The devices or neighbours of this host changed.
    pub fn devices_changed(&self, snapshot: Snapshot) {
        self.event(|s| {
            s.blind = None;
            s.attachments.forget(&s.datapath, &s.parts.placements, &snapshot.gone);
            let gone = !snapshot.gone.is_empty();
            let world = World::from(snapshot);
            let first = s.policy.known().is_none();
            if gone || first || s.policy.inputs().world != world {
                s.policy.set_world(world);
                if first && let Err(e) = s.policy.recall_health() {
                    log::error!("{e:#}");
                }
                s.tell();
                s.policy.refresh();
                // Before anything of it can pass.
                s.follow_holds(None);
                s.look_at_moves(&BTreeSet::new());
                s.secure(false);
                s.follow(false);
                s.say_what_is_here();
            }
        });
    }

    /// Endpoints came into other groups, by their tags or an operator.
    /// Gives why that is not in force, where it is not.
    pub fn groups_changed(&self) -> Option<String> {
        let mut trouble = None;
        self.event(|s| {
            if !s.parts.quarantine.take_changed().is_empty() {
                s.secure(false);
                s.say_what_is_here();
            }
            trouble = s.security.trouble().map(str::to_owned);
        });
        trouble
    }

    /// Devices cannot be followed at the moment.
    pub fn devices_lost(&self, why: &anyhow::Error) {
        self.event(|s| s.blind = Some(format!("changes of devices and neighbours are not seen: {why:#}")));
    }

    /// The health of members changed.
    pub fn health_changed(&self, events: Vec<health::Event>) {
        self.event(|s| {
            let events: Vec<health::Event> = events.into_iter().filter(|e| s.checker.has(&e.check)).collect();
            let names = members::checked(s.policy.desired(), events.iter().map(|e| &e.check));
            for e in &events {
                let who = members::described(&e.check, names.get(&e.check));
                let (reason, what) = match &e.error {
                    Some(error) => ("down", format!("{who} is down: {error}")),
                    None => ("up", format!("{who} is up")),
                };
                log::log!(if e.error.is_some() { log::Level::Warn } else { log::Level::Info }, "{what}");
                self.parts.observer.events.say(Saying::Health, "", reason, what);
                s.policy.set_health(e.check.clone(), e.health, e.error.clone());
            }
            s.refresh();
            s.share_checks();
        });
    }

    /// Looks after what should be right, and tries again what went wrong.
    pub fn look_after(&self) {
        self.event(|s| {
            if s.policy.trouble().is_some() {
                s.refresh();
            }
            if s.security.trouble().is_some() {
                s.secure(true);
            }
            s.security.sweep(&s.datapath);
            s.follow(true);
            s.look_after_fleet();
            s.look_at_drops();
        });
        self.rehearsals.tidy();
    }

    /// Gives members that came a moment ago more of their share.
    pub fn warm(&self) {
        self.event(|s| {
            if s.policy.warm() {
                s.policy.refresh();
            }
        });
    }

    /// The datapath, unless it was detached.
    pub fn datapath(&self) -> Option<Arc<Datapath>> {
        self.lock().as_ref().map(|s| Arc::clone(&s.datapath))
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        // Whoever panicked left whole values: every change replaces what it changes at its end.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, f: impl FnOnce(&mut State)) {
        if let Some(state) = self.lock().as_mut() {
            f(state);
        }
    }

    fn ask<T>(&self, f: impl FnOnce(&mut State) -> Result<T, Refusal>) -> Result<T, Refusal> {
        match self.lock().as_mut() {
            Some(state) => f(state),
            None => Err(Refusal::conflict("everything was detached, and this agent is ending")),
        }
    }
}

impl State {
    /// Brings the maps of load balancing to what is desired.
    fn refresh(&mut self) {
        let before = self.policy.trouble().is_some();
        self.policy.refresh();
        if before && self.policy.trouble().is_none() {
            // Quarantines redirect to groups of load balancers: as long as their rows were not known, to nothing.
            self.secure(false);
        }
    }

    /// Brings what depends on the policy after it: programs on devices, and health checks.
    fn follow(&mut self, again: bool) {
        let Self { policy, attachments, datapath, parts, .. } = self;
        let members = policy.desired().redirect_members();
        let id = |device: &str| policy.endpoint_id(device);
        attachments.reconcile(datapath, &parts.placements, policy.endpoints(), &members, id, again);
        for name in attachments.take_fresh() {
            parts.quarantine.attached(&name);
        }
        self.parts.observer.names.update(|names| self.rename(names));
        let shared = self.sharing.is_some();
        let Self { policy, checker, .. } = self;
        let runtime = self.runtime.enter();
        for check in policy.take_checks() {
            match policy.desired().has_check(&check) {
                true if shared => {}
                true => {
                    let known = policy.inputs().health.get(&check).map(|h| h.0).unwrap_or_default();
                    checker.start(check, known);
                }
                false => checker.stop(&check),
            }
        }
        drop(runtime);
        self.share_checks();
    }
}

impl State {
    fn look_at_drops(&mut self) {
        let mut there = HashSet::new();
        for nic in self.policy.endpoints() {
            let Some(row) = self.attachments.get(nic.ifindex()).map(|a| a.row).filter(|row| row.id != 0) else { continue };
            there.insert(row.id);
            match self.datapath.maps().endpoint_counters(row.slot) {
                Ok(counters) => self.drops.look(row.id, &counters, Instant::now()),
                Err(e) => log::error!("endpoint {}: {e:#}", nic.name),
            }
        }
        self.drops.retain(|id| there.contains(&id));
    }
}

fn refuse(faults: Vec<Fault>) -> Refusal {
    Refusal::faults("nothing was applied", faults)
}

fn parse(files: &[File]) -> Result<Vec<resource::Located>, Refusal> {
    resource::parse(files).map_err(refuse)
}

impl State {
    /// The change that applying these resources is, when others are deleted with it.
    fn edit_and_delete(&self, located: Vec<resource::Located>, delete: Vec<Key>) -> Result<Edit, Refusal> {
        let gone = Edit { delete: delete.clone(), ..Edit::default() };
        let mut edit = self.edit_over(located, &gone)?;
        let request = DeleteRequest { resources: delete, ignore_not_found: true };
        edit.delete = policy::deletable(request, &edit.resources(self.policy.inputs()))?;
        Ok(edit)
    }

    /// The same, to what `base` makes of what is in force.
    fn edit_over(&self, located: Vec<resource::Located>, base: &Edit) -> Result<Edit, Refusal> {
        let applied: HashSet<Key> = located.iter().map(|l| key(&l.resource)).collect();
        let after = base.resources(self.policy.inputs());
        let others: Vec<&Resource> = after.iter().filter(|(k, _)| !applied.contains(*k)).map(|(_, r)| *r).collect();
        let mut faults = resource::check(&located, &others);
        for l in &located {
            let Resource::TagSource(source) = &l.resource else { continue };
            faults.extend(self.parts.sources.refuses(&source.spec).map(|(field, why)| l.fault(field, why)));
        }
        if !faults.is_empty() {
            return Err(refuse(faults));
        }
        let origins = located.iter().map(|l| (key(&l.resource), l.origin())).collect();
        let mut put: Vec<Resource> = located.into_iter().map(|l| l.resource).collect();
        let versions = put.iter_mut().filter_map(|r| r.take_version().map(|version| (key(r), version))).collect();
        Ok(Edit { put, origins, versions, ..Edit::default() })
    }
}
