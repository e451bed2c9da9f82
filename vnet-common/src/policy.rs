//! Policy: which flows an endpoint may have.
//!
//! Every policed endpoint has a *set*: two ordered lists of rules, one for the flows it opens (egress), one for those that
//! are opened to it (ingress). The first rule that matches decides; the last one of each list matches everything (the
//! security group's default). A rule matches by the peer's *identity* and by protocol and port. Both are looked up once: a
//! row of bits says which rules a peer matches, another which rules a port matches, and the first bit that both have is the
//! rule.
//!
//! ```text
//! identity = IPCACHE[network, address], else CIDRS[longest prefix], else unknown
//! peers    = PEERS[set, direction, identity], else the side's `any_peer`      ─┐ rows of bits,
//! ports    = the last row of PORTS, in the side's part, that is not above it  ─┘ in BITS
//! rule     = RULES[side.rules + first common bit]
//! ```
//!
//! What comes before all rules is in [`guard`]; [`crate::judge`] asks for the rule and does what it says.
//!
//! A set never changes: another list of rules is another set, written whole before the endpoint's row leads to it.

pub mod evaluate;
pub mod guard;

/// Numbers of identities that are always there; others are given out from [`identity::FIRST`] on.
pub mod identity {
    /// No identity was found: the address is of no endpoint and in no known network.
    pub const UNKNOWN: u32 = 0;
    /// This host.
    pub const HOST: u32 = 1;
    /// Another host that runs an agent.
    pub const REMOTE_HOST: u32 = 2;
    /// Everything that is outside of the endpoints' networks.
    pub const WORLD: u32 = 3;
    /// The agent's own probes.
    pub const HEALTH: u32 = 4;
    /// The first that stands for endpoints or networks.
    pub const FIRST: u32 = 16;
}

/// `skb->mark` of the agent's own probes: they reach endpoints whatever the policy is, and so do the answers the agent. A VM or container
/// cannot set it: a packet that comes from another network namespace, or by a tap, has none. On this host it stays, over bridges and routes.
pub const MARK_PROBE: u32 = 0x7666_0001;
/// `skb->mark` of copies for a service node, and of answers that an endpoint's own programs made in its name: not judged again.
pub const MARK_OURS: u32 = 0x7666_0002;

/// What a rule does; values of [`RuleRow::action`].
pub mod action {
    /// The flow may be.
    pub const ALLOW: u8 = 1;
    /// Its packets are dropped.
    pub const DENY: u8 = 2;
    /// Refused as a host would: TCP reset, or ICMP "administratively prohibited".
    pub const REJECT: u8 = 3;
    /// Go on with the first rule of a later tier ([`super::RuleRow::next`]).
    pub const PASS: u8 = 4;
    /// TCP and UDP that the endpoint opens: to a member of the load balancer group [`super::RuleRow::group`] instead.
    pub const REDIRECT: u8 = 5;
}

/// Bits of [`RuleRow::flags`].
pub mod rule_flags {
    /// Report each flow that it decides about.
    pub const LOG: u8 = 1;
    /// The rule only counts what it would have done.
    pub const STAGED: u8 = 1 << 1;
    /// The default of the security group, not a rule that somebody wrote.
    pub const DEFAULT: u8 = 1 << 2;
    /// Of a quarantine: drops are counted as `quarantined`.
    pub const QUARANTINE: u8 = 1 << 3;
}

/// One rule of a side's list. Row [`Side::rules`] + its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct RuleRow {
    /// The rule's number, in counters, flows and events; 0 is none.
    pub id: u32,
    /// [`action::REDIRECT`]: row of the group.
    pub group: u32,
    /// [`action::REDIRECT`]: [`crate::lb::GroupRow::serial`] of that group.
    pub serial: u32,
    /// [`action::PASS`]: the place in the list to go on at.
    pub next: u16,
    /// See [`action`].
    pub action: u8,
    /// See [`rule_flags`].
    pub flags: u8,
}

/// One direction of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Side {
    /// The first of its rows in `RULES`.
    pub rules: u32,
    /// Words in a row of bits: 64 rules each, at most [`MAX_WORDS`].
    pub words: u32,
    /// The first of its rows in `PORTS`.
    pub ports: u32,
    /// How many those are: at least one, and the first starts at 0.
    pub port_rows: u32,
    /// First word in `BITS`: rules that match peers without a row in `PEERS`.
    pub any_peer: u32,
    /// First word in `BITS`: rules that are not staged.
    pub enforced: u32,
}

/// A set. Row [`crate::endpoint::EndpointRow::set`] of `SETS`; row 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SetRow {
    /// By [`crate::verdict::Direction`].
    pub sides: [Side; 2],
    /// See [`set_flags`].
    pub flags: u32,
    /// Differs for every set that ever had this row; 0: the row is free.
    pub serial: u32,
    /// Zero.
    pub pad: [u32; 2],
}

/// Bits of [`SetRow::flags`].
pub mod set_flags {
    /// Some rule is staged, on the egress side.
    pub const STAGED_EGRESS: u32 = 1;
    /// Some rule is staged, on the ingress side.
    pub const STAGED_INGRESS: u32 = 1 << 1;
}

/// Key of `PEERS`; the value is the first word of a row in `BITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct PeerKey {
    /// Row of the set, times two, plus the [`crate::verdict::Direction`].
    pub side: u32,
    /// The peer's identity.
    pub identity: u32,
}

/// A row of `PORTS`: from `start` up to the next row's, these rules match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct PortRow {
    /// See [`port_key`].
    pub start: u32,
    /// First word of a row in `BITS`.
    pub bits: u32,
}

/// An address in a network, as `IPCACHE` and `CIDRS` have it. The value is an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct AddressKey {
    /// The network; 0 is the default one.
    pub network: u32,
    /// 4 or 6.
    pub version: u32,
    /// IPv4 in the first four bytes, or IPv6.
    pub addr: [u8; 16],
}

impl AddressKey {
    /// The key of an address in a network.
    #[inline(always)]
    pub fn of<A: crate::addr::Address>(network: u32, addr: &A) -> Self {
        Self { network, version: u32::from(A::VERSION), addr: addr.widen() }
    }
}

/// Bits of an [`AddressKey`] in front of the address: a prefix in `CIDRS` is this much longer than the network's.
pub const ADDRESS_BITS: u32 = 64;

/// Key of `CIDRS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct NetworkKey {
    /// Bits of `address` that count: [`ADDRESS_BITS`], and those of the network's prefix.
    pub bits: u32,
    /// The first address; what does not count is 0.
    pub address: AddressKey,
}

impl NetworkKey {
    /// The key with which a single address is looked up: all its bits count.
    pub const fn of(address: AddressKey) -> Self {
        Self { bits: ADDRESS_BITS + if address.version == 4 { 32 } else { 128 }, address }
    }
}

/// What was decided by a rule, per CPU; row [`RuleRow::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct RuleCounters {
    /// Flows that it decided about; of denied ones every packet.
    pub hits: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Flows about which it would have decided, if it were not staged.
    pub staged: u64,
}

impl RuleCounters {
    /// Counts a decision.
    #[inline(always)]
    pub fn count(&mut self, bytes: u32, staged: bool) {
        if staged {
            self.staged += 1;
        } else {
            self.hits += 1;
            self.bytes += u64::from(bytes);
        }
    }
}

/// Rules of one side at most.
pub const MAX_RULES: u32 = 4096;
/// Words in a row of bits at most.
pub const MAX_WORDS: u32 = MAX_RULES / 64;
/// Rows of `PORTS` that one side may have: found in [`PORT_STEPS`] steps.
pub const MAX_PORT_ROWS: u32 = 1 << PORT_STEPS;
/// Steps of the search in `PORTS`.
pub const PORT_STEPS: u32 = 13;
/// Tiers at most: a `pass` leads to a later one.
pub const MAX_TIERS: u32 = 8;

/// Protocol and port as one number: ports of one protocol are next to each other. ICMP: type and code instead of the port
/// (of a later fragment [`crate::parse::NO_TYPE`]); other protocols, and later fragments: 0.
#[inline(always)]
pub const fn port_key(protocol: u8, port: [u8; 2]) -> u32 {
    (protocol as u32) << 16 | (port[0] as u32) << 8 | port[1] as u32
}

const _: () = assert!(size_of::<RuleRow>() == 16 && size_of::<Side>() == 24 && size_of::<SetRow>() == 64);
const _: () = assert!(size_of::<PeerKey>() == 8 && size_of::<PortRow>() == 8 && size_of::<AddressKey>() == 24);
const _: () = assert!(size_of::<RuleCounters>() == 24 && size_of::<NetworkKey>() == 28);

/// The policy's tables.
pub trait PolicyMaps {
    /// The identity of an address: exact, else by the longest prefix, else [`identity::UNKNOWN`].
    fn identity(&self, key: &AddressKey) -> u32;
    /// A set.
    fn set(&self, row: u32) -> Option<&SetRow>;
    /// The first word of the bits of a peer.
    fn peer(&self, key: &PeerKey) -> Option<u32>;
    /// A row of `PORTS`.
    fn port(&self, row: u32) -> Option<&PortRow>;
    /// A word of `BITS`.
    fn bits(&self, word: u32) -> Option<u64>;
    /// A rule.
    fn rule(&self, row: u32) -> Option<&RuleRow>;
    /// [`evaluate::ports`]. The kernel has it, and the next, as a function that is verified once, not for every way that leads to it.
    #[inline(always)]
    fn ports(&self, first: u32, count: u32, key: u32) -> u32
    where
        Self: Sized,
    {
        evaluate::ports(self, first, count, key)
    }
    /// [`evaluate::next`].
    #[inline(always)]
    fn next(&self, search: evaluate::Search, at: u32) -> u32
    where
        Self: Sized,
    {
        evaluate::next(self, search, at)
    }
    /// Counts a decision of the rule with this number: `bytes` of one packet; `staged`: it only would have decided.
    fn rule_hit(&self, id: u32, bytes: u32, staged: bool);
}
