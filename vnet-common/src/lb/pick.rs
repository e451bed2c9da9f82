//! The first packet of a flow: picking a member and making the flow's two entries.

use super::{GroupRow, LbMaps, LocalKey, MemberEvent, MemberRow, VipKey, VipRow, flags as group_flags, state};
use crate::addr::Address;
use crate::endpoint::{EndpointMaps, EndpointRow};
use crate::flow::track::{forget, insert_pair, treat};
use crate::flow::{FlowEntry, FlowKey, FlowMaps, InsertError, Rewrite, Table, Work, flags, tcp as flow_state};
use crate::hash;
use crate::parse::{protocol, tcp};
use crate::verdict::{Direction, Reason};

/// Other members that are tried when a reverse tuple is taken, before the client's port is translated.
const PICKS: u32 = 3;
/// Source ports that are tried after that.
const PORTS: u32 = 8;
/// Translated source ports are from here up (the dynamic ports of RFC 6335).
const FIRST_PORT: u16 = 49_152;

/// What became of a packet that starts a flow.
pub enum Outcome {
    /// Its flow is made: apply [`Work::treatment`].
    Picked,
    /// Refuse it as a host would refuse a closed port.
    Reject(Reason),
    /// Drop it.
    Drop(Reason),
}

/// The key of the row for a VIP's port.
#[inline(always)]
pub fn vip_key<A: Address>(network: u32, addr: &A, port: [u8; 2], protocol: u8) -> VipKey {
    VipKey { network, addr: addr.widen(), port, protocol, version: A::VERSION }
}

/// Makes the flow of a packet that is addressed to the port `vip`.
#[inline(always)]
pub fn new_flow<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, vip: &VipRow) -> Outcome
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    let Some(group) = m.group(vip.group).filter(|g| g.serial == vip.serial) else {
        return Outcome::Drop(Reason::BadRow);
    };
    let is_tcp = w.seen.key.protocol == protocol::TCP;
    if is_tcp && w.seen.tcp & u32::from(tcp::RST) != 0 {
        return Outcome::Drop(Reason::RejectSilent); // of no connection: a host ignores it
    }
    if group.table as u32 == 0 {
        let silent = group.flags & group_flags::EMPTY_DROP != 0;
        return if silent { Outcome::Drop(Reason::NoMember) } else { Outcome::Reject(Reason::NoMember) };
    }
    if !is_tcp && !m.take_flow(ep.slot) {
        return Outcome::Drop(Reason::FlowQuota);
    }
    match insert(m, ep, w, vip.group, &group) {
        Ok(()) => Outcome::Picked,
        Err(r) => {
            if !is_tcp {
                m.give_flow(ep.slot);
            }
            Outcome::Drop(r)
        }
    }
}

/// The member that the group's table gives for a tuple; `salt` gives further ones.
#[inline(always)]
fn pick<'m, A: Address, M: LbMaps>(m: &'m M, key: &FlowKey<A>, group_index: u32, group: &GroupRow, salt: u32) -> Option<(u32, &'m MemberRow)> {
    let (block, slots) = ((group.table >> 32) as u32, group.table as u32);
    let slot = (u64::from(hash::pick(key, salt)) * u64::from(slots)) >> 32;
    let index = m.pick(block, slot as u32)?;
    let row = m.member(index)?;
    (row.state != state::NONE && row.group == group_index).then_some((index, row))
}

#[inline(always)]
fn insert<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, group_index: u32, group: &GroupRow) -> Result<(), Reason>
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    let table = if w.seen.key.protocol == protocol::TCP { Table::HalfOpen } else { Table::Main };
    let mut why = Reason::BadRow;
    for attempt in 0..PICKS + PORTS {
        let key = &w.seen.key;
        let salt = if attempt < PICKS { attempt } else { 0 };
        let Some((index, member)) = pick(m, key, group_index, group, salt) else { continue };
        let client_port = if attempt < PICKS { key.sport } else { other_port(key, attempt) };
        let rewrite = Rewrite { addr: A::narrow(&member.addr), port: member.port, client_port };
        w.partner = key.partner(&rewrite);
        if is_taken(m, ep, w, Table::Main) || (table == Table::HalfOpen && is_taken(m, ep, w, Table::HalfOpen)) {
            why = Reason::FlowCollision;
            continue;
        }
        fill(w, &rewrite, index, member, delivery(m, ep, &w.seen.key, group, member));
        match insert_pair(m, table, &w.seen.key, &w.entry, &w.partner, &w.other) {
            Ok(()) => {}
            Err(InsertError::Exists) => {
                why = Reason::FlowCollision;
                continue;
            }
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
        }
        treat(w);
        account(m, ep, w, table, index);
        return Ok(());
    }
    Err(why)
}

#[inline(always)]
fn other_port<A: Address>(key: &FlowKey<A>, attempt: u32) -> [u8; 2] {
    let n = hash::pick(key, 0x5bd1 + attempt) as u16 & (u16::MAX - FIRST_PORT);
    (FIRST_PORT + n).to_be_bytes()
}

/// Is the reverse tuple another live flow's? What a dead flow, or this one's own past, left there is cleared away.
#[inline(always)]
fn is_taken<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, table: Table) -> bool
where
    A: Address,
    M: FlowMaps<A> + EndpointMaps,
{
    if !m.flow(table, &w.partner, &mut w.other) {
        return false;
    }
    if !w.other.rewrite.is(&w.seen.key.unrewrite()) && !flow_state::is_closed(w.other.tcp) {
        return true;
    }
    w.entry.rewrite = w.other.rewrite;
    let forward = w.partner.partner(&w.entry.rewrite);
    forget(m, ep.slot, table, &w.partner, &forward);
    false
}

/// Makes both entries.
#[inline(always)]
fn fill<A: Address>(w: &mut Work<A>, rewrite: &Rewrite<A>, index: u32, member: &MemberRow, deliver: u16) {
    let seen = &w.seen;
    let picked_up = seen.key.protocol == protocol::TCP && seen.tcp & u32::from(tcp::SYN) == 0;
    let deliver = deliver | if picked_up { flags::PICKED_UP } else { 0 };
    for (entry, rewrite, flags, packets, bytes) in [
        (&mut w.entry, rewrite, flags::DNAT, 1, u64::from(seen.bytes)),
        (&mut w.other, &seen.key.unrewrite(), flags::UNNAT, 0, 0),
    ] {
        *entry = FlowEntry {
            packets,
            bytes,
            rewrite: *rewrite,
            generation: seen.generation,
            member: index,
            serial: member.serial,
            group: member.group,
            last_seen: seen.now,
            #[cfg(not(feature = "previous-abi"))]
            created: seen.now,
            flags: flags | deliver,
            ..FlowEntry::default()
        };
    }
}

/// Past the stack only where both ends are endpoints of this host, so that the replies go the same way.
#[inline(always)]
fn delivery<A: Address, M: LbMaps>(m: &M, ep: &EndpointRow, key: &FlowKey<A>, group: &GroupRow, member: &MemberRow) -> u16 {
    if group.flags & group_flags::REDIRECT == 0 || member.ifindex == 0 {
        return 0;
    }
    let client = LocalKey { network: ep.network, version: u32::from(A::VERSION), addr: key.src.widen() };
    if m.local(&client) == Some(ep.ifindex) { flags::REDIRECT } else { 0 }
}

#[inline(always)]
fn account<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, table: Table, member: u32)
where
    A: Address,
    M: FlowMaps<A> + LbMaps + EndpointMaps,
{
    m.member_event(member, MemberEvent::NewFlow);
    m.member_traffic(member, Direction::Egress, 1, w.seen.bytes);
    if table == Table::Main {
        m.member_event(member, MemberEvent::Established);
        return;
    }
    let Some(oldest) = m.replace_oldest(ep.slot, &w.seen.key) else { return };
    if m.flow(Table::HalfOpen, &oldest, &mut w.other) {
        w.partner = oldest.partner(&w.other.rewrite);
        forget(m, ep.slot, Table::HalfOpen, &oldest, &w.partner);
    }
}
