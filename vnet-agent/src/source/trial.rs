//! Trials of `vnet-ctl tag source test`: events of our own that go the way of every event, and have no effect.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::change::{SourceName, TRIAL_SUBJECT, TRIAL_TAG, TagChange};
use crate::resource::{OnExpiry, Operation};

/// The field of an event that has its mark.
pub(super) const FIELD: &str = "vnet_trial";
/// Until a trial has failed.
const LIMIT: Duration = Duration::from_secs(2);
/// Between two trials.
const PAUSE: Duration = Duration::from_millis(2);

/// The trials of one source. An event counts as one only with the mark that was drawn for it: nobody can guess it to have an
/// alert pass as a trial.
#[derive(Debug, Default)]
pub(super) struct Trials {
    open: AtomicBool,
    expected: Mutex<Option<Expected>>,
}

#[derive(Debug)]
struct Expected {
    mark: String,
    done: Sender<(bool, Instant)>,
}

impl Trials {
    /// Makes `number` trials, one after the other: `send` sends an event with the mark it is given. From there until the sink has
    /// taken the change: each trial.
    ///
    /// # Errors
    /// An event cannot be sent, does not arrive, or its change is refused; or others are being made.
    pub(super) fn measure(&self, number: u32, mut send: impl FnMut(&str) -> Result<()>) -> Result<Vec<Duration>> {
        ensure!(!self.open.swap(true, Ordering::AcqRel), "another measurement of it is under way: try again when it has ended");
        let _closing = Closing(self);
        let (to, from) = channel();
        let mut times = Vec::new();
        for trial in 0..number {
            let mark = mark();
            *self.expected() = Some(Expected { mark: mark.clone(), done: to.clone() });
            let begun = Instant::now();
            send(&mark)?;
            let (taken, at) = from
                .recv_timeout(LIMIT)
                .with_context(|| format!("trial {} was not taken within {} s", trial + 1, LIMIT.as_secs()))?;
            if !taken {
                bail!("the change of trial {} was refused; `vnet-ctl tag source ls` says why", trial + 1);
            }
            times.push(at.saturating_duration_since(begun));
            std::thread::sleep(PAUSE);
        }
        Ok(times)
    }

    /// Some are being made.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// The change that a trial's event means; `None` for an event that is none.
    pub(super) fn change(&self, event: &Value, source: &SourceName, at: Instant) -> Option<TagChange> {
        let mark = event.get(FIELD)?.as_str()?;
        self.expected().as_ref().filter(|expected| expected.mark == mark)?;
        Some(change(source, mark, at))
    }

    /// The sink has taken the change with this mark, or not.
    pub(super) fn done(&self, mark: &str, taken: bool, at: Instant) {
        if let Some(expected) = self.expected().as_ref().filter(|expected| expected.mark == mark) {
            // It may have given up waiting.
            let _ = expected.done.send((taken, at));
        }
    }

    fn expected(&self) -> MutexGuard<'_, Option<Expected>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No event is a trial any more once this is gone.
struct Closing<'a>(&'a Trials);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        *self.0.expected() = None;
        self.0.open.store(false, Ordering::Release);
    }
}

/// The change of a trial: of no endpoint, and told apart by its mark.
pub(super) fn change(source: &SourceName, mark: &str, at: Instant) -> TagChange {
    TagChange {
        source: source.clone(),
        subject: TRIAL_SUBJECT.to_owned(),
        operation: Operation::Set,
        name: TRIAL_TAG.to_owned(),
        value: String::new(),
        instance: mark.to_owned(),
        severity: 0,
        confidence: 100,
        evidence: String::new(),
        ttl: Some(Duration::from_secs(1)),
        on_expiry: OnExpiry::Release,
        received_at: at,
    }
}

/// 128 bits that nobody can guess: the keys of a hash map, which the standard library draws from the kernel.
pub(super) fn mark() -> String {
    let word = |n: u64| {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(n);
        hasher.finish()
    };
    format!("{:016x}{:016x}", word(1), word(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mark_that_is_expected_makes_a_trial() {
        let (trials, name) = (Trials::default(), SourceName::operator());
        let event = |mark: &str| serde_json::json!({ FIELD: mark });
        assert!(!trials.is_open() && trials.change(&event("x"), &name, Instant::now()).is_none());
        let times = trials.measure(3, |mark| {
            assert!(trials.is_open() && trials.change(&event("x"), &name, Instant::now()).is_none());
            assert!(trials.change(&serde_json::json!({ FIELD: 1 }), &name, Instant::now()).is_none());
            let change = trials.change(&event(mark), &name, Instant::now()).context("it is expected")?;
            assert!(change.is_trial());
            trials.done("another", true, Instant::now());
            trials.done(&change.instance, true, Instant::now());
            assert!(trials.measure(1, |_| Ok(())).unwrap_err().to_string().contains("under way"));
            Ok(())
        });
        assert_eq!(times.unwrap().len(), 3);
        let refused = trials.measure(1, |mark| {
            trials.done(mark, false, Instant::now());
            Ok(())
        });
        assert!(refused.unwrap_err().to_string().contains("refused"));
        assert!(!trials.is_open());
    }
}
