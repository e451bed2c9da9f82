//! What operators do.

use vnet_common::api::{AuditRecord, QuarantineRequest, Tag, TagRequest};

use super::act::Cause;
use super::sources::{Applied, Operation, TEXT, TagChange, printable};
use super::{Engine, Live};
use crate::api::Refusal;
use crate::quarantine::clock::Now;
use crate::quarantine::model::OPERATOR;
use crate::quarantine::state::{Because, Hold, Holder};
use crate::quarantine::tags::{TagKey, view};
use crate::resource::OnExpiry;

impl Engine {
    /// An operator sets a tag.
    ///
    /// # Errors
    /// It may not be set, or is malformed.
    pub fn set_by_operator(&mut self, request: &TagRequest, who: &str, now: Now) -> Result<Vec<Tag>, Refusal> {
        self.must_know(&request.subject)?;
        if request.source.as_deref().is_some_and(|source| source != OPERATOR) {
            return Err(Refusal::invalid("operators set tags of their own only: leave `source` out"));
        }
        let operation = Operation::Set {
            value: request.value.clone(),
            severity: request.severity,
            confidence: request.confidence.unwrap_or(100),
            evidence: request.evidence.clone(),
            ttl_seconds: request.ttl_seconds,
            on_expiry: if request.hold_on_expiry { OnExpiry::Hold } else { OnExpiry::Release },
        };
        let change = change(request, OPERATOR, operation);
        match self.apply(&change, who, now) {
            Err(why) => {
                Err(Refusal::invalid(format!("tag `{}` of {} was not set: {why}", printable(&request.name), request.subject)))
            }
            Ok(Applied::Dropped) => {
                Err(Refusal::conflict(format!("{} has too many tags that are more severe: remove some", request.subject)))
            }
            Ok(_) => {
                let tag = key(request, OPERATOR);
                Ok(self.tags.get(&tag).map(|state| view(&tag, state, now)).into_iter().collect())
            }
        }
    }

    /// An operator removes a tag.
    ///
    /// # Errors
    /// There is none, or it may not be removed.
    pub fn remove_by_operator(&mut self, request: &TagRequest, who: &str, now: Now) -> Result<Vec<Tag>, Refusal> {
        let source = request.source.as_deref().unwrap_or(OPERATOR);
        let key = key(request, source);
        let Some(tag) = self.tags.get(&key).map(|state| view(&key, state, now)) else {
            let same = self.tags.of(&request.subject).filter(|(tag, _)| tag.name == request.name);
            let others: Vec<String> =
                same.map(|(tag, _)| format!("source `{}` instance `{}`", tag.source, tag.instance)).collect();
            let hint = if others.is_empty() { String::new() } else { format!("; there are: {}", others.join(", ")) };
            let (name, subject) = (printable(&request.name), printable(&request.subject));
            return Err(Refusal::not_found(format!("{subject} has no tag `{name}` of source `{}`{hint}", printable(source))));
        };
        if source == OPERATOR {
            let change = change(request, OPERATOR, Operation::Clear);
            self.apply(&change, who, now).map_err(|why| Refusal::invalid(format!("it was not removed: {why}")))?;
        } else {
            if self.model.sources.contains_key(OPERATOR) {
                let why = "TagSource `operator` says what operators may, and that is never a source's tags";
                return Err(Refusal::invalid(format!("the tag is of source `{source}`: {why}")));
            }
            self.clear_tag(&key, who, now);
            self.judge(&request.subject, now);
        }
        Ok(vec![tag])
    }

    /// An operator does something about an endpoint: `approve`, `dismiss`, `hold`, `release`, `never` or `unnever`.
    ///
    /// # Errors
    /// It makes no sense, with why.
    pub fn operate(&mut self, name: &str, verb: &str, request: &QuarantineRequest, who: &str, now: Now) -> Result<(), Refusal> {
        let reason = printable(request.reason.trim());
        if request.reason.trim().chars().nth(TEXT).is_some() {
            return Err(Refusal::invalid(format!(
                "the reason has more than {TEXT} characters: the audit log would lose the rest"
            )));
        }
        if matches!(verb, "hold" | "release" | "never") && reason.is_empty() {
            return Err(Refusal::invalid(format!("{verb} needs a reason: it is for the audit log")));
        }
        if request.group.is_some() && verb != "hold" {
            return Err(Refusal::invalid(format!("{verb} takes no group")));
        }
        self.must_know(name)?;
        match verb {
            "approve" => self.approve(name, &reason, who, now),
            "dismiss" => self.dismiss(name, &reason, who, now),
            "hold" => self.hold_by_hand(name, request.group.as_deref(), &reason, who, now),
            "release" => self.break_glass(name, &reason, who, now),
            "never" => self.never(name, &reason, who, now),
            "unnever" => self.unnever(name, &reason, who, now),
            other => Err(Refusal::not_found(format!(
                "there is no verb `{other}`: there are approve, dismiss, hold, release, never and unnever"
            ))),
        }
    }

    fn approve(&mut self, name: &str, reason: &str, who: &str, now: Now) -> Result<(), Refusal> {
        let live = self.of(name)?;
        let Some(waiting) = live.row.waiting.clone() else {
            return Err(Refusal::conflict(format!("no move of {name} waits for approval")));
        };
        if waiting.because == Because::NeverList {
            return Err(Refusal::conflict(format!("{name} is never moved: take it off that list first (unnever)")));
        }
        let base = live.row.base.clone();
        let model = self.model.clone();
        let group = model.group(&base).cloned();
        let Some((group, t)) = group.as_ref().and_then(|g| Some((g, g.transfer(&waiting.transfer)?.1))) else {
            return Err(Refusal::conflict(format!("transfer `{}` of group `{base}` is gone", waiting.transfer)));
        };
        if !model.group(&t.spec.to).is_some_and(|g| g.is_quarantine()) {
            return Err(Refusal::conflict(format!("there is no quarantine group `{}`", t.spec.to)));
        }
        self.note("approve", name, (&t.spec.to, &waiting.transfer), (who, reason), now);
        let why = if reason.is_empty() { waiting.reason } else { format!("{}; approved: {reason}", waiting.reason) };
        if let Some(live) = self.live.get_mut(name) {
            live.row.waiting = None;
        }
        self.move_by(name, group, t, &Cause { who, reason: why, automatic: false, laxer: false }, now);
        self.judge(name, now);
        Ok(())
    }

    fn dismiss(&mut self, name: &str, reason: &str, who: &str, now: Now) -> Result<(), Refusal> {
        let order = self.tags.order();
        let live = self.of(name)?;
        let Some(waiting) = live.row.waiting.take() else {
            return Err(Refusal::conflict(format!("no move of {name} waits for approval")));
        };
        live.row.dismissed.insert(format!("{}/{}", live.row.base, waiting.transfer), order);
        self.touched.insert(name.to_owned());
        self.note("dismiss", name, (&waiting.to, &waiting.transfer), (who, reason), now);
        self.judge(name, now);
        Ok(())
    }

    fn hold_by_hand(&mut self, name: &str, group: Option<&str>, reason: &str, who: &str, now: Now) -> Result<(), Refusal> {
        let model = self.model.clone();
        let there = || {
            let mut names: Vec<&str> = model.groups.values().filter(|g| g.is_quarantine()).map(|g| g.name.as_str()).collect();
            names.sort_unstable();
            if names.is_empty() { "there is none".to_owned() } else { format!("there are: {}", names.join(", ")) }
        };
        let Some(group) = group else {
            return Err(Refusal::invalid(format!("hold needs a quarantine group; {}", there())));
        };
        if !model.group(group).is_some_and(|g| g.is_quarantine()) {
            return Err(Refusal::not_found(format!("there is no quarantine group `{}`; {}", printable(group), there())));
        }
        let live = self.of(name)?;
        if live.row.never.is_some() {
            return Err(Refusal::conflict(format!("{name} is never moved: take it off that list first (unnever)")));
        }
        let before = live.row.held.as_ref();
        let hold = Hold {
            group: group.to_owned(),
            from: live.row.base.clone(),
            by: Holder::Operator,
            since: before.map_or(now.at, |hold| hold.since),
            since_wall: before.map_or(now.wall, |hold| hold.since_wall),
            reason: reason.to_owned(),
            ..Hold::default()
        };
        self.hold(name, hold, "hold", &Cause { who, reason: reason.to_owned(), automatic: false, laxer: false }, now);
        self.judge(name, now);
        Ok(())
    }

    /// It is held on another host of the fleet, in this group, or (`None`) let go there: so it is here. Who is held like this is let go by an
    /// operator, or there: the tags that led to it are not here.
    pub fn follow(&mut self, name: &str, group: Option<&str>, host: &str, now: Now) {
        let who = format!("host {host}");
        match group {
            Some(group) => {
                let base = self.live.entry(name.to_owned()).or_default().row.base.clone();
                let reason = format!("it is held on host {host}");
                let hold = Hold {
                    group: group.to_owned(),
                    from: base,
                    by: Holder::Operator,
                    since: now.at,
                    since_wall: now.wall,
                    reason: reason.clone(),
                    ..Hold::default()
                };
                self.hold(name, hold, "hold", &Cause { who: &who, reason, automatic: false, laxer: false }, now);
            }
            None => self.release(name, "release", &who, &format!("it was let go on host {host}"), now),
        }
        self.judge(name, now);
    }

    /// Another host of the fleet has it, and holds it from now on.
    pub fn hand_over(&mut self, name: &str, host: &str, now: Now) {
        self.release(name, "release", &format!("host {host}"), &format!("it is on host {host}, which holds it"), now);
    }

    fn break_glass(&mut self, name: &str, reason: &str, who: &str, now: Now) -> Result<(), Refusal> {
        if self.of(name)?.row.held.is_none() {
            return Err(Refusal::conflict(format!("{name} is not held")));
        }
        self.release(name, "break-glass", who, reason, now);
        self.judge(name, now);
        Ok(())
    }

    fn never(&mut self, name: &str, reason: &str, who: &str, now: Now) -> Result<(), Refusal> {
        let live = self.of(name)?;
        if live.row.held.is_some() {
            return Err(Refusal::conflict(format!("{name} is held: release it first")));
        }
        live.row.never = Some(reason.to_owned());
        self.touched.insert(name.to_owned());
        self.note("never", name, ("", ""), (who, reason), now);
        self.judge(name, now);
        Ok(())
    }

    fn unnever(&mut self, name: &str, reason: &str, who: &str, now: Now) -> Result<(), Refusal> {
        if self.of(name)?.row.never.take().is_none() {
            return Err(Refusal::conflict(format!("{name} is not on the list of those that are never moved")));
        }
        self.touched.insert(name.to_owned());
        self.note("unnever", name, ("", ""), (who, reason), now);
        self.judge(name, now);
        Ok(())
    }

    fn of(&mut self, name: &str) -> Result<&mut Live, Refusal> {
        self.live.get_mut(name).ok_or_else(|| Refusal::not_found(format!("there is no endpoint `{name}`")))
    }

    fn must_know(&self, name: &str) -> Result<(), Refusal> {
        match self.knows(name) {
            true => Ok(()),
            false => Err(Refusal::not_found(format!("there is no endpoint `{}`", printable(name)))),
        }
    }

    /// Records what was asked about an endpoint, or about a move of it: where to, and by which transfer.
    fn note(&mut self, action: &str, name: &str, (to, transfer): (&str, &str), cause: (&str, &str), now: Now) {
        let from = self.live.get(name).map(|live| live.row.held.as_ref().map_or(&live.row.base, |hold| &hold.group).clone());
        let evidence = self.evidence(name);
        self.record(AuditRecord {
            at_ms: now.wall,
            endpoint: name.to_owned(),
            action: action.to_owned(),
            from: from.unwrap_or_default(),
            to: to.to_owned(),
            transfer: transfer.to_owned(),
            who: cause.0.to_owned(),
            reason: cause.1.to_owned(),
            evidence,
            ..AuditRecord::default()
        });
    }
}

fn key(request: &TagRequest, source: &str) -> TagKey {
    TagKey {
        subject: request.subject.clone(),
        source: source.to_owned(),
        name: request.name.clone(),
        instance: request.instance.clone(),
    }
}

fn change(request: &TagRequest, source: &str, operation: Operation) -> TagChange {
    let TagKey { subject, source, name, instance } = key(request, source);
    TagChange { subject, source, name, instance, operation }
}
