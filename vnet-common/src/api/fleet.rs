//! What agents say of their fleet, and how a change gets into the store that they share.
//!
//! An agent may not write what is desired: `vnet-ctl` does, with an operator's certificate. It asks the agent what a change would
//! be ([`ProposeRequest`]), which checks it against everything and says what to write and what that was compared with
//! ([`Proposal`]); it writes that if nothing was changed meanwhile; and it asks the agent who has it in force ([`FleetStatus`]).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ApplyResponse, File, MemberChange};
use crate::fleet::Stored;

/// A change that would be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProposeRequest {
    /// Resources are put: as [`ApplyRequest`](super::ApplyRequest).
    Apply {
        /// The files.
        files: Vec<File>,
    },
    /// Resources are deleted: as [`DeleteRequest`](super::DeleteRequest).
    Delete {
        /// Kinds and names.
        resources: Vec<(String, String)>,
        /// That some are not there is no error.
        ignore_not_found: bool,
    },
    /// A member is drained, or gets a weight.
    Member {
        /// The load balancer.
        lb: String,
        /// The member.
        member: String,
        /// What changes.
        change: MemberChange,
    },
    /// What some hosts try is to be what all have. Nothing is proposed to be written: the rollout says that already.
    Promote {
        /// The rollout.
        rollout: String,
    },
}

/// What a change would be, and what it takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// What would become of the resources, and what else it would do on this host.
    pub response: ApplyResponse,
    /// The revision of the key [`crate::fleet::SERIAL`] when this was found out: while it has this, nothing else that is desired has
    /// changed, and what was checked is still so.
    pub serial: i64,
    /// What to write; nothing for resources that are like this already.
    pub writes: Vec<Proposed>,
}

/// One key to be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposed {
    /// The key.
    pub key: String,
    /// What it is about, as `loadbalancer/web`.
    pub what: String,
    /// Its value; `None`: it is deleted.
    pub value: Option<Value>,
    /// The revision of the value that this was compared with; 0: there was none.
    pub base: i64,
    /// That value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
}

/// All that an operator wrote: what a backup has, and what moves from one store to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The resources, by kind and name.
    pub resources: Vec<Stored>,
    /// What was changed of members: load balancer, member, and what.
    pub overrides: Vec<(String, String, Value)>,
}

/// The fleet, as one of its agents sees it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FleetStatus {
    /// This host.
    pub host: String,
    /// The store, as `etcd://…`.
    pub store: String,
    /// The member of it that the agent is connected to; `None`: none at the moment.
    pub connected: Option<String>,
    /// For how long the store has not been heard of; 0 while it is connected.
    pub silent_seconds: u64,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The revision up to which the agent knows the store.
    pub revision: i64,
    /// The newest revision of what is desired that is in force on this host.
    pub applied: i64,
    /// Why a newer one is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The store is another than before, or was set back, and this host goes on with what it had.
    #[serde(default)]
    pub another: bool,
    /// The host that adds up the load of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elected: Option<String>,
    /// Every host that is registered or was heard of.
    pub hosts: Vec<HostStatus>,
    /// Endpoints that several hosts claim, each a sentence.
    pub conflicts: Vec<String>,
    /// Changes that only some hosts have.
    pub rollouts: Vec<RolloutStatus>,
}

/// A host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// It keeps its lease.
    pub alive: bool,
    /// An operator drained it.
    pub drained: bool,
    /// It has been registered.
    pub registered: bool,
    /// The version of its agent; empty if it is not alive.
    pub version: String,
    /// Its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Endpoints that it has.
    pub endpoints: u32,
    /// Endpoints that it has room for.
    pub capacity: u32,
    /// The newest revision of what is desired that is in force there.
    pub applied: i64,
    /// Why a newer one is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// That newer one.
    #[serde(rename = "refusedRevision", default, skip_serializing_if = "Option::is_none")]
    pub refused_revision: Option<i64>,
}

/// A change that only some hosts have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// Its name.
    pub name: String,
    /// The hosts that are to have it.
    pub hosts: Vec<String>,
    /// What it changes, as `loadbalancer/web`.
    pub changes: Vec<String>,
}

/// The fleet in short, for [`Status`](super::Status).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetBrief {
    /// This host.
    pub host: String,
    /// The store, as `etcd://…`.
    pub store: String,
    /// The member of it that the agent is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<String>,
    /// For how long the store has not been heard of; 0 while it is connected.
    pub silent_seconds: u64,
    /// The newest revision of what is desired that is in force on this host.
    #[serde(default)]
    pub applied: i64,
    /// A newer one was refused here.
    #[serde(default)]
    pub refused: bool,
    /// Hosts that are alive.
    pub alive: u32,
    /// Hosts that are registered or were heard of.
    pub hosts: u32,
}
