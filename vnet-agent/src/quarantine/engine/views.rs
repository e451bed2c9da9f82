//! What people see.

use std::collections::BTreeMap;

use vnet_common::api::{GroupStatus, Held, Pending, QuarantineStatus, Tag};

use super::{Assignment, Enforced, Engine, Live};
use crate::quarantine::clock::Now;
use crate::quarantine::model::{Group, OPERATOR};
use crate::quarantine::state::{Hold, Holder};
use crate::quarantine::tags::{brief, view};
use crate::resource::{DefaultAction, SecurityGroup};

/// Endpoints that an alarm names, at most.
const NAMED: usize = 5;
/// Alarms of one kind, at most.
const ALARMS: usize = 20;

impl Engine {
    /// Which groups all endpoints are in.
    pub fn assignments(&self) -> impl Iterator<Item = (&str, Assignment)> {
        self.model.endpoints.keys().filter_map(|name| Some((name.as_str(), self.live.get(name)?.assignment())))
    }

    /// Who is held, or is to be, and in which group: endpoints that are gone, too.
    pub fn holds(&self) -> impl Iterator<Item = (&str, &str)> {
        self.live.iter().filter_map(|(name, live)| Some((name.as_str(), live.holder()?.group.as_str())))
    }

    /// Was it ever moved, as far as that is known?
    #[must_use]
    pub fn remembers(&self, name: &str) -> bool {
        self.live.get(name).is_some_and(|live| live.row.moves > 0)
    }

    /// Is it to be enforced again, on a device that came?
    pub fn reattach(&mut self, name: &str) {
        let Some(live) = self.live.get_mut(name) else { return };
        if let Some(hold) = live.holder() {
            let (group, moves) = (hold.group.clone(), live.assignment().moves);
            self.actions.push_back(super::Action { endpoint: name.to_owned(), group, moves });
        }
    }

    /// Tags, of one endpoint or all.
    #[must_use]
    pub fn tags(&self, subject: Option<&str>, now: Now) -> Vec<Tag> {
        let mut subjects: Vec<&str> = match subject {
            Some(subject) => vec![subject],
            None => self.tags.subjects().collect(),
        };
        subjects.sort_unstable();
        subjects.into_iter().flat_map(|s| self.tags.of(s)).map(|(key, state)| view(key, state, now)).collect()
    }

    /// Who is held, and who would be.
    #[must_use]
    pub fn status(&self, now: Now) -> QuarantineStatus {
        let mut status = QuarantineStatus { alarms: self.alarms(now), ..QuarantineStatus::default() };
        let mut names: Vec<(&String, &Live)> = self.live.iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        for (name, live) in names {
            if let Some(hold) = live.holder() {
                status.held.push(self.held(name, live, hold, now));
            }
            if let Some(waiting) = &live.row.waiting {
                status.pending.push(Pending {
                    endpoint: name.clone(),
                    to: waiting.to.clone(),
                    transfer: waiting.transfer.clone(),
                    since_ms: waiting.since_wall,
                    because: waiting.because.name().to_owned(),
                    reason: waiting.reason.clone(),
                });
            }
            if live.row.never.is_some() {
                status.never.push(name.clone());
            }
        }
        status
    }

    fn held(&self, name: &str, live: &Live, hold: &Hold, now: Now) -> Held {
        let state = match &live.enforced {
            _ if !self.model.endpoints.contains_key(name) => "waiting".to_owned(),
            Enforced::Yes => "enforced".to_owned(),
            Enforced::NoDevice => "waiting".to_owned(),
            Enforced::Failed(why) => format!("failed: {why}"),
        };
        let waiting_for = match live.leaving {
            None => live.waiting_for.clone(),
            Some(_) => "its release to be stored, and done".to_owned(),
        };
        Held {
            endpoint: name.to_owned(),
            group: hold.group.clone(),
            from: if live.row.base.is_empty() { hold.from.clone() } else { live.row.base.clone() },
            transfer: hold.transfer.clone(),
            since_ms: hold.since_wall,
            not_before_ms: if hold.not_before == 0 { hold.since_wall } else { now.wall_at(hold.not_before) },
            until_ms: hold.until.map(|until| now.wall_at(until)),
            reason: hold.reason.clone(),
            tags: self.tags.of(name).map(|(key, state)| brief(key, state)).collect(),
            waiting_for,
            state,
        }
    }

    /// Every security group; their numbers are not given here.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupStatus> {
        let mut members: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (name, live) in self.live.iter().filter(|(name, _)| self.model.endpoints.contains_key(*name)) {
            let group = live.holder().map_or(&live.row.base, |hold| &hold.group);
            members.entry(group).or_default().push(name.clone());
        }
        let mut groups: Vec<GroupStatus> = self.model.groups.values().map(|g| status_of(g)).collect();
        groups.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for group in &mut groups {
            group.endpoints = members.remove(group.name.as_str()).unwrap_or_default();
            group.endpoints.sort_unstable();
        }
        groups
    }

    /// Things an operator should look at.
    #[must_use]
    pub fn alarms(&self, now: Now) -> Vec<String> {
        let mut alarms = Vec::new();
        if let Some(trouble) = &self.trouble {
            alarms
                .push(format!("holds, tags and the audit log cannot be stored, and nobody is let go until they can: {trouble}"));
        }
        if self.audit_lost > 0 {
            alarms.push(format!("{} records of the audit log are lost: the store takes none", self.audit_lost));
        }
        for (source, since) in &self.common.lost {
            let seconds = now.at.saturating_sub(*since) / 1000;
            alarms.push(format!(
                "tag source {source} is lost for {seconds} s: whom its tags hold is not let go; see that it runs, or delete its resource"
            ));
        }
        for source in self.tags.counts().map(|(source, _)| source) {
            if source != OPERATOR && !self.model.sources.contains_key(source) {
                alarms.push(format!(
                    "there are tags of source {source}, but no TagSource of that name: remove them, or apply it again"
                ));
            }
        }
        let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (name, live) in &self.live {
            for kind in self.kinds(live) {
                kinds.entry(kind).or_default().push(name);
            }
        }
        let more = kinds.len().saturating_sub(ALARMS);
        for (kind, mut names) in kinds.into_iter().take(ALARMS) {
            names.sort_unstable();
            let (count, first) = (names.len(), names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", "));
            let rest = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            alarms.push(format!("{first}{rest}: {kind}"));
        }
        if more > 0 {
            alarms.push(format!("and {more} alarms more about endpoints: the audit log has them"));
        }
        alarms
    }

    /// What is wrong with an endpoint.
    fn kinds(&self, live: &Live) -> Vec<String> {
        let stays = "the state stays as it is; correct the expression";
        let mut kinds: Vec<String> = live.faults.iter().map(|(what, why)| format!("{what}: {why}: {stays}")).collect();
        if let Enforced::Failed(why) = &live.enforced {
            kinds.push(format!("{why}; it is tried again every second"));
        }
        if live.row.waiting.is_some() {
            kinds.push("a move waits for approval: vnet-ctl quarantine approve or dismiss".to_owned());
        }
        let Some(hold) = &live.row.held else { return kinds };
        if !self.model.group(&hold.group).is_some_and(|g| g.is_quarantine()) {
            kinds.push(format!("held in quarantine group {}, which is gone: apply it again, or release by hand", hold.group));
        }
        if hold.by == Holder::Recovered {
            kinds.push(format!("found held in {} by a restart, and nobody knows why: look, and release by hand", hold.group));
        }
        if hold.by == Holder::Transfer {
            let (from, transfer) = (&hold.from, &hold.transfer);
            let still = "it is let go by the criterion that it had then, or by hand";
            match self.model.group(from).and_then(|g| g.transfer(transfer)).map(|(_, t)| &t.spec) {
                None => kinds.push(format!("held by transfer {transfer} of group {from}, which is gone: {still}")),
                Some(t) if (&t.when, &t.release_when, &t.to) != (&hold.when, &hold.release_when, &hold.group) => {
                    kinds.push(format!("held by transfer {transfer} of group {from}, which was changed since: {still}"));
                }
                Some(_) => {}
            }
        }
        kinds
    }

    /// Tags in all, endpoints that are held, and moves that wait for approval.
    #[must_use]
    pub fn numbers(&self) -> (usize, usize, usize) {
        let held = self.live.values().filter(|live| live.holder().is_some()).count();
        (self.tags.count(), held, self.live.values().filter(|live| live.row.waiting.is_some()).count())
    }
}

impl Live {
    /// Who holds it in the datapath, or is to.
    pub(super) fn holder(&self) -> Option<&Hold> {
        self.leaving.as_ref().map(|(hold, _)| hold).or(self.row.held.as_ref())
    }

    fn assignment(&self) -> Assignment {
        let holder = self.holder();
        Assignment {
            base: self.row.base.clone(),
            group: holder.map_or_else(|| self.row.base.clone(), |hold| hold.group.clone()),
            quarantined: holder.is_some(),
            moves: self.leaving.as_ref().map_or(self.row.moves, |(_, moves)| *moves),
        }
    }
}

fn status_of(group: &Group) -> GroupStatus {
    let rules = |r: &SecurityGroup| r.spec.ingress.len() + r.spec.egress.len();
    let defaults = group.resource.as_ref().map(|r| r.spec.defaults).unwrap_or_default();
    let name = |action: Option<DefaultAction>| {
        match action {
            Some(DefaultAction::Allow) => "allow",
            Some(DefaultAction::Deny) => "deny",
            Some(DefaultAction::Reject) => "reject",
            None if group.is_quarantine() => "deny",
            None => "allow",
        }
        .to_owned()
    };
    GroupStatus {
        name: group.name.clone(),
        id: 0,
        quarantine: group.is_quarantine(),
        built_in: group.resource.is_none(),
        endpoints: Vec::new(),
        rules: group.resource.as_ref().map_or(0, rules) as u32,
        defaults: [name(defaults.ingress), name(defaults.egress)],
        transfers: group.transfers.iter().map(|t| t.spec.name.clone()).collect(),
    }
}
