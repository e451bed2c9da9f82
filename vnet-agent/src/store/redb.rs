//! The embedded store: one file, transactions, crash-safe.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, Result, anyhow, bail};
use redb::{
    CommitError, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition, TableError,
    TransactionError,
};

use super::{MemberOverride, Store};
use crate::policy::ids::{IdChange, RuleKey};
use crate::resource::{Origin, Resource};

/// Layout of the file; a newer one is refused.
const VERSION: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// (kind, name) → JSON.
const RESOURCES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("resources");
/// (load balancer, member) → JSON.
const OVERRIDES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("overrides");
/// (kind, name) → JSON: where the resource was written.
const ORIGINS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("origins");
/// A rule's key as JSON → number.
const RULE_IDS: TableDefinition<'_, &str, u32> = TableDefinition::new("rule_ids");
/// Endpoint → device.
const BINDINGS: TableDefinition<'_, &str, &str> = TableDefinition::new("bindings");
/// Endpoint name → number.
const ENDPOINTS: TableDefinition<'_, &str, u32> = TableDefinition::new("endpoints");

/// Desired state in one file of the state directory. Clones share it.
#[derive(Clone)]
pub struct RedbStore {
    /// `None`: a read or write failed. redb takes nothing more then, not even when there is space again: it is opened anew before the
    /// next attempt.
    db: Arc<RwLock<Option<Database>>>,
    path: PathBuf,
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When another agent has it open, it is damaged, it was written by a newer agent, or it cannot be read or written.
    pub fn open(path: &Path) -> Result<Self> {
        let db = open(path, |path| Database::create(path))?;
        let store = Self { db: Arc::new(RwLock::new(Some(db))), path: path.to_owned() };
        store.prepare()?;
        Ok(store)
    }

    /// Makes the tables, and checks the version.
    fn prepare(&self) -> Result<()> {
        self.writing(|txn| {
            let mut meta = txn.open_table(META)?;
            let found = meta.get("version")?.map(|v| v.value());
            match found {
                None => drop(meta.insert("version", VERSION)?),
                Some(VERSION) => {}
                Some(v) => bail!(
                    "it has layout {v}, this agent knows {VERSION}: start the agent that wrote it, or move the file away to begin anew"
                ),
            }
            txn.open_table(RESOURCES)?;
            txn.open_table(OVERRIDES)?;
            txn.open_table(ORIGINS)?;
            txn.open_table(RULE_IDS)?;
            txn.open_table(BINDINGS)?;
            txn.open_table(ENDPOINTS)?;
            super::quarantine::prepare(txn)
        })
    }

    pub(super) fn reading<T>(&self, f: impl FnOnce(&redb::ReadTransaction) -> Result<T>) -> Result<T> {
        let run = |db: &Database| -> Result<T> { f(&db.begin_read()?) };
        self.with(run).with_context(|| format!("reading the store {}", self.path.display()))
    }

    pub(super) fn writing<T>(&self, f: impl FnOnce(&redb::WriteTransaction) -> Result<T>) -> Result<T> {
        let run = |db: &Database| -> Result<T> {
            let txn = db.begin_write()?;
            let value = f(&txn)?;
            txn.commit()?;
            Ok(value)
        };
        self.with(run).with_context(|| format!("writing the store {} (nothing was changed)", self.path.display()))
    }

    /// Uses the database, opened anew if it failed before.
    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        // Whoever panicked left a whole database, or none.
        let mut db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        if db.is_none() {
            drop(db);
            let mut closed = self.db.write().unwrap_or_else(PoisonError::into_inner);
            if closed.is_none() {
                // Only what is there: a new file in its place would be another store.
                *closed = Some(open(&self.path, |path| Database::open(path))?);
                log::info!("the store {} was opened again after an error", self.path.display());
            }
            drop(closed);
            db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        }
        let result = f(db.as_ref().context("another thread had an error")?);
        drop(db);
        if result.as_ref().is_err_and(is_final) {
            *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }
}

/// Opens a database.
fn open(path: &Path, how: impl FnOnce(&Path) -> Result<Database, DatabaseError> + std::panic::UnwindSafe) -> Result<Database> {
    // A damaged header makes redb panic in places: a library's panic must not be the answer to a bad file.
    let opened = std::panic::catch_unwind(|| how(path))
        .unwrap_or_else(|_| Err(DatabaseError::Storage(StorageError::Corrupted("its structure contradicts itself".to_owned()))));
    opened.map_err(|e| explain(path, e))
}

/// Does a database with this error take nothing more? It is so after errors of the file, not of what is in it.
fn is_final(error: &anyhow::Error) -> bool {
    let cause = error.root_cause();
    let storage = match (cause.downcast_ref(), cause.downcast_ref(), cause.downcast_ref()) {
        (Some(TransactionError::Storage(e)), ..) | (_, Some(TableError::Storage(e)), _) | (.., Some(CommitError::Storage(e))) => {
            Some(e)
        }
        _ => cause.downcast_ref(),
    };
    storage.is_some_and(|e| !matches!(e, StorageError::Corrupted(_) | StorageError::ValueTooLarge(_) | StorageError::Unsupported))
}

fn explain(path: &Path, error: DatabaseError) -> anyhow::Error {
    let path = path.display();
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            anyhow!("the store {path} is in use: another vnet-agent runs on this state directory")
        }
        DatabaseError::UpgradeRequired(v) => {
            anyhow!("the store {path} has file format {v}, which this agent cannot read: upgrade it with the agent that wrote it")
        }
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() != std::io::ErrorKind::InvalidData => {
            anyhow!("cannot open the store {path}: {e}")
        }
        e => anyhow!("the store {path} is damaged ({e}): restore it from a backup, or move it away and apply your files again"),
    }
}

impl Store for RedbStore {
    fn resources(&self) -> Result<Vec<Resource>> {
        self.reading(|txn| {
            let table = txn.open_table(RESOURCES)?;
            let mut all = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (kind, name) = key.value();
                all.push(serde_json::from_slice(value.value()).with_context(|| format!("{kind} {name}"))?);
            }
            Ok(all)
        })
    }

    fn change(&self, put: &[Resource], delete: &[(String, String)]) -> Result<()> {
        self.writing(|txn| {
            let mut table = txn.open_table(RESOURCES)?;
            let mut overrides = txn.open_table(OVERRIDES)?;
            let mut origins = txn.open_table(ORIGINS)?;
            let mut bindings = txn.open_table(BINDINGS)?;
            for (kind, name) in delete {
                table.remove((kind.as_str(), name.as_str()))?;
                origins.remove((kind.as_str(), name.as_str()))?;
                if kind == "LoadBalancer" {
                    overrides.retain(|(lb, _), _| lb != name)?;
                }
                if kind == "Endpoint" {
                    bindings.remove(name.as_str())?;
                }
            }
            for resource in put {
                let json = serde_json::to_vec(resource)?;
                table.insert((resource.kind(), resource.name()), json.as_slice())?;
            }
            Ok(())
        })
    }

    fn origins(&self) -> Result<Vec<((String, String), Origin)>> {
        self.reading(|txn| {
            let table = txn.open_table(ORIGINS)?;
            let mut all = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (kind, name) = key.value();
                let origin = serde_json::from_slice(value.value()).with_context(|| format!("the place of {kind} {name}"))?;
                all.push(((kind.to_owned(), name.to_owned()), origin));
            }
            Ok(all)
        })
    }

    fn set_origins(&self, origins: &[((String, String), Origin)]) -> Result<()> {
        self.writing(|txn| {
            let mut table = txn.open_table(ORIGINS)?;
            for ((kind, name), origin) in origins {
                table.insert((kind.as_str(), name.as_str()), serde_json::to_vec(origin)?.as_slice())?;
            }
            Ok(())
        })
    }

    fn rule_ids(&self) -> Result<Vec<(RuleKey, u32)>> {
        self.reading(|txn| {
            let table = txn.open_table(RULE_IDS)?;
            let mut all = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let rule = serde_json::from_str(key.value()).with_context(|| format!("the rule {}", key.value()))?;
                all.push((rule, value.value()));
            }
            Ok(all)
        })
    }

    fn change_rule_ids(&self, change: &IdChange) -> Result<()> {
        self.writing(|txn| {
            let mut table = txn.open_table(RULE_IDS)?;
            for key in &change.freed {
                table.remove(serde_json::to_string(key)?.as_str())?;
            }
            for (key, id) in &change.given {
                table.insert(serde_json::to_string(key)?.as_str(), id)?;
            }
            Ok(())
        })
    }

    fn overrides(&self) -> Result<Vec<(String, String, MemberOverride)>> {
        self.reading(|txn| {
            let table = txn.open_table(OVERRIDES)?;
            let mut all = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (lb, member) = key.value();
                let parsed = serde_json::from_slice(value.value()).with_context(|| format!("member {member} of {lb}"))?;
                all.push((lb.to_owned(), member.to_owned(), parsed));
            }
            Ok(all)
        })
    }

    fn set_override(&self, load_balancer: &str, member: &str, value: &MemberOverride) -> Result<()> {
        self.writing(|txn| {
            let mut table = txn.open_table(OVERRIDES)?;
            if *value == MemberOverride::default() {
                table.remove((load_balancer, member))?;
            } else {
                table.insert((load_balancer, member), serde_json::to_vec(value)?.as_slice())?;
            }
            Ok(())
        })
    }

    fn endpoint_id(&self, name: &str) -> Result<u32> {
        let known = self.reading(|txn| Ok(txn.open_table(ENDPOINTS)?.get(name)?.map(|v| v.value())))?;
        if let Some(id) = known {
            return Ok(id);
        }
        self.writing(|txn| {
            let mut meta = txn.open_table(META)?;
            let last = meta.get("last_endpoint")?.map_or(0, |v| v.value());
            let id = u32::try_from(last + 1).context("every endpoint number was given out")?;
            meta.insert("last_endpoint", u64::from(id))?;
            txn.open_table(ENDPOINTS)?.insert(name, id)?;
            Ok(id)
        })
    }

    fn endpoint_ids(&self) -> Result<Vec<(String, u32)>> {
        self.reading(|txn| {
            let mut all = Vec::new();
            for row in txn.open_table(ENDPOINTS)?.iter()? {
                let (name, id) = row?;
                all.push((name.value().to_owned(), id.value()));
            }
            Ok(all)
        })
    }

    fn bindings(&self) -> Result<Vec<(String, String)>> {
        self.reading(|txn| {
            let mut all = Vec::new();
            for row in txn.open_table(BINDINGS)?.iter()? {
                let (endpoint, device) = row?;
                all.push((endpoint.value().to_owned(), device.value().to_owned()));
            }
            Ok(all)
        })
    }

    fn has_joined(&self) -> Result<bool> {
        self.reading(|txn| Ok(txn.open_table(META)?.get("joined")?.is_some_and(|v| v.value() != 0)))
    }

    fn set_joined(&self, joined: bool) -> Result<()> {
        if self.has_joined()? == joined {
            return Ok(());
        }
        self.writing(|txn| {
            txn.open_table(META)?.insert("joined", u64::from(joined))?;
            Ok(())
        })
    }

    fn bind(&self, endpoint: &str, device: &str) -> Result<()> {
        self.writing(|txn| {
            let mut table = txn.open_table(BINDINGS)?;
            table.retain(|_, bound| bound != device)?;
            table.insert(endpoint, device)?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};

    use crate::resource::{API_VERSION, Endpoint, EndpointSpec, Metadata};

    struct Dir(PathBuf);
    impl Dir {
        fn new(tag: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("vnet-store-{}-{tag}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
        fn file(&self) -> PathBuf {
            self.0.join("vnet.redb")
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn endpoint(name: &str, device: &str) -> Resource {
        Resource::Endpoint(Endpoint {
            api_version: API_VERSION.to_owned(),
            metadata: Metadata { name: name.to_owned(), labels: BTreeMap::new(), resource_version: None },
            spec: EndpointSpec { device: device.to_owned(), ..EndpointSpec::default() },
        })
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let dir = Dir::new("reopen");
        let drained = MemberOverride { drained: true, weight: Some(3) };
        {
            let s = RedbStore::open(&dir.file()).unwrap();
            s.change(&[endpoint("a", "tap0"), endpoint("b", "tap1")], &[]).unwrap();
            s.change(&[], &[("Endpoint".to_owned(), "a".to_owned())]).unwrap();
            s.set_override("web", "m1", &drained).unwrap();
            s.set_override("web", "m2", &drained).unwrap();
            s.set_override("web", "m2", &MemberOverride::default()).unwrap();
            assert_eq!((s.endpoint_id("x").unwrap(), s.endpoint_id("y").unwrap()), (1, 2));
        }
        let s = RedbStore::open(&dir.file()).unwrap();
        assert_eq!(s.resources().unwrap(), [endpoint("b", "tap1")]);
        assert_eq!(s.overrides().unwrap(), [("web".to_owned(), "m1".to_owned(), drained)]);
        assert_eq!((s.endpoint_id("y").unwrap(), s.endpoint_id("z").unwrap()), (2, 3));
        s.change(&[], &[("LoadBalancer".to_owned(), "web".to_owned())]).unwrap();
        assert_eq!(s.overrides().unwrap(), [], "overrides go with their load balancer");
    }

    #[test]
    fn a_device_is_bound_to_one_endpoint_and_as_long_as_that_is_there() {
        let dir = Dir::new("bind");
        let pair = |endpoint: &str, device: &str| (endpoint.to_owned(), device.to_owned());
        {
            let s = RedbStore::open(&dir.file()).unwrap();
            s.change(&[endpoint("alpha", "tap0"), endpoint("zeta", "tap1")], &[]).unwrap();
            s.bind("zeta", "vnet0").unwrap();
            s.bind("alpha", "vnet1").unwrap();
            s.bind("alpha", "vnet0").unwrap();
        }
        let s = RedbStore::open(&dir.file()).unwrap();
        assert_eq!(s.bindings().unwrap(), [pair("alpha", "vnet0")]);
        s.bind("zeta", "vnet1").unwrap();
        s.change(&[], &[pair("LoadBalancer", "zeta"), pair("Endpoint", "alpha")]).unwrap();
        assert_eq!(s.bindings().unwrap(), [pair("zeta", "vnet1")]);
    }

    #[test]
    fn places_and_numbers_of_rules_are_there_after_reopening() {
        use vnet_common::verdict::Direction::{Egress, Ingress};
        let dir = Dir::new("rules");
        let key = |name: &str| ("Endpoint".to_owned(), name.to_owned());
        let origin = |line| Origin { file: "web.yaml".to_owned(), line, egress: vec![line + 2], ingress: vec![] };
        let rule = |name: &str, direction| RuleKey::new("Policy", "p", direction, name);
        {
            let s = RedbStore::open(&dir.file()).unwrap();
            s.change(&[endpoint("a", "tap0"), endpoint("b", "tap1")], &[]).unwrap();
            s.set_origins(&[(key("a"), origin(1)), (key("b"), origin(20))]).unwrap();
            s.set_origins(&[(key("b"), origin(30))]).unwrap();
            let given = vec![(rule("x", Egress), 1), (rule("x", Ingress), 2), (rule("y", Egress), 3)];
            s.change_rule_ids(&IdChange { given, freed: vec![] }).unwrap();
            s.change_rule_ids(&IdChange { given: vec![(rule("z", Egress), 4)], freed: vec![rule("x", Ingress)] }).unwrap();
        }
        let s = RedbStore::open(&dir.file()).unwrap();
        s.change(&[], &[key("a")]).unwrap();
        assert_eq!(s.origins().unwrap(), [(key("b"), origin(30))]);
        let mut ids = s.rule_ids().unwrap();
        ids.sort();
        assert_eq!(ids, [(rule("x", Egress), 1), (rule("y", Egress), 3), (rule("z", Egress), 4)]);
    }

    #[test]
    fn a_second_agent_is_told_so() {
        let dir = Dir::new("second");
        let _first = RedbStore::open(&dir.file()).unwrap();
        let e = RedbStore::open(&dir.file()).map(|_| ()).unwrap_err();
        assert!(format!("{e:#}").contains("another vnet-agent"), "{e:#}");
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let dir = Dir::new("damage");
        drop(RedbStore::open(&dir.file()).map(|s| s.change(&[endpoint("a", "tap0")], &[])).unwrap());
        let good = std::fs::read(dir.file()).unwrap();
        for (at, len) in [(0, 64), (0, good.len() / 2), (64, 256), (4096, 4096)] {
            let mut bad = good.clone();
            let end = (at + len).min(bad.len());
            bad[at..end].fill(0xa5);
            std::fs::write(dir.file(), &bad).unwrap();
            // Some damage lies in unused pages; what must not happen is a panic or a wrong answer.
            match RedbStore::open(&dir.file()).and_then(|s| s.resources()) {
                Ok(all) => assert_eq!(all, [endpoint("a", "tap0")]),
                Err(e) => assert!(format!("{e:#}").contains(&dir.file().display().to_string()), "{e:#}"),
            }
        }
        std::fs::write(dir.file(), "this is a text file, long enough to hold a header, and no database at all").unwrap();
        let e = RedbStore::open(&dir.file()).map(|_| ()).unwrap_err();
        assert!(format!("{e:#}").contains("damaged"), "{e:#}");
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = Dir::new("newer");
        let s = RedbStore::open(&dir.file()).unwrap();
        s.writing(|txn| Ok(txn.open_table(META)?.insert("version", VERSION + 1)?.map(|v| v.value()))).unwrap();
        drop(s);
        let e = RedbStore::open(&dir.file()).map(|_| ()).unwrap_err();
        assert!(format!("{e:#}").contains("layout 2"), "{e:#}");
    }

    /// In a child of the test below, until that kills it.
    fn write_without_end(file: &Path) {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("dying with the test");
        let s = RedbStore::open(file).unwrap();
        for i in 0u32.. {
            let device = format!("tap{i}");
            s.change(&[endpoint("a", &device), endpoint("b", &device)], &[]).unwrap();
        }
    }

    #[test]
    fn after_a_full_disk_it_goes_on() {
        const NAME: &str = "store::redb::tests::after_a_full_disk_it_goes_on";
        if let Some(file) = std::env::var_os("VNET_STORE_FULL") {
            return fill_up(Path::new(&file));
        }
        // A file that may not grow is like a disk that is full, once the signal that comes with it is ignored.
        let dir = Dir::new("full");
        let mut child = Command::new("sh");
        child.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
        let child = child.args([NAME, "--exact", "--nocapture"]).env("VNET_STORE_FULL", dir.file()).output().unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        let all = RedbStore::open(&dir.file()).unwrap().resources().unwrap();
        assert_eq!(all, [endpoint("a", "tap1")], "what failed is not there");
    }

    fn fill_up(file: &Path) {
        use nix::sys::resource::{Resource::RLIMIT_FSIZE, getrlimit, setrlimit};
        let s = RedbStore::open(file).unwrap();
        let reader = s.clone();
        s.change(&[endpoint("a", "tap0")], &[]).unwrap();
        let (soft, hard) = getrlimit(RLIMIT_FSIZE).unwrap();
        setrlimit(RLIMIT_FSIZE, std::fs::metadata(file).unwrap().len(), hard).unwrap();
        let large = "x".repeat(64 << 20);
        for _ in 0..2 {
            let e = s.change(&[endpoint("b", &large)], &[]).unwrap_err();
            assert!(format!("{e:#}").contains("File too large"), "{e:#}");
            assert_eq!(reader.resources().unwrap(), [endpoint("a", "tap0")]);
        }
        setrlimit(RLIMIT_FSIZE, soft, hard).unwrap();
        s.change(&[endpoint("a", "tap1")], &[]).unwrap();
        assert_eq!(reader.resources().unwrap(), [endpoint("a", "tap1")]);
    }

    #[test]
    fn a_kill_leaves_a_whole_change() {
        if let Some(file) = std::env::var_os("VNET_STORE_WRITER") {
            return write_without_end(Path::new(&file));
        }
        let dir = Dir::new("kill");
        for round in 0..5 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["store::redb::tests::a_kill_leaves_a_whole_change", "--exact", "--nocapture"])
                .env("VNET_STORE_WRITER", dir.file())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(150 + 37 * round));
            child.kill().unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(9), "it wrote until it was killed");
            let all = RedbStore::open(&dir.file()).unwrap().resources().unwrap();
            let devices: Vec<&str> = all
                .iter()
                .filter_map(|r| if let Resource::Endpoint(e) = r { Some(e.spec.device.as_str()) } else { None })
                .collect();
            assert!(devices.len() == 2 && devices[0] == devices[1], "{devices:?}");
        }
    }
}
