//! The maps as one packet sees them: rows come from [`Rows`], what the packet changes is kept here and never written, and every question is
//! noted.

use std::cell::RefCell;
use std::collections::HashMap;

use typed_arena::Arena;
use vnet_common::addr::{Address, V4, V6};
use vnet_common::endpoint::{EndpointMaps, EndpointRow, HostMaps};
use vnet_common::event::{EventMaps, EventRow};
use vnet_common::family;
use vnet_common::flow::fragment::{FragmentKey, FragmentMaps, FragmentRow};
use vnet_common::flow::{CacheSlot, FlowEntry, FlowKey, FlowMaps, InsertError, Table};
use vnet_common::host::Frame;
use vnet_common::judge::Judge;
use vnet_common::lb::{AffinityKey, AffinityRow, Filter, GroupRow, LbMaps, LocalKey, MemberEvent, MemberRow, VipKey, VipRow};
use vnet_common::pipeline::Ways;
use vnet_common::policy::evaluate::{self, Search};
use vnet_common::policy::{AddressKey, PeerKey, PolicyMaps, PortRow, RuleRow, SetRow};
use vnet_common::verdict::{Direction, Reason};

use super::rows::Rows;
use crate::datapath::rehearsal::Picks;

/// A question that the pipeline had, and the answer; or something that it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A flow was found.
    Flow(Known),
    /// A flow was made.
    Made,
    /// Is this a VIP, or a port of one?
    Vip(VipKey, Option<VipRow>),
    /// A member was picked, or is the flow's.
    Member(u32, MemberRow),
    /// Whose address is it?
    Identity(AddressKey, u32),
    /// Which rules are about the peer?
    Peer(PeerKey, Option<u32>),
    /// Which rule matches first? Its place in the list, or [`evaluate::NONE`].
    Search(Search, u32),
    /// A rule was read: its row in `RULES`.
    Rule(u32, RuleRow),
    /// The flow's entry has another rule from now on.
    Renewed(u32),
    /// The rule with this number decided; `staged`: would have.
    Hit {
        /// [`RuleRow::id`].
        id: u32,
        /// It only counts.
        staged: bool,
    },
    /// The packet was counted, in whichever endpoint's slot.
    Counted(u32, Direction, Reason),
}

/// What is in the flow table about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where.
    pub table: Table,
    /// See [`FlowEntry`].
    pub flags: u16,
    /// See [`FlowEntry`].
    pub member: u32,
    /// Number of the rule that allowed it, or 0.
    pub rule: u32,
    /// It was judged in the present policy generation.
    pub current: bool,
    /// Ticks since the first packet.
    pub age: u32,
    /// Packets of this direction.
    pub packets: u64,
}

#[cfg(not(feature = "previous-abi"))]
fn origin<A: Address>(entry: &FlowEntry<A>) -> (u32, u32) {
    (entry.created, entry.rule)
}

#[cfg(feature = "previous-abi")]
fn origin<A: Address>(entry: &FlowEntry<A>) -> (u32, u32) {
    (entry.last_seen, 0)
}

/// What the packet changed in the flow tables: `None` was removed.
type Changes<A> = RefCell<HashMap<(Table, FlowKey<A>), Option<FlowEntry<A>>>>;

/// See the module.
pub struct View<'r, R> {
    rows: &'r R,
    endpoints: Arena<EndpointRow>,
    groups: Arena<GroupRow>,
    members: Arena<MemberRow>,
    sets: Arena<SetRow>,
    ports: Arena<PortRow>,
    rules: Arena<RuleRow>,
    flows4: Changes<V4>,
    flows6: Changes<V6>,
    steps: RefCell<Vec<Step>>,
    /// Entries that were read from the rows.
    seen4: RefCell<Seen<V4>>,
    seen6: RefCell<Seen<V6>>,
    /// What picks followed from.
    picks: RefCell<Picks>,
    /// Turns that the packet took, by group.
    turns: RefCell<HashMap<u32, u32>>,
}

/// Entries of flows, by their places.
pub type Seen<A> = HashMap<(Table, FlowKey<A>), FlowEntry<A>>;

impl<'r, R: Rows> View<'r, R> {
    /// A view in which nothing has happened.
    pub fn new(rows: &'r R) -> Self {
        Self {
            rows,
            endpoints: Arena::new(),
            groups: Arena::new(),
            members: Arena::new(),
            sets: Arena::new(),
            ports: Arena::new(),
            rules: Arena::new(),
            flows4: RefCell::default(),
            flows6: RefCell::default(),
            steps: RefCell::default(),
            seen4: RefCell::default(),
            seen6: RefCell::default(),
            picks: RefCell::default(),
            turns: RefCell::default(),
        }
    }

    /// Where rows come from.
    pub fn rows(&self) -> &R {
        self.rows
    }

    /// What was noted since the last time.
    pub fn take_steps(&self) -> Vec<Step> {
        self.steps.take()
    }

    /// The entries that were found in the flow tables, as they were.
    pub fn seen(&self) -> (Seen<V4>, Seen<V6>) {
        (self.seen4.borrow().clone(), self.seen6.borrow().clone())
    }

    /// What picks followed from, as it was.
    pub fn picks(&self) -> Picks {
        self.picks.borrow().clone()
    }

    fn note(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}

impl<R: Rows> HostMaps for View<'_, R> {
    fn generation(&self) -> u32 {
        self.rows.generation()
    }
    fn now(&self) -> u32 {
        self.rows.now()
    }
    fn is_tunnel_port(&self, port: [u8; 2]) -> bool {
        self.rows.is_tunnel_port(port)
    }
}

impl<R: Rows> EndpointMaps for View<'_, R> {
    fn endpoint(&self, ifindex: u32) -> Option<&EndpointRow> {
        self.rows.endpoint(ifindex).map(|row| &*self.endpoints.alloc(row))
    }
    fn count(&self, slot: u32, direction: Direction, reason: Reason, _: u32) {
        self.note(Step::Counted(slot, direction, reason));
    }
    fn take_flow(&self, slot: u32, anyway: bool) -> bool {
        anyway || self.rows.has_room(slot)
    }
    fn give_flow(&self, _: u32) {}
}

/// An address family whose entries [`Rows`] has.
pub trait Family: Address {
    /// The entry in the rows.
    fn row<R: Rows>(rows: &R, table: Table, key: &FlowKey<Self>) -> Option<FlowEntry<Self>>;
    /// What was changed.
    fn changes<'v, R: Rows>(view: &'v View<'_, R>) -> &'v Changes<Self>;
    /// What was read.
    fn read<'v, R: Rows>(view: &'v View<'_, R>) -> &'v RefCell<Seen<Self>>;
}

impl Family for V4 {
    fn row<R: Rows>(rows: &R, table: Table, key: &FlowKey<Self>) -> Option<FlowEntry<Self>> {
        rows.flow4(table, key)
    }
    fn changes<'v, R: Rows>(view: &'v View<'_, R>) -> &'v Changes<Self> {
        &view.flows4
    }
    fn read<'v, R: Rows>(view: &'v View<'_, R>) -> &'v RefCell<Seen<Self>> {
        &view.seen4
    }
}

impl Family for V6 {
    fn row<R: Rows>(rows: &R, table: Table, key: &FlowKey<Self>) -> Option<FlowEntry<Self>> {
        rows.flow6(table, key)
    }
    fn changes<'v, R: Rows>(view: &'v View<'_, R>) -> &'v Changes<Self> {
        &view.flows6
    }
    fn read<'v, R: Rows>(view: &'v View<'_, R>) -> &'v RefCell<Seen<Self>> {
        &view.seen6
    }
}

impl<R: Rows> View<'_, R> {
    fn entry<A: Family>(&self, table: Table, key: &FlowKey<A>) -> Option<FlowEntry<A>> {
        let changed = A::changes(self).borrow().get(&(table, *key)).copied();
        changed.unwrap_or_else(|| {
            let entry = A::row(self.rows, table, key)?;
            A::read(self).borrow_mut().insert((table, *key), entry);
            Some(entry)
        })
    }

    fn put<A: Family>(&self, table: Table, key: &FlowKey<A>, entry: Option<FlowEntry<A>>) {
        A::changes(self).borrow_mut().insert((table, *key), entry);
    }
}

impl<A: Family, R: Rows> FlowMaps<A> for View<'_, R> {
    /// There is no cache: what it holds are copies.
    fn cache_slot(&self, _: u32) -> Option<u32> {
        None
    }
    fn cached<T>(&self, _: u32, _: impl FnOnce(&mut CacheSlot<A>) -> T) -> Option<T> {
        None
    }
    fn is_cached(&self, _: u32, _: &FlowKey<A>) -> bool {
        false
    }
    fn stamp(&self, _: u32) -> u32 {
        0
    }
    fn bump_stamp(&self, _: u32) {}
    fn flow(&self, table: Table, key: &FlowKey<A>, into: &mut FlowEntry<A>) -> bool {
        let Some(entry) = self.entry(table, key) else { return false };
        let (created, rule) = origin(&entry);
        self.note(Step::Flow(Known {
            table,
            flags: entry.flags,
            member: entry.member,
            rule,
            current: entry.generation == self.rows.generation(),
            age: self.rows.now().wrapping_sub(created),
            packets: entry.packets,
        }));
        *into = entry;
        true
    }
    fn insert(&self, table: Table, key: &FlowKey<A>, entry: &FlowEntry<A>) -> Result<(), InsertError> {
        if self.entry(table, key).is_some() {
            return Err(InsertError::Exists);
        }
        self.note(Step::Made);
        self.put(table, key, Some(*entry));
        Ok(())
    }
    fn update(&self, table: Table, key: &FlowKey<A>, f: impl FnOnce(&mut FlowEntry<A>)) -> bool {
        let Some(mut entry) = self.entry(table, key) else { return false };
        let before = origin(&entry).1;
        f(&mut entry);
        let (_, rule) = origin(&entry);
        if rule != before {
            self.note(Step::Renewed(rule));
        }
        self.put(table, key, Some(entry));
        true
    }
    fn add(&self, table: Table, key: &FlowKey<A>, packets: u32, bytes: u32, now: u32) -> bool {
        self.update(table, key, |e: &mut FlowEntry<A>| {
            e.packets += u64::from(packets);
            e.bytes += u64::from(bytes);
            e.last_seen = now;
        })
    }
    fn remove(&self, table: Table, key: &FlowKey<A>) -> bool {
        let there = self.entry(table, key).is_some();
        self.put(table, key, None);
        there
    }
    /// Which flow it would push out is of no interest: the packet's own is not among them.
    fn replace_oldest(&self, _: u32, _: &FlowKey<A>, _: &mut FlowKey<A>) -> bool {
        false
    }
}

impl<R: Rows> LbMaps for View<'_, R> {
    fn filter(&self, kind: Filter, hash: u32) -> bool {
        self.rows.filter(kind, hash)
    }
    fn vip(&self, key: &VipKey) -> Option<VipRow> {
        let row = self.rows.vip(key);
        self.note(Step::Vip(*key, row));
        row
    }
    fn group(&self, row: u32) -> Option<&GroupRow> {
        self.rows.group(row).map(|g| &*self.groups.alloc(g))
    }
    fn member(&self, row: u32) -> Option<&MemberRow> {
        let member = self.rows.member(row)?;
        self.note(Step::Member(row, member));
        Some(self.members.alloc(member))
    }
    fn pick(&self, block: u32, slot: u32) -> Option<u32> {
        self.rows.pick(block, slot)
    }
    fn member_event(&self, _: u32, _: MemberEvent) {}
    fn opening(&self, _: u32) {}
    fn answered(&self, _: u32, _: u32) {}
    fn member_traffic(&self, _: u32, _: Direction, _: u32, _: u32) {}
    fn turn(&self, group: u32) -> u32 {
        let first = *self.picks.borrow_mut().turns.entry(group).or_insert_with(|| self.rows.turn(group));
        let mut turns = self.turns.borrow_mut();
        let taken = turns.entry(group).or_default();
        *taken += 1;
        first.wrapping_add(*taken - 1)
    }
    fn active(&self, member: u32) -> u32 {
        *self.picks.borrow_mut().active.entry(member).or_insert_with(|| self.rows.active(member))
    }
    fn add_active(&self, _: u32, _: bool) {}
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRow> {
        let row = self.rows.affinity(key)?;
        self.picks.borrow_mut().affinity.insert(*key, row);
        Some(row)
    }
    fn set_affinity(&self, _: &AffinityKey, _: &AffinityRow) {}
    fn seconds(&self) -> u32 {
        crate::datapath::clock::seconds()
    }
    fn local(&self, key: &LocalKey) -> Option<u32> {
        self.rows.local(key)
    }
}

impl<R: Rows> FragmentMaps for View<'_, R> {
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        let row = self.rows.fragment(key)?;
        self.picks.borrow_mut().fragments.insert(*key, row);
        Some(row)
    }
    fn set_fragment(&self, _: &FragmentKey, _: &FragmentRow) {}
}

impl<A: Family, R: Rows> Judge<A> for View<'_, R> {}
impl<A: Family + family::Family, R: Rows> Ways<Frame, A> for View<'_, R> {}

impl<R: Rows> PolicyMaps for View<'_, R> {
    fn identity(&self, key: &AddressKey) -> u32 {
        let identity = self.rows.identity(key);
        self.note(Step::Identity(*key, identity));
        identity
    }
    fn set(&self, row: u32) -> Option<&SetRow> {
        self.rows.set(row).map(|s| &*self.sets.alloc(s))
    }
    fn peer(&self, key: &PeerKey) -> Option<u32> {
        let bits = self.rows.peer(key);
        self.note(Step::Peer(*key, bits));
        bits
    }
    fn port(&self, row: u32) -> Option<&PortRow> {
        self.rows.port(row).map(|p| &*self.ports.alloc(p))
    }
    fn bits(&self, word: u32) -> Option<u64> {
        self.rows.bits(word)
    }
    fn rule(&self, row: u32) -> Option<&RuleRow> {
        let rule = self.rows.rule(row)?;
        self.note(Step::Rule(row, rule));
        Some(self.rules.alloc(rule))
    }
    fn next(&self, search: Search, at: u32) -> u32 {
        let place = evaluate::next(self, search, at);
        self.note(Step::Search(search, place));
        place
    }
    fn rule_hit(&self, id: u32, _: u32, staged: bool) {
        self.note(Step::Hit { id, staged });
    }
}

impl<R: Rows> EventMaps for View<'_, R> {
    /// Nothing is reported about a packet that is none.
    fn events(&self) -> u8 {
        0
    }
    fn report(&self, _: &mut EventRow) {}
}
