//! Which security group an endpoint is in.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

pub use super::rules::DEFAULT_GROUP as DEFAULT;

use super::rules::DEFAULT_GROUP;
use super::selector::{Candidate, Ready, Selectors};
use crate::resource::SecurityGroup;

/// What selects endpoints into groups.
#[derive(Debug)]
pub struct Membership {
    /// By their place: the first that selects an endpoint has it.
    groups: Vec<Arc<str>>,
    selectors: Selectors<usize>,
}

/// The group that an endpoint is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The group.
    pub group: Arc<str>,
    /// Groups that come before it and whose selector could not be asked, and why. As long as there is one, an endpoint should stay in the
    /// group that it was in.
    pub faults: Vec<(Arc<str>, String)>,
}

impl Membership {
    /// Of these groups. Those of quarantine select nobody.
    pub fn new<'a>(groups: impl IntoIterator<Item = &'a SecurityGroup>) -> Self {
        let mut groups: Vec<&SecurityGroup> = groups.into_iter().filter(|g| g.spec.quarantine.is_none()).collect();
        groups.sort_by_key(|g| (g.spec.precedence, g.metadata.name.clone()));
        let selectors = groups.iter().enumerate();
        let selectors = selectors.filter_map(|(at, g)| Some((at, Arc::new(Ready::new(g.spec.selector.as_ref()?, true)))));
        let selectors = Selectors::new(selectors.collect::<Vec<_>>());
        Self { groups: groups.iter().map(|g| g.metadata.name.as_str().into()).collect(), selectors }
    }

    /// The group of an endpoint. `tags` is a list of maps, as expressions see it.
    pub fn of(&self, name: &str, labels: &BTreeMap<String, String>, tags: &Value) -> Member {
        let (found, faults) = self.selectors.matching(Candidate { name, labels, tags: Some(tags) });
        let first = found.into_iter().min();
        let group = |at: usize| self.groups.get(at).cloned();
        let mut faults: Vec<(usize, String)> =
            faults.into_iter().filter(|(at, _)| first.is_none_or(|first| *at < first)).collect();
        faults.sort_unstable();
        Member {
            group: first.and_then(group).unwrap_or_else(|| DEFAULT_GROUP.into()),
            faults: faults.into_iter().filter_map(|(at, why)| Some((group(at)?, why))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Resource, parse};
    use vnet_common::api::File;

    #[test]
    fn the_first_group_that_selects_an_endpoint_has_it() {
        let group = |name: &str, spec: &str| {
            format!("apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n")
        };
        let text = [
            group("web", "selector: { matchLabels: { app: web } }"),
            group("all-prod", "selector: { matchLabels: { env: prod } }"),
            group("first", "precedence: 1, selector: { matchLabels: { app: web, env: prod } }"),
            group("held", "quarantine: {}"),
            group("finance", "precedence: 5, selector: { expression: 'tags.exists(t, t.name == \"session\")' }"),
            group("zoned", "precedence: 7, selector: { expression: 'labels.zone == \"a\"', matchLabels: { app: odd } }"),
            group("default", "defaults: { ingress: deny }"),
        ]
        .concat();
        let located = parse(&[File { name: "t.yaml".into(), text }]).unwrap();
        let groups = located.iter().map(|l| if let Resource::SecurityGroup(g) = &l.resource { g } else { panic!() });
        let membership = Membership::new(groups);
        let of = |labels: &[(&str, &str)], tags: Value| {
            let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            membership.of("x", &labels, &tags)
        };
        let none = || Value::Array(Vec::new());
        assert_eq!(&*of(&[("app", "web")], none()).group, "web");
        assert_eq!(&*of(&[("env", "prod")], none()).group, "all-prod");
        assert_eq!(&*of(&[("app", "web"), ("env", "prod")], none()).group, "first");
        assert_eq!(&*of(&[("app", "web")], serde_json::json!([{"name": "session"}])).group, "finance");
        assert_eq!(of(&[], none()), Member { group: "default".into(), faults: vec![] });
        let odd = of(&[("app", "odd"), ("env", "prod")], none());
        assert_eq!((&*odd.group, &*odd.faults[0].0), ("all-prod", "zoned"));
        assert!(odd.faults[0].1.contains("No such key"), "{odd:?}");
    }
}
