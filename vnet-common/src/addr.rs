//! IP addresses as they stand in a packet, generic over the family.
//!
//! The datapath is compiled once per family: an IPv4 flow then costs a 24-byte key, not a 48-byte one.

use core::fmt::{Debug, Formatter, Result};
use core::hash::Hash;
use core::net::{Ipv4Addr, Ipv6Addr};

use crate::hash::mix;
use crate::packet::Packet;

/// An IPv4 address, in memory as in a packet.
///
/// A word, not four bytes: what the compiler must take for unaligned it accesses byte by byte on this target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct V4(u32);

/// An IPv6 address, in memory as in a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C, packed(4))]
pub struct V6(u64, u64);

impl V4 {
    /// The address's bytes.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl V6 {
    /// The address's bytes.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (self.0.to_ne_bytes(), self.1.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
    /// The address of these two halves.
    #[inline(always)]
    pub const fn of(upper: [u8; 8], lower: [u8; 8]) -> Self {
        Self(u64::from_ne_bytes(upper), u64::from_ne_bytes(lower))
    }
    /// Its two halves.
    #[inline(always)]
    pub const fn halves(self) -> [[u8; 8]; 2] {
        [self.0.to_ne_bytes(), self.1.to_ne_bytes()]
    }
}

impl From<[u8; 4]> for V4 {
    #[inline(always)]
    fn from(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }
}

impl From<[u8; 16]> for V6 {
    #[inline(always)]
    fn from([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]: [u8; 16]) -> Self {
        Self::of([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p])
    }
}

impl From<Ipv4Addr> for V4 {
    fn from(addr: Ipv4Addr) -> Self {
        Self::from(addr.octets())
    }
}

impl From<Ipv6Addr> for V6 {
    fn from(addr: Ipv6Addr) -> Self {
        Self::from(addr.octets())
    }
}

impl Debug for V4 {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        Debug::fmt(&Ipv4Addr::from(self.octets()), f)
    }
}

impl Debug for V6 {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        Debug::fmt(&Ipv6Addr::from(self.octets()), f)
    }
}

/// An IP address: [`V4`] or [`V6`].
pub trait Address: Copy + Eq + Hash + Default + Debug + 'static {
    /// The IP version, as in the first four bits of a packet.
    const VERSION: u8;
    /// Where the L4 header starts in an Ethernet frame without IP options or extension headers.
    const PLAIN_L4: usize;
    /// Fills [`crate::flow::FlowEntry`] up to a multiple of eight bytes.
    type EntryPad: Copy + Eq + Default + Debug + 'static;
    /// The same for the layout before this one.
    #[cfg(feature = "previous-abi")]
    type EntryPad1: Copy + Eq + Default + Debug + 'static;
    /// Fills [`crate::flow::CacheSlot`] up to whole cache lines.
    type SlotPad: Copy + Eq + Debug + 'static;
    /// The value of an empty [`Address::SlotPad`].
    const SLOT_PAD: Self::SlotPad;

    /// The ones' complement sum of the address's 32-bit words, in memory order.
    fn sum(self) -> u32;
    /// A 32-bit mix of the address, for the filter.
    fn mix(self) -> u32;
    /// A 64-bit mix of two addresses, for flows.
    fn mix_pair(a: Self, b: Self) -> u64;
    /// The address in the first bytes of a 16-byte field, zeros behind it.
    fn widen(self) -> [u8; 16];
    /// The other way round.
    fn narrow(wide: &[u8; 16]) -> Self;
    /// Writes the address into a packet.
    fn write<P: Packet>(self, p: &mut P, offset: usize) -> Option<()>;
}

impl Address for V4 {
    const VERSION: u8 = 4;
    const PLAIN_L4: usize = 34;
    type EntryPad = [u8; 0];
    #[cfg(feature = "previous-abi")]
    type EntryPad1 = [u8; 0];
    type SlotPad = [u8; 4];
    const SLOT_PAD: Self::SlotPad = [0; 4];

    #[inline(always)]
    fn sum(self) -> u32 {
        self.0
    }
    #[inline(always)]
    fn mix(self) -> u32 {
        self.0
    }
    #[inline(always)]
    fn mix_pair(a: Self, b: Self) -> u64 {
        mix(u64::from(a.0).wrapping_mul(0xD6E8_FEB8_6659_FD93), u64::from(b.0))
    }
    #[inline(always)]
    fn widen(self) -> [u8; 16] {
        let mut wide = [0; 16];
        wide[..4].copy_from_slice(&self.octets());
        wide
    }
    #[inline(always)]
    fn narrow(wide: &[u8; 16]) -> Self {
        let mut octets = [0; 4];
        octets.copy_from_slice(&wide[..4]);
        Self::from(octets)
    }
    #[inline(always)]
    fn write<P: Packet>(self, p: &mut P, offset: usize) -> Option<()> {
        p.write(offset, self.octets())
    }
}

impl Address for V6 {
    const VERSION: u8 = 6;
    const PLAIN_L4: usize = 54;
    type EntryPad = [u8; 4];
    #[cfg(feature = "previous-abi")]
    type EntryPad1 = [u8; 4];
    type SlotPad = [u8; 32];
    const SLOT_PAD: Self::SlotPad = [0; 32];

    #[inline(always)]
    fn sum(self) -> u32 {
        let (sum, carry) = self.0.overflowing_add(self.1);
        crate::checksum::fold64(sum.wrapping_add(carry as u64))
    }
    #[inline(always)]
    fn mix(self) -> u32 {
        let (a, b) = (self.0, self.1);
        // Multiplying between the words keeps addresses apart whose words are the same in another order.
        let m = 0x9E37_79B1u32;
        let h = (a as u32).wrapping_mul(m) ^ (a >> 32) as u32;
        let h = h.wrapping_mul(m) ^ b as u32;
        h.wrapping_mul(m) ^ (b >> 32) as u32
    }
    #[inline(always)]
    fn mix_pair(a: Self, b: Self) -> u64 {
        // The first steps of both are independent of each other.
        let (a, b) = (mix(1, a.0) ^ a.1, mix(2, b.0) ^ b.1);
        mix(mix(0, a), b)
    }
    #[inline(always)]
    fn widen(self) -> [u8; 16] {
        // By halves: an array of single bytes would be written byte by byte, and is then slow to read in words.
        let ([upper, lower], mut wide) = (self.halves(), [0; 16]);
        wide[..8].copy_from_slice(&upper);
        wide[8..].copy_from_slice(&lower);
        wide
    }
    #[inline(always)]
    fn narrow(wide: &[u8; 16]) -> Self {
        let (mut upper, mut lower) = ([0; 8], [0; 8]);
        upper.copy_from_slice(&wide[..8]);
        lower.copy_from_slice(&wide[8..]);
        Self::of(upper, lower)
    }
    #[inline(always)]
    fn write<P: Packet>(self, p: &mut P, offset: usize) -> Option<()> {
        let [upper, lower] = self.halves();
        p.write(offset, upper)?;
        p.write(offset + 8, lower)
    }
}
