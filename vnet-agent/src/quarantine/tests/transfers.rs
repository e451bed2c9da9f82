//! Who is moved, who is released, and who is not.

use super::*;

const SIMPLE: &str = r#"
    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad" && t.severity >= 5)' }
"#;

#[test]
fn a_transfer_moves_and_lets_go() {
    let w = World::with(SIMPLE);
    assert_eq!(w.groups(), ["web", "web", "web"]);
    w.set("a", "bad", 4);
    assert_eq!(w.group("a"), "web");
    w.set("a", "bad", 5);
    assert_eq!(w.groups(), ["strict", "web", "web"]);
    let held = w.held("a");
    assert_eq!((held.from.as_str(), held.transfer.as_str(), held.state.as_str()), ("web", "bad", "enforced"));
    assert_eq!(held.tags, ["ids/bad"]);
    w.set("a", "other", 9);
    w.clear("a", "bad");
    assert_eq!(w.group("a"), "web");
    assert_eq!(w.log("a"), ["move web>strict", "release strict>web"]);
    let records = w.service().audit(Some("a"), 100).unwrap();
    let moved = records.iter().find(|r| r.action == "move").unwrap();
    assert_eq!(
        (moved.who.as_str(), moved.evidence.as_slice()),
        ("transfer", &["ids/bad (severity 5): seen by a test".to_owned()][..])
    );
    assert!(records.windows(2).all(|w| w[1].number > w[0].number));
}

#[test]
fn criteria_may_ask_for_labels_only() {
    let mut w = World::with(r#"    - { name: old, to: lax, when: 'labels.os == "xp"' }"#);
    assert_eq!(w.group("a"), "web");
    assert!(w.alarms().contains("a, b, c: transfer web/old: ") && w.alarms().contains("No such key"), "{}", w.alarms());
    for (name, os) in [("a", "xp"), ("b", "linux"), ("c", "linux")] {
        w.endpoints.get_mut(name).unwrap().insert("os".into(), os.into());
    }
    w.set_inputs();
    assert_eq!((w.groups(), w.alarms().as_str()), (["lax", "web", "web"].map(str::to_owned), ""));
    w.endpoints.get_mut("a").unwrap().insert("os".into(), "linux".into());
    w.set_inputs();
    assert_eq!(w.group("a"), "web");
}

#[test]
fn release_has_a_criterion_of_its_own_and_the_same_tags_do_not_move_again() {
    let w = World::with(
        r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")', releaseWhen: 'tags.exists(t, t.name == "clean")', minHoldSeconds: 60 }"#,
    );
    w.set("a", "bad", 5);
    w.clear("a", "bad");
    w.pass(100);
    assert_eq!((w.group("a").as_str(), w.held("a").waiting_for.as_str()), ("strict", "`tags.exists(t, t.name == \"clean\")`"));
    w.set("a", "bad", 5);
    w.set("a", "clean", 0);
    assert_eq!(w.group("a"), "web");
    w.set("a", "clean", 0);
    w.set("a", "other", 3);
    w.pass(10);
    assert_eq!(w.group("a"), "web", "`bad` is still there, but from before");
    w.set("a", "bad", 5);
    assert_eq!(w.group("a"), "strict", "it was set anew");
    w.pass_ms(59_999);
    assert_eq!((w.group("a").as_str(), w.held("a").waiting_for.as_str()), ("strict", "the end of its minimum hold"));
    w.pass_ms(1);
    assert_eq!(w.group("a"), "web");
}

#[test]
fn a_better_transfer_takes_over_and_a_worse_one_goes_on() {
    let w = World::with(
        r#"
    - { name: low, priority: 20, to: lax, when: 'tags.exists(t, t.severity >= 3)' }
    - { name: high, priority: 10, to: strict, when: 'tags.exists(t, t.severity >= 8)', minHoldSeconds: 30 }
"#,
    );
    w.set("a", "x", 3);
    assert_eq!(w.group("a"), "lax");
    w.set("a", "y", 8);
    assert_eq!((w.group("a").as_str(), w.held("a").transfer.as_str()), ("strict", "high"));
    w.clear("a", "y");
    assert_eq!(w.group("a"), "strict", "its minimum hold");
    w.pass(30);
    assert_eq!((w.group("a").as_str(), w.held("a").transfer.as_str()), ("lax", "low"));
    w.clear("a", "x");
    assert_eq!(w.group("a"), "web");
    assert_eq!(w.log("a"), ["move web>lax", "move lax>strict", "move strict>lax", "release lax>web"]);
}

#[test]
fn transfers_with_one_release_criterion_do_not_hand_over_for_ever() {
    let w = World::with(
        r#"
    - { name: low, priority: 20, to: lax, when: 'tags.exists(t, t.severity >= 3)', releaseWhen: 'tags.exists(t, t.name == "clean")' }
    - { name: high, priority: 10, to: strict, when: 'tags.exists(t, t.severity >= 8)', releaseWhen: 'tags.exists(t, t.name == "clean")' }
"#,
    );
    w.set("a", "y", 9);
    w.set("a", "clean", 0);
    assert_eq!(w.log("a"), ["move web>strict", "release strict>web"]);
    assert_eq!(w.group("a"), "web");
}

#[test]
fn what_cannot_be_evaluated_keeps_the_state() {
    let w =
        World::with(r#"    - { name: odd, to: strict, when: 'tags[0].severity > 4', releaseWhen: 'tags[1].name == "clean"' }"#);
    assert_eq!(w.group("a"), "web");
    assert!(w.alarms().contains("transfer web/odd: `tags[0].severity > 4` cannot be evaluated"), "{}", w.alarms());
    assert!(w.log("a").iter().any(|r| r.starts_with("error")));
    w.set("a", "bad", 5);
    assert_eq!(w.group("a"), "strict");
    w.pass(1000);
    assert_eq!(w.group("a"), "strict", "the release cannot be evaluated");
    assert!(w.held("a").waiting_for.starts_with("its criterion cannot be evaluated"), "{:?}", w.held("a"));
    assert!(w.alarms().contains("release of web/odd"), "{}", w.alarms());
    w.set("a", "clean", 0);
    assert_eq!(w.group("a"), "web");
}

#[test]
fn whoever_is_held_stays_when_resources_go_or_change() {
    let mut w = World::with(SIMPLE);
    w.set("a", "bad", 9);
    w.apply(&web(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "worse")' }"#));
    assert_eq!(w.group("a"), "strict");
    assert!(w.alarms().contains("a: held by transfer bad of group web, which was changed since"), "{}", w.alarms());
    w.apply(&web(r#"    - { name: other, to: lax, when: 'false' }"#));
    assert!(w.alarms().contains("transfer bad of group web, which is gone"), "{}", w.alarms());
    w.delete_group("web");
    w.delete_group("strict");
    assert_eq!((w.group("a").as_str(), w.assignment("a").base.as_str()), ("strict", "default"));
    assert!(w.alarms().contains("quarantine group strict, which is gone"), "{}", w.alarms());
    w.endpoints.remove("a");
    w.set_inputs();
    w.clear("a", "bad");
    w.pass(60);
    assert_eq!(
        (w.rows.held_in("a").as_deref(), w.held("a").group.as_str(), w.held("a").state.as_str()),
        (Some("strict"), "strict", "waiting"),
        "nothing is said of an endpoint that is gone"
    );
    w.endpoints.insert("a".into(), BTreeMap::new());
    w.set_inputs();
    assert_eq!((w.group("a"), w.alarms()), ("default".to_owned(), String::new()));
}

#[test]
fn a_transfer_to_nowhere_is_a_fault() {
    let mut w = World::with(SIMPLE);
    w.delete_group("strict");
    w.set("a", "bad", 9);
    assert_eq!(w.group("a"), "web");
    assert!(w.alarms().contains("there is no quarantine group `strict`"), "{}", w.alarms());
    w.apply(COMMON);
    assert_eq!(w.group("a"), "strict");
}

#[test]
fn a_dry_run_says_it_once() {
    let w = World::with(
        r#"
    - { name: try, priority: 1, to: lax, mode: dry-run, when: 'tags.exists(t, t.severity >= 1)' }
    - { name: bad, to: strict, when: 'tags.exists(t, t.severity >= 5)' }
"#,
    );
    w.set("a", "x", 1);
    w.set("a", "x", 2);
    assert_eq!((w.group("a"), w.log("a")), ("web".to_owned(), vec!["would-move web>lax".to_owned()]));
    w.set("a", "x", 5);
    assert_eq!(w.group("a"), "strict", "others do what they say");
    w.clear("a", "x");
    w.set("a", "x", 1);
    assert_eq!(w.log("a").iter().filter(|r| r.starts_with("would-move")).count(), 2);
}

#[test]
fn membership_follows_sessions() {
    let group = |name: &str, precedence: u16, selector: &str| {
        format!(
            "---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: {name} }}\nspec: {{ precedence: {precedence}, selector: {selector} }}\n"
        )
    };
    let session = |group: &str| format!(r#"{{ expression: 'tags.exists(t, t.name == "session" && t.value == "{group}")' }}"#);
    let mut w = World::new(
        &[
            group("web", 500, "{ matchLabels: { app: web } }"),
            group("finance", 100, &session("finance")),
            group("admin", 50, &session("admin")),
            group("late", 900, &session("finance")),
        ]
        .concat(),
    );
    let login = |group: &str| match set(0, None, OnExpiry::Release) {
        Operation::Set { severity, confidence, evidence, ttl_seconds, on_expiry, .. } => {
            Operation::Set { value: group.into(), severity, confidence, evidence, ttl_seconds, on_expiry }
        }
        Operation::Clear => Operation::Clear,
    };
    let mut changes = w.service().changes();
    let _ = w.service().take_changed();
    w.change("a", "session#ann", login("finance")).unwrap();
    assert_eq!((w.group("a").as_str(), w.assignment("a").quarantined), ("finance", false));
    assert!(changes.has_changed().unwrap() && w.service().take_changed().contains("a"));
    changes.mark_unchanged();
    w.change("a", "session#bob", login("admin")).unwrap();
    assert_eq!(w.group("a"), "admin");
    w.clear("a", "session#bob");
    w.set("a", "unrelated", 3);
    assert_eq!(w.group("a"), "finance");
    w.clear("a", "session#ann");
    assert_eq!(w.groups(), ["web", "web", "web"]);

    // A selector that cannot be evaluated any more keeps whom it has, and takes nobody.
    w.clear("a", "unrelated");
    w.change("a", "session#ann", login("finance")).unwrap();
    w.apply(&group("finance", 100, "{ expression: 'tags[0].value == \"finance\"' }"));
    assert_eq!(w.group("a"), "finance");
    w.clear("a", "session#ann");
    assert_eq!((w.group("a").as_str(), w.group("b").as_str()), ("finance", "web"));
    assert!(w.alarms().contains("selector of group finance"), "{}", w.alarms());
}

#[test]
fn while_it_is_held_the_base_group_may_change() {
    let mut w = World::with(SIMPLE);
    w.set("a", "bad", 9);
    w.endpoints.insert("a".into(), BTreeMap::new());
    w.set_inputs();
    assert_eq!((w.group("a").as_str(), w.held("a").from.as_str()), ("strict", "default"));
    w.clear("a", "bad");
    assert_eq!(w.group("a"), "default");
}

#[test]
fn a_device_that_comes_later_is_held_and_one_that_goes_is_waited_for() {
    let w = World::with(SIMPLE);
    w.rows.devices.lock().unwrap().remove("a");
    w.set("a", "bad", 9);
    assert_eq!((w.group("a").as_str(), w.held("a").state.as_str()), ("strict", "waiting"));
    w.rows.devices.lock().unwrap().insert("a".into());
    w.service().attached("a");
    assert_eq!((w.rows.held_in("a").as_deref(), w.held("a").state.as_str()), (Some("strict"), "enforced"));
}
