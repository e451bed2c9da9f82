//! Resources: what users write in YAML and read back.

mod check;
mod cidr;
mod endpoint;
mod feedback;
mod format;
mod health_check;
mod load_balancer;
mod newer;
mod origin;
mod parse;
mod policy;
mod rule;
mod schema;
mod security_group;
mod similar;
mod source;
mod structure;
mod tag_source;
#[cfg(test)]
mod tests;
mod tree;
mod yaml;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::{check, needed};
pub use cidr::Cidr;
pub use endpoint::{AntiSpoofing, Endpoint, EndpointSpec};
pub use feedback::{Feedback, FeedbackMode};
pub use format::{is_name, is_tag_name, parse_mac, protocol_number};
pub use health_check::{HealthCheck, HttpCheck, IcmpCheck, Match, PassiveHealth, StatusRange, UdpCheck, probe_data};
pub use load_balancer::{
    Affinity, Algorithm, Delivery, LoadBalancer, LoadBalancerSpec, Member, MemberGroup, MemberSelector, OnMemberRemoved,
    OnNoMember, PortRange, Preference, Protocol,
};
pub use newer::{keep_unknown, without_unknown};
pub use origin::Origin;
pub use parse::{Located, parse};
pub use policy::{AppliedTo, Policy, PolicyMode, PolicySpec, Tier};
pub use rule::{Action, Entity, Peer, PortMatch, Rule, Selector};
pub use schema::schema;
pub use security_group::{
    Brakes, DEFAULT_GROUP, DefaultAction, Defaults, FlapDamping, KeepAlive, Quarantine, SecurityGroup, SecurityGroupSpec,
    Transfer, TransferMode,
};
pub use tag_source::{Allow, Input, Mapping, OnExpiry, Operation, SourceType, Subject, TagSource, TagSourceSpec};
pub use vnet_common::api::API_VERSION;
pub use yaml::to_yaml;

/// Name and labels of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Unique among resources of one kind: lower-case letters, digits, `-` and `.`, at most 253 characters.
    #[schemars(schema_with = "format::name")]
    pub name: String,
    /// Free-form labels; selectors match on them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "format::labels")]
    pub labels: BTreeMap<String, String>,
    /// In a fleet: what is written was made from this version of the resource (`vnet-ctl get -o yaml` says it), and is refused if there is
    /// another by now.
    #[serde(rename = "resourceVersion", default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_223_372_036_854_775_807_i64))]
    pub resource_version: Option<u64>,
}

/// A resource of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
pub enum Resource {
    /// Spreads connections over members.
    LoadBalancer(LoadBalancer),
    /// Says what is known of the NIC of a VM or container.
    Endpoint(Endpoint),
    /// Says what endpoints may do, and when they are moved into quarantine.
    SecurityGroup(SecurityGroup),
    /// Rules for endpoints of any group.
    Policy(Policy),
    /// Something that puts tags on endpoints.
    TagSource(TagSource),
}

impl Resource {
    /// The kind, as in `kind:`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LoadBalancer(_) => "LoadBalancer",
            Self::Endpoint(_) => "Endpoint",
            Self::SecurityGroup(_) => "SecurityGroup",
            Self::Policy(_) => "Policy",
            Self::TagSource(_) => "TagSource",
        }
    }

    /// Name and labels.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::LoadBalancer(load_balancer) => &load_balancer.metadata,
            Self::Endpoint(endpoint) => &endpoint.metadata,
            Self::SecurityGroup(group) => &group.metadata,
            Self::Policy(policy) => &policy.metadata,
            Self::TagSource(source) => &source.metadata,
        }
    }

    /// Takes out the version that it was made from.
    pub fn take_version(&mut self) -> Option<u64> {
        let metadata = match self {
            Self::LoadBalancer(load_balancer) => &mut load_balancer.metadata,
            Self::Endpoint(endpoint) => &mut endpoint.metadata,
            Self::SecurityGroup(group) => &mut group.metadata,
            Self::Policy(policy) => &mut policy.metadata,
            Self::TagSource(source) => &mut source.metadata,
        };
        metadata.resource_version.take()
    }

    /// The name: unique among resources of its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.metadata().name
    }
}
