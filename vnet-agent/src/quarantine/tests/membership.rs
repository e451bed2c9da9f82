//! Which group an endpoint belongs to.

use super::*;

/// Security groups, by name and spec.
fn groups(groups: &[(&str, &str)]) -> String {
    let group = |(name, spec): &(&str, &str)| {
        format!("---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n")
    };
    groups.iter().map(group).collect()
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn the_first_group_that_selects_an_endpoint_has_it() {
    let mut w = World::new(&groups(&[
        ("web", "selector: { matchLabels: { app: web } }"),
        ("all-prod", "selector: { matchLabels: { env: prod } }"),
        ("first", "precedence: 1, selector: { matchLabels: { app: web, env: prod } }"),
        ("finance", "precedence: 5, selector: { expression: 'tags.exists(t, t.name == \"session\")' }"),
        ("zoned", "precedence: 7, selector: { expression: 'labels.zone == \"a\"', matchLabels: { app: odd } }"),
        ("default", "defaults: { ingress: deny }"),
    ]));
    for (tag, has, group, fault) in [
        (None, &[("app", "web")][..], "web", ""),
        (None, &[("env", "prod")], "all-prod", ""),
        (None, &[("app", "web"), ("env", "prod")], "first", ""),
        (None, &[("app", "odd"), ("zone", "a"), ("env", "prod")], "zoned", ""),
        (None, &[], "default", ""),
        (Some("session"), &[("app", "web")], "finance", ""),
        (Some("session"), &[("app", "web"), ("env", "prod")], "first", ""),
        (Some("other"), &[("app", "web")], "web", ""),
        (
            None,
            &[("app", "odd"), ("env", "prod")],
            "all-prod",
            "selector of group zoned: `labels.zone == \"a\"` cannot be evaluated",
        ),
    ] {
        w.endpoints.insert("x".into(), labels(has));
        w.set_inputs();
        if let Some(tag) = tag {
            w.set("x", tag, 5);
        }
        assert_eq!(w.group("x"), group, "{has:?} {tag:?}");
        assert_eq!(w.alarms().is_empty(), fault.is_empty(), "{has:?} {tag:?}");
        assert!(w.alarms().contains(fault), "{}", w.alarms());
        if let Some(tag) = tag {
            w.clear("x", tag);
        }
    }
}

#[test]
fn to_ask_what_would_be_says_what_will_be_and_changes_nothing() {
    let mut w = World::new(&groups(&[
        ("web", "selector: { matchLabels: { app: web } }"),
        ("fresh", "precedence: 5, selector: { expression: 'tags.exists(t, t.name == \"login\" && t.age < 60)' }"),
        ("zoned", "precedence: 7, selector: { expression: 'labels.zone == \"a\"', matchLabels: { app: odd } }"),
    ]));
    w.endpoints.insert("c".into(), labels(&[("app", "odd"), ("zone", "a")]));
    w.set_inputs();
    w.set("a", "login", 1);
    w.set("b", "bad", 9);
    w.operate("b", "hold", Some("strict"), "x").unwrap();
    assert_eq!(w.groups(), ["fresh", "strict", "zoned"]);
    let now = ["a", "b", "c"].map(|name| w.assignment(name));

    // (the groups, the labels), by endpoint, then the groups that they would belong to
    for (more, has, expected) in [
        ("", [&[("app", "web")][..], &[("app", "web")], &[("app", "odd"), ("zone", "a")]], ["fresh", "web", "zoned"]),
        ("", [&[("app", "db")], &[("app", "db")], &[("app", "odd")]], ["fresh", "default", "zoned"]),
        (
            "precedence: 1, selector: { matchLabels: { app: db } }",
            [&[("app", "db")], &[("app", "web")], &[("app", "db")]],
            ["new", "web", "new"],
        ),
        (
            "precedence: 1, selector: { expression: 'tags.exists(t, t.severity == 9)' }",
            [&[], &[], &[]],
            ["fresh", "new", "default"],
        ),
    ] {
        let mut after = World::new("");
        after.groups.clone_from(&w.groups);
        if !more.is_empty() {
            after.resources(&groups(&[("new", more)]));
        }
        let has = has.map(labels);
        let endpoints = ["a", "b", "c"].into_iter().zip(&has).collect();
        let inputs = Inputs { groups: after.groups.iter().collect(), sources: w.sources.iter().collect(), endpoints };
        let bases = w.service().bases(&inputs);
        assert_eq!(["a", "b", "c"].map(|name| bases[name].as_str()), expected, "{more} {has:?}");
        assert_eq!(["a", "b", "c"].map(|name| w.assignment(name)), now);

        w.service().set_inputs(&inputs);
        assert_eq!(["a", "b", "c"].map(|name| w.assignment(name).base), expected, "{more} {has:?}");
        w.set_inputs();
        assert_eq!(w.groups(), ["fresh", "strict", "zoned"]);
    }
    w.pass(60);
    let endpoints = w.endpoints.iter().map(|(name, labels)| (name.as_str(), labels)).collect();
    let inputs = Inputs { groups: w.groups.iter().collect(), sources: Vec::new(), endpoints };
    assert_eq!(w.service().bases(&inputs)["a"], "web", "ages are the engine's");
    assert_eq!(w.group("a"), "web");
}
