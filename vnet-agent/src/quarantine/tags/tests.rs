//! The table of tags.

use super::*;

fn key(subject: &str, source: &str, name: &str, instance: &str) -> TagKey {
    TagKey { subject: subject.into(), source: source.into(), name: name.into(), instance: instance.into() }
}

fn state(severity: u8, expires: Option<u64>) -> TagState {
    TagState { severity, expires, ..TagState::default() }
}

fn small() -> TagTable {
    TagTable { limits: Limits { endpoint_source: 3, endpoint: 5, source: 8, total: 12 }, ..TagTable::default() }
}

#[test]
fn tags_are_told_apart_by_four_things() {
    let mut t = TagTable::default();
    for (n, k) in
        [key("a", "s", "x", ""), key("b", "s", "x", ""), key("a", "r", "x", ""), key("a", "s", "y", ""), key("a", "s", "x", "1")]
            .into_iter()
            .enumerate()
    {
        assert_eq!(t.set(k, state(1, None)).0, SetOutcome::New);
        assert_eq!(t.count(), n + 1);
    }
    assert_eq!(t.set(key("a", "s", "x", ""), state(1, None)).0, SetOutcome::Unchanged);
    let state_of = |evidence: &str, severity| TagState { evidence: evidence.into(), ..state(severity, None) };
    assert_eq!(t.set(key("a", "s", "x", ""), state_of("e", 1)).0, SetOutcome::Refreshed);
    assert_eq!(t.set(key("a", "s", "x", ""), state_of("e", 2)).0, SetOutcome::Changed);
    assert_eq!(t.clear(&key("a", "s", "x", "")).map(|s| s.severity), Some(2));
    assert_eq!(t.clear(&key("a", "s", "x", "")), None);
    assert_eq!((t.of("a").count(), t.count(), t.take_touched().len()), (3, 4, 4));
}

#[test]
fn tags_expire_are_marked_or_go_and_stand_still() {
    let mut t = TagTable::default();
    t.set(key("a", "s", "x", ""), state(1, Some(10)));
    t.set(key("a", "s", "y", ""), TagState { hold_on_expiry: true, ..state(1, Some(20)) });
    assert_eq!((t.next_expiry(), t.expire(9, 10).len()), (Some(10), 0));
    t.set(key("a", "s", "x", ""), state(1, Some(15)));
    assert_eq!((t.next_expiry(), t.expire(14, 10).len()), (Some(15), 0));
    let gone = t.expire(25, 10);
    assert_eq!(gone.iter().map(|(k, _, gone)| (k.name.as_str(), *gone)).collect::<Vec<_>>(), [("x", true), ("y", false)]);
    assert!(t.of("a").all(|(_, s)| s.expired) && t.next_expiry().is_none());

    t.set(key("b", "s", "z", ""), state(1, Some(30)));
    t.stop("s");
    assert!(t.expire(1000, 10).is_empty());
    t.go_on("s", 975);
    assert_eq!((t.expire(1004, 10).len(), t.expire(1005, 10).len()), (0, 1));
    assert_eq!(t.count(), 1, "what expired is not expired again");
}

#[test]
fn what_is_more_severe_or_newer_stays() {
    let mut t = small();
    for (name, severity) in [("a", 5), ("b", 2), ("c", 9)] {
        t.set(key("v", "s", name, ""), state(severity, None));
    }
    let (outcome, evicted) = t.set(key("v", "s", "d", ""), state(5, None));
    assert_eq!((outcome, evicted[0].name.as_str()), (SetOutcome::New, "b"));
    assert_eq!(t.set(key("v", "s", "e", ""), state(4, None)), (SetOutcome::Dropped, vec![]));
    let (_, evicted) = t.set(key("v", "s", "f", ""), state(5, None));
    assert_eq!(evicted[0].name, "a", "as severe, but older");
    assert_eq!(t.set(key("v", "s", "d", ""), state(0, None)).0, SetOutcome::Changed, "what is there is updated whatever it is");
    // Other sources have their own room on the endpoint, up to its end.
    for (source, name) in [("r", "a"), ("q", "a")] {
        assert_eq!(t.set(key("v", source, name, ""), state(9, None)).0, SetOutcome::New);
    }
    let (_, evicted) = t.set(key("v", "p", "a", ""), state(1, None));
    assert_eq!(evicted[0].name, "d");
}

#[test]
fn a_source_and_the_whole_have_limits() {
    let mut t = small();
    for n in 0..20 {
        t.set(key(&format!("v{n}"), "s", "x", ""), state(1, None));
    }
    assert_eq!(t.count(), 8);
    assert!(t.of("v19").count() == 1 && t.of("v11").count() == 0);
    for n in 0..20 {
        t.set(key(&format!("v{n}"), "r", "x", ""), state(2, None));
    }
    assert_eq!(t.count(), 12);
    let counts: BTreeMap<&str, usize> = t.counts().collect();
    assert_eq!((counts["s"] + counts["r"], counts["r"] >= 5), (12, true));
}

#[test]
fn a_flood_leaves_the_newest_state_of_the_most_severe() {
    let mut t = TagTable::default();
    t.set(key("v", "ids", "malware", ""), state(9, None));
    let mut dropped = 0;
    for n in 0..100_000_u32 {
        let (outcome, evicted) = t.set(key("v", "ids", "scan", &n.to_string()), state(3, None));
        dropped += evicted.len() + usize::from(outcome == SetOutcome::Dropped);
    }
    t.set(key("v", "ids", "malware", ""), TagState { value: "new".into(), ..state(8, None) });
    assert_eq!((t.count(), dropped), (64, 100_001 - 64));
    assert_eq!(t.get(&key("v", "ids", "malware", "")).map(|s| (s.value.as_str(), s.severity)), Some(("new", 8)));
    assert!(t.get(&key("v", "ids", "scan", "99999")).is_some() && t.get(&key("v", "ids", "scan", "5")).is_none());
    assert!(t.subjects.len() == 1 && t.ranks["ids"].len() == 64 && t.expiries.is_empty() && t.touched.len() == 64);
}

#[test]
fn what_could_not_be_stored_is_asked_for_again() {
    let mut t = small();
    let names = |writes: &[TagWrite]| {
        writes.iter().map(|w| format!("{}{}{}", w.key.name, u8::from(w.state.is_some()), u8::from(w.fresh))).collect::<Vec<_>>()
    };
    t.set(key("v", "s", "a", ""), state(1, None));
    t.set(key("v", "s", "b", ""), state(1, None));
    let writes = t.take_touched();
    assert_eq!((names(&writes), t.is_touched()), (vec!["a11".to_owned(), "b11".to_owned()], false));
    t.clear(&key("v", "s", "a", ""));
    t.give_back(writes);
    assert_eq!(names(&t.take_touched()), ["b11"], "`a` came and went");
    t.clear(&key("v", "s", "b", ""));
    let writes = t.take_touched();
    assert_eq!(names(&writes), ["b00"]);
    t.give_back(writes);
    t.set(key("v", "s", "b", ""), state(1, None));
    t.clear(&key("v", "s", "b", ""));
    assert_eq!(names(&t.take_touched()), ["b00"], "the store still has it");
}
