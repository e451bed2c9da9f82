//! The one place where packet memory is touched.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use vnet_common::packet::Packet;

/// Headers that must lie in the linear part: Ethernet, IPv6, three extension headers of usual size, TCP.
const HEADERS: u32 = 14 + 40 + 24 + 20;
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
    /// Wraps a context, after making sure that its headers can be read directly.
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        let len = ctx.len();
        let wanted = if len < HEADERS { len } else { HEADERS };
        if (ctx.data_end() - ctx.data()) < wanted as usize {
            // On failure the packet reads as too short, which the pipeline leaves to the stack.
            // SAFETY: the context of this run.
            unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) };
        }
        Self { ctx: ctx.skb.skb }
    }

    /// Is there a VLAN tag, kept beside the packet?
    #[inline(always)]
    pub fn has_vlan(&self) -> bool {
        // SAFETY: a field of this run's context.
        unsafe { (*self.ctx).vlan_present != 0 }
    }

    /// `N` linear bytes at `offset`.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // An offset that comes from a map is any number to the verifier.
        if offset > MAX_OFFSET {
            return None;
        }
        // SAFETY: a field of this run's context.
        let start = unsafe { (*self.ctx).data } as usize;
        // SAFETY: as above.
        let end = unsafe { (*self.ctx).data_end } as usize;
        (start + offset + N <= end).then_some((start + offset) as *mut [u8; N])
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: the bounds were just checked, as the verifier sees; the bytes are copied before any helper can move them.
        self.at::<N>(offset).map(|p| unsafe { p.read_unaligned() })
    }
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        // SAFETY: as in `read`; the kernel makes the packet's linear part private to programs that write.
        self.at::<N>(offset).map(|p| unsafe { p.write_unaligned(bytes) })
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
    fn set_to_host(&mut self) {
        // A failure would leave the type as it was, and the receiver drops the packet.
        // SAFETY: as above.
        unsafe { bpf_skb_change_type(self.ctx, PACKET_HOST) };
    }
}
