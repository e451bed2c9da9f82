//! Keeps a connection to the store, and the mirror up to date.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::block_in_place;
use tokio::time::{sleep, sleep_until};
use vnet_common::etcd::{Client, Entry, Failure, Next, Rotation, Snapshot, Stamp};
use vnet_common::fleet::{DESIRED, ROOT, SERIAL, STATE};

use super::disk::is_kept;
use super::{ANOTHER, CLUSTER, Consumer, Fleet, lock};

/// Between two attempts to connect, at first, and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// Until everything is read again and compared: after a start that went by the disk, and between two times, some half as much again or as much
/// less. What is told of changes should leave nothing to find.
const COMPARE: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(3600));
/// Between two looks whether certificates were replaced.
const FILES: Duration = Duration::from_secs(2);
/// Between two writes to the disk; [`Mirror::settle`](super::mirror::Mirror::settle) counts in it.
const KEEP: Duration = Duration::from_secs(1);

/// Any number: hosts that lost the same member must not all come back at the same moment.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Half as much more, or less.
fn varied(time: Duration) -> Duration {
    time.mul_f64(0.5 + (random() % 1000) as f64 / 1000.0)
}

/// Why a session ended.
enum End {
    /// It broke.
    Broken(anyhow::Error),
    /// The certificates were replaced: connect anew with those.
    Replaced,
}

impl Fleet {
    /// Follows the store for ever, and tells `consumer`. Call it once, within a tokio runtime of several threads.
    pub async fn run(self: Arc<Self>, consumer: Arc<dyn Consumer>) {
        let (telling, keeping) = (Arc::clone(&self), Arc::clone(&self));
        let told = Arc::clone(&consumer);
        tokio::spawn(async move {
            loop {
                telling.told.notified().await;
                block_in_place(|| told.changed());
            }
        });
        tokio::spawn(async move { keeping.keep().await });
        let mut rotation = Rotation::new(self.settings.access.clone(), random() as usize % 64);
        let (mut wait, mut failed) = (PATIENCE.0, 0);
        loop {
            let end = match rotation.connect().await {
                Ok(client) => {
                    let began = Instant::now();
                    let end = self.session(client, consumer.as_ref()).await;
                    *lock(&self.client) = None;
                    if began.elapsed() > PATIENCE.1 {
                        (wait, failed) = (PATIENCE.0, 0);
                    }
                    end
                }
                Err(e) => End::Broken(e),
            };
            match end {
                End::Replaced => log::info!("the certificates for the store were replaced: connecting with the new ones"),
                End::Broken(e) => {
                    self.lost(&e, consumer.as_ref());
                    failed += 1;
                    // Every member once, before anybody waits for longer.
                    if failed % rotation.access().endpoints().len() == 0 {
                        wait = (wait * 2).min(PATIENCE.1);
                    }
                    sleep(varied(wait)).await;
                }
            }
        }
    }

    /// One connection, for as long as it lasts.
    async fn session(&self, mut client: Client, consumer: &dyn Consumer) -> End {
        let begins = self.mirror().revision() == 0;
        let mut full = match self.goes_on(&mut client).await {
            Ok(goes_on) => !goes_on,
            Err(e) => return End::Broken(e),
        };
        let mut compare = Instant::now() + varied(if begins && !full { COMPARE.0 } else { COMPARE.1 });
        loop {
            if full && let Err(e) = self.read_all(&mut client).await {
                return End::Broken(e);
            }
            let from = self.mirror().revision() + 1;
            let watch = match client.watch(ROOT, from).await {
                Ok(watch) => watch,
                Err(e) => return End::Broken(e),
            };
            *lock(&self.client) = Some(client.clone());
            self.found(client.endpoint(), consumer);
            tokio::select! {
                end = self.watch(watch) => match end {
                    Ok(()) => {
                        log::info!("the store has thrown away what came since revision {from}: reading everything");
                        full = true;
                    }
                    Err(e) => return End::Broken(e),
                },
                end = self.publishing(client.clone()) => return End::Broken(end),
                () = self.files_replaced(client.files()) => return End::Replaced,
                () = sleep_until(compare.into()) => {
                    compare = Instant::now() + varied(COMPARE.1);
                    full = true;
                }
            }
        }
    }

    /// Can the store be followed from what is known on? One that was restored from a backup has been elsewhere, or further, or it has come
    /// further meanwhile with other changes than those that we know.
    async fn goes_on(&self, client: &mut Client) -> Result<bool> {
        let (known, serial) = {
            let mirror = self.mirror();
            (mirror.known(), mirror.moment().serial)
        };
        if known == 0 || self.cluster.load(Ordering::Relaxed) != client.cluster() || client.revision() < known {
            return Ok(false);
        }
        let entry = client.get(SERIAL).await?;
        if entry.is_none_or(|entry| entry.modified <= known && serial != Some(entry.modified)) {
            return Ok(false);
        }
        if self.mirror().revision() == 0 {
            return self.read_rest(client, known).await;
        }
        Ok(true)
    }

    /// Reads what the disk, which has what there was in the revision `since`, does not say: what changed, what is not kept there, and the
    /// leases of what this host said. `false`: it does not have all of the rest.
    async fn read_rest(&self, client: &mut Client, since: i64) -> Result<bool> {
        let mut known = self.mirror().entries().clone();
        let not_kept = ["applied/", "health/", "global/", "moving/"].map(|kind| format!("{STATE}{kind}"));
        let (single, below) = &self.own;
        let own =
            single.iter().chain(below).filter(|own| own.starts_with(ROOT) && !not_kept.iter().any(|all| own.starts_with(all)));
        for prefix in own.chain(&not_kept) {
            known.retain(|key, _| !key.starts_with(prefix));
            known.extend(client.read(prefix).await?.entries);
        }
        let Some(snapshot) = client.read_since(ROOT, since, known).await? else { return Ok(false) };
        log::info!("the store was known up to revision {since}; what changed since:");
        self.take_all(client, snapshot)?;
        Ok(true)
    }

    /// Reads everything.
    async fn read_all(&self, client: &mut Client) -> Result<()> {
        let snapshot = client.read(ROOT).await?;
        self.take_all(client, snapshot)
    }

    /// All keys, as they were at one moment.
    fn take_all(&self, client: &Client, snapshot: Snapshot) -> Result<()> {
        let changed = {
            let mut mirror = self.mirror();
            let before = self.cluster.load(Ordering::Relaxed);
            let is_other = before != 0 && before != client.cluster() || mirror.is_set_back(&snapshot);
            // One that is empty is rather a new one than the wish that there be nothing: neither policies nor peers are given up for it.
            if is_other && !snapshot.entries.contains_key(SERIAL) && mirror.below(DESIRED).next().is_some() {
                bail!("the store has never been set up (`vnet-ctl store init`): this host keeps what it has");
            }
            log::info!("read {} keys of the store at revision {}", snapshot.entries.len(), snapshot.revision);
            self.cluster.store(client.cluster(), Ordering::Relaxed);
            if is_other {
                log::warn!(
                    "this is another store than before, or it was set back: what other hosts said stays until they say it again"
                );
                self.note(&[(CLUSTER, client.cluster().cast_signed()), (ANOTHER, 1)]);
                mirror.replace_by_another(snapshot, self.host())
            } else {
                if before != client.cluster() {
                    self.note(&[(CLUSTER, client.cluster().cast_signed())]);
                }
                mirror.replace(snapshot)
            }
        };
        self.tell(&changed, true);
        Ok(())
    }

    /// Follows until everything has to be read again.
    async fn watch(&self, mut watch: vnet_common::etcd::Watch) -> Result<()> {
        loop {
            let Next::Changes(changes, revision) = watch.next().await? else { return Ok(()) };
            let changed = self.mirror().apply(changes, revision);
            self.heard();
            self.tell(&changed, false);
        }
    }

    /// Waits until the certificates are not those that a connection was made with.
    async fn files_replaced(&self, before: Option<Stamp>) {
        loop {
            sleep(FILES).await;
            let now = self.settings.access.stamp();
            // Half-way through a replacement a file may not be there.
            if now.is_some() && now != before {
                return;
            }
        }
    }

    fn found(&self, endpoint: &str, consumer: &dyn Consumer) {
        let link = {
            let mut link = lock(&self.link);
            let before = link.connected.replace(endpoint.to_owned());
            (link.heard, link.trouble) = (Some(Instant::now()), None);
            if before.as_deref() == Some(endpoint) {
                return;
            }
            link.clone()
        };
        log::info!("following the store at {endpoint}");
        block_in_place(|| consumer.link(&link));
    }

    fn lost(&self, why: &anyhow::Error, consumer: &dyn Consumer) {
        let hint = match Failure::in_error(why) {
            Failure::Denied => ". Its certificate may not do this: see `vnet-ctl store init` and `vnet-ctl host add`",
            Failure::Later | Failure::Refused | Failure::Compacted => "",
        };
        let trouble = format!("{why:#}{hint}");
        let (link, news) = {
            let mut link = lock(&self.link);
            let was_there = link.connected.take().is_some();
            if was_there {
                link.silent_since = link.heard.unwrap_or_else(Instant::now).max(link.silent_since);
            }
            let news = was_there || link.trouble.is_none();
            link.trouble = Some(trouble.clone());
            (link.clone(), news)
        };
        log::log!(if news { log::Level::Warn } else { log::Level::Debug }, "the store: {trouble}");
        if news {
            block_in_place(|| consumer.link(&link));
        }
    }

    /// Writes to the disk what is known, as it changes.
    async fn keep(&self) {
        loop {
            sleep(KEEP).await;
            if lock(&self.link).connected.is_some() {
                let forgotten = self.mirror().settle(self.settings.linger);
                self.tell(&forgotten, false);
            }
            let (changes, revision): (BTreeMap<String, Option<(Entry, bool)>>, i64) = {
                let mut mirror = self.mirror();
                let (keys, revision) = mirror.take_unkept();
                let kept = keys.into_iter().filter(|key| is_kept(key));
                let kept = kept.map(|key| {
                    let entry = mirror.get(&key).map(|entry| (entry.clone(), mirror.inherits(&key)));
                    (key, entry)
                });
                (kept.collect(), revision)
            };
            if changes.is_empty() {
                continue;
            }
            if let Err(e) = block_in_place(|| self.disk.keep(&changes, revision)) {
                log::error!("{e:#}; trying again");
                self.mirror().keep_later(changes.into_keys());
            }
        }
    }

    /// Reads what hosts report of their load: the elected one does.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn loads(&self) -> Result<BTreeMap<String, Entry>> {
        let client = lock(&self.client).clone();
        let mut client = client.context("the store is not connected")?;
        Ok(client.read(vnet_common::fleet::LOAD).await?.entries)
    }
}
