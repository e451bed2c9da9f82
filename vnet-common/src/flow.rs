//! The flow table: what was decided for a flow, applied to its later packets without asking again.
//!
//! *Keys* name the endpoint (not its device, whose index may be reused), the direction, the network and the tuple as the
//! packet carries it on that side: the packets of two endpoints on one host cross two devices with the same tuple, and
//! networks may overlap. An LB flow has a forward entry (egress, client → VIP) and a reverse entry (ingress, member →
//! client); each can be computed from the other.
//!
//! *Three places.* [`Table::HalfOpen`] holds TCP connections until the handshake is complete, at most
//! [`crate::endpoint::HALF_OPEN_QUOTA`] an endpoint: a new one takes the place of that endpoint's oldest. [`Table::Main`]
//! holds the rest, and never evicts: an insert into a full table fails and is counted. In front is a per-CPU cache, one
//! line a slot; its counts are added to the main entry every [`FLUSH_JIFFIES`], which also keeps the last-seen time true.
//!
//! *Validity.* Entries carry the policy generation that was read before they were evaluated: another generation means
//! that they are judged again on their next packet. A cached copy also carries the stamp of its key's hash, which every
//! removal or replacement of such an entry changes: no stale copy outlives its entry on another CPU.

use crate::addr::{Address, V4, V6};

pub mod fragment;
pub mod open;
pub mod track;

/// Layout number of everything that is pinned. Any change of a map's key, value or meaning takes the next one; so does a change of
/// [`crate::hash`], which says where things lie. (There was no release yet: until then it is not raised.)
pub const ABI: u32 = if cfg!(feature = "previous-abi") { 1 } else { 2 };

/// A cached flow is written back to the main table with its first packet after this many jiffies (HZ 1000: 0.13 s; HZ 100: 1.3 s), or when its
/// slot is taken over.
pub const FLUSH_JIFFIES: u32 = 128;

/// Neighbouring slots of a CPU's flow cache in one of which a flow may be. With one, a cache twice as large as the flows are many has no room
/// for a fifth of them; with four, for 4 %. A CPU has at least as many slots.
pub const CACHE_WAYS: u32 = 4;

/// The tuple of a flow as its packets carry it at the endpoint's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct FlowKey<A> {
    /// The endpoint at whose device the packets are seen; never 0.
    pub endpoint: u32,
    /// The network; 0 is the default one.
    pub network: u32,
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, big-endian.
    pub sport: [u8; 2],
    /// Destination port, big-endian.
    pub dport: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// A [`crate::verdict::Direction`].
    pub direction: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// New values for one side's address and port, and for the other side's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Rewrite<A> {
    /// Forward: the member. Reverse: the VIP.
    pub addr: A,
    /// That side's port, big-endian.
    pub port: [u8; 2],
    /// The client's port, big-endian. Forward: as the member sees it. Reverse: as the client knows it.
    pub client_port: [u8; 2],
}

/// Bits of [`FlowEntry::flags`].
pub mod flags {
    /// The destination is rewritten (forward).
    pub const DNAT: u16 = 1;
    /// The source is rewritten back (reverse).
    pub const UNNAT: u16 = 1 << 1;
    /// Deliver past the stack where the destination is an endpoint of this host.
    pub const REDIRECT: u16 = 1 << 2;
    /// A packet in the other direction was seen.
    pub const REPLIED: u16 = 1 << 3;
    /// The flow was picked up in mid-stream: its first packet seen was no SYN.
    pub const PICKED_UP: u16 = 1 << 4;
    /// The peer opened the flow, not the endpoint.
    pub const INBOUND: u16 = 1 << 5;
    /// A rule sent the flow to a group's member ([`crate::policy::action::REDIRECT`]), no VIP.
    pub const STEERED: u16 = 1 << 6;
    /// The agent opened it, to see if the endpoint is well: no rule is asked.
    pub const PROBE: u16 = 1 << 7;
    /// The client is itself the member: both addresses are rewritten, and the packets go back to the endpoint. The answers are seen where the endpoint
    /// sends them, and yet have the reverse entry ([`super::FlowKey::direction`]): it is never cached, and found by a second look.
    pub const HAIRPIN: u16 = 1 << 8;
    /// An ICMP error said that the other side cannot be reached. (Counted once a flow; caches do not know.)
    pub const UNREACHABLE: u16 = 1 << 9;
    /// One side is rewritten.
    pub const NAT: u16 = DNAT | UNNAT;
}

/// [`FlowEntry::member`] of a flow that is not balanced.
pub const NO_MEMBER: u32 = u32::MAX;

/// Bits of [`FlowEntry::tcp`]: what both sides have sent, in both entries of a flow.
pub mod tcp {
    /// FIN from the side that opened it.
    pub const FIN_CLIENT: u8 = 1;
    /// FIN from the other side.
    pub const FIN_MEMBER: u8 = 1 << 1;
    /// RST from either.
    pub const RESET: u8 = 1 << 2;
    /// Either the flow was reset or both sides have sent a FIN.
    pub const fn is_closed(bits: u8) -> bool {
        bits & RESET != 0 || bits & (FIN_CLIENT | FIN_MEMBER) == FIN_CLIENT | FIN_MEMBER
    }
}

/// What was decided for one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowEntry<A: Address> {
    /// Packets so far, less those that caches still hold.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// What to write into the packet.
    pub rewrite: Rewrite<A>,
    /// The policy generation read before this was evaluated.
    pub generation: u32,
    /// Row of the member, or [`NO_MEMBER`].
    pub member: u32,
    /// [`crate::lb::MemberRow::serial`] at the time: the row may since have gone to another member.
    pub serial: u32,
    /// Row of the group.
    pub group: u32,
    /// The low half of jiffies at the last packet, or up to [`FLUSH_JIFFIES`] before it.
    pub last_seen: u32,
    /// The low half of jiffies at the first packet.
    #[cfg(not(feature = "previous-abi"))]
    pub created: u32,
    /// The number of the rule that allowed it; 0: nobody was asked.
    #[cfg(not(feature = "previous-abi"))]
    pub rule: u32,
    /// See [`flags`].
    pub flags: u16,
    /// See [`tcp`].
    pub tcp: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    #[cfg(not(feature = "previous-abi"))]
    pub entry_pad: A::EntryPad,
    /// Zero.
    #[cfg(feature = "previous-abi")]
    pub entry_pad: A::EntryPad1,
}

impl<A: Address> FlowEntry<A> {
    /// Was it made a moment ago: this tick or the one before?
    #[cfg(not(feature = "previous-abi"))]
    #[inline(always)]
    pub const fn is_new(&self, now: u32) -> bool {
        now.wrapping_sub(self.created) < 2
    }
    /// The layout before this one does not say.
    #[cfg(feature = "previous-abi")]
    #[inline(always)]
    pub const fn is_new(&self, _: u32) -> bool {
        false
    }
}

/// One cache line (IPv6: two) of a CPU's flow cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct CacheSlot<A: Address> {
    /// Whose; `endpoint` 0 means empty.
    pub key: FlowKey<A>,
    /// See [`FlowEntry`].
    pub rewrite: Rewrite<A>,
    /// See [`FlowEntry`].
    pub generation: u32,
    /// See [`FlowEntry`].
    pub member: u32,
    /// [`FlowMaps::stamp`] when the entry was read.
    pub stamp: u32,
    /// Packets not yet added to the main entry.
    pub packets: u32,
    /// Their bytes.
    pub bytes: u32,
    /// The low half of jiffies when the main entry was last written.
    pub flushed: u32,
    /// See [`flags`].
    pub flags: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub slot_pad: A::SlotPad,
}

const _: () = assert!(size_of::<FlowKey<V4>>() == 24 && size_of::<FlowKey<V6>>() == 48);
#[cfg(not(feature = "previous-abi"))]
const _: () = assert!(size_of::<FlowEntry<V4>>() == 56 && size_of::<FlowEntry<V6>>() == 72);
const _: () = assert!(size_of::<CacheSlot<V4>>() == 64 && size_of::<CacheSlot<V6>>() == 128);

impl<A: Address> CacheSlot<A> {
    /// A slot that holds no flow.
    pub const fn empty(key: FlowKey<A>, rewrite: Rewrite<A>) -> Self {
        Self {
            key,
            rewrite,
            generation: 0,
            member: 0,
            stamp: 0,
            packets: 0,
            bytes: 0,
            flushed: 0,
            flags: 0,
            pad: 0,
            slot_pad: A::SLOT_PAD,
        }
    }
}

impl<A: Address> FlowKey<A> {
    /// Equality, word by word: the derived comparison of byte arrays becomes a call in the kernel.
    #[inline(always)]
    pub fn is(&self, o: &Self) -> bool {
        let ports = |k: &Self| u32::from_ne_bytes([k.sport[0], k.sport[1], k.dport[0], k.dport[1]]);
        let kind = |k: &Self| u16::from_ne_bytes([k.protocol, k.direction]);
        ports(self) == ports(o)
            && self.endpoint == o.endpoint
            && self.network == o.network
            && kind(self) == kind(o)
            && self.src == o.src
            && self.dst == o.dst
    }
}

impl<A: Address> Rewrite<A> {
    /// Equality, word by word.
    #[inline(always)]
    pub fn is(&self, o: &Self) -> bool {
        let ports = |r: &Self| u32::from_ne_bytes([r.port[0], r.port[1], r.client_port[0], r.client_port[1]]);
        ports(self) == ports(o) && self.addr == o.addr
    }
}

impl<A: Address> FlowKey<A> {
    /// The key of the reverse entry of the forward entry (`self`, `rewrite`), and the other way round.
    #[inline(always)]
    pub fn partner(&self, rewrite: &Rewrite<A>) -> Self {
        let egress = self.direction == crate::verdict::Direction::Egress as u8;
        // Of a hairpin the endpoint sends both, to the VIP.
        let hairpin = self.src != self.dst && rewrite.addr == if egress { self.src } else { self.dst };
        if egress {
            Self {
                src: rewrite.addr,
                sport: rewrite.port,
                dst: if hairpin { self.dst } else { self.src },
                dport: rewrite.client_port,
                direction: crate::verdict::Direction::Ingress as u8,
                ..*self
            }
        } else {
            Self {
                src: if hairpin { self.src } else { self.dst },
                sport: rewrite.client_port,
                dst: rewrite.addr,
                dport: rewrite.port,
                direction: crate::verdict::Direction::Egress as u8,
                ..*self
            }
        }
    }

    /// What the other direction's entry of the key `self` writes back; and what an entry of this key says whose flow is not rewritten.
    #[inline(always)]
    pub fn unrewrite(&self) -> Rewrite<A> {
        if self.direction == crate::verdict::Direction::Egress as u8 {
            Rewrite { addr: self.dst, port: self.dport, client_port: self.sport }
        } else {
            Rewrite { addr: self.src, port: self.sport, client_port: self.dport }
        }
    }
}

/// Where an entry lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Connections that are being opened.
    HalfOpen,
    /// All other flows.
    Main,
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is one of this key.
    Exists,
    /// The table is full, or the kernel has no memory for the entry.
    Full,
}

impl InsertError {
    /// What a packet is dropped for whose flow could not be made. Of two CPUs that make one flow the slower one drops its packet, and the next
    /// finds the flow.
    #[inline(always)]
    pub const fn reason(self) -> crate::verdict::Reason {
        match self {
            Self::Exists => crate::verdict::Reason::FlowCollision,
            Self::Full => crate::verdict::Reason::FlowTableFull,
        }
    }
}

/// The packet being judged, and room for what is looked up and made for it.
///
/// All of it together would not fit on a program's 512-byte stack: the kernel keeps one in a per-CPU map. Outcomes are
/// returned as enums without fields, their details here: where a variant has fewer fields than another, the compiler leaves
/// the rest of the return register undefined, which the verifier does not accept of a subprogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Work<A: Address> {
    /// The packet's headers.
    pub headers: crate::parse::Headers<A>,
    /// The packet, as tracking sees it.
    pub seen: track::Seen<A>,
    /// What its flow says, when it belongs to one.
    pub treatment: track::Treatment<A>,
    /// What is to be done with it.
    pub todo: crate::deliver::Todo,
    /// Why: of the outcome of the function that was called last.
    pub reason: crate::verdict::Reason,
    /// Where the entry at hand is.
    pub table: Table,
    /// It is addressed to another MAC than the endpoint's: see [`crate::policy::guard::is_flooded`].
    pub flooded: bool,
    /// On a way past the stack: a router is spared.
    pub routed: bool,
    /// On a way past the stack: the destination's device.
    pub device: u32,
    /// On a way past the stack: that device's MTU in bytes.
    pub mtu: u32,
    /// The flow's entry at this side.
    pub entry: FlowEntry<A>,
    /// The key of the other side's entry.
    pub partner: FlowKey<A>,
    /// The other side's entry.
    pub other: FlowEntry<A>,
    /// Another key, for a moment.
    pub spare: FlowKey<A>,
    /// What rules are asked.
    pub question: crate::policy::evaluate::Question,
    /// What they answered.
    pub judged: crate::policy::evaluate::Judged,
    /// What they answered about the member.
    pub judged_member: crate::policy::evaluate::Judged,
    /// The group that a member is picked of.
    pub group: crate::lb::pick::Picking<A>,
    /// A report about the packet.
    pub event: crate::event::EventRow,
}

/// The flow tables of one address family.
pub trait FlowMaps<A: Address> {
    /// The first of the [`CACHE_WAYS`] slots that `hash` has in this CPU's cache: the others are this one's number, exclusive or 1, 2, …
    /// `None` where there is no cache.
    fn cache_slot(&self, hash: u32) -> Option<u32>;
    /// Runs `f` on a slot of this CPU's cache.
    fn cached<R>(&self, slot: u32, f: impl FnOnce(&mut CacheSlot<A>) -> R) -> Option<R>;
    /// Does the slot hold the flow? Without a closure: one that is used at many places becomes a subprogram.
    fn is_cached(&self, slot: u32, key: &FlowKey<A>) -> bool;
    /// The stamp of `hash`.
    fn stamp(&self, hash: u32) -> u32;
    /// Changes the stamp of `hash`.
    fn bump_stamp(&self, hash: u32);
    /// Copies the entry of `key` to `into`; says if there is one.
    fn flow(&self, table: Table, key: &FlowKey<A>, into: &mut FlowEntry<A>) -> bool;
    /// Inserts an entry unless there is one.
    fn insert(&self, table: Table, key: &FlowKey<A>, entry: &FlowEntry<A>) -> Result<(), InsertError>;
    /// Changes the entry of `key` in place; says if there was one. Counts must be added by [`FlowMaps::add`].
    fn update(&self, table: Table, key: &FlowKey<A>, f: impl FnOnce(&mut FlowEntry<A>)) -> bool;
    /// Adds to the entry's counts, atomically, and sets its last-seen time; says if there was one.
    fn add(&self, table: Table, key: &FlowKey<A>, packets: u32, bytes: u32, now: u32) -> bool;
    /// Removes an entry; says if there was one.
    fn remove(&self, table: Table, key: &FlowKey<A>) -> bool;
    /// Notes `key` as the newest half-open flow of the endpoint in row `slot`; copies the one whose place it took to
    /// `oldest`, and says if there was one.
    fn replace_oldest(&self, slot: u32, key: &FlowKey<A>, oldest: &mut FlowKey<A>) -> bool;
}
