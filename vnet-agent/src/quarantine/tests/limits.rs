//! Brakes, rights, floods, and what happens when the store or the datapath fails.

use super::*;

fn braked(brakes: &str) -> World {
    let mut w = World::new(&format!(
        r#"
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: {{ name: web }}
spec:
  selector: {{ matchLabels: {{ app: web }} }}
  brakes: {brakes}
  transfers:
    - {{ name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }}
"#
    ));
    for n in 0..10 {
        w.endpoints.insert(format!("vm{n}"), BTreeMap::from([("app".into(), "web".into())]));
        w.rows.devices.lock().unwrap().insert(format!("vm{n}"));
    }
    w.set_inputs();
    w
}

fn held(w: &World) -> usize {
    w.service().quarantine().unwrap().held.len()
}

#[test]
fn brakes_let_so_many_through_and_the_rest_waits() {
    // Ten per cent of thirteen are two.
    for brakes in
        ["{ maxEndpoints: 2, windowSeconds: 60 }", "{ maxPercent: 10, windowSeconds: 60 }", "{ maxEndpoints: 2, maxPercent: 90 }"]
    {
        let mut w = braked(brakes);
        for n in 0..5 {
            w.set(&format!("vm{n}"), "bad", 9);
        }
        assert_eq!((held(&w), w.pending().len()), (2, 3), "{brakes}");
        assert!(
            w.pending().iter().all(|p| p.because == "brake" && p.reason.contains("2 of 13 endpoints were moved in 60 s")),
            "{:?}",
            w.pending()
        );
        w.restart();
        w.set("vm5", "bad", 9);
        assert_eq!((held(&w), w.pending().len()), (2, 4), "{brakes}: after a restart too");
        w.operate("vm2", "approve", None, "").unwrap();
        assert_eq!((held(&w), w.pending().len()), (3, 3));
        w.pass(61);
        w.set("vm3", "bad", 9);
        assert_eq!((held(&w), w.pending().len()), (3, 3), "what waits is for an operator to say");
        w.set("vm6", "bad", 9);
        assert_eq!(held(&w), 4, "a new window");
        w.clear("vm3", "bad");
        assert_eq!(w.pending().len(), 2);
    }
}

#[test]
fn what_nobody_asks_for_any_more_is_forgotten() {
    let day = 24 * 3600;
    let mut w = braked("{ maxEndpoints: 100, windowSeconds: 60 }");
    for name in ["vm0", "vm1", "vm2", "vm3"] {
        w.set(name, "bad", 9);
    }
    for name in ["vm0", "vm3"] {
        w.clear(name, "bad");
    }
    w.operate("vm2", "release", None, "a false alarm").unwrap();
    let all = w.endpoints.clone();
    w.endpoints.retain(|name, _| !name.starts_with("vm"));
    w.set_inputs();
    let known =
        |w: &World| w.journal.saved.lock().unwrap().members.keys().filter(|n| n.starts_with("vm")).cloned().collect::<Vec<_>>();
    w.pass(29 * day);
    w.restart();
    assert_eq!(known(&w), ["vm0", "vm1", "vm2", "vm3"]);
    w.endpoints.insert("vm3".into(), all["vm3"].clone());
    w.set_inputs();
    w.endpoints.remove("vm3");
    w.set_inputs();
    w.pass(2 * day);
    w.set_inputs();
    assert_eq!(known(&w), ["vm1", "vm2", "vm3"], "one is held, one was let go by hand, one was here of late");
    let windows = |w: &World| w.journal.saved.lock().unwrap().common.windows.len();
    assert_eq!(windows(&w), 1);
    w.delete_group("web");
    assert_eq!(windows(&w), 0);
}

#[test]
fn brakes_may_stop_everything_and_do_not_count_operators() {
    let w = braked("{ maxPercent: 0 }");
    w.operate("vm1", "hold", Some("lax"), "x").unwrap();
    w.set("vm0", "bad", 9);
    assert_eq!((held(&w), w.pending().len()), (1, 1));
    assert!(w.alarms().contains("vm0: a move waits for approval"), "{}", w.alarms());
}

#[test]
fn sources_do_what_they_may() {
    let mut w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#);
    w.apply("apiVersion: vnet/v1alpha1\nkind: TagSource\nmetadata: { name: ids }\nspec: { type: clamav, allow: [{ tag: 'ids.*', maxSeverity: 5, clear: false }, { tag: bad, set: false }, { tag: 'ids.high', maxSeverity: 9 }] }");
    let refused = |endpoint: &str, name: &str, operation| w.change(endpoint, name, operation).unwrap_err().to_string();
    w.set("a", "ids.x", 5);
    w.set("a", "ids.high", 9);
    assert_eq!(refused("a", "ids.x", set(6, None, OnExpiry::Release)), "it may set tag `ids.x` up to severity 5, not 6");
    assert_eq!(refused("a", "bad", set(1, None, OnExpiry::Release)), "it may not set tag `bad`");
    assert_eq!(refused("a", "ids.x", Operation::Clear), "it may not clear tag `ids.x`");
    assert!(refused("zz", "ids.x", set(1, None, OnExpiry::Release)).contains("no endpoint `zz`"));
    assert_eq!(w.change("a", "bad", Operation::Clear), Ok(TagApplied::Absent));
    w.tag(TagRequest { subject: "a".into(), name: "bad".into(), ..TagRequest::default() }).unwrap();
    assert_eq!(w.change("a", "bad", Operation::Clear), Ok(TagApplied::Absent), "another's tag is not there for it");
    assert_eq!(w.group("a"), "strict");
    let forged = TagChange {
        subject: "a".into(),
        source: "stranger".into(),
        name: "ids.x".into(),
        instance: String::new(),
        operation: Operation::Clear,
    };
    assert!(w.service().apply_event(&forged).unwrap_err().to_string().contains("no TagSource `stranger`"));
    assert_eq!((w.service().source_counts("ids").refused, w.service().source_counts("").refused), (4, 1));
    let records = w.service().audit(None, 100).unwrap();
    assert_eq!(records.iter().filter(|r| r.action == "tag-refused").count(), 5);
    for _ in 0..5000 {
        assert!(w.service().apply_event(&forged).is_err());
    }
    w.pass(10);
    assert!(w.service().apply_event(&forged).is_err());
    let records = w.service().audit(None, 10_000).unwrap();
    assert!(records.iter().filter(|r| r.action == "tag-refused").count() < 30);
    assert!(records.iter().any(|r| r.reason.contains("more, which are not recorded")));
}

#[test]
fn a_long_value_keeps_no_tag_from_being_set() {
    let w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#);
    let long = |length: usize| {
        let mut operation = set(9, None, OnExpiry::Release);
        if let Operation::Set { value, .. } = &mut operation {
            *value = "x".repeat(length);
        }
        w.change("a", "bad", operation)
    };
    // Sources cut theirs to 1 KiB.
    assert!(long(1025).is_err_and(|why| why.to_string().contains("more than 1024 characters")));
    assert_eq!(w.group("a"), "web");
    long(1024).unwrap();
    assert_eq!(w.group("a"), "strict");
}

#[test]
fn a_flood_is_taken_and_bounded() {
    let w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad" && t.value == "")' }"#);
    w.set("a", "bad", 9);
    // A debug build takes minutes for the whole of it.
    let alerts = if cfg!(debug_assertions) { 3_000 } else { 100_000_u32 };
    for n in 0..alerts {
        let change = TagChange {
            subject: "a".into(),
            source: "ids".into(),
            name: "noise".into(),
            instance: (n % (alerts / 2)).to_string(),
            operation: set(9, None, OnExpiry::Release),
        };
        w.service().apply_event(&change).unwrap();
        if n % 1000 == 0 {
            w.store();
        }
    }
    w.pass_ms(0);
    assert_eq!(w.service().tags(Some("a")).unwrap().len(), 64);
    assert_eq!(w.service().source_counts("ids").dropped, u64::from(alerts) + 1 - 64);
    assert!(w.service().tags(Some("a")).unwrap().iter().any(|t| t.instance == (alerts / 2 - 1).to_string()));
    assert_eq!(w.group("a"), "strict", "the tag that held it fell out, and that does not let it go");
    assert!(w.held("a").waiting_for.contains("more tags for it than are kept"), "{:?}", w.held("a"));
    assert_eq!(w.journal.saved.lock().unwrap().tags.len(), 64);
    let records = w.service().audit(None, usize::MAX).unwrap();
    assert!(records.len() < 3000, "{}", records.len());
    for tag in w.service().tags(Some("a")).unwrap() {
        w.clear("a", &format!("{}#{}", tag.name, tag.instance));
    }
    assert_eq!(w.group("a"), "web");
}

#[test]
fn without_a_store_holds_go_on_and_releases_wait() {
    let w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#);
    w.set("a", "bad", 9);
    w.journal.failing.store(true, Ordering::Relaxed);
    w.set("b", "bad", 9);
    w.clear("a", "bad");
    assert_eq!((w.rows.held_in("a").as_deref(), w.rows.held_in("b").as_deref()), (Some("strict"), Some("strict")));
    assert!(w.held("a").waiting_for.contains("to be stored") && w.alarms().contains("cannot be stored"), "{}", w.alarms());
    assert!(w.operate("b", "release", None, "x").unwrap_err().to_string().contains("not stored yet"));
    assert!(w.rows.held_in("b").is_some());
    w.journal.failing.store(false, Ordering::Relaxed);
    w.store();
    assert_eq!((w.groups(), w.alarms()), (["web", "web", "web"].map(str::to_owned), String::new()));
    assert_eq!(w.log("b"), ["move web>strict", "break-glass strict>web"], "nothing is recorded twice, or lost");
}

#[test]
fn a_hold_comes_before_a_release_that_was_not_stored() {
    let w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#);
    w.set("a", "bad", 9);
    w.journal.failing.store(true, Ordering::Relaxed);
    w.clear("a", "bad");
    w.set("a", "bad", 9);
    w.journal.failing.store(false, Ordering::Relaxed);
    w.store();
    assert_eq!(w.group("a"), "strict");
    assert_eq!(w.log("a"), ["move web>strict", "release strict>web", "move strict>strict"]);
}

#[test]
fn what_the_datapath_could_not_do_is_tried_again() {
    let w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#);
    w.rows.failing.store(true, Ordering::Relaxed);
    w.set("a", "bad", 9);
    assert_eq!(w.held("a").state, "failed: quarantine strict cannot be enforced: no room for its set");
    w.pass(3);
    assert!(w.rows.held_in("a").is_none() && w.alarms().contains("tried again every second"), "{}", w.alarms());
    assert_eq!(w.log("a"), ["move web>strict", "error >"], "said once");
    w.rows.failing.store(false, Ordering::Relaxed);
    w.pass(1);
    assert_eq!((w.group("a").as_str(), w.held("a").state.as_str()), ("strict", "enforced"));
    w.rows.failing.store(true, Ordering::Relaxed);
    w.clear("a", "bad");
    assert!(w.rows.held_in("a").is_some());
    w.pass(2);
    w.rows.failing.store(false, Ordering::Relaxed);
    w.pass(1);
    assert_eq!(w.group("a"), "web");
}
