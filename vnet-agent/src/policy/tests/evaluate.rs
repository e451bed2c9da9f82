//! The datapath's way to a decision.

use vnet_common::policy::{AddressKey, PeerKey, PolicyMaps, RuleRow, Side, action, rule_flags};
use vnet_common::verdict::Direction;

use super::super::live::Tables;

/// The deciding rule, and the number of the staged one that would decide otherwise.
pub fn evaluate(m: &Tables, set: u32, direction: Direction, peer: &AddressKey, port: u32) -> (RuleRow, u32) {
    let row = m.set(set).expect("an endpoint's set is there");
    let side = row.sides[direction as usize];
    let key = PeerKey { side: set << 1 | direction as u32, identity: m.identity(peer) };
    let by_peer = m.peer(&key).unwrap_or(side.any_peer);
    let ports = (side.ports..side.ports + side.port_rows).map(|row| m.port(row).unwrap());
    let by_port = ports.take_while(|row| row.start <= port).last().unwrap().bits;
    let decides = first(m, &side, by_peer, by_port, true);
    let staged = first(m, &side, by_peer, by_port, false);
    let staged_id = if staged == decides { 0 } else { m.rule(staged).unwrap().id };
    (*m.rule(decides).unwrap(), staged_id)
}

fn first(m: &Tables, side: &Side, by_peer: u32, by_port: u32, enforced: bool) -> u32 {
    let mut at = 0;
    while at < side.words * 64 {
        let (word, bit) = (at / 64, at % 64);
        let mut bits = m.bits(by_peer + word).unwrap() & m.bits(by_port + word).unwrap();
        if enforced {
            bits &= m.bits(side.enforced + word).unwrap();
        }
        if bits >> bit & 1 == 0 {
            at += 1;
            continue;
        }
        let rule = m.rule(side.rules + at).unwrap();
        if rule.action != action::PASS || (!enforced && rule.flags & rule_flags::STAGED != 0) {
            return side.rules + at;
        }
        assert!(u32::from(rule.next) > at, "a pass leads on");
        at = rule.next.into();
    }
    panic!("the last rule matches everything")
}
