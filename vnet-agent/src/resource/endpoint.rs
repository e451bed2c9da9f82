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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSpec {
    /// The host-side device (tap, veth): the agent attaches to it when it appears.
    #[schemars(schema_with = "format::device")]
    pub device: String,
    /// The NIC's own MAC, as `52:54:00:12:34:56`. Default: learned from the neighbour table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::mac")]
    pub mac: Option<String>,
    /// The NIC's IP addresses. Default: learned from the neighbour table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub addresses: Vec<IpAddr>,
}
