//! The first packet of a flow: picking a member and making the flow's two entries.

use super::{LbMaps, LocalKey, MemberEvent, MemberRow, VipKey, flags as group_bits, state};
use crate::addr::Address;
use crate::endpoint::{EndpointMaps, EndpointRow, flags as endpoint_flags};
use crate::flow::track::{forget, insert_pair, treat};
use crate::flow::{FlowKey, FlowMaps, InsertError, Rewrite, Table, Work, flags, tcp as flow_state};
use crate::hash;
use crate::judge::{self, Admission, Decision, Judge};
use crate::parse::{protocol, tcp};
use crate::pipeline::Maps;
use crate::verdict::{Direction, Reason};

/// Other members that are tried when a reverse tuple is taken, before the client's port is translated.
const PICKS: u32 = 3;
/// Source ports that are tried after that.
const PORTS: u32 = 8;
/// Translated source ports are from here up (the dynamic ports of RFC 6335).
const FIRST_PORT: u16 = 49_152;

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
}

/// The key of the row for a VIP's port.
#[inline(always)]
pub fn vip_key<A: Address>(network: u32, addr: &A, port: [u8; 2], protocol: u8) -> VipKey {
    VipKey { network, addr: addr.widen(), port, protocol, version: A::VERSION }
}

/// Makes the flow of a packet that is addressed to a group's VIP, protocol and port.
#[inline(always)]
pub fn new_flow<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Outcome
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let key = &w.seen.key;
    let Some(vip) = m.vip(&vip_key(key.network, &key.dst, key.dport, key.protocol)) else { return Outcome::NoGroup };
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
    (w.group.table, w.group.flags) = (group.table, group.flags); // read once: the agent may switch the table at any time
    if w.group.table as u32 == 0 {
        if ep.flags & endpoint_flags::POLICED != 0 && bits & u32::from(flags::STEERED) == 0 {
            match judge::admit_unbalanced(m, ep, w) {
                Admission::Allowed => {}
                Admission::Denied => return Outcome::Drop,
                Admission::Rejected => return Outcome::Reject,
                Admission::Steered => return Outcome::Steer,
            }
        }
        w.reason = Reason::NoMember;
        return if w.group.flags & group_bits::EMPTY_DROP != 0 { Outcome::Drop } else { Outcome::Reject };
    }
    if !is_tcp && !m.take_flow(ep.slot) {
        w.reason = Reason::FlowQuota;
        return Outcome::Drop;
    }
    let outcome = insert(m, ep, w, bits as u16);
    if outcome != Outcome::Picked && !is_tcp {
        m.give_flow(ep.slot);
    }
    outcome
}

/// The member that the group's table gives for a tuple; `salt` gives further ones.
#[inline(always)]
fn pick<A: Address, M: LbMaps>(m: &M, key: &FlowKey<A>, group: u32, table: u64, salt: u32) -> Option<u32> {
    let (block, slots) = ((table >> 32) as u32, table as u32);
    let slot = (u64::from(hash::pick(key, salt)) * u64::from(slots)) >> 32;
    let index = m.pick(block, slot as u32)?;
    let row = m.member(index)?;
    (row.state != state::NONE && row.group == group).then_some(index)
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
        let index = candidate(m, w, attempt);
        if index != u32::MAX {
            match reverse(m, w) {
                Reverse::Free => break index,
                Reverse::Dead => {
                    clear_dead(m, ep, w);
                    break index;
                }
                Reverse::Taken => w.reason = Reason::FlowCollision,
            }
        }
        attempt += 1;
    };
    if ep.flags & endpoint_flags::POLICED == 0 {
        w.judged.rule.id = 0;
    } else if bits & flags::STEERED == 0 {
        (w.group.member, w.group.port) = (w.entry.rewrite.addr, w.entry.rewrite.port);
        match judge::admit_balanced(m, ep, w) {
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
    fill(w, index, member, bits | delivery(m, ep, member, w));
    if let Err(e) = insert_pair(m, w.table, &w.seen.key, &w.entry, &w.partner, &w.other) {
        w.reason = match e {
            InsertError::Exists => Reason::FlowCollision, // another CPU was faster; the next packet finds that flow
            InsertError::Full => Reason::FlowTableFull,
        };
        return Outcome::Drop;
    }
    treat(w);
    w.reason = if bits & flags::STEERED != 0 { Reason::Steered } else { Reason::NewFlow };
    account(m, ep, w, index);
    Outcome::Picked
}

/// Notes in `w` how the flow would be rewritten in this attempt; gives the member, or `u32::MAX` for none.
#[inline(never)]
fn candidate<A: Address, M: LbMaps>(m: &M, w: &mut Work<A>, attempt: u32) -> u32 {
    let (key, group, table) = (&w.seen.key, w.group.group, w.group.table);
    let (salt, client_port) = if attempt < PICKS { (attempt, key.sport) } else { (0, other_port(key, attempt)) };
    let Some(index) = pick(m, key, group, table, salt) else { return u32::MAX };
    let Some(member) = m.member(index) else { return u32::MAX };
    w.entry.rewrite = Rewrite { addr: A::narrow(&member.addr), port: member.port, client_port };
    w.partner = key.partner(&w.entry.rewrite);
    index
}

#[inline(always)]
fn other_port<A: Address>(key: &FlowKey<A>, attempt: u32) -> [u8; 2] {
    let n = hash::pick(key, 0x5bd1 + attempt) as u16 & (u16::MAX - FIRST_PORT);
    (FIRST_PORT + n).to_be_bytes()
}

/// What is at a flow's reverse tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverse {
    /// Nothing.
    Free,
    /// Entries that a dead flow, or this one's own past, left.
    Dead,
    /// Another live flow.
    Taken,
}

/// Looks at the reverse tuple of the flow that [`Work::partner`] was computed for.
#[inline(never)]
pub fn reverse<A: Address, M: FlowMaps<A>>(m: &M, w: &mut Work<A>) -> Reverse {
    let mine = w.seen.key.unrewrite();
    let mut found = Reverse::Free;
    for table in [Table::Main, Table::HalfOpen] {
        let possible = table == Table::Main || w.partner.protocol == protocol::TCP;
        if possible && m.flow(table, &w.partner, &mut w.other) {
            if !w.other.rewrite.is(&mine) && !flow_state::is_closed(w.other.tcp) {
                return Reverse::Taken;
            }
            found = Reverse::Dead;
        }
    }
    found
}

/// Removes what is at the reverse tuple.
#[inline(never)]
pub fn clear_dead<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> bool
where
    A: Address,
    M: FlowMaps<A> + EndpointMaps,
{
    let mut any = false;
    for table in [Table::Main, Table::HalfOpen] {
        if m.flow(table, &w.partner, &mut w.other) {
            w.spare = w.partner.partner(&w.other.rewrite);
            any |= forget(m, ep.slot, table, &w.partner, &w.spare);
        }
    }
    any
}

/// Makes both entries; the forward one's rewrite is there already.
#[inline(never)]
fn fill<A: Address>(w: &mut Work<A>, index: u32, member: &MemberRow, deliver: u16) {
    let rule = w.judged.rule.id;
    let Work { seen, entry, other, .. } = w;
    let picked_up = seen.key.protocol == protocol::TCP && seen.tcp & u32::from(tcp::SYN) == 0;
    let deliver = deliver | if picked_up { flags::PICKED_UP } else { 0 };
    // Field by field: a whole entry made on the stack would take a seventh of it.
    for e in [&mut *entry, &mut *other] {
        (e.generation, e.member, e.serial, e.group) = (seen.generation, index, member.serial, member.group);
        judge::begin(e, seen.now, rule);
    }
    (entry.packets, entry.bytes, entry.flags) = (1, u64::from(seen.bytes), flags::DNAT | deliver);
    (other.packets, other.bytes, other.flags) = (0, 0, flags::UNNAT | deliver);
    other.rewrite = seen.key.unrewrite();
}

/// Past the stack only where both ends are endpoints of this host, so that the replies go the same way.
#[inline(never)]
fn delivery<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, member: &MemberRow, w: &Work<A>) -> u16 {
    if w.group.flags & group_bits::REDIRECT == 0 || member.ifindex == 0 {
        return 0;
    }
    let client = LocalKey { network: ep.network, version: u32::from(A::VERSION), addr: w.seen.key.src.widen() };
    if m.local(&client) == Some(ep.ifindex) { flags::REDIRECT } else { 0 }
}

#[inline(never)]
fn account<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, member: u32)
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    m.member_event(member, MemberEvent::NewFlow);
    m.member_traffic(member, Direction::Egress, 1, w.seen.bytes);
    if w.table == Table::Main {
        m.member_event(member, MemberEvent::Established);
        return;
    }
    make_room(m, ep, w);
}

/// Notes a half-open flow as the endpoint's newest, and removes the oldest if it has too many.
#[inline(always)]
pub fn make_room<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>)
where
    A: Address,
    M: FlowMaps<A> + EndpointMaps,
{
    if m.replace_oldest(ep.slot, &w.seen.key, &mut w.spare) && m.flow(Table::HalfOpen, &w.spare, &mut w.other) {
        w.partner = w.spare.partner(&w.other.rewrite);
        forget(m, ep.slot, Table::HalfOpen, &w.spare, &w.partner);
    }
}
