//! The last good state on disk: what an agent goes by that starts while the store is away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use vnet_common::etcd::Entry;
use vnet_common::fleet::Key;

/// Key → (created, modified, value).
const KEYS: TableDefinition<'_, &str, (i64, i64, &[u8])> = TableDefinition::new("keys");
/// Numbers that this host has to know again, by what they are.
const NUMBERS: TableDefinition<'_, &str, i64> = TableDefinition::new("numbers");

/// The file.
pub struct Disk {
    db: Database,
    path: PathBuf,
}

/// Is this worth keeping? What hosts say every moment is not.
#[must_use]
pub fn is_kept(key: &str) -> bool {
    matches!(
        Key::parse(key),
        Some(
            Key::Resource(..)
                | Key::Override(..)
                | Key::Registration(_)
                | Key::Rollout(_)
                | Key::Alive(_)
                | Key::Endpoint(..)
                | Key::Identity(..)
        )
    )
}

impl Disk {
    /// Opens the file, or makes it. What is damaged is begun anew: the store has it all.
    ///
    /// # Errors
    /// The file cannot be made, or another agent has it.
    pub fn open(path: &Path) -> Result<Self> {
        let about = || format!("opening what is known of the fleet, {}", path.display());
        let opened = std::panic::catch_unwind(|| Database::create(path));
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(e @ redb::DatabaseError::DatabaseAlreadyOpen)) => return Err(e).with_context(about),
            Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))) if e.kind() != std::io::ErrorKind::InvalidData => {
                return Err(e).with_context(about);
            }
            Ok(Err(_)) | Err(_) => {
                log::error!("{} is damaged: it is made anew from the store", path.display());
                std::fs::remove_file(path).with_context(about)?;
                Database::create(path).with_context(about)?
            }
        };
        let txn = db.begin_write().with_context(about)?;
        txn.open_table(KEYS).with_context(about)?;
        txn.open_table(NUMBERS).with_context(about)?;
        txn.commit().with_context(about)?;
        Ok(Self { db, path: path.to_owned() })
    }

    /// All that was kept.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(&self) -> Result<BTreeMap<String, Entry>> {
        let load = || -> Result<BTreeMap<String, Entry>> {
            let mut all = BTreeMap::new();
            for row in self.db.begin_read()?.open_table(KEYS)?.iter()? {
                let (key, value) = row?;
                let (created, modified, bytes) = value.value();
                all.insert(key.value().to_owned(), Entry { value: bytes.to_vec(), created, modified, lease: 0 });
            }
            Ok(all)
        };
        load().with_context(|| format!("reading {}", self.path.display()))
    }

    /// Keeps these; `None`: they are gone.
    ///
    /// # Errors
    /// The file cannot be written: then nothing was.
    pub fn keep(&self, changes: &BTreeMap<String, Option<Entry>>) -> Result<()> {
        let keep = || -> Result<()> {
            let txn = self.db.begin_write()?;
            {
                let mut keys = txn.open_table(KEYS)?;
                for (key, entry) in changes {
                    match entry {
                        Some(e) => drop(keys.insert(key.as_str(), (e.created, e.modified, e.value.as_slice()))?),
                        None => drop(keys.remove(key.as_str())?),
                    }
                }
            }
            txn.commit()?;
            Ok(())
        };
        keep().with_context(|| format!("writing {}", self.path.display()))
    }

    /// A number that was noted.
    pub fn number(&self, what: &str) -> Option<i64> {
        let read = || -> Result<Option<i64>> { Ok(self.db.begin_read()?.open_table(NUMBERS)?.get(what)?.map(|v| v.value())) };
        read().unwrap_or_else(|e| {
            log::warn!("reading {}: {e:#}", self.path.display());
            None
        })
    }

    /// Notes a number.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_number(&self, what: &str, number: i64) -> Result<()> {
        let set = || -> Result<()> {
            let txn = self.db.begin_write()?;
            txn.open_table(NUMBERS)?.insert(what, number)?;
            txn.commit()?;
            Ok(())
        };
        set().with_context(|| format!("writing {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_again_and_damage_begins_anew() {
        let dir = std::env::temp_dir().join(format!("vnet-fleet-disk-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("fleet.redb");
        let entry = Entry { value: b"x".to_vec(), created: 3, modified: 7, lease: 0 };
        {
            let disk = Disk::open(&file).unwrap();
            let all = [("a".to_owned(), Some(entry.clone())), ("b".to_owned(), Some(entry.clone()))];
            disk.keep(&all.into()).unwrap();
            disk.keep(&[("b".to_owned(), None)].into()).unwrap();
            disk.set_number("alive", 12).unwrap();
            assert!(Disk::open(&file).is_err(), "another agent has it");
        }
        let disk = Disk::open(&file).unwrap();
        assert_eq!(disk.load().unwrap(), [("a".to_owned(), entry)].into());
        assert_eq!((disk.number("alive"), disk.number("other")), (Some(12), None));
        drop(disk);
        std::fs::write(&file, vec![0xa5; 8192]).unwrap();
        assert_eq!(Disk::open(&file).unwrap().load().unwrap(), BTreeMap::new());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_every_host_says_every_moment_is_not_kept() {
        for (key, kept) in [
            (Key::Resource("Policy".into(), "p".into()), true),
            (Key::Endpoint("h".into(), "vm".into()), true),
            (Key::Global("h".into()), false),
            (Key::Health("h".into()), false),
            (Key::Applied("h".into()), false),
        ] {
            assert_eq!(is_kept(&key.to_string()), kept, "{key}");
        }
    }
}
