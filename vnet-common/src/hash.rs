//! The hashes that the agent and the programs must agree on.

use crate::addr::Address;
use crate::flow::FlowKey;

/// Slots of the stamp table; see [`crate::flow`].
pub const STAMPS: u32 = 8192;
/// Bits of each filter, that of VIPs and that of members; see [`crate::lb::Filter`].
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

/// Mixes 64 more bits into a hash. The shift matters: a multiplication alone moves no bit down, and tuples differ in their last bytes,
/// which are the upper ones of a word in memory order.
#[inline(always)]
pub(crate) const fn mix(h: u64, word: u64) -> u64 {
    let h = (h ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    h ^ h >> 32
}

/// Of a flow's key: finds its cache slot and its stamp. The network is not asked: an endpoint is in one.
#[inline(always)]
pub fn flow<A: Address>(k: &FlowKey<A>) -> u32 {
    let ports = u32::from_ne_bytes([k.sport[0], k.sport[1], k.dport[0], k.dport[1]]);
    let kind = u32::from(k.protocol) << 16 | u32::from(k.direction) << 24;
    mix(A::mix_pair(k.src, k.dst), u64::from(ports) | u64::from(k.endpoint ^ kind) << 32) as u32
}

/// Of a client's tuple: picks the member. `salt` gives further picks.
#[inline(always)]
pub fn pick<A: Address>(k: &FlowKey<A>, salt: u32) -> u32 {
    let ports = u32::from_be_bytes([k.sport[0], k.sport[1], k.dport[0], k.dport[1]]);
    let rest = u32::from(k.protocol) | salt << 8;
    mix(mix(A::mix_pair(k.src, k.dst), u64::from(ports) | u64::from(rest) << 32), 0) as u32
}

/// Of a client's address: picks the member where its ports do not count.
#[inline(always)]
pub fn client<A: Address>(k: &FlowKey<A>) -> u32 {
    mix(mix(A::mix_pair(k.src, k.src), u64::from(k.network)), 0) as u32
}

/// Of an address in a network: finds its bit in a filter.
#[inline(always)]
pub fn filter<A: Address>(network: u32, addr: &A) -> u32 {
    finish(addr.mix() ^ network.wrapping_mul(0x9E37_79B1)) % FILTER_BITS
}
