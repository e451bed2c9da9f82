//! The last good state on disk: what an agent goes by that starts while the store is away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use vnet_common::etcd::Entry;
use vnet_common::fleet::{Key, SERIAL};

/// Key → (created, modified, value).
const KEYS: TableDefinition<'_, &str, (i64, i64, &[u8])> = TableDefinition::new("keys");
/// Keys of the store that was there before.
const INHERITED: TableDefinition<'_, &str, ()> = TableDefinition::new("inherited");
/// Numbers that this host has to know again, by what they are.
const NUMBERS: TableDefinition<'_, &str, i64> = TableDefinition::new("numbers");

/// The number that says of which revision the keys are.
const REVISION: &str = "revision";

/// The file.
pub struct Disk {
    /// `None`: it could not be opened again after it failed.
    db: Mutex<Option<Database>>,
    path: PathBuf,
}

/// What was kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recalled {
    /// The keys.
    pub entries: BTreeMap<String, Entry>,
    /// Those of them that are of the store that was there before.
    pub inherited: BTreeSet<String>,
    /// They are what the store had in this revision.
    pub revision: i64,
}

/// Is this worth keeping? What hosts say every moment is not.
#[must_use]
pub fn is_kept(key: &str) -> bool {
    key == SERIAL
        || matches!(
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
        tables(&db).with_context(about)?;
        Ok(Self { db: Mutex::new(Some(db)), path: path.to_owned() })
    }

    /// Does something with the file. After an error that is opened again: what failed once fails until then, though there may be room by now.
    fn with<T>(&self, what: &str, act: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match db.as_ref() {
            Some(db) => act(db),
            None => Err(anyhow!("it could not be opened again")),
        };
        if result.is_err() {
            // It is locked as long as it is open.
            *db = None;
            *db = Database::open(&self.path).ok();
        }
        result.with_context(|| format!("{what} {}", self.path.display()))
    }

    /// All that was kept.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(&self) -> Result<Recalled> {
        self.with("reading", |db| {
            let (mut all, txn) = (Recalled::default(), db.begin_read()?);
            for row in txn.open_table(KEYS)?.iter()? {
                let (key, value) = row?;
                let (created, modified, bytes) = value.value();
                all.entries.insert(key.value().to_owned(), Entry { value: bytes.to_vec(), created, modified, lease: 0 });
            }
            for row in txn.open_table(INHERITED)?.iter()? {
                all.inherited.insert(row?.0.value().to_owned());
            }
            all.revision = txn.open_table(NUMBERS)?.get(REVISION)?.map_or(0, |number| number.value());
            Ok(all)
        })
    }

    /// Keeps these, and whether they are of the store that was there before; `None`: they are gone. With them it has all that the store had
    /// in `revision`.
    ///
    /// # Errors
    /// The file cannot be written: then nothing was.
    pub fn keep(&self, changes: &BTreeMap<String, Option<(Entry, bool)>>, revision: i64) -> Result<()> {
        self.with("writing", |db| {
            let txn = db.begin_write()?;
            {
                let (mut keys, mut inherited) = (txn.open_table(KEYS)?, txn.open_table(INHERITED)?);
                for (key, entry) in changes {
                    match entry {
                        Some((e, _)) => drop(keys.insert(key.as_str(), (e.created, e.modified, e.value.as_slice()))?),
                        None => drop(keys.remove(key.as_str())?),
                    }
                    match entry {
                        Some((_, true)) => drop(inherited.insert(key.as_str(), ())?),
                        _ => drop(inherited.remove(key.as_str())?),
                    }
                }
            }
            txn.open_table(NUMBERS)?.insert(REVISION, revision)?;
            Ok(txn.commit()?)
        })
    }

    /// A number that was noted.
    pub fn number(&self, what: &str) -> Option<i64> {
        let read = self.with("reading", |db| Ok(db.begin_read()?.open_table(NUMBERS)?.get(what)?.map(|v| v.value())));
        read.unwrap_or_else(|e| {
            log::warn!("{e:#}");
            None
        })
    }

    /// Notes numbers, together.
    ///
    /// # Errors
    /// The file cannot be written: then none was noted.
    pub fn set_numbers(&self, numbers: &[(&str, i64)]) -> Result<()> {
        self.with("writing", |db| {
            let txn = db.begin_write()?;
            for (what, number) in numbers {
                txn.open_table(NUMBERS)?.insert(*what, *number)?;
            }
            Ok(txn.commit()?)
        })
    }
}

fn tables(db: &Database) -> Result<()> {
    let txn = db.begin_write()?;
    txn.open_table(KEYS)?;
    txn.open_table(INHERITED)?;
    txn.open_table(NUMBERS)?;
    Ok(txn.commit()?)
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
            let all = [("a", false), ("b", false), ("c", true), ("d", true)];
            let keep = |kept: &[(&str, Option<bool>)]| {
                let entries = kept.iter().map(|(key, inherited)| ((*key).to_owned(), inherited.map(|i| (entry.clone(), i))));
                disk.keep(&entries.collect(), kept.len() as i64).unwrap();
            };
            keep(&all.map(|(key, inherited)| (key, Some(inherited))));
            keep(&[("b", None), ("d", Some(false))]);
            disk.set_numbers(&[("alive", 12), ("linger", 13)]).unwrap();
            assert!(Disk::open(&file).is_err(), "another agent has it");
            // What fails is opened again.
            assert!(disk.with("trying", |_| -> Result<()> { Err(anyhow!("no room")) }).is_err());
            assert_eq!(disk.number("alive"), Some(12));
        }
        let disk = Disk::open(&file).unwrap();
        let entries = ["a", "c", "d"].map(|key| (key.to_owned(), entry.clone())).into();
        assert_eq!(disk.load().unwrap(), Recalled { entries, inherited: BTreeSet::from(["c".to_owned()]), revision: 2 });
        assert_eq!((disk.number("linger"), disk.number("other")), (Some(13), None));
        drop(disk);
        std::fs::write(&file, vec![0xa5; 8192]).unwrap();
        assert_eq!(Disk::open(&file).unwrap().load().unwrap(), Recalled::default());
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
