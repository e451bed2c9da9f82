//! The state machine: who is held, and why. It knows neither threads nor clocks nor disks: it is told what happened and
//! when, and says what is to be done.
//!
//! For every endpoint: its base group follows from labels and tags; that group's transfers are asked, by priority, whenever
//! something changed that they ask for; what follows is done at once. The rules:
//!
//! - A transfer moves whom its `when` selects, unless it waits for approval (mode, brake, never-list), or the endpoint was
//!   let go since and none of its tags was set anew.
//! - Who is held stays until the criterion with which it was moved says otherwise, at least for the minimum, at most for the
//!   maximum. A transfer of better priority takes over; one of worse priority does, instead of a release.
//! - What cannot be evaluated, a source that is lost, a transfer or group that is gone or was changed: none of it releases.
//! - An operator's hold ends by an operator's hand.

mod act;
mod batch;
mod decide;
mod operator;
mod recover;
mod sources;
mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use vnet_common::api::AuditRecord;

use super::clock::Now;
use super::criteria::{Criteria, variables};
use super::membership::{Membership, membership};
use super::model::{Group, Model};
use super::state::{Common, Hold, Member, Saved};
use super::tags::TagTable;
use crate::expression::Variables;
pub use act::Then;
pub use sources::{Applied as TagApplied, Operation, Refused, SourceCounts, TagChange};
use sources::{Bucket, Heard};

/// After something failed, it is tried again.
const RETRY: u64 = 1000;
/// Without other writes, the time is written this often.
pub(super) const HEARTBEAT: u64 = 60_000;
/// Records of the audit log that wait to be written, at most: a store that takes none must not fill the memory.
const AUDIT_QUEUE: usize = 65_536;
/// What was decided about an endpoint is forgotten when it is absent for so long: names of short-lived devices are without number.
const ABSENT: u64 = 30 * 24 * 3_600_000;
/// What is due that is done at once: whoever brings a tag does not wait for more.
const AT_ONCE: usize = 256;
/// Turns of one judgement: a takeover may lead to the next.
const TURNS: usize = 4;
/// Tags of an endpoint named in a record, at most.
const EVIDENCE: usize = 16;

/// What is to be done in the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The endpoint.
    pub endpoint: String,
    /// The quarantine group that it is held in from now on.
    pub group: String,
    /// The number of this move.
    pub moves: u32,
}

/// Which group an endpoint is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// The group that it belongs to, if nobody holds it.
    pub base: String,
    /// The group whose rules it is to have.
    pub group: String,
    /// It is held.
    pub quarantined: bool,
    /// How often it was moved.
    pub moves: u32,
}

/// What the datapath made of the last move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Enforced {
    #[default]
    Yes,
    NoDevice,
    Failed(String),
}

/// An endpoint.
#[derive(Debug, Default)]
struct Live {
    row: Member,
    enforced: Enforced,
    /// Who held it, as long as the datapath goes on with that (and had so many moves): what the row says is not written
    /// yet, or not done.
    leaving: Option<(Hold, u32)>,
    /// What could not be evaluated, and why.
    faults: BTreeMap<String, String>,
    /// Why it is not let go yet.
    waiting_for: String,
    /// When it has to be looked at again.
    timer: Option<u64>,
    /// Some criterion about it asks for ages.
    aging: bool,
    /// When it was looked at last.
    judged: u64,
    /// It counts as one of its base group.
    counted: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Engine {
    model: Arc<Model>,
    criteria: Arc<Criteria>,
    tags: TagTable,
    live: HashMap<String, Live>,
    common: Common,
    /// Endpoints by base group.
    sizes: HashMap<String, usize>,
    timers: BTreeSet<(u64, String)>,
    /// Endpoints to look at when there is time.
    dirty: BTreeSet<String>,
    heard: BTreeMap<String, Heard>,
    actions: VecDeque<Action>,
    /// Endpoints to look at once more, at most so many times.
    again: VecDeque<(String, usize)>,
    touched: BTreeSet<String>,
    common_touched: bool,
    audit: VecDeque<AuditRecord>,
    audit_lost: u64,
    last_audit: u64,
    last_write: u64,
    errors: Bucket,
    /// Why the journal takes nothing.
    trouble: Option<String>,
    changed: BTreeSet<String>,
}

impl Engine {
    /// Goes on from what was stored.
    #[must_use]
    pub fn new(saved: Saved, now: Now) -> Self {
        let mut tags = TagTable::load(saved.tags, saved.common.lost.keys().cloned().collect());
        let orders = saved.members.values().flat_map(|m| m.waived.iter().chain(m.dismissed.values()).copied());
        tags.skip_to(orders.max().unwrap_or_default());
        let live = |(name, row)| (name, Live { row, ..Live::default() });
        Self {
            tags,
            live: saved.members.into_iter().map(live).collect(),
            common: saved.common,
            last_audit: saved.last_audit,
            last_write: now.at,
            ..Self::default()
        }
    }

    /// What resources and endpoints are now. Endpoints about which something changed are `dirty`: see [`Engine::work`].
    pub fn set_model(&mut self, model: Arc<Model>, now: Now) {
        let old = std::mem::replace(&mut self.model, model);
        let model = Arc::clone(&self.model);
        let same = |name: &String| match (old.group(name), model.group(name)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let names = old.groups.keys().chain(model.groups.keys());
        let mut changed: BTreeSet<&String> = names.filter(|name| !same(name)).collect();
        let is_target = |model: &Model, name: &String| model.group(name).is_some_and(|g| g.is_quarantine());
        let targets: BTreeSet<&String> =
            changed.iter().copied().filter(|name| is_target(&old, name) != is_target(&model, name)).collect();
        let leads_there = |group: &Group| group.transfers.iter().any(|t| targets.contains(&t.spec.to));
        changed.extend(model.groups.iter().filter(|(_, group)| leads_there(group)).map(|(name, _)| name));
        for (name, endpoint) in &model.endpoints {
            if !old.endpoints.get(name).is_some_and(|e| Arc::ptr_eq(e, endpoint)) {
                self.dirty.insert(name.clone());
            }
        }
        if !changed.is_empty() {
            let concerned = |row: &Member| {
                changed.contains(&row.base)
                    || row.held.as_ref().is_some_and(|h| changed.contains(&h.group) || changed.contains(&h.from))
            };
            self.dirty.extend(self.live.iter().filter(|(_, live)| concerned(&live.row)).map(|(name, _)| name.clone()));
        }
        // At the first time: those that went while no agent ran.
        let before: Vec<String> = match old.endpoints.is_empty() {
            true => self.live.keys().filter(|name| !model.endpoints.contains_key(*name)).cloned().collect(),
            false => old.endpoints.keys().filter(|name| !model.endpoints.contains_key(*name)).cloned().collect(),
        };
        for name in before {
            self.vanished(&name, now);
        }
        self.forget(now);
        self.follow_sources(&old, now);
        self.criteria.tidy();
    }

    /// Where criteria are read; they are kept from one model to the next.
    #[must_use]
    pub fn criteria(&self) -> &Arc<Criteria> {
        &self.criteria
    }

    /// What resources and endpoints are.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Looks at some endpoints that something changed about. Are there more?
    pub fn work(&mut self, most: usize, now: Now) -> bool {
        for _ in 0..most {
            let Some(name) = self.dirty.pop_first() else { break };
            self.judge(&name, now);
        }
        !self.dirty.is_empty()
    }

    /// Time has passed: does what is due, but not all of it if that is much; see [`Engine::next_deadline`].
    pub fn tick(&mut self, now: Now) {
        self.find_lost_sources(now);
        for (key, state, gone) in self.tags.expire(now.at, AT_ONCE) {
            let reason = if gone { "it expired" } else { "it expired, and holds on" };
            self.audit_tag("tag-expire", &key, &state, "agent", reason, now);
            self.dirty.insert(key.subject.clone());
        }
        for _ in 0..AT_ONCE {
            let due = self.timers.first().is_some_and(|(due, _)| *due <= now.at);
            let Some((_, name)) = due.then(|| self.timers.pop_first()).flatten() else { break };
            if let Some(live) = self.live.get_mut(&name) {
                live.timer = None;
            }
            self.dirty.insert(name);
        }
    }

    /// When [`Engine::tick`] has something to do next ([`Now::at`]).
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let timer = self.timers.first().map(|(due, _)| *due);
        let dirty = (!self.dirty.is_empty()).then_some(0);
        [timer, dirty, self.tags.next_expiry(), self.next_lost()].into_iter().flatten().min()
    }

    /// Looks at an endpoint, and does what follows.
    fn judge(&mut self, name: &str, now: Now) {
        self.judge_turn(name, TURNS, now);
    }

    /// Looks once more at an endpoint that something was done about: after it was enforced, which does not wait for that. Is
    /// there one?
    pub fn go_on(&mut self, now: Now) -> bool {
        let Some((name, turns)) = self.again.pop_front() else { return false };
        self.judge_turn(&name, turns, now);
        true
    }

    fn judge_turn(&mut self, name: &str, turns: usize, now: Now) {
        let model = Arc::clone(&self.model);
        let Some(endpoint) = model.endpoints.get(name) else { return };
        if !self.live.contains_key(name) {
            self.live.insert(name.to_owned(), Live::default());
        }
        self.tend(name);
        let known = variables(name, &endpoint.labels, self.tags.of(name), now.at);
        let Some(base) = self.base_in(&model, name, &known) else { return };
        let faults: Vec<(String, String)> =
            base.faults.into_iter().map(|(group, why)| (format!("selector of group {group}"), why)).collect();
        self.rebase(name, base.group);
        if let Some(live) = self.live.get_mut(name) {
            live.judged = now.at;
        }
        let Some(group) = model.group(base.group) else { return };
        let Some(mut decision) = self.decide(name, endpoint, group, &known, now) else { return };
        decision.faults.extend(faults);
        if self.carry_out(name, group, decision, now) && turns > 1 {
            self.again.push_back((name.to_owned(), turns - 1));
        }
    }

    /// The base group of an endpoint in this model or another, which is only asked about.
    fn base_in<'m>(&self, model: &'m Model, name: &str, known: &Variables) -> Option<Membership<'m>> {
        let place = &model.endpoints.get(name)?.place;
        let now = self.live.get(name).map_or("", |live| &live.row.base);
        Some(membership(&model.groups, place, now, known))
    }

    /// The group that an endpoint would belong to if this were the model, and nobody held it.
    #[must_use]
    pub fn would_be_in(&self, model: &Model, name: &str, now: Now) -> Option<String> {
        let endpoint = model.endpoints.get(name)?;
        let known = match endpoint.place.is_open() {
            true => variables(name, &endpoint.labels, self.tags.of(name), now.at),
            // Nothing is asked about it.
            false => Variables::default(),
        };
        Some(self.base_in(model, name, &known)?.group.to_owned())
    }

    /// What is due whatever its criteria say.
    fn tend(&mut self, name: &str) {
        let Some(live) = self.live.get_mut(name) else { return };
        if live.row.absent.take().is_some() {
            self.touched.insert(name.to_owned());
        }
        if let (true, Enforced::Failed(_)) = (live.leaving.is_some(), &live.enforced) {
            self.touched.insert(name.to_owned());
        } else if let (Some(hold), Enforced::Failed(_)) = (&live.row.held, &live.enforced) {
            let (group, moves) = (hold.group.clone(), live.row.moves);
            self.actions.push_back(Action { endpoint: name.to_owned(), group, moves });
        }
        if !live.row.incomplete.is_empty() {
            let tags = &self.tags;
            let before = live.row.incomplete.len();
            live.row.incomplete.retain(|source| tags.of(name).any(|(key, _)| key.source == *source));
            if live.row.incomplete.len() != before {
                self.touched.insert(name.to_owned());
            }
        }
    }

    fn rebase(&mut self, name: &str, base: &str) {
        let Some(live) = self.live.get_mut(name) else { return };
        if live.row.base == base && live.counted {
            return;
        }
        if live.counted
            && let Some(size) = self.sizes.get_mut(&live.row.base)
        {
            *size = size.saturating_sub(1);
        }
        live.counted = true;
        *self.sizes.entry(base.to_owned()).or_default() += 1;
        if live.row.base != base {
            base.clone_into(&mut live.row.base);
            self.touched.insert(name.to_owned());
            self.changed.insert(name.to_owned());
        }
    }

    /// It is no endpoint any more, for the time being: what is known of it stays.
    fn vanished(&mut self, name: &str, now: Now) {
        self.dirty.remove(name);
        let Some(live) = self.live.get_mut(name) else { return };
        if let Some(due) = live.timer.take() {
            self.timers.remove(&(due, name.to_owned()));
        }
        if std::mem::take(&mut live.counted)
            && let Some(size) = self.sizes.get_mut(&live.row.base)
        {
            *size = size.saturating_sub(1);
        }
        live.faults.clear();
        self.changed.insert(name.to_owned());
        // Of one that nobody ever did anything about, nothing is to be remembered.
        if (Member { base: String::new(), absent: None, ..live.row.clone() }) == Member::default() {
            self.live.remove(name);
            self.touched.insert(name.to_owned());
        } else if live.row.absent.is_none() {
            live.row.absent = Some(now.at);
            self.touched.insert(name.to_owned());
        }
    }

    /// Forgets what nobody asks for any more: endpoints that were absent for long, and brakes of groups that are gone. It is kept who is
    /// held, what operators said of it, and what its tags may still do.
    fn forget(&mut self, now: Now) {
        let (model, tags) = (&self.model, &self.tags);
        let is_over = |(name, live): &(&String, &Live)| {
            let row = &live.row;
            let decided = live.holder().is_some() || row.never.is_some() || row.waived.is_some() || !row.dismissed.is_empty();
            let absent = row.absent.is_some_and(|since| now.at >= since + ABSENT) && !model.endpoints.contains_key(*name);
            absent && !decided && row.waiting.is_none() && tags.of(name).next().is_none()
        };
        let over: Vec<String> = self.live.iter().filter(is_over).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.live.remove(&name);
            self.touched.insert(name);
        }
        let before = self.common.windows.len();
        self.common.windows.retain(|group, _| model.groups.contains_key(group));
        self.common_touched |= self.common.windows.len() != before;
    }

    fn set_timer(&mut self, name: &str, due: Option<u64>) {
        let Some(live) = self.live.get_mut(name) else { return };
        if live.timer == due {
            return;
        }
        if let Some(old) = std::mem::replace(&mut live.timer, due) {
            self.timers.remove(&(old, name.to_owned()));
        }
        if let Some(due) = due {
            self.timers.insert((due, name.to_owned()));
        }
    }

    /// What is to be done in the datapath, in order.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Endpoints whose base group, or group, changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// Did any?
    #[must_use]
    pub fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }
}
