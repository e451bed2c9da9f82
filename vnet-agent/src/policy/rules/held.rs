//! What quarantine groups mean for the peers of those that they hold on other hosts.
//!
//! A quarantine is enforced where the endpoint is, and at every endpoint that it talks to: whatever that one's own rules are, traffic with
//! who is held elsewhere is dropped, but for what the quarantine group's own rules allow. That goes on to the endpoint's own rules. So each
//! endpoint that is not held itself has, before all policies, the mirror image of every quarantine group: what that lets its endpoints
//! open is let in, what it lets in may be opened.
//!
//! Whether a rule of the group is about an endpoint of this host follows from that endpoint's own atoms, as it would where the group's
//! endpoint is. What depends on the address is decided for IPv4 and IPv6 apart, by all addresses that the endpoint is known to have: only
//! if all of them may, any one may. An endpoint of which no address is known may only what it may whatever its address is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vnet_common::parse::protocol;
use vnet_common::policy::{AddressKey, action, rule_flags};
use vnet_common::verdict::Direction;

use super::super::compile::address_key;
use super::super::peers::{Atom, AtomId};
use super::make::{Maker, Owner, action_number, defaults, merged, port_range, range};
use super::{DEFAULT_RULE, DIRECTIONS, HELD_RANK, REDIRECT_RULE, Rule};
use crate::resource::{self, Protocol, SecurityGroup};

/// The kind of rules that quarantine groups have for peers.
pub const PEER_QUARANTINE: &str = "PeerQuarantine";
/// The rule about those whose quarantine group this host does not have.
pub const UNKNOWN_RULE: &str = "held-elsewhere";
/// What has that rule.
pub const UNKNOWN_GROUP: &str = "peer";
/// The tier of all of these.
const TIER: &str = "peer-quarantine";

/// Where a load balancer that a quarantine sends flows to leads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Led {
    /// The member.
    pub address: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The member's port; 0: any.
    pub port: u16,
}

/// Where the load balancer of a name leads flows to.
pub type Leads<'a> = dyn Fn(&str) -> Vec<Led> + 'a;

/// A rule for peers.
#[derive(Debug)]
pub struct Mirrored {
    whom: Whom,
    /// It lets through.
    passes: bool,
    /// Its places in the table: for peers by IPv4, by IPv6, by both.
    rows: [usize; 3],
}

/// Which endpoints of this host a rule is about.
#[derive(Debug)]
enum Whom {
    /// Those that any of these atoms matches; `None`: all.
    Peers(Option<Vec<AtomId>>),
    /// Those that have one of these addresses.
    At(BTreeSet<AddressKey>),
}

/// An endpoint of this host, as others' rules see it.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// The atoms that match it, whatever its address is.
    pub atoms: &'a [AtomId],
    /// Its addresses, each with all atoms that match there.
    pub addresses: &'a [(AddressKey, &'a [AtomId])],
}

impl Mirrored {
    /// The rule's place in the table, if it is about this endpoint.
    pub fn row(&self, own: Own<'_>) -> Option<usize> {
        match (self.is_about(own, 4), self.is_about(own, 6)) {
            (true, false) => Some(self.rows[0]),
            (false, true) => Some(self.rows[1]),
            (true, true) => Some(self.rows[2]),
            (false, false) => None,
        }
    }

    fn is_about(&self, own: Own<'_>, version: u32) -> bool {
        let addresses = || own.addresses.iter().filter(|(key, _)| key.version == version);
        let peers = match &self.whom {
            Whom::At(there) => return addresses().any(|(key, _)| there.contains(key)),
            Whom::Peers(None) => return true,
            Whom::Peers(Some(peers)) => peers,
        };
        let matches = |atoms: &[AtomId]| atoms.iter().any(|atom| peers.contains(atom));
        let mut each = addresses().map(|(_, atoms)| matches(atoms)).peekable();
        match (each.peek().is_some(), self.passes) {
            (true, true) => each.all(|it| it),
            (true, false) => each.any(|it| it),
            (false, passes) => matches(own.atoms) || !passes,
        }
    }
}

/// Those whom a quarantine group holds elsewhere, at their addresses of one family. `None`: a group that this host does not have.
pub fn held_in(group: Option<&str>, v4: bool) -> Atom {
    Atom::Held(group.map(Into::into), v4)
}

impl Maker<'_> {
    /// A quarantine group's rules for peers, by the direction in which these see a flow. `led`: where it sends flows to.
    pub(super) fn mirrored(&mut self, group: &SecurityGroup, led: &[Led]) -> [Vec<Mirrored>; 2] {
        let (name, spec) = (group.metadata.name.as_str(), &group.spec);
        let origin = self.origin("SecurityGroup", name);
        let owner = Owner { kind: PEER_QUARANTINE, name, origin, tier: TIER, rank: HELD_RANK, flags: rule_flags::QUARANTINE };
        let [to_outside, to_it] = defaults(spec);
        // What it lets its endpoints open is opened to their peers.
        [(Direction::Egress, &spec.ingress, to_it), (Direction::Ingress, &spec.egress, to_outside)].map(
            |(direction, rules, default)| {
                let mut all: Vec<Mirrored> = (0..).zip(rules).map(|(at, rule)| self.mirror(owner, direction, at, rule)).collect();
                if direction == Direction::Ingress {
                    all.extend(self.led(owner, led));
                }
                let line = owner.origin.map(|o| o.line);
                let (whom, what) = (Whom::Peers(None), (Vec::new(), default));
                all.push(self.rows(owner, (direction, DEFAULT_RULE, line), whom, what));
                all
            },
        )
    }

    /// About those who are held in a group that this host does not have: nothing passes.
    pub(super) fn unknown(&mut self) -> [Mirrored; 2] {
        let owner = Owner {
            kind: "built-in",
            name: UNKNOWN_GROUP,
            origin: None,
            tier: TIER,
            rank: HELD_RANK,
            flags: rule_flags::QUARANTINE,
        };
        DIRECTIONS.map(|d| self.rows(owner, (d, UNKNOWN_RULE, None), Whom::Peers(None), (Vec::new(), action::DENY)))
    }

    fn mirror(&mut self, owner: Owner<'_>, direction: Direction, at: usize, rule: &resource::Rule) -> Mirrored {
        let lines = owner.origin.map(|o| if direction == Direction::Egress { &o.ingress } else { &o.egress });
        let line = lines.and_then(|lines| lines.get(at)).copied();
        let ports = merged(rule.ports.iter().filter_map(range).collect());
        let whom = Whom::Peers(self.peers(rule));
        self.rows(owner, (direction, &rule.name, line), whom, (ports, action_number(rule.action)))
    }

    /// Flows that are sent to a member are let in there.
    fn led(&mut self, owner: Owner<'_>, led: &[Led]) -> Vec<Mirrored> {
        let mut by_port: BTreeMap<(u8, u16), BTreeSet<AddressKey>> = BTreeMap::new();
        for Led { address, protocol, port } in led {
            let number = if *protocol == Protocol::Tcp { protocol::TCP } else { protocol::UDP };
            by_port.entry((number, *port)).or_default().insert(address_key(0, *address));
        }
        let line = owner.origin.map(|o| o.line);
        let each = by_port.into_iter().map(|((number, port), at)| {
            let port = Some(port).filter(|port| *port != 0);
            let ports = vec![port_range(number, port, port)];
            self.rows(owner, (Direction::Ingress, REDIRECT_RULE, line), Whom::At(at), (ports, action::ALLOW))
        });
        each.collect()
    }

    /// The rule's rows: that which the family of the peer's address asks for is taken.
    fn rows(
        &mut self,
        owner: Owner<'_>,
        (direction, name, line): (Direction, &str, Option<u32>),
        whom: Whom,
        (ports, action): (Vec<(u32, u32)>, u8),
    ) -> Mirrored {
        let group = (owner.kind == PEER_QUARANTINE).then_some(owner.name);
        let action = if action == action::ALLOW { action::PASS } else { action };
        let rows = [&[true][..], &[false], &[true, false]].map(|families| {
            let peers = families.iter().filter_map(|v4| self.atoms.id(&held_in(group, *v4))).collect();
            let (ports, flags, rank) = (ports.clone(), owner.flags, owner.rank);
            let rule = Rule { id: 0, peers: Some(peers), ports, action, flags, target: (0, 0), rank };
            self.add(owner, direction, name, line, rule)
        });
        Mirrored { whom, passes: action == action::PASS, rows }
    }
}
