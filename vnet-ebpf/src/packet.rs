//! The one place where packet memory is touched.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use vnet_common::packet::Packet;
use vnet_common::policy::MARK_OURS;

/// Since Linux 6.16 (and in later 6.6 and 6.12 ones): for IPv6 the received checksum must not follow the addresses.
const BPF_F_IPV6: u64 = 1 << 7;
const PACKET_HOST: u32 = 0;
/// Headers end long before this.
const MAX_OFFSET: usize = 0x1fff;

/// A packet at a TC hook, read and written directly.
pub struct Skb {
    ctx: *mut __sk_buff,
}

impl Skb {
    /// Wraps a context. Its Ethernet header can be read; for more see [`Packet::pull`].
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { ctx: ctx.skb.skb }
    }

    /// The same packet once more, in another function.
    #[inline(always)]
    pub fn again(ctx: *mut __sk_buff) -> Self {
        Self { ctx }
    }

    /// For another function.
    #[inline(always)]
    pub fn context(&self) -> *mut __sk_buff {
        self.ctx
    }

    /// Is there a VLAN's tag, kept beside the packet? One with the number 0 says a priority, and no VLAN (IEEE 802.1Q §9.6).
    #[inline(always)]
    pub fn has_vlan(&self) -> bool {
        // SAFETY: this run's context.
        let ctx = unsafe { &*self.ctx };
        ctx.vlan_present != 0 && ctx.vlan_tci & 0xfff != 0
    }

    /// `N` linear bytes at `offset`.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // An offset that comes from a map is any number to the verifier.
        if offset > MAX_OFFSET {
            return None;
        }
        let (start, end) = bounds(self.ctx);
        (start + offset + N <= end).then_some((start + offset) as *mut [u8; N])
    }
}

/// Where the linear part starts and ends. The fields have 32 bits in the context and are pointers when loaded; the compiler must
/// not treat them as numbers of 32 bits.
#[inline(always)]
fn bounds(ctx: *mut __sk_buff) -> (usize, usize) {
    let (start, end);
    // SAFETY: reads two fields of this run's context.
    unsafe {
        asm!(
            "{0} = *(u32 *)({2} + {data})",
            "{1} = *(u32 *)({2} + {data_end})",
            out(reg) start,
            out(reg) end,
            in(reg) ctx,
            data = const offset_of!(__sk_buff, data),
            data_end = const offset_of!(__sk_buff, data_end),
            options(nostack, pure, readonly),
        );
    }
    (start, end)
}

// Packet memory is aligned to nothing, and the compiler would access it byte by byte. The kernel allows words there on machines
// that read them from anywhere efficiently: x86-64, arm64.

/// Reads `N` bytes of the packet, whose bounds the caller has checked.
#[inline(always)]
fn load<const N: usize>(at: *const [u8; N]) -> [u8; N] {
    macro_rules! word {
        ($word:ty) => {{
            let value: u64;
            // SAFETY: the caller has checked the bounds; the word has `N` bytes.
            unsafe {
                asm!(concat!("{0} = *(", stringify!($word), " *)({1} + 0)"), out(reg) value, in(reg) at, options(nostack, pure, readonly));
            }
            // SAFETY: as above.
            unsafe { core::ptr::from_ref(&(value as $word)).cast::<[u8; N]>().read() }
        }};
    }
    match N {
        2 => word!(u16),
        4 => word!(u32),
        8 => word!(u64),
        // SAFETY: as above.
        _ => unsafe { at.read_unaligned() },
    }
}

/// Writes `N` bytes of the packet, whose bounds the caller has checked.
#[inline(always)]
fn store<const N: usize>(at: *mut [u8; N], bytes: [u8; N]) {
    macro_rules! word {
        ($word:ty) => {{
            // SAFETY: the word has `N` bytes.
            let value = u64::from(unsafe { bytes.as_ptr().cast::<$word>().read_unaligned() });
            // SAFETY: the caller has checked the bounds.
            unsafe { asm!(concat!("*(", stringify!($word), " *)({0} + 0) = {1}"), in(reg) at, in(reg) value, options(nostack)) }
        }};
    }
    match N {
        2 => word!(u16),
        4 => word!(u32),
        8 => word!(u64),
        // SAFETY: as above.
        _ => unsafe { at.write_unaligned(bytes) },
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.at::<N>(offset).map(|p| load(p))
    }
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        self.at::<N>(offset).map(|p| store(p, bytes))
    }
    #[inline(always)]
    fn pull(&mut self, bytes: u32) {
        let len = self.size();
        let wanted = if len < bytes { len } else { bytes };
        let (start, end) = bounds(self.ctx);
        if end - start < wanted as usize {
            // On failure the packet reads as cut off.
            // SAFETY: the context of this run; no pointer into the packet outlives the call.
            unsafe { bpf_skb_pull_data(self.ctx, wanted) };
        }
    }
    #[inline(always)]
    fn size(&self) -> u32 {
        // SAFETY: a field of this run's context.
        unsafe { (*self.ctx).len }
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: a field of this run's context.
        unsafe { (*self.ctx).gso_size }
    }
    #[inline(always)]
    fn l4_checksum(&mut self, offset: usize, diff: u32, pseudo: bool, udp: bool, ipv6: bool) -> Option<()> {
        let mut flags = if pseudo { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
        if udp {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        if ipv6 && pseudo {
            // SAFETY: the helper checks the offset itself; no packet pointer is kept over it.
            if unsafe { bpf_l4_csum_replace(self.ctx, offset as u32, 0, u64::from(diff), flags | BPF_F_IPV6) } == 0 {
                return Some(());
            }
        }
        // SAFETY: as above.
        (unsafe { bpf_l4_csum_replace(self.ctx, offset as u32, 0, u64::from(diff), flags) } == 0).then_some(())
    }
    #[inline(always)]
    fn push_front(&mut self, bytes: u32) -> Option<()> {
        // SAFETY: as above.
        (unsafe { bpf_skb_change_head(self.ctx, bytes, 0) } == 0).then_some(())
    }
    #[inline(always)]
    fn set_len(&mut self, len: u32) -> Option<()> {
        // SAFETY: as above.
        (unsafe { bpf_skb_change_tail(self.ctx, len, 0) } == 0).then_some(())
    }
    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: a field of this run's context.
        unsafe { (*self.ctx).mark }
    }
    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: as above.
        unsafe { (*self.ctx).mark = mark };
    }
    #[inline(always)]
    fn copy_to(&mut self, ifindex: u32) {
        let mark = self.mark();
        self.set_mark(MARK_OURS);
        // A copy that cannot be sent (no such device, no memory) is missing at the service node; the packet itself goes its way.
        // SAFETY: the context of this run; no pointer into the packet outlives the call.
        unsafe { bpf_clone_redirect(self.ctx, ifindex, 0) };
        self.set_mark(mark);
    }
    #[inline(always)]
    fn set_to_host(&mut self) {
        // SAFETY: a field of this run's context.
        if unsafe { (*self.ctx).pkt_type } != PACKET_HOST {
            // A failure would leave the type as it was, and the receiver drops the packet.
            // SAFETY: as above.
            unsafe { bpf_skb_change_type(self.ctx, PACKET_HOST) };
        }
    }
}
