//! Making a flow's two entries.

use super::track::{Course, find, forget, insert_pair, proceed, treat};
use super::{FlowEntry, FlowMaps, NO_MEMBER, Table, Work, flags, tcp as state};
use crate::addr::Address;
use crate::endpoint::{EndpointMaps, EndpointRow};
use crate::judge::{Judge, is_tracked};
use crate::lb::LbMaps;
use crate::parse::{Headers, protocol, tcp};
use crate::pipeline::Maps;
use crate::verdict::{Direction, Reason};

/// Notes the flow of one of the agent's probes to an endpoint. It passes even where there is no room for its flow.
#[inline(never)]
pub fn note_probe<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>)
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let known = is_tracked(&w.headers, ep) && find(m, w) && proceed(m, ep.slot, w) != Course::None;
    if !known && makes_flow(&w.headers) {
        w.judged.rule.id = 0;
        open(m, ep, w, flags::PROBE);
    }
}

/// Does the first packet of this kind make a flow? A reset or an echo's answer of no known flow does not.
#[inline(always)]
pub fn makes_flow<A: Address>(h: &Headers<A>) -> bool {
    match h.protocol {
        _ if h.later => false,
        protocol::TCP => h.tcp & tcp::RST == 0,
        _ => !h.is_icmp() || h.is_echo(false),
    }
}

/// Makes the two entries of a flow that is not rewritten, with these [`flags`] besides its own; says if it could, else [`Work::reason`] says
/// why not.
#[inline(never)]
pub fn open<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, bits: u16) -> bool
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let is_tcp = w.headers.is_tcp();
    w.table = if is_tcp { Table::HalfOpen } else { Table::Main };
    w.entry.rewrite = w.seen.key.unrewrite();
    w.partner = w.seen.key.partner(&w.entry.rewrite);
    match reverse(m, w) {
        Reverse::Free => {}
        Reverse::Dead => drop(clear_dead(m, ep, w)),
        Reverse::Making | Reverse::Taken => {
            w.reason = Reason::FlowCollision;
            return false;
        }
    }
    // The agent's probes are few, and their answers are to pass whatever the endpoint does with its quota.
    if !is_tcp && !m.take_flow(ep.slot, bits & flags::PROBE != 0) {
        w.reason = Reason::FlowQuota;
        return false;
    }
    (w.entry.member, w.entry.serial, w.entry.group) = (NO_MEMBER, 0, 0);
    let opened = w.headers.is_opened();
    let inbound = (w.seen.key.direction == Direction::Ingress as u8) != opened;
    let sides = if inbound { flags::INBOUND } else { 0 } | if opened { flags::REPLIED } else { 0 };
    if !insert(m, w, bits | sides) {
        if !is_tcp {
            m.give_flow(ep.slot);
        }
        return false;
    }
    w.reason = Reason::Allowed;
    if is_tcp {
        make_room(m, ep, w);
    }
    true
}

/// Fills in and inserts the two entries; the first one's rewrite and member are there already. `bits` are its [`flags`] besides those that the
/// packet gives. Says if it could, else [`Work::reason`] says why not.
#[inline(always)]
pub fn insert<A: Address, M: FlowMaps<A>>(m: &M, w: &mut Work<A>, bits: u16) -> bool {
    fill(w, bits);
    if let Err(e) = insert_pair(m, w.table, &w.seen.key, &w.entry, &w.partner, &w.other) {
        w.reason = e.reason();
        return false;
    }
    treat(w);
    true
}

/// Makes both entries.
#[inline(never)]
fn fill<A: Address>(w: &mut Work<A>, bits: u16) {
    let picked_up = w.headers.is_tcp() && w.headers.tcp & tcp::SYN == 0;
    let bits = bits | if picked_up { flags::PICKED_UP } else { 0 };
    let rule = w.judged.rule.id;
    let Work { seen, entry, other, .. } = w;
    (other.member, other.serial, other.group) = (entry.member, entry.serial, entry.group);
    // Field by field: a whole entry made on the stack would take a seventh of it.
    for e in [&mut *entry, &mut *other] {
        e.generation = seen.generation;
        begin(e, seen.now, rule);
    }
    (entry.packets, entry.bytes, entry.flags) = (1, u64::from(seen.bytes), bits);
    let back = if bits & flags::DNAT != 0 { bits ^ flags::NAT } else { bits };
    (other.packets, other.bytes, other.flags) = (0, 0, back);
    other.rewrite = seen.key.unrewrite();
}

/// What every new entry has.
#[inline(always)]
fn begin<A: Address>(e: &mut FlowEntry<A>, now: u32, rule: u32) {
    e.last_seen = now;
    #[cfg(not(feature = "previous-abi"))]
    {
        (e.created, e.rule) = (now, rule);
    }
    #[cfg(feature = "previous-abi")]
    let _ = rule;
    (e.tcp, e.pad, e.entry_pad) = (0, 0, Default::default());
}

/// What is at a flow's reverse tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverse {
    /// Nothing.
    Free,
    /// Entries that a dead flow, or this one's own past, left.
    Dead,
    /// An entry of this flow that another CPU has just made: the other one follows. The next packet finds them.
    Making,
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
            let is_mine = w.other.rewrite.is(&mine);
            if is_mine && w.other.generation == w.seen.generation && w.other.is_new(w.seen.now) {
                return Reverse::Making;
            }
            if !is_mine && !state::is_closed(w.other.tcp) {
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

/// Notes a half-open flow as the endpoint's newest, and removes the oldest if it has too many.
#[inline(always)]
pub fn make_room<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>)
where
    A: Address,
    M: FlowMaps<A> + EndpointMaps + LbMaps,
{
    if m.replace_oldest(ep.slot, &w.seen.key, &mut w.spare) && m.flow(Table::HalfOpen, &w.spare, &mut w.other) {
        m.add_active(w.other.member, false);
        w.partner = w.spare.partner(&w.other.rewrite);
        forget(m, ep.slot, Table::HalfOpen, &w.spare, &w.partner);
    }
}
