//! What all hosts share of what is desired, where this one has something else in force: changes are made to that.

use std::collections::BTreeSet;

use serde_json::Value;
use vnet_common::api::{Change, File};
use vnet_common::fleet::{Rollout, Stored};

use super::super::change::Edit;
use super::super::inputs::{Key, key};
use super::super::policy::describe;
use super::super::{State, parse};
use super::Sharing;
use super::desired::{Target, read_of};
use crate::api::Refusal;
use crate::resource::Resource;

impl Sharing {
    /// A resource as the store has it, without what this agent does not know; `None`: it has none, or none that can be read.
    pub(super) fn shared(&self, name: &Key) -> Option<Resource> {
        let (_, stored) = self.view.resources.get(name)?;
        Some(read_of(name, stored).ok()??.resource.clone())
    }

    /// All of them, as JSON, with their versions.
    pub(in super::super) fn all_shared(&self) -> impl Iterator<Item = (&Key, i64, Value)> {
        self.view
            .resources
            .iter()
            .filter_map(|(name, (version, stored))| Some((name, *version, read_of(name, stored).ok()??.json.clone())))
    }

    fn has_rollout(&self) -> bool {
        self.view.rollouts.values().any(|rollout| rollout.hosts.iter().any(|host| host == self.fleet.host()))
    }
}

impl State {
    /// What makes of what is in force here that which all hosts share: takes back what only some try, this one among them. A host that
    /// refuses what all share has nothing better than what it has in force.
    pub(super) fn base(&self) -> Result<Edit, Refusal> {
        let mut base = Edit::default();
        let Some(sharing) = self.sharing.as_ref().filter(|s| s.has_rollout() && s.desired.refused.is_none()) else {
            return Ok(base);
        };
        let target = Target::of(&sharing.view, "", &mut Default::default())?;
        let inputs = &self.policy.inputs().resources;
        let changed = target.resources.iter().filter(|(k, wanted)| inputs.get(*k) != Some(&wanted.resource));
        base.put = changed.map(|(_, wanted)| wanted.resource.clone()).collect();
        base.delete = inputs.keys().filter(|k| !target.resources.contains_key(*k)).cloned().collect();
        Ok(base)
    }

    /// What a rollout changes, as files that somebody applies, and what it deletes.
    pub(super) fn rolled_out(&self, rollout: &Rollout, base: &Edit) -> Result<Edit, Refusal> {
        let field =
            |stored: &Stored, at: &str| stored.resource.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut files = Vec::new();
        for stored in &rollout.put {
            let name = (field(stored, "/kind"), field(stored, "/metadata/name"));
            if let Some(wanted) = read_of(&name, stored)? {
                files.push(File { name: format!("{} {} of the rollout", name.0, name.1), text: wanted.json.to_string() });
            }
        }
        let gone = Edit { delete: rollout.delete.clone(), ..Edit::default() };
        let mut edit = self.edit_over(parse(&files)?, &base.clone().then(gone.clone()))?;
        edit.delete = gone.delete;
        Ok(edit)
    }

    /// Says of changes what becomes of what all hosts share, and not of what is in force here. `edit` is all that was asked for.
    pub(super) fn told_of_shared(&self, changes: Vec<Change>, edit: &Edit) -> Vec<Change> {
        let asked: BTreeSet<Key> = edit.put.iter().map(key).chain(edit.delete.iter().cloned()).collect();
        let told = |change: Change| {
            let name = (change.kind.clone(), change.name.clone());
            let (old, new) = (self.sharing.as_ref()?.shared(&name), edit.put.iter().find(|r| key(r) == name));
            asked.contains(&name).then(|| describe(&name, old.as_ref(), new))
        };
        changes.into_iter().filter_map(told).collect()
    }
}
