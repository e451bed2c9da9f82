//! What a source says about a tag, and who takes it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::resource::{OnExpiry, Operation, TagSource};

/// The subject of changes by which `vnet-ctl tag source test` measures. No endpoint can have this name.
pub const TRIAL_SUBJECT: &str = "vnet/trial";
/// The tag of such changes.
pub const TRIAL_TAG: &str = "vnet.trial";

/// Bytes of a tag's value.
pub(super) const VALUE: usize = 1 << 10;
/// Bytes of its instance.
pub(super) const INSTANCE: usize = 256;
/// Bytes of its evidence: as much as the tag keeps.
pub(super) const EVIDENCE: usize = 512;

/// Who says something about a tag: the name of a [`TagSource`], never anything that an event contains.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(Arc<str>);

impl SourceName {
    /// The name of this source.
    #[must_use]
    pub fn of(source: &TagSource) -> Self {
        Self(source.metadata.name.as_str().into())
    }

    /// `vnet-ctl tag`.
    #[must_use]
    pub fn operator() -> Self {
        Self("operator".into())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag of one endpoint is to be set or cleared. Tags are told apart by subject, source, name and instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagChange {
    /// Who says so.
    pub source: SourceName,
    /// The endpoint's name; or [`TRIAL_SUBJECT`].
    pub subject: String,
    /// Set or clear.
    pub operation: Operation,
    /// The tag's name: that of a tag, as resources have them.
    pub name: String,
    /// Its value: at most 1 KiB.
    pub value: String,
    /// Its instance: at most 256 bytes.
    pub instance: String,
    /// 0 to 10.
    pub severity: u8,
    /// In per cent.
    pub confidence: u8,
    /// What shows it: at most 512 bytes.
    pub evidence: String,
    /// Until it expires; `None`: never.
    pub ttl: Option<Duration>,
    /// What its expiry means.
    pub on_expiry: OnExpiry,
    /// When the event that says so came.
    pub received_at: Instant,
}

impl TagChange {
    /// It only measures: nothing may come of it.
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.subject == TRIAL_SUBJECT
    }
}

/// What became of a change that the source may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was made: the tag is set, or cleared.
    Made,
    /// There was nothing to clear.
    Absent,
    /// There are too many tags that are more severe.
    NoRoom,
}

/// A change was not made: why, as a sentence with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Takes what sources say: the quarantine engine.
pub trait Sink: Send + Sync + 'static {
    /// Makes a change, before it returns. A change that [is a trial](TagChange::is_trial) goes the same way up to where it would
    /// have an effect, and counts as made.
    ///
    /// # Errors
    /// The source may not do this, or it cannot be done.
    fn change(&self, change: TagChange) -> Result<Applied, Refused>;

    /// Tags of a source that were not taken, or fell out, because there were too many.
    fn without_room(&self, source: &SourceName) -> u64;

    /// A source has not been heard of for longer than it may, or is back.
    fn lost(&self, source: &SourceName, lost: bool);
}
