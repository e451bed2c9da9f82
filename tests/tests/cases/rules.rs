//! Sets of rules for rows, made into bits by the plainest means.

use std::net::IpAddr;

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::policy::{ADDRESS_BITS, AddressKey, PeerKey, PortRow, RuleRow, SetRow, Side, action, rule_flags, set_flags};

use super::world::{World, wide};

/// The set of a policed endpoint.
pub const SET: u32 = 3;

/// One rule.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub row: RuleRow,
    /// Identities; none: everyone.
    pub peers: Vec<u32>,
    /// Protocol, and ports from … to; none: all.
    pub ports: Vec<(u8, u16, u16)>,
}

pub fn rule(id: u32, action: u8) -> Rule {
    Rule { row: RuleRow { id, action, ..RuleRow::default() }, ..Rule::default() }
}
pub fn allow(id: u32) -> Rule {
    rule(id, action::ALLOW)
}
pub fn deny(id: u32) -> Rule {
    rule(id, action::DENY)
}
pub fn reject(id: u32) -> Rule {
    rule(id, action::REJECT)
}
/// The group's default: the last one.
pub fn default(id: u32, action: u8) -> Rule {
    rule(id, action).flags(rule_flags::DEFAULT)
}

impl Rule {
    pub fn peer(mut self, identity: u32) -> Self {
        self.peers.push(identity);
        self
    }
    pub fn port(self, protocol: u8, port: u16) -> Self {
        self.ports(protocol, port, port)
    }
    pub fn ports(mut self, protocol: u8, from: u16, to: u16) -> Self {
        self.ports.push((protocol, from, to));
        self
    }
    pub fn flags(mut self, flags: u8) -> Self {
        self.row.flags |= flags;
        self
    }
    /// Passes on to the rule at this place.
    pub fn next(mut self, place: u16) -> Self {
        self.row.next = place;
        self
    }
    fn matches(&self, key: u32) -> bool {
        let within = |&(p, from, to): &(u8, u16, u16)| (port_key(p, from)..=port_key(p, to)).contains(&key);
        self.ports.is_empty() || self.ports.iter().any(within)
    }
}

/// What rules say of a flow, by the plainest means: the rule that decides, and, if some are staged, the one that would otherwise (0: none).
pub fn decide(rules: &[Rule], identity: u32, key: u32) -> (RuleRow, u32) {
    let first = |staged_too: bool| {
        let mut at = 0;
        loop {
            let found = rules.iter().enumerate().skip(at).find(|(_, r)| {
                let staged = r.row.flags & rule_flags::STAGED != 0;
                (staged_too || !staged) && (r.peers.is_empty() || r.peers.contains(&identity)) && r.matches(key)
            });
            let (place, rule) = found.expect("the last rule matches everything");
            let staged = rule.row.flags & rule_flags::STAGED != 0;
            if rule.row.action != action::PASS || staged {
                return (place, rule.row);
            }
            at = usize::from(rule.row.next);
        }
    };
    let (decides, would) = (first(false), first(true));
    (decides.1, if would.0 == decides.0 { 0 } else { would.1.id })
}

/// Protocol and port, as `PORTS` has them.
pub fn port_key(protocol: u8, port: u16) -> u32 {
    u32::from(protocol) << 16 | u32::from(port)
}

impl World {
    /// Bits of the rules for which this holds; gives the first word.
    fn bits(&mut self, rules: &[Rule], holds: impl Fn(&Rule) -> bool) -> u32 {
        let first = self.maps.policy.bits.len() as u32;
        for chunk in rules.chunks(64) {
            let word = chunk.iter().enumerate().filter(|(_, r)| holds(r)).fold(0u64, |word, (i, _)| word | 1 << i);
            self.maps.policy.bits.push(word);
        }
        first
    }

    fn side(&mut self, side: u32, rules: &[Rule]) -> Side {
        let first = self.maps.policy.rules.len() as u32;
        self.maps.policy.rules.extend(rules.iter().map(|r| r.row));
        let any_peer = self.bits(rules, |r| r.peers.is_empty());
        let enforced = self.bits(rules, |r| r.row.flags & rule_flags::STAGED == 0);
        let mut identities: Vec<u32> = rules.iter().flat_map(|r| r.peers.clone()).collect();
        identities.sort_unstable();
        identities.dedup();
        for identity in identities {
            let row = self.bits(rules, |r| r.peers.is_empty() || r.peers.contains(&identity));
            self.maps.policy.peers.insert(PeerKey { side, identity }, row);
        }
        let mut starts = vec![0];
        starts.extend(rules.iter().flat_map(|r| &r.ports).flat_map(|&(p, from, to)| [port_key(p, from), port_key(p, to) + 1]));
        starts.sort_unstable();
        starts.dedup();
        let ports = self.maps.policy.ports.len() as u32;
        for start in &starts {
            let bits = self.bits(rules, |r| r.matches(*start));
            self.maps.policy.ports.push(PortRow { start: *start, bits });
        }
        let words = rules.len().div_ceil(64) as u32;
        Side { rules: first, words, ports, port_rows: starts.len() as u32, any_peer, enforced }
    }

    /// Writes a set.
    pub fn set(&mut self, row: u32, egress: &[Rule], ingress: &[Rule]) {
        self.maps.policy.peers.retain(|key, _| key.side >> 1 != row);
        let sides = [self.side(row << 1, egress), self.side(row << 1 | 1, ingress)];
        let staged = |rules: &[Rule]| rules.iter().any(|r| r.row.flags & rule_flags::STAGED != 0);
        let flags = if staged(egress) { set_flags::STAGED_EGRESS } else { 0 }
            | if staged(ingress) { set_flags::STAGED_INGRESS } else { 0 };
        self.maps.policy.sets.insert(row, SetRow { sides, flags, serial: row, pad: [0; 2] });
    }

    /// Makes the endpoint behind `ifindex` a policed one, with this set.
    pub fn police(&mut self, ifindex: u32, set: u32) {
        let row = self.at(ifindex);
        row.flags |= endpoint_flags::POLICED | endpoint_flags::NEIGHBORS | endpoint_flags::DHCP;
        row.set = set;
    }

    pub fn address_key(addr: IpAddr) -> AddressKey {
        AddressKey { network: 0, version: if addr.is_ipv4() { 4 } else { 6 }, addr: wide(addr) }
    }
    /// An address's identity.
    pub fn identity(&mut self, addr: IpAddr, identity: u32) {
        self.maps.policy.ipcache.insert(Self::address_key(addr), identity);
    }
    /// A network's identity.
    pub fn network(&mut self, addr: IpAddr, bits: u32, identity: u32) {
        let key = vnet_common::host::masked(&Self::address_key(addr), ADDRESS_BITS + bits);
        self.maps.policy.cidrs.insert((ADDRESS_BITS + bits, key), identity);
    }
}
