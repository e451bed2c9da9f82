//! Load balancing in the sender's own egress path.
//!
//! A packet addressed to a VIP, protocol and port that a group has gets a member: the one of its flow if there is one,
//! else the one that the group's Maglev table gives for its tuple. The destination is rewritten; replies are rewritten
//! back where they enter the client. A VIP behaves like a host: it answers ping, ARP and neighbour solicitations (where
//! it is on the client's segment), and refuses ports that no group has.

pub mod pick;
pub mod vip;

/// Key of a VIP row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct VipKey {
    /// The network; 0 is the default one.
    pub network: u32,
    /// IPv4 in the first four bytes, or IPv6.
    pub addr: [u8; 16],
    /// Big-endian; 0 (with protocol 0) for the row of the address itself.
    pub port: [u8; 2],
    /// IP protocol number, or 0.
    pub protocol: u8,
    /// 4 or 6; with more bits in rows for several ports, see [`VipKey::range`].
    pub version: u8,
}

/// What a VIP, protocol and port lead to. Rows of addresses (port and protocol 0) say that the address is a VIP, and which
/// rows for ranges of ports it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct VipRow {
    /// Row of the group. Of an address: bit *n* says that there may be rows for the first *n* bits of ports.
    pub group: u32,
    /// [`GroupRow::serial`] of that group; 0 of an address.
    pub serial: u32,
}

impl VipKey {
    /// The key of the row for all ports that begin with the first `bits` (0 to 15) bits of `port`. A range of ports is made of
    /// such rows; the one with the most bits counts.
    #[inline(always)]
    pub const fn range(self, bits: u32) -> Self {
        let port = u16::from_be_bytes(self.port) & !(0xffff_u32 >> bits) as u16;
        Self { port: port.to_be_bytes(), version: self.version | RANGE | (bits as u8) << 4, ..self }
    }

    /// Is it the key of a row for several ports?
    pub const fn is_range(&self) -> bool {
        self.version & RANGE != 0
    }

    /// Is it the key of the row of an address itself?
    pub const fn is_address(&self) -> bool {
        self.protocol == 0
    }
}

/// In [`VipKey::version`]: the row is for several ports; the upper half says how many bits of the port count.
const RANGE: u8 = 8;

/// Bits of [`GroupRow::flags`].
pub mod flags {
    /// With no member to take a new flow: drop silently instead of refusing.
    pub const EMPTY_DROP: u32 = 1;
    /// A flow whose member was removed gets a fresh pick instead of a reset.
    pub const REMOVED_REPICK: u32 = 1 << 1;
    /// Deliver to members on this host past the stack.
    pub const REDIRECT: u32 = 1 << 2;
    /// New flows of a client go where its last one went, for as many seconds as [`affinity_seconds`] says.
    pub const AFFINITY: u32 = 1 << 3;
    /// How a slot of the pick table is found: one of the next four.
    pub const ALGORITHM: u32 = 3 << 4;
    /// By the hash of the flow's tuple; the table is a Maglev table.
    pub const MAGLEV: u32 = 0;
    /// One after the other; the table is a sequence in which every member is as often as its weight says.
    pub const ROUND_ROBIN: u32 = 1 << 4;
    /// Who has the fewest flows for its weight; every member has one slot.
    pub const LEAST_CONNECTIONS: u32 = 2 << 4;
    /// By the hash of the client's address; the table is a Maglev table.
    pub const SOURCE_HASH: u32 = 3 << 4;

    /// Where the seconds begin in the flags.
    const SECONDS: u32 = 8;

    /// The bits for an affinity that ends so many seconds after a client's last new flow, at most 2²⁴ − 1.
    pub const fn affinity(seconds: u32) -> u32 {
        AFFINITY | seconds << SECONDS
    }

    /// The seconds in the flags.
    #[inline(always)]
    pub const fn affinity_seconds(flags: u32) -> u32 {
        flags >> SECONDS
    }
}

/// A load balancer's group of members for one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct GroupRow {
    /// The pick table: first block in the upper half, number of slots in the lower. One word, so that it changes at once.
    /// 0 slots: no member takes new flows.
    pub table: u64,
    /// Differs for every group that ever had this row.
    pub serial: u32,
    /// See [`flags`].
    pub flags: u32,
}

/// Values of [`MemberRow::state`].
pub mod state {
    /// The row is free, or its member was removed.
    pub const NONE: u8 = 0;
    /// Takes new flows (as the pick table says) and keeps its own.
    pub const ACTIVE: u8 = 1;
    /// Keeps its flows.
    pub const DRAINING: u8 = 2;
    /// Fails its health check, or its connections do; keeps its flows.
    pub const DOWN: u8 = 3;
}

/// A member of a group. Where it is may change while flows go on; what it is may not (another address is another member).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct MemberRow {
    /// IPv4 in the first four bytes, or IPv6.
    pub addr: [u8; 16],
    /// Its MAC, or zero when not known.
    pub mac: [u8; 6],
    /// Its port, big-endian.
    pub port: [u8; 2],
    /// Differs for every member that ever had this row.
    pub serial: u32,
    /// Row of its group.
    pub group: u32,
    /// The host-side device of the member when it is an endpoint of this host; else 0.
    pub ifindex: u32,
    /// The bridge (its ifindex) on which the member can be reached by its MAC, or 0.
    pub segment: u32,
    /// See [`state`].
    pub state: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// Its share of new flows against the others' (for [`flags::LEAST_CONNECTIONS`]); 0: none.
    pub share: u32,
    /// Its flows of other hosts' clients, about (for [`flags::LEAST_CONNECTIONS`]).
    pub elsewhere: u32,
    /// Zero.
    pub pad_more: [u8; 12],
}

/// Whose new flows stick to a member; see [`flags::AFFINITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct AffinityKey {
    /// Row of the group.
    pub group: u32,
    /// [`GroupRow::serial`] of that group.
    pub serial: u32,
    /// The client.
    pub client: [u8; 16],
}

/// The member that they stick to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct AffinityRow {
    /// Row of the member.
    pub member: u32,
    /// [`MemberRow::serial`] of that member.
    pub serial: u32,
    /// The low half of [`LbMaps::seconds`] at the client's last new flow.
    pub seconds: u32,
}

/// What a member got and gave, per CPU, less what flow caches still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct MemberCounters {
    /// Flows given to it.
    pub new_flows: u64,
    /// Of those, connections that completed their handshake, and UDP flows.
    pub established: u64,
    /// Connections that were reset, by either side.
    pub resets: u64,
    /// Packets by [`crate::verdict::Direction`] as seen from the client.
    pub packets: [u64; 2],
    /// Bytes likewise.
    pub bytes: [u64; 2],
}

/// How a member answers, per CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct MemberAnswers {
    /// Of [`MemberCounters::resets`], those that the member sent.
    pub resets: u64,
    /// Flows about which an ICMP error said that it, or its port, cannot be reached.
    pub unreachable: u64,
    /// Connections that the client reset after the member had answered, before it answered itself.
    pub given_up: u64,
    /// Microseconds from SYN to SYN-ACK, of all connections that it answered.
    pub connect_us: u64,
    /// Those connections, by that time: see [`connect_bucket`].
    pub connects: [u64; CONNECT_BUCKETS],
}

impl MemberAnswers {
    /// Counts a connection that took so many microseconds to be answered.
    #[inline(always)]
    pub fn count_connect(&mut self, us: u32) {
        self.connect_us += u64::from(us);
        if let Some(n) = self.connects.get_mut(connect_bucket(us)) {
            *n += 1;
        }
    }
}

/// Buckets of [`MemberAnswers::connects`].
pub const CONNECT_BUCKETS: usize = 8;

/// The bucket of a connection that took so many microseconds: the first ends below 64 µs, each of the next at four times as much, the last never.
#[inline(always)]
pub const fn connect_bucket(us: u32) -> usize {
    let (mut bucket, mut end) = (0, 64);
    while bucket < CONNECT_BUCKETS - 1 && us >= end {
        (bucket, end) = (bucket + 1, end << 2);
    }
    bucket
}

/// Slots for the times of connections that are being opened; a connection has that of its hash, until another one takes it.
pub const CONNECTING: u32 = 65_536;

/// When the connection with this hash was opened, as one word.
#[inline(always)]
pub const fn connecting(hash: u32, us: u32) -> u64 {
    (hash as u64) << 32 | us as u64
}

/// How many microseconds ago that was, if the word is about the connection with this hash; a minute at most.
#[inline(always)]
pub const fn connected(word: u64, hash: u32, us: u32) -> Option<u32> {
    let took = us.wrapping_sub(word as u32);
    if (word >> 32) as u32 == hash && word != 0 && took < 60_000_000 { Some(took) } else { None }
}

const _: () = assert!(size_of::<VipKey>() == 24 && size_of::<VipRow>() == 8 && size_of::<GroupRow>() == 16);
const _: () = assert!(size_of::<AffinityKey>() == 24 && size_of::<AffinityRow>() == 12);
const _: () = assert!(size_of::<MemberAnswers>() == 96);
const _: () = assert!(size_of::<MemberRow>() == 64 && size_of::<MemberCounters>() == 56);

/// Which addresses a filter bit stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Filter {
    /// VIPs: asked of packets from endpoints.
    Vip = 0,
    /// Members: asked of packets to endpoints.
    Member = 1,
}

impl Filter {
    /// The word of the `FILTERS` map, and the bit in it, for a [`crate::hash::filter`].
    #[inline(always)]
    pub const fn place(self, hash: u32) -> (u32, u32) {
        (self as u32 * (crate::hash::FILTER_BITS / 64) + hash / 64, hash % 64)
    }
}

/// Something to count about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// It was given a flow.
    NewFlow,
    /// A connection completed its handshake, or a UDP flow began.
    Established,
    /// The client reset a connection.
    Reset,
    /// The same, of one that the member had answered, and the client not yet.
    GivenUp,
    /// The member reset a connection.
    ResetByMember,
    /// An ICMP error about a flow said that it cannot be reached.
    Unreachable,
}

/// The load balancer's tables.
pub trait LbMaps {
    /// Is the address's bit set? If not, it is surely none of them.
    fn filter(&self, kind: Filter, hash: u32) -> bool;
    /// The row of a VIP's port, or of a VIP's address.
    fn vip(&self, key: &VipKey) -> Option<VipRow>;
    /// A group's row.
    fn group(&self, index: u32) -> Option<&GroupRow>;
    /// A member's row.
    fn member(&self, index: u32) -> Option<&MemberRow>;
    /// The member row number in slot `slot` of the pick table that starts at `block`.
    fn pick(&self, block: u32, slot: u32) -> Option<u32>;
    /// Counts an event of a member.
    fn member_event(&self, index: u32, event: MemberEvent);
    /// Adds packets to a member's counters.
    fn member_traffic(&self, index: u32, direction: crate::verdict::Direction, packets: u32, bytes: u32);
    /// Notes when the connection with this hash was opened: now.
    fn opening(&self, hash: u32);
    /// Counts how long the member took to answer the connection with this hash.
    fn answered(&self, index: u32, hash: u32);
    /// How many flows were given turns in the group before this one; counts this one.
    fn turn(&self, group: u32) -> u32;
    /// Flows that the member has, about: those that are not closed. The agent's sweep corrects it.
    fn active(&self, member: u32) -> u32;
    /// One more or less.
    fn add_active(&self, member: u32, more: bool);
    /// Where the client's new flows go.
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRow>;
    /// Notes where the client's new flows go.
    fn set_affinity(&self, key: &AffinityKey, row: &AffinityRow);
    /// Seconds since some time in the past.
    fn seconds(&self) -> u32;
    /// The host-side device of the endpoint of this host that has the address; see [`LocalKey`].
    fn local(&self, key: &LocalKey) -> Option<u32>;
}

/// Key of the table of this host's endpoint addresses.
pub type LocalKey = crate::policy::AddressKey;
