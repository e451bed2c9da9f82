//! Endpoints: the NICs of VMs and containers, as the datapath knows them.

use crate::verdict::{Direction, Reason};

/// Half-open TCP connections an endpoint may have per address family.
pub const HALF_OPEN_QUOTA: u32 = 1024;

/// Bits of [`EndpointRow::flags`].
pub mod flags {
    /// The endpoint is a member of a group that delivers by redirect: its replies go back the same way.
    pub const REDIRECT_BACK: u16 = 1;
    /// The device is a veth whose peer is in another network namespace: `bpf_redirect_peer` can enter it.
    pub const PEER: u16 = 1 << 1;
    /// Its flows are judged by its set: [`super::EndpointRow::set`]. What cannot be judged is dropped.
    pub const POLICED: u16 = 1 << 2;
    /// It is in quarantine.
    pub const QUARANTINED: u16 = 1 << 3;
    /// Its frames must have its MAC, also inside of ARP and neighbour discovery.
    pub const CHECK_MAC: u16 = 1 << 4;
    /// Its packets must have one of its addresses, also inside of ARP and neighbour discovery.
    pub const CHECK_IP: u16 = 1 << 5;
    /// It may use ARP and neighbour discovery.
    pub const NEIGHBORS: u16 = 1 << 6;
    /// It may be a DHCP client.
    pub const DHCP: u16 = 1 << 7;
    /// It is a router: it may advertise itself as one.
    pub const ROUTER: u16 = 1 << 8;
    /// It may originate tunnel packets.
    pub const TUNNELS: u16 = 1 << 9;
}

/// One endpoint's device. Row `ifindex % ENDPOINT_ROWS` of the endpoint table, if `ifindex` matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct EndpointRow {
    /// The host-side device. Another one in this row means that this device has no row here.
    pub ifindex: u32,
    /// The endpoint's number: never 0, stable over restarts and new devices.
    pub id: u32,
    /// Row in per-endpoint tables (counters, quotas): small, reused.
    pub slot: u32,
    /// The network it is in; 0 is the default one.
    pub network: u32,
    /// The bridge that the device is a port of (its ifindex), or 0 for a routed device.
    pub segment: u32,
    /// The device's MTU in bytes.
    pub mtu: u32,
    /// The endpoint's own MAC; zero when not known.
    pub mac: [u8; 6],
    /// The MAC that the endpoint's packets to VIPs are addressed to: the bridge's, or the host-side device's.
    pub host_mac: [u8; 6],
    /// See [`flags`].
    pub flags: u16,
    /// Zero.
    pub pad: u16,
    /// Row of its set in `SETS`. One 64-bit word with the next, so that both change at once.
    pub set: u32,
    /// Its own identity.
    pub identity: u32,
    /// The number of its security group, and …
    #[cfg(not(feature = "previous-abi"))]
    pub group: u32,
    /// … how often it was moved: says which is newer, this row or the store. One word.
    #[cfg(not(feature = "previous-abi"))]
    pub moves: u32,
    /// A copy of each of its packets goes out of this device; 0: none.
    #[cfg(not(feature = "previous-abi"))]
    pub mirror: u32,
    /// Zero.
    #[cfg(not(feature = "previous-abi"))]
    pub pad2: u32,
}

impl EndpointRow {
    /// Are its flows judged by rules?
    #[inline(always)]
    pub const fn is_policed(&self) -> bool {
        self.flags & flags::POLICED != 0
    }
}

#[cfg(not(feature = "previous-abi"))]
impl EndpointRow {
    /// The number of its security group, and how often it was moved.
    pub const fn membership(&self) -> (u32, u32) {
        (self.group, self.moves)
    }
    /// The row with these.
    pub const fn with_membership(self, group: u32, moves: u32) -> Self {
        Self { group, moves, ..self }
    }
    /// The device that gets a copy of each of its packets; 0: none.
    #[inline(always)]
    pub const fn mirror(&self) -> u32 {
        self.mirror
    }
    /// The row with that.
    pub const fn with_mirror(self, mirror: u32) -> Self {
        Self { mirror, ..self }
    }
}

/// The layout before this one knew no security groups.
#[cfg(feature = "previous-abi")]
impl EndpointRow {
    /// None.
    pub const fn membership(&self) -> (u32, u32) {
        (0, 0)
    }
    /// The row as it is.
    pub const fn with_membership(self, _: u32, _: u32) -> Self {
        self
    }
    /// None.
    #[inline(always)]
    pub const fn mirror(&self) -> u32 {
        0
    }
    /// The row as it is.
    pub const fn with_mirror(self, _: u32) -> Self {
        self
    }
}

/// What was done with an endpoint's packets, per CPU; row [`EndpointRow::slot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EndpointCounters {
    /// Bytes by [`Direction`], Ethernet header included.
    pub bytes: [u64; 2],
    /// Packets by [`Direction`] and [`Reason`].
    pub packets: [[u64; crate::verdict::MAX_REASONS]; 2],
}

impl Default for EndpointCounters {
    fn default() -> Self {
        Self { bytes: [0; 2], packets: [[0; crate::verdict::MAX_REASONS]; 2] }
    }
}

impl EndpointCounters {
    /// Adds one packet.
    #[inline(always)]
    pub fn count(&mut self, direction: Direction, reason: Reason, bytes: u32) {
        let d = direction as usize;
        self.bytes[d] += u64::from(bytes);
        // The compiler knows that a reason is small enough, and would leave out the check; the verifier wants to see it.
        if let Some(n) = self.packets[d].get_mut(core::hint::black_box(reason as usize)) {
            *n += 1;
        }
    }
}

/// Bytes of a row in the layout before this one, whose rows begin alike.
pub const ROW_1: usize = 48;
const _: () = assert!(size_of::<EndpointRow>() == if cfg!(feature = "previous-abi") { ROW_1 } else { 64 });
const _: () = assert!(size_of::<EndpointCounters>() == 1008);
// `set` and `identity`, and the group and its moves, each are one aligned word.
const _: () = assert!(core::mem::offset_of!(EndpointRow, set) == 40 && core::mem::offset_of!(EndpointRow, identity) == 44);

/// How many flows an endpoint has in the main table, both families: `created - removed`, entries counted in pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowCount {
    /// Flows inserted, ever (wraps).
    pub created: u32,
    /// Flows removed, ever (wraps).
    pub removed: u32,
}

impl FlowCount {
    /// How many it has. Should more have been removed than were created, there are none: not as many as can be.
    #[inline(always)]
    pub const fn flows(&self) -> u32 {
        let n = self.created.wrapping_sub(self.removed) as i32;
        if n < 0 { 0 } else { n as u32 }
    }
}

/// Endpoints and what is kept about them.
pub trait EndpointMaps {
    /// The row of the device `ifindex`.
    fn endpoint(&self, ifindex: u32) -> Option<&EndpointRow>;
    /// Adds a packet to the counters in row `slot`.
    fn count(&self, slot: u32, direction: Direction, reason: Reason, bytes: u32);
    /// Takes one flow of the quota in row `slot`; says if there was one left. `anyway`: also where there was none.
    fn take_flow(&self, slot: u32, anyway: bool) -> bool;
    /// Gives one back.
    fn give_flow(&self, slot: u32);
}

/// What every packet needs to know of the agent and the kernel.
pub trait HostMaps {
    /// The policy generation: read it before evaluating anything.
    fn generation(&self) -> u32;
    /// The low half of jiffies.
    fn now(&self) -> u32;
    /// Is the UDP port (big-endian) one that only tunnels use?
    fn is_tunnel_port(&self, port: [u8; 2]) -> bool;
}
