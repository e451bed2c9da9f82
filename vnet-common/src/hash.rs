//! The hashes that the agent and the programs must agree on.

use crate::addr::Address;
use crate::flow::FlowKey;

/// Slots of the stamp table; see [`crate::flow`].
pub const STAMPS: u32 = 8192;
/// Bits of the VIP filter; see [`crate::lb`].
pub const FILTER_BITS: u32 = 1 << 16;

#[inline(always)]
const fn finish(mut h: u32) -> u32 {
    // The finaliser of MurmurHash3 (public domain): every bit of the input moves every bit of the output.
    h ^= h >> 16;
    h = h.wrapping_mul(0x85EB_CA6B);
    h ^= h >> 13;
    h = h.wrapping_mul(0xC2B2_AE35);
    h ^ (h >> 16)
}

/// Of a flow's key: finds its cache slot and its stamp.
#[inline(always)]
pub fn flow<A: Address>(k: &FlowKey<A>) -> u32 {
    let ports = u32::from_ne_bytes([k.sport[0], k.sport[1], k.dport[0], k.dport[1]]);
    let kind = u32::from(k.protocol) | u32::from(k.direction) << 8;
    let h = k.src.mix().wrapping_mul(0x9E37_79B1) ^ k.dst.mix().rotate_left(13);
    let h = h.wrapping_mul(0x85EB_CA77) ^ ports ^ kind.rotate_left(24);
    finish(h ^ k.endpoint.wrapping_mul(0xC2B2_AE3D) ^ k.network.rotate_left(7))
}

/// Of a client's tuple: picks the member. `salt` gives further picks.
#[inline(always)]
pub fn pick<A: Address>(k: &FlowKey<A>, salt: u32) -> u32 {
    let ports = u32::from_be_bytes([k.sport[0], k.sport[1], k.dport[0], k.dport[1]]);
    let h = k.src.mix().wrapping_mul(0x9E37_79B1) ^ k.dst.mix().rotate_left(15);
    finish(h.wrapping_mul(0x85EB_CA77) ^ ports ^ salt.wrapping_mul(0x27D4_EB2F) ^ u32::from(k.protocol))
}

/// Of an address in a network: finds its bit in the VIP filter.
#[inline(always)]
pub fn filter<A: Address>(network: u32, addr: &A) -> u32 {
    finish(addr.mix() ^ network.wrapping_mul(0x9E37_79B1)) % FILTER_BITS
}
