//! The names and sizes of the pinned maps.

/// Rows of the directly indexed endpoint table; devices whose row is taken are found in the overflow table.
pub const ENDPOINT_ROWS: u32 = 1 << 16;
/// Member rows in one element of the Maglev array.
pub const MAGLEV_BLOCK: usize = 16;

/// Every map, by its name in the object and in the pin directory, with what it holds and its default size.
pub const MAPS: &[(&str, &str, u32)] = &[
    ("CONFIG", "generation and switches", 1),
    ("CLOCK", "jiffies, for the agent", 1),
    ("ENDPOINTS", "endpoints by device", ENDPOINT_ROWS),
    ("ENDPOINTS_MORE", "endpoints whose row is taken", 1024),
    ("ENDPOINT_COUNTERS", "packets by endpoint and reason, per CPU", 1024),
    ("FLOW_COUNTS", "flows by endpoint", 1024),
    ("FLOWS4", "IPv4 flow entries", 1 << 19),
    ("FLOWS6", "IPv6 flow entries", 1 << 18),
    ("HALF_OPEN4", "IPv4 half-open entries", 1 << 17),
    ("HALF_OPEN6", "IPv6 half-open entries", 1 << 16),
    ("RING4", "IPv4 half-open flows in order, by endpoint", 256 << 10),
    ("RING6", "IPv6 half-open flows in order, by endpoint", 256 << 10),
    ("RING_HEADS", "places in those rings", 1024),
    ("CACHE4", "IPv4 flow cache, per CPU", 1),
    ("CACHE6", "IPv6 flow cache, per CPU", 1),
    ("STAMPS", "stamps of removed flows", crate::hash::STAMPS),
    ("FILTERS", "one bit per VIP and per member address", 2 * crate::hash::FILTER_BITS / 64),
    ("LOCALS", "addresses of this host's endpoints", 1 << 14),
    ("VIPS", "VIP, protocol and port to group", 1 << 16),
    ("GROUPS", "load balancer groups", 16_384),
    ("MEMBERS", "members of groups", 65_536),
    ("MEMBER_COUNTERS", "packets and flows by member, per CPU", 65_536),
    ("MEMBER_ANSWERS", "how members answer, per CPU", 65_536),
    ("CONNECTING", "when connections were opened, by their hash", crate::lb::CONNECTING),
    ("MAGLEV", "pick tables, blocks of member rows", 1 << 18),
    ("TURNS", "flows given in turn, by group", 16_384),
    ("ACTIVE", "flows that are not closed, by member", 65_536),
    ("AFFINITY", "members that clients stick to; the least recently used make room", 65_536),
    ("FRAGMENTS", "datagrams whose first fragment was seen; the least recently used make room", 8192),
    ("SETS", "policy sets: rules of endpoints that have the same", 4096),
    ("RULES", "rules of policy sets", 1 << 17),
    ("PORTS", "ports of policy sets", 1 << 17),
    ("BITS", "which rules match, 64 a word", 1 << 20),
    ("PEERS", "peers of policy sets, the old and the new ones during a change", 1 << 21),
    ("IPCACHE", "identities of addresses", 1 << 17),
    ("CIDRS", "identities of networks", 1 << 16),
    ("RULE_COUNTERS", "decisions by rule, per CPU", 1 << 16),
    ("EVENTS", "events, for the agent", 1 << 20),
    ("EVENT_BUDGET", "events reported and suppressed, per CPU", 1),
];

/// Words of the [`Config`] map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Config {
    /// The policy generation.
    pub generation: u32,
    /// Main-table entry pairs an endpoint may have.
    pub flow_quota: u32,
    /// UDP ports that only tunnels use, big-endian; 0: none.
    #[cfg(not(feature = "previous-abi"))]
    pub tunnel_ports: [[u8; 2]; 4],
    /// Kinds of events that are wanted; see [`crate::event::kind`].
    #[cfg(not(feature = "previous-abi"))]
    pub events: u32,
    /// Events that each CPU reports in a window of [`crate::event::WINDOW_JIFFIES`], at most.
    #[cfg(not(feature = "previous-abi"))]
    pub event_rate: u32,
}

#[cfg(not(feature = "previous-abi"))]
impl Config {
    /// [`Config::tunnel_ports`].
    #[inline(always)]
    pub const fn tunnels(&self) -> [[u8; 2]; 4] {
        self.tunnel_ports
    }
    /// [`Config::events`].
    #[inline(always)]
    pub const fn kinds(&self) -> u8 {
        self.events as u8
    }
    /// [`Config::event_rate`].
    #[inline(always)]
    pub const fn rate(&self) -> u32 {
        self.event_rate
    }
}

/// The layout before this one knew nothing of these.
#[cfg(feature = "previous-abi")]
impl Config {
    /// None.
    #[inline(always)]
    pub const fn tunnels(&self) -> [[u8; 2]; 4] {
        [[0; 2]; 4]
    }
    /// None.
    #[inline(always)]
    pub const fn kinds(&self) -> u8 {
        0
    }
    /// None.
    #[inline(always)]
    pub const fn rate(&self) -> u32 {
        0
    }
}

/// Bytes of [`Config`] in the layout before this one, which began alike.
pub const CONFIG_1: usize = 8;
const _: () = assert!(size_of::<Config>() == if cfg!(feature = "previous-abi") { CONFIG_1 } else { 24 });
