//! The routes about quarantine, with the engine behind them.

use super::*;
use crate::api::Quarantine;
use crate::quarantine::tests::World;

const TRANSFER: &str = r#"    - { name: bad, to: strict, when: 'tags.exists(t, t.name == "bad")' }"#;

fn server(world: &World) -> Result<Server> {
    let quarantine = Arc::clone(world.service()) as Arc<dyn Quarantine>;
    Server::start_over(Routes::from(Arc::new(Known) as Arc<dyn Control>).with(quarantine), |socket| socket)
}

#[test]
fn what_is_asked_is_done_and_recorded_with_who_asked() -> Result<()> {
    let world = World::with(TRANSFER);
    let server = server(&world)?;
    let me = nix::unistd::geteuid();
    let name = nix::unistd::User::from_uid(me)?.map_or_else(|| "?".to_owned(), |user| user.name);
    let who = json!(format!("user {name} ({me})"));
    let tag = r#"{"subject": "a", "name": "bad", "severity": 7, "evidence": "seen"}"#;
    let cases = [
        ("GET", "/v1/tags", None, "", json!([])),
        ("POST", "/v1/tags", Some(tag), "/0/source", json!("operator")),
        ("GET", "/v1/tags?subject=a", None, "/0/severity", json!(7)),
        ("GET", "/v1/tags?subject=b", None, "", json!([])),
        ("GET", "/v1/quarantine", None, "/held/0/endpoint", json!("a")),
        ("GET", "/v1/groups", None, "/2/endpoints", json!(["a"])),
        ("POST", "/v1/quarantine/a/release", Some(r#"{"reason": "mine"}"#), "/held", json!([])),
        ("POST", "/v1/quarantine/b/hold", Some(r#"{"reason": "odd", "group": "lax"}"#), "/held/0/group", json!("lax")),
        ("POST", "/v1/quarantine/c/never", Some(r#"{"reason": "router"}"#), "/never/0", json!("c")),
        ("POST", "/v1/tags/remove", Some(r#"{"subject": "a", "name": "bad"}"#), "/0/name", json!("bad")),
        ("GET", "/v1/audit?endpoint=b", None, "/0/action", json!("hold")),
        ("GET", "/v1/audit?endpoint=b", None, "/0/who", who.clone()),
        ("GET", "/v1/audit?endpoint=a&limit=2", None, "/0/action", json!("break-glass")),
        ("GET", "/v1/audit?endpoint=a&limit=2", None, "/0/who", who.clone()),
        ("GET", "/v1/audit?limit=1", None, "/0/who", who),
    ];
    for (method, path, body, pointer, expected) in cases {
        let (status, value) = server.ask(method, path, body)?;
        assert_eq!((status, value.pointer(pointer)), (200, Some(&expected)), "{method} {path}: {value}");
    }
    Ok(())
}

#[test]
fn refusals_say_why() -> Result<()> {
    let world = World::with(TRANSFER);
    let server = server(&world)?;
    for (expected, method, path, body, part) in [
        (404, "POST", "/v1/quarantine/zz/release", Some(r#"{"reason": "x"}"#), "no endpoint `zz`"),
        (404, "POST", "/v1/quarantine/a/free", Some("{}"), "approve, dismiss, hold"),
        (422, "POST", "/v1/quarantine/a/release", Some("{}"), "needs a reason"),
        (409, "POST", "/v1/quarantine/a/release", Some(r#"{"reason": "x"}"#), "a is not held"),
        (404, "POST", "/v1/quarantine/a/hold", Some(r#"{"reason": "x", "group": "web"}"#), "there are: lax, strict"),
        (422, "POST", "/v1/quarantine/a/hold", Some(r#"{"cause": "x"}"#), "unknown field"),
        (422, "POST", "/v1/tags", Some(r#"{"subject": "a", "name": "bad", "severity": 11}"#), "0 to 10"),
        (404, "POST", "/v1/tags", Some(r#"{"subject": "zz", "name": "bad"}"#), "no endpoint `zz`"),
        (404, "POST", "/v1/tags/remove", Some(r#"{"subject": "a", "name": "bad"}"#), "has no tag `bad`"),
        (400, "GET", "/v1/audit?limit=65537", None, "65536"),
        (400, "GET", "/v1/audit?since=1", None, "unknown field"),
        (405, "DELETE", "/v1/tags", None, "cannot be done"),
    ] {
        let (status, value) = server.ask(method, path, body)?;
        let error = value["error"].as_str().unwrap_or_default();
        assert!(status == expected && error.contains(part), "{method} {path}: {status} {value}, not {expected} {part}");
    }
    let without = Server::start()?;
    assert_eq!(without.ask("GET", "/v1/quarantine", None)?.0, 404);
    Ok(())
}

#[test]
fn ordinary_users_look_only() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED ordinary_users_look_only: needs root, to become someone else");
        return Ok(());
    }
    let world = World::with(TRANSFER);
    let server = server(&world)?;
    as_user(65534, || -> Result<()> {
        assert_eq!(server.ask("GET", "/v1/quarantine", None)?.0, 200);
        assert_eq!(server.ask("GET", "/v1/audit", None)?.0, 200);
        for path in ["/v1/tags", "/v1/tags/remove", "/v1/quarantine/a/hold"] {
            assert_eq!(server.ask("POST", path, Some("{}"))?.0, 403, "{path}");
        }
        Ok(())
    })
}
