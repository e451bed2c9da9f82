//! The kind `LoadBalancer`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::health_check::{HealthCheck, PassiveHealth};
use super::{Metadata, format};

/// One or more VIPs whose connections are spread over members, in the datapath of whoever connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// `vnet/v1alpha1`.
    #[schemars(extend("const" = super::API_VERSION))]
    pub api_version: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// What to balance, and over whom.
    pub spec: LoadBalancerSpec,
}

/// See [`LoadBalancer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancerSpec {
    /// The addresses that clients connect to. Members of the same family serve each.
    #[schemars(length(min = 1, max = 64))]
    pub vips: Vec<IpAddr>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The ports that clients connect to.
    #[schemars(length(min = 1, max = 64), inner(range(min = 1)))]
    pub ports: Vec<u16>,
    /// Those that serve, by address. Either this or `memberSelector`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10_000))]
    pub members: Vec<Member>,
    /// Those that serve, by the labels of endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_selector: Option<MemberSelector>,
    /// How a packet gets to a member on this host. Members elsewhere are always reached through the stack.
    #[serde(default)]
    pub delivery: Delivery,
    /// What a new connection gets when no member can take it.
    #[serde(default)]
    pub on_no_member: OnNoMember,
    /// What the connections of a member get that is removed without draining.
    #[serde(default)]
    pub on_member_removed: OnMemberRemoved,
    /// Ask each member from this host if it serves. Default: members are taken to be healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Take a member out for a while when the connections that it is given fail. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive_health: Option<PassiveHealth>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One server behind a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Member {
    /// For people; unique in its load balancer. Default: the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::member_name")]
    pub name: Option<String>,
    /// Where it serves.
    pub address: IpAddr,
    /// The port it serves on. Default: the port that the client connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Its share of new flows, against the other members' weights: 0 (none) to 1000.
    #[serde(default = "one")]
    #[schemars(range(max = 1000))]
    pub weight: u16,
    /// Its MAC, where it is on the clients' segment. Default: learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::mac")]
    pub mac: Option<String>,
}

fn one() -> u16 {
    1
}

/// Selects endpoints as members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberSelector {
    /// Every one of these labels must match. Not empty.
    #[schemars(schema_with = "format::some_labels")]
    pub match_labels: BTreeMap<String, String>,
    /// The port that they serve on. Default: the port that the client connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// How a packet gets to a member on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Through the host's stack: routing, bridge, nftables and conntrack see it.
    #[default]
    Stack,
    /// Straight to the member's device, and back: faster, past the host's firewall.
    Redirect,
}

/// What a new connection gets when no member can take it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNoMember {
    /// TCP reset, or ICMP port unreachable.
    #[default]
    Reject,
    /// Nothing.
    Drop,
}

/// What the connections of a member get that is removed without draining.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnMemberRemoved {
    /// TCP: a reset. UDP: a fresh pick, since nothing can be reset.
    #[default]
    Reset,
    /// A fresh pick: another member gets the packets of a connection that it does not know.
    Repick,
}
