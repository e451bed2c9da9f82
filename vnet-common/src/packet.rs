//! Access to one packet, the same on the host and in the kernel.

/// One Ethernet frame. Bytes are read and written by value, so that no packet pointer outlives a helper call.
///
/// Every method that returns `Option` gives `None` when the packet is too short, or when the kernel has no memory for
/// what was asked.
pub trait Packet {
    /// `N` bytes at `offset`. In the kernel `N` must be at least 2 (the verifier refuses a lone byte at a variable offset).
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Overwrites `N` bytes at `offset`.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
    /// Makes sure that the first `bytes` bytes can be read, or all of a shorter frame: what is not linear reads as cut off.
    fn pull(&mut self, bytes: u32);
    /// The frame's length in bytes, with the part that is not linear, before segmentation.
    fn size(&self) -> u32;
    /// The payload of one segment, in bytes, when a device will cut this frame into segments (GSO); otherwise 0.
    fn segment(&self) -> u32;
    /// `bpf_l4_csum_replace` with a size of 0: adds `diff` to the checksum field at `offset`. A `pseudo` difference is in
    /// the pseudo-header and applies to partial checksums too; any other does not. A `udp` result of 0 becomes 0xffff.
    fn l4_checksum(&mut self, offset: usize, diff: u32, pseudo: bool, udp: bool, ipv6: bool) -> Option<()>;
    /// Makes room for `bytes` zero bytes at the very front.
    fn push_front(&mut self, bytes: u32) -> Option<()>;
    /// Cuts the frame off, or extends it with zeros, to `len` bytes. What was to be segmented is no longer.
    fn set_len(&mut self, len: u32) -> Option<()>;
    /// `skb->mark`.
    fn mark(&self) -> u32;
    /// Sets it.
    fn set_mark(&mut self, mark: u32);
    /// Sends a copy of the frame out of a device, marked as [`crate::policy::MARK_OURS`]. Whether it gets there is of no matter here.
    fn copy_to(&mut self, ifindex: u32);
    /// Marks the frame as addressed to this host, whatever its destination MAC was on arrival.
    fn set_to_host(&mut self);
}
