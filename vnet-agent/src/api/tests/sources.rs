//! The routes of tag sources, and who may send events.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::api::Sources;

/// A scan was told to stop.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Knows one source, `s`, whose user is 4711.
pub(super) struct KnownSources;

impl Sources for KnownSources {
    fn sources(&self) -> Result<Vec<SourceStatus>, Refusal> {
        Ok(vec![SourceStatus { name: "s".to_owned(), ..SourceStatus::default() }])
    }
    fn may_send(&self, source: &str, uid: u32) -> bool {
        source == "s" && uid == 4711
    }
    fn ingest(&self, source: &str, text: &[u8]) -> Result<IngestResponse, Refusal> {
        let faults = vec![format!("{source} {}", String::from_utf8_lossy(text).len())];
        Ok(IngestResponse { events: 1, tags: 0, faults })
    }
    fn scan(&self, _: &str, request: &ScanRequest, stop: &AtomicBool) -> Result<ScanReport, Refusal> {
        if request.endpoint == "slow" {
            let end = Instant::now() + Duration::from_secs(20);
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            STOPPED.store(stop.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Err(Refusal::not_found(format!("no endpoint {}", request.endpoint)))
    }
    fn test(&self, _: &str, config: Option<&Path>) -> Result<SourceTest, Refusal> {
        Ok(SourceTest { notes: vec![format!("{config:?}")], ..SourceTest::default() })
    }
}

#[test]
fn the_routes_of_tag_sources_answer() -> Result<()> {
    let server = Server::start()?;
    let lines = "{\"a\": 1}\n{\"a\": 2}\n";
    let scan = r#"{"endpoint": "vm", "paths": []}"#;
    let cases = [
        (200, "GET", "/v1/sources", None, "/0/name", json!("s")),
        (200, "POST", "/v1/sources/s/events", Some(lines), "/faults/0", json!("s 18")),
        (200, "POST", "/v1/sources/s/events", None, "/faults/0", json!("s 0")),
        (404, "POST", "/v1/sources/s/scan", Some(scan), "/error", json!("no endpoint vm")),
        (422, "POST", "/v1/sources/s/scan", Some("{}"), "", json!(null)),
        (200, "POST", "/v1/sources/s/test", None, "/notes/0", json!("None")),
        (200, "POST", "/v1/sources/s/test?config=/a", None, "/notes/0", json!("Some(\"/a\")")),
        (400, "POST", "/v1/sources/s/test?x=1", None, "", json!(null)),
        (405, "GET", "/v1/sources/s/events", None, "/error", json!("GET cannot be done to /v1/sources/s/events")),
        (404, "POST", "/v1/sources/s", None, "", json!(null)),
    ];
    for (expected, method, path, body, pointer, value) in cases {
        let (status, answer) = server.ask(method, path, body)?;
        let right = pointer.is_empty() || answer.pointer(pointer) == Some(&value);
        assert!(status == expected && right, "{method} {path}: {status} {answer}");
    }
    // Whatever the client calls them.
    let (status, _) = ask(&server.socket, "POST", "/v1/sources/s/events", Some(("application/x-ndjson", lines)))?;
    assert_eq!(status, 200);
    let large = "x".repeat(crate::source::BODY_LIMIT + 1);
    let (status, answer) = server.ask("POST", "/v1/sources/s/events", Some(&large))?;
    assert!(status == 413 && answer["error"].as_str().is_some_and(|why| why.contains("over 4 MiB")), "{status} {answer}");
    Ok(())
}

#[test]
fn a_scan_ends_with_its_request() -> Result<()> {
    let server = Server::start()?;
    let body = r#"{"endpoint": "slow", "paths": []}"#;
    let mut client = UnixStream::connect(&server.socket)?;
    let head = "POST /v1/sources/s/scan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length:";
    client.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes())?;
    std::thread::sleep(Duration::from_millis(100));
    assert!(!STOPPED.load(Ordering::Relaxed));
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !STOPPED.load(Ordering::Relaxed) {
        ensure!(Instant::now() < deadline, "nobody waits for it, and it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn users_of_a_source_may_send_its_events_and_nothing_else() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED users_of_a_source_may_send_its_events_and_nothing_else: needs root, to become someone else");
        return Ok(());
    }
    let server = Server::start()?;
    as_user(4711, || -> Result<()> {
        assert_eq!(server.ask("POST", "/v1/sources/s/events", Some("{}"))?.0, 200);
        for path in [
            "/v1/sources/other/events",
            "/v1/sources/s/scan",
            "/v1/sources/s/test",
            "/v1/sources/%73/events",
            "/v1/sources//events",
            "/v1/sources/s/x/events",
            "/v1/sources/s%2F..%2Fs/events",
            "/v1/apply/../sources/s/events",
            "/v1/sources/s/events/",
            "/v1/apply?/v1/sources/s/events",
            "/v1/detach",
        ] {
            let (status, answer) = server.ask("POST", path, Some("{}"))?;
            assert_eq!(status, 403, "{path}: {answer}");
        }
        Ok(())
    })?;
    as_user(4712, || -> Result<()> {
        assert_eq!(server.ask("POST", "/v1/sources/s/events", Some("{}"))?.0, 403);
        Ok(())
    })
}
