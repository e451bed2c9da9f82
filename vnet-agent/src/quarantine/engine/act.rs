//! Carries out what was decided.

use std::collections::BTreeSet;

use vnet_common::api::AuditRecord;

use super::decide::{Decision, Verdict};
use super::{Action, Enforced, Engine, RETRY};
use crate::quarantine::clock::Now;
use crate::quarantine::model::{Group, Transfer};
use crate::quarantine::state::{Because, Hold, Holder, Waiting};

/// What the datapath is to do once something is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// Let go.
    Release,
    /// Hold in this group.
    Hold(String),
}

/// Who moves an endpoint, and why.
pub(super) struct Cause<'a> {
    pub(super) who: &'a str,
    pub(super) reason: String,
    /// Nobody was asked: brakes count it.
    pub(super) automatic: bool,
    /// The rules may become laxer by it.
    pub(super) laxer: bool,
}

impl Engine {
    /// Does it; may more follow?
    pub(super) fn carry_out(&mut self, name: &str, base: &Group, decision: Decision, now: Now) -> bool {
        self.say_faults(name, &decision, now);
        self.say_would(name, base, &decision, now);
        self.set_waiting(name, base, &decision, now);
        let Some(live) = self.live.get_mut(name) else { return false };
        (live.waiting_for, live.aging) = (decision.waiting_for, decision.aging);
        let before = (live.row.dismissed.len(), live.row.waived);
        for i in &decision.ended {
            if let Some(t) = base.transfers.get(*i) {
                live.row.dismissed.remove(&key(base, t));
            }
        }
        // Who was found held goes on with tags that came since.
        if !decision.wanted && decision.verdict == Verdict::Stay && live.row.held.is_none() {
            live.row.waived = None;
        }
        if before != (live.row.dismissed.len(), live.row.waived) {
            self.touched.insert(name.to_owned());
        }
        let retry = matches!(live.enforced, Enforced::Failed(_)).then_some(now.at + RETRY);
        self.set_timer(name, decision.next.into_iter().chain(retry).min());
        match decision.verdict {
            Verdict::Stay => return false,
            Verdict::Move(i) => {
                let Some(t) = base.transfers.get(i) else { return false };
                let cause = Cause { who: "transfer", reason: format!("`{}`", t.when.text()), automatic: true, laxer: false };
                self.move_by(name, base, t, &cause, now);
            }
            Verdict::TakeOver(i, laxer) => {
                let Some(t) = base.transfers.get(i) else { return false };
                let cause = Cause { who: "transfer", reason: format!("`{}`", t.when.text()), automatic: false, laxer };
                self.move_by(name, base, t, &cause, now);
            }
            Verdict::Release(reason) => self.release(name, "release", "transfer", &reason, now),
        }
        true
    }

    /// Moves an endpoint by a transfer, wherever it was.
    pub(super) fn move_by(&mut self, name: &str, base: &Group, t: &Transfer, cause: &Cause<'_>, now: Now) {
        if cause.automatic {
            self.count_for_brake(base, now);
        }
        let sources: BTreeSet<String> = self.tags.of(name).map(|(tag, _)| tag.source.clone()).collect();
        let Some(live) = self.live.get_mut(name) else { return };
        let before = live.row.held.as_ref();
        let mut not_before = now.at + u64::from(t.spec.min_hold_seconds) * 1000;
        if let Some(damping) = t.spec.flap_damping.filter(|_| before.is_none()) {
            let times = live.row.history.entry(key(base, t)).or_default();
            let within = u64::from(damping.within_seconds) * 1000;
            times.retain(|at| at + within > now.at);
            times.push(now.at);
            if times.len() >= damping.moves as usize {
                not_before = not_before.max(now.at + u64::from(damping.hold_seconds) * 1000);
                times.drain(..times.len() - damping.moves as usize);
            }
        }
        not_before = not_before.max(before.map_or(0, |hold| hold.not_before));
        let hold = Hold {
            group: t.spec.to.clone(),
            from: base.name.clone(),
            transfer: t.spec.name.clone(),
            by: Holder::Transfer,
            priority: t.spec.priority,
            when: t.spec.when.clone(),
            release_when: t.spec.release_when.clone(),
            since: before.map_or(now.at, |hold| hold.since),
            since_wall: before.map_or(now.wall, |hold| hold.since_wall),
            not_before,
            until: t.spec.max_hold_seconds.map(|s| (now.at + u64::from(s) * 1000).max(not_before)),
            reason: cause.reason.clone(),
            sources,
        };
        self.hold(name, hold, "move", cause, now);
    }

    /// Holds an endpoint, or holds it in another way.
    pub(super) fn hold(&mut self, name: &str, hold: Hold, action: &str, cause: &Cause<'_>, now: Now) {
        let Some(live) = self.live.get_mut(name) else { return };
        let from = live.holder().map_or_else(|| live.row.base.clone(), |hold| hold.group.clone());
        let row = &mut live.row;
        row.moves += 1;
        (row.opening, row.waived) = (false, None);
        live.enforced = Enforced::Yes;
        let (group, transfer) = (hold.group.clone(), hold.transfer.clone());
        let old = row.held.replace(hold);
        if cause.laxer {
            // Like a release: first it is stored.
            let moves = row.moves - 1;
            live.leaving = live.leaving.take().or(old.map(|old| (old, moves)));
        } else {
            live.leaving = None;
            self.actions.push_back(Action { endpoint: name.to_owned(), group: group.clone(), moves: row.moves });
        }
        self.touched.insert(name.to_owned());
        self.changed.insert(name.to_owned());
        self.record(AuditRecord {
            at_ms: now.wall,
            endpoint: name.to_owned(),
            action: action.to_owned(),
            from,
            to: group,
            transfer,
            who: cause.who.to_owned(),
            reason: cause.reason.clone(),
            evidence: self.evidence(name),
            ..AuditRecord::default()
        });
    }

    /// Lets an endpoint go: once this is stored, the datapath does it.
    pub(super) fn release(&mut self, name: &str, action: &str, who: &str, reason: &str, now: Now) {
        let order = self.tags.order();
        let Some(live) = self.live.get_mut(name) else { return };
        let Some(hold) = live.row.held.take() else { return };
        live.row.moves += 1;
        (live.row.opening, live.row.waived) = (true, Some(order));
        live.row.incomplete.clear();
        live.waiting_for.clear();
        live.enforced = Enforced::Yes;
        let record = AuditRecord {
            at_ms: now.wall,
            endpoint: name.to_owned(),
            action: action.to_owned(),
            from: hold.group.clone(),
            to: live.row.base.clone(),
            transfer: hold.transfer.clone(),
            who: who.to_owned(),
            reason: reason.to_owned(),
            ..AuditRecord::default()
        };
        live.leaving = live.leaving.take().or(Some((hold, live.row.moves - 1)));
        self.touched.insert(name.to_owned());
        self.changed.insert(name.to_owned());
        let evidence = self.evidence(name);
        self.record(AuditRecord { evidence, ..record });
    }

    /// What the datapath is to learn of an endpoint now that it is stored; `None`: something came in between.
    #[must_use]
    pub fn then(&self, name: &str, moves: u32) -> Option<Then> {
        let live = self.live.get(name).filter(|live| live.leaving.is_some() && live.row.moves == moves)?;
        Some(match &live.row.held {
            None => Then::Release,
            Some(hold) => Then::Hold(hold.group.clone()),
        })
    }

    /// The datapath has done that, or could not.
    pub fn done(&mut self, name: &str, result: Result<bool, String>, now: Now) {
        let Some(live) = self.live.get_mut(name) else { return };
        match result {
            Ok(there) => {
                // Who was let go stays `opening`: its row goes on as it was until its set is there, and a restart before that completes it.
                live.leaving = None;
                live.enforced = if there || live.row.held.is_none() { Enforced::Yes } else { Enforced::NoDevice };
                self.changed.insert(name.to_owned());
            }
            Err(why) => self.failed(name, format!("its rules cannot be changed back: {why}"), now),
        }
    }

    /// What became of an `Action`.
    pub fn enforced(&mut self, action: &Action, result: Result<bool, String>, now: Now) {
        let Some(live) = self.live.get_mut(&action.endpoint) else { return };
        if live.leaving.is_some() || live.row.held.is_none() || live.row.moves != action.moves {
            return;
        }
        match result {
            Ok(true) => live.enforced = Enforced::Yes,
            Ok(false) => live.enforced = Enforced::NoDevice,
            Err(why) => self.failed(&action.endpoint, format!("quarantine {} cannot be enforced: {why}", action.group), now),
        }
    }

    fn failed(&mut self, name: &str, why: String, now: Now) {
        let Some(live) = self.live.get_mut(name) else { return };
        let news = live.enforced != Enforced::Failed(why.clone());
        live.enforced = Enforced::Failed(why.clone());
        if news {
            self.audit_error(name, why, now);
        }
        let due = self.live.get(name).and_then(|live| live.timer).map_or(now.at + RETRY, |due| due.min(now.at + RETRY));
        self.set_timer(name, Some(due));
    }

    /// Why nobody of this group may be moved without being asked, if that is so.
    pub(super) fn brake(&self, group: &Group, now: Now) -> Option<String> {
        let brakes = group.resource.as_ref()?.spec.brakes?;
        let size = self.sizes.get(&group.name).copied().unwrap_or_default();
        let share = brakes.max_percent.map(|percent| (size * usize::from(percent)).div_ceil(100));
        let most = share.into_iter().chain(brakes.max_endpoints.map(|n| n as usize)).min()?;
        let since = now.at.saturating_sub(u64::from(brakes.window_seconds) * 1000);
        let moved = self.common.windows.get(&group.name).into_iter().flatten().filter(|at| **at > since || since == 0).count();
        let window = brakes.window_seconds;
        (moved >= most).then(|| format!("{moved} of {size} endpoints were moved in {window} s, of {most} that may be"))
    }

    pub(super) fn count_for_brake(&mut self, group: &Group, now: Now) {
        let Some(brakes) = group.resource.as_ref().and_then(|r| r.spec.brakes) else {
            self.common_touched |= self.common.windows.remove(&group.name).is_some();
            return;
        };
        let times = self.common.windows.entry(group.name.clone()).or_default();
        let window = u64::from(brakes.window_seconds) * 1000;
        times.retain(|at| at + window > now.at);
        times.push(now.at);
        self.common_touched = true;
    }

    fn say_faults(&mut self, name: &str, decision: &Decision, now: Now) {
        let Some(live) = self.live.get_mut(name) else { return };
        if live.faults == decision.faults {
            return;
        }
        let old = std::mem::replace(&mut live.faults, decision.faults.clone());
        for (what, why) in decision.faults.iter().filter(|(what, why)| old.get(*what) != Some(why)) {
            self.audit_error(name, format!("{what}: {why}; it stays where it is"), now);
        }
    }

    /// Not more of them than people can read: each is an alarm too.
    pub(super) fn audit_error(&mut self, name: &str, reason: String, now: Now) {
        let Some(more) = self.errors.take(10, 100, now.at) else { return };
        let reason = if more == 0 { reason } else { format!("{reason} (and {more} errors more, which are not recorded)") };
        self.record(AuditRecord {
            at_ms: now.wall,
            endpoint: name.to_owned(),
            action: "error".to_owned(),
            who: "agent".to_owned(),
            reason,
            ..AuditRecord::default()
        });
    }

    fn say_would(&mut self, name: &str, base: &Group, decision: &Decision, now: Now) {
        let would = decision.would.iter().filter_map(|i| base.transfers.get(*i));
        let would: BTreeSet<String> = would.map(|t| key(base, t)).collect();
        let Some(live) = self.live.get_mut(name) else { return };
        if live.row.would == would || decision.verdict != Verdict::Stay {
            return;
        }
        let old = std::mem::replace(&mut live.row.would, would.clone());
        let from = live.row.held.as_ref().map_or(&live.row.base, |hold| &hold.group).clone();
        self.touched.insert(name.to_owned());
        for t in base.transfers.iter().filter(|t| would.contains(&key(base, t)) && !old.contains(&key(base, t))) {
            self.record(AuditRecord {
                at_ms: now.wall,
                endpoint: name.to_owned(),
                action: "would-move".to_owned(),
                from: from.clone(),
                to: t.spec.to.clone(),
                transfer: t.spec.name.clone(),
                who: "transfer".to_owned(),
                reason: format!("`{}`", t.when.text()),
                evidence: self.evidence(name),
                ..AuditRecord::default()
            });
        }
    }

    fn set_waiting(&mut self, name: &str, base: &Group, decision: &Decision, now: Now) {
        let wanted = decision.waiting.filter(|_| !matches!(decision.verdict, Verdict::Move(_) | Verdict::TakeOver(..)));
        let wanted = wanted.and_then(|(i, because)| Some((base.transfers.get(i)?, because)));
        let Some(live) = self.live.get(name) else { return };
        let waits = |w: &Waiting, t: &Transfer, because| (w.transfer == t.spec.name && w.to == t.spec.to) && w.because == because;
        match (&live.row.waiting, wanted) {
            (None, None) => return,
            (Some(w), Some((t, because))) if waits(w, t, because) => return,
            _ => {}
        }
        let brake = wanted.filter(|(_, because)| *because == Because::Brake).and_then(|_| self.brake(base, now));
        let waiting = wanted.map(|(t, because)| Waiting {
            transfer: t.spec.name.clone(),
            to: t.spec.to.clone(),
            because,
            reason: match brake {
                Some(brake) => format!("`{}`; {brake}", t.when.text()),
                None => format!("`{}`", t.when.text()),
            },
            since_wall: now.wall,
        });
        let Some(live) = self.live.get_mut(name) else { return };
        live.row.waiting = waiting.clone();
        self.touched.insert(name.to_owned());
        let Some(waiting) = waiting else { return };
        self.record(AuditRecord {
            at_ms: now.wall,
            endpoint: name.to_owned(),
            action: "pending".to_owned(),
            to: waiting.to,
            transfer: waiting.transfer,
            who: "transfer".to_owned(),
            reason: format!("{}: {}", waiting.because.name(), waiting.reason),
            evidence: self.evidence(name),
            ..AuditRecord::default()
        });
    }
}

/// A transfer, by its group and name.
pub(super) fn key(base: &Group, t: &Transfer) -> String {
    format!("{}/{}", base.name, t.spec.name)
}
