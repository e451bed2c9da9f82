//! IP addresses as they stand in a packet, generic over the family.
//!
//! The datapath is compiled once per family: an IPv4 flow then costs a 24-byte key, not a 48-byte one.

use core::hash::Hash;

/// An IP address in network byte order: `[u8; 4]` or `[u8; 16]`.
pub trait Address: Copy + Eq + Hash + Default + core::fmt::Debug + 'static {
    /// The IP version, as in the first four bits of a packet.
    const VERSION: u8;
    /// Where the L4 header starts in an Ethernet frame without IP options or extension headers.
    const PLAIN_L4: usize;
    /// Fills [`crate::flow::FlowEntry`] up to a multiple of eight bytes.
    type EntryPad: Copy + Eq + Default + core::fmt::Debug + 'static;
    /// The same for the layout before this one.
    #[cfg(feature = "previous-abi")]
    type EntryPad1: Copy + Eq + Default + core::fmt::Debug + 'static;
    /// Fills [`crate::flow::CacheSlot`] up to whole cache lines.
    type SlotPad: Copy + Eq + core::fmt::Debug + 'static;
    /// The value of an empty [`Address::SlotPad`].
    const SLOT_PAD: Self::SlotPad;

    /// The ones' complement sum of the address's 32-bit words, in memory order.
    fn sum(&self) -> u32;
    /// A 32-bit mix of the address, for hashing.
    fn mix(&self) -> u32;
    /// Equality, word by word: the derived comparison of byte arrays becomes a call in the kernel.
    fn is(&self, other: &Self) -> bool;
    /// The address in the first bytes of a 16-byte field, zeros behind it.
    fn widen(&self) -> [u8; 16];
    /// The other way round.
    fn narrow(wide: &[u8; 16]) -> Self;
}

#[inline(always)]
fn word(b: &[u8], i: usize) -> u32 {
    u32::from_ne_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

impl Address for [u8; 4] {
    const VERSION: u8 = 4;
    const PLAIN_L4: usize = 34;
    type EntryPad = [u8; 4];
    #[cfg(feature = "previous-abi")]
    type EntryPad1 = [u8; 0];
    type SlotPad = [u8; 4];
    const SLOT_PAD: Self::SlotPad = [0; 4];

    #[inline(always)]
    fn sum(&self) -> u32 {
        u32::from_ne_bytes(*self)
    }
    #[inline(always)]
    fn mix(&self) -> u32 {
        u32::from_ne_bytes(*self)
    }
    #[inline(always)]
    fn is(&self, o: &Self) -> bool {
        word(self, 0) == word(o, 0)
    }
    #[inline(always)]
    fn widen(&self) -> [u8; 16] {
        [self[0], self[1], self[2], self[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }
    #[inline(always)]
    fn narrow(w: &[u8; 16]) -> Self {
        [w[0], w[1], w[2], w[3]]
    }
}

impl Address for [u8; 16] {
    const VERSION: u8 = 6;
    const PLAIN_L4: usize = 54;
    type EntryPad = [u8; 0];
    #[cfg(feature = "previous-abi")]
    type EntryPad1 = [u8; 4];
    type SlotPad = [u8; 32];
    const SLOT_PAD: Self::SlotPad = [0; 32];

    #[inline(always)]
    fn sum(&self) -> u32 {
        let s = u64::from(word(self, 0)) + u64::from(word(self, 4)) + u64::from(word(self, 8)) + u64::from(word(self, 12));
        crate::checksum::fold64(s)
    }
    #[inline(always)]
    fn mix(&self) -> u32 {
        // Multiplying between the words keeps addresses apart whose words are the same in another order.
        let m = 0x9E37_79B1u32;
        let mut h = word(self, 0);
        h = h.wrapping_mul(m) ^ word(self, 4);
        h = h.wrapping_mul(m) ^ word(self, 8);
        h.wrapping_mul(m) ^ word(self, 12)
    }
    #[inline(always)]
    fn is(&self, o: &Self) -> bool {
        word(self, 12) == word(o, 12) && word(self, 8) == word(o, 8) && word(self, 4) == word(o, 4) && word(self, 0) == word(o, 0)
    }
    #[inline(always)]
    fn widen(&self) -> [u8; 16] {
        *self
    }
    #[inline(always)]
    fn narrow(w: &[u8; 16]) -> Self {
        *w
    }
}
