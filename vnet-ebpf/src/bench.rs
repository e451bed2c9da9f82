//! The benchmark's own programs. `BPF_PROG_TEST_RUN` does not restore the packet between repeats: [`bench4`] and
//! [`bench6`] do, make it a packet of the next flow, and tail-call the program under test.

use core::arch::asm;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::TcContext;
use vnet_common::addr::Address;
use vnet_common::bench::Plan;
use vnet_common::flow::track::forget;
use vnet_common::flow::{FlowMaps, Table, Work};

use crate::maps::{Kernel, scratch};

const NEXT: i32 = TC_ACT_UNSPEC;

#[map]
static BENCH_PLAN: Array<Plan> = Array::with_max_entries(1, 0);
#[map]
static BENCH_MEMBERS: Array<[u8; 4]> = Array::with_max_entries(1 << 21, 0);
#[map]
static BENCH_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(4, 0);

/// Does nothing: what remains is the cost of the harness.
#[classifier]
pub fn bench_null(_: TcContext) -> i32 {
    NEXT
}

/// The next IPv4 packet.
#[classifier]
pub fn bench4(ctx: TcContext) -> i32 {
    next_packet::<4>(&ctx, 26)
}

/// The next IPv6 packet.
#[classifier]
pub fn bench6(ctx: TcContext) -> i32 {
    next_packet::<16>(&ctx, 22)
}

/// Removes the next IPv4 flow.
#[classifier]
pub fn bench_forget4(_: TcContext) -> i32 {
    let (Some(plan), Some(s)) = (plan(), scratch()) else { return NEXT };
    // SAFETY: a map value of this CPU, checked not to be null; nothing else refers to it while this program runs.
    let w = unsafe { &mut (*s).v4 };
    let flow = plan.step();
    w.seen.key = plan.key4;
    (w.seen.key.src, w.seen.key.sport) = plan.client(flow);
    forget_flow(w, plan.slot)
}

/// Removes the next IPv6 flow.
#[classifier]
pub fn bench_forget6(_: TcContext) -> i32 {
    let (Some(plan), Some(s)) = (plan(), scratch()) else { return NEXT };
    // SAFETY: as above.
    let w = unsafe { &mut (*s).v6 };
    let flow = plan.step();
    let (a, port) = plan.client(flow);
    (w.seen.key, w.seen.key.sport) = (plan.key6, port);
    let src = &mut w.seen.key.src;
    (src[12], src[13], src[14], src[15]) = (a[0], a[1], a[2], a[3]);
    forget_flow(w, plan.slot)
}

/// Empties the next slots of this CPU's flow caches.
#[classifier]
pub fn bench_uncache(_: TcContext) -> i32 {
    let Some(plan) = plan() else { return NEXT };
    let slot = plan.step();
    FlowMaps::<[u8; 4]>::cached(&Kernel, slot, |s| s.key.endpoint = 0);
    FlowMaps::<[u8; 16]>::cached(&Kernel, slot, |s| s.key.endpoint = 0);
    NEXT
}

#[inline(always)]
fn plan() -> Option<&'static mut Plan> {
    // SAFETY: a map value of this type, checked not to be null; the benchmark runs one program at a time.
    BENCH_PLAN.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// Restores the packet, makes it one of the next flow (the source address has `N` bytes and is at `src`), and runs the
/// program under test on it.
#[inline(always)]
fn next_packet<const N: usize>(ctx: &TcContext, src: usize) -> i32 {
    let Some(plan) = plan() else { return NEXT };
    let start = ctx.data();
    if start + size_of_val(&plan.frame) > ctx.data_end() {
        return NEXT;
    }
    for (i, &word) in plan.frame.iter().enumerate() {
        store64(start + 8 * i, word);
    }
    let flow = plan.step();
    let (addr, port) = plan.client(flow);
    let (src, l4) = (src + N - 4, src + 2 * N);
    if plan.reply == 0 {
        store32(start + src, u32::from_ne_bytes(addr));
        store16(start + l4, u16::from_ne_bytes(port));
    } else {
        let Some(&member) = BENCH_MEMBERS.get(plan.members + flow) else { return NEXT };
        store32(start + src, u32::from_ne_bytes(member));
        store32(start + src + N, u32::from_ne_bytes(addr));
        store16(start + l4 + 2, u16::from_ne_bytes(port));
    }
    // SAFETY: does not return, and nothing here has a destructor.
    unsafe { BENCH_PROGRAMS.tail_call(ctx, plan.program) };
    NEXT
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

// Packet memory is aligned to nothing, and the compiler would write it byte by byte. The callers have checked the bounds.

#[inline(always)]
fn store64(at: usize, value: u64) {
    // SAFETY: writes eight bytes of the packet, whose bounds were checked.
    unsafe { asm!("*(u64 *)({0} + 0) = {1}", in(reg) at, in(reg) value, options(nostack)) }
}
#[inline(always)]
fn store32(at: usize, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("*(u32 *)({0} + 0) = {1}", in(reg) at, in(reg) u64::from(value), options(nostack)) }
}
#[inline(always)]
fn store16(at: usize, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("*(u16 *)({0} + 0) = {1}", in(reg) at, in(reg) u64::from(value), options(nostack)) }
}
