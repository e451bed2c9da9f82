//! Entry points.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use vnet_common::pipeline;
use vnet_common::policy::MARK_OURS;
use vnet_common::verdict::Verdict;

use crate::maps::{CLOCK, Kernel, global, jiffies, scratch};
use crate::packet::Skb;

/// Log every verdict at trace level? Set by the agent at load time; while 0 the logging is dead code to the verifier.
#[unsafe(no_mangle)]
static TRACE: u32 = 0;
/// TCX_NEXT: go on to the next program, and then to the stack.
const NEXT: i32 = TC_ACT_UNSPEC;
/// BPF_F_INGRESS: the packet enters at the device.
const INGRESS: u64 = 1;

/// TCX ingress of an endpoint's host-side device: everything that the endpoint sends.
#[classifier]
#[inline(always)]
pub fn vm_egress(ctx: TcContext) -> i32 {
    let mut p = Skb::new(&ctx);
    let vlan = p.has_vlan();
    let verdict = pipeline::egress(&mut p, &Kernel, scratch, ifindex(&ctx), vlan);
    act(&ctx, "egress", verdict)
}

/// TCX egress of the same device: everything that reaches the endpoint.
#[classifier]
#[inline(always)]
pub fn vm_ingress(ctx: TcContext) -> i32 {
    let mut p = Skb::new(&ctx);
    let vlan = p.has_vlan();
    let verdict = pipeline::ingress(&mut p, &Kernel, scratch, ifindex(&ctx), vlan);
    act(&ctx, "ingress", verdict)
}

/// Not attached: the agent runs it to read the kernel's tick count.
#[classifier]
pub fn clock(_: TcContext) -> i32 {
    if let Some(p) = CLOCK.get_ptr_mut(0) {
        // SAFETY: a map value of this type, checked not to be null.
        unsafe { *p = jiffies() };
    }
    NEXT
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: a field of this run's context.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn act(ctx: &TcContext, direction: &str, verdict: Verdict) -> i32 {
    if global(&TRACE) != 0 {
        trace(ctx, direction, verdict.reason() as u8);
    }
    match verdict {
        Verdict::Next(_) => NEXT,
        Verdict::Drop(_) => TC_ACT_SHOT,
        Verdict::Reply(_) => ours(ctx, 0),
        Verdict::Bounce(_) => ours(ctx, INGRESS),
        // SAFETY: a helper without pointers.
        Verdict::Redirect { ifindex, peer: true, .. } => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        // SAFETY: as above.
        Verdict::Redirect { ifindex, peer: false, .. } => unsafe { bpf_redirect(ifindex, 0) as i32 },
    }
}

/// A function of its own: its stack would add to that of every way.
#[inline(never)]
fn trace(ctx: &TcContext, direction: &str, reason: u8) {
    aya_log_ebpf::trace!(ctx, "{} if {}: reason {}", direction, ifindex(ctx), reason);
}

/// Sends a packet of our own making out of the device it came on, marked as such.
#[inline(always)]
fn ours(ctx: &TcContext, flags: u64) -> i32 {
    // SAFETY: the context is the kernel's, and this field may be written.
    unsafe { (*ctx.skb.skb).mark = MARK_OURS };
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(ifindex(ctx), flags) as i32 }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never reached: the verifier refuses a program with a way to it.
    loop {}
}

/// The kernel's helpers ask for a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
