//! What is kept of each endpoint over restarts, and the two sides that the engine works between: the datapath that
//! enforces, and the journal that remembers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use vnet_common::api::AuditRecord;

use super::clock::Mark;
use super::tags::{TagKey, TagState, TagWrite};

/// Puts holds in force. Called under the engine's lock, from any thread: it must be short, and must neither call the
/// engine nor wait for someone who does.
pub trait Enforce: Send + Sync {
    /// The endpoint has the rules of this quarantine group from now on, and its row says `moves`. Gives whether there is a device
    /// to do it on: where there is none, the row of the one that comes says so from the beginning.
    ///
    /// # Errors
    /// It could not be done: the endpoint is as open as before. It is tried again every second.
    fn hold(&self, endpoint: &str, group: &str, moves: u32) -> Result<bool>;

    /// The endpoint has the rules of its own group again, and its row says `moves`.
    ///
    /// # Errors
    /// It could not be done: the endpoint is held as before. It is tried again every second.
    fn release(&self, endpoint: &str, moves: u32) -> Result<bool>;

    /// What the datapath says of endpoints that it has rows of.
    ///
    /// # Errors
    /// It cannot be read.
    fn pinned(&self) -> Result<Vec<Pinned>>;
}

/// What the datapath says of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The endpoint.
    pub endpoint: String,
    /// The group whose rules it has.
    pub group: String,
    /// It is held in quarantine.
    pub quarantined: bool,
    /// How often it had been moved.
    pub moves: u32,
}

/// Remembers over restarts. One call is one atomic change.
pub trait Journal: Send + Sync {
    /// Everything but the audit log.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn load(&self) -> Result<Saved>;

    /// Writes all of it, or nothing.
    ///
    /// # Errors
    /// Nothing was written.
    fn commit(&self, batch: &Batch) -> Result<()>;

    /// The newest `limit` records of the audit log, of one endpoint or all; the newest last.
    ///
    /// # Errors
    /// It cannot be read.
    fn audit(&self, endpoint: Option<&str>, limit: usize) -> Result<Vec<AuditRecord>>;

    /// The number of a security group: never 0, never given to another name, the same for ever.
    ///
    /// # Errors
    /// It is a new one that cannot be written.
    fn group_number(&self, name: &str) -> Result<u32>;
}

/// What a journal gives back.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// When it was written last.
    pub mark: Option<Mark>,
    /// By endpoint.
    pub members: BTreeMap<String, Member>,
    /// Every tag.
    pub tags: Vec<(TagKey, TagState)>,
    /// See [`Common`].
    pub common: Common,
    /// The number of the last record of the audit log; 0: it is empty.
    pub last_audit: u64,
}

/// What is not about one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Common {
    /// By group: when endpoints of it were moved of late.
    pub windows: BTreeMap<String, Vec<u64>>,
    /// Sources that are lost, and since when.
    pub lost: BTreeMap<String, u64>,
}

/// What is to be written together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// When this is.
    pub mark: Mark,
    /// Rows by endpoint; `None`: there is nothing to remember of it.
    pub members: BTreeMap<String, Option<Member>>,
    /// Tags.
    pub tags: Vec<TagWrite>,
    /// If it changed.
    pub common: Option<Common>,
    /// New records of the audit log, in order; their numbers follow the last one's.
    pub audit: Vec<AuditRecord>,
    /// Endpoints, with their moves, of which the datapath learns when this is written: those that are let go, or into a group
    /// for a transfer of worse priority.
    pub then: Vec<(String, u32)>,
}

impl Batch {
    /// Is there nothing to write but the time?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.tags.is_empty() && self.common.is_none() && self.audit.is_empty()
    }
}

/// An endpoint's state. All times are [`super::clock::Now::at`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// How often it was moved.
    pub moves: u32,
    /// The group that it belongs to, if nobody holds it; empty: not known.
    pub base: String,
    /// Who holds it.
    pub held: Option<Hold>,
    /// It was let go, and nothing was known of its row since: an intent, which a restart completes. A later hold has more moves.
    pub opening: bool,
    /// It is never moved, and why.
    pub never: Option<String>,
    /// It was let go, or found held: tags up to this order do not move it.
    pub waived: Option<u64>,
    /// Moves that an operator does not want, by transfer: not by tags up to this order.
    pub dismissed: BTreeMap<String, u64>,
    /// A move that waits for approval.
    pub waiting: Option<Waiting>,
    /// Transfers that would move it if they did more than to say so.
    pub would: BTreeSet<String>,
    /// When transfers with flap damping moved it.
    pub history: BTreeMap<String, Vec<u64>>,
    /// Sources that had more tags for it than were kept, while it was held.
    pub incomplete: BTreeSet<String>,
    /// Since when there is no such endpoint; `None`: there is.
    pub absent: Option<u64>,
}

/// An endpoint that is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hold {
    /// The quarantine group.
    pub group: String,
    /// The group that it came from, and whose transfer this is.
    pub from: String,
    /// The transfer; empty: see `by`.
    pub transfer: String,
    /// Who holds it.
    pub by: Holder,
    /// The transfer's priority.
    pub priority: u16,
    /// When the transfer was to move it, as it was then.
    pub when: String,
    /// When to let go, as it was then; `None`: when `when` holds no more.
    pub release_when: Option<String>,
    /// Since when it is held, by whatever group.
    pub since: u64,
    /// The same in milliseconds since 1970.
    pub since_wall: u64,
    /// It is not let go before.
    pub not_before: u64,
    /// It is let go at the latest.
    pub until: Option<u64>,
    /// Why, for people.
    pub reason: String,
    /// Sources whose tags it had then.
    pub sources: BTreeSet<String>,
}

/// Who holds an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holder {
    /// A transfer: until its criterion says otherwise.
    #[default]
    Transfer,
    /// An operator: until an operator lets it go.
    Operator,
    /// The datapath had it when the agent started, and nobody knows why: until tags that were set since make a transfer to that
    /// group take over, or an operator lets it go.
    Recovered,
}

/// A move that waits for approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// The transfer.
    pub transfer: String,
    /// The quarantine group.
    pub to: String,
    /// What for.
    pub because: Because,
    /// Why it would be moved.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub since_wall: u64,
}

/// What a move waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// Its mode asks for approval.
    #[default]
    Mode,
    /// Enough endpoints of its group were moved of late.
    Brake,
    /// It is on the list of those that are never moved.
    NeverList,
}

impl Because {
    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Brake => "brake",
            Self::NeverList => "never-list",
        }
    }
}
