//! The rule that decides about a flow.

use super::{AddressKey, MAX_TIERS, MAX_WORDS, PORT_STEPS, PeerKey, PolicyMaps, RuleRow, Side, action, rule_flags, set_flags};
use crate::addr::Address;
use crate::verdict::Direction;

/// A flow, as rules see it: from the side of the endpoint whose set is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Question<A> {
    /// The peer's address.
    pub peer: A,
    /// The network.
    pub network: u32,
    /// Row of the set.
    pub set: u32,
    /// Who opens the flow: a [`Direction`].
    pub direction: u32,
    /// Protocol and port of the side that it is opened to: see [`super::port_key`].
    pub port: u32,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Judged {
    /// The deciding rule.
    pub rule: RuleRow,
    /// The peer's identity.
    pub identity: u32,
    /// The number of the staged rule that would decide otherwise, or 0.
    pub staged: u32,
}

/// Finds the rule that decides; says if there is one. There always is, unless rows contradict each other.
#[inline(never)]
pub fn evaluate<A: Address, M: PolicyMaps>(m: &M, q: &Question<A>, judged: &mut Judged) -> bool {
    let key = AddressKey { network: q.network, version: u32::from(A::VERSION), addr: q.peer.widen() };
    judged.identity = m.identity(&key);
    judged.staged = 0;
    let Some(set) = m.set(q.set) else { return false };
    let egress = q.direction == Direction::Egress as u32;
    let side = if egress { &set.sides[0] } else { &set.sides[1] };
    let staged = if egress { set_flags::STAGED_EGRESS } else { set_flags::STAGED_INGRESS };
    let by_peer = m.peer(&PeerKey { side: q.set << 1 | q.direction, identity: judged.identity }).unwrap_or(side.any_peer);
    let Some(by_port) = ports(m, side, q.port) else { return false };
    let search = Search { rules: side.rules, words: side.words, by_peer, by_port, enforced: side.enforced };
    let row = m.first(search);
    let Some(rule) = m.rule(row) else { return false };
    judged.rule = *rule;
    if set.flags & staged != 0 {
        let other = m.first(Search { enforced: ALL, ..search });
        if other != row
            && let Some(other) = m.rule(other)
        {
            judged.staged = other.id;
        }
    }
    true
}

/// The first word of the bits of a protocol and port: a search for the last row that starts at or before it.
#[inline(always)]
fn ports<M: PolicyMaps>(m: &M, side: &Side, key: u32) -> Option<u32> {
    let (mut low, mut count) = (side.ports, side.port_rows);
    for _ in 0..PORT_STEPS {
        if count <= 1 {
            break;
        }
        let half = count >> 1;
        if m.port(low + half)?.start <= key {
            low += half;
            count -= half;
        } else {
            count = half;
        }
    }
    m.port(low).map(|row| row.bits)
}

/// All rules, for [`Search::enforced`].
const ALL: u32 = u32::MAX;
/// No rule.
pub const NONE: u32 = u32::MAX;

/// What [`PolicyMaps::first`] is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// [`Side::rules`].
    pub rules: u32,
    /// [`Side::words`].
    pub words: u32,
    /// First word of the peer's bits.
    pub by_peer: u32,
    /// First word of the port's bits.
    pub by_port: u32,
    /// [`Side::enforced`], or `u32::MAX`: staged rules count too.
    pub enforced: u32,
}

/// The first rule whose bit both rows have, by its row in `RULES`, or [`NONE`]. A `pass` leads on to a later tier.
#[inline(always)]
pub fn first<M: PolicyMaps>(m: &M, s: Search) -> u32 {
    let (mut at, mut left) = (0, u64::from(MAX_WORDS + MAX_TIERS));
    while left != 0 {
        // Else the compiler makes two loops of one, and the verifier sees no end. 64 bits: it knows only whole slots of the stack.
        left = core::hint::black_box(left - 1);
        let word = at >> 6;
        if word >= s.words {
            return NONE;
        }
        let (Some(peer), Some(port)) = (m.bits(s.by_peer.wrapping_add(word)), m.bits(s.by_port.wrapping_add(word))) else {
            return NONE;
        };
        let mut bits = peer & port & u64::MAX << (at & 63);
        if s.enforced != ALL {
            bits &= m.bits(s.enforced.wrapping_add(word)).unwrap_or(0);
        }
        if bits == 0 {
            at = (word + 1) << 6;
            continue;
        }
        let row = s.rules.wrapping_add(word << 6 | bits.trailing_zeros());
        let Some(rule) = m.rule(row) else { return NONE };
        if rule.action != action::PASS || (s.enforced == ALL && rule.flags & rule_flags::STAGED != 0) {
            return row;
        }
        at = u32::from(rule.next);
    }
    NONE
}
