//! The rule that decides about a flow.

use super::{AddressKey, MAX_TIERS, MAX_WORDS, PORT_STEPS, PeerKey, PolicyMaps, RuleRow, Side, action, rule_flags, set_flags};
use crate::verdict::Direction;

/// A flow, as rules see it: from the side of the endpoint whose set is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Question {
    /// The peer's address.
    pub peer: AddressKey,
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
    /// The number of the staged rule that would decide in its place, or 0.
    pub staged: u32,
}

/// Finds the rule that decides; says if there is one. There always is, unless rows contradict each other.
#[inline(always)]
pub fn evaluate<M: PolicyMaps>(m: &M, q: &Question, judged: &mut Judged) -> bool {
    judged.identity = m.identity(&q.peer);
    judged.staged = 0;
    let Some(set) = m.set(q.set) else { return false };
    let egress = q.direction == Direction::Egress as u32;
    let side = if egress { &set.sides[0] } else { &set.sides[1] };
    let staged = if egress { set_flags::STAGED_EGRESS } else { set_flags::STAGED_INGRESS };
    let by_peer = m.peer(&PeerKey { side: q.set << 1 | q.direction, identity: judged.identity }).unwrap_or(side.any_peer);
    let by_port = m.ports(side.ports, side.port_rows, q.port);
    if by_port == NONE {
        return false;
    }
    // A third row only where it has something to say.
    let enforced = if set.flags & staged != 0 { side.enforced } else { ALL };
    let mut search = Search { by_peer, by_port, enforced, words: side.words };
    let row = first(m, side, &search);
    let Some(rule) = m.rule(row) else { return false };
    judged.rule = *rule;
    if set.flags & staged != 0 {
        search.enforced = ALL;
        let other = first(m, side, &search);
        if other != row
            && let Some(other) = m.rule(other)
        {
            judged.staged = other.id;
        }
    }
    true
}

/// The first word of the bits of a protocol and port, or [`NONE`]: a search in `count` rows from `low` on, for the last that starts at or
/// before the key.
#[inline(always)]
pub fn ports<M: PolicyMaps>(m: &M, low: u32, count: u32, key: u32) -> u32 {
    let (mut low, mut count, mut left) = (low, count, u64::from(PORT_STEPS));
    while left != 0 && count > 1 {
        left = core::hint::black_box(left - 1); // as in `first`
        let half = count >> 1;
        let Some(row) = m.port(low.wrapping_add(half)) else { return NONE };
        if row.start <= key {
            low = low.wrapping_add(half);
            count -= half;
        } else {
            count = half;
        }
    }
    m.port(low).map_or(NONE, |row| row.bits)
}

/// All rules, for [`Search::enforced`].
const ALL: u32 = u32::MAX;
/// No rule.
pub const NONE: u32 = u32::MAX;

/// Rows of bits: what [`PolicyMaps::next`] searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// First word of the peer's bits.
    pub by_peer: u32,
    /// First word of the port's bits.
    pub by_port: u32,
    /// [`Side::enforced`], or `u32::MAX`: staged rules count too.
    pub enforced: u32,
    /// [`Side::words`].
    pub words: u32,
}

/// The first rule whose bit all rows have, by its row in `RULES`, or [`NONE`]. A `pass` leads on to a later tier.
#[inline(always)]
fn first<M: PolicyMaps>(m: &M, side: &Side, s: &Search) -> u32 {
    let (mut at, mut left) = (0, u64::from(MAX_TIERS));
    while left != 0 {
        // Else the compiler makes two loops of one, and the verifier sees no end. 64 bits: it knows only whole slots of the stack.
        left = core::hint::black_box(left - 1);
        let place = m.next(*s, at);
        let row = side.rules.wrapping_add(place);
        let Some(rule) = m.rule(row) else { return NONE };
        if place == NONE || rule.action != action::PASS || (s.enforced == ALL && rule.flags & rule_flags::STAGED != 0) {
            return if place == NONE { NONE } else { row };
        }
        at = u32::from(rule.next);
    }
    NONE
}

/// The first place from `at` on whose bit all rows have, or [`NONE`].
#[inline(always)]
pub fn next<M: PolicyMaps>(m: &M, s: Search, at: u32) -> u32 {
    let (mut word, mut mask, mut left) = (at >> 6, u64::MAX << (at & 63), u64::from(MAX_WORDS));
    while left != 0 && word < s.words {
        left = core::hint::black_box(left - 1); // as above
        let (Some(peer), Some(port)) = (m.bits(s.by_peer.wrapping_add(word)), m.bits(s.by_port.wrapping_add(word))) else {
            return NONE;
        };
        let mut bits = peer & port & mask;
        if s.enforced != ALL {
            bits &= m.bits(s.enforced.wrapping_add(word)).unwrap_or(0);
        }
        if bits != 0 {
            return word << 6 | bits.trailing_zeros();
        }
        (word, mask) = (word + 1, u64::MAX);
    }
    NONE
}
