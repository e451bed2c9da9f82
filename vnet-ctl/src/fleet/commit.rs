//! A transaction, and what became of it if nobody says so.

use anyhow::Result;
use vnet_common::etcd::{Condition, Failure, Outcome, Snapshot, Write};
use vnet_common::fleet::{DESIRED, SERIAL};

use super::{Etcd, Need};

impl Etcd {
    /// Writes all of this if all conditions are true, one of them that [`SERIAL`] has the revision `before`; else nothing. If the
    /// connection breaks it is looked up what became of it: it is a conflict, too, if others wrote since, and the store is not as
    /// this would have left it.
    ///
    /// # Errors
    /// Nothing was written, or that is not known: the error says which.
    pub async fn commit(&mut self, conditions: &[Condition], writes: &[Write], before: i64) -> Result<Outcome> {
        let error = match self.client.commit(conditions, writes).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) if Failure::in_error(&error) == Failure::Denied => return Err(self.teach(error, Need::Policy)),
            Err(error) => error,
        };
        let looked = async {
            self.reconnect().await?;
            self.read(DESIRED).await
        };
        match looked.await.map(|now| became(&now, writes, before)) {
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => Err(error.context("as far as the store says, nothing was written")),
            Err(_) => Err(error.context("whether it was written is not known: look, and do it again if it was not")),
        }
    }
}

/// What became of these writes, by all that is desired now; `None`: nobody has written since.
fn became(now: &Snapshot, writes: &[Write], before: i64) -> Option<Outcome> {
    let revision = |key: &str| now.entries.get(key).map_or(0, |entry| entry.modified);
    let put = |key: &str, value: &[u8]| now.entries.get(key).is_some_and(|entry| entry.value == value && entry.modified > before);
    let is_done = writes.iter().all(|write| match write {
        Write::Put(key, value, _) => key == SERIAL || put(key, value),
        Write::Delete(key) => !now.entries.contains_key(key),
        Write::DeleteBelow(prefix) => !now.entries.keys().any(|key| key.starts_with(prefix)),
    });
    let puts_serial = writes.iter().any(|write| matches!(write, Write::Put(key, ..) if key == SERIAL));
    match revision(SERIAL) == before {
        true if puts_serial || !is_done => None,
        false if !is_done => Some(Outcome::Conflict),
        // What was deleted has no revision any more: that of the last change is not older.
        _ => Some(Outcome::Done(writes.iter().filter_map(key).map(revision).max().unwrap_or(0).max(revision(SERIAL)))),
    }
}

/// What is put.
fn key(write: &Write) -> Option<&str> {
    match write {
        Write::Put(key, ..) => Some(key),
        Write::Delete(_) | Write::DeleteBelow(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnet_common::etcd::Entry;

    #[test]
    fn what_became_of_a_write_is_told_by_what_there_is() {
        let now = |entries: &[(&str, &str, i64)]| Snapshot {
            revision: 9,
            entries: entries
                .iter()
                .map(|(key, value, at)| {
                    ((*key).to_owned(), Entry { value: (*value).into(), created: 1, modified: *at, lease: 0 })
                })
                .collect(),
        };
        let put = |key: &str, value: &str| Write::Put(key.to_owned(), value.into(), 0);
        let writes = [put("a", "new"), Write::Delete("b".to_owned()), put(SERIAL, "me")];
        for (entries, expected) in [
            (&[("a", "new", 3), ("b", "old", 4), (SERIAL, "other", 5)][..], None),
            (&[("a", "new", 6), (SERIAL, "me", 6)], Some(Outcome::Done(6))),
            // Others changed something else afterwards.
            (&[("a", "new", 6), ("c", "x", 8), (SERIAL, "other", 8)], Some(Outcome::Done(8))),
            // Or instead, or the same.
            (&[("a", "old", 3), ("b", "old", 4), (SERIAL, "other", 7)], Some(Outcome::Conflict)),
            (&[("a", "other", 7), (SERIAL, "other", 7)], Some(Outcome::Conflict)),
            (&[("a", "new", 3), (SERIAL, "other", 7)], Some(Outcome::Conflict)),
        ] {
            assert_eq!(became(&now(entries), &writes, 5), expected, "{entries:?}");
        }
        // The first of several takes it away.
        let writes = [put("a", "new"), Write::Delete(SERIAL.to_owned())];
        assert_eq!(became(&now(&[("a", "new", 6)]), &writes, 5), Some(Outcome::Done(6)));
        assert_eq!(became(&now(&[("a", "old", 2)]), &writes, 0), None);
        assert_eq!(became(&now(&[("a", "new", 6)]), &writes, 0), Some(Outcome::Done(6)), "it was away before");
    }
}
