//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624), over words in memory order.

use crate::addr::Address;
use crate::packet::Packet;

/// Folds a sum of 32-bit words to 32 bits, carries added back in.
#[inline(always)]
pub const fn fold64(sum: u64) -> u32 {
    let s = (sum & 0xffff_ffff) + (sum >> 32);
    let s = (s & 0xffff_ffff) + (s >> 32);
    s as u32
}

/// Folds to 16 bits, carries added back in.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let s = (sum & 0xffff) + (sum >> 16);
    let s = (s & 0xffff) + (s >> 16);
    s as u16
}

/// Ones' complement addition of 32-bit sums.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let (s, carry) = a.overflowing_add(b);
    s.wrapping_add(carry as u32)
}

/// The sum of `N` bytes (an even number) as 16-bit words in memory order.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut s = 0u32;
    let mut i = 0;
    while i + 1 < N {
        s += u32::from(u16::from_ne_bytes([bytes[i], bytes[i + 1]]));
        i += 2;
    }
    s
}

/// The difference that replacing `old` by `new` makes to a sum, as `bpf_csum_diff` gives it.
#[inline(always)]
pub fn diff<A: Address>(old: &A, new: &A) -> u32 {
    add(!old.sum(), new.sum())
}

/// The difference that replacing one 16-bit field makes.
#[inline(always)]
pub const fn diff16(old: [u8; 2], new: [u8; 2]) -> u32 {
    (!u16::from_ne_bytes(old)) as u32 + u16::from_ne_bytes(new) as u32
}

/// A complete checksum field after `diff`. As the kernel does it, to the bit: a sum of nil has two forms.
#[inline(always)]
pub const fn updated(field: [u8; 2], diff: u32) -> [u8; 2] {
    let s = add(diff, !(u16::from_ne_bytes(field) as u32));
    (!fold(s)).to_ne_bytes()
}

/// A partial checksum field (the pseudo-header's sum, not complemented) after `diff`.
#[inline(always)]
const fn updated_partial(field: [u8; 2], diff: u32) -> [u8; 2] {
    fold(add(diff, u16::from_ne_bytes(field) as u32)).to_ne_bytes()
}

/// What a packet's L4 checksum field holds.
///
/// A packet from a VM or a local socket often carries only the pseudo-header's sum, and the device completes it
/// (Linux: `CHECKSUM_PARTIAL`). A TC program cannot see which it is; [`replace`] finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The checksum of the whole segment.
    Complete,
    /// The pseudo-header's sum: the rest is added later, by a device or by the kernel.
    Partial,
    /// Cannot be told apart: the difference was nil, or the sum came out the same both ways.
    Unknown,
}

const fn udp_nonzero(field: [u8; 2], udp: bool) -> [u8; 2] {
    if udp && field[0] == 0 && field[1] == 0 { [0xff, 0xff] } else { field }
}

/// Applies `pseudo` (the difference in addresses) and `ports` (in L4 fields) to the checksum field `old` at `offset`,
/// rightly for complete and for partial fields.
///
/// One `bpf_l4_csum_replace` does the addresses, since only the kernel knows the kind; how the field changed then tells
/// the kind, and the ports follow by a direct write. A second helper call would cost 20 ns more.
#[inline(always)]
pub fn replace<P: Packet>(p: &mut P, offset: usize, udp: bool, ipv6: bool, pseudo: u32, ports: u32) -> Option<Field> {
    let old: [u8; 2] = p.read(offset)?;
    if udp && old == [0, 0] {
        return Some(Field::Complete); // RFC 768, RFC 6935: the sender computed none
    }
    let kind = replace_pseudo(p, offset, old, udp, ipv6, pseudo)?;
    if ports == 0 {
        return Some(kind);
    }
    match kind {
        Field::Partial => {}
        Field::Complete => {
            let now: [u8; 2] = p.read(offset)?;
            p.write(offset, udp_nonzero(updated(now, ports), udp))?;
        }
        Field::Unknown => p.l4_checksum(offset, ports, false, udp, ipv6)?,
    }
    Some(kind)
}

/// The first half of [`replace`]: the addresses, and what the field's change tells of its kind.
#[inline(always)]
pub fn replace_pseudo<P: Packet>(p: &mut P, offset: usize, old: [u8; 2], udp: bool, ipv6: bool, pseudo: u32) -> Option<Field> {
    p.l4_checksum(offset, pseudo, true, udp, ipv6)?;
    let now: [u8; 2] = p.read(offset)?;
    let complete = udp_nonzero(updated(old, pseudo), udp);
    let partial = udp_nonzero(updated_partial(old, pseudo), udp);
    Some(if complete == partial {
        Field::Unknown
    } else if now == partial {
        Field::Partial
    } else {
        Field::Complete
    })
}

/// What `bpf_l4_csum_replace` with a size of 0 does to a field; for packets on the host.
pub fn kernel_replace(field: [u8; 2], partial: bool, diff: u32, pseudo: bool, udp: bool) -> [u8; 2] {
    let new = match (partial, pseudo) {
        (false, _) => updated(field, diff),
        (true, true) => updated_partial(field, diff),
        (true, false) => field,
    };
    udp_nonzero(new, udp)
}
