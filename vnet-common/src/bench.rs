//! What the benchmark and its own programs share. They are in the kernel object only with feature `bench`.

use crate::addr::{V4, V6};
use crate::flow::FlowKey;

/// Bytes of a frame that are restored before every run: Ethernet, IPv6 and TCP headers, in whole words.
pub const FRAME: usize = 72;
/// Where they begin. Addresses and ports then lie each in one of the words, as the programs read them: what was just written in parts, or
/// in parts of two words, is slow to read. Real packets were written long before.
pub const FRAME_AT: usize = 6;
/// Client ports in use per client address; a power of two.
const PORTS: u32 = 1 << 14;
/// The multiplier and the increment that visit the flows in order, and those that visit them in a random one.
pub const IN_ORDER: (u32, u32) = (1, 1);
/// See [`IN_ORDER`]. A linear congruence whose low bits, however many, take each value once before any comes again.
pub const AT_RANDOM: (u32, u32) = (1_664_525, 1_013_904_223);

/// Values of [`Plan::way`]: where packets come from and go to.
pub mod way {
    /// From the client to one destination.
    pub const TO_ONE: u32 = 0;
    /// From the peer that `BENCH_MEMBERS` has for the flow to the client.
    pub const FROM_PEERS: u32 = 1;
    /// From the client to that peer.
    pub const TO_PEERS: u32 = 2;
}

/// Which packets are made, and which program gets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Plan {
    /// The headers from [`FRAME_AT`], in words.
    pub frame: [u64; FRAME / 8],
    /// The last four bytes of the first client's address, in host order.
    pub client: u32,
    /// The program, by its index in `BENCH_PROGRAMS`.
    pub program: u32,
    /// Number of flows less one; a power of two.
    pub mask: u32,
    /// How far to shift a number to stir it.
    pub shift: u32,
    /// See [`IN_ORDER`].
    pub multiplier: u32,
    /// See [`IN_ORDER`].
    pub increment: u32,
    /// The number that the last packet's flow was made from.
    pub state: u32,
    /// See [`way`].
    pub way: u32,
    /// Row of the endpoint whose flows these are; see [`crate::endpoint::EndpointRow::slot`].
    pub slot: u32,
    /// Where in `BENCH_MEMBERS` the members, or other peers, of these flows begin.
    pub members: u32,
    /// The first flow, as the endpoint sends it.
    pub key4: FlowKey<V4>,
    /// The same.
    pub key6: FlowKey<V6>,
}

const _: () = assert!(size_of::<Plan>() == FRAME + 40 + 24 + 48);

impl Plan {
    /// The next packet's flow.
    #[inline(always)]
    pub fn step(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(self.multiplier).wrapping_add(self.increment);
        let n = self.state & self.mask;
        n ^ n >> (self.shift & 31)
    }

    /// The last four bytes of a flow's client address, and its port.
    #[inline(always)]
    pub const fn client(&self, flow: u32) -> ([u8; 4], [u8; 2]) {
        let addr = self.client.wrapping_add(flow / PORTS);
        let port = (PORTS | (flow % PORTS)) as u16;
        (addr.to_be_bytes(), port.to_be_bytes())
    }
}
