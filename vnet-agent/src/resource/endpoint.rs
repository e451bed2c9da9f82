//! The kind `Endpoint`.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Metadata, format};

/// The NIC of a VM or container on this host. Endpoints are discovered from devices; a resource adds what a device does
/// not tell, and names the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// `vnet/v1alpha1`.
    #[schemars(extend("const" = super::API_VERSION))]
    pub api_version: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// What is known of it.
    pub spec: EndpointSpec,
}

/// See [`Endpoint`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSpec {
    /// The host-side device (tap, veth): the agent attaches to it when it appears.
    #[schemars(schema_with = "format::device")]
    pub device: String,
    /// The host that it is on, by its name in the fleet. Default: whichever has the device; of several, the one that had it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::name")]
    pub host: Option<String>,
    /// The NIC's own MAC, as `52:54:00:12:34:56`. Default: learned from the neighbour table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::mac")]
    pub mac: Option<String>,
    /// The NIC's IP addresses. Default: learned from the neighbour table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub addresses: Vec<IpAddr>,
    /// Whether packets must come from the endpoint's own MAC and addresses.
    #[serde(default)]
    pub anti_spoofing: AntiSpoofing,
    /// It may originate tunnel packets (UDP 4789 and 6081, see `vnet-agent --tunnel-ports`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_tunnels: bool,
    /// It is a router: it may send router advertisements, and forward packets of others (no check of IP addresses).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub router: bool,
}

/// Whether packets must come from the endpoint's own MAC and addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AntiSpoofing {
    /// From those that the resource gives: the MAC if it gives one, the addresses if it gives any.
    #[default]
    Auto,
    /// From those that are known, given or learned; from no address as long as none is known.
    Strict,
    /// From any.
    Off,
}
