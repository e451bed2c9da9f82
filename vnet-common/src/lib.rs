//! What the kernel programs and the agent share: the layout of every map, and the datapath itself.
//!
//! The datapath is plain Rust, generic over the packet ([`packet::Packet`]) and the maps (one small trait per
//! capability). It is compiled into the eBPF object and, unchanged, into the host's tests. Start at [`pipeline`].

#![cfg_attr(not(any(test, feature = "host", feature = "api")), no_std)]

pub mod addr;
pub mod answer;
#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "bench")]
pub mod bench;
pub mod checksum;
pub mod deliver;
pub mod endpoint;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod event;
pub mod family;
#[cfg(feature = "api")]
pub mod fleet;
pub mod flow;
pub mod hash;
#[cfg(feature = "host")]
pub mod host;
pub mod judge;
pub mod lb;
pub mod map;
pub mod packet;
pub mod parse;
pub mod pipeline;
#[cfg(feature = "aya")]
mod pod;
pub mod policy;
pub mod report;
pub mod rewrite;
pub mod verdict;
