//! What this program changes in the store by itself: hosts and rollouts.

use anyhow::{Result, bail};
use tokio::time::sleep;
use vnet_common::etcd::{Condition, Outcome, Snapshot, Write};
use vnet_common::fleet::{DESIRED, Key, SERIAL};

use super::Etcd;
use super::change::{TRIES, pause, put, serial};

/// What an edit comes to.
#[derive(Debug)]
pub struct Plan<T> {
    /// What is written; nothing if it is like this already.
    pub writes: Vec<Write>,
    /// What is said of it.
    pub about: T,
}

/// Writes what `plan` makes of all that is desired, if nothing of it was changed meanwhile; else it plans anew. `what` is said of it to
/// others. Gives the store's revision, if there was something to write.
///
/// # Errors
/// Those of `plan`; the store cannot be read or written.
pub async fn edit<T>(
    etcd: &mut Etcd,
    what: &str,
    mut plan: impl FnMut(&Snapshot) -> Result<Plan<T>>,
) -> Result<(Option<i64>, T)> {
    for again in 0..TRIES {
        let snapshot = etcd.read(DESIRED).await?;
        let Plan { mut writes, about } = plan(&snapshot)?;
        if writes.is_empty() {
            return Ok((None, about));
        }
        writes.push(put(SERIAL, &serial(what)));
        // Everybody writes it with everything: as long as it stays, all of it does.
        let revision = snapshot.entries.get(SERIAL).map_or(0, |entry| entry.modified);
        if revision == 0 {
            whole(&snapshot)?;
        }
        match etcd.commit(&unchanged(revision), &writes, revision).await? {
            Outcome::Done(revision) => return Ok((Some(revision), about)),
            Outcome::Conflict => sleep(pause(again)).await,
        }
    }
    bail!("nothing was written: others change the store {} all the time; try again", etcd.access)
}

/// Says that the store is set up, unless that was said already, or something is there which hosts do not go by yet.
///
/// # Errors
/// The store cannot be read or written.
pub async fn begin(etcd: &mut Etcd, what: &str) -> Result<()> {
    let snapshot = etcd.read(DESIRED).await?;
    if !snapshot.entries.contains_key(SERIAL) && whole(&snapshot).is_ok() {
        // If somebody else was faster, it is said as well.
        etcd.commit(&unchanged(0), &[put(SERIAL, &serial(what))], 0).await?;
    }
    Ok(())
}

/// That [`SERIAL`] has this revision; and if it is not there, that nothing is which [`whole`] refuses.
fn unchanged(revision: i64) -> Vec<Condition> {
    let none = ["resources/", "overrides/", "rollouts/"].map(|below| format!("{DESIRED}{below}"));
    let none = none.into_iter().filter(|_| revision == 0).map(|key| Condition { key, revision: 0 });
    none.chain([Condition { key: SERIAL.to_owned(), revision }]).collect()
}

/// That nothing is there which hosts do not go by: with [`SERIAL`] they would.
fn whole(snapshot: &Snapshot) -> Result<()> {
    let is_host = |key: &String| matches!(Key::parse(key), Some(Key::Registration(_)));
    if snapshot.entries.keys().any(|key| key != SERIAL && !is_host(key)) {
        bail!(
            "nothing was written: the store is being filled by `vnet-ctl store restore` or `store migrate`, or that was interrupted, and              hosts do not go by what is there yet: do that again first"
        );
    }
    Ok(())
}
