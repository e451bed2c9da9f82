//! The kind `TagSource`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Metadata, format};

/// Something that puts tags on endpoints, and which tags it may set and clear. Whatever it may not is refused. The operator
/// (`vnet-ctl tag`) needs no resource and may do everything; a resource named `operator` says what it may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TagSource {
    /// `vnet/v1alpha1`.
    #[schemars(extend("const" = super::API_VERSION))]
    pub api_version: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// What it is, and what it may do.
    pub spec: TagSourceSpec,
}

/// See [`TagSource`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TagSourceSpec {
    /// What it is.
    pub r#type: SourceType,
    /// The tags that it may set and clear: any one of these.
    #[schemars(length(min = 1, max = 100))]
    pub allow: Vec<Allow>,
    /// How its events become tags: each mapping whose `when` holds. ClamAV has one of its own, and needs none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub mappings: Vec<Mapping>,
    /// Where it is reached.
    #[serde(default)]
    pub input: Input,
    /// Users of this host, by name or number, who may send in its name, beside root. (By HTTP: beside those who may change things.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub users: Vec<String>,
    /// Seconds without a word from it after which it counts as lost: an alarm; its tags stay. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub lost_after_seconds: Option<u32>,
}

/// What a tag source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceType {
    /// Suricata: EVE records on a unix datagram socket, which the agent binds.
    Suricata,
    /// ClamAV: files are scanned by clamd on demand.
    Clamav,
    /// JSON by HTTP (`POST /v1/sources/NAME/events`), or as files in a directory.
    Json,
    /// `vnet-ctl tag`.
    Operator,
}

/// Tags that a source may set and clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Allow {
    /// Their names: `*` stands for any characters.
    #[schemars(schema_with = "format::tag_pattern")]
    pub tag: String,
    /// The highest severity.
    #[serde(default = "ten")]
    #[schemars(range(max = 10))]
    pub max_severity: u8,
    /// May it set them?
    #[serde(default = "yes")]
    pub set: bool,
    /// May it clear them? Only its own, always.
    #[serde(default = "yes")]
    pub clear: bool,
}

fn ten() -> u8 {
    10
}
fn yes() -> bool {
    true
}

/// How an event becomes a tag. Fields that end in `From` are CEL expressions over `event`, the JSON object that came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    /// For people; unique in its source.
    #[schemars(schema_with = "format::member_name")]
    pub name: String,
    /// A CEL expression over `event`, as `event.event_type == "alert" && event.alert.severity <= 2`.
    #[schemars(schema_with = "format::expression")]
    pub when: String,
    /// Which endpoint it is about.
    pub subject: Subject,
    /// Set or clear.
    #[serde(default)]
    pub operation: Operation,
    /// The tag's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::tag_name")]
    pub tag: Option<String>,
    /// Or where it is in the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub tag_from: Option<String>,
    /// The tag's value. Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub value_from: Option<String>,
    /// Tells tags of one name and source apart, as a user whose session it is. Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub instance_from: Option<String>,
    /// The severity, 0 to 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10))]
    pub severity: Option<u8>,
    /// Or how it follows from the event: numbers outside 0 to 10 are brought to the nearer end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub severity_from: Option<String>,
    /// The confidence in per cent. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub confidence: Option<u8>,
    /// What shows it, for people. Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub evidence_from: Option<String>,
    /// Seconds after which the tag expires. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub ttl_seconds: Option<u32>,
    /// What its expiry means.
    #[serde(default)]
    pub on_expiry: OnExpiry,
}

/// Which endpoint an event is about. Exactly one field is given; each is a CEL expression over `event`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// An address, or a list of addresses of which every endpoint that has one is tagged: `[event.src_ip, event.dest_ip]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub address_from: Option<String>,
    /// An endpoint's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub endpoint_from: Option<String>,
    /// A MAC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub mac_from: Option<String>,
    /// The value of the label that `label` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub label_value_from: Option<String>,
    /// With `labelValueFrom`: the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::label_key")]
    pub label: Option<String>,
}

/// What an event does to a tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Sets it.
    #[default]
    Set,
    /// Clears it.
    Clear,
}

/// What a tag's expiry means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExpiry {
    /// The tag is gone: whom it held is released, if nothing else holds it.
    #[default]
    Release,
    /// The tag is marked as expired, and goes on holding until it is cleared.
    Hold,
}

/// Where a source is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    /// Suricata: the datagram socket that the agent binds [default: `suricata/eve.sock` in the run directory]. ClamAV: clamd's
    /// socket [default: `/run/clamav/clamd.ctl`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::path")]
    pub socket: Option<String>,
    /// JSON: a directory whose `*.json` and `*.ndjson` files are read once, and then removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::path")]
    pub directory: Option<String>,
    /// ClamAV: guest disk directories by endpoint, which `vnet-ctl tag source scan` may scan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "format::paths_by_name")]
    pub guests: BTreeMap<String, String>,
    /// ClamAV: files larger than this, in MiB, are reported as not scanned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub max_file_mib: Option<u32>,
}
