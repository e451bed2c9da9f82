//! Frames through the pipeline on the host: every packet must come out the same by the flow cache and without it, and checksums that
//! were right must be right afterwards. That the kernel does the same is for `tests/tests/cases/fuzz.rs`.
//!
//! An input is two bytes that choose the tables, then frames: one byte that says where it goes ([`how`]), two of its length
//! (little-endian), the frame. The named files in `corpus/parser` are one kind of packet each, or a connection.

use vnet_common::host::{Frame, scratch};
use vnet_common::pipeline;
use vnet_common::verdict::Verdict;

pub use cases::fuzz::random::Random;
use cases::fuzz::worlds::{random_change, random_world};
use cases::sums;
use cases::world::{CLIENT, FAR, NEAR, STRANGER, World};

/// The tables are those of the packet cases, which use more of them.
#[path = "../../tests/cases"]
#[allow(dead_code, reason = "for the packet cases")]
mod cases {
    pub mod rules;
    pub mod sums;
    pub mod world;
    #[allow(clippy::module_inception, reason = "as the packet cases have it")]
    pub mod fuzz {
        pub mod random;
        pub mod worlds;
    }
}

/// Bits of the byte before a frame.
mod how {
    /// To the endpoint, not from it.
    pub const INGRESS: u8 = 1;
    /// Which device, of four.
    pub const DEVICE: u8 = 6;
    /// The kernel keeps a VLAN tag beside it.
    pub const VLAN: u8 = 8;
    /// It is to be segmented.
    pub const SEGMENT: u8 = 16;
    /// Its checksum is partial.
    pub const PARTIAL: u8 = 32;
    /// The agent changes something before it.
    pub const CHANGE: u8 = 64;
}

/// The packets of one input.
pub fn run(data: &[u8]) {
    let Some((seed, mut rest)) = data.split_first_chunk::<2>() else { return };
    let seed = u64::from(u16::from_le_bytes(*seed));
    let (mut short, mut long) = (random_world(&mut Random::new(seed)), random_world(&mut Random::new(seed)));
    long.maps.cache_slots = 0;
    let mut changes = Random::new(seed + 1);
    while let Some(([how, low, high], tail)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (bytes, tail) = tail.split_at(length);
        rest = tail;
        if how & how::CHANGE != 0 {
            random_change(&mut changes.clone(), &mut long);
            random_change(&mut changes, &mut short);
        }
        packet(&short, &long, *how, bytes);
    }
}

fn packet(short: &World, long: &World, how: u8, bytes: &[u8]) {
    let segment = if how & how::SEGMENT != 0 { 1400 } else { 0 };
    let frame = Frame { bytes: bytes.to_vec(), segment, partial: how & how::PARTIAL != 0, ..Frame::default() };
    let (mut by_cache, mut without) = (frame.clone(), frame);
    let verdict = judge(short, how, &mut by_cache);
    assert_eq!((verdict, &by_cache), (judge(long, how, &mut without), &without), "by the flow cache, and without it");
    if !matches!(verdict, Verdict::Drop(_)) && !by_cache.partial && sums::verify(bytes).is_ok() {
        assert_eq!(sums::verify(&by_cache.bytes), Ok(()), "{verdict:?} of {bytes:02x?}: {:02x?}", by_cache.bytes);
    }
}

fn judge(world: &World, how: u8, frame: &mut Frame) -> Verdict {
    let device = [CLIENT, NEAR, FAR, STRANGER][usize::from((how & how::DEVICE) >> 1)];
    let (maps, vlan) = (&world.maps, how & how::VLAN != 0);
    let mut scratch = scratch();
    if how & how::INGRESS == 0 {
        pipeline::egress(frame, maps, || Some(&mut scratch), device, vlan)
    } else {
        pipeline::ingress(frame, maps, || Some(&mut scratch), device, vlan)
    }
}
