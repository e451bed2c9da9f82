//! What a restart finds.

use super::*;

const SIMPLE: &str = r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#;

fn row(group: &str, held: bool, moves: u32) -> (String, bool, u32) {
    (group.to_owned(), held, moves)
}

#[test]
fn the_stricter_of_datapath_and_store_wins() {
    // (what the datapath has), (what becomes of it), (what is recorded); the store has `a` in `strict` with one move.
    for (found, group, log) in [
        (row("strict", true, 1), "strict", None),
        (row("", false, 0), "strict", Some("recover >strict")),
        (row("", false, 7), "strict", Some("recover >strict")),
        (row("lax", true, 0), "strict", Some("recover lax>strict")),
        (row("lax", true, 2), "lax", Some("recover lax>lax")),
    ] {
        let mut w = World::with(SIMPLE);
        w.set("a", "bad", 9);
        w.rows.rows.lock().unwrap().insert("a".into(), found.clone());
        w.restart();
        assert_eq!(w.group("a"), group, "{found:?}");
        assert_eq!(w.log("a").get(1).map(String::as_str), log, "{found:?}");
        let moves = w.assignment("a").moves;
        assert!(w.rows.rows.lock().unwrap()["a"].2 == moves && moves >= found.2, "{found:?}");
    }
}

#[test]
fn who_was_found_held_stays_until_somebody_knows_why() {
    let mut w = World::with(SIMPLE);
    w.rows.rows.lock().unwrap().insert("a".into(), row("strict", true, 1));
    w.rows.rows.lock().unwrap().insert("b".into(), row("lax", true, 3));
    w.restart();
    assert_eq!(w.groups(), ["strict", "lax", "web"]);
    assert!(w.alarms().contains("nobody knows why"), "{}", w.alarms());
    w.pass(1000);
    w.set("a", "other", 3);
    w.set("b", "bad", 9);
    assert_eq!(w.groups(), ["strict", "lax", "web"], "a transfer to another group is not what held it");
    w.restart();
    w.set("a", "bad", 9);
    assert_eq!((w.held("a").transfer.as_str(), w.held("b").transfer.as_str()), ("bad", ""));
    w.clear("a", "bad");
    w.operate("b", "release", None, "looked at it").unwrap();
    assert_eq!(w.groups(), ["web", "web", "web"]);
}

#[test]
fn who_is_gone_is_still_held_and_can_be_let_go() {
    let mut w = World::with(SIMPLE);
    w.set("a", "bad", 9);
    w.endpoints.remove("a");
    w.rows.devices.lock().unwrap().insert("z".into());
    w.rows.rows.lock().unwrap().insert("z".into(), row("(number 7)", true, 1));
    w.restart();
    assert_eq!(w.service().holds(), [("a".into(), "strict".into()), ("z".into(), "(number 7)".into())].into());
    w.operate("z", "release", None, "looked at it").unwrap();
    w.operate("a", "release", None, "looked at it").unwrap();
    assert!(w.service().holds().is_empty());
    assert_eq!((w.rows.held_in("a"), w.rows.held_in("z")), (None, None));
}

#[test]
fn a_release_that_was_stored_is_completed() {
    let mut w = World::with(SIMPLE);
    w.set("a", "bad", 9);
    w.rows.failing.store(true, Ordering::Relaxed);
    w.clear("a", "bad");
    w.rows.failing.store(false, Ordering::Relaxed);
    assert!(w.rows.held_in("a").is_some() && w.journal.saved.lock().unwrap().members["a"].opening);
    w.restart();
    assert_eq!(w.group("a"), "web");
    assert!(w.log("a").contains(&"recover strict>web".to_owned()), "{:?}", w.log("a"));
    w.restart();
    assert!(!w.journal.saved.lock().unwrap().members["a"].opening, "the datapath was seen open");
}

#[test]
fn a_release_that_is_done_late_is_completed() {
    let mut w = World::with(SIMPLE);
    w.set("a", "bad", 9);
    w.rows.late.store(true, Ordering::Relaxed);
    w.clear("a", "bad");
    // Killed before its set is there, at its first start and again while it recovers.
    for _ in 0..2 {
        assert_eq!(*w.rows.rows.lock().unwrap().get("a").unwrap(), row("strict", true, 2));
        w.restart();
        assert_eq!(w.assignment("a").group, "web");
    }
    w.rows.late.store(false, Ordering::Relaxed);
    w.restart();
    assert_eq!(w.group("a"), "web");
    // One that came later and was not stored is no part of it.
    w.rows.rows.lock().unwrap().insert("a".into(), row("strict", true, 3));
    w.restart();
    assert_eq!((w.group("a").as_str(), w.held("a").transfer.as_str()), ("strict", ""));
}

#[test]
fn everything_is_there_after_a_restart() {
    let mut w = World::with(
        r#"
    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")', minHoldSeconds: 100, maxHoldSeconds: 500 }
    - { name: try, priority: 1, to: lax, mode: dry-run, when: 'tags.exists(t, t.name == "bad")' }
"#,
    );
    w.set_for("a", "bad", 9, Some(300), OnExpiry::Hold);
    w.operate("b", "never", None, "x").unwrap();
    w.set("b", "bad", 9);
    let before = (w.service().tags(None).unwrap(), w.service().quarantine().unwrap(), w.log("a"));
    w.restart();
    assert_eq!((w.service().tags(None).unwrap(), w.service().quarantine().unwrap(), w.log("a")), before);
    assert_eq!(w.service().numbers(), (2, 1, 1));
    let ids = |w: &World| w.service().groups().unwrap().iter().map(|g| (g.name.clone(), g.id)).collect::<Vec<_>>();
    let numbers = ids(&w);
    assert_eq!(numbers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["default", "lax", "strict", "web"]);
    w.restart();
    assert_eq!(ids(&w), numbers);
    let groups = w.service().groups().unwrap();
    assert_eq!((groups[2].endpoints.as_slice(), groups[3].endpoints.len(), groups[0].built_in), (&["a".to_owned()][..], 2, true));
    assert_eq!((groups[2].defaults[0].as_str(), groups[3].defaults[1].as_str(), groups[3].transfers.len()), ("deny", "allow", 2));
}
