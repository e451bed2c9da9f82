//! The datapath's packet and maps as ordinary values, so that the same pipeline runs in tests and simulations.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::addr::{Address, V4, V6};
use crate::checksum;
use crate::endpoint::{EndpointCounters, EndpointMaps, EndpointRow, FlowCount, HALF_OPEN_QUOTA, HostMaps};
use crate::event::{EventMaps, EventRow};
use crate::family;
use crate::flow::fragment::{FragmentKey, FragmentMaps, FragmentRow};
use crate::flow::track::{Seen, Treatment};
use crate::flow::{CacheSlot, FlowEntry, FlowKey, FlowMaps, InsertError, NO_MEMBER, Rewrite, Table, Work};
use crate::hash::STAMPS;
use crate::judge::Judge;
use crate::lb::pick::Picking;
use crate::lb::{
    self, AffinityKey, AffinityRow, Filter, GroupRow, LbMaps, LocalKey, MemberAnswers, MemberCounters, MemberEvent, MemberRow,
    VipKey, VipRow,
};
use crate::map::MAGLEV_BLOCK;
use crate::packet::Packet;
use crate::parse::Headers;
use crate::pipeline::{Scratch, Ways};
use crate::policy::evaluate::{Judged, Question};
use crate::policy::{ADDRESS_BITS, AddressKey, PeerKey, PolicyMaps, PortRow, RuleCounters, RuleRow, SetRow};
use crate::verdict::{Direction, Reason};

/// A frame in memory, with what the kernel keeps beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The L4 checksum is still partial: the device completes it.
    pub partial: bool,
    /// `gso_size`.
    pub segment: u32,
    /// `skb->data_len`: so many bytes at the end are not linear.
    pub paged: usize,
    /// [`Packet::set_to_host`] was called.
    pub to_host: bool,
    /// `skb->mark`.
    pub mark: u32,
    /// Copies that were sent, by device.
    pub copies: Vec<(u32, Vec<u8>)>,
}

impl Frame {
    /// How many bytes are linear.
    fn linear(&self) -> usize {
        self.bytes.len().saturating_sub(self.paged)
    }
}

impl Packet for Frame {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let end = offset.checked_add(N).filter(|end| *end <= self.linear())?;
        self.bytes.get(offset..end)?.try_into().ok()
    }
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let end = offset.checked_add(N).filter(|end| *end <= self.linear())?;
        self.bytes.get_mut(offset..end)?.copy_from_slice(&bytes);
        Some(())
    }
    fn pull(&mut self, bytes: u32) {
        self.paged = self.paged.min(self.bytes.len().saturating_sub(bytes as usize));
    }
    fn size(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn segment(&self) -> u32 {
        self.segment
    }
    fn l4_checksum(&mut self, offset: usize, diff: u32, pseudo: bool, udp: bool, _ipv6: bool) -> Option<()> {
        let field: [u8; 2] = self.read(offset)?;
        if udp && field == [0, 0] {
            return Some(()); // BPF_F_MARK_MANGLED_0
        }
        self.write(offset, checksum::kernel_replace(field, self.partial, diff, pseudo, udp))
    }
    fn push_front(&mut self, bytes: u32) -> Option<()> {
        self.bytes.splice(0..0, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }
    fn set_len(&mut self, len: u32) -> Option<()> {
        self.paged = self.paged.min((len as usize).saturating_sub(self.linear()));
        self.bytes.resize(len as usize, 0);
        self.segment = 0;
        Some(())
    }
    fn mark(&self) -> u32 {
        self.mark
    }
    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
    fn copy_to(&mut self, ifindex: u32) {
        self.copies.push((ifindex, self.bytes.clone()));
    }
    fn set_to_host(&mut self) {
        self.to_host = true;
    }
}

/// How many half-open flows an endpoint ever had, and the newest of them by their place.
type Ring<A> = (u32, HashMap<u32, FlowKey<A>>);

/// The flow tables of one family.
#[derive(Debug, Default)]
pub struct Flows<A: Address> {
    /// [`Table::Main`].
    pub main: RefCell<HashMap<FlowKey<A>, FlowEntry<A>>>,
    /// [`Table::HalfOpen`].
    pub half_open: RefCell<HashMap<FlowKey<A>, FlowEntry<A>>>,
    /// The cache of the one CPU there is, by slot.
    pub cache: RefCell<HashMap<u32, CacheSlot<A>>>,
    /// Half-open flows in the order of their arrival, by endpoint slot.
    rings: RefCell<HashMap<u32, Ring<A>>>,
}

/// All maps.
#[derive(Debug)]
pub struct Maps {
    /// [`HostMaps::generation`].
    pub generation: Cell<u32>,
    /// [`HostMaps::now`].
    pub now: Cell<u32>,
    /// Main-table flows an endpoint may have.
    pub flow_quota: u32,
    /// Entries that each flow table may hold.
    pub capacity: usize,
    /// Slots of the flow cache: a power of two, at least [`crate::flow::CACHE_WAYS`], or 0 for none.
    pub cache_slots: u32,
    /// Endpoints by ifindex.
    pub endpoints: HashMap<u32, EndpointRow>,
    /// Their counters by slot.
    pub counters: RefCell<HashMap<u32, EndpointCounters>>,
    /// Flows taken less those given back, by slot.
    pub flow_counts: RefCell<HashMap<u32, u32>>,
    /// IPv4 flows.
    pub flows4: Flows<V4>,
    /// IPv6 flows.
    pub flows6: Flows<V6>,
    /// Stamps by slot.
    pub stamps: RefCell<HashMap<u32, u32>>,
    /// Set bits of the filters, as (word, bit).
    pub filters: std::collections::HashSet<(u32, u32)>,
    /// VIPs.
    pub vips: HashMap<VipKey, VipRow>,
    /// Groups.
    pub groups: Vec<GroupRow>,
    /// Members.
    pub members: Vec<MemberRow>,
    /// Their counters.
    pub member_counters: RefCell<HashMap<u32, MemberCounters>>,
    /// How they answer.
    pub member_answers: RefCell<HashMap<u32, MemberAnswers>>,
    /// Connections that are being opened, by slot; see [`lb::connecting`].
    pub connecting: RefCell<HashMap<u32, u64>>,
    /// Microseconds since some time in the past.
    pub micros: Cell<u32>,
    /// Pick tables.
    pub maglev: Vec<[u32; MAGLEV_BLOCK]>,
    /// Flows given in turn, by group.
    pub turns: RefCell<HashMap<u32, u32>>,
    /// Flows that are not closed, by member.
    pub active: RefCell<HashMap<u32, i64>>,
    /// Members that clients stick to.
    pub affinity: RefCell<HashMap<AffinityKey, AffinityRow>>,
    /// Datagrams whose first fragment was seen.
    pub fragments: RefCell<HashMap<FragmentKey, FragmentRow>>,
    /// [`LbMaps::seconds`].
    pub seconds: Cell<u32>,
    /// Endpoint addresses.
    pub locals: HashMap<LocalKey, u32>,
    /// UDP ports of tunnels, big-endian.
    pub tunnel_ports: Vec<[u8; 2]>,
    /// The policy.
    pub policy: Policy,
    /// Kinds of events that are wanted.
    pub events: Cell<u8>,
    /// Events that were reported.
    pub reported: RefCell<Vec<EventRow>>,
}

/// The policy's tables.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Sets by row.
    pub sets: HashMap<u32, SetRow>,
    /// Rules.
    pub rules: Vec<RuleRow>,
    /// Ports.
    pub ports: Vec<PortRow>,
    /// Bits.
    pub bits: Vec<u64>,
    /// Peers.
    pub peers: HashMap<PeerKey, u32>,
    /// Identities of addresses.
    pub ipcache: HashMap<AddressKey, u32>,
    /// Identities of networks, by bits of the key that count.
    pub cidrs: HashMap<(u32, AddressKey), u32>,
    /// Counters by rule number.
    pub counters: RefCell<HashMap<u32, RuleCounters>>,
}

impl Policy {
    /// See [`PolicyMaps::identity`].
    #[must_use]
    pub fn identity(&self, key: &AddressKey) -> u32 {
        let longest = || (0..=ADDRESS_BITS + 128).rev().find_map(|bits| self.cidrs.get(&(bits, masked(key, bits))));
        self.ipcache.get(key).or_else(longest).copied().unwrap_or(crate::policy::identity::UNKNOWN)
    }
}

impl Default for Maps {
    fn default() -> Self {
        Self {
            generation: Cell::new(1),
            now: Cell::new(1000),
            flow_quota: 1 << 16,
            capacity: 1 << 16,
            cache_slots: 1 << 10,
            endpoints: HashMap::new(),
            counters: RefCell::default(),
            flow_counts: RefCell::default(),
            flows4: Flows::default(),
            flows6: Flows::default(),
            stamps: RefCell::default(),
            filters: std::collections::HashSet::new(),
            vips: HashMap::new(),
            groups: Vec::new(),
            members: Vec::new(),
            member_counters: RefCell::default(),
            member_answers: RefCell::default(),
            connecting: RefCell::default(),
            micros: Cell::new(1),
            maglev: Vec::new(),
            turns: RefCell::default(),
            active: RefCell::default(),
            affinity: RefCell::default(),
            fragments: RefCell::default(),
            seconds: Cell::new(1000),
            locals: HashMap::new(),
            tunnel_ports: Vec::new(),
            policy: Policy::default(),
            events: Cell::new(0),
            reported: RefCell::default(),
        }
    }
}

/// An address whose flow tables [`Maps`] has.
pub trait Family: Address {
    /// Those tables.
    fn flows(maps: &Maps) -> &Flows<Self>;
}
impl Family for V4 {
    fn flows(maps: &Maps) -> &Flows<Self> {
        &maps.flows4
    }
}
impl Family for V6 {
    fn flows(maps: &Maps) -> &Flows<Self> {
        &maps.flows6
    }
}

impl<A: Address> Flows<A> {
    fn table(&self, table: Table) -> &RefCell<HashMap<FlowKey<A>, FlowEntry<A>>> {
        match table {
            Table::Main => &self.main,
            Table::HalfOpen => &self.half_open,
        }
    }
}

impl HostMaps for Maps {
    fn generation(&self) -> u32 {
        self.generation.get()
    }
    fn now(&self) -> u32 {
        self.now.get()
    }
    fn is_tunnel_port(&self, port: [u8; 2]) -> bool {
        self.tunnel_ports.contains(&port)
    }
}

impl EndpointMaps for Maps {
    fn endpoint(&self, ifindex: u32) -> Option<&EndpointRow> {
        self.endpoints.get(&ifindex)
    }
    fn count(&self, slot: u32, direction: Direction, reason: Reason, bytes: u32) {
        self.counters.borrow_mut().entry(slot).or_default().count(direction, reason, bytes);
    }
    fn take_flow(&self, slot: u32, anyway: bool) -> bool {
        let mut counts = self.flow_counts.borrow_mut();
        let n = counts.entry(slot).or_default();
        let free = anyway || FlowCount { created: *n, removed: 0 }.flows() < self.flow_quota;
        *n = n.wrapping_add(u32::from(free));
        free
    }
    fn give_flow(&self, slot: u32) {
        if let Some(n) = self.flow_counts.borrow_mut().get_mut(&slot) {
            *n = n.wrapping_sub(1);
        }
    }
}

impl<A: Family> FlowMaps<A> for Maps {
    fn cache_slot(&self, hash: u32) -> Option<u32> {
        Some(hash & self.cache_slots.checked_sub(1)?)
    }
    fn cached<R>(&self, slot: u32, f: impl FnOnce(&mut CacheSlot<A>) -> R) -> Option<R> {
        let mut cache = A::flows(self).cache.borrow_mut();
        Some(f(cache.entry(slot).or_insert_with(|| CacheSlot::empty(FlowKey::default(), Rewrite::default()))))
    }
    fn is_cached(&self, slot: u32, key: &FlowKey<A>) -> bool {
        self.cached(slot, |s| s.key.is(key)) == Some(true)
    }
    fn stamp(&self, hash: u32) -> u32 {
        self.stamps.borrow().get(&(hash % STAMPS)).copied().unwrap_or(0)
    }
    fn bump_stamp(&self, hash: u32) {
        *self.stamps.borrow_mut().entry(hash % STAMPS).or_default() += 1;
    }
    fn flow(&self, table: Table, key: &FlowKey<A>, into: &mut FlowEntry<A>) -> bool {
        A::flows(self).table(table).borrow().get(key).map(|e| *into = *e).is_some()
    }
    fn insert(&self, table: Table, key: &FlowKey<A>, entry: &FlowEntry<A>) -> Result<(), InsertError> {
        let mut t = A::flows(self).table(table).borrow_mut();
        if t.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if t.len() >= self.capacity {
            return Err(InsertError::Full);
        }
        t.insert(*key, *entry);
        Ok(())
    }
    fn update(&self, table: Table, key: &FlowKey<A>, f: impl FnOnce(&mut FlowEntry<A>)) -> bool {
        A::flows(self).table(table).borrow_mut().get_mut(key).map(f).is_some()
    }
    fn add(&self, table: Table, key: &FlowKey<A>, packets: u32, bytes: u32, now: u32) -> bool {
        self.update(table, key, |e: &mut FlowEntry<A>| {
            e.packets += u64::from(packets);
            e.bytes += u64::from(bytes);
            e.last_seen = now;
        })
    }
    fn remove(&self, table: Table, key: &FlowKey<A>) -> bool {
        A::flows(self).table(table).borrow_mut().remove(key).is_some()
    }
    fn replace_oldest(&self, slot: u32, key: &FlowKey<A>, oldest: &mut FlowKey<A>) -> bool {
        let mut rings = A::flows(self).rings.borrow_mut();
        let (head, ring) = rings.entry(slot).or_default();
        *head += 1;
        match ring.insert(*head % HALF_OPEN_QUOTA, *key) {
            Some(old) => {
                *oldest = old;
                true
            }
            None => false,
        }
    }
}

impl LbMaps for Maps {
    fn filter(&self, kind: Filter, hash: u32) -> bool {
        self.filters.contains(&kind.place(hash))
    }
    fn vip(&self, key: &VipKey) -> Option<VipRow> {
        self.vips.get(key).copied()
    }
    fn group(&self, index: u32) -> Option<&GroupRow> {
        self.groups.get(index as usize)
    }
    fn member(&self, index: u32) -> Option<&MemberRow> {
        self.members.get(index as usize)
    }
    fn pick(&self, block: u32, slot: u32) -> Option<u32> {
        let block = self.maglev.get(block as usize + slot as usize / MAGLEV_BLOCK)?;
        block.get(slot as usize % MAGLEV_BLOCK).copied()
    }
    fn member_event(&self, index: u32, event: MemberEvent) {
        if index == NO_MEMBER {
            return;
        }
        let mut counters = self.member_counters.borrow_mut();
        let c = counters.entry(index).or_default();
        match event {
            MemberEvent::NewFlow => c.new_flows += 1,
            MemberEvent::Established => c.established += 1,
            MemberEvent::Reset => c.resets += 1,
            MemberEvent::ResetByMember => {
                c.resets += 1;
                self.member_answers.borrow_mut().entry(index).or_default().resets += 1;
            }
            MemberEvent::GivenUp => {
                c.resets += 1;
                self.member_answers.borrow_mut().entry(index).or_default().given_up += 1;
            }
            MemberEvent::Unreachable => self.member_answers.borrow_mut().entry(index).or_default().unreachable += 1,
        }
    }
    fn member_traffic(&self, index: u32, direction: Direction, packets: u32, bytes: u32) {
        if index == NO_MEMBER {
            return;
        }
        let mut counters = self.member_counters.borrow_mut();
        let c = counters.entry(index).or_default();
        c.packets[direction as usize] += u64::from(packets);
        c.bytes[direction as usize] += u64::from(bytes);
    }
    fn opening(&self, hash: u32) {
        self.connecting.borrow_mut().insert(hash % lb::CONNECTING, lb::connecting(hash, self.micros.get()));
    }
    fn answered(&self, index: u32, hash: u32) {
        let word = self.connecting.borrow().get(&(hash % lb::CONNECTING)).copied().unwrap_or(0);
        if let Some(us) = lb::connected(word, hash, self.micros.get()) {
            self.member_answers.borrow_mut().entry(index).or_default().count_connect(us);
        }
    }
    fn turn(&self, group: u32) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let n = turns.entry(group).or_default();
        *n = n.wrapping_add(1);
        n.wrapping_sub(1)
    }
    fn active(&self, member: u32) -> u32 {
        self.active.borrow().get(&member).map_or(0, |n| (*n).max(0) as u32)
    }
    fn add_active(&self, member: u32, more: bool) {
        if member != NO_MEMBER {
            *self.active.borrow_mut().entry(member).or_default() += if more { 1 } else { -1 };
        }
    }
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRow> {
        self.affinity.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey, row: &AffinityRow) {
        self.affinity.borrow_mut().insert(*key, *row);
    }
    fn seconds(&self) -> u32 {
        self.seconds.get()
    }
    fn local(&self, key: &LocalKey) -> Option<u32> {
        self.locals.get(key).copied()
    }
}

impl FragmentMaps for Maps {
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        self.fragments.borrow().get(key).copied()
    }
    fn set_fragment(&self, key: &FragmentKey, row: &FragmentRow) {
        self.fragments.borrow_mut().insert(*key, *row);
    }
}

impl<A: Family> Judge<A> for Maps {}
impl<A: Family + family::Family> Ways<Frame, A> for Maps {}

impl PolicyMaps for Maps {
    fn identity(&self, key: &AddressKey) -> u32 {
        self.policy.identity(key)
    }
    fn set(&self, row: u32) -> Option<&SetRow> {
        self.policy.sets.get(&row)
    }
    fn peer(&self, key: &PeerKey) -> Option<u32> {
        self.policy.peers.get(key).copied()
    }
    fn port(&self, row: u32) -> Option<&PortRow> {
        self.policy.ports.get(row as usize)
    }
    fn bits(&self, word: u32) -> Option<u64> {
        self.policy.bits.get(word as usize).copied()
    }
    fn rule(&self, row: u32) -> Option<&RuleRow> {
        self.policy.rules.get(row as usize)
    }
    fn rule_hit(&self, id: u32, bytes: u32, staged: bool) {
        let mut counters = self.policy.counters.borrow_mut();
        counters.entry(id).or_default().count(bytes, staged);
    }
}

/// The first `bits` bits of a key, in the order in which the kernel's longest-prefix map has them.
#[must_use]
pub fn masked(key: &AddressKey, bits: u32) -> AddressKey {
    let mut addr = key.addr;
    let keep = bits.saturating_sub(ADDRESS_BITS);
    for (i, byte) in (0..).zip(&mut addr) {
        *byte &= match keep.saturating_sub(8 * i) {
            0 => 0,
            n @ 1..8 => !(0xff >> n),
            _ => 0xff,
        };
    }
    AddressKey { addr, ..*key }
}

impl EventMaps for Maps {
    fn events(&self) -> u8 {
        self.events.get()
    }
    fn report(&self, event: &mut EventRow) {
        event.jiffies = u64::from(self.now.get());
        self.reported.borrow_mut().push(*event);
    }
}

/// Empty room to work in.
pub fn scratch() -> Scratch {
    Scratch { v4: work(), v6: work() }
}

fn work<A: Address>() -> Work<A> {
    let a = A::default();
    Work {
        headers: Headers {
            src: a,
            dst: a,
            sport: [0; 2],
            dport: [0; 2],
            protocol: 0,
            tcp: 0,
            ttl: 0,
            fragment: false,
            later: false,
            alone: false,
            id: 0,
            dont_fragment: false,
            l4: 0,
        },
        seen: Seen { key: FlowKey::default(), bytes: 0, generation: 0, now: 0, tcp: 0, hash: 0, stamp: 0 },
        treatment: Treatment { rewrite: Rewrite::default(), member: 0, flags: 0 },
        todo: crate::deliver::Todo::Pass,
        reason: Reason::NotOurs,
        table: Table::Main,
        flooded: false,
        routed: false,
        device: 0,
        mtu: 0,
        entry: FlowEntry::default(),
        partner: FlowKey::default(),
        other: FlowEntry::default(),
        spare: FlowKey::default(),
        question: Question::default(),
        judged: Judged::default(),
        judged_member: Judged::default(),
        group: Picking::default(),
        event: EventRow::default(),
    }
}
