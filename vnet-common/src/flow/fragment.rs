//! Fragments of a datagram go where its first one went.
//!
//! Only the first says which flow it is of: what that flow says is noted under the datagram's identification, and applied to the others, which
//! have no ports to rewrite. One that comes before the first finds nothing: to a VIP it is dropped and counted; else it is asked about by itself.

use super::track::{Treatment, usual};
use super::{NO_MEMBER, Rewrite, Work, flags};
use crate::addr::Address;
use crate::endpoint::EndpointRow;
use crate::hash::mix;
use crate::lb::{LbMaps, state};
use crate::pipeline::Maps;
use crate::verdict::Direction;

/// A datagram that comes in fragments (RFC 791 §3.2, RFC 8200 §4.5), as its packets carry it at the endpoint's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct FragmentKey {
    /// The endpoint at whose device the packets are seen.
    pub endpoint: u32,
    /// The network; 0 is the default one.
    pub network: u32,
    /// The identification: 32 bits in IPv6, 16 in IPv4.
    pub id: u32,
    /// IP protocol number of the L4 header.
    pub protocol: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// 4 or 6.
    pub version: u8,
    /// Zero.
    pub pad: u8,
    /// Source address; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// Destination address likewise.
    pub dst: [u8; 16],
}

/// What its first fragment's flow said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FragmentRow {
    /// The new address of one side.
    pub addr: [u8; 16],
    /// Row of the member, or [`super::NO_MEMBER`].
    pub member: u32,
    /// [`crate::lb::MemberRow::serial`] of that member.
    pub serial: u32,
    /// Zero.
    pub pad: u32,
    /// The policy generation of the first.
    pub generation: u32,
    /// The low half of seconds when the first came.
    pub seconds: u32,
    /// [`super::flags`] of the flow's entry.
    pub flags: u16,
    /// [`FragmentKey::check`]: the kernel gives the memory of a row that made room to another at once, also while it is read.
    pub check: u16,
}

impl FragmentKey {
    /// Something that differs from one key to the next.
    #[inline(always)]
    pub fn check(&self) -> u16 {
        let kind = u64::from(self.protocol) << 8 | u64::from(self.direction);
        let mut h = mix(u64::from(self.endpoint), u64::from(self.id) << 32 | kind);
        for at in [0, 4, 8, 12] {
            let word = |b: &[u8; 16]| u64::from(u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]));
            h = mix(h, word(&self.src) << 32 | word(&self.dst));
        }
        h as u16
    }
}

const _: () = assert!(size_of::<FragmentKey>() == 48 && size_of::<FragmentRow>() == 40);

/// Datagrams whose first fragment was seen.
pub trait FragmentMaps {
    /// What the first said.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow>;
    /// Notes it. Where there is no room, the least recently used makes some.
    fn set_fragment(&self, key: &FragmentKey, row: &FragmentRow);
}

/// For so many seconds a datagram may be under way: as Linux waits for its fragments (`ipfrag_time`, `ip6frag_time`).
const fn seconds<A: Address>() -> u32 {
    if A::VERSION == 4 { 30 } else { 60 }
}

#[inline(always)]
fn key<A: Address>(ep: &EndpointRow, w: &Work<A>, direction: Direction) -> FragmentKey {
    let h = &w.headers;
    FragmentKey {
        endpoint: ep.id,
        network: ep.network,
        id: h.id,
        protocol: h.protocol,
        direction: direction as u8,
        version: A::VERSION,
        pad: 0,
        src: h.src.widen(),
        dst: h.dst.widen(),
    }
}

/// Notes what [`Work::treatment`] says about the first fragment at hand.
#[inline(never)]
pub fn note<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &Work<A>, direction: Direction) -> bool {
    let t = &w.treatment;
    // Of what is not rewritten the rest is of an earlier packet.
    let nat = t.flags & flags::NAT != 0;
    let (addr, member, serial) = if nat { (t.rewrite.addr.widen(), t.member, w.entry.serial) } else { ([0; 16], NO_MEMBER, 0) };
    let key = key(ep, w, direction);
    let (generation, seconds, check) = (w.seen.generation, m.seconds(), key.check());
    m.set_fragment(&key, &FragmentRow { addr, member, serial, pad: 0, generation, seconds, flags: t.flags, check });
    true
}

/// Is the member's row still the member's?
#[inline(always)]
fn is_still_there<M: LbMaps>(m: &M, row: &FragmentRow) -> bool {
    m.member(row.member).is_some_and(|member| member.serial == row.serial && member.state != state::NONE)
}

/// Was the first of the datagram seen that the later fragment at hand is of? What its flow says is then in [`Work::treatment`], and the packet
/// counted for the member. After a change the first one of a policed endpoint may have been judged otherwise: it does not count.
#[inline(never)]
pub fn follow<A: Address, M: Maps>(m: &M, ep: &EndpointRow, w: &mut Work<A>, direction: Direction) -> bool {
    let key = key(ep, w, direction);
    let Some(row) = m.fragment(&key) else { return false };
    let over = m.seconds().wrapping_sub(row.seconds) > seconds::<A>();
    let changed = row.generation != w.seen.generation && (ep.is_policed() || !is_still_there(m, &row));
    if over || changed || row.check != key.check() {
        return false;
    }
    let rewrite = Rewrite { addr: A::narrow(&row.addr), port: [0; 2], client_port: [0; 2] };
    w.treatment = Treatment { rewrite, member: row.member, flags: row.flags };
    w.reason = usual(row.flags);
    // Of a hairpin the endpoint sends the answers, too.
    let way = if row.flags & flags::UNNAT != 0 { Direction::Ingress } else { Direction::Egress };
    m.member_traffic(row.member, way, 1, w.seen.bytes);
    true
}
