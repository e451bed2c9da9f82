//! Tags, their sources, and who is held in quarantine.

use serde::{Deserialize, Serialize};

/// A tag on an endpoint. Tags are told apart by subject, source, name and instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// The endpoint.
    pub subject: String,
    /// Its name, as `ids.malware`.
    pub name: String,
    /// Its value; may be empty.
    #[serde(default)]
    pub value: String,
    /// Tells tags of one name and source apart; mostly empty.
    #[serde(default)]
    pub instance: String,
    /// 0 to 10.
    #[serde(default)]
    pub severity: u8,
    /// In per cent.
    #[serde(default)]
    pub confidence: u8,
    /// The tag source that set it; `operator` for `vnet-ctl tag`.
    #[serde(default)]
    pub source: String,
    /// What shows it.
    #[serde(default)]
    pub evidence: String,
    /// When it was set last, in milliseconds since 1970.
    #[serde(default)]
    pub set_at_ms: u64,
    /// When it expires, in milliseconds since 1970; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// It goes on holding when it has expired.
    #[serde(default)]
    pub hold_on_expiry: bool,
    /// It has expired, and holds on.
    #[serde(default)]
    pub expired: bool,
}

/// An operator's tag (`POST /v1/tags`), or the removal of tags (`POST /v1/tags/remove`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagRequest {
    /// The endpoint.
    pub subject: String,
    /// The tag's name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
    /// Its instance.
    #[serde(default)]
    pub instance: String,
    /// 0 to 10.
    #[serde(default)]
    pub severity: u8,
    /// In per cent; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<u8>,
    /// What shows it.
    #[serde(default)]
    pub evidence: String,
    /// Seconds until it expires; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// It goes on holding when it has expired.
    #[serde(default)]
    pub hold_on_expiry: bool,
    /// Removal: of this source's; absent: the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// One tag source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// `suricata`, `clamav`, `json` or `operator`.
    pub kind: String,
    /// `ok`, `silent` (nothing came yet), `lost`, or `failed: …`.
    pub state: String,
    /// Where it is reached.
    pub input: String,
    /// Events that came.
    pub events: u64,
    /// Events that could not be read, or whose mapping failed.
    pub malformed: u64,
    /// Events from senders, or about tags, that it may not.
    pub refused: u64,
    /// Changes of tags that a newer one of the same tag overtook, because too many came at once; the newest state counts. And tags
    /// that were not taken, or fell out, because there were too many that are more severe.
    pub dropped: u64,
    /// Mapped events about no endpoint that is known here.
    #[serde(default)]
    pub unmatched: u64,
    /// Tags set and cleared.
    pub tags: u64,
    /// The last fault, if any.
    pub last_error: Option<String>,
    /// When the last event came, in milliseconds since 1970.
    pub last_event_ms: Option<u64>,
}

/// What became of events that were posted to a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestResponse {
    /// Events read.
    pub events: u64,
    /// Tags set or cleared.
    pub tags: u64,
    /// What was wrong with others, with their number from 1 on; at most 100.
    pub faults: Vec<String>,
}

/// What ClamAV is to scan (`POST /v1/sources/{name}/scan`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanRequest {
    /// The endpoint that the result is about.
    pub endpoint: String,
    /// Files or directories, as the agent sees them; none: the guest's directory in the source's resource.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanReport {
    /// Files scanned.
    pub scanned: u64,
    /// Bytes scanned.
    pub bytes: u64,
    /// Files with what was found in them.
    pub infected: Vec<(String, String)>,
    /// Files that could not be scanned, with the reason: then nothing is said to be clean.
    pub failed: Vec<(String, String)>,
    /// The tags set.
    pub tags: Vec<Tag>,
    /// The tags cleared.
    #[serde(default)]
    pub cleared: Vec<Tag>,
}

/// How long a source's way takes (`POST /v1/sources/{name}/test`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTest {
    /// Trials made.
    pub trials: u32,
    /// From the sending of an event to its tag, in microseconds: each trial.
    pub latencies_us: Vec<u64>,
    /// What was noticed about the source's settings, each a sentence with what to do.
    pub notes: Vec<String>,
}

/// One security group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Its number in the datapath.
    pub id: u32,
    /// It is a quarantine group.
    pub quarantine: bool,
    /// No resource names it: the built-in `default`.
    pub built_in: bool,
    /// The endpoints in it now.
    pub endpoints: Vec<String>,
    /// Rules of its own.
    pub rules: u32,
    /// What becomes of flows to, and from, its endpoints that no rule matches.
    pub defaults: [String; 2],
    /// Its transfers.
    pub transfers: Vec<String>,
}

/// Who is held, and who would be (`GET /v1/quarantine`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineStatus {
    /// Endpoints in quarantine.
    pub held: Vec<Held>,
    /// Moves that wait for approval.
    pub pending: Vec<Pending>,
    /// Endpoints that are never moved.
    pub never: Vec<String>,
    /// Things an operator should look at: each a sentence with what to do.
    pub alarms: Vec<String>,
}

/// An endpoint in quarantine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The endpoint.
    pub endpoint: String,
    /// The quarantine group.
    pub group: String,
    /// The group it came from, and goes back to.
    pub from: String,
    /// The transfer that moved it; empty: an operator.
    pub transfer: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Not released before, in milliseconds since 1970.
    pub not_before_ms: u64,
    /// Released at the latest, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// Why.
    pub reason: String,
    /// The tags that hold it, as `source/name=value`.
    pub tags: Vec<String>,
    /// Why it is not released yet.
    pub waiting_for: String,
    /// `enforced`; `waiting` where its device is not there.
    pub state: String,
}

/// A move that waits for approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The endpoint.
    pub endpoint: String,
    /// The group that it would be moved into.
    pub to: String,
    /// The transfer.
    pub transfer: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Why it waits: `mode`, `brake` or `never-list`.
    pub because: String,
    /// Why it would be moved.
    pub reason: String,
}

/// What an operator does about an endpoint (`POST /v1/quarantine/{endpoint}/{verb}`: `approve`, `dismiss`, `hold`, `release`, `never`, `unnever`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineRequest {
    /// `hold`: the quarantine group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Why; `release` (break-glass), `hold` and `never` must have one.
    #[serde(default)]
    pub reason: String,
}

/// One line of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its number, from 1, without gaps.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The endpoint.
    pub endpoint: String,
    /// `move`, `release`, `would-move`, `pending`, `approve`, `dismiss`, `hold`, `break-glass`, `never`, `unnever`, `tag-set`, `tag-clear`,
    /// `tag-expire`, `tag-refused`, `recover`, `error`.
    pub action: String,
    /// The group before, if it matters.
    #[serde(default)]
    pub from: String,
    /// The group afterwards, if it matters.
    #[serde(default)]
    pub to: String,
    /// The transfer, if one did it.
    #[serde(default)]
    pub transfer: String,
    /// Who: `transfer`, `source NAME`, `user NAME (UID)`, `agent`.
    pub who: String,
    /// Why.
    pub reason: String,
    /// The tags at the time, as `source/name=value`, and their evidence.
    #[serde(default)]
    pub evidence: Vec<String>,
}
