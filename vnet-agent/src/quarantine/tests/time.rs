//! Holds, expiries and clocks.

use super::*;

const BAD: &str = r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")', minHoldSeconds: 600 }"#;

#[test]
fn jumps_of_the_wall_clock_neither_release_nor_lose_an_expiry() {
    for jump in [-7_200_000, 7_200_000, -1_800_000_000_000, 90_000_000_000] {
        let mut w = World::with(BAD);
        w.set_for("a", "bad", 9, Some(900), OnExpiry::Release);
        w.set_for("b", "bad", 9, Some(300), OnExpiry::Release);
        w.clock.jump(jump);
        w.pass_ms(599_999);
        w.clock.jump(-jump / 2);
        w.restart();
        assert_eq!(w.groups(), ["strict", "strict", "web"], "{jump}");
        w.pass_ms(1);
        assert_eq!(w.groups(), ["strict", "web", "web"], "{jump}");
        w.clock.jump(jump);
        w.restart();
        w.pass_ms(299_999);
        assert_eq!(w.group("a"), "strict", "{jump}");
        w.pass_ms(1);
        assert_eq!(w.groups(), ["web", "web", "web"], "{jump}");
    }
}

#[test]
fn a_reboot_stops_the_time() {
    let mut w = World::with(BAD);
    w.set_for("a", "bad", 9, Some(900), OnExpiry::Release);
    w.pass(500);
    w.clear("a", "bad");
    w.service = None;
    w.clock.reboot(86_400_000);
    w.start();
    assert_eq!(w.group("a"), "strict");
    w.pass(99);
    assert_eq!(w.group("a"), "strict");
    w.pass(1);
    assert_eq!(w.group("a"), "web");
}

#[test]
fn an_agent_that_was_dead_is_not_late() {
    let mut w = World::with(BAD);
    w.set_for("a", "bad", 9, Some(900), OnExpiry::Release);
    w.service = None;
    w.clock.pass(900_000);
    w.start();
    w.pass_ms(0);
    assert_eq!(w.group("a"), "web", "hold and expiry were over while no agent ran");
}

#[test]
fn expiry_may_hold() {
    let w = World::with(
        r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad" && (t.expired || t.severity > 0))' }"#,
    );
    w.set_for("a", "bad", 9, Some(10), OnExpiry::Hold);
    w.pass(100);
    assert_eq!(w.group("a"), "strict");
    let tags = w.service().tags(Some("a")).unwrap();
    assert!(tags[0].expired && tags[0].hold_on_expiry);
    w.clear("a", "bad");
    assert_eq!(w.group("a"), "web");
    w.set_for("a", "bad", 9, Some(10), OnExpiry::Release);
    w.pass_ms(9_999);
    w.set_for("a", "bad", 9, Some(10), OnExpiry::Release);
    w.pass_ms(9_999);
    assert_eq!(w.group("a"), "strict", "it was set anew");
    w.pass_ms(1);
    assert_eq!(w.group("a"), "web");
    let expired = w.service().audit(None, 100).unwrap().iter().filter(|r| r.action == "tag-expire").count();
    assert_eq!(expired, 2);
}

#[test]
fn ages_count_in_criteria_to_the_second() {
    let w = World::with(
        r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad" && t.age >= 3)', releaseWhen: 'tags.all(t, t.age >= 8)' }"#,
    );
    w.pass_ms(123);
    w.set("a", "bad", 1);
    w.pass_ms(2_999);
    assert_eq!(w.group("a"), "web");
    w.pass_ms(1);
    assert_eq!(w.group("a"), "strict");
    w.pass_ms(4_999);
    assert_eq!(w.group("a"), "strict");
    w.pass_ms(1);
    assert_eq!(w.group("a"), "web");
    w.pass(20);
    assert_eq!(w.group("a"), "web", "not by the same tag");
}

#[test]
fn a_maximum_hold_ends_whatever_the_criterion_says() {
    let w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")', maxHoldSeconds: 60 }"#);
    w.set("a", "bad", 9);
    w.pass_ms(59_999);
    assert_eq!(w.group("a"), "strict");
    w.pass_ms(1);
    assert_eq!(w.group("a"), "web");
    w.pass(1000);
    assert_eq!(w.group("a"), "web");
    w.set("a", "bad", 9);
    assert_eq!(w.group("a"), "strict");
}

#[test]
fn who_comes_back_time_and_again_is_held_longer() {
    let mut w = World::with(
        r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")', flapDamping: { moves: 3, withinSeconds: 100, holdSeconds: 500 } }"#,
    );
    for _ in 0..2 {
        w.set("a", "bad", 9);
        w.clear("a", "bad");
        assert_eq!(w.group("a"), "web");
        w.pass(10);
    }
    w.restart();
    w.set("a", "bad", 9);
    w.clear("a", "bad");
    w.pass_ms(499_999);
    assert_eq!(w.group("a"), "strict");
    w.pass_ms(1);
    assert_eq!(w.group("a"), "web");
    w.set("a", "bad", 9);
    w.clear("a", "bad");
    assert_eq!(w.group("a"), "web", "those before are long ago");
}

#[test]
fn a_lost_source_keeps_whom_it_holds() {
    let mut w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#);
    w.apply("apiVersion: vnet/v1alpha1\nkind: TagSource\nmetadata: { name: ids }\nspec: { type: clamav, allow: [{ tag: '*' }], lostAfterSeconds: 60 }");
    w.set_for("a", "bad", 9, Some(100), OnExpiry::Release);
    w.set_for("b", "bad", 9, Some(50), OnExpiry::Release);
    w.pass_ms(59_999);
    assert!(!w.is_lost("ids"));
    assert_eq!(w.groups(), ["strict", "web", "web"]);
    w.pass(1000);
    assert!(w.is_lost("ids"), "{}", w.alarms());
    assert_eq!(w.group("a"), "strict", "its time stands still");
    // An operator may still take the tag away, but not the hold with it.
    let request = TagRequest { subject: "a".into(), name: "bad".into(), source: Some("ids".into()), ..TagRequest::default() };
    w.restart();
    assert!(w.is_lost("ids"));
    w.pass(1000);
    assert_eq!(w.group("a"), "strict");
    w.service().heard("ids");
    w.pass(39);
    assert_eq!((w.group("a").as_str(), w.is_lost("ids")), ("strict", false));
    w.pass(2);
    assert_eq!(w.group("a"), "web", "forty seconds were left");

    w.set("a", "bad", 9);
    w.pass(60);
    w.service().remove_tag(USER, &request).unwrap();
    w.pass(10);
    assert_eq!(
        (w.group("a").as_str(), w.held("a").waiting_for.as_str()),
        ("strict", "source ids, which is lost, to be heard again")
    );
    w.service().heard("ids");
    w.pass_ms(0);
    assert_eq!(w.group("a"), "web");

    // Deleted with tags of it that stay, and applied again.
    w.set("a", "bad", 9);
    let source = w.sources.clone();
    w.sources.clear();
    w.set_inputs();
    w.pass(100);
    w.sources = source;
    w.set_inputs();
    w.pass(59);
    assert!(!w.is_lost("ids"), "it had no time to be heard");
    w.pass(1);
    assert!(w.is_lost("ids"));
}

#[test]
fn many_expire_at_once() {
    let mut w = World::with(BAD);
    for n in 0..1000 {
        w.endpoints.insert(format!("vm{n}"), BTreeMap::new());
    }
    w.set_inputs();
    for n in 0..1000 {
        w.set_for(&format!("vm{n}"), "x", 1, Some(10), OnExpiry::Release);
    }
    w.pass(9);
    assert_eq!(w.service().numbers().0, 1000);
    w.pass(1);
    assert_eq!(w.service().numbers().0, 0);
    w.endpoints.clear();
    w.set_inputs();
    assert!(w.journal.saved.lock().unwrap().members.is_empty(), "nothing is to be remembered of them");
}

#[test]
fn the_threads_keep_time() {
    let w = World::with(r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#);
    let clock: Arc<dyn super::super::clock::Clock> = Arc::new(super::super::clock::SystemClock::new().unwrap());
    let service = Service::open(Arc::clone(&w.journal) as Arc<_>, Arc::clone(&w.rows) as Arc<_>, clock);
    let mut w = World { service: Some(Arc::new(service.unwrap())), ..w };
    w.set_inputs();
    let running = w.service().start().unwrap();
    let mut worst = Duration::ZERO;
    for _ in 0..5 {
        let change = TagChange {
            subject: "a".into(),
            source: "ids".into(),
            name: "bad".into(),
            instance: String::new(),
            operation: set(9, Some(1), OnExpiry::Release),
        };
        let begun = std::time::Instant::now();
        w.service().apply_event(&change).unwrap();
        assert_eq!(w.rows.held_in("a").as_deref(), Some("strict"));
        while w.rows.held_in("a").is_some() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it is not let go");
            std::thread::sleep(Duration::from_millis(1));
        }
        worst = worst.max(begun.elapsed().saturating_sub(Duration::from_secs(1)));
    }
    println!("released {worst:?} after the criterion held, at worst of 5");
    assert!(worst < Duration::from_millis(100), "{worst:?}");
    drop(running);
    assert!(w.journal.saved.lock().unwrap().tags.is_empty());
    w.service = None;
}
