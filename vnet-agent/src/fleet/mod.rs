//! The fleet: what this host knows of the others, and what it tells them, through a store that all share.
//!
//! ```text
//!  etcd ──watch──► Mirror ──keys that changed──► View (the agent's)        what is desired, who else there is
//!    ▲               │ disk: the last good state, while the store is away
//!    └──── writes ── Fleet::say ◄── the agent                              what this host says of itself
//! ```
//!
//! One task keeps a connection to one member of the store and goes on to the next when it breaks. It follows all keys in a
//! [`Mirror`]: by a full read at first (after a restart only of what is not on the disk), by watching from the next revision on, and by a
//! full read again when what came since was thrown away, and now and then. What this host says of itself is written by comparing what it wants to say with the mirror: what is lost, by
//! whatever cause, is written again.
//!
//! Nothing here asks for the time of day: what ends, ends by leases that the store counts, or by this host's monotonic clock.

pub mod claims;
pub mod disk;
pub mod exports;
mod follow;
pub mod here;
pub mod holds;
pub mod identities;
pub mod identity;
pub mod load;
pub mod mirror;
pub mod moves;
pub mod others;
pub mod probing;
mod publish;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::sync::Notify;
use vnet_common::etcd::{Access, Client};
use vnet_common::fleet::{Key, writable};

use disk::Disk;
use mirror::Mirror;
use view::{Touched, View};

/// Numbers on the disk: which store it is, and whether it is another than before (1).
const CLUSTER: &str = "cluster";
const ANOTHER: &str = "another";

/// What a fleet needs to know of this host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store.
    pub access: Access,
    /// This host's name: the common name of its certificate.
    pub host: String,
    /// Seconds for which others know of what is here when this host is not heard of any more.
    pub linger: u32,
}

/// Who is told what changes. The methods may block.
pub trait Consumer: Send + Sync + 'static {
    /// There may be something that [`Fleet::news`] has not told yet.
    fn changed(&self);
    /// The store is heard of again, or not any more.
    fn link(&self, link: &Link);
}

/// How it stands with the store.
#[derive(Clone, Debug)]
pub struct Link {
    /// The member of it that we are connected to.
    pub connected: Option<String>,
    /// When it was heard of last; `None`: never.
    pub heard: Option<Instant>,
    /// Since when it has not been: when the agent started, or the connection broke.
    pub silent_since: Instant,
    /// Why it is not connected, or why it does not take what this host says of itself.
    pub trouble: Option<String>,
}

impl Link {
    /// For how long the store has not been heard of; zero while it is connected.
    #[must_use]
    pub fn silent(&self) -> Duration {
        if self.connected.is_some() { Duration::ZERO } else { self.silent_since.elapsed() }
    }
}

/// How long something that this host says stays without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// As long as it is alive: [`ALIVE_SECONDS`](vnet_common::fleet::ALIVE_SECONDS).
    Alive,
    /// For a while: [`Settings::linger`].
    Lingering,
    /// Until it, or an operator, takes it away.
    Kept,
}

/// The fleet, as this host knows it.
pub struct Fleet {
    settings: Settings,
    mirror: Mutex<Mirror>,
    link: Mutex<Link>,
    /// What this host says: by key, the value and how long it is to stay.
    said: Mutex<Said>,
    /// Something is to be written, or the mirror moved.
    wake: Notify,
    /// The consumer is to look.
    told: Notify,
    /// Where this host writes: single keys, and prefixes.
    own: (Vec<String>, Vec<String>),
    /// The mirror has to hear of a write before anything else is written.
    behind: AtomicBool,
    disk: Disk,
    /// The connection, while there is one.
    client: Mutex<Option<Client>>,
    /// Which store it was that the mirror is of; 0: not known.
    cluster: AtomicU64,
}

#[derive(Default)]
struct Said {
    values: BTreeMap<String, (Vec<u8>, Hold)>,
    /// All of it has been said: what the store has beyond is to go.
    whole: bool,
    /// The host's load: newer ones take the place of those that were not written yet.
    load: Option<Vec<u8>>,
}

impl Fleet {
    /// With what was known when the agent before this one ended; `state_dir` has the file.
    ///
    /// # Errors
    /// The file cannot be read or made.
    pub fn open(settings: Settings, state_dir: &Path) -> Result<Arc<Self>> {
        let disk = Disk::open(&state_dir.join("fleet.redb"))?;
        let mirror = Mirror::recalled(disk.load()?, disk.number(ANOTHER) == Some(1));
        let cluster = AtomicU64::new(disk.number(CLUSTER).unwrap_or(0).cast_unsigned());
        let own = writable(&settings.host);
        let link = Link { connected: None, heard: None, silent_since: Instant::now(), trouble: None };
        Ok(Arc::new(Self {
            settings,
            mirror: Mutex::new(mirror),
            link: Mutex::new(link),
            said: Mutex::default(),
            wake: Notify::new(),
            told: Notify::new(),
            own,
            behind: AtomicBool::new(false),
            disk,
            client: Mutex::default(),
            cluster,
        }))
    }

    /// This host's name.
    pub fn host(&self) -> &str {
        &self.settings.host
    }

    /// The store.
    pub fn access(&self) -> &Access {
        &self.settings.access
    }

    /// What is known of the store. Not to be held for long: it stops what comes from there.
    pub fn mirror(&self) -> MutexGuard<'_, Mirror> {
        lock(&self.mirror)
    }

    /// How it stands with the store.
    pub fn link(&self) -> Link {
        lock(&self.link).clone()
    }

    /// Brings a view after the mirror. Gives the keys that changed, and what that touches; both are of the moment that the view says it is of.
    pub fn news(&self, view: &mut View) -> (BTreeSet<String>, Touched) {
        let mut mirror = self.mirror();
        let keys = mirror.take_untold();
        let touched = view.update(&mirror, &keys);
        (keys, touched)
    }

    /// This host has had something in force from a store, of which nothing is known here: what comes now need not be that one.
    pub fn forgot(&self) {
        if self.cluster.load(Ordering::Relaxed) == 0 {
            self.mirror().distrust();
            self.note(&[(ANOTHER, 1)]);
        }
    }

    /// What the store has had since it was replaced for this often is in force here: from now on it is this host's.
    pub fn is_ours(&self, replaced: u64) {
        let is_news = self.mirror().is_ours(replaced);
        if is_news {
            self.note(&[(ANOTHER, 0)]);
        }
    }

    /// To have to find it out again is no reason to stop.
    fn note(&self, numbers: &[(&str, i64)]) {
        self.disk.set_numbers(numbers).unwrap_or_else(|e| log::error!("{e:#}"));
    }

    /// The store was heard of.
    fn heard(&self) {
        lock(&self.link).heard = Some(Instant::now());
    }

    /// Says something to the others, or (`None`) takes it back.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn say<T: Serialize>(&self, key: &Key, value: Option<&T>, hold: Hold) -> Result<()> {
        let value = value.map(|v| serde_json::to_vec(v).with_context(|| format!("writing {key} as JSON"))).transpose()?;
        let changed = {
            let mut said = lock(&self.said);
            match value {
                Some(value) => said.values.insert(key.to_string(), (value.clone(), hold)) != Some((value, hold)),
                None => said.values.remove(&key.to_string()).is_some(),
            }
        };
        if changed {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Says this of all of a kind, and nothing else of that kind: keys that begin with `prefix`. `hold` says how long each is to stay.
    ///
    /// # Errors
    /// A value cannot be written as JSON.
    pub fn say_all<T: Serialize>(&self, prefix: &str, values: &BTreeMap<Key, T>, hold: impl Fn(&T) -> Hold) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for (key, value) in values {
            let json = serde_json::to_vec(value).with_context(|| format!("writing {key} as JSON"))?;
            wanted.insert(key.to_string(), (json, hold(value)));
        }
        let mut said = lock(&self.said);
        let old: Vec<String> =
            said.values.range(prefix.to_owned()..).map(|(k, _)| k).take_while(|k| k.starts_with(prefix)).cloned().collect();
        let same = old.len() == wanted.len() && wanted.iter().all(|(k, v)| said.values.get(k) == Some(v));
        if !same {
            old.iter().for_each(|key| drop(said.values.remove(key)));
            said.values.append(&mut wanted);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Everything was said once: what an agent before this one said beyond that is not true any more.
    pub fn said_all(&self) {
        lock(&self.said).whole = true;
        self.wake.notify_one();
    }

    /// Reports this host's load, once.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn report(&self, load: &vnet_common::fleet::LoadReport) -> Result<()> {
        lock(&self.said).load = Some(serde_json::to_vec(load).context("writing the load as JSON")?);
        self.wake.notify_one();
        Ok(())
    }

    /// These keys of the mirror changed. `is_read`: everything was read.
    fn tell(&self, keys: &[String], is_read: bool) {
        // What others write is nothing to answer by writing.
        let wake = self.behind.load(Ordering::SeqCst) || keys.iter().any(|key| self.is_own(key));
        if !keys.is_empty() || is_read {
            self.told.notify_one();
        }
        if wake {
            self.wake.notify_one();
        }
    }

    fn is_own(&self, key: &str) -> bool {
        let (single, below) = &self.own;
        single.iter().any(|own| own == key) || below.iter().any(|prefix| key.starts_with(prefix))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked left whole values: every change replaces what it changes at its end.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
