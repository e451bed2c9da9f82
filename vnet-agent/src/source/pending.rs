//! Changes on their way to the sink: as many as there are different tags, however many events come.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::change::TagChange;

/// Bytes of changes that wait, about; whoever brings more waits too, and with them the sender.
const MOST: usize = 16 << 20;
/// Of a change, beside its texts.
const SELF: usize = 512;

/// By subject, name and instance; the source is one.
type Key = (String, String, String);

/// Changes that wait for the sink. One thread at a time delivers; a newer change of a tag takes the place of one that waits.
#[derive(Debug, Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    order: VecDeque<Key>,
    changes: HashMap<Key, TagChange>,
    bytes: usize,
    delivering: bool,
    stopped: bool,
}

/// What became of a change that was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// It took the place of so many.
    pub(super) overtaken: u64,
    /// Nobody was delivering: the caller is to, with [`Pending::deliver`].
    pub(super) lead: bool,
}

impl Pending {
    /// Adds changes. Waits if too much waits already, and drops them once [`stopped`](Self::stop).
    pub(super) fn add(&self, changes: Vec<TagChange>) -> Added {
        let mut state = self.lock();
        // Whoever delivers makes room; if nobody does, the caller will.
        while state.bytes > MOST && state.delivering && !state.stopped {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut added = Added::default();
        for change in changes {
            let key = (change.subject.clone(), change.name.clone(), change.instance.clone());
            state.bytes += size(&change);
            match state.changes.insert(key.clone(), change) {
                Some(old) => {
                    state.bytes -= size(&old);
                    added.overtaken += 1;
                }
                None => state.order.push_back(key),
            }
        }
        added.lead = !state.delivering && !state.order.is_empty();
        state.delivering |= added.lead;
        added
    }

    /// Gives all that waits to `sink`, in order, until nothing does.
    pub(super) fn deliver(&self, mut sink: impl FnMut(TagChange)) {
        loop {
            let mut state = self.lock();
            let Some(key) = state.order.pop_front() else {
                state.delivering = false;
                return;
            };
            let Some(change) = state.changes.remove(&key) else { continue };
            state.bytes -= size(&change);
            drop(state);
            self.room.notify_one();
            sink(change);
        }
    }

    /// Nobody waits for room any more.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(change: &TagChange) -> usize {
    SELF + 2 * (change.subject.len() + change.name.len() + change.instance.len()) + change.value.len() + change.evidence.len()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::change::SourceName;
    use super::*;
    use crate::resource::{OnExpiry, Operation};

    fn change(subject: &str, value: impl ToString) -> TagChange {
        TagChange {
            source: SourceName::operator(),
            subject: subject.into(),
            operation: Operation::Set,
            name: "t".into(),
            value: value.to_string(),
            instance: String::new(),
            severity: 1,
            confidence: 100,
            evidence: String::new(),
            ttl: None,
            on_expiry: OnExpiry::Release,
            received_at: Instant::now(),
        }
    }

    fn delivered(pending: &Pending) -> Vec<(String, String)> {
        let mut all = Vec::new();
        pending.deliver(|change| all.push((change.subject, change.value)));
        all
    }

    #[test]
    fn the_newest_state_of_each_tag_is_delivered_in_the_order_they_came() {
        let pending = Pending::default();
        assert_eq!(pending.add(vec![change("a", 1), change("b", 1)]), Added { overtaken: 0, lead: true });
        assert_eq!(pending.add(vec![change("c", 1), change("a", 2), change("a", 3)]), Added { overtaken: 2, lead: false });
        let expected = [("a", "3"), ("b", "1"), ("c", "1")].map(|(s, v)| (s.to_owned(), v.to_owned()));
        assert_eq!(delivered(&pending), expected);
        assert_eq!(pending.add(vec![change("a", 4)]), Added { overtaken: 0, lead: true });
        assert_eq!(delivered(&pending).len(), 1);
        assert_eq!(pending.add(Vec::new()), Added::default());
        assert_eq!(pending.lock().bytes, 0);
    }

    #[test]
    fn what_comes_while_the_sink_works_is_delivered_too() {
        let pending = Pending::default();
        pending.add(vec![change("a", 1)]);
        let mut seen = Vec::new();
        pending.deliver(|c| {
            if seen.len() < 5 {
                assert!(!pending.add(vec![change("a", seen.len() + 2)]).lead);
            }
            seen.push(c.value);
        });
        assert_eq!(seen, ["1", "2", "3", "4", "5", "6"]);
    }

    #[test]
    fn whoever_brings_too_much_waits_until_there_is_room() {
        let pending = Pending::default();
        let fill = |from: usize| {
            let many = MOST / SELF / 2;
            (from..from + many).map(|n| TagChange { evidence: "x".repeat(SELF * 2), ..change(&n.to_string(), 0) }).collect()
        };
        assert!(pending.add(fill(0)).lead);
        assert!(pending.lock().bytes > MOST);
        std::thread::scope(|scope| {
            let more = scope.spawn(|| pending.add(vec![change("more", 1)]));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!more.is_finished());
            let mut last = String::new();
            pending.deliver(|c| last = c.subject);
            more.join().unwrap();
            pending.deliver(|c| last = c.subject);
            assert_eq!(last, "more");
        });
    }
}
