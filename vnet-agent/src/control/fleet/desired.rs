//! What is desired, from the store into force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use vnet_common::api::File;
use vnet_common::fleet::{Applied, Key as StoreKey, Rollout, Stored};

use super::super::change::Edit;
use super::super::inputs::{Key, key, load_balancer_key};
use super::super::{State, parse};
use super::Sharing;
use crate::api::Refusal;
use crate::fleet::Hold;
use crate::fleet::view::View;
use crate::observe::Saying;
use crate::resource::{Origin, Resource, without_unknown};
use crate::store::MemberOverride;

/// How far this host has come.
#[derive(Debug, Default)]
pub(super) struct Desired {
    /// The newest revision that is in force.
    pub applied: i64,
    /// The revision that was looked at last; `None`: nothing was.
    seen: Option<i64>,
    /// How often the store had been replaced by then.
    replaced: u64,
    /// Why that is not in force.
    pub refused: Option<String>,
    /// Fields of resources that this agent does not know, and resources of kinds that it does not.
    pub unknown: BTreeSet<String>,
    read: Read,
}

impl Desired {
    /// The revision that was looked at last.
    pub fn seen(&self) -> Option<i64> {
        self.seen
    }
}

/// What is desired of this host.
#[derive(Default)]
pub(super) struct Target {
    pub resources: BTreeMap<Key, Arc<Wanted>>,
    unknown: BTreeSet<String>,
}

/// Resources that were read before, by the revision in which the store has them: `None` for one of a kind that is not known.
pub(super) type Read = BTreeMap<Key, (i64, Option<Arc<Wanted>>)>;

/// What was changed of members, by load balancer and member.
type Overrides = BTreeMap<(String, String), MemberOverride>;

/// A resource that is desired.
#[derive(Debug)]
pub(super) struct Wanted {
    pub resource: Resource,
    /// The same as the store has it, but for what this agent does not know.
    pub json: Value,
    /// Where it was written.
    origin: Option<Origin>,
    /// What this agent does not know of it.
    unknown: Vec<String>,
}

impl State {
    /// Puts in force what the store says, or says why not. What was refused is tried again if it changed, or if `again`.
    pub(super) fn follow_desired(&mut self, again: bool) {
        let Some(Sharing { view, desired, .. }) = self.sharing.as_mut() else { return };
        let moment = view.moment;
        // Before it was read there is what was on the disk: the local store has what was in force.
        let is_news =
            desired.seen != Some(moment.desired) || moment.replaced != desired.replaced || again && desired.refused.is_some();
        if moment.revision == 0 || !is_news {
            return;
        }
        if moment.replaced != desired.replaced {
            // Revisions of another store say nothing.
            *desired = Desired { replaced: moment.replaced, refused: desired.refused.take(), ..Desired::default() };
        }
        let refused = match self.take_over() {
            Err(e) => Some(format!("{e:#}")),
            // All of it is there, and the datapath may not say so.
            Ok(()) => self.policy.trouble().or(self.security.trouble()).map(str::to_owned),
        };
        let revision = moment.desired;
        let Some(Sharing { desired, fleet, .. }) = self.sharing.as_mut() else { return };
        if let Some(why) = refused.as_ref().filter(|_| desired.refused != refused) {
            log::error!("what the store says at revision {revision} is not in force on this host: {why}");
            self.parts.observer.events.say(Saying::Store, "", "refused", format!("revision {revision}: {why}"));
        }
        if refused.is_none() {
            desired.applied = revision;
        }
        (desired.seen, desired.refused) = (Some(revision), refused);
        let applied = Applied {
            revision: desired.applied,
            refused: desired.refused.is_some().then_some(revision),
            trouble: desired.refused.clone(),
        };
        let said = fleet.say(&StoreKey::Applied(fleet.host().to_owned()), Some(&applied), Hold::Alive);
        said.unwrap_or_else(|e| log::error!("{e:#}"));
    }

    fn take_over(&mut self) -> Result<()> {
        let Some(sharing) = self.sharing.as_mut() else { return Ok(()) };
        let moment = sharing.view.moment;
        // An empty store is rather a wrong one than the wish that nothing be forbidden.
        if moment.serial.is_none() {
            return Err(anyhow!(
                "the store has never been set up (`vnet-ctl store init`), or is being filled (`vnet-ctl store restore`): this host keeps what it has"
            ));
        }
        if let Some(what) = sharing.view.unreadable.values().next() {
            return Err(anyhow!("{what}. Mend it, or take it away (`etcdctl del`)"));
        }
        let target = Target::of(&sharing.view, sharing.fleet.host(), &mut sharing.desired.read)?;
        sharing.desired.unknown.clone_from(&target.unknown);
        let overrides = wanted_overrides(&sharing.view)?;
        let inputs = self.policy.inputs();
        let delete: Vec<Key> = inputs.resources.keys().filter(|k| !target.resources.contains_key(*k)).cloned().collect();
        // Nor is one that has not been filled again, also if somebody has begun to.
        if moment.another && delete.len() * 2 > inputs.resources.len() {
            return Err(anyhow!(
                "the store is another than before, and lacks {} of the {} resources of this host, which keeps what it has. Fill it with `vnet-ctl store restore`, or with what this host has in force (`vnet-ctl store migrate --to`), and delete then what is not wanted",
                delete.len(),
                inputs.resources.len()
            ));
        }
        if !self.policy.store().has_joined()? {
            let alone: Vec<String> = inputs
                .resources
                .iter()
                .filter(|(k, r)| target.resources.get(*k).is_none_or(|there| there.resource != **r))
                .map(|((kind, name), _)| format!("{kind} {name}"))
                .collect();
            if let Some(first) = alone.first() {
                return Err(anyhow!(
                    "this host has {} resources of its own that the store has not, or has otherwise ({first}, …): move them there with `vnet-ctl store migrate`, or delete them here",
                    alone.len()
                ));
            }
        }
        let changed: Vec<(&Key, &Arc<Wanted>)> =
            target.resources.iter().filter(|(k, wanted)| inputs.resources.get(*k) != Some(&wanted.resource)).collect();
        let leaving = leaving(&sharing.view, sharing.fleet.host(), &changed, |name| inputs.placed(name));
        if !changed.is_empty() || !delete.is_empty() {
            self.policy.keep_here(leaving);
            let mut edit = self.located_edit(&changed, &delete)?;
            let places = changed.iter().filter_map(|(k, wanted)| Some(((*k).clone(), wanted.origin.clone()?)));
            edit.origins = places.collect();
            edit.delete = delete;
            let response = self.change(edit, false).map_err(|e| anyhow!("{e}"))?;
            response.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        }
        self.follow_overrides(overrides)?;
        self.policy.store().set_joined(true).context("noting that this host follows the store")?;
        if let Some(sharing) = self.sharing.as_ref() {
            sharing.fleet.is_ours(moment.replaced);
        }
        Ok(())
    }

    /// The change that these are, checked like files that somebody applies while others go.
    fn located_edit(&self, changed: &[(&Key, &Arc<Wanted>)], gone: &[Key]) -> Result<Edit> {
        let file = |((kind, name), wanted): &(&Key, &Arc<Wanted>)| File {
            name: format!("{kind} {name} in the store"),
            text: wanted.json.to_string(),
        };
        let files: Vec<File> = changed.iter().map(file).collect();
        let told = |refusal: Refusal| anyhow!("{}", refusal.with_faults());
        let located = parse(&files).map_err(told)?;
        self.edit_over(located, &Edit { delete: gone.to_vec(), ..Edit::default() }).map_err(told)
    }

    fn follow_overrides(&mut self, mut wanted: Overrides) -> Result<()> {
        wanted.retain(|(lb, _), _| self.policy.inputs().resources.contains_key(&load_balancer_key(lb)));
        for id in self.policy.inputs().overrides.keys() {
            wanted.entry(id.clone()).or_default();
        }
        for (id, value) in wanted {
            self.policy.put_override(id, value).map_err(|e| anyhow!("{e}"))?;
        }
        Ok(())
    }
}

/// What operators changed of members: read before anything is in force.
fn wanted_overrides(view: &View) -> Result<Overrides> {
    let read = |((lb, member), (_, value)): (&(String, String), &(i64, Value))| {
        let read = serde_json::from_value(value.clone());
        Ok(((lb.clone(), member.clone()), read.with_context(|| format!("what was changed of member {member} of {lb}"))?))
    };
    view.overrides.iter().map(read).collect()
}

/// Endpoints that are here, and are to be elsewhere. Of one that another host has, too, as while it is moved there, that which counted until
/// now is the one to keep: the other is yet to come, or one of two that were taken for the same.
fn leaving<'a>(
    view: &View,
    own: &str,
    changed: &[(&Key, &Arc<Wanted>)],
    placed: impl Fn(&str) -> Option<&'a str>,
) -> Vec<String> {
    let names = changed.iter().filter_map(|(_, wanted)| match &wanted.resource {
        Resource::Endpoint(e) if e.spec.host.as_deref().is_some_and(|host| host != own) => Some(e.metadata.name.clone()),
        _ => None,
    });
    names.filter(|name| view.owner(name, placed(name)) == Some(own)).collect()
}

impl Target {
    /// What is desired of `host`.
    pub fn of(view: &View, host: &str, read: &mut Read) -> Result<Self> {
        read.retain(|name, _| view.resources.contains_key(name));
        let mut target = Self::default();
        for (name, (revision, stored)) in &view.resources {
            let known = read.get(name).filter(|(of, _)| of == revision).map(|(_, wanted)| wanted.clone());
            let wanted = match known {
                Some(wanted) => wanted,
                None => read_of(name, stored)?,
            };
            read.insert(name.clone(), (*revision, wanted.clone()));
            target.put(name, wanted);
        }
        // In the order of their names: the later one counts where two are about the same.
        for rollout in view.rollouts.values().filter(|r| r.hosts.iter().any(|h| h == host)) {
            target.overlay(rollout)?;
        }
        Ok(target)
    }

    fn overlay(&mut self, rollout: &Rollout) -> Result<()> {
        for stored in &rollout.put {
            let field = |at: &str| stored.resource.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
            let name = (field("/kind"), field("/metadata/name"));
            let wanted = read_of(&name, stored)?;
            self.put(&name, wanted);
        }
        for name in &rollout.delete {
            self.resources.remove(name);
        }
        Ok(())
    }

    fn put(&mut self, name: &Key, wanted: Option<Arc<Wanted>>) {
        match wanted {
            Some(wanted) => {
                self.unknown.extend(wanted.unknown.iter().cloned());
                self.resources.insert(name.clone(), wanted);
            }
            None => {
                let (kind, name) = name;
                self.unknown.insert(format!("{kind} {name}: this agent does not know resources of this kind"));
            }
        }
    }
}

/// Reads a resource; `None`: it is of a kind that this agent does not know.
pub(super) fn read_of((kind, name): &Key, stored: &Stored) -> Result<Option<Arc<Wanted>>> {
    let mut json = stored.resource.clone();
    let Some(paths) = without_unknown(&mut json) else { return Ok(None) };
    let about = |path: &String| format!("{kind} {name}: this agent does not know `{path}`, which has no effect here");
    let unknown = paths.iter().map(about).collect();
    let resource: Resource =
        serde_json::from_value(json.clone()).with_context(|| format!("reading {kind} {name} from the store"))?;
    if key(&resource) != (kind.clone(), name.clone()) {
        return Err(anyhow!("the store has {} {} under the key of {kind} {name}", resource.kind(), resource.name()));
    }
    // Where it was written is good to know, and nothing depends on it.
    let origin = stored.origin.clone().and_then(|origin| serde_json::from_value(origin).ok());
    Ok(Some(Arc::new(Wanted { resource, json, origin, unknown })))
}
