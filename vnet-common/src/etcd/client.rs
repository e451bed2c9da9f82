//! Reading, watching and writing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etcd_client::{
    Compare, CompareOp, ConnectOptions, EventType, GetOptions, KvClient, PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use tokio::time::timeout;

use super::Stamp;
use super::error::Told;

/// Until a member that takes the connection, and says nothing, is given up: longer than either limit of [`Access`](super::Access).
const OPEN: Duration = Duration::from_secs(8);
/// Keys that are read in one answer: a thousand endpoints have some 400 KB.
const PAGE: i64 = 1000;
/// What one answer may have; etcd's own limit of a request is 1.5 MiB.
const MESSAGE: usize = 64 << 20;
/// What one transaction may have: etcd's `--max-txn-ops` unless it was set otherwise.
const OPERATIONS: usize = 128;
/// And its size, below `--max-request-bytes`.
const BYTES: usize = 1 << 20;

/// A connection to one member.
#[derive(Clone)]
pub struct Client {
    pub(super) inner: etcd_client::Client,
    kv: KvClient,
    endpoint: String,
    cluster: u64,
    revision: i64,
    files: Option<Stamp>,
}

/// A key's value, and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// The store's revision in which the key came.
    pub created: i64,
    /// The store's revision of this value.
    pub modified: i64,
    /// The lease that it is gone with; 0: none.
    pub lease: i64,
}

/// All keys of a prefix, as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision.
    pub revision: i64,
    /// What there was.
    pub entries: BTreeMap<String, Entry>,
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// The version of its etcd.
    pub version: String,
    /// What its database takes on its disk, in bytes.
    pub bytes: u64,
    /// It leads the others.
    pub leads: bool,
    /// The store's revision up to which it has come.
    pub revision: i64,
    /// What it complains of.
    pub alarms: Vec<String>,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its value; `None`: it is gone.
    pub entry: Option<Entry>,
    /// The store's revision.
    pub revision: i64,
}

/// What a watch tells.
#[derive(Debug)]
pub enum Next {
    /// These happened, in this order; none: everything up to this revision was told.
    Changes(Vec<Change>, i64),
    /// What happened since was thrown away: everything has to be read again.
    Compacted,
}

/// Something to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A key gets a value, with a lease or (0) without.
    Put(String, Vec<u8>, i64),
    /// A key goes.
    Delete(String),
    /// All keys that begin like this go.
    DeleteBelow(String),
}

impl Write {
    /// The key, or how the keys begin.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, ..) | Self::Delete(key) | Self::DeleteBelow(key) => key,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Put(key, value, _) => key.len() + value.len() + 32,
            Self::Delete(key) | Self::DeleteBelow(key) => key.len() + 32,
        }
    }

    fn op(&self) -> TxnOp {
        match self {
            Self::Put(key, value, lease) => {
                TxnOp::put(key.as_str(), value.as_slice(), Some(PutOptions::new().with_lease(*lease)))
            }
            Self::Delete(key) => TxnOp::delete(key.as_str(), None),
            Self::DeleteBelow(prefix) => TxnOp::delete(prefix.as_str(), Some(etcd_client::DeleteOptions::new().with_prefix())),
        }
    }
}

/// What must be true of a key for a write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key; one that ends with `/` stands for all keys that begin so.
    pub key: String,
    /// The revision of its value; 0: it is not there, or none of them is.
    pub revision: i64,
}

/// What became of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was done, in this revision.
    Done(i64),
    /// Nothing was done: somebody else wrote meanwhile.
    Conflict,
}

impl Client {
    pub(super) async fn open(url: &str, endpoint: &str, options: ConnectOptions) -> Result<Self> {
        // The library's limits do not count a TLS handshake, and a member that is stopped, or waits for the others, takes connections.
        let opened = timeout(OPEN, Self::open_slowly(url, endpoint, options)).await;
        opened.unwrap_or_else(|_| bail!("connecting to the store at {endpoint}: no answer within {} s", OPEN.as_secs()))
    }

    async fn open_slowly(url: &str, endpoint: &str, options: ConnectOptions) -> Result<Self> {
        let inner = etcd_client::Client::connect([url], Some(options)).await.map_err(Told::from);
        let inner = inner.with_context(|| format!("connecting to the store at {endpoint}"))?;
        let kv = inner.kv_client().max_decoding_message_size(MESSAGE);
        let mut client = Self { inner, kv, endpoint: endpoint.to_owned(), cluster: 0, revision: 0, files: None };
        // The library connects when it is first asked for something.
        let asked = client.kv.get(crate::fleet::DESIRED, Some(GetOptions::new().with_prefix().with_count_only())).await;
        let answer = asked.map_err(Told::from).with_context(|| format!("connecting to the store at {endpoint}"))?;
        if let Some(header) = answer.header() {
            (client.cluster, client.revision) = (header.cluster_id(), header.revision());
        }
        Ok(client)
    }

    pub(super) fn with_files(self, files: Option<Stamp>) -> Self {
        Self { files, ..self }
    }

    /// The files that it was connected with; those that [`Access::stamp`](super::Access::stamp) finds may be others by now.
    #[must_use]
    pub fn files(&self) -> Option<Stamp> {
        self.files
    }

    /// The member, as `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The number of the store that the member belongs to.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// The store's revision when this was connected.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// What the member says of itself.
    ///
    /// # Errors
    /// It does not answer, or we may not ask this.
    pub async fn member(&mut self) -> Result<Member> {
        let answer = self.inner.status().await.map_err(Told::from);
        let answer = answer.with_context(|| format!("asking the store at {} how it is", self.endpoint))?;
        let header = answer.header();
        Ok(Member {
            version: answer.version().to_owned(),
            bytes: u64::try_from(answer.db_size()).unwrap_or(0),
            leads: header.is_some_and(|h| h.member_id() == answer.leader()),
            revision: header.map_or(0, |h| h.revision()),
            alarms: answer.errors().to_vec(),
        })
    }

    /// Every key that begins with `prefix`, at one moment.
    ///
    /// # Errors
    /// The member does not answer, or we may not read this.
    pub async fn read(&mut self, prefix: &str) -> Result<Snapshot> {
        self.pages(prefix, 0, |options| options.with_limit(PAGE)).await
    }

    /// The same, if `known` has what there was in the revision `since`, and maybe more: values come only of what was written after that, and
    /// leases. `None`: it has not.
    ///
    /// # Errors
    /// The member does not answer, or we may not read this.
    pub async fn read_since(&mut self, prefix: &str, since: i64, mut known: BTreeMap<String, Entry>) -> Result<Option<Snapshot>> {
        let changed = self.pages(prefix, 0, |options| options.with_limit(PAGE).with_min_mod_revision(since + 1)).await?;
        let revision = changed.revision;
        known.extend(changed.entries);
        // If nothing went, that is all.
        if self.count(prefix, revision).await? == known.len() {
            return Ok(Some(Snapshot { revision, entries: known }));
        }
        let mut all = self.pages(prefix, revision, |options| options.with_limit(PAGE * 10).with_keys_only()).await?;
        for (key, entry) in &mut all.entries {
            match known.remove(key).filter(|there| (there.created, there.modified) == (entry.created, entry.modified)) {
                Some(there) => *entry = there,
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    async fn count(&mut self, prefix: &str, revision: i64) -> Result<usize> {
        let options = GetOptions::new().with_prefix().with_revision(revision).with_count_only();
        let answer = self.kv.get(prefix, Some(options)).await.map_err(Told::from);
        let answer = answer.with_context(|| format!("counting {prefix} at the store at {}", self.endpoint))?;
        Ok(usize::try_from(answer.count()).unwrap_or(0))
    }

    /// All keys of a prefix in a revision; 0: the newest.
    async fn pages(&mut self, prefix: &str, revision: i64, what: impl Fn(GetOptions) -> GetOptions) -> Result<Snapshot> {
        let mut snapshot = Snapshot { revision, ..Snapshot::default() };
        let end = after(prefix);
        let mut from = prefix.as_bytes().to_vec();
        loop {
            let options = what(GetOptions::new().with_range(end.clone()).with_revision(snapshot.revision));
            let answer = self.kv.get(from, Some(options)).await.map_err(Told::from);
            let answer = answer.with_context(|| format!("reading {prefix} from the store at {}", self.endpoint))?;
            if snapshot.revision == 0 {
                snapshot.revision = answer.header().map_or(0, |h| h.revision());
            }
            from = answer.kvs().last().map(|kv| [kv.key(), &[0]].concat()).unwrap_or_default();
            for kv in answer.kvs() {
                let Ok(key) = kv.key_str() else { continue };
                snapshot.entries.insert(key.to_owned(), entry(kv));
            }
            if !answer.more() || answer.kvs().is_empty() {
                return Ok(snapshot);
            }
        }
    }

    /// One key.
    ///
    /// # Errors
    /// The member does not answer, or we may not read this.
    pub async fn get(&mut self, key: &str) -> Result<Option<Entry>> {
        let answer = self.kv.get(key, None).await.map_err(Told::from);
        let answer = answer.with_context(|| format!("reading {key} from the store at {}", self.endpoint))?;
        Ok(answer.kvs().first().map(entry))
    }

    /// What becomes of the keys that begin with `prefix`, from the revision `from` on.
    ///
    /// # Errors
    /// The member does not answer, or we may not read this.
    pub async fn watch(&self, prefix: &str, from: i64) -> Result<Watch> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        let mut watch = self.inner.watch_client().max_decoding_message_size(MESSAGE);
        let stream = watch.watch(prefix, Some(options)).await.map_err(Told::from);
        let stream = stream.with_context(|| format!("watching {prefix} at the store at {}", self.endpoint))?;
        Ok(Watch { stream, endpoint: self.endpoint.clone() })
    }

    /// Writes, in as few transactions as it takes; a failure leaves those done that came before. Gives the last revision.
    ///
    /// # Errors
    /// The member does not answer, or we may not write this.
    pub async fn write(&mut self, writes: &[Write]) -> Result<i64> {
        let mut revision = 0;
        for batch in batches(writes, OPERATIONS) {
            match self.commit(&[], batch).await? {
                Outcome::Done(at) => revision = at,
                Outcome::Conflict => bail!("the store at {} refused a write without conditions", self.endpoint),
            }
        }
        Ok(revision)
    }

    /// Writes all of this, if all conditions are true; else nothing.
    ///
    /// # Errors
    /// The member does not answer, it is more than a transaction may have, or we may not write this. Whether it was done is not known
    /// if the connection broke.
    pub async fn commit(&mut self, conditions: &[Condition], writes: &[Write]) -> Result<Outcome> {
        let compare = |c: &Condition| {
            let compare = Compare::mod_revision(c.key.as_str(), CompareOp::Equal, c.revision);
            if c.key.ends_with('/') { compare.with_range(after(&c.key)) } else { compare }
        };
        let txn = Txn::new().when(conditions.iter().map(compare).collect::<Vec<_>>());
        let txn = txn.and_then(writes.iter().map(Write::op).collect::<Vec<_>>());
        let answer = self.kv.txn(txn).await.map_err(Told::from);
        let answer = answer.with_context(|| format!("writing to the store at {}", self.endpoint))?;
        Ok(match answer.succeeded() {
            true => Outcome::Done(answer.header().map_or(0, |h| h.revision())),
            false => Outcome::Conflict,
        })
    }
}

fn entry(kv: &etcd_client::KeyValue) -> Entry {
    Entry { value: kv.value().to_vec(), created: kv.create_revision(), modified: kv.mod_revision(), lease: kv.lease() }
}

/// The first key after all that begin with `prefix`, which ends with a character that has a successor.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// As few parts as a transaction's size allows, if it has `most` writes.
#[must_use]
pub fn batches(writes: &[Write], most: usize) -> Vec<&[Write]> {
    let (mut batches, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, write) in writes.iter().enumerate() {
        if i > start && (i - start == most || bytes + write.size() > BYTES) {
            batches.push(&writes[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += write.size();
    }
    if start < writes.len() {
        batches.push(&writes[start..]);
    }
    batches
}

/// What happens, as it happens.
#[derive(Debug)]
pub struct Watch {
    stream: WatchStream,
    endpoint: String,
}

impl Watch {
    /// Waits for what happens next.
    ///
    /// # Errors
    /// The member, or its leader, is gone, or we may not read this.
    pub async fn next(&mut self) -> Result<Next> {
        loop {
            let message = self.stream.message().await.map_err(Told::from);
            let message = message.with_context(|| format!("watching the store at {}", self.endpoint))?;
            let Some(message) = message else { bail!("the store at {} ended the watch", self.endpoint) };
            if message.compact_revision() != 0 {
                return Ok(Next::Compacted);
            }
            if message.canceled() {
                bail!("the store at {} ended the watch: {}", self.endpoint, message.cancel_reason());
            }
            let revision = message.header().map_or(0, |h| h.revision());
            let changes: Vec<Change> = message.events().iter().filter_map(change).collect();
            if !changes.is_empty() || !message.created() {
                return Ok(Next::Changes(changes, revision));
            }
        }
    }
}

fn change(event: &etcd_client::Event) -> Option<Change> {
    let kv = event.kv()?;
    let entry = match event.event_type() {
        EventType::Put => Some(entry(kv)),
        EventType::Delete => None,
    };
    Some(Change { key: kv.key_str().ok()?.to_owned(), entry, revision: kv.mod_revision() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_split_where_a_transaction_ends() {
        let put = |n: usize| Write::Put("k".into(), vec![0; n], 0);
        let lengths = |writes: &[Write]| batches(writes, OPERATIONS).iter().map(|b| b.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&vec![put(1); 300]), [128, 128, 44]);
        assert_eq!(lengths(&[put(BYTES / 2), put(BYTES / 2), put(1)]), [1, 2]);
        assert_eq!(lengths(&[put(2 * BYTES), put(1)]), [1, 1]);
    }

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(after("/vnet/v1/"), b"/vnet/v10");
    }
}
