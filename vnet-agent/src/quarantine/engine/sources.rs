//! Tags as they come: who may set and clear what, how much is recorded, and which sources have fallen silent.

use std::sync::Arc;

use vnet_common::api::AuditRecord;

use super::{Engine, Live};
use crate::quarantine::clock::Now;
use crate::quarantine::model::{Model, OPERATOR};
use crate::quarantine::tags::{SetOutcome, TagKey, TagState, brief, shown};
use crate::resource::OnExpiry;

/// Characters of an instance, at most.
const INSTANCE: usize = 256;
/// Characters of a value, at most: sources cut theirs to as many bytes. A long one must not keep a tag from being set.
const VALUE: usize = 1024;
/// With more tags, an endpoint is looked at only once in a millisecond.
const MANY_TAGS: usize = 16;
/// Characters of evidence, and of other text of strangers, that are kept.
pub(super) const TEXT: usize = 512;

/// What a source, or the operator, does to a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagChange {
    /// The endpoint.
    pub subject: String,
    /// Who does it: a tag source's name.
    pub source: String,
    /// The tag's name.
    pub name: String,
    /// Tells tags of one name apart.
    pub instance: String,
    /// What is done.
    pub operation: Operation,
}

/// See [`TagChange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Set it, or set it anew.
    Set {
        /// Its value.
        value: String,
        /// 0 to 10.
        severity: u8,
        /// In per cent.
        confidence: u8,
        /// What shows it.
        evidence: String,
        /// Seconds until it expires; `None`: never.
        ttl_seconds: Option<u32>,
        /// What its expiry means.
        on_expiry: OnExpiry,
    },
    /// Take it away.
    Clear,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Something is different now.
    Changed,
    /// It was there like this, but for its evidence; it counts as set anew.
    Refreshed,
    /// Only the time differs; it counts as set anew.
    Unchanged,
    /// What was to be cleared was not there.
    Absent,
    /// There are too many tags that are more severe.
    Dropped,
}

/// A change that was not made: why, as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What came from a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Tags set and cleared.
    pub tags: u64,
    /// Changes that it may not make, or that were malformed.
    pub refused: u64,
    /// Tags that were dropped, or fell out, because there were too many.
    pub dropped: u64,
}

/// What is known of a source.
#[derive(Debug, Default)]
pub(super) struct Heard {
    last: u64,
    counts: SourceCounts,
    refusals: Bucket,
    records: Bucket,
}

/// Lets so many through in a second, and counts the rest.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    spent: u64,
    at: u64,
    suppressed: u64,
}

impl Bucket {
    /// `None`: not this one. Else how many were held back before it.
    pub(super) fn take(&mut self, per_second: u64, burst: u64, at: u64) -> Option<u64> {
        // In thousandths, so that a slow trickle is not rounded away.
        let regained = at.saturating_sub(self.at) * per_second;
        (self.spent, self.at) = (self.spent.saturating_sub(regained), at);
        if self.spent + 1000 > burst * 1000 {
            self.suppressed += 1;
            return None;
        }
        self.spent += 1000;
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Engine {
    /// A source changes a tag; `who` as the audit log names it.
    ///
    /// # Errors
    /// It may not, or the change is malformed: it was counted, and nothing changed.
    pub fn apply(&mut self, change: &TagChange, who: &str, now: Now) -> Result<Applied, Refused> {
        self.heard(&change.source, now);
        if let Err(why) = self.check(change) {
            self.refuse(change, who, &why, now);
            return Err(Refused(why));
        }
        let applied = match &change.operation {
            Operation::Clear => self.clear_tag(&change.key(), who, now),
            Operation::Set { .. } => self.set_tag(change, who, now),
        };
        let matters = match applied {
            Applied::Absent => false,
            // Repeated alerts are most of a flood: they say something new to whom the same tags do not move, or who asks for ages.
            Applied::Unchanged => self.minds_time(&change.subject),
            Applied::Changed | Applied::Refreshed | Applied::Dropped => true,
        };
        match matters {
            true if self.is_flooded(&change.subject, now) => drop(self.dirty.insert(change.subject.clone())),
            true => self.judge(&change.subject, now),
            false => {}
        }
        Ok(applied)
    }

    /// Was an endpoint with that many tags looked at in this millisecond? To look takes a while then: it is done again when there
    /// is time, or by the first alert of the next millisecond.
    fn is_flooded(&self, name: &str, now: Now) -> bool {
        let judged = self.live.get(name).is_some_and(|live| live.judged == now.at);
        judged && self.tags.of(name).nth(MANY_TAGS).is_some()
    }

    /// Can it matter to the endpoint when its tags were set?
    fn minds_time(&self, name: &str) -> bool {
        let timed =
            |live: &Live| live.aging || live.row.waived.is_some() || !live.row.dismissed.is_empty() || live.row.base.is_empty();
        self.live.get(name).is_none_or(timed)
    }

    fn set_tag(&mut self, change: &TagChange, who: &str, now: Now) -> Applied {
        let Operation::Set { value, severity, confidence, evidence, ttl_seconds, on_expiry } = &change.operation else {
            return Applied::Absent;
        };
        let state = TagState {
            value: value.clone(),
            severity: *severity,
            confidence: *confidence,
            evidence: printable(evidence),
            set: now.at,
            set_wall: now.wall,
            expires: ttl_seconds.map(|s| now.at + u64::from(s) * 1000),
            hold_on_expiry: *on_expiry == OnExpiry::Hold,
            ..TagState::default()
        };
        let key = change.key();
        let (outcome, evicted) = self.tags.set(key.clone(), state.clone());
        for key in &evicted {
            self.lost_tag(key);
        }
        match outcome {
            SetOutcome::Dropped => {
                self.lost_tag(&key);
                return Applied::Dropped;
            }
            SetOutcome::Refreshed => return Applied::Refreshed,
            SetOutcome::Unchanged => return Applied::Unchanged,
            SetOutcome::New | SetOutcome::Changed => {}
        }
        self.counts(&change.source).tags += 1;
        self.audit_tag("tag-set", &key, &state, who, "", now);
        Applied::Changed
    }

    /// Takes a tag away.
    pub(super) fn clear_tag(&mut self, key: &TagKey, who: &str, now: Now) -> Applied {
        let Some(state) = self.tags.clear(key) else { return Applied::Absent };
        self.counts(&key.source).tags += 1;
        self.audit_tag("tag-clear", key, &state, who, "", now);
        Applied::Changed
    }

    /// A tag was not kept. Whom it might hold is not let go because of that.
    fn lost_tag(&mut self, key: &TagKey) {
        self.counts(&key.source).dropped += 1;
        let Some(live) = self.live.get_mut(&key.subject).filter(|live| live.row.held.is_some()) else { return };
        if live.row.incomplete.insert(key.source.clone()) {
            self.touched.insert(key.subject.clone());
        }
        self.dirty.insert(key.subject.clone());
    }

    fn check(&self, change: &TagChange) -> Result<(), String> {
        let TagChange { subject, source, name, instance, operation } = change;
        let known = self.model.sources.get(source);
        if known.is_none() && source != OPERATOR {
            return Err(format!("there is no TagSource `{source}`"));
        }
        match operation {
            Operation::Set { severity, .. } => known.map_or(Ok(()), |s| s.may_set(name, *severity))?,
            Operation::Clear => known.map_or(Ok(()), |s| s.may_clear(name))?,
        }
        if !is_tag_name(name) {
            return Err(
                "a tag's name has letters, digits, `_`, `.` and `-`, at most 63, and starts and ends with a letter or digit"
                    .to_owned(),
            );
        }
        is_text("instance", instance, INSTANCE)?;
        if let Operation::Set { value, severity, confidence, ttl_seconds, .. } = operation {
            is_text("value", value, VALUE)?;
            if *severity > 10 {
                return Err(format!("severity {severity} is not one: 0 to 10"));
            }
            if *confidence > 100 {
                return Err(format!("confidence {confidence} is not one: 0 to 100 per cent"));
            }
            if *ttl_seconds == Some(0) {
                return Err(
                    "a tag lives for at least a second: leave the time to live out for one that does not expire".to_owned()
                );
            }
        }
        let is_set = matches!(operation, Operation::Set { .. });
        if is_set && !self.model.endpoints.contains_key(subject) {
            return Err(format!("there is no endpoint `{}`", printable(subject)));
        }
        Ok(())
    }

    fn refuse(&mut self, change: &TagChange, who: &str, why: &str, now: Now) {
        // Names that nobody knows are counted together, however many there are.
        let known = change.source == OPERATOR || self.model.sources.contains_key(&change.source);
        let heard = self.heard.entry(if known { change.source.clone() } else { String::new() }).or_default();
        heard.counts.refused += 1;
        let Some(more) = heard.refusals.take(1, 10, now.at) else { return };
        let what = if matches!(change.operation, Operation::Clear) { "clear" } else { "set" };
        let more = if more == 0 { String::new() } else { format!(" (and {more} more, which are not recorded)") };
        let tag = brief(&change.key(), &TagState::default());
        self.record(AuditRecord {
            at_ms: now.wall,
            endpoint: printable(&change.subject),
            action: "tag-refused".to_owned(),
            who: printable(who),
            reason: format!("to {what} {}: {why}{more}", printable(&tag)),
            ..AuditRecord::default()
        });
    }

    /// Records what happened to a tag, unless too much does.
    pub(super) fn audit_tag(&mut self, action: &str, key: &TagKey, state: &TagState, who: &str, reason: &str, now: Now) {
        let heard = self.heard.entry(key.source.clone()).or_default();
        let Some(more) = heard.records.take(100, 1000, now.at) else { return };
        // The value may be long: it is with the evidence.
        let mut why = format!("{} (severity {})", brief(key, &TagState::default()), state.severity);
        if !reason.is_empty() {
            why += &format!(": {reason}");
        }
        if more != 0 {
            why += &format!(" (and {more} changes of tags before, which are not recorded)");
        }
        self.record(AuditRecord {
            at_ms: now.wall,
            endpoint: key.subject.clone(),
            action: action.to_owned(),
            who: who.to_owned(),
            reason: why,
            evidence: vec![shown(key, state)],
            ..AuditRecord::default()
        });
    }

    /// Something came from a source, whatever it was.
    pub fn heard(&mut self, source: &str, now: Now) {
        if !self.model.sources.contains_key(source) {
            return;
        }
        match self.heard.get_mut(source) {
            Some(heard) => heard.last = now.at,
            None => drop(self.heard.insert(source.to_owned(), Heard { last: now.at, ..Heard::default() })),
        }
        if let Some(since) = self.common.lost.remove(source) {
            self.common_touched = true;
            self.found(source, now.at.saturating_sub(since));
        }
    }

    /// A source is there again: the time of its tags goes on, and whom they hold is looked at.
    fn found(&mut self, source: &str, stood: u64) {
        log::info!("tag source {source} is heard again");
        self.tags.go_on(source, stood);
        let held = self.live.iter().filter(|(_, live)| live.row.held.is_some());
        self.dirty.extend(held.map(|(name, _)| name.clone()));
    }

    pub(super) fn find_lost_sources(&mut self, now: Now) {
        let model = Arc::clone(&self.model);
        for (name, source) in &model.sources {
            let (Some(after), Some(heard)) = (source.lost_after(), self.heard.get(name)) else { continue };
            if now.at < heard.last + after || self.common.lost.contains_key(name) {
                continue;
            }
            self.common.lost.insert(name.clone(), now.at);
            self.common_touched = true;
            self.tags.stop(name);
            self.audit_error("", format!("tag source {name} was not heard for {} s: what it said stays", after / 1000), now);
        }
    }

    pub(super) fn next_lost(&self) -> Option<u64> {
        let lasts = self.model.sources.iter().filter(|(name, _)| !self.common.lost.contains_key(*name));
        lasts.filter_map(|(name, source)| Some(self.heard.get(name)?.last + source.lost_after()?)).min()
    }

    /// The resources of sources changed; they were those of `old`.
    pub(super) fn follow_sources(&mut self, old: &Model, now: Now) {
        let model = Arc::clone(&self.model);
        for name in model.sources.keys() {
            let heard = self.heard.entry(name.clone()).or_default();
            if !old.sources.contains_key(name) {
                // One that is there anew has its time to be heard, however long ago its tags of before came.
                heard.last = now.at;
            }
        }
        let watched = |name: &String| model.sources.get(name).is_some_and(|s| s.lost_after().is_some());
        let gone: Vec<(String, u64)> =
            self.common.lost.iter().filter(|(name, _)| !watched(name)).map(|(n, s)| (n.clone(), *s)).collect();
        for (name, since) in gone {
            self.common.lost.remove(&name);
            self.common_touched = true;
            self.found(&name, now.at.saturating_sub(since));
        }
        let tags = &self.tags;
        self.heard.retain(|name, _| {
            name.is_empty()
                || name == OPERATOR
                || model.sources.contains_key(name)
                || tags.counts().any(|(source, _)| source == name)
        });
    }

    fn counts(&mut self, source: &str) -> &mut SourceCounts {
        &mut self.heard.entry(source.to_owned()).or_default().counts
    }

    /// What came from a source; the empty name: from all that nobody knows.
    #[must_use]
    pub fn source_counts(&self, source: &str) -> SourceCounts {
        self.heard.get(source).map(|heard| heard.counts).unwrap_or_default()
    }

    /// Does it know this endpoint, or did it?
    pub(super) fn knows(&self, name: &str) -> bool {
        let remembered = |live: &Live| !live.row.base.is_empty() || live.holder().is_some();
        self.model.endpoints.contains_key(name) || self.live.get(name).is_some_and(remembered)
    }
}

impl TagChange {
    fn key(&self) -> TagKey {
        TagKey {
            subject: self.subject.clone(),
            source: self.source.clone(),
            name: self.name.clone(),
            instance: self.instance.clone(),
        }
    }
}

fn is_tag_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.len() <= 63 && edge(name.chars().next()) && edge(name.chars().next_back()) && name.chars().all(inside)
}

fn is_text(what: &str, text: &str, most: usize) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err(format!("the {what} has control characters"));
    }
    if text.chars().nth(most).is_some() {
        return Err(format!("the {what} has more than {most} characters"));
    }
    Ok(())
}

/// Text of strangers as a terminal may show it, not too long.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
