//! The kind `SecurityGroup`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule::{Rule, Selector};
use super::{Metadata, format};

/// The group of endpoints that no other selects. It is there without a resource, too.
pub const DEFAULT_GROUP: &str = "default";

/// What the endpoints in it may do, and when they are moved into quarantine. Every endpoint is in exactly one group: in the first, by
/// `precedence` and then name, whose `selector` selects it; else in the one named `default`, which allows everything unless there is a
/// resource of that name. A group with `quarantine` selects nobody: endpoints are moved into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityGroup {
    /// `vnet/v1alpha1`.
    #[schemars(extend("const" = super::API_VERSION))]
    pub api_version: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// Who is in it, and what they may do.
    pub spec: SecurityGroupSpec,
}

/// See [`SecurityGroup`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityGroupSpec {
    /// The endpoints that belong here. Its expression may ask for `tags` too: a session's, for instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Where several groups select an endpoint, that with the lowest number has it.
    #[serde(default = "middle")]
    #[schemars(range(max = 10_000))]
    pub precedence: u16,
    /// What becomes of flows that no rule matches.
    #[serde(default)]
    pub defaults: Defaults,
    /// About flows that are opened to its endpoints; the first match decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub ingress: Vec<Rule>,
    /// About flows that its endpoints open; the first match decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub egress: Vec<Rule>,
    /// When an endpoint of this group is moved into another, and back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub transfers: Vec<Transfer>,
    /// How many of its endpoints may be moved without being asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brakes: Option<Brakes>,
    /// Makes it a quarantine group: what it does with the endpoints that are moved into it. Policies do not apply to those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
}

fn middle() -> u16 {
    1000
}

/// What becomes of flows that no rule matches. In a quarantine group both are `deny` unless given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// Of flows to its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<DefaultAction>,
    /// Of flows that its endpoints open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<DefaultAction>,
}

/// See [`Defaults`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAction {
    /// They may be.
    Allow,
    /// Their packets are dropped.
    Deny,
    /// They are refused.
    Reject,
}

/// A way into quarantine and back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Transfer {
    /// Unique in its group.
    #[schemars(schema_with = "format::member_name")]
    pub name: String,
    /// Where several transfers' criteria hold, that with the lowest number counts; equal ones in the order written.
    #[serde(default = "middle")]
    #[schemars(range(max = 10_000))]
    pub priority: u16,
    /// The quarantine group.
    #[schemars(schema_with = "format::name")]
    pub to: String,
    /// When to move: a CEL expression over `tags`, `labels` and `name`, as `tags.exists(t, t.name == "malware" && t.severity >= 7)`.
    #[schemars(schema_with = "format::expression")]
    pub when: String,
    /// When to move back, likewise. Default: as soon as `when` holds no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::expression")]
    pub release_when: Option<String>,
    /// Seconds that it is held at least.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 31_536_000))]
    pub min_hold_seconds: u32,
    /// Seconds after which it is released whatever the criterion says. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub max_hold_seconds: Option<u32>,
    /// Holds an endpoint longer that comes back time and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flap_damping: Option<FlapDamping>,
    /// Whether to do it.
    #[serde(default)]
    pub mode: TransferMode,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// See [`Transfer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlapDamping {
    /// With this many moves …
    #[schemars(range(min = 2, max = 1000))]
    pub moves: u32,
    /// … in so many seconds …
    #[schemars(range(min = 1, max = 31_536_000))]
    pub within_seconds: u32,
    /// … it is held for at least so many seconds.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub hold_seconds: u32,
}

/// Whether a transfer is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TransferMode {
    /// At once.
    #[default]
    Enforce,
    /// Only said, in events and the audit log.
    DryRun,
    /// When an operator has approved it.
    RequireApproval,
}

/// Limits for moves that nobody asked for: what is above waits for approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Brakes {
    /// Endpoints of the group moved in a window, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub max_endpoints: Option<u32>,
    /// The same in per cent of the group, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_percent: Option<u8>,
    /// The window in seconds.
    #[serde(default = "minute")]
    #[schemars(range(min = 1, max = 86_400))]
    pub window_seconds: u32,
}

fn minute() -> u32 {
    60
}

/// What a quarantine group does beside its rules. Without rules: drops everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quarantine {
    /// TCP and UDP that its endpoints open and no rule decides about goes to members of these load balancers instead, replies rewritten
    /// back: a remediation service. Of those with the packet's protocol to the one with its port, else to the first. One for each protocol
    /// that is to be redirected will do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "format::names")]
    pub redirect_to: Vec<String>,
    /// A copy of each packet from and to its endpoints goes out of this endpoint's device …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::name")]
    pub mirror_to: Option<String>,
    /// … or out of this device of the host: a tunnel to a collector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::device")]
    pub mirror_device: Option<String>,
    /// What goes on working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub keep_alive: Vec<KeepAlive>,
}

/// What a quarantine leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeepAlive {
    /// DHCP and DHCPv6 of a client.
    Dhcp,
    /// ARP and neighbour discovery.
    Neighbors,
}
