//! Values.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long what a host said of its endpoints stays when the host is not heard of any more, if its agent was not told otherwise.
pub const LINGER_SECONDS: u32 = 300;
/// A host that was not heard of for this long is not alive.
pub const ALIVE_SECONDS: i64 = 10;

/// A resource in the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The resource, as JSON: also the fields that only newer agents know.
    pub resource: Value,
    /// Where it was written: an object of the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Value>,
    /// What only newer agents know of it.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

/// A host that may take part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The upper half of all identity numbers that it gives out: no two hosts have the same.
    pub number: u16,
    /// Its endpoints get no new flows as members of load balancers, and it is asked to do nothing for others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
}

/// A change that only some hosts have so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// These hosts have it.
    pub hosts: Vec<String>,
    /// What is put.
    pub put: Vec<Stored>,
    /// What is deleted: kind and name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<(String, String)>,
    /// What this was compared with, by kind and name: the revision of the key; 0: it was not there.
    pub bases: Vec<(String, String, i64)>,
}

/// A host that is alive. It writes this once, and keeps its lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// The version of its agent.
    pub version: String,
    /// Its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Endpoints that it has room for.
    pub capacity: u32,
}

/// How far a host has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The newest revision of what operators wrote that is in force there.
    pub revision: i64,
    /// Why a newer one is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// That newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<i64>,
}

/// An endpoint, as its host knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// No resource names it: its name is unique on its host only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discovered: bool,
    /// Its labels: of many endpoints the same, and then shared by who has many.
    #[serde(default, skip_serializing_if = "no_labels")]
    pub labels: Arc<BTreeMap<String, String>>,
    /// Its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Its addresses were given, not learned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
    /// The security group that it is in now.
    pub group: String,
    /// That is a quarantine group, which holds it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quarantined: bool,
    /// Counts its holds and releases by all hosts: of several claims those count that know the highest.
    #[serde(default, skip_serializing_if = "is_none")]
    pub turn: u32,
    /// Its device is gone: it is said only for who holds it, until another host does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// The number of its identity.
    pub identity: u32,
}

fn no_labels(labels: &BTreeMap<String, String>) -> bool {
    labels.is_empty()
}

/// What the number of an identity stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdentityLabels {
    /// The security group.
    pub group: String,
    /// The labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A piece of what a host tells of the flows of an endpoint that goes to another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingPiece {
    /// Counts what the host told: pieces of one number belong together.
    pub serial: u64,
    /// How many there are.
    pub of: u32,
    /// A part of the [`FlowExport`](crate::api::moving::FlowExport) as JSON.
    pub text: String,
}

/// A member of a load balancer, as all hosts know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemberKey {
    /// The load balancer.
    pub lb: String,
    /// The port that clients connect to, or the first of them; 0: any.
    pub port: u16,
    /// Where the member serves; port 0: that which the client connects to.
    pub at: SocketAddr,
}

/// What became of a member's flows within a window. What is 0 is left out of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberLoad {
    /// Flows that began.
    #[serde(skip_serializing_if = "is_zero")]
    pub new: u64,
    /// Flows that ended.
    #[serde(skip_serializing_if = "is_zero")]
    pub ended: u64,
    /// Flows that are open at its end.
    #[serde(skip_serializing_if = "is_zero")]
    pub active: u64,
    /// Packets, both ways.
    #[serde(skip_serializing_if = "is_zero")]
    pub packets: u64,
    /// Bytes, both ways.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// Connections that the member reset.
    #[serde(skip_serializing_if = "is_zero")]
    pub resets: u64,
    /// Connections that it accepted.
    #[serde(skip_serializing_if = "is_zero")]
    pub connected: u64,
    /// From SYN to SYN-ACK, all of these together, in µs.
    #[serde(skip_serializing_if = "is_zero")]
    pub connect_us: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_none(n: &u32) -> bool {
    *n == 0
}

/// What one host's clients did with members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Counts the host's reports: one that was seen before says nothing new.
    pub serial: u64,
    /// The window's length in ms.
    pub window_ms: u64,
    /// By member; those without flows are left out.
    pub members: Vec<(MemberKey, MemberLoad)>,
}

/// The fleet's load, and what follows from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Global {
    /// Counts what this host has handed out.
    pub serial: u64,
    /// The hosts whose reports are in it.
    pub hosts: Vec<String>,
    /// The serials of these reports, in the same order.
    #[serde(default)]
    pub serials: Vec<u64>,
    /// The window's length in ms.
    pub window_ms: u64,
    /// By member: the sum of what the hosts reported.
    pub members: Vec<(MemberKey, MemberLoad)>,
    /// What the members' weights are multiplied by, in percent; those that are not here stay as they are.
    pub factors: Vec<(MemberKey, u32)>,
}

/// What a host knows of members by asking them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// By check: it is up, or why it is down. Those of which nothing is known are left out.
    pub checks: BTreeMap<String, Result<(), String>>,
}
