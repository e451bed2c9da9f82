//! Rules, as security groups and policies have them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::format;

/// A rule about flows. What it leaves out matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// For people; unique in its list.
    #[schemars(schema_with = "format::member_name")]
    pub name: String,
    /// The other side of the flow: any one of these. Default: everyone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub peers: Vec<Peer>,
    /// Protocols and ports, of the side that the flow is opened to: any one of these. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub ports: Vec<PortMatch>,
    /// What becomes of the flow.
    pub action: Action,
    /// Report every flow that it decides about as an event.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
}

/// The other side of a flow. Exactly one field is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// The endpoints of this security group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::name")]
    pub group: Option<String>,
    /// The endpoints that this selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// An address or a network, as `10.0.0.0/8`: whoever has such an address, endpoints included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::cidr")]
    pub cidr: Option<String>,
    /// With `cidr`: but not these networks in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "format::cidrs")]
    pub except: Vec<String>,
    /// Something that is always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
}

/// Reserved peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// The host that the endpoint is on.
    Host,
    /// Another host that runs an agent.
    RemoteHost,
    /// Every address outside of the endpoints' networks.
    World,
    /// An address in the endpoints' networks that no endpoint is known to have.
    Unknown,
    /// The agent's own probes. They are let in whatever the rules say; as a peer it is for egress.
    Health,
    /// Every endpoint.
    Endpoints,
}

/// Selects endpoints: all that is given must match. At least one field is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Every one of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "format::labels")]
    pub match_labels: BTreeMap<String, String>,
    /// A CEL expression over `name`, `labels` and, in a security group's `selector`, `tags`: `labels.env in ["dev", "test"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub expression: Option<String>,
}

/// A protocol, and its ports or types.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMatch {
    /// `TCP`, `UDP`, `ICMP`, `ICMPv6`, `SCTP`, or a protocol number as `"47"`.
    #[schemars(schema_with = "format::protocol")]
    pub protocol: String,
    /// TCP, UDP: the port. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// TCP, UDP: the last port of a range that starts at `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub end_port: Option<u16>,
    /// ICMP, ICMPv6: the type. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "type")]
    pub icmp_type: Option<u8>,
    /// ICMP, ICMPv6: the code, with `type`. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It may be; so may its replies.
    Allow,
    /// Its packets are dropped.
    Deny,
    /// It is refused: TCP reset, or ICMP "administratively prohibited".
    Reject,
    /// The next tier decides. In policies only.
    Pass,
}
