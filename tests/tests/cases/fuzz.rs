//! Differential fuzz: random worlds and random, mutated, truncated and fragmented packets, on the host and in the kernel.
//! Verdict, bytes, counters and flows must be the same, and checksums that were right must be right afterwards.
//!
//! A failure names its seed: `VNET_SEED=<n>` runs that world alone. What it shows becomes a row of its topic.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::host::Frame;
use vnet_common::lb::state;
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::kernel::{self, Kernel};
use super::packet::{L4, Packet};
use super::row::{SHORT, action, hex, on_host};
use super::snapshot::Snapshot;
use super::sums;
use super::world::{CLIENT, FAMILIES, FAR, Family, NEAR, World};

const PACKETS_PER_WORLD: u64 = 40;

/// What a run must have reached to have shown anything.
const REACHED: &[&str] = &[
    "drop flow-quota",
    "drop fragment",
    "drop member-removed",
    "drop no-member",
    "drop reject-silent",
    "next established",
    "next half-open",
    "next malformed",
    "next new-flow",
    "next not-ip",
    "next not-ours",
    "next reply",
    "redirect established",
    "redirect half-open",
    "redirect new-flow",
    "redirect reply",
    "redirect to peer established",
    "redirect to peer half-open",
    "redirect to peer new-flow",
    "redirect to peer reply",
    "reply member-removed",
    "reply no-member",
    "reply packet-too-big",
    "reply vip-echo",
    "reply vip-port-closed",
];

/// xorshift64* (Vigna, 2014).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
    fn bytes(&mut self, n: u64) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

fn vip(f: Family, n: u8) -> IpAddr {
    f.ip(9, n + 1)
}

/// The client, two endpoints that are members and clients too, two VIPs with two ports in each family.
fn random_world(r: &mut Random) -> World {
    let mut w = World::new();
    let segment = r.of(&[0, 0, 7]);
    for (ifindex, slot) in [(NEAR, 2), (FAR, 3)] {
        w.endpoint(ifindex, slot, [2, 0, 0, 0, 1, slot as u8]);
        let row = w.at(ifindex);
        row.flags = r.of(&[0, endpoint_flags::REDIRECT_BACK, endpoint_flags::REDIRECT_BACK | endpoint_flags::PEER]);
        row.mtu = r.of(&[1500, 1500, 576, 100]);
    }
    w.at(CLIENT).flags = r.of(&[0, endpoint_flags::PEER]);
    for ifindex in [CLIENT, NEAR, FAR] {
        w.at(ifindex).segment = segment;
    }
    for f in FAMILIES {
        w.local(f.member(0), NEAR);
        w.local(f.member(1), FAR);
        for (n, protocol, port) in [(0, 6, 80), (0, 17, 80), (1, 6, 80), (1, 17, 53)] {
            let g = w.group(vip(f, n), protocol, port);
            w.set_flags(g, r.below(8) as u32);
            for m in 0..=r.below(3) as u8 {
                let index = w.member(g, f.member(m), r.of(&[80, 8080]));
                let row = w.edit(index);
                row.ifindex = [NEAR, FAR, 0][usize::from(m)];
                row.segment = segment;
                row.mac = r.of(&[[0; 6], [2, 0, 0, 0, 1, 2 + m]]);
                w.set_state(index, r.of(&[state::ACTIVE, state::ACTIVE, state::ACTIVE, state::DRAINING, state::NONE]));
            }
        }
    }
    w.maps.flow_quota = r.of(&[1 << 16, 3]);
    w
}

/// What the agent may change between packets.
fn random_change(r: &mut Random, w: &mut World) {
    let member = r.below(w.maps.members.len() as u64) as u32;
    match r.below(4) {
        0 => w.set_state(member, r.of(&[state::ACTIVE, state::DRAINING, state::NONE])),
        1 => w.edit(member).serial += 100,
        2 => w.edit(member).ifindex = r.of(&[0, NEAR, FAR]),
        _ => {
            let group = r.below(w.maps.groups.len() as u64) as u32;
            w.set_flags(group, r.below(8) as u32);
        }
    }
    if r.one_in(2) {
        w.bump();
    }
}

fn random_l4(r: &mut Random) -> L4 {
    let (sport, dport) = (r.of(&[40000, 40001, 80, 8080, 53]), r.of(&[80, 80, 80, 80, 53, 53, 81]));
    match r.below(16) {
        0..=8 => {
            let flags = r.of(&[2, 2, 16, 16, 16, 18, 17, 4, 20, 0, 3]);
            let options = if r.one_in(3) { r.bytes(4) } else { Vec::new() };
            L4::Tcp { sport, dport, flags, seq: r.next() as u32, ack: r.next() as u32, options }
        }
        9..=13 => L4::Udp { sport, dport, checksum: !r.one_in(6) },
        14 => L4::Icmp { kind: r.of(&[8, 128, 0, 129, 3, 135]), code: 0, rest: [1, 2, 3, 4] },
        _ => L4::Other(r.of(&[132, 47, 4, 59])),
    }
}

fn random_packet(r: &mut Random) -> Packet {
    let f = r.of(&FAMILIES);
    let src = r.of(&[f.client(), f.client(), f.client(), f.client(), f.client(), f.member(0), f.outside()]);
    let dst = r.of(&[vip(f, 0), vip(f, 0), vip(f, 0), vip(f, 1), vip(f, 1), vip(f, 1), f.client(), f.member(0)]);
    let mut p = Packet::new(src, dst, random_l4(r));
    let len = r.of(&[0, 1, 7, 8, 64, 64, 555, 1400]);
    p.payload = r.bytes(len);
    p.ttl = r.of(&[64, 64, 64, 255, 1, 2]);
    p.dont_fragment = !r.one_in(4);
    p.padding = if r.one_in(5) { r.below(12) as usize } else { 0 };
    if r.one_in(30) {
        p.dst_mac = [0xff; 6];
    }
    if r.one_in(10) {
        let words = r.below(11);
        (p.options, p.extensions) = match f {
            Family::V4 => (r.bytes(4 * words), Vec::new()),
            Family::V6 => (Vec::new(), (0..words % 6).map(|_| (r.of(&[0, 43, 60, 44]), r.of(&[6, 6, 14]))).map(body).collect()),
        };
    }
    if f == Family::V4 && r.one_in(12) {
        (p.fragment_offset, p.more_fragments) = (r.of(&[0, 0, 8]), r.one_in(2));
    }
    p
}

/// An extension header; a fragment header has eight bytes always.
fn body((kind, len): (u8, usize)) -> (u8, Vec<u8>) {
    (kind, vec![0; if kind == 44 { 6 } else { len }])
}

/// Damages a frame in one of the ways in which frames are damaged.
fn damage(r: &mut Random, b: &mut Vec<u8>) {
    match r.below(4) {
        0 => b.truncate(r.below(b.len() as u64) as usize),
        1 => {
            for _ in 0..=r.below(3) {
                let at = r.below(b.len().min(90) as u64) as usize;
                b[at] ^= 1 << r.below(8);
            }
        }
        2 => {
            let at = 12 + r.below((b.len() - 12).min(60) as u64) as usize;
            b[at] = r.of(&[0, 1, 4, 5, 6, 15, 17, 44, 58, 60, 0x45, 0x4f, 0x60, 0xff]);
        }
        _ => {
            let extra = r.below(40);
            b.extend(r.bytes(extra));
        }
    }
}

/// Where the addresses of a plain TCP or UDP frame are, their width, and where its L4 header is.
fn layout(b: &[u8]) -> Option<(usize, usize, usize)> {
    let (at, width, l4, protocol) = match b.get(12..15)? {
        [8, 0, 0x45] => (26, 4, 34, b.get(23)?),
        [0x86, 0xdd, 0x60] => (22, 16, 54, b.get(20)?),
        _ => return None,
    };
    (b.len() >= l4 + 20 && matches!(protocol, 6 | 17)).then_some((at, width, l4))
}

/// The reply to a packet. Sums stay as they are when both sides are swapped.
fn reply_to(b: &[u8]) -> Option<Vec<u8>> {
    let (at, width, l4) = layout(b)?;
    let mut out = b.to_vec();
    out[at..at + 2 * width].rotate_left(width);
    out[l4..l4 + 4].rotate_left(2);
    Some(out)
}

/// The packet with other TCP flags, and its checksum updated (RFC 1624).
fn with_flags(mut b: Vec<u8>, flags: u8) -> Vec<u8> {
    if let Some((_, width, l4)) = layout(&b)
        && b[if width == 4 { 23 } else { 20 }] == 6
    {
        let word = |b: &[u8], at: usize| u32::from(u16::from_be_bytes([b[at], b[at + 1]]));
        let (old, sum) = (word(&b, l4 + 12), word(&b, l4 + 16));
        b[l4 + 13] = flags;
        let s = (!sum & 0xffff) + (!old & 0xffff) + word(&b, l4 + 12);
        let s = (s & 0xffff) + (s >> 16);
        let s = !((s & 0xffff) + (s >> 16)) as u16;
        b[l4 + 16..l4 + 18].copy_from_slice(&s.to_be_bytes());
    }
    b
}

/// A packet that went through: where, as it came, as it left.
struct Past {
    direction: Direction,
    ifindex: u32,
    before: Vec<u8>,
    after: Vec<u8>,
}

fn is_of_flow(v: Verdict) -> bool {
    matches!(v.reason(), Reason::NewFlow | Reason::HalfOpen | Reason::Established | Reason::Reply)
}

/// A further packet of a flow that was seen: the same way, or back.
fn next_of_flow(r: &mut Random, past: &Past) -> Option<(Direction, u32, Vec<u8>)> {
    let flags = r.of(&[16, 16, 16, 16, 18, 18, 17, 4, 2]);
    if r.one_in(3) {
        return Some((past.direction, past.ifindex, with_flags(past.before.clone(), flags)));
    }
    let (direction, ifindex) = match past.direction {
        Direction::Ingress => (Direction::Egress, past.ifindex),
        Direction::Egress if r.one_in(3) => (Direction::Egress, r.of(&[NEAR, FAR])),
        Direction::Egress => (Direction::Ingress, past.ifindex),
    };
    Some((direction, ifindex, with_flags(reply_to(&past.after)?, flags)))
}

/// One world; what differs, if anything does.
fn run_world(seed: u64, kernel: &mut Kernel, reached: &mut BTreeMap<String, u32>) -> Result<(), String> {
    let mut r = Random::new(seed);
    let mut world = random_world(&mut r);
    // The same without a flow cache, so that every packet goes the long way: it must come out the same.
    let mut long = random_world(&mut Random::new(seed));
    long.maps.cache_slots = 0;
    kernel.configure(&world.maps);
    kernel.reset();
    let mut seen: Vec<Past> = Vec::new();
    for n in 0..PACKETS_PER_WORLD {
        if r.one_in(12) {
            random_change(&mut r.clone(), &mut long);
            random_change(&mut r, &mut world);
            kernel.configure(&world.maps);
        }
        let (direction, ifindex, frame) = next_packet(&mut r, &seen);
        let name = || {
            format!(
                "seed {seed}, packet {n}, {direction:?} at {ifindex}, segment {}\n  in     {}",
                frame.segment,
                hex(&frame.bytes)
            )
        };
        let mut host = frame.clone();
        if !kernel::takes(&frame.bytes) {
            let verdict = on_host(&World::balanced(80), direction, CLIENT, &mut host, false);
            assert!(verdict == Verdict::Next(Reason::Malformed) && host == frame, "{}: {verdict:?}", name());
            continue;
        }
        let verdict = on_host(&world, direction, ifindex, &mut host, false);
        let mut by_long = frame.clone();
        let long_verdict = on_host(&long, direction, ifindex, &mut by_long, false);
        if (verdict, &host) != (long_verdict, &by_long) {
            let (short, long) = (hex(&host.bytes), hex(&by_long.bytes));
            return Err(format!("{}\n  {verdict:?}, the long way {long_verdict:?}\n  short  {short}\n  long   {long}", name()));
        }
        let ran = kernel.run(direction, ifindex, &frame);
        if ran.action != action(verdict) {
            return Err(format!("{}\n  host {verdict:?}, kernel action {}", name(), ran.action));
        }
        if ran.bytes != host.bytes {
            return Err(format!("{}\n  host {verdict:?}\n  host   {}\n  kernel {}", name(), hex(&host.bytes), hex(&ran.bytes)));
        }
        *reached.entry(kind(verdict)).or_default() += 1;
        if !matches!(verdict, Verdict::Drop(_)) {
            if sums::verify(&frame.bytes).is_ok()
                && let Err(e) = sums::verify(&host.bytes)
            {
                return Err(format!("{}\n  {verdict:?}: {e}\n  out    {}", name(), hex(&host.bytes)));
            }
            if is_of_flow(verdict) {
                seen.push(Past { direction, ifindex, before: frame.bytes, after: host.bytes });
            }
        }
    }
    let mut differences = Snapshot::of(&world.maps).differences("host", &kernel.snapshot(), "kernel");
    // Counts of a flow may differ: those that the cache holds of a removed flow go to the next one of the same tuple.
    if *world.maps.counters.borrow() != *long.maps.counters.borrow() {
        differences.push("the endpoints' counters differ between the short way and the long one".to_owned());
    }
    if differences.is_empty() { Ok(()) } else { Err(format!("seed {seed}: {}", differences.join("\n"))) }
}

fn next_packet(r: &mut Random, seen: &[Past]) -> (Direction, u32, Frame) {
    if !seen.is_empty() && !r.one_in(4) {
        let past = &seen[seen.len() - 1 - r.below(seen.len().min(4) as u64) as usize];
        if let Some((direction, ifindex, mut bytes)) = next_of_flow(r, past) {
            if r.one_in(20) {
                damage(r, &mut bytes);
            }
            return (direction, ifindex, Frame { bytes, ..Frame::default() });
        }
    }
    let mut bytes = random_packet(r).bytes();
    if r.one_in(4) {
        damage(r, &mut bytes);
    }
    let segment = if r.one_in(10) { r.of(&[100, 1400]) } else { 0 };
    let direction = if r.one_in(8) { Direction::Ingress } else { Direction::Egress };
    (direction, r.of(&[CLIENT, CLIENT, CLIENT, CLIENT, NEAR]), Frame { bytes, segment, ..Frame::default() })
}

/// The outcome without its details.
fn kind(v: Verdict) -> String {
    let name = v.reason().name();
    match v {
        Verdict::Next(_) => format!("next {name}"),
        Verdict::Drop(_) => format!("drop {name}"),
        Verdict::Reply(_) => format!("reply {name}"),
        Verdict::Bounce(_) => format!("bounce {name}"),
        Verdict::Redirect { peer, .. } => format!("{} {name}", if peer { "redirect to peer" } else { "redirect" }),
    }
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("VNET_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap_or_else(|e| panic!("VNET_SEED={seed}: {e}"));
            seed..seed + 1
        }
        Err(_) => {
            let packets = if std::env::var_os("VNET_LONG").is_some() { 1_000_000 } else { 20_000 };
            0..packets / PACKETS_PER_WORLD
        }
    }
}

#[test]
fn host_and_kernel_agree() {
    let mut kernel = kernel::lock();
    let (mut failures, mut reached) = (Vec::new(), BTreeMap::new());
    for seed in seeds() {
        let started = Instant::now();
        let mut result = run_world(seed, &mut kernel, &mut reached);
        if result.is_err() && started.elapsed() > SHORT {
            result = run_world(seed, &mut kernel, &mut reached); // flows were written back in between: once more, uninterrupted
        }
        failures.extend(result.err());
        if failures.len() == 5 {
            break;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    println!("{reached:#?}");
    let missing: Vec<_> = REACHED.iter().filter(|k| !reached.contains_key(**k)).collect();
    assert!(missing.is_empty() || std::env::var_os("VNET_SEED").is_some(), "never reached: {missing:?}");
}
