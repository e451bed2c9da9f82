//! Resources that name others.

use super::super::rule::Rule;
use super::super::{DEFAULT_GROUP, LoadBalancer, Policy, Resource, SecurityGroup};

/// One resource names another.
pub(super) struct Reference<'a> {
    /// The other's kind.
    pub(super) kind: &'static str,
    /// The other's name.
    pub(super) name: &'a str,
    /// Where it is named.
    pub(super) pointer: String,
    /// What for, as the middle of a sentence: `moves endpoints into`.
    pub(super) what: &'static str,
    /// By which of its rules or transfers, in brackets after it; may be empty.
    pub(super) by: String,
    /// The other must be a quarantine group.
    pub(super) to_quarantine: bool,
    /// The other must be none.
    pub(super) not_to_quarantine: bool,
}

impl Reference<'_> {
    /// Why what was found will not do.
    pub(super) fn wrong(&self, found: Option<&Resource>) -> Option<String> {
        let (kind, name) = (self.kind, self.name);
        match found {
            // What stands for a name that is not there; that fault was reported.
            _ if name.is_empty() => None,
            // The built-in security group needs no resource.
            None if kind == "SecurityGroup" && name == DEFAULT_GROUP && !self.to_quarantine => None,
            None => Some(format!("there is no {kind} `{name}`")),
            Some(Resource::SecurityGroup(group)) => match group.spec.quarantine {
                None if self.to_quarantine => {
                    Some(format!("SecurityGroup `{name}` is no quarantine group: it lacks `quarantine`"))
                }
                Some(_) if self.not_to_quarantine => {
                    Some(format!("SecurityGroup `{name}` is a quarantine group, which policies do not apply to"))
                }
                _ => None,
            },
            Some(_) => None,
        }
    }
}

/// What a resource names.
pub(super) fn of(resource: &Resource) -> Vec<Reference<'_>> {
    match resource {
        Resource::SecurityGroup(group) => of_group(group),
        Resource::Policy(policy) => of_policy(policy),
        Resource::LoadBalancer(load_balancer) => of_load_balancer(load_balancer),
        Resource::Endpoint(_) | Resource::TagSource(_) => Vec::new(),
    }
}

/// Why resources cannot be deleted while others stay: those that name them, each in a sentence.
#[must_use]
pub fn needed<'a>(deleted: &[(String, String)], stay: impl IntoIterator<Item = &'a Resource>) -> Vec<String> {
    let mut needed = Vec::new();
    for resource in stay {
        for reference in of(resource) {
            let gone = deleted.iter().any(|(kind, name)| kind == reference.kind && name == reference.name);
            if gone && reference.wrong(None).is_some() {
                let (kind, name) = (resource.kind(), resource.name());
                let Reference { what, by, kind: other, name: named, .. } = &reference;
                needed.push(format!("{kind} `{name}` {what} {other} `{named}`{by}"));
            }
        }
    }
    needed
}

fn to_group<'a>(name: &'a str, pointer: String, what: &'static str) -> Reference<'a> {
    let (kind, by) = ("SecurityGroup", String::new());
    Reference { kind, name, pointer, what, by, to_quarantine: false, not_to_quarantine: false }
}

fn of_load_balancer(load_balancer: &LoadBalancer) -> Vec<Reference<'_>> {
    let each = load_balancer.spec.member_groups.iter().enumerate().map(|(index, group)| {
        let pointer = format!("/spec/memberGroups/{index}/loadBalancer");
        Reference { kind: "LoadBalancer", ..to_group(&group.load_balancer, pointer, "has the members of") }
    });
    each.collect()
}

fn of_group(group: &SecurityGroup) -> Vec<Reference<'_>> {
    let spec = &group.spec;
    let mut all = of_rules(&spec.egress, "egress");
    all.extend(of_rules(&spec.ingress, "ingress"));
    for (index, transfer) in spec.transfers.iter().enumerate() {
        let by = format!(" (transfer `{}`)", transfer.name);
        let to = to_group(&transfer.to, format!("/spec/transfers/{index}/to"), "moves endpoints into");
        all.push(Reference { by, to_quarantine: true, ..to });
    }
    if let Some(quarantine) = &spec.quarantine {
        let to = |kind, name, field: &str, what| Reference { kind, ..to_group(name, format!("/spec/quarantine/{field}"), what) };
        for (index, name) in quarantine.redirect_to.iter().enumerate() {
            all.push(to("LoadBalancer", name, &format!("redirectTo/{index}"), "redirects to"));
        }
        all.extend(quarantine.mirror_to.as_deref().map(|name| to("Endpoint", name, "mirrorTo", "mirrors to")));
    }
    all
}

fn of_policy(policy: &Policy) -> Vec<Reference<'_>> {
    let mut all = of_rules(&policy.spec.egress, "egress");
    all.extend(of_rules(&policy.spec.ingress, "ingress"));
    for (index, name) in policy.spec.applied_to.groups.iter().enumerate() {
        let pointer = format!("/spec/appliedTo/groups/{index}");
        all.push(Reference { not_to_quarantine: true, ..to_group(name, pointer, "is applied to") });
    }
    all
}

fn of_rules<'a>(rules: &'a [Rule], list: &str) -> Vec<Reference<'a>> {
    let mut all = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        for (at, name) in rule.peers.iter().enumerate().filter_map(|(at, peer)| Some((at, peer.group.as_deref()?))) {
            let by = format!(" (rule `{}`)", rule.name);
            all.push(Reference { by, ..to_group(name, format!("/spec/{list}/{index}/peers/{at}/group"), "is about") });
        }
    }
    all
}
