//! Events: what the programs report about single packets, through the ring buffer `EVENTS`.
//!
//! Off, they cost one bit of a word that is read anyway. On, at most [`crate::map::Config::event_rate`] are reported for each
//! CPU and [`WINDOW_JIFFIES`]; what is above is counted ([`EventBudget::suppressed`]), never silently lost.

/// Length of the window of the rate limit.
pub const WINDOW_JIFFIES: u32 = 64;

/// Why an event was reported; bits of [`crate::map::Config::events`], and values of [`EventRow::kind`] (one bit).
pub mod kind {
    /// A packet was dropped or refused by policy, anti-spoofing or quarantine, or since there was no room for its flow.
    pub const DROP: u8 = 1;
    /// A rule that asks for it (`log: true`) decided about a flow.
    pub const LOG: u8 = 1 << 1;
    /// A staged rule would have decided otherwise.
    pub const STAGED: u8 = 1 << 2;
    /// A rule that does not ask for it decided that a flow, or a packet that makes none, may be.
    pub const FLOW: u8 = 1 << 3;
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct EventRow {
    /// Jiffies.
    pub jiffies: u64,
    /// The endpoint's number.
    pub endpoint: u32,
    /// The deciding rule, or 0.
    pub rule: u32,
    /// The peer's identity, where it was looked up; else 0.
    pub peer: u32,
    /// The frame's length in bytes.
    pub bytes: u32,
    /// Source address: IPv4 in the first four bytes, or IPv6.
    pub src: [u8; 16],
    /// Destination address, likewise.
    pub dst: [u8; 16],
    /// Source port, big-endian.
    pub sport: [u8; 2],
    /// Destination port, big-endian; ICMP: type and code.
    pub dport: [u8; 2],
    /// IP protocol number; 0 for what is not IP.
    pub protocol: u8,
    /// 4, 6, or 0 for what is not IP.
    pub version: u8,
    /// A [`crate::verdict::Direction`].
    pub direction: u8,
    /// A [`crate::verdict::Reason`].
    pub reason: u8,
    /// See [`kind`].
    pub kind: u8,
    /// TCP flags, or 0.
    pub tcp: u8,
    /// The EtherType, big-endian.
    pub ethertype: [u8; 2],
    /// Zero.
    pub pad: [u8; 4],
}

/// What is left of a CPU's rate limit; row 0 of a per-CPU array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct EventBudget {
    /// Events over the limit, or for which the ring buffer had no room, ever.
    pub suppressed: u64,
    /// Events reported, ever.
    pub reported: u64,
    /// The window: jiffies divided by [`WINDOW_JIFFIES`].
    pub window: u32,
    /// Events reported in it.
    pub used: u32,
}

const _: () = assert!(size_of::<EventRow>() == 72 && size_of::<EventBudget>() == 24);

/// Where events go.
pub trait EventMaps {
    /// The kinds of events that are wanted.
    fn events(&self) -> u8;
    /// Notes the time in an event and reports it, or counts it as suppressed.
    fn report(&self, event: &mut EventRow);
}
