//! Two lists of rules as rows of bits.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use vnet_common::policy::{MAX_PORT_ROWS, MAX_RULES, RuleRow, action, rule_flags};
use vnet_common::verdict::Direction;

use super::peers::AtomId;
use super::rules::{HELD_RANK, Rule};

/// A row of bits: one for each rule of a list, 64 in a word.
pub type Bits = Arc<[u64]>;

/// One direction of a [`Set`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideImage {
    /// The rules.
    pub rules: Vec<RuleRow>,
    /// From this key on up to the next one's, these rules match. The first is 0.
    pub ports: Vec<(u32, Bits)>,
    /// The rules that match every peer.
    pub any_peer: Bits,
    /// The rules that are not staged.
    pub enforced: Bits,
    /// Some rule is staged.
    pub staged: bool,
    /// The rules that an atom's peers match beside those.
    pub atoms: BTreeMap<AtomId, Bits>,
}

impl Hash for SideImage {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let rules = self.rules.iter().map(|r| (r.id, r.group, r.serial, r.next, r.action, r.flags));
        rules.for_each(|rule| rule.hash(state));
        (&self.ports, &self.any_peer, &self.enforced, &self.atoms).hash(state);
    }
}

/// What rules there are about an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Of the sides.
    hash: u64,
    /// See [`Set::decides`].
    decides: bool,
    /// By [`Direction`].
    pub sides: [SideImage; 2],
}

impl Hash for Set {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// A list that is longer than the datapath takes. Nothing is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// Which list.
    pub direction: Direction,
    /// The first rule that is too much: its place.
    pub at: usize,
    /// Whether it is one rule too many, or its ports are.
    pub rules: bool,
}

impl Set {
    /// Of the rules by [`Direction`], in their order.
    pub fn new([egress, ingress]: [&[&Rule]; 2]) -> Result<Self, TooLong> {
        let sides = [SideImage::new(egress, Direction::Egress)?, SideImage::new(ingress, Direction::Ingress)?];
        let mut hasher = DefaultHasher::new();
        sides.iter().for_each(|side| side.hash(&mut hasher));
        let decides = [egress, ingress].into_iter().any(decides);
        Ok(Self { hash: hasher.finish(), decides, sides })
    }

    /// Whether there is anything that it does not just allow, as long as nobody is held elsewhere.
    pub fn decides(&self) -> bool {
        self.decides
    }
}

impl SideImage {
    fn new(rules: &[&Rule], direction: Direction) -> Result<Self, TooLong> {
        if rules.len() > MAX_RULES as usize {
            return Err(TooLong { direction, at: MAX_RULES as usize, rules: true });
        }
        let words = rules.len().div_ceil(64);
        let bits = |is: &dyn Fn(&Rule) -> bool| {
            let mut bits = vec![0; words];
            rules.iter().enumerate().filter(|(_, rule)| is(rule)).for_each(|(at, _)| set(&mut bits, at));
            bits
        };
        let mut atoms: BTreeMap<AtomId, Vec<u64>> = BTreeMap::new();
        for (at, rule) in rules.iter().enumerate() {
            for atom in rule.peers.iter().flatten() {
                set(atoms.entry(*atom).or_insert_with(|| vec![0; words]), at);
            }
        }
        let staged = |rule: &Rule| rule.flags & rule_flags::STAGED != 0;
        Ok(Self {
            rules: rules.iter().enumerate().map(|(at, rule)| row(rules, at, rule)).collect(),
            ports: ports(rules, words).map_err(|at| TooLong { direction, at, rules: false })?,
            any_peer: bits(&|rule| rule.peers.is_none()).into(),
            enforced: bits(&|rule| !staged(rule)).into(),
            staged: rules.iter().any(|rule| staged(rule)),
            atoms: atoms.into_iter().map(|(atom, bits)| (atom, bits.into())).collect(),
        })
    }

    /// Words in its rows of bits.
    pub fn words(&self) -> u32 {
        self.any_peer.len() as u32
    }

    /// The rules that match a peer of these atoms; `None` if they are those that match every peer.
    pub fn peer(&self, atoms: &[AtomId]) -> Option<Vec<u64>> {
        let mut bits: Option<Vec<u64>> = None;
        for more in atoms.iter().filter_map(|atom| self.atoms.get(atom)) {
            let bits = bits.get_or_insert_with(|| self.any_peer.to_vec());
            bits.iter_mut().zip(more.iter()).for_each(|(word, more)| *word |= more);
        }
        bits.filter(|bits| bits[..] != self.any_peer[..])
    }
}

fn decides(rules: &[&Rule]) -> bool {
    let own: Vec<&&Rule> = rules.iter().filter(|rule| rule.rank != HELD_RANK).collect();
    !matches!(own.as_slice(), [only] if only.action == action::ALLOW && only.flags == rule_flags::DEFAULT)
}

fn row(rules: &[&Rule], at: usize, rule: &Rule) -> RuleRow {
    let next = if rule.action == action::PASS {
        let later = rules.iter().skip(at).position(|r| r.rank > rule.rank);
        // A list ends with its default, which passes nothing on.
        later.map_or(rules.len() - 1, |skipped| at + skipped)
    } else {
        0
    };
    RuleRow {
        id: rule.id,
        group: rule.target.0,
        serial: rule.target.1,
        next: next as u16,
        action: rule.action,
        flags: rule.flags,
    }
}

fn set(bits: &mut [u64], at: usize) {
    if let Some(word) = bits.get_mut(at / 64) {
        *word |= 1 << (at % 64);
    }
}

/// Where which rules' ports match. Too many rows: the place of the first rule without which they would fit.
fn ports(rules: &[&Rule], words: usize) -> Result<Vec<(u32, Bits)>, usize> {
    let mut everywhere = vec![0; words];
    // Where rules begin and end to match.
    let mut turns: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (at, rule) in rules.iter().enumerate() {
        if rule.ports.is_empty() {
            set(&mut everywhere, at);
        }
        for (first, last) in &rule.ports {
            turns.entry(*first).or_default().push(at);
            turns.entry(last.saturating_add(1)).or_default().push(at);
        }
        if turns.len() >= MAX_PORT_ROWS as usize && !turns.contains_key(&0) || turns.len() > MAX_PORT_ROWS as usize {
            return Err(at);
        }
    }
    let mut rows: Vec<(u32, Bits)> = Vec::with_capacity(turns.len() + 1);
    let mut now = everywhere;
    if !turns.contains_key(&0) {
        rows.push((0, now.clone().into()));
    }
    for (start, changes) in turns {
        for at in changes {
            if let Some(word) = now.get_mut(at / 64) {
                *word ^= 1 << (at % 64);
            }
        }
        if rows.last().is_none_or(|(_, bits)| bits[..] != now[..]) {
            rows.push((start, now.clone().into()));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(ports: &[(u32, u32)], peers: Option<&[AtomId]>) -> Rule {
        let peers = peers.map(<[AtomId]>::to_vec);
        Rule { id: 1, peers, ports: ports.to_vec(), action: action::ALLOW, flags: 0, target: (0, 0), rank: 0 }
    }

    fn of(rules: &[Rule]) -> Result<Set, TooLong> {
        let all: Vec<&Rule> = rules.iter().collect();
        Set::new([&all, &all])
    }

    #[test]
    fn bits_say_which_rules_match() {
        let set = of(&[rule(&[(0, 5), (9, 9)], Some(&[7])), rule(&[(5, 9)], Some(&[7, 8])), rule(&[], None)]).unwrap();
        let side = &set.sides[0];
        let ports: Vec<(u32, u64)> = side.ports.iter().map(|(start, bits)| (*start, bits[0])).collect();
        assert_eq!(ports, [(0, 0b101), (5, 0b111), (6, 0b110), (9, 0b111), (10, 0b100)]);
        assert_eq!((side.peer(&[7]), side.peer(&[8]), side.peer(&[9])), (Some(vec![0b111]), Some(vec![0b110]), None));
        assert_eq!(side.any_peer[..], [0b100]);
    }

    #[test]
    fn pass_leads_to_the_next_tier() {
        let at = |rank, action| Rule { rank, action, ..rule(&[], None) };
        let rules = [at(0, action::PASS), at(0, action::DENY), at(2, action::PASS), at(4, action::PASS), at(6, action::ALLOW)];
        let next: Vec<u16> = of(&rules).unwrap().sides[1].rules.iter().map(|r| r.next).collect();
        assert_eq!(next, [2, 0, 3, 4, 0]);
    }

    #[test]
    fn what_is_too_much_is_named() {
        let direction = Direction::Egress;
        let many = vec![rule(&[], None); MAX_RULES as usize + 1];
        assert!(of(&many[1..]).is_ok());
        assert_eq!(of(&many), Err(TooLong { direction, at: MAX_RULES as usize, rules: true }));
        // Two rows for each, and one before them.
        let scattered = |n: u32| (1..=n).map(|i| rule(&[(i * 4, i * 4 + 1)], None)).collect::<Vec<_>>();
        let most = (MAX_PORT_ROWS - 1) / 2;
        assert_eq!(of(&scattered(most)).unwrap().sides[0].ports.len(), MAX_PORT_ROWS as usize - 1);
        assert_eq!(of(&scattered(most + 1)), Err(TooLong { direction, at: most as usize, rules: false }));
    }
}
