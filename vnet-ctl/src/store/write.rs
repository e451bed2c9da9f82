//! Writing much: in several transactions, and reading it back.

use anyhow::{Result, bail};
use vnet_common::etcd::{Condition, Outcome, Write};
use vnet_common::fleet::SERIAL;

use crate::fleet::{self, Etcd, OPERATIONS};

/// A transaction's size in bytes; etcd takes 1.5 MiB.
const BYTES: usize = 1 << 20;

/// Writes all of it, in as few transactions as it takes: each only if nobody else has written since the one before, or, the first, since
/// the revision `serial` of the key of that name. `what` is said of it to others. If there is no such key (0), it comes with the last one:
/// until then hosts do not go by what is there.
///
/// # Errors
/// The store cannot be written, or somebody else writes: what came before is there.
pub async fn all(etcd: &mut Etcd, mut serial: i64, writes: &[Write], what: &str) -> Result<()> {
    let said = fleet::put(SERIAL, &fleet::serial(what));
    let mut done = 0;
    for batch in batches(writes) {
        let unchanged = Condition { key: SERIAL.to_owned(), revision: serial };
        let says = serial != 0 || done + batch.len() == writes.len();
        let operations: Vec<Write> = batch.iter().chain(says.then_some(&said)).cloned().collect();
        match etcd.commit(&[unchanged], &operations).await {
            Ok(Outcome::Done(revision)) if says => serial = revision,
            Ok(Outcome::Done(_)) => {}
            Ok(Outcome::Conflict) => bail!("somebody else changes the store; {}", half(done, writes.len())),
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

/// Parts that a transaction has room for, together with [`SERIAL`].
fn batches(writes: &[Write]) -> Vec<&[Write]> {
    let size = |write: &Write| match write {
        Write::Put(key, value, _) => key.len() + value.len(),
        Write::Delete(key) | Write::DeleteBelow(key) => key.len(),
    };
    let (mut batches, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, write) in writes.iter().enumerate() {
        if i > start && (i - start == OPERATIONS - 1 || bytes + size(write) > BYTES) {
            batches.push(&writes[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size(write);
    }
    batches.extend((start < writes.len()).then(|| &writes[start..]));
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_transaction_has_more_than_the_store_takes() {
        let put = |bytes: usize| Write::Put(String::new(), vec![0; bytes], 0);
        let lengths = |writes: &[Write]| batches(writes).iter().map(|batch| batch.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&vec![put(1); 2 * OPERATIONS]), [OPERATIONS - 1, OPERATIONS - 1, 2]);
        assert_eq!(lengths(&[put(BYTES), put(1), put(BYTES - 1), put(1)]), [1, 2, 1]);
        // Too much for any: the store says so.
        assert_eq!(lengths(&[put(2 * BYTES), put(1)]), [1, 1]);
    }
}
