//! The pinned maps, and the pipeline's map traits over them. `vnet_common::map::MAPS` lists them with their sizes, which
//! the agent sets at load time; those here are the defaults.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use vnet_common::addr::{Address, V4, V6};
use vnet_common::endpoint::{EndpointCounters, EndpointMaps, EndpointRow, FlowCount, HALF_OPEN_QUOTA, HostMaps};
use vnet_common::event::{EventBudget, EventMaps, EventRow, WINDOW_JIFFIES};
use vnet_common::flow::fragment::{FragmentKey, FragmentMaps, FragmentRow};
use vnet_common::flow::{CacheSlot, FlowEntry, FlowKey, FlowMaps, InsertError, Table};
use vnet_common::hash::STAMPS as STAMP_SLOTS;
use vnet_common::lb::{
    self, AffinityKey, AffinityRow, Filter, GroupRow, LbMaps, LocalKey, MemberAnswers, MemberCounters, MemberEvent, MemberRow,
    VipKey, VipRow,
};
use vnet_common::map::{Config, ENDPOINT_ROWS, MAGLEV_BLOCK};
use vnet_common::pipeline::Scratch;
use vnet_common::policy::evaluate::Search;
use vnet_common::policy::{AddressKey, NetworkKey, PeerKey, PolicyMaps, PortRow, RuleCounters, RuleRow, SetRow, identity};
use vnet_common::verdict::{Direction, Reason};

use crate::steps;

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;
/// Elements are allocated when inserted: a large table costs memory only for what is in it.
const NO_PREALLOC: u32 = 1;
/// Elements are allocated when the map is made: inserting costs a third.
const PREALLOC: u32 = 0;
/// Page-aligned values: a 64-byte row is one cache line, and the agent can map the table.
const MMAPABLE: u32 = 1 << 10;

/// Slots of a CPU's IPv4 flow cache, less one: a power of two. Set by the agent at load time.
#[unsafe(no_mangle)]
static CACHE_MASK: u32 = 0;
/// The same for IPv6.
#[unsafe(no_mangle)]
static CACHE_MASK6: u32 = 0;
/// Are there flow caches? Set by the agent at load time.
#[unsafe(no_mangle)]
static CACHE_ON: u32 = 0;

/// The agent's value of a global; the compiler must not take the initial value for granted.
#[inline(always)]
pub fn global(value: &'static u32) -> u32 {
    // SAFETY: a reference is valid to read; the section is read-only once the program is loaded.
    unsafe { core::ptr::read_volatile(value) }
}

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, MMAPABLE);
#[map]
pub static CLOCK: Array<u64> = Array::with_max_entries(1, MMAPABLE);
#[map]
static ENDPOINTS: Array<EndpointRow> = Array::with_max_entries(ENDPOINT_ROWS, MMAPABLE);
#[map]
static ENDPOINTS_MORE: HashMap<u32, EndpointRow> = HashMap::with_max_entries(1024, NO_PREALLOC);
#[map]
static ENDPOINT_COUNTERS: PerCpuArray<EndpointCounters> = PerCpuArray::with_max_entries(1024, 0);
#[map]
static FLOW_COUNTS: Array<FlowCount> = Array::with_max_entries(1024, MMAPABLE);
#[map]
static FLOWS4: HashMap<FlowKey<V4>, FlowEntry<V4>> = HashMap::with_max_entries(1 << 19, PREALLOC);
#[map]
static FLOWS6: HashMap<FlowKey<V6>, FlowEntry<V6>> = HashMap::with_max_entries(1 << 18, PREALLOC);
#[map]
static HALF_OPEN4: HashMap<FlowKey<V4>, FlowEntry<V4>> = HashMap::with_max_entries(1 << 17, PREALLOC);
#[map]
static HALF_OPEN6: HashMap<FlowKey<V6>, FlowEntry<V6>> = HashMap::with_max_entries(1 << 16, PREALLOC);
#[map]
static RING4: Array<FlowKey<V4>> = Array::with_max_entries(256 << 10, MMAPABLE);
#[map]
static RING6: Array<FlowKey<V6>> = Array::with_max_entries(256 << 10, MMAPABLE);
#[map]
static RING_HEADS: Array<[u32; 2]> = Array::with_max_entries(1024, MMAPABLE);
#[map]
static CACHE4: Array<CacheSlot<V4>> = Array::with_max_entries(1, MMAPABLE);
#[map]
static CACHE6: Array<CacheSlot<V6>> = Array::with_max_entries(1, MMAPABLE);
#[map]
static STAMPS: Array<u64> = Array::with_max_entries(STAMP_SLOTS, MMAPABLE);
#[map]
static FILTERS: Array<u64> = Array::with_max_entries(2 * vnet_common::hash::FILTER_BITS / 64, MMAPABLE);
#[map]
static LOCALS: HashMap<LocalKey, u32> = HashMap::with_max_entries(1 << 14, NO_PREALLOC);
#[map]
static VIPS: HashMap<VipKey, VipRow> = HashMap::with_max_entries(1 << 16, NO_PREALLOC);
#[map]
static GROUPS: Array<GroupRow> = Array::with_max_entries(16_384, MMAPABLE);
#[map]
static MEMBERS: Array<MemberRow> = Array::with_max_entries(65_536, MMAPABLE);
#[map]
static MEMBER_COUNTERS: PerCpuArray<MemberCounters> = PerCpuArray::with_max_entries(65_536, 0);
#[map]
static MEMBER_ANSWERS: PerCpuArray<MemberAnswers> = PerCpuArray::with_max_entries(65_536, 0);
#[map]
static CONNECTING: Array<u64> = Array::with_max_entries(lb::CONNECTING, MMAPABLE);
#[map]
static MAGLEV: Array<[u32; MAGLEV_BLOCK]> = Array::with_max_entries(1 << 18, MMAPABLE);
#[map]
static TURNS: Array<u64> = Array::with_max_entries(16_384, MMAPABLE);
#[map]
static ACTIVE: Array<u64> = Array::with_max_entries(65_536, MMAPABLE);
#[map]
static AFFINITY: LruHashMap<AffinityKey, AffinityRow> = LruHashMap::with_max_entries(65_536, PREALLOC);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentRow> = LruHashMap::with_max_entries(8192, PREALLOC);
#[map]
static SETS: Array<SetRow> = Array::with_max_entries(4096, MMAPABLE);
#[map]
static RULES: Array<RuleRow> = Array::with_max_entries(1 << 17, MMAPABLE);
#[map]
static PORTS: Array<PortRow> = Array::with_max_entries(1 << 17, MMAPABLE);
#[map]
static BITS: Array<u64> = Array::with_max_entries(1 << 20, MMAPABLE);
#[map]
static PEERS: HashMap<PeerKey, u32> = HashMap::with_max_entries(1 << 21, NO_PREALLOC);
#[map]
static IPCACHE: HashMap<AddressKey, u32> = HashMap::with_max_entries(1 << 17, NO_PREALLOC);
#[map]
static CIDRS: LpmTrie<AddressKey, u32> = LpmTrie::with_max_entries(1 << 16, NO_PREALLOC);
#[map]
static RULE_COUNTERS: PerCpuArray<RuleCounters> = PerCpuArray::with_max_entries(1 << 16, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static EVENT_BUDGET: PerCpuArray<EventBudget> = PerCpuArray::with_max_entries(1, 0);

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's room to work in. A program runs to its end before another starts on the same CPU, and asks once.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: a map value of this type, checked not to be null; nothing else refers to it while the program runs.
    SCRATCH.get_ptr_mut(0).map(|s| unsafe { &mut *aligned(s) })
}

/// The maps of this object.
pub struct Kernel;

/// Runs `f` on a value in a map.
///
/// Other CPUs may write the same value meanwhile: callers use this for per-CPU values, and elsewhere only for single
/// fields whose lost update does no harm.
#[inline(always)]
fn with<T, R>(value: Option<*mut T>, f: impl FnOnce(&mut T) -> R) -> Option<R> {
    // SAFETY: the pointer is a map value of this type that was checked not to be null; it is valid until the program
    // ends, and the verifier checks every access against the value's size.
    value.map(|p| f(unsafe { &mut *aligned(p) }))
}

/// Tells the compiler what it cannot know of a pointer that a helper returned: else it would access the value byte by byte.
#[inline(always)]
fn aligned<T>(value: *mut T) -> *mut T {
    // SAFETY: maps align their values to eight bytes (those that can be mapped, the flow caches among them, to pages).
    unsafe { core::hint::assert_unchecked((value as usize).is_multiple_of(8)) };
    value
}

impl HostMaps for Kernel {
    #[inline(always)]
    fn generation(&self) -> u32 {
        CONFIG.get(0).map_or(0, |c| c.generation)
    }
    #[inline(always)]
    fn now(&self) -> u32 {
        jiffies() as u32
    }
    #[inline(always)]
    fn is_tunnel_port(&self, port: [u8; 2]) -> bool {
        let port = u16::from_ne_bytes(port);
        CONFIG.get(0).is_some_and(|c| {
            let [a, b, d, e] = c.tunnels().map(u16::from_ne_bytes);
            port != 0 && (port == a || port == b || port == d || port == e)
        })
    }
}

/// The kernel's clock tick count.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_jiffies64() }
}

impl EndpointMaps for Kernel {
    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<&EndpointRow> {
        // SAFETY: a map value of this type, checked not to be null.
        let row = unsafe { &*aligned(ENDPOINTS.get_ptr_mut(ifindex % ENDPOINT_ROWS)?) };
        if row.ifindex == ifindex {
            return Some(row);
        }
        // SAFETY: an element that the agent removes meanwhile may be given to another device: as if this packet had
        // come a moment later.
        unsafe { ENDPOINTS_MORE.get(ifindex) }
    }
    #[inline(always)]
    fn count(&self, slot: u32, direction: Direction, reason: Reason, bytes: u32) {
        with(ENDPOINT_COUNTERS.get_ptr_mut(slot), |c| c.count(direction, reason, bytes));
    }
    #[inline(always)]
    fn take_flow(&self, slot: u32, anyway: bool) -> bool {
        let quota = CONFIG.get(0).map_or(0, |c| c.flow_quota);
        let Some(c) = FLOW_COUNTS.get(slot) else { return false };
        if !anyway && c.flows() >= quota {
            return false;
        }
        with(FLOW_COUNTS.get_ptr_mut(slot), |c| atomic_add(&mut c.created, 1));
        true
    }
    #[inline(always)]
    fn give_flow(&self, slot: u32) {
        with(FLOW_COUNTS.get_ptr_mut(slot), |c| atomic_add(&mut c.removed, 1));
    }
}

/// Adds without losing what another CPU adds. `core` has no such operation for this target.
#[inline(always)]
fn atomic_add(word: &mut u32, n: u32) {
    // SAFETY: the instruction adds to one aligned, live word and touches nothing else.
    unsafe { asm!("lock *(u32 *)({0} + 0) += {1}", in(reg) word, in(reg) u64::from(n), options(nostack)) }
}

/// As [`atomic_add`], of 64 bits.
#[inline(always)]
fn atomic_add64(word: &mut u64, n: u64) {
    // SAFETY: as in `atomic_add`.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) n, options(nostack)) }
}

/// The tables of one address family.
trait Family: Address {
    fn main() -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>>;
    fn half_open() -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>>;
    fn cache() -> &'static Array<CacheSlot<Self>>;
    fn cache_mask() -> u32;
    fn ring() -> &'static Array<FlowKey<Self>>;

    #[inline(always)]
    fn table(table: Table) -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>> {
        match table {
            Table::Main => Self::main(),
            Table::HalfOpen => Self::half_open(),
        }
    }
}

macro_rules! family {
    ($addr:ty, $main:ident, $half_open:ident, $cache:ident, $cache_mask:ident, $ring:ident) => {
        impl Family for $addr {
            #[inline(always)]
            fn main() -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>> {
                &$main
            }
            #[inline(always)]
            fn half_open() -> &'static HashMap<FlowKey<Self>, FlowEntry<Self>> {
                &$half_open
            }
            #[inline(always)]
            fn cache() -> &'static Array<CacheSlot<Self>> {
                &$cache
            }
            #[inline(always)]
            fn cache_mask() -> u32 {
                global(&$cache_mask)
            }
            #[inline(always)]
            fn ring() -> &'static Array<FlowKey<Self>> {
                &$ring
            }
        }
    };
}
family!(V4, FLOWS4, HALF_OPEN4, CACHE4, CACHE_MASK, RING4);
family!(V6, FLOWS6, HALF_OPEN6, CACHE6, CACHE_MASK6, RING6);

impl<A: Family> FlowMaps<A> for Kernel {
    #[inline(always)]
    fn cache_slot(&self, hash: u32) -> Option<u32> {
        if global(&CACHE_ON) == 0 {
            return None;
        }
        let mask = A::cache_mask();
        // SAFETY: no arguments, no effects.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        Some(cpu * (mask + 1) + (hash & mask))
    }
    #[inline(always)]
    fn cached<R>(&self, slot: u32, f: impl FnOnce(&mut CacheSlot<A>) -> R) -> Option<R> {
        with(A::cache().get_ptr_mut(slot), f)
    }
    #[inline(always)]
    fn is_cached(&self, slot: u32, key: &FlowKey<A>) -> bool {
        // SAFETY: as in `with`.
        A::cache().get_ptr_mut(slot).is_some_and(|slot| unsafe { (*aligned(slot)).key.is(key) })
    }
    #[inline(always)]
    fn stamp(&self, hash: u32) -> u32 {
        STAMPS.get(hash % STAMP_SLOTS).map_or(0, |s| *s as u32)
    }
    #[inline(always)]
    fn bump_stamp(&self, hash: u32) {
        with(STAMPS.get_ptr_mut(hash % STAMP_SLOTS), |s| atomic_add64(s, 1));
    }
    #[inline(always)]
    fn flow(&self, table: Table, key: &FlowKey<A>, into: &mut FlowEntry<A>) -> bool {
        with(A::table(table).get_ptr_mut(key), |e| *into = *e).is_some()
    }
    #[inline(always)]
    fn insert(&self, table: Table, key: &FlowKey<A>, entry: &FlowEntry<A>) -> Result<(), InsertError> {
        A::table(table)
            .insert(key, entry, BPF_NOEXIST)
            .map_err(|e| if e == EEXIST { InsertError::Exists } else { InsertError::Full })
    }
    #[inline(always)]
    fn update(&self, table: Table, key: &FlowKey<A>, f: impl FnOnce(&mut FlowEntry<A>)) -> bool {
        with(A::table(table).get_ptr_mut(key), f).is_some()
    }
    #[inline(always)]
    fn add(&self, table: Table, key: &FlowKey<A>, packets: u32, bytes: u32, now: u32) -> bool {
        with(A::table(table).get_ptr_mut(key), |e| {
            atomic_add64(&mut e.packets, u64::from(packets));
            atomic_add64(&mut e.bytes, u64::from(bytes));
            e.last_seen = now;
        })
        .is_some()
    }
    #[inline(always)]
    fn remove(&self, table: Table, key: &FlowKey<A>) -> bool {
        A::table(table).remove(key).is_ok()
    }
    #[inline(always)]
    fn replace_oldest(&self, slot: u32, key: &FlowKey<A>, oldest: &mut FlowKey<A>) -> bool {
        let head = with(RING_HEADS.get_ptr_mut(slot), |h| {
            let head = &mut h[usize::from(A::VERSION == 6)];
            // Two CPUs may take one place: one of the two keys then loses it early, and half-open flows may exceed the
            // quota by one until the agent's sweep.
            *head = head.wrapping_add(1);
            *head
        });
        let Some(head) = head else { return false };
        let place = A::ring().get_ptr_mut(slot * HALF_OPEN_QUOTA + head % HALF_OPEN_QUOTA);
        with(place, |k| (*oldest, *k) = (*k, *key)).is_some() && oldest.endpoint != 0
    }
}

impl LbMaps for Kernel {
    #[inline(always)]
    fn filter(&self, kind: Filter, hash: u32) -> bool {
        let (word, bit) = kind.place(hash);
        FILTERS.get(word).is_some_and(|w| w >> bit & 1 != 0)
    }
    #[inline(always)]
    fn vip(&self, key: &VipKey) -> Option<VipRow> {
        with(VIPS.get_ptr_mut(key), |v| *v)
    }
    #[inline(always)]
    fn group(&self, index: u32) -> Option<&GroupRow> {
        GROUPS.get(index)
    }
    #[inline(always)]
    fn member(&self, index: u32) -> Option<&MemberRow> {
        MEMBERS.get(index)
    }
    #[inline(always)]
    fn pick(&self, block: u32, slot: u32) -> Option<u32> {
        let block = MAGLEV.get(block + slot / MAGLEV_BLOCK as u32)?;
        block.get(slot as usize % MAGLEV_BLOCK).copied()
    }
    #[inline(always)]
    fn member_event(&self, index: u32, event: MemberEvent) {
        note_answer(index, event);
        with(MEMBER_COUNTERS.get_ptr_mut(index), |c| match event {
            MemberEvent::NewFlow => c.new_flows += 1,
            MemberEvent::Established => c.established += 1,
            MemberEvent::Reset | MemberEvent::GivenUp | MemberEvent::ResetByMember => c.resets += 1,
            MemberEvent::Unreachable => {}
        });
    }
    #[inline(always)]
    fn member_traffic(&self, index: u32, direction: Direction, packets: u32, bytes: u32) {
        with(MEMBER_COUNTERS.get_ptr_mut(index), |c| {
            c.packets[direction as usize] += u64::from(packets);
            c.bytes[direction as usize] += u64::from(bytes);
        });
    }
    #[inline(always)]
    fn opening(&self, hash: u32) {
        with(CONNECTING.get_ptr_mut(hash % lb::CONNECTING), |word| *word = lb::connecting(hash, micros()));
    }
    #[inline(always)]
    fn answered(&self, index: u32, hash: u32) {
        let took = with(CONNECTING.get_ptr_mut(hash % lb::CONNECTING), |word| lb::connected(*word, hash, micros()));
        if let Some(us) = took.flatten() {
            with(MEMBER_ANSWERS.get_ptr_mut(index), |a| a.count_connect(us));
        }
    }
    #[inline(always)]
    fn turn(&self, group: u32) -> u32 {
        // Two CPUs that come at the same moment may take the same turn.
        with(TURNS.get_ptr_mut(group), |n| {
            let turn = *n as u32;
            atomic_add64(n, 1);
            turn
        })
        .unwrap_or(0)
    }
    #[inline(always)]
    fn active(&self, member: u32) -> u32 {
        // Below zero, when several CPUs saw the end of one flow: until the agent's sweep.
        ACTIVE.get(member).map_or(0, |n| if (*n as i64) < 0 { 0 } else { *n as u32 })
    }
    #[inline(always)]
    fn add_active(&self, member: u32, more: bool) {
        with(ACTIVE.get_ptr_mut(member), |n| atomic_add64(n, if more { 1 } else { u64::MAX }));
    }
    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRow> {
        with(AFFINITY.get_ptr_mut(key), |row| *row)
    }
    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, row: &AffinityRow) {
        // Without room the client sticks to nobody, until its next flow.
        let _ = AFFINITY.insert(key, row, BPF_ANY);
    }
    #[inline(always)]
    fn seconds(&self) -> u32 {
        (nanos() / 1_000_000_000) as u32
    }
    #[inline(always)]
    fn local(&self, key: &LocalKey) -> Option<u32> {
        with(LOCALS.get_ptr_mut(key), |i| *i)
    }
}

impl FragmentMaps for Kernel {
    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        with(FRAGMENTS.get_ptr_mut(key), |row| *row)
    }
    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, row: &FragmentRow) {
        // Without memory for it the later fragments are dropped.
        let _ = FRAGMENTS.insert(key, row, BPF_ANY);
    }
}

/// Counts what an event says of how a member answers.
#[inline(always)]
fn note_answer(index: u32, event: MemberEvent) {
    if matches!(event, MemberEvent::NewFlow | MemberEvent::Established | MemberEvent::Reset) {
        return;
    }
    with(MEMBER_ANSWERS.get_ptr_mut(index), |a| match event {
        MemberEvent::Unreachable => a.unreachable += 1,
        MemberEvent::GivenUp => a.given_up += 1,
        _ => a.resets += 1,
    });
}

/// Nanoseconds since the machine started.
#[inline(always)]
fn nanos() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_ktime_get_ns() }
}

/// The low half of microseconds.
#[inline(always)]
fn micros() -> u32 {
    (nanos() / 1000) as u32
}

impl PolicyMaps for Kernel {
    #[inline(always)]
    fn identity(&self, key: &AddressKey) -> u32 {
        with(IPCACHE.get_ptr_mut(key), |i| *i).unwrap_or_else(|| {
            let whole = NetworkKey::of(*key);
            CIDRS.get(Key::new(whole.bits, whole.address)).map_or(identity::UNKNOWN, |i| *i)
        })
    }
    #[inline(always)]
    fn set(&self, row: u32) -> Option<&SetRow> {
        SETS.get(row)
    }
    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<u32> {
        with(PEERS.get_ptr_mut(key), |row| *row)
    }
    #[inline(always)]
    fn port(&self, row: u32) -> Option<&PortRow> {
        PORTS.get(row)
    }
    #[inline(always)]
    fn bits(&self, word: u32) -> Option<u64> {
        BITS.get(word).copied()
    }
    #[inline(always)]
    fn rule(&self, row: u32) -> Option<&RuleRow> {
        RULES.get(row)
    }
    #[inline(always)]
    fn ports(&self, first: u32, count: u32, key: u32) -> u32 {
        steps::policy_ports(first, count, key)
    }
    #[inline(always)]
    fn next(&self, s: Search, at: u32) -> u32 {
        steps::policy_next(s.by_peer, s.by_port, s.enforced, s.words, at)
    }
    #[inline(always)]
    fn rule_hit(&self, id: u32, bytes: u32, staged: bool) {
        with(RULE_COUNTERS.get_ptr_mut(id), |c| c.count(bytes, staged));
    }
}

/// The ring buffer's reader looks by itself from time to time: waking it up costs more than the event.
const NO_WAKEUP: u64 = 1;

impl EventMaps for Kernel {
    #[inline(always)]
    fn events(&self) -> u8 {
        CONFIG.get(0).map_or(0, Config::kinds)
    }
    #[inline(always)]
    fn report(&self, event: &mut EventRow) {
        let rate = CONFIG.get(0).map_or(0, Config::rate);
        let now = jiffies();
        event.jiffies = now;
        with(EVENT_BUDGET.get_ptr_mut(0), |budget| {
            let window = now as u32 / WINDOW_JIFFIES;
            if budget.window != window {
                (budget.window, budget.used) = (window, 0);
            }
            let fits = budget.used < rate && EVENTS.output::<EventRow>(&*event, NO_WAKEUP).is_ok();
            if fits {
                budget.used += 1;
                budget.reported += 1;
            } else {
                budget.suppressed += 1;
            }
        });
    }
}
