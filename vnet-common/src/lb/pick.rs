//! The first packet of a flow: picking a member and making the flow's two entries.

use super::{AffinityKey, AffinityRow, LbMaps, MemberEvent, MemberRow, VipKey, VipRow, flags as group_bits, state};
use crate::addr::Address;
use crate::endpoint::{EndpointMaps, EndpointRow};
use crate::flow::open::{self, Reverse, clear_dead, make_room, reverse};
use crate::flow::{FlowKey, FlowMaps, Rewrite, Table, Work, flags};
use crate::hash;
use crate::judge::admit::{admit_packet, admit_unbalanced};
use crate::judge::{Admission, Decision, Judge};
use crate::parse::{protocol, tcp};
use crate::pipeline::Maps;
use crate::policy::AddressKey;
use crate::verdict::{Direction, Reason};

/// Other members that are tried when a reverse tuple is taken, before the client's port is translated.
const PICKS: u32 = 3;
/// Source ports that are tried after that.
const PORTS: u32 = 8;
/// Translated source ports are from here up (the dynamic ports of RFC 6335).
const FIRST_PORT: u16 = 49_152;
/// Members among which the one with the fewest flows is looked for: all, or so many at random.
pub const LEAST_OF: u32 = 16;

/// What became of a packet that starts a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Its flow is made: apply [`Work::treatment`].
    Picked,
    /// No group has the VIP's port.
    NoGroup,
    /// Refuse it as a host would refuse a closed port, for [`Work::reason`].
    Reject,
    /// Drop it, for [`Work::reason`].
    Drop,
    /// A rule sends it to a member of [`Work::group`] instead.
    Steer,
}

/// Where a member is picked from, and what was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Picking<A> {
    /// The group's pick table.
    pub table: u64,
    /// Row of the group.
    pub group: u32,
    /// [`super::GroupRow::serial`].
    pub serial: u32,
    /// [`super::GroupRow::flags`].
    pub flags: u32,
    /// The member's port, big-endian.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// The member's address.
    pub member: A,
    /// Row of the member that the client sticks to, plus one; 0: none.
    pub stuck: u32,
    /// The member with the fewest flows up to now, or `u32::MAX`.
    pub best: u32,
    /// Its share.
    pub share: u32,
    /// Zero.
    pub pad_more: u32,
    /// Its flows, and one.
    pub flows: u64,
}

/// The key of the row for a VIP's port.
#[inline(always)]
pub fn vip_key<A: Address>(network: u32, addr: &A, port: [u8; 2], protocol: u8) -> VipKey {
    VipKey { network, addr: addr.widen(), port, protocol, version: A::VERSION }
}

/// The row that a VIP's port leads by: its own, or that of the smallest range it is in.
#[inline(always)]
pub fn find_vip<A: Address, M: LbMaps>(m: &M, network: u32, addr: &A, port: [u8; 2], protocol: u8) -> Option<VipRow> {
    let key = vip_key(network, addr, port, protocol);
    if let Some(row) = m.vip(&key) {
        return Some(row);
    }
    let mut row = VipRow::default();
    find_range(m, &key, &mut row).then_some(row)
}

/// The same among ranges.
#[inline(never)]
fn find_range<M: LbMaps>(m: &M, key: &VipKey, into: &mut VipRow) -> bool {
    let address = VipKey { port: [0; 2], protocol: 0, ..*key };
    let lengths = m.vip(&address).map_or(0, |row| row.group);
    let mut bits = 16;
    while bits > 0 {
        bits -= 1;
        if lengths >> bits & 1 != 0
            && let Some(row) = m.vip(&key.range(bits))
        {
            *into = row;
            return true;
        }
    }
    false
}

/// Makes the flow of a packet that is addressed to a group's VIP, protocol and port.
#[inline(always)]
pub fn new_flow<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Outcome
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let key = &w.seen.key;
    let Some(vip) = find_vip(m, key.network, &key.dst, key.dport, key.protocol) else { return Outcome::NoGroup };
    (w.group.group, w.group.serial) = (vip.group, vip.serial);
    Judge::<A>::pick(m, ep, w, 0)
}

/// Makes the flow of a packet that a rule sends to a member of [`Work::group`].
#[inline(always)]
pub fn steer<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    match Judge::<A>::pick(m, ep, w, u32::from(flags::STEERED)) {
        Outcome::Picked => Decision::Forward,
        Outcome::Reject => Decision::Reject,
        _ => Decision::Drop,
    }
}

/// Makes the flow to a member of [`Work::group`]; `bits` are set in both entries.
#[inline(always)]
pub fn from_group<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, bits: u32) -> Outcome
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let Some(group) = m.group(w.group.group).filter(|g| g.serial == w.group.serial) else {
        w.reason = Reason::BadRow;
        return Outcome::Drop;
    };
    let is_tcp = w.seen.key.protocol == protocol::TCP;
    if is_tcp && w.seen.tcp & u32::from(tcp::RST) != 0 {
        w.reason = Reason::RejectSilent; // of no connection: a host ignores it
        return Outcome::Drop;
    }
    if w.seen.key.src == w.seen.key.dst {
        w.reason = Reason::RejectSilent; // from the VIP itself, which sends nothing
        return Outcome::Drop;
    }
    w.group.stuck = 0;
    (w.group.table, w.group.flags) = (group.table, group.flags); // read once: the agent may switch the table at any time
    if w.group.table as u32 == 0 {
        if ep.is_policed() && bits & u32::from(flags::STEERED) == 0 {
            match admit_unbalanced(m, ep, w) {
                Admission::Allowed => {}
                Admission::Denied => return Outcome::Drop,
                Admission::Rejected => return Outcome::Reject,
                Admission::Steered => return Outcome::Steer,
            }
        }
        w.reason = Reason::NoMember;
        return if w.group.flags & group_bits::EMPTY_DROP != 0 { Outcome::Drop } else { Outcome::Reject };
    }
    if !is_tcp && !m.take_flow(ep.slot, false) {
        w.reason = Reason::FlowQuota;
        return Outcome::Drop;
    }
    if w.group.flags & group_bits::AFFINITY != 0 {
        recall(m, w);
    }
    let outcome = insert(m, ep, w, bits as u16);
    if outcome != Outcome::Picked && !is_tcp {
        m.give_flow(ep.slot);
    }
    outcome
}

/// The member that the group's table gives for a flow; `salt` gives further ones.
#[inline(always)]
fn pick<A: Address, M: LbMaps>(m: &M, key: &FlowKey<A>, group: &Picking<A>, salt: u32) -> Option<u32> {
    let (block, slots) = ((group.table >> 32) as u32, group.table as u32);
    let slot = match group.flags & group_bits::ALGORITHM {
        group_bits::ROUND_ROBIN => m.turn(group.group) % slots.max(1),
        group_bits::SOURCE_HASH => scale(hash::client(key), slots),
        _ => scale(hash::pick(key, salt), slots),
    };
    let index = m.pick(block, slot)?;
    let row = m.member(index)?;
    (row.state != state::NONE && row.group == group.group).then_some(index)
}

/// A hash as a number below `to`.
#[inline(always)]
fn scale(hash: u32, to: u32) -> u32 {
    ((u64::from(hash) * u64::from(to)) >> 32) as u32
}

/// The member that has the fewest flows for its share, of all or of [`LEAST_OF`] at random; `u32::MAX`: none. What is compared lies in
/// [`Work::group`]: in registers the verifier would follow every order of members apart.
#[inline(never)]
fn least<A: Address, M: LbMaps>(m: &M, w: &mut Work<A>, salt: u32) -> u32 {
    let slots = w.group.table as u32;
    (w.group.best, w.group.share, w.group.flows) = (u32::MAX, 1, 0);
    // Of equals not always the first.
    let mut slot = scale(hash::pick(&w.seen.key, salt), slots);
    let mut n = 0;
    while n < LEAST_OF && n < slots {
        compare(m, w, slot);
        n += 1;
        slot = if slots > LEAST_OF { scale(hash::pick(&w.seen.key, salt + n), slots) } else { slot + 1 };
        if slot >= slots {
            slot = core::hint::black_box(0);
        }
    }
    w.group.best
}

/// Holds the member in a slot against the best one up to now; says if it is better.
#[inline(never)]
fn compare<A: Address, M: LbMaps>(m: &M, w: &mut Work<A>, slot: u32) -> bool {
    let g = &mut w.group;
    let Some(index) = m.pick((g.table >> 32) as u32, slot) else { return false };
    let Some(row) = m.member(index) else { return false };
    if row.state == state::NONE || row.group != g.group || row.share == 0 {
        return false;
    }
    // One more than it has: of two that have none, the heavier.
    let (flows, share) = (u64::from(m.active(index)) + u64::from(row.elsewhere) + 1, u64::from(row.share));
    if g.best != u32::MAX && flows * u64::from(g.share) >= g.flows * share {
        return false;
    }
    (g.best, g.share, g.flows) = (index, row.share, flows);
    true
}

/// Notes in [`Picking::stuck`] where the client's last flow went, if new ones may go there.
#[inline(never)]
fn recall<A: Address, M: LbMaps>(m: &M, w: &mut Work<A>) -> bool {
    let key = affinity_key(w);
    let Some(row) = m.affinity(&key) else { return false };
    let age = m.seconds().wrapping_sub(row.seconds);
    let Some(member) = m.member(row.member) else { return false };
    let same = member.serial == row.serial && member.group == key.group;
    if age > group_bits::affinity_seconds(w.group.flags) || !same || member.share == 0 {
        return false;
    }
    w.group.stuck = row.member + 1;
    true
}

/// Notes where the client's flow went.
#[inline(never)]
fn stick<A: Address, M: LbMaps>(m: &M, w: &Work<A>) -> bool {
    let row = AffinityRow { member: w.entry.member, serial: w.entry.serial, seconds: m.seconds() };
    m.set_affinity(&affinity_key(w), &row);
    true
}

#[inline(always)]
fn affinity_key<A: Address>(w: &Work<A>) -> AffinityKey {
    AffinityKey { group: w.group.group, serial: w.group.serial, client: w.seen.key.src.widen() }
}

#[inline(always)]
fn insert<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, bits: u16) -> Outcome
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    w.table = if w.seen.key.protocol == protocol::TCP { Table::HalfOpen } else { Table::Main };
    w.reason = Reason::BadRow;
    let mut attempt = 0;
    let index = loop {
        if attempt == PICKS + PORTS {
            return Outcome::Drop;
        }
        let index = Judge::<A>::candidate(m, w, attempt);
        if index != u32::MAX {
            match reverse(m, w) {
                Reverse::Free => break index,
                Reverse::Dead => {
                    clear_dead(m, ep, w);
                    break index;
                }
                Reverse::Making => {
                    w.reason = Reason::FlowCollision;
                    return Outcome::Drop;
                }
                Reverse::Taken => w.reason = Reason::FlowCollision,
            }
        }
        attempt += 1;
    };
    if !ep.is_policed() {
        w.judged.rule.id = 0;
    } else if bits & flags::STEERED == 0 {
        (w.group.member, w.group.port) = (w.entry.rewrite.addr, w.entry.rewrite.port);
        match admit_packet(m, ep, w, true) {
            Admission::Allowed => {}
            Admission::Denied => return Outcome::Drop,
            Admission::Rejected => return Outcome::Reject,
            Admission::Steered => return Outcome::Steer,
        }
    }
    let Some(member) = m.member(index) else {
        w.reason = Reason::BadRow;
        return Outcome::Drop;
    };
    (w.entry.member, w.entry.serial, w.entry.group) = (index, member.serial, member.group);
    if !open::insert(m, w, bits | flags::DNAT | delivery(m, ep, member, w)) {
        return Outcome::Drop;
    }
    w.reason = if bits & flags::STEERED != 0 { Reason::Steered } else { Reason::NewFlow };
    account(m, ep, w, index);
    Outcome::Picked
}

/// Notes in `w` how the flow would be rewritten in this attempt; gives the member, or `u32::MAX` for none.
#[inline(always)]
pub fn candidate<A: Address, M: LbMaps>(m: &M, w: &mut Work<A>, attempt: u32) -> u32 {
    let (key, group) = (&w.seen.key, &w.group);
    let by_client = group.stuck != 0 || group.flags & group_bits::ALGORITHM == group_bits::SOURCE_HASH;
    // Who is to go to one member is not sent to others.
    let (salt, client_port) = match attempt {
        0 => (0, key.sport),
        n if n < PICKS && !by_client => (n, key.sport),
        n => (0, other_port(key, n)),
    };
    let index = if group.stuck != 0 {
        group.stuck - 1
    } else if group.flags & group_bits::ALGORITHM == group_bits::LEAST_CONNECTIONS {
        least(m, w, salt)
    } else {
        pick(m, key, group, salt).unwrap_or(u32::MAX)
    };
    let key = &w.seen.key;
    let Some(member) = m.member(index) else { return u32::MAX };
    let port = if member.port == [0; 2] { key.dport } else { member.port };
    w.entry.rewrite = Rewrite { addr: A::narrow(&member.addr), port, client_port };
    if w.entry.rewrite.addr == key.src && port == key.sport && client_port == key.dport {
        return u32::MAX; // the answers would look like the questions
    }
    w.partner = key.partner(&w.entry.rewrite);
    index
}

#[inline(always)]
fn other_port<A: Address>(key: &FlowKey<A>, attempt: u32) -> [u8; 2] {
    let n = hash::pick(key, 0x5bd1 + attempt) as u16 & (u16::MAX - FIRST_PORT);
    (FIRST_PORT + n).to_be_bytes()
}

/// Back to the client if that is the member. Past the stack only where both ends are endpoints of this host, so that the replies go the same way.
#[inline(never)]
fn delivery<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, member: &MemberRow, w: &Work<A>) -> u16 {
    if w.entry.rewrite.addr == w.seen.key.src {
        return flags::HAIRPIN;
    }
    if w.group.flags & group_bits::REDIRECT == 0 || member.ifindex == 0 {
        return 0;
    }
    if m.local(&AddressKey::of(ep.network, &w.seen.key.src)) == Some(ep.ifindex) { flags::REDIRECT } else { 0 }
}

#[inline(never)]
fn account<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, member: u32)
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    m.member_event(member, MemberEvent::NewFlow);
    m.add_active(member, true);
    if w.group.flags & group_bits::AFFINITY != 0 {
        stick(m, w);
    }
    m.member_traffic(member, Direction::Egress, 1, w.seen.bytes);
    if w.table == Table::Main {
        m.member_event(member, MemberEvent::Established);
        return;
    }
    m.opening(w.seen.hash);
    make_room(m, ep, w);
}
