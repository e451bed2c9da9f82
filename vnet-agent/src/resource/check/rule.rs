//! Faults of rules and selectors.

use super::super::format::protocol_number;
use super::super::rule::{Action, Peer, PortMatch, Rule, Selector};
use super::super::{Cidr, source::quote};
use super::alone::{Report, repeated};
use crate::expression::Expression;

/// What the expression of a selector may ask for.
pub(super) const OF_ENDPOINTS: &[&str] = &["name", "labels"];
/// What the one of a group's own may, and criteria of transfers.
pub(super) const WITH_TAGS: &[&str] = &["name", "labels", "tags"];

/// Numbers of protocols that have ports, and of those that have types.
const WITH_PORTS: [u8; 2] = [6, 17];
const WITH_TYPES: [u8; 2] = [1, 58];

/// A list of rules; `of_group`: of a security group.
pub(super) fn rules(rules: &[Rule], list: &str, of_group: bool, whole: bool, report: Report<'_>) {
    names(rules.iter().map(|rule| rule.name.as_str()), &format!("/spec/{list}"), "rule", report);
    for (index, rule) in rules.iter().enumerate() {
        let pointer = format!("/spec/{list}/{index}");
        if of_group && matches!(rule.name.as_str(), "default" | "redirect") {
            let message = format!("`{}` is what vnet calls a rule that it adds itself: choose another name", rule.name);
            report(&format!("{pointer}/name"), message);
        }
        if of_group && rule.action == Action::Pass {
            let message = "`pass` is for policies: after a security group's rules there is no other tier that could decide";
            report(&format!("{pointer}/action"), message.to_owned());
        }
        for (at, peer) in rule.peers.iter().enumerate() {
            self::peer(peer, &format!("{pointer}/peers/{at}"), whole, report);
        }
        for (at, ports) in rule.ports.iter().enumerate() {
            self::ports(ports, &format!("{pointer}/ports/{at}"), report);
        }
    }
}

/// Names that are there twice; `what` has them.
pub(super) fn names<'a>(names: impl Iterator<Item = &'a str>, list: &str, what: &str, report: Report<'_>) {
    let names: Vec<&str> = names.collect();
    for (index, first) in repeated(&names).into_iter().filter(|(index, _)| !names[*index].is_empty()) {
        let message = format!("{what} {} has the name `{}` already: choose another", first + 1, names[index]);
        report(&format!("{list}/{index}/name"), message);
    }
}

/// Of these fields exactly one must be given. Those that are come with `true`.
pub(super) fn only_one(fields: &[(&str, bool)], pointer: &str, what: &str, whole: bool, report: Report<'_>) {
    let list = |fields: Vec<&str>| fields.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", ");
    let given: Vec<&str> = fields.iter().filter(|(_, given)| *given).map(|(field, _)| *field).collect();
    match given.as_slice() {
        [] if whole => report(pointer, format!("{what} needs one of {}", list(fields.iter().map(|(field, _)| *field).collect()))),
        [] | [_] => {}
        [_, second, ..] => {
            let message = format!("{what} has one of {}: keep one of them", list(given.clone()));
            report(&format!("{pointer}/{second}"), message);
        }
    }
}

fn peer(peer: &Peer, pointer: &str, whole: bool, report: Report<'_>) {
    let fields = [
        ("group", peer.group.is_some()),
        ("selector", peer.selector.is_some()),
        ("cidr", peer.cidr.is_some()),
        ("entity", peer.entity.is_some()),
    ];
    only_one(&fields, pointer, "a peer", whole, report);
    if let Some(selector) = &peer.selector {
        self::selector(selector, &format!("{pointer}/selector"), OF_ENDPOINTS, whole, report);
    }
    match peer.cidr.as_deref().map(Cidr::parse) {
        None if whole && !peer.except.is_empty() => {
            report(&format!("{pointer}/except"), "`except` takes networks out of `cidr`, which is not given".to_owned());
        }
        Some(Ok(around)) => {
            for (at, text) in peer.except.iter().enumerate() {
                if let Ok(cidr) = Cidr::parse(text)
                    && !around.contains(&cidr)
                {
                    report(&format!("{pointer}/except/{at}"), format!("{cidr} is not in {around}: it cannot be taken out of it"));
                }
            }
        }
        _ => {}
    }
}

/// A selector whose expression may ask for `variables`.
pub(super) fn selector(selector: &Selector, pointer: &str, variables: &[&str], whole: bool, report: Report<'_>) {
    if whole && selector.match_labels.is_empty() && selector.expression.is_none() {
        report(pointer, "the selector needs `matchLabels` or an `expression`: whom does it select?".to_owned());
    }
    expression(selector.expression.as_deref(), &format!("{pointer}/expression"), variables, report);
}

/// An expression that may ask for `variables`, if there is one.
pub(super) fn expression(text: Option<&str>, pointer: &str, variables: &[&str], report: Report<'_>) {
    let Some(text) = text.filter(|text| super::super::format::wrong("cel", text).is_none()) else { return };
    if let Err(why) = Expression::parse(text, variables) {
        report(pointer, format!("{} {why}", quote(text)));
    }
}

fn ports(ports: &PortMatch, pointer: &str, report: Report<'_>) {
    let Some(number) = protocol_number(&ports.protocol) else { return };
    let protocol = &ports.protocol;
    let field = |name: &str| format!("{pointer}/{name}");
    for (name, given) in [("port", ports.port), ("endPort", ports.end_port)] {
        if given.is_some() && !WITH_PORTS.contains(&number) {
            report(&field(name), format!("`{name}` is for TCP and UDP, and the protocol is {protocol}: remove it"));
        }
    }
    for (name, given) in [("type", ports.icmp_type), ("code", ports.code)] {
        if given.is_some() && !WITH_TYPES.contains(&number) {
            report(&field(name), format!("`{name}` is for ICMP and ICMPv6, and the protocol is {protocol}: remove it"));
        }
    }
    match (ports.port, ports.end_port) {
        (None, Some(_)) => {
            report(&field("endPort"), "`endPort` ends a range that starts at `port`, which is not given".to_owned())
        }
        (Some(first), Some(last)) if last < first => {
            report(&field("endPort"), format!("the range ends at {last}, before it starts at {first}: swap them"));
        }
        _ => {}
    }
    if ports.icmp_type.is_none() && ports.code.is_some() {
        report(&field("code"), "`code` is one of a `type`, which is not given".to_owned());
    }
}
