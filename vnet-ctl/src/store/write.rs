//! Writing much: in several transactions, of which hosts see only what all of them come to.

use anyhow::{Result, bail};
use vnet_common::etcd::{Condition, Outcome, Write, batches};
use vnet_common::fleet::SERIAL;

use crate::fleet::{self, Etcd, OPERATIONS};

/// What is written, in one transaction or in several. The first of several takes [`SERIAL`] away, and the last puts it there: as long as
/// there is none, hosts go by what they have.
pub struct Writing<'a> {
    etcd: &'a mut Etcd,
    /// The revision of [`SERIAL`]; 0: there is none.
    serial: i64,
    /// What is said of it to others.
    what: &'a str,
    /// Values that were written.
    done: usize,
}

impl<'a> Writing<'a> {
    /// Begins, if nobody has written since [`SERIAL`] had this revision.
    pub fn new(etcd: &'a mut Etcd, serial: i64, what: &'a str) -> Self {
        Self { etcd, serial, what, done: 0 }
    }

    /// The store.
    pub fn etcd(&mut self) -> &mut Etcd {
        self.etcd
    }

    /// Writes these, and more is to come.
    ///
    /// # Errors
    /// See [`Writing::finish`].
    pub async fn hold(&mut self, writes: &[Write]) -> Result<()> {
        let gone = [Write::Delete(SERIAL.to_owned())];
        for batch in batches(writes, OPERATIONS - 1) {
            self.commit(batch, if self.serial == 0 { &[] } else { &gone }).await?;
            self.serial = 0;
        }
        Ok(())
    }

    /// Writes these, and what was held is in force.
    ///
    /// # Errors
    /// The store cannot be written, or somebody else writes: what came before is there, and hosts do not go by what was held.
    pub async fn finish(&mut self, writes: &[Write]) -> Result<()> {
        let said = [fleet::put(SERIAL, &fleet::serial(self.what))];
        let batches = batches(writes, OPERATIONS - 1);
        let (last, before) = batches.split_last().map_or((&[][..], &[][..]), |(last, before)| (*last, before));
        for batch in before {
            self.hold(batch).await?;
        }
        let is_there = last.is_empty() && self.serial != 0;
        if is_there { Ok(()) } else { self.commit(last, &said).await }
    }

    async fn commit(&mut self, writes: &[Write], serial: &[Write]) -> Result<()> {
        let unchanged = Condition { key: SERIAL.to_owned(), revision: self.serial };
        let operations = [writes, serial].concat();
        match self.etcd.commit(&[unchanged], &operations, self.serial).await {
            Ok(Outcome::Done(revision)) => (self.serial, self.done) = (revision, self.done + writes.len()),
            Ok(Outcome::Conflict) if self.done == 0 => bail!("nothing was written: somebody else changes the store; try again"),
            Ok(Outcome::Conflict) => bail!("somebody else changes the store; {}", self.half()),
            Err(error) if self.done == 0 => return Err(error),
            Err(error) => return Err(error.context(self.half())),
        }
        Ok(())
    }

    /// What there is when this stops.
    fn half(&self) -> String {
        let keep = if self.serial == 0 { ", and hosts keep what they have until all are there" } else { "" };
        format!("{} values were written before{keep}: do it again", self.done)
    }
}
