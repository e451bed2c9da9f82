//! What follows from an endpoint's state, its tags and the time. Nothing is changed here.

use std::collections::{BTreeMap, BTreeSet};

use super::{Engine, Live};
use crate::expression::Variables;
use crate::quarantine::clock::Now;
use crate::quarantine::criteria::{Criterion, variables};
use crate::quarantine::model::{Endpoint, Group, Transfer};
use crate::quarantine::state::{Because, Hold, Holder};
use crate::resource::TransferMode;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    #[default]
    Stay,
    /// It is moved by this transfer of its base group.
    Move(usize),
    /// It is held already, and this transfer takes over; `true`: instead of a release.
    TakeOver(usize, bool),
    /// It is let go, with why.
    Release(String),
}

/// What follows.
#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) verdict: Verdict,
    /// A transfer that waits for approval.
    pub(super) waiting: Option<(usize, Because)>,
    /// Transfers that only say what they would do.
    pub(super) would: BTreeSet<usize>,
    /// Some transfer's criterion holds, or may.
    pub(super) wanted: bool,
    /// Transfers whose criterion does not hold.
    pub(super) ended: BTreeSet<usize>,
    /// What could not be evaluated, and why.
    pub(super) faults: BTreeMap<String, String>,
    /// Why it is not let go.
    pub(super) waiting_for: String,
    /// When time alone may change this.
    pub(super) next: Option<u64>,
    /// Some criterion asks for ages.
    pub(super) aging: bool,
}

/// What is known of the endpoint that is decided about.
struct Case<'a> {
    engine: &'a Engine,
    name: &'a str,
    endpoint: &'a Endpoint,
    base: &'a Group,
    live: &'a Live,
    known: &'a Variables,
    now: Now,
}

impl Engine {
    pub(super) fn decide(&self, name: &str, endpoint: &Endpoint, base: &Group, known: &Variables, now: Now) -> Option<Decision> {
        let hold = self.live.get(name)?.row.held.clone();
        let criteria = hold.as_ref().map(|hold| {
            let release = hold.release_when.as_deref().map(|text| self.criteria.get(text));
            (self.criteria.get(&hold.when), release)
        });
        let case = Case { engine: self, name, endpoint, base, live: self.live.get(name)?, known, now };
        let mut decision = Decision::default();
        let mut aging = base.transfers.iter().any(Transfer::is_aging) || endpoint.place.is_aging(&self.model.groups);
        match (&hold, &criteria) {
            (Some(hold), Some((when, release))) if hold.by == Holder::Transfer => {
                aging |= when.is_aging() || release.as_ref().is_some_and(|c| c.is_aging());
                case.held(hold, when, release.as_deref(), &mut decision);
            }
            (Some(hold), _) => case.held_by_hand(hold, &mut decision),
            (None, _) => case.free(&mut decision),
        }
        decision.aging = aging;
        if aging && let Some(second) = case.next_second() {
            decision.next = Some(decision.next.map_or(second, |next| next.min(second)));
        }
        Some(decision)
    }
}

impl Case<'_> {
    /// Nobody holds it.
    fn free(&self, d: &mut Decision) {
        let row = &self.live.row;
        for (i, t) in self.base.transfers.iter().enumerate() {
            if !self.asks(i, t, d) || self.waived(t) {
                continue;
            }
            let braked = row.waiting.as_ref().is_some_and(|w| w.transfer == t.spec.name && w.because == Because::Brake);
            let wait = match t.spec.mode {
                TransferMode::DryRun => {
                    d.would.insert(i);
                    continue;
                }
                _ if row.never.is_some() => Because::NeverList,
                TransferMode::RequireApproval => Because::Mode,
                TransferMode::Enforce if braked || self.engine.brake(self.base, self.now).is_some() => Because::Brake,
                TransferMode::Enforce => {
                    d.verdict = Verdict::Move(i);
                    return;
                }
            };
            d.waiting.get_or_insert((i, wait));
        }
    }

    /// A transfer holds it.
    fn held(&self, hold: &Hold, when: &Criterion, release: Option<&Criterion>, d: &mut Decision) {
        if hold.until.is_some_and(|until| self.now.at >= until) {
            d.verdict = Verdict::Release("it was held for the longest time that its transfer has".to_owned());
            return;
        }
        d.next = hold.until;
        let own = (hold.from == self.base.name).then(|| self.base.transfer(&hold.transfer)).flatten().map(|(i, _)| i);
        let rank = (hold.priority, own.unwrap_or(usize::MAX));
        let mut fallback = None;
        for (i, t) in self.base.transfers.iter().enumerate().filter(|(i, _)| Some(*i) != own) {
            if !self.asks(i, t, d) || !self.wants_on(t) || self.waived(t) {
                continue;
            }
            match ((t.spec.priority, i) < rank, t.spec.mode) {
                (true, TransferMode::Enforce) => {
                    d.verdict = Verdict::TakeOver(i, false);
                    return;
                }
                (true, TransferMode::RequireApproval) => drop(d.waiting.get_or_insert((i, Because::Mode))),
                (true, TransferMode::DryRun) => drop(d.would.insert(i)),
                (false, TransferMode::Enforce) => drop(fallback.get_or_insert(i)),
                (false, _) => {}
            }
        }
        self.let_go(hold, when, release, fallback, d);
    }

    /// Is it time to let it go?
    fn let_go(&self, hold: &Hold, when: &Criterion, release: Option<&Criterion>, fallback: Option<usize>, d: &mut Decision) {
        let over = match release {
            Some(release) => release.holds(self.known),
            None => when.holds(self.known).map(|holds| !holds),
        };
        d.waiting_for = match over {
            Err(why) => {
                let what = format!("release of {}/{}", hold.from, hold.transfer);
                d.faults.insert(what, why.clone());
                format!("its criterion cannot be evaluated: {why}")
            }
            Ok(false) => match release {
                Some(release) => format!("`{}`", release.text()),
                None => format!("`{}` to hold no more", when.text()),
            },
            Ok(true) if self.now.at < hold.not_before => {
                d.next = Some(d.next.map_or(hold.not_before, |next| next.min(hold.not_before)));
                "the end of its minimum hold".to_owned()
            }
            Ok(true) => match (self.lost_source(hold), self.live.row.incomplete.first(), fallback) {
                (Some(source), ..) => format!("source {source}, which is lost, to be heard again"),
                (_, Some(source), _) => {
                    format!("source {source}, which had more tags for it than are kept, to clear them all")
                }
                (.., Some(i)) => {
                    d.verdict = Verdict::TakeOver(i, true);
                    return;
                }
                _ => {
                    let text = release.map_or_else(|| format!("`{}` holds no more", when.text()), |c| format!("`{}`", c.text()));
                    d.verdict = Verdict::Release(text);
                    return;
                }
            },
        };
    }

    /// An operator holds it, or nobody knows who.
    fn held_by_hand(&self, hold: &Hold, d: &mut Decision) {
        d.waiting_for = "an operator: vnet-ctl quarantine release".to_owned();
        if hold.by != Holder::Recovered {
            return;
        }
        for (i, t) in self.base.transfers.iter().enumerate() {
            let fits = t.spec.to == hold.group && t.spec.mode == TransferMode::Enforce;
            if self.asks(i, t, d) && fits && !self.waived(t) && self.wants_on(t) && d.verdict == Verdict::Stay {
                d.verdict = Verdict::TakeOver(i, false);
            }
        }
    }

    /// Does its criterion hold?
    fn asks(&self, i: usize, t: &Transfer, d: &mut Decision) -> bool {
        match t.when.holds(self.known) {
            Ok(true) if !self.engine.model.group(&t.spec.to).is_some_and(|g| g.is_quarantine()) => {
                let why = format!("there is no quarantine group `{}`", t.spec.to);
                d.faults.insert(format!("transfer {}/{}", self.base.name, t.spec.name), why);
                false
            }
            Ok(true) => {
                d.wanted = true;
                true
            }
            Ok(false) => {
                d.ended.insert(i);
                false
            }
            Err(why) => {
                d.wanted = true;
                d.faults.insert(format!("transfer {}/{}", self.base.name, t.spec.name), why);
                if let Some(waiting) = self.live.row.waiting.as_ref().filter(|w| w.transfer == t.spec.name) {
                    d.waiting.get_or_insert((i, waiting.because));
                }
                false
            }
        }
    }

    /// Would it hold on to whom it has moved? What cannot be evaluated holds on.
    fn wants_on(&self, t: &Transfer) -> bool {
        t.release_when.as_ref().is_none_or(|release| release.holds(self.known) != Ok(true))
    }

    /// It was let go, or the move was dismissed, and no tag that asks for it was set anew.
    fn waived(&self, t: &Transfer) -> bool {
        let row = &self.live.row;
        let dismissed = row.dismissed.get(&format!("{}/{}", self.base.name, t.spec.name));
        let Some(order) = row.waived.max(dismissed.copied()) else { return false };
        let anew = self.engine.tags.of(self.name).filter(|(_, state)| state.order > order);
        if anew.clone().next().is_none() {
            return true;
        }
        t.when.holds(&variables(self.name, &self.endpoint.labels, anew, self.now.at)) != Ok(true)
    }

    fn lost_source(&self, hold: &Hold) -> Option<&str> {
        let lost = &self.engine.common.lost;
        let tags = self.engine.tags.of(self.name).map(|(key, _)| &key.source);
        lost.keys().find(|source| hold.sources.contains(*source) || tags.clone().any(|s| s == *source)).map(String::as_str)
    }

    /// When the age of one of its tags is another one.
    fn next_second(&self) -> Option<u64> {
        let at = self.now.at;
        let next = |set: u64| set + (at.saturating_sub(set) / 1000 + 1) * 1000;
        self.engine.tags.of(self.name).map(|(_, state)| next(state.set)).min()
    }
}
