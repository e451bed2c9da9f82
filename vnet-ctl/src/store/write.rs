//! Writing much: in several transactions, and reading it back.

use anyhow::{Result, bail};
use vnet_common::etcd::{Condition, Outcome, Write, batches};
use vnet_common::fleet::SERIAL;

use crate::fleet::{self, Etcd, OPERATIONS};

/// Writes all of it, in as few transactions as it takes: each only if nobody else has written since the one before, or, the first, since
/// the revision `serial` of the key of that name. `what` is said of it to others. If there is no such key (0), it comes with the last one:
/// until then hosts do not go by what is there.
///
/// # Errors
/// The store cannot be written, or somebody else writes: what came before is there.
pub async fn all(etcd: &mut Etcd, mut serial: i64, writes: &[Write], what: &str) -> Result<()> {
    let said = fleet::put(SERIAL, &fleet::serial(what));
    let mut done = 0;
    for batch in batches(writes, OPERATIONS - 1) {
        let unchanged = Condition { key: SERIAL.to_owned(), revision: serial };
        let says = serial != 0 || done + batch.len() == writes.len();
        let operations: Vec<Write> = batch.iter().chain(says.then_some(&said)).cloned().collect();
        match etcd.commit(&[unchanged], &operations, serial).await {
            Ok(Outcome::Done(revision)) if says => serial = revision,
            Ok(Outcome::Done(_)) => {}
            Ok(Outcome::Conflict) => bail!("somebody else changes the store; {}", half(done, writes.len())),
            Err(error) if done == 0 => return Err(error),
            Err(error) => return Err(error.context(half(done, writes.len()))),
        }
        done += batch.len();
    }
    Ok(())
}

fn half(done: usize, all: usize) -> String {
    match done {
        0 => "nothing was written".to_owned(),
        done => format!("{done} of {all} values were written before: do it again (with --replace)"),
    }
}
