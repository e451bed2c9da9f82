//! Rules, flows' packets and tags in one line.

use vnet_common::api::{PacketRef, RuleRef, Tag};

use crate::style::Look;

/// `policy/base no-ssh`; `quarantine group isolated of the peer, default`, if it is about peers of those whom that group holds elsewhere.
pub fn name(rule: &RuleRef) -> String {
    match rule.kind.as_str() {
        "built-in" | "" => format!("built-in {}", rule.rule),
        "PeerQuarantine" => format!("quarantine group {} of the peer, {}", rule.resource, rule.rule),
        _ => format!("{} {}", resource(rule), rule.rule),
    }
}

/// `policy/base`, the resource that the rule is written in.
pub fn resource(rule: &RuleRef) -> String {
    let kind = if rule.kind == "PeerQuarantine" { "securitygroup" } else { &rule.kind.to_lowercase() };
    if rule.resource.is_empty() { rule.kind.clone() } else { format!("{kind}/{}", rule.resource) }
}

/// `policy/base no-ssh (base.yaml:12)`, the place if it is known.
pub fn placed(rule: &RuleRef) -> String {
    match rule.place.as_str() {
        "" => name(rule),
        place => format!("{} ({place})", name(rule)),
    }
}

/// `deny`, or `deny (staged)`.
pub fn action(rule: &RuleRef) -> String {
    if rule.staged { format!("{} (staged)", rule.action) } else { rule.action.clone() }
}

/// The look of what a rule does, or a verdict.
pub fn look(action: &str) -> Look {
    match action.split(' ').next().unwrap_or_default() {
        "allow" | "allowed" | "answered" => Look::Green,
        "deny" | "reject" | "dropped" | "drop" | "refused" => Look::Red,
        "redirect" | "redirected" | "pass" => Look::Yellow,
        _ => Look::Plain,
    }
}

/// `TCP 10.0.0.1:40000 > 10.0.0.9:443 S`.
pub fn packet(packet: &PacketRef) -> String {
    let mut text = format!("{} {} > {}", packet.protocol, side(&packet.src, packet.sport), side(&packet.dst, packet.dport));
    if let Some((kind, code)) = packet.icmp {
        text += &format!(" type {kind} code {code}");
    }
    if !packet.flags.is_empty() {
        text += &format!(" {}", packet.flags);
    }
    text
}

/// `10.0.0.1:80`, `[fd00::1]:80`, or the address alone.
pub fn side(address: &str, port: Option<u16>) -> String {
    match port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

/// `ids.malware=trojan`, with its instance in brackets.
pub fn tag(tag: &Tag) -> String {
    let mut text = tag.name.clone();
    if !tag.instance.is_empty() {
        text += &format!("[{}]", tag.instance);
    }
    if !tag.value.is_empty() {
        text += &format!("={}", tag.value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_called_by_where_they_are_written() {
        for (kind, of, called, written) in [
            ("Policy", "base", "policy/base r", "policy/base"),
            ("built-in", "", "built-in r", "built-in"),
            ("PeerQuarantine", "isolated", "quarantine group isolated of the peer, r", "securitygroup/isolated"),
        ] {
            let rule = RuleRef { kind: kind.into(), resource: of.into(), rule: "r".into(), ..RuleRef::default() };
            assert_eq!((&*name(&rule), &*resource(&rule)), (called, written));
        }
    }
}
