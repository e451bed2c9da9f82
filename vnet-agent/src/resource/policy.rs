//! The kind `Policy`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule::{Rule, Selector};
use super::{Metadata, format};

/// Rules for endpoints, whatever group they are in. All rules about an endpoint have one order: by tier, then priority, then the policy's
/// name, then as written; the first match decides. After all policies come the rules of its security group, and that group's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// `vnet/v1alpha1`.
    #[schemars(extend("const" = super::API_VERSION))]
    pub api_version: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// The rules, and for whom they are.
    pub spec: PolicySpec,
}

/// See [`Policy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySpec {
    /// Earlier tiers come first.
    #[serde(default)]
    pub tier: Tier,
    /// In a tier, lower numbers come first. Policies of one tier and priority that are about the same endpoint are reported.
    #[serde(default = "middle")]
    #[schemars(range(max = 10_000))]
    pub priority: u16,
    /// The endpoints it is about.
    #[serde(default)]
    pub applied_to: AppliedTo,
    /// Whether to do it.
    #[serde(default)]
    pub mode: PolicyMode,
    /// About flows that are opened to these endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4000))]
    pub ingress: Vec<Rule>,
    /// About flows that these endpoints open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4000))]
    pub egress: Vec<Rule>,
}

fn middle() -> u16 {
    1000
}

/// When a policy's rules come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Before everything: what cannot wait.
    Emergency,
    /// Of those who are responsible for security.
    Security,
    /// Of those who run the hosts.
    Ops,
    /// Of those who run the applications.
    #[default]
    App,
    /// What holds where nobody has said anything else.
    Baseline,
}

/// The endpoints that a policy is about: any one of the groups, and the selector. Default: all endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppliedTo {
    /// Endpoints of one of these security groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "format::names")]
    pub groups: Vec<String>,
    /// Endpoints that this selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

/// Whether a policy's rules are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// They decide.
    #[default]
    Enforce,
    /// They only count, and report, what they would have decided.
    Staged,
}
