//! Finding a packet's flow, and keeping the flow's state and counts.
//!
//! The hot path is a [`hit`] in the CPU's cache: mostly one line is read and written (IPv6: two). The tables are asked ([`find`], [`proceed`]) when it misses,
//! and once every [`FLUSH_JIFFIES`] for a flow that it has.

use super::{
    CACHE_WAYS, CacheSlot, FLUSH_JIFFIES, FlowEntry, FlowKey, FlowMaps, NO_MEMBER, Rewrite, Table, Work, flags, tcp as state,
};
use crate::addr::Address;
use crate::endpoint::{EndpointMaps, EndpointRow, HostMaps};
use crate::hash;
use crate::lb::{LbMaps, MemberEvent};
use crate::parse::{Headers, protocol, tcp};
use crate::verdict::{Direction, Reason};

/// A cache slot whose flow was not flushed for this long belongs to an idle flow, and may be taken over.
const IDLE_JIFFIES: u32 = 2 * FLUSH_JIFFIES;
/// Cached bytes are flushed at this many, long before the 32-bit count wraps.
const FLUSH_BYTES: u32 = 1 << 30;

/// One packet of a flow, as tracking sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Seen<A: Address> {
    /// Its key at the endpoint's device.
    pub key: FlowKey<A>,
    /// Its length in bytes.
    pub bytes: u32,
    /// The policy generation, read before anything else.
    pub generation: u32,
    /// The low half of jiffies.
    pub now: u32,
    /// TCP flags, or 0.
    pub tcp: u32,
    /// [`hash::flow`] of the key.
    pub hash: u32,
    /// The hash's stamp, read before any table.
    pub stamp: u32,
}

/// What a valid entry says to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Treatment<A> {
    /// What to write.
    pub rewrite: Rewrite<A>,
    /// Row of the member.
    pub member: u32,
    /// See [`flags`].
    pub flags: u16,
}

/// What becomes of a packet whose flow has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Apply [`Work::treatment`].
    Valid,
    /// The flow may not go on.
    Refused,
    /// The entry was of an earlier connection, and is gone.
    None,
}

/// Notes what tracking needs to know of a packet.
#[inline(never)]
pub fn see<A: Address, M: HostMaps + FlowMaps<A>>(m: &M, ep: &EndpointRow, direction: Direction, bytes: u32, w: &mut Work<A>) {
    w.seen.key = key(ep, direction, &w.headers);
    if w.headers.is_icmp() {
        let id = w.headers.sport;
        (w.seen.key.sport, w.seen.key.dport) = if w.headers.is_echo(true) { ([0; 2], id) } else { (id, [0; 2]) };
    }
    (w.seen.tcp, w.seen.bytes) = (u32::from(w.headers.tcp), bytes);
    (w.seen.generation, w.seen.now) = (m.generation(), m.now());
    w.seen.hash = hash::flow(&w.seen.key);
    w.seen.stamp = m.stamp(w.seen.hash);
}

/// The key of a packet's flow; not for ICMP.
#[inline(always)]
pub fn key<A: Address>(ep: &EndpointRow, direction: Direction, h: &Headers<A>) -> FlowKey<A> {
    FlowKey {
        endpoint: ep.id,
        network: ep.network,
        src: h.src,
        dst: h.dst,
        sport: h.sport,
        dport: h.dport,
        protocol: h.protocol,
        direction: direction as u8,
        pad: [0; 2],
    }
}

/// The direction in a key.
#[inline(always)]
pub fn direction<A: Address>(key: &FlowKey<A>) -> Direction {
    if key.direction == Direction::Egress as u8 { Direction::Egress } else { Direction::Ingress }
}

/// Finds the packet's flow in the tables; says if there is one. The entry is then in [`Work::entry`], and [`Work::table`] says where it came
/// from; [`proceed`] goes on.
#[inline(always)]
pub fn find<A: Address, M: FlowMaps<A>>(m: &M, w: &mut Work<A>) -> bool {
    w.table = Table::Main;
    if m.flow(Table::Main, &w.seen.key, &mut w.entry) {
        return true;
    }
    w.table = Table::HalfOpen;
    w.seen.key.protocol == protocol::TCP && m.flow(Table::HalfOpen, &w.seen.key, &mut w.entry)
}

/// Is the packet, of no flow that the endpoint opened, its answer to one that it opened to itself? Its key is then that of the reverse entry.
#[inline(never)]
pub fn turn<A: Address, M: FlowMaps<A>>(m: &M, w: &mut Work<A>) -> bool {
    w.seen.key.direction = Direction::Ingress as u8;
    let turned = find(m, w) && w.entry.flags & flags::HAIRPIN != 0;
    if !turned {
        w.seen.key.direction = Direction::Egress as u8;
    }
    turned
}

/// Counts a packet whose flow has a valid entry, and advances the flow's state.
#[inline(always)]
pub fn proceed<A: Address, M: FlowMaps<A> + EndpointMaps + LbMaps>(m: &M, slot: u32, w: &mut Work<A>) -> Course {
    match w.table {
        Table::Main => from_main(m, slot, w),
        Table::HalfOpen => from_half_open(m, slot, w),
    }
}

/// Is it in the middle of its flow?
#[inline(always)]
fn is_amid<A: Address>(seen: &Seen<A>) -> bool {
    seen.tcp & u32::from(tcp::EDGES) == 0
}

/// What a packet of a known flow is counted as.
#[inline(always)]
pub fn usual(entry_flags: u16) -> Reason {
    if entry_flags & flags::UNNAT != 0 { Reason::Reply } else { Reason::Established }
}

/// Does the packet come from the side that opened the flow?
#[inline(always)]
fn from_opener<A: Address>(key: &FlowKey<A>, entry_flags: u16) -> bool {
    (key.direction == Direction::Egress as u8) == (entry_flags & flags::INBOUND == 0)
}

/// Of a hash's slots, of which this is the first, the first that passes. No loop: the verifier would lose count of it.
#[inline(always)]
fn first(slot: u32, mut test: impl FnMut(u32) -> bool) -> Option<u32> {
    const { assert!(CACHE_WAYS == 4) };
    if test(slot) {
        Some(slot)
    } else if test(slot ^ 1) {
        Some(slot ^ 1)
    } else if test(slot ^ 2) {
        Some(slot ^ 2)
    } else if test(slot ^ 3) {
        Some(slot ^ 3)
    } else {
        None
    }
}

/// In which of its hash's slots this CPU's cache has the flow.
#[inline(always)]
fn slot<A: Address, M: FlowMaps<A>>(m: &M, hash: u32, key: &FlowKey<A>) -> Option<u32> {
    first(m.cache_slot(hash)?, |slot| m.is_cached(slot, key))
}

/// The short way: finds the flow of a packet in the middle of it in this CPU's cache, and counts the packet there, once `accept` has seen the
/// treatment. `None`, with nothing changed: do it the long way.
#[inline(always)]
pub fn hit<A: Address, M: FlowMaps<A> + HostMaps>(
    m: &M,
    key: &FlowKey<A>,
    bytes: u32,
    accept: impl FnOnce(&Treatment<A>) -> bool,
) -> Option<Treatment<A>> {
    let (generation, now) = (m.generation(), m.now());
    let hash = hash::flow(key);
    let stamp = m.stamp(hash);
    m.cached(slot(m, hash, key)?, |s| {
        let counted = s.bytes.wrapping_add(bytes);
        let usable = s.generation == generation && s.stamp == stamp;
        if !usable || now.wrapping_sub(s.flushed) >= FLUSH_JIFFIES || counted >= FLUSH_BYTES {
            return None;
        }
        let t = Treatment { rewrite: s.rewrite, member: s.member, flags: s.flags };
        if !accept(&t) {
            return None;
        }
        (s.packets, s.bytes) = (s.packets.wrapping_add(1), counted);
        Some(t)
    })?
}

/// The [`flags`] of a flow that this CPU has cached, of any generation; nothing is counted.
#[inline(always)]
pub fn cached_flags<A: Address, M: FlowMaps<A>>(m: &M, key: &FlowKey<A>) -> Option<u16> {
    let hash = hash::flow(key);
    let stamp = m.stamp(hash);
    m.cached(slot(m, hash, key)?, |s| (s.stamp == stamp).then_some(s.flags))?
}

#[inline(always)]
fn from_main<A, M>(m: &M, slot: u32, w: &mut Work<A>) -> Course
where
    A: Address,
    M: FlowMaps<A> + EndpointMaps + LbMaps,
{
    let (seen, e) = (&w.seen, &w.entry);
    let fresh_syn = seen.tcp & u32::from(tcp::SYN | tcp::ACK) == u32::from(tcp::SYN);
    if fresh_syn && state::is_closed(e.tcp) {
        w.partner = seen.key.partner(&e.rewrite);
        forget(m, slot, Table::Main, &w.seen.key, &w.partner); // either side opens another connection between the same ports
        return Course::None;
    }
    if is_amid(seen) && e.flags & flags::HAIRPIN == 0 {
        remember(m, w);
    } else {
        count(m, Table::Main, seen, e);
    }
    let news = news(m, &w.seen, &w.entry);
    if news != (0, 0) {
        if state::is_closed(w.entry.tcp | news.0) && !state::is_closed(w.entry.tcp) {
            m.add_active(w.entry.member, false);
        }
        w.partner = w.seen.key.partner(&w.entry.rewrite);
        for key in [&w.seen.key, &w.partner] {
            m.update(Table::Main, key, |e| (e.tcp, e.flags) = (e.tcp | news.0, e.flags | news.1));
        }
    }
    treat(w);
    w.reason = usual(w.entry.flags);
    Course::Valid
}

/// The entry at hand says what to do.
#[inline(always)]
pub fn treat<A: Address>(w: &mut Work<A>) {
    w.treatment = Treatment { rewrite: w.entry.rewrite, member: w.entry.member, flags: w.entry.flags };
}

/// What a packet adds to the state in both entries of its flow: bits of [`FlowEntry::tcp`] and of [`FlowEntry::flags`].
#[inline(always)]
fn news<A: Address, M: LbMaps>(m: &M, seen: &Seen<A>, e: &FlowEntry<A>) -> (u8, u16) {
    let answered = !from_opener(&seen.key, e.flags);
    let mut bits = 0;
    if seen.tcp & u32::from(tcp::FIN) != 0 {
        bits |= if answered { state::FIN_MEMBER } else { state::FIN_CLIENT };
    }
    if seen.tcp & u32::from(tcp::RST) != 0 {
        bits |= state::RESET;
        // What is over cannot fail: each segment that is still under way is answered by another reset.
        if !state::is_closed(e.tcp) {
            m.member_event(e.member, if answered { MemberEvent::ResetByMember } else { MemberEvent::Reset });
        }
    }
    (bits & !e.tcp, if answered { flags::REPLIED & !e.flags } else { 0 })
}

/// Counts one packet in its entry and for its member.
#[inline(always)]
fn count<A: Address, M: FlowMaps<A> + LbMaps>(m: &M, table: Table, seen: &Seen<A>, e: &FlowEntry<A>) {
    m.add(table, &seen.key, 1, seen.bytes, seen.now);
    m.member_traffic(e.member, direction(&seen.key), 1, seen.bytes);
}

/// Counts the packet at hand in its entry, and puts the flow into a cache slot, unless all are in use; what the slot had not yet written back
/// is written.
#[inline(never)]
fn remember<A: Address, M: FlowMaps<A> + LbMaps>(m: &M, w: &mut Work<A>) {
    let Work { seen, entry, spare, .. } = w;
    let idle = |s: &mut CacheSlot<A>| s.key.endpoint == 0 || seen.now.wrapping_sub(s.flushed) >= IDLE_JIFFIES;
    // Before an idle slot, that of the flow itself: it may have only one.
    let slot = m.cache_slot(seen.hash).and_then(|slot| {
        first(slot, |slot| m.is_cached(slot, &seen.key)).or_else(|| first(slot, |slot| m.cached(slot, idle) == Some(true)))
    });
    // What the slot owes to the entry of `spare`, and when the last of it may have come.
    let (mut member, mut packets, mut bytes, mut last) = (0, 0, 0, 0);
    if let Some(slot) = slot {
        m.cached(slot, |s| {
            // Also where the flow stays: one whose copy is time and again made invalid would never be written back.
            (member, packets, bytes) = (s.member, s.packets, s.bytes);
            last = if s.key.is(&seen.key) { seen.now } else { s.flushed.wrapping_add(FLUSH_JIFFIES) };
            (*spare, s.key) = (s.key, seen.key);
            s.rewrite = entry.rewrite;
            (s.generation, s.stamp, s.member, s.flags) = (entry.generation, seen.stamp, entry.member, entry.flags);
            (s.packets, s.bytes, s.flushed) = (0, 0, seen.now);
        });
    }
    if packets != 0 {
        m.add(Table::Main, spare, packets, bytes, last);
        m.member_traffic(member, direction(spare), packets, bytes);
    }
    count(m, Table::Main, seen, entry);
}

#[inline(never)]
fn from_half_open<A, M>(m: &M, slot: u32, w: &mut Work<A>) -> Course
where
    A: Address,
    M: FlowMaps<A> + EndpointMaps + LbMaps,
{
    w.partner = w.seen.key.partner(&w.entry.rewrite);
    let (member, key, tcp) = (w.entry.member, &w.seen.key, w.seen.tcp);
    let opener = from_opener(key, w.entry.flags);
    let mut reason = Reason::HalfOpen;
    if tcp & u32::from(tcp::RST) != 0 {
        let event = match (opener, w.entry.flags & flags::REPLIED != 0) {
            (true, true) => MemberEvent::GivenUp,
            (true, false) => MemberEvent::Reset,
            (false, _) => MemberEvent::ResetByMember,
        };
        m.member_event(member, event);
        m.add_active(member, false);
        forget(m, slot, Table::HalfOpen, key, &w.partner);
    } else if opener && w.entry.flags & flags::REPLIED != 0 && tcp & u32::from(tcp::SYN) == 0 {
        if let Err(r) = promote(m, slot, w) {
            w.reason = r;
            return Course::Refused;
        }
        reason = Reason::Established;
    } else {
        m.add(Table::HalfOpen, key, 1, w.seen.bytes, w.seen.now);
        if !opener && w.entry.flags & flags::REPLIED == 0 {
            if member != NO_MEMBER && tcp & u32::from(tcp::SYN) != 0 {
                m.answered(member, hash::flow(&w.partner));
            }
            m.update(Table::HalfOpen, key, |e| e.flags |= flags::REPLIED);
            m.update(Table::HalfOpen, &w.partner, |e| e.flags |= flags::REPLIED);
        }
    }
    m.member_traffic(member, direction(&w.seen.key), 1, w.seen.bytes);
    treat(w);
    w.reason = reason;
    Course::Valid
}

/// Moves both entries of a connection to the main table: its handshake is complete.
#[inline(always)]
fn promote<A, M>(m: &M, slot: u32, w: &mut Work<A>) -> Result<(), Reason>
where
    A: Address,
    M: FlowMaps<A> + EndpointMaps + LbMaps,
{
    let Work { seen, entry, partner, other, .. } = w;
    if !m.flow(Table::HalfOpen, partner, other) {
        // The reverse entry lost its place to newer connections: as if there had been no handshake.
        m.remove(Table::HalfOpen, &seen.key);
        return Err(Reason::FlowQuota);
    }
    if !m.take_flow(slot, false) {
        return Err(Reason::FlowQuota);
    }
    let fin = if seen.tcp & u32::from(tcp::FIN) != 0 { state::FIN_CLIENT } else { 0 };
    (entry.tcp, other.tcp) = (entry.tcp | fin, other.tcp | fin);
    (entry.last_seen, other.last_seen) = (seen.now, seen.now);
    entry.packets += 1;
    entry.bytes += u64::from(seen.bytes);
    if let Err(err) = insert_pair(m, Table::Main, &seen.key, entry, partner, other) {
        m.give_flow(slot);
        return Err(err.reason());
    }
    m.remove(Table::HalfOpen, &seen.key);
    m.remove(Table::HalfOpen, partner);
    m.member_event(entry.member, MemberEvent::Established);
    Ok(())
}

/// Inserts the reverse entry, then the forward one: a packet that finds the forward entry can count on its reply.
#[inline(never)]
pub fn insert_pair<A, M>(
    m: &M,
    table: Table,
    key: &FlowKey<A>,
    forward: &FlowEntry<A>,
    reverse_key: &FlowKey<A>,
    reverse: &FlowEntry<A>,
) -> Result<(), super::InsertError>
where
    A: Address,
    M: FlowMaps<A>,
{
    m.insert(table, reverse_key, reverse)?;
    m.insert(table, key, forward).inspect_err(|_| {
        m.remove(table, reverse_key);
    })
}

/// Removes both entries of a flow; says if there was one. Whoever removes the egress entry gives back the flow's quota: two CPUs, or a CPU and
/// the agent, may each remove one of the two.
#[inline(never)]
pub fn forget<A: Address, M: FlowMaps<A> + EndpointMaps>(
    m: &M,
    slot: u32,
    table: Table,
    key: &FlowKey<A>,
    partner: &FlowKey<A>,
) -> bool {
    let one = m.remove(table, key);
    let other = m.remove(table, partner);
    if table == Table::Main {
        m.bump_stamp(hash::flow(key));
        m.bump_stamp(hash::flow(partner));
        if if direction(key) == Direction::Egress { one } else { other } {
            m.give_flow(slot);
        }
    }
    one || other
}
