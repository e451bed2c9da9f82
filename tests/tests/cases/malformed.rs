//! Headers that are cut off or contradict themselves, and fields at their limits.

use vnet_common::endpoint::flags;
use vnet_common::host::Frame;
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::kernel;
use super::neighbors::frame;
use super::packet::{ACK, L4, Packet, SYN};
use super::row::{Row, on_host, row, run};
use super::world::{CLIENT, FAMILIES, Family, World};

/// One packet of each kind that is treated in its own way, with as many headers as it may have.
fn kinds(f: Family) -> Vec<Packet> {
    let options = vec![2, 4, 5, 0xb4];
    let tcp = L4::Tcp { sport: 40000, dport: 80, flags: SYN, seq: 7, ack: 0, options };
    let mut out = vec![
        Packet::new(f.client(), f.vip(), tcp).with(b"data"),
        Packet::tcp(f.client(), 40000, f.vip(), 81, ACK).with(b"data"),
        Packet::udp(f.client(), 5353, f.vip(), 80),
        Packet::udp(f.client(), 5353, f.vip(), 81),
        Packet::ping(f.client(), f.vip()),
        Packet::new(f.client(), f.vip(), L4::Other(132)).with(&[1; 12]),
    ];
    for mut p in out.clone() {
        match f {
            Family::V4 => p.options = vec![1; 8],
            Family::V6 => p.extensions = vec![(0, vec![1, 4, 0, 0, 0, 0]), (44, vec![0, 0, 0, 0, 9, 9])],
        }
        out.push(p);
    }
    out
}

/// All of these are left to the stack, whichever way they go, but for IPv6 from an endpoint that may not tunnel. Those that the kernel does not
/// take run on the host alone.
fn all_malformed(name: &str, frames: Vec<Vec<u8>>) -> Vec<Row> {
    let (taken, refused): (Vec<_>, Vec<_>) = frames.into_iter().partition(|b| kernel::takes(b));
    let rows = [("in the kernel", taken), ("on the host", refused)].into_iter().filter(|(_, frames)| !frames.is_empty());
    rows.map(|(place, frames)| {
        let mut r = row(format!("{name}, {place}"), World::balanced(8080));
        for b in frames {
            r = malformed(r.egress(CLIENT, frame(b.clone())), &b);
            r = r.ingress(CLIENT, frame(b)).passes(Reason::Malformed);
        }
        r
    })
    .collect()
}

#[test]
fn every_truncation_of_every_header() {
    run(FAMILIES.into_iter().flat_map(|f| {
        kinds(f).into_iter().flat_map(move |p| {
            let b = p.bytes();
            all_malformed(&format!("{f:?} {:?}, cut off", p.l4), (0..b.len()).map(|len| b[..len].to_vec()).collect())
        })
    }));
}

/// The same with the length field of the IP header cut down too: only the L4 header is missing.
#[test]
fn every_truncation_of_the_l4_header() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for p in kinds(f).into_iter().filter(|p| !matches!(p.l4, L4::Other(_))) {
            let header = if matches!(p.l4, L4::Tcp { .. }) { 20 } else { 8 };
            let cut = |len: usize| with_ip_length(f, &p.bytes()[..len], len);
            let lengths = p.l4_at()..p.l4_at() + header;
            let padded = |len: usize| [cut(len), vec![0; 120 - len]].concat();
            let name = format!("{f:?} {:?}, its header cut off", p.l4);
            // An IPv6 packet of length 0 may be a jumbogram: what is behind its header belongs to it.
            let some = |len: &usize| f == Family::V4 || *len > 54;
            rows.extend(all_malformed(&name, lengths.clone().map(cut).collect()));
            rows.extend(all_malformed(&format!("{name}, padded"), lengths.filter(some).map(padded).collect()));
        }
    }
    run(rows);
}

/// The frame with an IP header that says that the packet ends at `end`. Its checksum is left to be wrong.
fn with_ip_length(f: Family, frame: &[u8], end: usize) -> Vec<u8> {
    let mut b = frame.to_vec();
    let (at, len) = if f == Family::V4 { (16, end - 14) } else { (18, end - 54) };
    b[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
    b
}

/// The last frame of the row, which the client sends, is malformed.
fn malformed(r: Row, frame: &[u8]) -> Row {
    if frame.get(12..14) == Some(&[0x86, 0xdd]) { r.dropped(Reason::Malformed) } else { r.passes(Reason::Malformed) }
}

fn edited(p: &Packet, at: usize, bytes: &[u8]) -> Frame {
    let mut b = p.bytes();
    b[at..at + bytes.len()].copy_from_slice(bytes);
    frame(b)
}

#[test]
fn fields_that_contradict() {
    let mut rows: Vec<Row> = Vec::new();
    let malformed = |name: String, frame: Frame| {
        let r = row(name, World::balanced(8080)).egress(CLIENT, frame.clone());
        let r = malformed(r, &frame.bytes).change(|w| w.at(CLIENT).flags |= flags::TUNNELS);
        r.egress(CLIENT, frame).passes(Reason::Malformed)
    };
    for f in FAMILIES {
        let p = &kinds(f)[0];
        for version in [0, 4, 5, 6, 7, 15].into_iter().filter(|v| *v != if f == Family::V4 { 4 } else { 6 }) {
            rows.push(malformed(format!("{f:?} header of version {version}"), edited(p, 14, &[version << 4 | 5])));
        }
        for words in 0..5_u8 {
            rows.push(malformed(format!("{f:?} TCP header of {words} words"), edited(p, p.l4_at() + 12, &[words << 4])));
        }
        rows.push(malformed(format!("{f:?} TCP header beyond the packet"), edited(p, p.l4_at() + 12, &[0xf0])));
        let longer = frame(with_ip_length(f, &p.bytes(), p.bytes().len() + 1));
        rows.push(malformed(format!("{f:?} a length beyond the frame"), longer));
    }
    let p = &kinds(Family::V4)[0];
    for words in 0..5 {
        rows.push(malformed(format!("IPv4 header of {words} words"), edited(p, 14, &[0x40 | words])));
    }
    for total in [1_u16, 19] {
        rows.push(malformed(format!("IPv4 total length {total}"), edited(p, 16, &total.to_be_bytes())));
    }
    let mut far = kinds(Family::V6)[0].clone();
    far.extensions = vec![(60, vec![1, 4, 0, 0, 0, 0])];
    rows.push(malformed("an extension header that ends behind the packet".into(), edited(&far, 55, &[255])));
    // As far as L4 headers may lie: an extension header of up to 968 bytes.
    far = Packet::udp(Family::V6.client(), 1, Family::V6.outside(), 53);
    for (bytes, reason) in [(968, Reason::NotOurs), (976, Reason::Malformed), (2040, Reason::Malformed)] {
        let mut body = vec![0; bytes - 2];
        (body[0], body[1], body[2]) = (1, 4, 0);
        body[4..].fill(0);
        far.extensions = vec![(60, body)];
        let r = row(format!("an extension header of {bytes} bytes"), World::balanced(8080)).egress(CLIENT, &far);
        rows.push(if reason == Reason::Malformed { r.dropped(reason) } else { r.passes(reason) });
    }
    run(rows);
}

/// Whatever the bytes: no panic, and what is cut off within the Ethernet header passes.
#[test]
fn the_shortest_frames() {
    for len in 0..14 {
        for direction in [Direction::Egress, Direction::Ingress] {
            let mut f = frame(vec![8; len]);
            let verdict = on_host(&World::balanced(80), direction, CLIENT, &mut f, false);
            assert_eq!((verdict, f.bytes), (Verdict::Next(Reason::Malformed), vec![8; len]));
        }
    }
}
