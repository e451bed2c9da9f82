//! Reading the flow table: the entries, with what flow caches have not yet added to them.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vnet_common::addr::{Address, V4};
use vnet_common::flow::{FlowEntry, FlowKey, NO_MEMBER, Table, flags, tcp};
use vnet_common::hash::{self, STAMPS};
use vnet_common::verdict::Direction;

use super::clock::Clock;
use super::maps::{Maps, Source};
use super::mmap::Mapped;
use super::pending::Traffic;
use super::sys::{RawMap, zeroed};
use super::{Datapath, batch};

const TCP: u8 = 6;
/// Not counted yet.
const UNKNOWN: u32 = u32::MAX;

/// Entries of flows of one address family in one state of life.
pub(super) struct FlowTable<A: Address> {
    pub(super) entries: batch::Table<FlowKey<A>, FlowEntry<A>>,
    found: AtomicU32,
}

impl<A: Address> FlowTable<A> {
    fn new(entries: batch::Table<FlowKey<A>, FlowEntry<A>>) -> Self {
        Self { entries, found: AtomicU32::new(UNKNOWN) }
    }

    /// How many entries the collector found last.
    pub(super) fn found(&self) -> Option<u32> {
        Some(self.found.load(Ordering::Relaxed)).filter(|n| *n != UNKNOWN)
    }

    pub(super) fn set_found(&self, n: u32) {
        self.found.store(n, Ordering::Relaxed);
    }

    /// Calls `f` on every forward entry.
    fn forward(&self, mut f: impl FnMut(FlowKey<A>, FlowEntry<A>)) -> Result<()> {
        self.entries.for_each(|k, e| {
            if k.direction == Direction::Egress as u8 {
                f(k, e);
            }
        })
    }
}

/// The flow tables of one address family.
pub(super) struct FlowTables<A: Address> {
    pub(super) main: FlowTable<A>,
    pub(super) half_open: FlowTable<A>,
    pub(super) cache: RawMap,
    pub(super) cache_slots: u32,
    ring: RawMap,
}

impl<A: Address> FlowTables<A> {
    /// `names`: main table, half-open table, cache, ring. `cache` is the number of slots a CPU has, 0 for no cache.
    pub(super) fn new(s: &Source<'_>, names: [&str; 4], cache: u32) -> Result<Self> {
        let [main, half_open, slots, ring] = names;
        let cache_map = s.get(slots)?;
        Ok(Self {
            main: FlowTable::new(s.table(main)?),
            half_open: FlowTable::new(s.table(half_open)?),
            cache: cache_map.raw()?,
            cache_slots: if cache == 0 { 0 } else { cache_map.layout.max_entries },
            ring: s.get(ring)?.raw()?,
        })
    }

    /// The entries of one of the two tables.
    pub(super) fn entries(&self, table: Table) -> &batch::Table<FlowKey<A>, FlowEntry<A>> {
        match table {
            Table::Main => &self.main.entries,
            Table::HalfOpen => &self.half_open.entries,
        }
    }

    /// Removes every entry.
    pub(super) fn clear(&self) -> Result<()> {
        self.main.entries.clear()?;
        self.half_open.entries.clear()
    }

    /// How many flows in the main table an endpoint has.
    pub(super) fn pairs_of(&self, endpoint: u32) -> Result<u32> {
        let mut n = 0;
        self.main.forward(|k, _| n += u32::from(k.endpoint == endpoint))?;
        Ok(n)
    }

    /// Forgets the order of half-open flows of a slot.
    pub(super) fn clear_ring(&self, slot: u32, places: u32) -> Result<()> {
        let ring = Mapped::<FlowKey<A>>::window(self.ring.fd(), slot * places, places);
        let ring = ring.with_context(|| format!("mapping the half-open flows of slot {slot}"))?;
        let cleared = (0..places).all(|place| ring.store(place, &zeroed()));
        ensure!(cleared, "the half-open flows of slot {slot} have fewer than {places} places");
        Ok(())
    }
}

/// Where in its life a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// TCP: the handshake is not complete.
    HalfOpen,
    /// TCP: both sides may send.
    Established,
    /// TCP: one side has ended.
    Closing,
    /// TCP: both sides have ended, or one has reset.
    Closed,
    /// UDP: no reply was seen.
    New,
    /// UDP: both sides have sent.
    Replied,
}

impl FlowState {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::New => "new",
            Self::Replied => "replied",
        }
    }

    pub(super) fn new<A: Address>(protocol: u8, half_open: bool, forward: &FlowEntry<A>, reverse: Option<&FlowEntry<A>>) -> Self {
        let bits = forward.tcp | reverse.map_or(0, |r| r.tcp);
        let seen = forward.flags | reverse.map_or(0, |r| r.flags);
        match protocol {
            TCP if half_open => Self::HalfOpen,
            TCP if tcp::is_closed(bits) => Self::Closed,
            TCP if bits != 0 => Self::Closing,
            TCP => Self::Established,
            _ if seen & flags::REPLIED != 0 => Self::Replied,
            _ => Self::New,
        }
    }
}

/// One flow, both directions. Of one that is not balanced, `client` is the endpoint, `vip` and `member` the peer, whoever of the two
/// opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The endpoint that opened it.
    pub endpoint: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// The client, as it knows itself.
    pub client: SocketAddr,
    /// What it connected to.
    pub vip: SocketAddr,
    /// Who serves it.
    pub member: SocketAddr,
    /// The client's port as the member sees it.
    pub client_port_there: u16,
    /// Row of the member.
    pub member_row: u32,
    /// The member's serial when it was picked: the row may since have gone to another member.
    pub serial: u32,
    /// Row of the group.
    pub group: u32,
    /// Number of the rule that allowed it; 0: none was asked.
    pub rule: u32,
    /// See [`flags`].
    pub flags: u16,
    /// See [`tcp`].
    pub tcp: u8,
    /// Where in its life it is.
    pub state: FlowState,
    /// From and to the client.
    pub traffic: [Traffic; 2],
    /// Since the first packet.
    pub age: Duration,
    /// Since the last packet, in either direction.
    pub idle: Duration,
}

impl Flow {
    /// Does it go to a member of a group?
    pub fn is_balanced(&self) -> bool {
        self.member_row != NO_MEMBER
    }
}

fn socket<A: Address>(addr: &A, port: [u8; 2]) -> SocketAddr {
    let wide = addr.widen();
    let ip = if A::VERSION == 4 {
        IpAddr::V4(Ipv4Addr::new(wide[0], wide[1], wide[2], wide[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(wide))
    };
    SocketAddr::new(ip, u16::from_be_bytes(port))
}

/// Ticks since `then`; a last-seen time that a program wrote a moment after `now` was read counts as none.
pub(super) fn ticks_since(now: u32, then: u32) -> u32 {
    let ticks = now.wrapping_sub(then);
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}

/// When the flow was made, and by which rule.
#[cfg(not(feature = "previous-abi"))]
fn origin<A: Address>(entry: &FlowEntry<A>) -> (u32, u32) {
    (entry.created, entry.rule)
}

#[cfg(feature = "previous-abi")]
fn origin<A: Address>(entry: &FlowEntry<A>) -> (u32, u32) {
    (entry.last_seen, 0)
}

fn describe<A: Address + Hash>(
    key: &FlowKey<A>,
    entries: (&FlowEntry<A>, Option<FlowEntry<A>>),
    half_open: bool,
    pending: &HashMap<FlowKey<A>, Traffic>,
    now: (u32, &Clock),
) -> Flow {
    let (forward, reverse) = entries;
    let (now, clock) = now;
    let traffic = |key: &FlowKey<A>, entry: Option<&FlowEntry<A>>| {
        let held = pending.get(key).copied().unwrap_or_default();
        let (packets, bytes) = entry.map_or((0, 0), |e| (e.packets, e.bytes));
        // What was imported may say any number.
        Traffic { packets: packets.saturating_add(held.packets), bytes: bytes.saturating_add(held.bytes) }
    };
    let (created, rule) = origin(forward);
    let idle = ticks_since(now, forward.last_seen).min(reverse.map_or(u32::MAX, |r| ticks_since(now, r.last_seen)));
    Flow {
        endpoint: key.endpoint,
        protocol: key.protocol,
        client: socket(&key.src, key.sport),
        vip: socket(&key.dst, key.dport),
        member: socket(&forward.rewrite.addr, forward.rewrite.port),
        client_port_there: u16::from_be_bytes(forward.rewrite.client_port),
        member_row: forward.member,
        serial: forward.serial,
        group: forward.group,
        rule,
        flags: forward.flags | reverse.map_or(0, |r| r.flags),
        tcp: forward.tcp | reverse.map_or(0, |r| r.tcp),
        state: FlowState::new(key.protocol, half_open, forward, reverse.as_ref()),
        traffic: [traffic(key, Some(forward)), traffic(&key.partner(&forward.rewrite), reverse.as_ref())],
        age: clock.duration(ticks_since(now, created)),
        idle: clock.duration(idle),
    }
}

/// By what flows are chosen.
#[derive(Clone, Copy)]
struct Candidate {
    endpoint: u32,
    group: u32,
    member: u32,
}

/// Adds the flows of one table that `wanted` says yes to, up to `limit`; gives how many there are.
fn list<A: Address + Hash>(
    table: &FlowTable<A>,
    half_open: bool,
    pending: &HashMap<FlowKey<A>, Traffic>,
    now: (u32, &Clock),
    limit: usize,
    wanted: &impl Fn(Candidate) -> bool,
    out: &mut Vec<Flow>,
) -> Result<u64> {
    let (mut total, mut chosen) = (0, Vec::new());
    table.forward(|key, entry| {
        if wanted(Candidate { endpoint: key.endpoint, group: entry.group, member: entry.member }) {
            total += 1;
            if out.len() + chosen.len() < limit {
                chosen.push((key, entry));
            }
        }
    })?;
    for (key, entry) in chosen {
        let reverse = table.entries.get(&key.partner(&entry.rewrite))?;
        out.push(describe(&key, (&entry, reverse), half_open, pending, now));
    }
    Ok(total)
}

impl Maps {
    /// How many flows each member row has, of the member with that serial.
    pub fn active_flows(&self) -> Result<HashMap<(u32, u32), u64>> {
        fn count<A: Address>(tables: &FlowTables<A>, n: &mut HashMap<(u32, u32), u64>) -> Result<()> {
            for table in [&tables.main, &tables.half_open] {
                table.forward(|_, e| *n.entry((e.member, e.serial)).or_default() += 1)?;
            }
            Ok(())
        }
        let mut n = HashMap::new();
        count(&self.flows4, &mut n)?;
        count(&self.flows6, &mut n)?;
        Ok(n)
    }

    /// Puts IPv4 entries into the main table, over those that are there.
    pub fn import_flows4(&self, keys: &[FlowKey<V4>], entries: &[FlowEntry<V4>]) -> Result<()> {
        self.flows4.main.entries.put_all(keys, entries)
    }

    /// The stamp that cached copies of a flow's entry must carry.
    pub fn stamp<A: Address>(&self, key: &FlowKey<A>) -> Option<u32> {
        self.stamps.load(hash::flow(key) % STAMPS).map(|s| s as u32)
    }

    /// Makes cached copies of a flow's entry invalid, as programs do when they remove one.
    pub(super) fn bump_stamp<A: Address>(&self, key: &FlowKey<A>) {
        if let Some(stamp) = self.stamps.word64(hash::flow(key) % STAMPS, 0) {
            stamp.fetch_add(1, Ordering::Release);
        }
    }

    /// How many flows there are, half-open ones included.
    pub fn flow_total(&self) -> Result<u64> {
        Ok(self.active_flows()?.values().sum())
    }
}

impl Datapath {
    /// Up to `limit` balanced flows of the groups (by their rows) that `wanted` says yes to, and how many there are.
    pub fn flows(&self, limit: usize, wanted: impl Fn(u32) -> bool) -> Result<(Vec<Flow>, u64)> {
        self.list(limit, |c| c.member != NO_MEMBER && wanted(c.group))
    }

    /// Up to `limit` flows, balanced or not, of the endpoints (by their numbers) that `wanted` says yes to, and how many there are.
    pub fn endpoint_flows(&self, limit: usize, wanted: impl Fn(u32) -> bool) -> Result<(Vec<Flow>, u64)> {
        self.list(limit, |c| wanted(c.endpoint))
    }

    fn list(&self, limit: usize, wanted: impl Fn(Candidate) -> bool) -> Result<(Vec<Flow>, u64)> {
        let maps = self.maps();
        let pending = maps.pending()?;
        let now = (self.clock.now(maps)?, &self.clock);
        let (mut out, mut total) = (Vec::new(), 0);
        for (table, half_open) in [(&maps.flows4.main, false), (&maps.flows4.half_open, true)] {
            total += list(table, half_open, &pending.flows4, now, limit, &wanted, &mut out)?;
        }
        for (table, half_open) in [(&maps.flows6.main, false), (&maps.flows6.half_open, true)] {
            total += list(table, half_open, &pending.flows6, now, limit, &wanted, &mut out)?;
        }
        Ok((out, total))
    }

    /// The low half of the kernel's ticks, as flow entries carry it.
    pub fn now(&self) -> Result<u32> {
        self.clock.now(self.maps())
    }

    /// Ticks of the kernel's clock a second.
    pub fn ticks_per_second(&self) -> u32 {
        self.clock.rate()
    }
}
