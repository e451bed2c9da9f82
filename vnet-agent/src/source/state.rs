//! One source as it runs: its settings, what came from it, and the way from an event to the sink.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use vnet_common::api::{SourceStatus, Tag};

use super::change::{Applied, Refused, Sink, SourceName, TagChange};
use super::directory::Directory;
use super::mapping::{Mapped, Mappings};
use super::senders::Senders;
use super::text;
use crate::expression::Variables;
use crate::resource::{OnExpiry, Operation, SourceType, TagSourceSpec};

/// Between two lines in the log about one source's faults.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(10);
/// Bytes of a fault that are kept.
const FAULT: usize = 512;

/// What the resource says, ready for use.
#[derive(Debug)]
pub(super) struct Settings {
    /// The resource.
    pub(super) spec: TagSourceSpec,
    /// Its mappings.
    pub(super) mappings: Arc<Mappings>,
    /// Who may send.
    pub(super) senders: Senders,
}

/// A source.
pub(super) struct Source {
    /// Its name.
    pub(super) name: SourceName,
    /// What it counted.
    pub(super) counters: Counters,
    settings: RwLock<Arc<Settings>>,
    directory: Arc<dyn Directory>,
    sink: Arc<dyn Sink>,
    /// Since when it could have been heard of.
    began: Instant,
    /// When it was heard of last, in microseconds since `began`, plus 1; 0: never.
    heard: AtomicU64,
    /// The same in milliseconds since 1970.
    heard_ms: AtomicU64,
    lost: AtomicBool,
    complaints: Mutex<Complaints>,
}

/// See [`SourceStatus`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) events: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) unmatched: AtomicU64,
    pub(super) tags: AtomicU64,
}

#[derive(Debug, Default)]
struct Complaints {
    last: Option<String>,
    logged: Option<Instant>,
    suppressed: u64,
}

impl Source {
    pub(super) fn new(name: SourceName, settings: Settings, directory: Arc<dyn Directory>, sink: Arc<dyn Sink>) -> Self {
        Self {
            name,
            counters: Counters::default(),
            settings: RwLock::new(Arc::new(settings)),
            directory,
            sink,
            began: Instant::now(),
            heard: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            complaints: Mutex::default(),
        }
    }

    /// What the resource says now.
    pub(super) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From the next event on.
    pub(super) fn set(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// From the next event on these may send, if they are those that the resource still names. False: they are not, or it was so.
    pub(super) fn set_senders(&self, users: &[String], senders: Senders) -> bool {
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        if settings.spec.users != users || settings.senders == senders {
            return false;
        }
        let (spec, mappings) = (settings.spec.clone(), Arc::clone(&settings.mappings));
        *settings = Arc::new(Settings { spec, mappings, senders });
        true
    }

    /// It was heard of.
    pub(super) fn heard(&self, at: Instant) {
        let since = at.saturating_duration_since(self.began).as_micros() as u64 + 1;
        self.heard.store(since, Ordering::Relaxed);
        self.heard_ms.store(now_ms(), Ordering::Relaxed);
        if self.lost.swap(false, Ordering::Relaxed) {
            log::info!("tag source {}: it is back", self.name);
            self.sink.lost(&self.name, false);
        }
    }

    /// Looks whether it has been silent for longer than it may.
    pub(super) fn look(&self, now: Instant) {
        let Some(after) = self.settings().spec.lost_after_seconds else { return };
        let last = self.began + Duration::from_micros(self.heard.load(Ordering::Relaxed).saturating_sub(1));
        let silent = now.saturating_duration_since(last);
        if silent >= Duration::from_secs(after.into()) && !self.lost.swap(true, Ordering::Relaxed) {
            self.complain(format!("not a word from it for {} s: is it running? Its tags stay", silent.as_secs()));
            self.sink.lost(&self.name, true);
        }
    }

    /// One more event came.
    pub(super) fn count_event(&self, now: Instant) {
        self.counters.events.fetch_add(1, Ordering::Relaxed);
        self.heard(now);
    }

    /// Something that came cannot be used.
    pub(super) fn malformed(&self, why: String) {
        self.counters.malformed.fetch_add(1, Ordering::Relaxed);
        self.complain(why);
    }

    /// Something was not allowed.
    pub(super) fn refused(&self, why: String) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        self.complain(why);
    }

    /// Keeps what went wrong for the status, and says it: not more often than somebody can read.
    pub(super) fn complain(&self, why: String) {
        let why = text::tidy(&why, FAULT);
        let mut complaints = self.complaints();
        if complaints.logged.is_none_or(|at| at.elapsed() >= BETWEEN_COMPLAINTS) {
            let more = match complaints.suppressed {
                0 => String::new(),
                n => format!(" ({n} more since the last such line)"),
            };
            log::warn!("tag source {}: {why}{more}", self.name);
            (complaints.logged, complaints.suppressed) = (Some(Instant::now()), 0);
        } else {
            complaints.suppressed += 1;
        }
        complaints.last = Some(why);
    }

    fn complaints(&self) -> MutexGuard<'_, Complaints> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The changes that an event means: one for each endpoint that it is about. `eve`: it is a record of Suricata.
    pub(super) fn changes(
        &self,
        event: &Value,
        eve: bool,
        variables: &mut Variables,
        at: Instant,
        mut failed: impl FnMut(String),
    ) -> Vec<TagChange> {
        let settings = self.settings();
        let failed = |why: String| {
            failed(why.clone());
            self.malformed(why);
        };
        let mapped = match eve {
            true => settings.mappings.map_eve(event, variables, failed),
            false => settings.mappings.map(event, variables, failed),
        };
        mapped.into_iter().flat_map(|mapped| self.resolve(mapped, at)).collect()
    }

    fn resolve(&self, mapped: Mapped, at: Instant) -> Vec<TagChange> {
        let subjects = self.directory.find(&mapped.reference);
        if subjects.is_empty() {
            self.counters.unmatched.fetch_add(1, Ordering::Relaxed);
        }
        let Mapped { operation, name, value, instance, severity, confidence, evidence, ttl, on_expiry, .. } = mapped;
        let change = TagChange {
            source: self.name.clone(),
            subject: String::new(),
            operation,
            name,
            value,
            instance,
            severity,
            confidence,
            evidence,
            ttl,
            on_expiry,
            received_at: at,
        };
        subjects.into_iter().map(|subject| TagChange { subject, ..change.clone() }).collect()
    }

    /// Is there an endpoint of this name?
    pub(super) fn knows(&self, endpoint: &str) -> bool {
        !self.directory.find(&super::Reference::Endpoint(endpoint.to_owned())).is_empty()
    }

    /// Gives a change to the sink. True: it was made. False: there was nothing to clear. Else why it was not made, which has been
    /// counted and said.
    pub(super) fn deliver(&self, change: TagChange) -> Result<bool, String> {
        let about = format!("{} on {}", change.name, change.subject);
        let trial = change.is_trial();
        // Should the sink ever panic, that must not end the thread that hears of the next alert.
        let taken = catch_unwind(AssertUnwindSafe(|| self.sink.change(change)));
        match taken.unwrap_or_else(|_| Err(Refused("the agent broke down over it; its log says more".to_owned()))) {
            Ok(Applied::Made) if trial => Ok(true),
            Ok(Applied::Made) => {
                self.counters.tags.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Ok(Applied::Absent) => Ok(false),
            Ok(Applied::NoRoom) => {
                // The sink counts it.
                let why = format!("{about}: there is no room for it among more severe tags");
                self.complain(why.clone());
                Err(why)
            }
            Err(refused) => {
                let why = format!("{about}: {refused}");
                self.refused(why.clone());
                Err(why)
            }
        }
    }

    /// What is shown of it; `input` and `failed` are its listener's.
    pub(super) fn status(&self, input: String, failed: Option<String>) -> SourceStatus {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (c, settings) = (&self.counters, self.settings());
        let heard_ms = of(&self.heard_ms);
        let state = match failed {
            Some(why) => format!("failed: {why}"),
            None if self.lost.load(Ordering::Relaxed) => "lost".to_owned(),
            // What an operator says does not come this way.
            None if heard_ms == 0 && settings.spec.r#type != SourceType::Operator => "silent".to_owned(),
            None => "ok".to_owned(),
        };
        SourceStatus {
            name: self.name.to_string(),
            kind: kind(&settings.spec).to_owned(),
            state,
            input,
            events: of(&c.events),
            malformed: of(&c.malformed),
            refused: of(&c.refused),
            dropped: of(&c.dropped) + self.sink.without_room(&self.name),
            unmatched: of(&c.unmatched),
            tags: of(&c.tags),
            last_error: self.complaints().last.clone(),
            last_event_ms: (heard_ms != 0).then_some(heard_ms),
        }
    }
}

fn kind(spec: &TagSourceSpec) -> &'static str {
    match spec.r#type {
        SourceType::Suricata => "suricata",
        SourceType::Clamav => "clamav",
        SourceType::Json => "json",
        SourceType::Operator => "operator",
    }
}

/// A change that was made, as a tag.
pub(super) fn as_tag(change: &TagChange) -> Tag {
    let set_at_ms = now_ms();
    let ttl_ms = change.ttl.filter(|_| change.operation == Operation::Set).map(|ttl| ttl.as_millis() as u64);
    Tag {
        subject: change.subject.clone(),
        name: change.name.clone(),
        value: change.value.clone(),
        instance: change.instance.clone(),
        severity: change.severity,
        confidence: change.confidence,
        source: change.source.to_string(),
        evidence: change.evidence.clone(),
        set_at_ms,
        expires_at_ms: ttl_ms.map(|ttl| set_at_ms + ttl),
        hold_on_expiry: change.on_expiry == OnExpiry::Hold,
        expired: false,
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
