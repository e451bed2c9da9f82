//! Answers to "what happens, and why": events, flows, explanations, and what a change would do.

use serde::{Deserialize, Serialize};

/// Something that the datapath or the agent reports. `GET /v1/events` gives those that are kept, one JSON object a line; with `follow=true` also
/// those to come; with `since=N` only those numbered above N. `endpoint`, `kind` and `reason` are lists separated by commas, of which one must
/// fit; that events were suppressed is told in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number since the agent started, from 1. A gap: more came than were kept.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// One of [`EVENT_KINDS`].
    pub kind: String,
    /// The endpoint; empty if it is about none.
    #[serde(default)]
    pub endpoint: String,
    /// `egress` or `ingress`; empty for the agent's.
    #[serde(default)]
    pub direction: String,
    /// The datapath's reason ([`crate::verdict::Reason::name`]), or the agent's words.
    #[serde(default)]
    pub reason: String,
    /// The deciding rule, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
    /// The packet, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<PacketRef>,
    /// `suppressed`: how many were not reported. Otherwise 1.
    pub count: u64,
    /// More, for people.
    #[serde(default)]
    pub message: String,
}

/// The kinds of events: what packets give, what was too much, and what the agent says.
pub const EVENT_KINDS: [&str; 12] =
    ["drop", "log", "staged", "flow", "suppressed", "move", "tag", "health", "device", "policy", "source", "store"];

/// A packet, in an event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketRef {
    /// `TCP`, `UDP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: String,
    /// Source address.
    pub src: String,
    /// Source port, if it has one.
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: String,
    /// Destination port, if it has one.
    pub dport: Option<u16>,
    /// ICMP: type and code.
    pub icmp: Option<(u8, u8)>,
    /// TCP flags as letters, as `S`, `SA`, `F`.
    pub flags: String,
    /// Length in bytes.
    pub bytes: u32,
    /// The peer: an endpoint's name, a reserved identity, or empty.
    pub peer: String,
}

/// A rule, as somebody wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRef {
    /// Its number in the datapath.
    pub id: u32,
    /// `Policy`, `SecurityGroup`, `PeerQuarantine` (what the SecurityGroup means for peers of those that it holds on other hosts), or
    /// `built-in`.
    pub kind: String,
    /// The resource's name.
    pub resource: String,
    /// The rule's name; `default` for a group's default.
    pub rule: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// `allow`, `deny`, `reject`, `pass`, `redirect`.
    pub action: String,
    /// It only counts.
    #[serde(default)]
    pub staged: bool,
    /// The file that it was applied from, and the line; empty if not known.
    #[serde(default)]
    pub place: String,
}

/// What a rule did (`GET /v1/rules`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// The rule.
    pub rule: RuleRef,
    /// `system`, `quarantine`, `peer-quarantine`, a tier, `group` or `default`.
    pub tier: String,
    /// Flows decided; of denied ones every packet.
    pub hits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Flows about which it would have decided, if it were not staged.
    pub would_hit: u64,
    /// Local endpoints whose set has it.
    pub endpoints: u32,
}

/// A question (`POST /v1/explain`): what would become of a packet?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The endpoint that sends it, an address, or `host`, `world`.
    #[serde(default)]
    pub from: String,
    /// The destination: an endpoint's name or an address, with port and protocol: `10.0.0.9:443/tcp`, `[fd00::9]:53/udp`, `web-2:22`, `10.0.0.9/icmp`.
    #[serde(default)]
    pub to: String,
    /// Or the frame itself, as hexadecimal digits, with the endpoint in `from` and …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// … the way it goes there: `egress` (default) or `ingress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// TCP flags: `S` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Source port; by default one of the dynamic ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// As if these files were applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<super::File>,
    /// Run the kernel's program on it too, and say whether the two differ.
    #[serde(default)]
    pub live: bool,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Each program that the packet passes, in order: at the sender's device, then, where the destination is of this host, at its.
    pub hops: Vec<Hop>,
    /// `allowed`, `dropped`, `refused`, `answered`, `redirected`.
    pub outcome: String,
    /// The reason of the last hop.
    pub reason: String,
    /// Things worth knowing.
    pub notes: Vec<String>,
    /// With `live`: what the kernel did otherwise. Empty: nothing; the two agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differences: Option<Vec<String>>,
}

/// One program's part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The endpoint.
    pub endpoint: String,
    /// Its device.
    pub device: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// `next`, `redirect`, `reply`, `drop`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// The deciding rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
    /// Later rules that match too, and never get to decide about this packet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadowed: Vec<RuleRef>,
    /// The packet before, in one line.
    pub packet: String,
    /// The packet afterwards, in one line, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewritten: Option<String>,
}

/// One stage of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// `endpoint`, `parse`, `anti-spoofing`, `flow`, `lb`, `identity`, `policy`, `quarantine`, `deliver`.
    pub stage: String,
    /// What it found, in a sentence.
    pub found: String,
}

/// One flow of an endpoint, balanced or not (`GET /v1/flows`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointFlow {
    /// The endpoint.
    pub endpoint: String,
    /// `out`: it opened the flow; `in`: the peer did.
    pub opened: String,
    /// `TCP`, `UDP`, `ICMP`, …
    pub protocol: String,
    /// `address:port` of the endpoint.
    pub local: String,
    /// `address:port` of the peer, as the endpoint knows it.
    pub remote: String,
    /// The peer: an endpoint's name, a reserved identity, or empty.
    pub peer: String,
    /// `address:port` of the member that a balanced or redirected flow goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// The load balancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lb: Option<String>,
    /// `allowed`, `redirected`, `unpoliced`.
    pub verdict: String,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
    /// As in [`super::FlowStatus`].
    pub state: String,
    /// Packets from and to the endpoint.
    pub packets: [u64; 2],
    /// Bytes likewise.
    pub bytes: [u64; 2],
    /// Since the first packet.
    pub age_seconds: u64,
    /// Since the last packet.
    pub idle_seconds: u64,
}

/// Flows of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointFlowList {
    /// At most as many as asked for.
    pub flows: Vec<EndpointFlow>,
    /// How many there are.
    pub total: u64,
}

/// What a change does, beside what it changes in the resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effects {
    /// Rules that come.
    pub rules_added: Vec<RuleRef>,
    /// Rules that go.
    pub rules_removed: Vec<RuleRef>,
    /// Endpoints that get other rules, or another group: name and what changes.
    pub endpoints: Vec<(String, String)>,
    /// Flows now alive that would be cut, and by which rule.
    pub flows_cut: Vec<(EndpointFlow, Option<RuleRef>)>,
    /// Flows now alive that would go to another member, or be reset since theirs is gone.
    pub flows_moved: Vec<(EndpointFlow, String)>,
    /// How many those are in all; the lists are cut at 100.
    pub flows_total: [u64; 2],
}

/// An endpoint is about to get this device (`POST /v1/endpoints/attach`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The host-side device; it must exist, and should be down.
    pub device: String,
    /// The endpoint whose device it is from now on; absent: the one whose resource names the device, or the one discovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}
