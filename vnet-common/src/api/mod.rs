//! Requests and responses of the agent's API: HTTP/JSON on a unix socket.
//!
//! | method and path | body | gives |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `POST /v1/apply` | [`ApplyRequest`] | [`ApplyResponse`], or [`ErrorResponse`] with every fault of the files |
//! | `GET /v1/resources/{kind}` (`all`: every kind) | | a list of resources as JSON |
//! | `GET /v1/resources/{kind}/{name}` | | one resource |
//! | `DELETE /v1/resources/{kind}/{name}` | | [`ApplyResponse`] |
//! | `POST /v1/delete` | [`DeleteRequest`] | [`ApplyResponse`]; 404 names all that are not there |
//! | `GET /v1/endpoints` | | a list of [`EndpointStatus`] |
//! | `GET /v1/lb` | | a list of [`LbStatus`] |
//! | `GET /v1/lb/{name}` | | [`LbStatus`] |
//! | `POST /v1/lb/{name}/members/{member}` | [`MemberChange`] | [`LbStatus`] |
//! | `GET /v1/flows?lb=…&limit=…` | | [`FlowList`] |
//! | `POST /v1/detach` | | [`DetachResponse`]; the agent ends after it |
//! | `POST /v1/endpoints/attach` | [`AttachRequest`] | [`EndpointStatus`], once its state is in force on the device |
//! | `GET /v1/endpoints/{name}/flows` | | [`moving::FlowExport`] |
//! | `POST /v1/endpoints/{name}/flows` | [`moving::FlowExport`], of another host | [`moving::FlowImport`] |
//! | `GET /v1/groups` | | a list of [`GroupStatus`] |
//! | `GET /v1/rules?endpoint=…` | | a list of [`RuleStatus`], in the order in which they are asked: all, or those about one endpoint |
//! | `GET /v1/tags?subject=…` | | a list of [`Tag`] |
//! | `POST /v1/tags`, `POST /v1/tags/remove` | [`TagRequest`] | a list of [`Tag`]: those set, or removed |
//! | `GET /v1/sources` | | a list of [`SourceStatus`] |
//! | `POST /v1/sources/{name}/events` | JSON: an object, a list, or one object a line | [`IngestResponse`] |
//! | `POST /v1/sources/{name}/scan` | [`ScanRequest`] | [`ScanReport`] |
//! | `POST /v1/sources/{name}/test?config=…` (the source's own settings) | | [`SourceTest`] |
//! | `GET /v1/quarantine` | | [`QuarantineStatus`] |
//! | `POST /v1/quarantine/{endpoint}/{verb}` | [`QuarantineRequest`] | [`QuarantineStatus`] |
//! | `GET /v1/audit?endpoint=…&limit=…` | | a list of [`AuditRecord`], the newest last |
//! | `GET /v1/events?follow=…&since=…&endpoint=…&kind=…&reason=…` | | [`Event`]s, one a line |
//! | `GET /v1/endpoint-flows?endpoint=…&limit=…` | | [`EndpointFlowList`] |
//! | `POST /v1/explain` | [`ExplainRequest`] | [`Explanation`] |
//! | `GET /v1/fleet` | | [`fleet::FleetStatus`]; 404 without a shared store |
//! | `POST /v1/fleet/propose` | [`fleet::ProposeRequest`] | [`fleet::Proposal`] |
//! | `GET /v1/store/content` | | [`fleet::Content`] |
//! | `GET /metrics` | | Prometheus' text format |

pub mod fleet;
pub mod moving;
mod observe;
mod quarantine;

use serde::{Deserialize, Serialize};

use crate::lb::CONNECT_BUCKETS;
use crate::verdict::Reason;

pub use observe::*;
pub use quarantine::*;

/// The version of resources: the only one so far.
pub const API_VERSION: &str = "vnet/v1alpha1";

/// Files to apply together: all of them or none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// The files.
    pub files: Vec<File>,
    /// Kinds and names of resources that are deleted in the same change; that some are not there is no error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<(String, String)>,
    /// Only say what would change.
    pub dry_run: bool,
}

/// Resources to delete together: all of them or none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// Kinds (`LoadBalancer`, `Endpoint`) and names.
    pub resources: Vec<(String, String)>,
    /// That some are not there is no error.
    pub ignore_not_found: bool,
}

/// One YAML file, of one or more documents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What was, or would be, done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplyResponse {
    /// One for each resource that was named.
    pub changes: Vec<Change>,
    /// Things worth knowing that did not stop it.
    pub warnings: Vec<String>,
    /// A dry run: what else it would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<Effects>,
}

/// What became of one resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What was done.
    pub action: Action,
    /// The resource before and after, as a unified diff of YAML; empty if unchanged.
    pub diff: String,
}

/// See [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was not there.
    Created,
    /// It was there and differs.
    Configured,
    /// It was there like this.
    Unchanged,
    /// It was there and is gone.
    Deleted,
}

/// Any response with a status of 400 or more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// What was being done, to what, and why it was not.
    pub error: String,
    /// Faults in files, each complete in itself: file, line, column, message and snippet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// One fault in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The file, as named in the request.
    pub file: String,
    /// From 1; 0 if the fault has no place.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// What is wrong and what to do.
    pub message: String,
    /// The lines around it, with a mark under the place; may be empty.
    pub snippet: String,
}

/// The agent as a whole.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The map layout.
    pub abi: u32,
    /// The agent's process.
    pub pid: u32,
    /// Since the agent started.
    pub uptime_seconds: u64,
    /// The agent's resident memory.
    pub rss_bytes: u64,
    /// The policy generation in force.
    pub generation: u32,
    /// Endpoints attached.
    pub endpoints: u32,
    /// Load balancers in force.
    pub load_balancers: u32,
    /// Things an operator should look at: each a sentence with what to do. Empty is good.
    pub alarms: Vec<String>,
    /// Every map.
    pub maps: Vec<MapStatus>,
    /// Of all the maps together, as the kernel accounts for it.
    pub map_memory_bytes: u64,
    /// The fleet, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<fleet::FleetBrief>,
}

/// One pinned map.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MapStatus {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub holds: String,
    /// Entries in use; for arrays that is not known, `None`.
    pub used: Option<u32>,
    /// Entries it can hold.
    pub capacity: u32,
    /// As the kernel accounts for it.
    pub memory_bytes: u64,
}

/// One endpoint, discovered or configured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// The resource's name, or the device's.
    pub name: String,
    /// Found by its device: no resource names it.
    pub discovered: bool,
    /// Its number in the datapath.
    pub id: u32,
    /// The host-side device.
    pub device: String,
    /// Its index; 0 while it does not exist.
    pub ifindex: u32,
    /// `attached`, `absent` (no such device now) or `failed: …`.
    pub state: String,
    /// Its MAC, if known.
    pub mac: Option<String>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its security group.
    #[serde(default)]
    pub group: String,
    /// `allowed` (no policy applies), `policed`, or `quarantined`.
    #[serde(default)]
    pub policy: String,
    /// Its identity in the datapath.
    #[serde(default)]
    pub identity: u32,
    /// Its tags, as `source/name=value`.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Programs of others that run before ours on its device, by name and id.
    pub foreign_programs: Vec<String>,
    /// Bytes from it, bytes to it.
    pub bytes: [u64; 2],
    /// Packets by direction (`egress`, `ingress`) and reason; only those that are not 0.
    pub packets: std::collections::BTreeMap<String, std::collections::BTreeMap<String, u64>>,
}

impl EndpointStatus {
    /// Whether what was counted for this reason went no further. What cannot be judged is dropped where the endpoint is policed, and
    /// else left to the stack.
    pub fn is_drop(&self, reason: &str) -> bool {
        let policed = matches!(&*self.policy, "policed" | "quarantined");
        Reason::named(reason)
            .is_some_and(|r| r.is_drop() || (policed && matches!(r, Reason::NotIp | Reason::Malformed | Reason::Vlan)))
    }
}

/// One load balancer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LbStatus {
    /// Its name.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<String>,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Its single ports.
    pub ports: Vec<u16>,
    /// Its ranges of ports, as `8000-8100`, or `any`.
    #[serde(default)]
    pub port_ranges: Vec<String>,
    /// `maglev`, `roundRobin`, `leastConnections` or `sourceHash`.
    #[serde(default)]
    pub algorithm: String,
    /// `stack` or `redirect`.
    pub delivery: String,
    /// Its members.
    pub members: Vec<MemberStatus>,
}

impl LbStatus {
    /// All its ports and ranges, for people.
    pub fn all_ports(&self) -> Vec<String> {
        self.ports.iter().map(u16::to_string).chain(self.port_ranges.iter().cloned()).collect()
    }
}

/// One member.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its port, if not the client's.
    pub port: Option<u16>,
    /// The weight in force.
    pub weight: u16,
    /// What part of new flows it is to get now, in percent: 0 while others are preferred, less than its weight says in a slow start.
    #[serde(default)]
    pub target_percent: f64,
    /// By what its load multiplies its weight, in percent, where load feedback is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor_percent: Option<u32>,
    /// Its zone, if one is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// It serves only while no other member does.
    #[serde(default)]
    pub backup: bool,
    /// `active`, `draining`, `down`, `ejected` (too many of its connections failed) or `unknown` (not checked yet; takes flows).
    pub state: String,
    /// Why it is down or ejected: the last health check's failure, or what became of its connections.
    pub health: Option<String>,
    /// The device of the member, when it is on this host.
    pub device: Option<String>,
    /// Flows in the table now.
    pub active_flows: u64,
    /// Those that it has from other hosts, about, where `leastConnections` count them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flows_elsewhere: u64,
    /// Flows given to it.
    pub new_flows: u64,
    /// Of those, handshakes completed, and UDP flows.
    pub established: u64,
    /// Connections that were reset.
    pub resets: u64,
    /// Of those, sent by the member.
    #[serde(default)]
    pub resets_by_member: u64,
    /// Flows about which an ICMP error said that the member, or its port, cannot be reached.
    #[serde(default)]
    pub unreachable: u64,
    /// How long it took to answer connections.
    #[serde(default)]
    pub connect: ConnectTimes,
    /// Packets to it, from it.
    pub packets: [u64; 2],
    /// Bytes to it, from it.
    pub bytes: [u64; 2],
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How long a member took to answer connections: from SYN to SYN-ACK, as seen at the client's device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectTimes {
    /// All of them together, in microseconds.
    pub total_us: u64,
    /// How many took less than 64 µs, 256 µs, 1 ms, 4 ms, 16 ms, 66 ms, 262 ms (powers of four), and how many took longer.
    pub buckets: [u64; CONNECT_BUCKETS],
}

impl ConnectTimes {
    /// Where each bucket ends, in microseconds; the last has no end.
    #[must_use]
    pub fn ends() -> [Option<u64>; CONNECT_BUCKETS] {
        std::array::from_fn(|bucket| (bucket + 1 < CONNECT_BUCKETS).then(|| 64 << (2 * bucket)))
    }

    /// How many connections were answered.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The mean, in microseconds; `None` where none was answered.
    #[must_use]
    pub fn mean_us(&self) -> Option<u64> {
        self.total_us.checked_div(self.count())
    }

    /// The end of the bucket that so many per thousand of the connections are within, in microseconds; `None`: of the last one, or none was answered.
    #[must_use]
    pub fn within_us(&self, per_mille: u64) -> Option<u64> {
        let wanted = (self.count() * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let full = |n: &u64| {
            seen += n;
            seen >= wanted
        };
        Self::ends()[self.buckets.iter().position(full)?]
    }
}

/// What an operator changes about a member; absent fields stay.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MemberChange {
    /// Drain or undrain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<bool>,
    /// A weight instead of the resource's; `-1` goes back to the resource's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
}

/// Flows of load balancers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FlowList {
    /// At most as many as asked for.
    pub flows: Vec<FlowStatus>,
    /// How many there are.
    pub total: u64,
}

/// One flow, both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// The endpoint that opened it.
    pub endpoint: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `address:port` of the client.
    pub client: String,
    /// `address:port` of the VIP.
    pub vip: String,
    /// `address:port` of the member.
    pub member: String,
    /// The load balancer.
    pub lb: String,
    /// The member's name.
    pub member_name: String,
    /// `half-open`, `established`, `closing`, `closed`, or for UDP `new`, `replied`.
    pub state: String,
    /// Packets from and to the client.
    pub packets: [u64; 2],
    /// Bytes likewise.
    pub bytes: [u64; 2],
    /// Since the first packet.
    pub age_seconds: u64,
    /// Since the last packet, in either direction.
    pub idle_seconds: u64,
}

/// What `detach` took off.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DetachResponse {
    /// Devices.
    pub devices: Vec<String>,
    /// Flows that were in the tables.
    pub flows: u64,
}
