//! What operators do, and what they may.

use super::*;
use crate::api::Class;

const SIMPLE: &str = r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#;
const ASKING: &str = r#"
    - { name: ask, priority: 1, to: strict, mode: require-approval, when: 'tags.exists(t, t.severity >= 8)' }
    - { name: bad, to: lax, when: 'tags.exists(t, t.severity >= 5)' }
"#;

fn class(done: Result<(), Refusal>) -> Option<Class> {
    done.err().map(|refusal| refusal.class)
}

#[test]
fn break_glass_lets_go_until_a_tag_is_set_anew() {
    let mut w = World::with(SIMPLE);
    w.set("a", "bad", 9);
    assert_eq!(class(w.operate("a", "release", None, "  ")), Some(Class::Invalid), "it needs a reason");
    assert_eq!(
        class(w.operate("a", "release", None, &"x".repeat(513))),
        Some(Class::Invalid),
        "the log would not keep all of it"
    );
    w.operate("a", "release", None, "the CEO's").unwrap();
    assert_eq!(w.group("a"), "web");
    w.pass(100);
    w.restart();
    w.set("a", "other", 9);
    assert_eq!(w.group("a"), "web", "the tag from before does not move it");
    w.set("a", "bad", 9);
    assert_eq!(w.group("a"), "strict");
    assert_eq!(class(w.operate("b", "release", None, "x")), Some(Class::Conflict));
    let record = w.service().audit(Some("a"), 100).unwrap().into_iter().find(|r| r.action == "break-glass").unwrap();
    assert_eq!(
        (record.who.as_str(), record.reason.as_str(), record.from.as_str(), record.to.as_str()),
        (USER, "the CEO's", "strict", "web")
    );
}

#[test]
fn after_break_glass_a_criterion_that_no_tag_meets_waits_for_tags() {
    let w = World::with(r#"    - { name: unproven, to: strict, when: '!tags.exists(t, t.name == "attested")' }"#);
    assert_eq!(w.groups(), ["strict", "strict", "strict"]);
    w.operate("a", "release", None, "it is").unwrap();
    w.pass(10);
    assert_eq!(w.group("a"), "web");
    w.set("a", "attested", 0);
    assert_eq!(w.group("a"), "web");
    w.clear("a", "attested");
    assert_eq!(w.group("a"), "strict", "the criterion had ended, and holds again");
}

#[test]
fn moves_wait_for_approval() {
    let mut w = World::with(ASKING);
    w.set("a", "x", 8);
    assert_eq!(w.group("a"), "lax", "what does not have to wait does not");
    let pending = w.pending();
    assert_eq!((pending[0].endpoint.as_str(), pending[0].to.as_str(), pending[0].because.as_str()), ("a", "strict", "mode"));
    w.restart();
    w.operate("a", "approve", None, "").unwrap();
    assert_eq!((w.group("a").as_str(), w.pending().len()), ("strict", 0));
    assert_eq!(class(w.operate("a", "approve", None, "")), Some(Class::Conflict));
    w.clear("a", "x");
    assert_eq!(w.group("a"), "web");
    assert_eq!(w.log("a"), ["move web>lax", "pending >strict", "approve lax>strict", "move lax>strict", "release strict>web"]);
    w.set("b", "x", 8);
    w.clear("b", "x");
    assert_eq!(w.pending().len(), 0, "nothing asks for it any more");
}

#[test]
fn what_was_dismissed_is_not_asked_again_by_the_same_tags() {
    let mut w =
        World::with(r#"    - { name: ask, to: strict, mode: require-approval, when: 'tags.exists(t, t.name == "bad")' }"#);
    w.set("a", "bad", 8);
    w.operate("a", "dismiss", None, "a test").unwrap();
    w.restart();
    w.set("a", "other", 8);
    assert_eq!((w.pending().len(), w.group("a").as_str()), (0, "web"));
    w.set("a", "bad", 8);
    assert_eq!(w.pending().len(), 1);
}

#[test]
fn holds_by_hand_end_by_hand() {
    let w = World::with(SIMPLE);
    w.operate("a", "hold", Some("lax"), "looking at it").unwrap();
    assert_eq!(w.group("a"), "lax");
    w.set("a", "bad", 9);
    w.clear("a", "bad");
    w.pass(10_000);
    assert_eq!((w.group("a").as_str(), w.held("a").transfer.as_str()), ("lax", ""));
    w.operate("a", "hold", Some("strict"), "worse").unwrap();
    assert_eq!(w.group("a"), "strict");
    for (group, expected) in [(None, Class::Invalid), (Some("web"), Class::NotFound), (Some("zz"), Class::NotFound)] {
        assert_eq!(class(w.operate("a", "hold", group, "x")), Some(expected), "{group:?}");
    }
    w.operate("a", "release", None, "done").unwrap();
    assert_eq!(w.group("a"), "web");
    assert_eq!(w.log("a"), ["hold web>lax", "hold lax>strict", "break-glass strict>web"]);
}

#[test]
fn whoever_is_on_the_list_is_never_moved() {
    let mut w = World::with(SIMPLE);
    w.operate("a", "never", None, "the router").unwrap();
    w.set("a", "bad", 9);
    w.restart();
    assert_eq!((w.group("a").as_str(), w.pending()[0].because.as_str()), ("web", "never-list"));
    assert_eq!(w.service().quarantine().unwrap().never, ["a"]);
    assert_eq!(class(w.operate("a", "approve", None, "")), Some(Class::Conflict));
    assert_eq!(class(w.operate("a", "hold", Some("lax"), "x")), Some(Class::Conflict));
    w.operate("a", "unnever", None, "").unwrap();
    assert_eq!(w.group("a"), "strict");
    assert_eq!(class(w.operate("a", "never", None, "x")), Some(Class::Conflict), "it is held");
    assert_eq!(class(w.operate("b", "unnever", None, "")), Some(Class::Conflict));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let w = World::with(SIMPLE);
    for (endpoint, verb, group, expected) in [
        ("zz", "release", None, Class::NotFound),
        ("a", "free", None, Class::NotFound),
        ("a", "release", Some("strict"), Class::Invalid),
        ("a", "dismiss", None, Class::Conflict),
    ] {
        assert_eq!(class(w.operate(endpoint, verb, group, "x")), Some(expected), "{endpoint} {verb}");
    }
    assert_eq!(class(w.operate("a", "never", None, &"x".repeat(2000))), Some(Class::Invalid));
    assert!(w.log("a").is_empty());
}

fn request(subject: &str, name: &str, severity: u8) -> TagRequest {
    TagRequest { subject: subject.into(), name: name.into(), severity, ..TagRequest::default() }
}

#[test]
fn operators_tag() {
    let mut w = World::with(SIMPLE);
    w.tag(TagRequest { ttl_seconds: Some(60), ..request("a", "bad", 7) }).unwrap();
    assert_eq!(w.group("a"), "strict");
    let tag = &w.service().tags(None).unwrap()[0];
    assert_eq!((tag.source.as_str(), tag.confidence, tag.expires_at_ms), ("operator", 100, Some(tag.set_at_ms + 60_000)));
    w.set("a", "bad", 3);
    let removed = w.service().remove_tag(USER, &request("a", "bad", 0)).unwrap();
    assert_eq!((removed[0].source.as_str(), w.group("a").as_str()), ("operator", "strict"));
    let refused = w.service().remove_tag(USER, &request("a", "bad", 0)).unwrap_err();
    assert!(refused.class == Class::NotFound && refused.response.error.contains("source `ids`"), "{refused}");
    w.service().remove_tag(USER, &TagRequest { source: Some("ids".into()), ..request("a", "bad", 0) }).unwrap();
    assert_eq!(w.group("a"), "web");
    for bad in [
        request("zz", "bad", 1),
        request("a", "no good", 1),
        request("a", "bad", 11),
        TagRequest { ttl_seconds: Some(0), ..request("a", "bad", 1) },
        TagRequest { value: "\x1b[2J".into(), ..request("a", "bad", 1) },
        TagRequest { source: Some("ids".into()), ..request("a", "bad", 1) },
        TagRequest { confidence: Some(101), ..request("a", "bad", 1) },
    ] {
        assert!(w.tag(bad.clone()).is_err(), "{bad:?}");
    }

    // A resource says what operators may.
    w.apply("apiVersion: vnet/v1alpha1\nkind: TagSource\nmetadata: { name: operator }\nspec: { type: operator, allow: [{ tag: 'note.*', maxSeverity: 2 }] }");
    w.tag(request("a", "note.x", 2)).unwrap();
    assert_eq!(class(w.tag(request("a", "note.x", 3))), Some(Class::Invalid));
    assert_eq!(class(w.tag(request("a", "bad", 1))), Some(Class::Invalid));
    w.set("a", "bad", 3);
    let refused = w.service().remove_tag(USER, &TagRequest { source: Some("ids".into()), ..request("a", "bad", 0) });
    assert_eq!(refused.unwrap_err().class, Class::Invalid);
    assert_eq!(w.group("a"), "strict");
    let who: Vec<String> =
        w.service().audit(None, 100).unwrap().into_iter().filter(|r| r.action == "tag-refused").map(|r| r.who).collect();
    assert!(!who.is_empty() && who.iter().all(|who| who == USER));
}

#[test]
fn who_is_held_on_another_host_is_held_until_it_is_let_go_on_either() {
    let mut w = World::with(SIMPLE);
    w.service().follow("a", Some("strict"), "host-b");
    assert_eq!(w.group("a"), "strict");
    w.pass(100);
    w.restart();
    assert_eq!(w.group("a"), "strict", "no tag led to it, and none lets it go");
    // It is stored when it is done.
    w.service().follow("b", Some("lax"), "host-b");
    w.start();
    assert_eq!((w.group("b").as_str(), w.held("b").reason.as_str()), ("lax", "it is held on host host-b"));
    w.set("a", "bad", 9);
    w.clear("a", "bad");
    assert_eq!(w.group("a"), "strict");
    w.service().follow("a", None, "host-b");
    assert_eq!(w.group("a"), "web");
    w.operate("b", "release", None, "it is well").unwrap();
    assert_eq!(w.group("b"), "web");
    let last = w.service().audit(Some("a"), 1).unwrap().pop().unwrap();
    assert_eq!((last.action.as_str(), last.who.as_str()), ("release", "host host-b"));
    assert!(w.service().remembers("a") && !w.service().remembers("c"));
}
