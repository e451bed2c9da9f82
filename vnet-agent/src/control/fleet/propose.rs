//! What a change of what is desired would be, for the operator who writes it.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::Value;
use vnet_common::api::fleet::{Content, FleetStatus, Proposal, ProposeRequest, Proposed};
use vnet_common::api::{Action, ApplyResponse, Change, DeleteRequest, MemberChange};
use vnet_common::fleet::{Key as StoreKey, Stored};

use super::super::change::Edit;
use super::super::inputs::{Key, key};
use super::super::policy::deletable;
use super::super::{Agent, State, diff, parse};
use super::Sharing;
use crate::api::{self, Refusal};
use crate::resource::{Origin, Resource, keep_unknown, to_yaml};
use crate::store::MemberOverride;

/// Why an agent of a fleet writes nothing itself.
pub fn not_here() -> Refusal {
    Refusal::conflict(
        "this host is one of a fleet: what is desired is written to the store that they share, by an operator. Use a vnet-ctl that knows fleets, with an operator's certificate (--store-cert)",
    )
}

impl api::Fleet for Agent {
    fn fleet(&self) -> Result<FleetStatus, Refusal> {
        self.ask(|s| s.fleet_status().ok_or_else(alone))
    }

    fn propose(&self, request: ProposeRequest) -> Result<Proposal, Refusal> {
        self.ask(|s| s.propose(request))
    }

    fn content(&self) -> Result<Content, Refusal> {
        self.ask(|s| s.content())
    }
}

fn alone() -> Refusal {
    Refusal::not_found("this agent shares no store with others: it was started without --store")
}

impl State {
    /// Is what is desired written elsewhere?
    pub(in super::super) fn refuse_if_shared(&self) -> Result<(), Refusal> {
        if self.sharing.is_some() { Err(not_here()) } else { Ok(()) }
    }

    /// Checks a change against everything, and says what to write. Nothing changes.
    fn propose(&mut self, request: ProposeRequest) -> Result<Proposal, Refusal> {
        let serial = self.may_propose()?;
        let base = self.base()?;
        match request {
            ProposeRequest::Apply { files } => {
                let edit = self.edit_over(parse(&files)?, &base)?;
                edit.versions.iter().try_for_each(|(name, version)| self.is_current(name, *version, &edit))?;
                let mut response = self.checked(base, &edit)?;
                let writes = edit.put.iter().map(|r| self.put_of(r, &edit.origins)).collect::<Result<Vec<_>, _>>()?;
                let writes: Vec<Proposed> = writes.into_iter().flatten().collect();
                for change in &mut response.changes {
                    agree(change, &writes);
                }
                Ok(Proposal { response, serial, writes })
            }
            ProposeRequest::Delete { resources, ignore_not_found } => {
                let request = DeleteRequest { resources, ignore_not_found };
                let delete = deletable(request, &base.resources(self.policy.inputs()))?;
                let writes = delete.iter().map(|k| self.deletes_of(k)).collect::<Result<Vec<_>, _>>()?.concat();
                let response = self.checked(base, &Edit { delete, ..Edit::default() })?;
                Ok(Proposal { response, serial, writes })
            }
            ProposeRequest::Member { lb, member, change } => {
                let write = self.override_of(&lb, &member, &change)?;
                let response = ApplyResponse { changes: Vec::new(), warnings: Vec::new(), effects: None };
                Ok(Proposal { response, serial, writes: write.into_iter().collect() })
            }
            ProposeRequest::Promote { rollout } => {
                let found = self.sharing()?.view.rollouts.get(&rollout).cloned();
                let found = found.ok_or_else(|| Refusal::not_found(format!("there is no rollout '{rollout}'")))?;
                let edit = self.rolled_out(&found, &base)?;
                let response = self.checked(base, &edit)?;
                Ok(Proposal { response, serial, writes: Vec::new() })
            }
        }
    }

    /// The revision with which a proposal is good; an error as long as this host cannot make one.
    fn may_propose(&self) -> Result<i64, Refusal> {
        let Sharing { view, desired, fleet, .. } = self.sharing()?;
        let moment = view.moment;
        if moment.revision == 0 {
            let why = fleet.link().trouble.unwrap_or_else(|| "no answer yet".to_owned());
            return Err(Refusal::conflict(format!("this host has not reached the store since its agent started: {why}")));
        }
        let serial = moment.serial.ok_or_else(|| {
            Refusal::conflict(
                "the store has never been set up (`vnet-ctl store init`), or is being filled (`vnet-ctl store restore`)",
            )
        })?;
        if desired.seen() != Some(moment.desired) || fleet.mirror().moment().serial != moment.serial {
            return Err(Refusal::conflict("this host is just taking over a change: try again"));
        }
        if let Some(what) = view.unreadable.values().next() {
            return Err(Refusal::conflict(format!("nothing can be checked against what all hosts share: {what}")));
        }
        match desired.refused.as_ref().filter(|_| moment.another) {
            Some(why) => {
                Err(Refusal::conflict(format!("nothing may be changed in a store that this host does not follow: {why}")))
            }
            None => Ok(serial),
        }
    }

    /// What a change would do to all hosts: it is checked as the whole that it makes of what all share.
    fn checked(&mut self, base: Edit, edit: &Edit) -> Result<ApplyResponse, Refusal> {
        let is_trying = !base.put.is_empty() || !base.delete.is_empty();
        let mut response = self.change(base.then(edit.clone()), true)?;
        response.changes = self.told_of_shared(response.changes, edit);
        if is_trying {
            response
                .warnings
                .push("this host tries a rollout: effects are those of going back from that, and of the change".to_owned());
        }
        Ok(response)
    }

    fn sharing(&self) -> Result<&Sharing, Refusal> {
        self.sharing.as_ref().ok_or_else(alone)
    }

    /// The version of a resource, in a fleet.
    fn version_of(&self, name: &Key) -> Option<i64> {
        self.sharing.as_ref()?.view.resources.get(name).map(|(revision, _)| *revision)
    }

    /// Is a resource still what somebody made another from?
    fn is_current(&self, name: &Key, version: u64, edit: &Edit) -> Result<(), Refusal> {
        let there = self.version_of(name);
        if there.is_some_and(|there| u64::try_from(there) == Ok(version)) {
            return Ok(());
        }
        let text = |r: Option<&Resource>| r.map(to_yaml).unwrap_or_default();
        let (now, wanted) = (self.sharing()?.shared(name), edit.put.iter().find(|r| key(r) == *name));
        let by_now = there.map_or("it is not there any more".to_owned(), |there| format!("it is {there} by now"));
        Err(Refusal::conflict(format!(
            "{} was made from version {version}, and {by_now}. Nothing was changed: get it again, and make your change to that. From what is there to what you gave:\n{}",
            what(name),
            diff::unified(&text(now.as_ref()), &text(wanted))
        )))
    }

    /// `None`: the store has it like this.
    fn put_of(&self, resource: &Resource, origins: &[(Key, Origin)]) -> Result<Option<Proposed>, Refusal> {
        let name = key(resource);
        let known = self.sharing()?.view.resources.get(&name);
        let mut json = serde_json::to_value(resource).context("writing a resource as JSON")?;
        if let Some((_, stored)) = known {
            keep_unknown(&stored.resource, &mut json);
        }
        if known.is_some_and(|(_, stored)| stored.resource == json) {
            return Ok(None);
        }
        let origin = origins.iter().find(|(k, _)| *k == name).map(|(_, origin)| serde_json::to_value(origin));
        let origin = origin.transpose().context("writing where a resource is from as JSON")?;
        let rest = known.map(|(_, stored)| stored.rest.clone()).unwrap_or_default();
        let value = serde_json::to_value(Stored { resource: json, origin, rest }).context("writing a resource as JSON")?;
        let before = known.map(|(_, stored)| serde_json::to_value(stored)).transpose().context("writing a resource as JSON")?;
        Ok(Some(Proposed {
            key: StoreKey::Resource(name.0.clone(), name.1.clone()).to_string(),
            what: what(&name),
            value: Some(value),
            base: known.map_or(0, |(revision, _)| *revision),
            before,
        }))
    }

    /// What operators changed of a load balancer goes with it.
    fn deletes_of(&self, name: &Key) -> Result<Vec<Proposed>, Refusal> {
        let view = &self.sharing()?.view;
        let mut writes = Vec::new();
        if let Some((base, stored)) = view.resources.get(name) {
            writes.push(Proposed {
                key: StoreKey::Resource(name.0.clone(), name.1.clone()).to_string(),
                what: what(name),
                value: None,
                base: *base,
                before: Some(serde_json::to_value(stored).context("writing a resource as JSON")?),
            });
        }
        let own = view.overrides.iter().filter(|((lb, _), _)| name.0 == "LoadBalancer" && *lb == name.1);
        writes.extend(own.map(|((lb, member), (base, value))| Proposed {
            key: StoreKey::Override(lb.clone(), member.clone()).to_string(),
            what: format!("member {member} of {lb}"),
            value: None,
            base: *base,
            before: Some(value.clone()),
        }));
        Ok(writes)
    }

    /// `None`: it is so already.
    fn override_of(&self, lb: &str, member: &str, change: &MemberChange) -> Result<Option<Proposed>, Refusal> {
        let (_, new) = self.policy.overridden(lb, member, change)?;
        let id = (lb.to_owned(), member.to_owned());
        let known = self.sharing()?.view.overrides.get(&id);
        let mut value = serde_json::to_value(&new).context("writing what changes of a member as JSON")?;
        let mut gone = new == MemberOverride::default();
        if let (Some((_, Value::Object(before))), Value::Object(after)) = (known, &mut value) {
            // What only newer agents know stays, and the key with it.
            let known =
                serde_json::to_value(MemberOverride { drained: true, weight: Some(0) }).context("asking for the fields")?;
            let kept = before.iter().filter(|(field, _)| known.get(field).is_none());
            let kept: Vec<(String, Value)> = kept.map(|(field, value)| (field.clone(), value.clone())).collect();
            gone = gone && kept.is_empty();
            after.extend(kept);
        }
        let same = match known {
            Some((_, before)) => !gone && *before == value,
            None => gone,
        };
        Ok((!same).then(|| Proposed {
            key: StoreKey::Override(id.0, id.1).to_string(),
            what: format!("member {member} of {lb}"),
            value: (!gone).then_some(value),
            base: known.map_or(0, |(revision, _)| *revision),
            before: known.map(|(_, value)| value.clone()),
        }))
    }

    /// All that operators wrote.
    fn content(&self) -> Result<Content, Refusal> {
        // Of a store that was lost what is in force here may be all that is left.
        if let Some(Sharing { view, .. }) =
            self.sharing.as_ref().filter(|sharing| sharing.is_read() && !sharing.view.moment.another)
        {
            let overrides = view.overrides.iter().map(|((lb, member), (_, value))| (lb.clone(), member.clone(), value.clone()));
            return Ok(Content {
                resources: view.resources.values().map(|(_, s)| s.clone()).collect(),
                overrides: overrides.collect(),
            });
        }
        let inputs = self.policy.inputs();
        let mut content = Content::default();
        for (name, resource) in &inputs.resources {
            let origin = inputs
                .origins
                .get(name)
                .map(serde_json::to_value)
                .transpose()
                .context("writing where a resource is from as JSON")?;
            content.resources.push(Stored {
                resource: serde_json::to_value(resource).context("writing a resource as JSON")?,
                origin,
                ..Stored::default()
            });
        }
        for ((lb, member), value) in inputs.overrides.iter().collect::<std::collections::BTreeMap<_, _>>() {
            let json = serde_json::to_value(value).context("writing what changes of a member as JSON")?;
            content.overrides.push((lb.clone(), member.clone(), json));
        }
        Ok(content)
    }
}

/// The store may have the same resource in other words: what is said has to be what is written.
fn agree(change: &mut Change, writes: &[Proposed]) {
    let written: BTreeSet<&str> = writes.iter().map(|w| w.what.as_str()).collect();
    let is_written = written.contains(what(&(change.kind.clone(), change.name.clone())).as_str());
    if change.action == Action::Unchanged && is_written {
        change.action = Action::Configured;
    }
}

fn what((kind, name): &Key) -> String {
    format!("{}/{name}", kind.to_lowercase())
}
