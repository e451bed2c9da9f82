//! The flows of an endpoint that moves to another host.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The version of [`FlowExport`] that is written, and the only one that is read.
pub const FLOW_EXPORT: u32 = 1;

/// All flows of an endpoint, to be taken over by the agent of another host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowExport {
    /// [`FLOW_EXPORT`].
    pub version: u32,
    /// The endpoint.
    pub endpoint: String,
    /// Its flows; in full.
    pub flows: Vec<MovedFlow>,
    /// Flows that are not among them: connections that are being opened or are over, what a quarantine leads elsewhere, and the agent's probes.
    pub left: u64,
}

/// One flow. Ports of protocols without ports are 0; of an echo request they are its identifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovedFlow {
    /// IP protocol number.
    pub protocol: u8,
    /// The endpoint's side.
    pub local: SocketAddr,
    /// The other side, as the endpoint knows it: of a balanced flow the VIP.
    pub remote: SocketAddr,
    /// The member that serves it, if the flow is balanced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<SocketAddr>,
    /// The endpoint's port as the member sees it, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port_there: Option<u16>,
    /// The other side opened it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub inbound: bool,
    /// Both sides have sent.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replied: bool,
    /// Its first packet was not seen.
    #[serde(default, skip_serializing_if = "is_false")]
    pub picked_up: bool,
    /// Who has ended it, of who opened it and the other side.
    #[serde(default, skip_serializing_if = "is_neither")]
    pub ended: [bool; 2],
    /// Packets from and to the endpoint.
    pub packets: [u64; 2],
    /// Bytes likewise.
    pub bytes: [u64; 2],
    /// Since the first packet.
    pub age_seconds: u64,
    /// Since the last packet.
    pub idle_seconds: u64,
}

fn is_false(bit: &bool) -> bool {
    !bit
}

fn is_neither(bits: &[bool; 2]) -> bool {
    *bits == [false; 2]
}

/// What became of a [`FlowExport`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowImport {
    /// The endpoint.
    pub endpoint: String,
    /// Flows that are in the tables now.
    pub taken: u64,
    /// Flows that were there already; they stay as they are.
    pub known: u64,
    /// Flows that could not be taken, with the reason.
    pub refused: Vec<RefusedFlow>,
}

/// A flow that could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedFlow {
    /// The endpoint's side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    /// Why.
    pub reason: String,
}
