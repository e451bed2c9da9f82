//! Faults of security groups and policies.

use super::super::{DEFAULT_GROUP, KeepAlive, Policy, SecurityGroup, Transfer};
use super::alone::{Report, repeated};
use super::rule::{OF_ENDPOINTS, WITH_TAGS, expression, names, rules, selector};

/// Looks at a security group.
pub(super) fn group(group: &SecurityGroup, whole: bool, report: Report<'_>) {
    let spec = &group.spec;
    rules(&spec.ingress, "ingress", true, whole, report);
    rules(&spec.egress, "egress", true, whole, report);
    if let Some(own) = &spec.selector {
        selector(own, "/spec/selector", WITH_TAGS, whole, report);
    }
    names(spec.transfers.iter().map(|t| t.name.as_str()), "/spec/transfers", "transfer", report);
    for (index, transfer) in spec.transfers.iter().enumerate() {
        self::transfer(transfer, &format!("/spec/transfers/{index}"), report);
    }
    if let Some(brakes) = spec.brakes
        && whole
        && brakes.max_endpoints.is_none()
        && brakes.max_percent.is_none()
    {
        report("/spec/brakes", "`brakes` needs `maxEndpoints` or `maxPercent`: how many may be moved?".to_owned());
    }
    quarantine(group, report);
}

fn transfer(transfer: &Transfer, pointer: &str, report: Report<'_>) {
    expression(Some(&transfer.when), &format!("{pointer}/when"), WITH_TAGS, report);
    expression(transfer.release_when.as_deref(), &format!("{pointer}/releaseWhen"), WITH_TAGS, report);
    let Some(most) = transfer.max_hold_seconds else { return };
    if transfer.min_hold_seconds > most {
        let least = transfer.min_hold_seconds;
        let message =
            format!("it is held for {least} s at least and {most} s at most: raise `maxHoldSeconds`, or lower `minHoldSeconds`");
        report(&format!("{pointer}/maxHoldSeconds"), message);
    }
    if let Some(damping) = transfer.flap_damping.filter(|damping| damping.hold_seconds > most) {
        let held = damping.hold_seconds;
        let message = format!("it would be held for {held} s, but is released after {most} s (`maxHoldSeconds`): lower it");
        report(&format!("{pointer}/flapDamping/holdSeconds"), message);
    }
}

fn quarantine(group: &SecurityGroup, report: Report<'_>) {
    let spec = &group.spec;
    let Some(quarantine) = &spec.quarantine else { return };
    if group.metadata.name == DEFAULT_GROUP {
        let message = "`default` is the group of all endpoints that no other selects, and cannot be a quarantine group";
        report("/spec/quarantine", message.to_owned());
    }
    for (field, given) in
        [("selector", spec.selector.is_some()), ("transfers", !spec.transfers.is_empty()), ("brakes", spec.brakes.is_some())]
    {
        if given {
            let why = if field == "selector" { "selects nobody" } else { "moves nobody" };
            let message = format!("a quarantine group {why}, endpoints are moved into it: remove `{field}`, or `quarantine`");
            report(&format!("/spec/{field}"), message);
        }
    }
    if quarantine.mirror_to.is_some() && quarantine.mirror_device.is_some() {
        report("/spec/quarantine/mirrorDevice", "there is `mirrorTo` as well: keep one of the two".to_owned());
    }
    for (index, _) in repeated(&quarantine.redirect_to) {
        let name = &quarantine.redirect_to[index];
        report(&format!("/spec/quarantine/redirectTo/{index}"), format!("`{name}` is listed twice: remove one"));
    }
    for (index, _) in repeated(&quarantine.keep_alive.iter().map(|k| *k as u8).collect::<Vec<_>>()) {
        let name = if quarantine.keep_alive[index] == KeepAlive::Dhcp { "dhcp" } else { "neighbors" };
        report(&format!("/spec/quarantine/keepAlive/{index}"), format!("`{name}` is listed twice: remove one"));
    }
}

/// Looks at a policy.
pub(super) fn policy(policy: &Policy, whole: bool, report: Report<'_>) {
    let spec = &policy.spec;
    rules(&spec.ingress, "ingress", false, whole, report);
    rules(&spec.egress, "egress", false, whole, report);
    if let Some(of_endpoints) = &spec.applied_to.selector {
        selector(of_endpoints, "/spec/appliedTo/selector", OF_ENDPOINTS, whole, report);
    }
    for (index, _) in repeated(&spec.applied_to.groups) {
        let message = format!("the group `{}` is listed twice: remove one", spec.applied_to.groups[index]);
        report(&format!("/spec/appliedTo/groups/{index}"), message);
    }
    if whole && spec.ingress.is_empty() && spec.egress.is_empty() {
        report("/spec", "the policy has no rules: it needs `ingress` or `egress`".to_owned());
    }
}
