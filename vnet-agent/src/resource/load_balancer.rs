//! The kind `LoadBalancer`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::feedback::Feedback;
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
    /// The ports that clients connect to. At least one of `ports`, `portRanges` and `anyPort` is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1)))]
    pub ports: Vec<u16>,
    /// Ranges of such ports. A flow to one keeps its port, where the member has none of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub port_ranges: Vec<PortRange>,
    /// Every port that no other load balancer of the VIP and protocol has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any_port: bool,
    /// How a new flow gets its member.
    #[serde(default, skip_serializing_if = "Algorithm::is_default")]
    pub algorithm: Algorithm,
    /// New flows of a client that had one before go to the same member. Default: each flow is picked for by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Which members are preferred to others, while enough of them are healthy.
    #[serde(default, skip_serializing_if = "Preference::is_default")]
    pub prefer: Preference,
    /// With fewer healthy members than this share (by weight), in percent, nobody is preferred, and health is ignored: all
    /// members that are not drained get flows. So no wrong health check can empty a group. 0: it can, and `onNoMember` decides.
    #[serde(default = "one_percent")]
    #[schemars(range(max = 100))]
    pub min_healthy_percent: u8,
    /// A member that comes, or comes back, gets its share of new flows little by little, over so many seconds. 0: at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 3600))]
    pub slow_start_seconds: u16,
    /// Those that serve, by address. Either this or `memberSelector`, or `memberGroups`, or any of the two beside `memberGroups`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10_000))]
    pub members: Vec<Member>,
    /// Those that serve, by the labels of endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_selector: Option<MemberSelector>,
    /// Other load balancers whose members serve here too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub member_groups: Vec<MemberGroup>,
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
    /// Let the members' load, as all hosts see it, adjust their weights. Default: weights are as configured.
    #[cfg_attr(not(feature = "previous-abi"), serde(default, skip_serializing_if = "Option::is_none"))]
    #[cfg_attr(feature = "previous-abi", serde(skip))]
    pub feedback: Option<Feedback>,
}

impl LoadBalancerSpec {
    /// The load feedback, if there is any that does something.
    #[must_use]
    pub fn active_feedback(&self) -> Option<&Feedback> {
        self.feedback.as_ref().filter(|feedback| feedback.is_on())
    }
}

fn one_percent() -> u8 {
    1
}

fn is_zero(n: &u16) -> bool {
    *n == 0
}

/// Ports from one to another, both of them included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortRange {
    /// The first.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The last.
    #[schemars(range(min = 1))]
    pub end_port: u16,
}

/// How a new flow gets its member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    /// By a hash of the flow's addresses and ports: the same on every host; few flows move when members change.
    #[default]
    Maglev,
    /// The members in turn, each as often as its weight says. Each host has turns of its own.
    RoundRobin,
    /// Who has the fewest connections for its weight, of this host (with `feedback`, of all hosts): of all members, or of 16 at random
    /// where there are more.
    LeastConnections,
    /// By a hash of the client's address: all flows of a client go to one member while members do not change.
    SourceHash,
}

impl Algorithm {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// New flows of a client go where its last one went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Affinity {
    /// Until so many seconds after the client's last new flow.
    #[serde(default = "three_hours")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: u32,
}

fn three_hours() -> u32 {
    10_800
}

/// Which members are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Preference {
    /// None.
    #[default]
    Any,
    /// Those of this host's zone (the agent's `--zone`), then any.
    Zone,
    /// Those on this host, then those of its zone, then any.
    Local,
}

impl Preference {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// Its zone, for `prefer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::member_name")]
    pub zone: Option<String>,
    /// It gets flows only while no other member is healthy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
}

/// Another load balancer whose members serve here too, with their weights and drains there, checked as those here are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberGroup {
    /// Its name.
    #[schemars(schema_with = "format::name")]
    pub load_balancer: String,
    /// They get flows only while no other member is healthy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
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
