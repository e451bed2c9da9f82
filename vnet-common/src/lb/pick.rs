//! The first packet of a flow: picking a member and making the flow's two entries.

use super::{LbMaps, MemberEvent, MemberRow, VipKey, flags as group_bits, state};
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

/// Past the stack only where both ends are endpoints of this host, so that the replies go the same way.
#[inline(never)]
fn delivery<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, member: &MemberRow, w: &Work<A>) -> u16 {
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
    m.member_traffic(member, Direction::Egress, 1, w.seen.bytes);
    if w.table == Table::Main {
        m.member_event(member, MemberEvent::Established);
        return;
    }
    make_room(m, ep, w);
}
