//! The benchmark's own programs. `BPF_PROG_TEST_RUN` does not restore the packet between repeats: [`bench4`] and
//! [`bench6`] do, make it a packet of the next flow, and tail-call the program under test.

use core::arch::asm;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::generated::bpf_redirect_peer;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::TcContext;
use vnet_common::addr::{Address, V4, V6};
use vnet_common::bench::{FRAME, FRAME_AT, Plan, way};
use vnet_common::flow::track::forget;
use vnet_common::flow::{FlowMaps, Table, Work};

use crate::maps::{Kernel, global, scratch};

const NEXT: i32 = TC_ACT_UNSPEC;

/// Not 0: no rule is asked, and everything may be. What remains of a new flow's cost is not policy's. Set by the benchmark at load time.
#[unsafe(no_mangle)]
static NO_RULES: u32 = 0;

/// See [`NO_RULES`].
#[inline(always)]
pub fn has_rules() -> bool {
    global(&NO_RULES) == 0
}

#[map]
static BENCH_PLAN: Array<Plan> = Array::with_max_entries(1, 0);
#[map]
static BENCH_MEMBERS: Array<[u8; 4]> = Array::with_max_entries(1 << 21, 0);
#[map]
static BENCH_PEER: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static BENCH_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(4, 0);

/// Does nothing: what remains is the cost of the harness.
#[classifier]
pub fn bench_null(_: TcContext) -> i32 {
    NEXT
}

/// Hands every packet to the veth whose index is in `BENCH_PEER`: the least that delivery past the stack costs.
#[classifier]
pub fn bench_peer(_: TcContext) -> i32 {
    // SAFETY: a helper without pointers.
    BENCH_PEER.get(0).map_or(NEXT, |peer| unsafe { bpf_redirect_peer(*peer, 0) as i32 })
}

/// The next IPv4 packet.
#[classifier]
pub fn bench4(ctx: TcContext) -> i32 {
    next_packet::<4>(&ctx)
}

/// The next IPv6 packet.
#[classifier]
pub fn bench6(ctx: TcContext) -> i32 {
    next_packet::<16>(&ctx)
}

/// Removes the next IPv4 flow.
#[classifier]
pub fn bench_forget4(_: TcContext) -> i32 {
    let (Some(plan), Some(s)) = (plan(), scratch()) else { return NEXT };
    let w = &mut s.v4;
    let flow = plan.step();
    w.seen.key = plan.key4;
    let (src, sport) = plan.client(flow);
    (w.seen.key.src, w.seen.key.sport) = (V4::from(src), sport);
    if plan.way == way::TO_PEERS {
        let Some(&peer) = BENCH_MEMBERS.get(plan.members + flow) else { return NEXT };
        w.seen.key.dst = V4::from(peer);
    }
    forget_flow(w, plan.slot)
}

/// Removes the next IPv6 flow.
#[classifier]
pub fn bench_forget6(_: TcContext) -> i32 {
    let (Some(plan), Some(s)) = (plan(), scratch()) else { return NEXT };
    let w = &mut s.v6;
    let flow = plan.step();
    let (a, port) = plan.client(flow);
    (w.seen.key, w.seen.key.sport) = (plan.key6, port);
    let [upper, [s, t, u, v, ..]] = w.seen.key.src.halves();
    w.seen.key.src = V6::of(upper, [s, t, u, v, a[0], a[1], a[2], a[3]]);
    if plan.way == way::TO_PEERS {
        let Some(&b) = BENCH_MEMBERS.get(plan.members + flow) else { return NEXT };
        let [upper, [s, t, u, v, ..]] = w.seen.key.dst.halves();
        w.seen.key.dst = V6::of(upper, [s, t, u, v, b[0], b[1], b[2], b[3]]);
    }
    forget_flow(w, plan.slot)
}

/// Empties the next slots of this CPU's flow caches.
#[classifier]
pub fn bench_uncache(_: TcContext) -> i32 {
    let Some(plan) = plan() else { return NEXT };
    let slot = plan.step();
    if let Some(slot) = FlowMaps::<V4>::cache_slot(&Kernel, slot) {
        FlowMaps::<V4>::cached(&Kernel, slot, |s| s.key.endpoint = 0);
    }
    if let Some(slot) = FlowMaps::<V6>::cache_slot(&Kernel, slot) {
        FlowMaps::<V6>::cached(&Kernel, slot, |s| s.key.endpoint = 0);
    }
    NEXT
}

#[inline(always)]
fn plan() -> Option<&'static mut Plan> {
    // SAFETY: a map value of this type, checked not to be null; the benchmark runs one program at a time.
    BENCH_PLAN.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// Restores the packet, makes it one of the next flow (addresses have `N` bytes), and runs the program under test on it.
#[inline(always)]
fn next_packet<const N: usize>(ctx: &TcContext) -> i32 {
    let Some(plan) = plan() else { return NEXT };
    let start = ctx.data() + FRAME_AT;
    if start + FRAME > ctx.data_end() {
        return NEXT;
    }
    let flow = plan.step();
    let (addr, port) = plan.client(flow);
    let mut frame = plan.frame;
    // Of the source, the destination and the ports: the word that ends, or begins, with what changes.
    let (src, dst, ports) = if N == 4 { (2, 3, 3) } else { (3, 5, 6) };
    let first_port = if N == 4 { 4 } else { 0 };
    let at_dst = if N == 4 { 0 } else { 4 };
    if plan.way == way::FROM_PEERS {
        let Some(&peer) = BENCH_MEMBERS.get(plan.members + flow) else { return NEXT };
        frame[src] = put(frame[src], 4, peer);
        frame[dst] = put(frame[dst], at_dst, addr);
        frame[ports] = put(frame[ports], first_port + 2, port);
    } else {
        frame[src] = put(frame[src], 4, addr);
        frame[ports] = put(frame[ports], first_port, port);
        if plan.way == way::TO_PEERS {
            let Some(&peer) = BENCH_MEMBERS.get(plan.members + flow) else { return NEXT };
            frame[dst] = put(frame[dst], at_dst, peer);
        }
    }
    for (i, word) in frame.into_iter().enumerate() {
        store64(start + 8 * i, word);
    }
    // SAFETY: does not return, and nothing here has a destructor.
    unsafe { BENCH_PROGRAMS.tail_call(ctx, plan.program) };
    NEXT
}

/// `word` with these bytes at `offset`.
#[inline(always)]
fn put<const N: usize>(word: u64, offset: usize, bytes: [u8; N]) -> u64 {
    let mut b = word.to_ne_bytes();
    for (to, from) in b[offset..].iter_mut().zip(bytes) {
        *to = from;
    }
    u64::from_ne_bytes(b)
}

/// Removes the entries of the flow whose key is in `w`.
#[inline(always)]
fn forget_flow<A: Address>(w: &mut Work<A>, slot: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    for table in [Table::Main, Table::HalfOpen] {
        if Kernel.flow(table, &w.seen.key, &mut w.entry) {
            w.partner = w.seen.key.partner(&w.entry.rewrite);
            forget(&Kernel, slot, table, &w.seen.key, &w.partner);
        }
    }
    NEXT
}

/// Packet memory is aligned to nothing, and the compiler would write it byte by byte. The caller has checked the bounds.
#[inline(always)]
fn store64(at: usize, value: u64) {
    // SAFETY: writes eight bytes of the packet, whose bounds were checked.
    unsafe { asm!("*(u64 *)({0} + 0) = {1}", in(reg) at, in(reg) value, options(nostack)) }
}
