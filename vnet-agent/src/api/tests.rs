//! The HTTP layer, over real unix sockets. Behind it is a control logic that knows one load balancer.

mod quarantine;
mod sources;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use vnet_common::api::moving::{FlowExport, FlowImport};
use vnet_common::api::*;

use super::{Control, Refusal, Routes, Socket, serve_on};

struct Known;

impl Control for Known {
    fn attach(&self, request: AttachRequest) -> Result<EndpointStatus, Refusal> {
        Err(Refusal::conflict(format!("device '{}' is not there", request.device)))
    }
    fn rules(&self, _: Option<&str>) -> Result<Vec<RuleStatus>, Refusal> {
        Ok(Vec::new())
    }
    fn status(&self) -> Result<Status, Refusal> {
        Ok(Status { version: "9.9.9".to_owned(), ..Status::default() })
    }
    fn apply(&self, request: ApplyRequest) -> Result<ApplyResponse, Refusal> {
        match request.files.first().map(|file| file.text.as_str()) {
            Some("panic") => panic!("as asked"),
            Some("slow") => std::thread::sleep(Duration::from_millis(400)),
            Some("broken") => return Err(anyhow::anyhow!("no space").context("storing").into()),
            Some("conflict") => return Err(Refusal::conflict("taken")),
            Some("fault") => {
                let fault = Fault { file: "a.yaml".into(), line: 3, column: 5, message: "no".into(), snippet: String::new() };
                return Err(Refusal::faults("the files have faults", vec![fault]));
            }
            _ => {}
        }
        Ok(ApplyResponse { changes: Vec::new(), warnings: vec![request.files.len().to_string()], effects: None })
    }
    fn resources(&self, kind: Option<&str>) -> Result<Vec<Value>, Refusal> {
        let all = [
            json!({"kind": "LoadBalancer", "metadata": {"name": "web"}}),
            json!({"kind": "Endpoint", "metadata": {"name": "a"}}),
        ];
        Ok(all.into_iter().filter(|resource| kind.is_none_or(|kind| resource["kind"] == kind)).collect())
    }
    fn delete(&self, request: DeleteRequest) -> Result<ApplyResponse, Refusal> {
        let names: Vec<String> = request.resources.iter().map(|(kind, name)| format!("{kind}/{name}")).collect();
        Err(Refusal::not_found(names.join(" ")))
    }
    fn endpoints(&self) -> Result<Vec<EndpointStatus>, Refusal> {
        Ok(Vec::new())
    }
    fn lbs(&self) -> Result<Vec<LbStatus>, Refusal> {
        Ok(vec![self.lb("web")?])
    }
    fn lb(&self, name: &str) -> Result<LbStatus, Refusal> {
        Ok(LbStatus { name: name.to_owned(), ..LbStatus::default() })
    }
    fn change_member(&self, lb: &str, member: &str, change: MemberChange) -> Result<LbStatus, Refusal> {
        let state = format!("{change:?}");
        let member = MemberStatus { name: member.to_owned(), state, ..MemberStatus::default() };
        Ok(LbStatus { name: lb.to_owned(), members: vec![member], ..LbStatus::default() })
    }
    fn flows(&self, lb: Option<&str>, limit: usize) -> Result<FlowList, Refusal> {
        let flow = FlowStatus { lb: lb.unwrap_or("all").to_owned(), ..FlowStatus::default() };
        Ok(FlowList { flows: vec![flow], total: limit as u64 })
    }
    fn export_flows(&self, endpoint: &str) -> Result<FlowExport, Refusal> {
        Ok(FlowExport { endpoint: endpoint.to_owned(), ..FlowExport::default() })
    }
    fn import_flows(&self, endpoint: &str, export: &FlowExport) -> Result<FlowImport, Refusal> {
        Ok(FlowImport { endpoint: endpoint.to_owned(), taken: export.flows.len() as u64, ..FlowImport::default() })
    }
    fn detach(&self) -> Result<DetachResponse, Refusal> {
        Ok(DetachResponse { devices: vec!["tap0".to_owned()], flows: 1 })
    }
}

/// A served socket in a directory of its own; ends with the value.
struct Server {
    directory: PathBuf,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    done: Option<tokio::task::JoinHandle<Result<()>>>,
    runtime: Runtime,
}

fn directory() -> Result<PathBuf> {
    let directory = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-api-XXXXXX"))?;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

impl Server {
    fn start() -> Result<Self> {
        Self::start_with(|socket| socket)
    }

    fn start_with(set_up: impl FnOnce(Socket) -> Socket) -> Result<Self> {
        let sources = Arc::new(sources::KnownSources) as Arc<dyn super::Sources>;
        Self::start_over(Routes::from(Arc::new(Known) as Arc<dyn Control>).with(sources), set_up)
    }

    fn start_over(routes: Routes, set_up: impl FnOnce(Socket) -> Socket) -> Result<Self> {
        let directory = directory()?;
        let socket = directory.join("run/agent.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let bound = runtime.block_on(async { Socket::bind(&socket) })?;
        let done = runtime.spawn(serve_on(set_up(bound), routes, async {
            let _ = stopped.await;
        }));
        Ok(Self { directory, socket, stop: Some(stop), done: Some(done), runtime })
    }

    /// Tells it to end, and waits until it has.
    fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        let done = self.done.take().context("ended before")?;
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), done).await })??
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Result<(u16, Value)> {
        ask(&self.socket, method, path, body.map(|body| ("application/json", body)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn ask(socket: &Path, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<(u16, Value)> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    if let Some((kind, body)) = body {
        request += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    } else {
        request += "\r\n";
    }
    answer(&raw(socket, request.as_bytes())?)
}

/// Sends bytes, and gives all that comes back.
fn raw(socket: &Path, bytes: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // The server may have its say, and close, before it has read all.
    let _ = stream.write_all(bytes);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn answer(text: &str) -> Result<(u16, Value)> {
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {text:?}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, serde_json::from_str(body).with_context(|| format!("not JSON: {body:?}"))?))
}

#[test]
fn every_route_answers() -> Result<()> {
    let server = Server::start()?;
    let files = r#"{"files": [{"name": "a", "text": ""}], "dry_run": true}"#;
    let cases = [
        ("GET", "/v1/status", None, "/version", json!("9.9.9")),
        ("POST", "/v1/apply", Some(files), "/warnings/0", json!("1")),
        ("GET", "/v1/resources/all", None, "/1/kind", json!("Endpoint")),
        ("GET", "/v1/resources/loadbalancer", None, "/0/metadata/name", json!("web")),
        ("GET", "/v1/resources/LoadBalancer/web", None, "/kind", json!("LoadBalancer")),
        ("GET", "/v1/endpoints", None, "", json!([])),
        ("GET", "/v1/lb", None, "/0/name", json!("web")),
        ("GET", "/v1/lb/a%2Fb", None, "/name", json!("a/b")),
        ("POST", "/v1/lb/web/members/fd00::1", Some(r#"{"drained": true}"#), "/members/0/name", json!("fd00::1")),
        ("GET", "/v1/flows", None, "/total", json!(100)),
        ("GET", "/v1/endpoints/web-1/flows", None, "/endpoint", json!("web-1")),
        ("GET", "/v1/flows?lb=web&limit=5", None, "/flows/0/lb", json!("web")),
        ("POST", "/v1/detach", None, "/devices/0", json!("tap0")),
    ];
    for (method, path, body, pointer, expected) in cases {
        let (status, value) = server.ask(method, path, body)?;
        assert_eq!((status, value.pointer(pointer)), (200, Some(&expected)), "{method} {path}: {value}");
    }
    Ok(())
}

#[test]
fn refusals_are_json_with_their_status() -> Result<()> {
    let server = Server::start()?;
    let file = |text: &str| json!({"files": [{"name": "a", "text": text}], "dry_run": false}).to_string();
    let (broken, conflict, fault, panic) = (file("broken"), file("conflict"), file("fault"), file("panic"));
    let cases = [
        (404, "GET", "/", None, "nothing at /"),
        (404, "GET", "/v1/resources/Endpoint/zz", None, "no resource Endpoint 'zz'"),
        (400, "GET", "/v1/resources/cats", None, "no kind 'cats'"),
        (405, "DELETE", "/v1/status", None, "DELETE cannot be done to /v1/status"),
        (404, "DELETE", "/v1/resources/loadBalancer/x", None, "LoadBalancer/x"),
        (
            404,
            "POST",
            "/v1/delete",
            Some(r#"{"resources":[["endpoint","a"],["loadbalancer","x"]],"ignore_not_found":false}"#),
            "Endpoint/a LoadBalancer/x",
        ),
        (400, "POST", "/v1/apply", Some("{"), "EOF"),
        (422, "POST", "/v1/apply", Some("{}"), "missing field `files`"),
        (409, "POST", "/v1/apply", Some(conflict.as_str()), "taken"),
        (422, "POST", "/v1/apply", Some(fault.as_str()), "the files have faults"),
        (500, "POST", "/v1/apply", Some(broken.as_str()), "storing: no space"),
        (500, "POST", "/v1/apply", Some(panic.as_str()), "broke down"),
        (400, "POST", "/v1/lb/web/members/a", Some("{}"), "nothing to change"),
        (422, "POST", "/v1/lb/web/members/a", Some(r#"{"weight": 1001}"#), "0 to 1000"),
        (400, "GET", "/v1/flows?limit=99999999", None, "65536"),
        (422, "POST", "/v1/endpoints/web-1/flows", Some(r#"{"version": 1}"#), "missing field `endpoint`"),
        (400, "GET", "/v1/flows?limit=x", None, "invalid digit"),
        (400, "GET", "/v1/flows?lbs=web", None, "unknown field"),
        (400, "GET", "/v1/lb/%FF", None, "UTF-8"),
    ];
    for (expected, method, path, body, part) in cases {
        let (status, value) = server.ask(method, path, body)?;
        let error = value["error"].as_str().unwrap_or_default();
        assert!(status == expected && error.contains(part), "{method} {path}: {status} {value}, not {expected} {part}");
    }
    let (status, value) = ask(&server.socket, "POST", "/v1/apply", Some(("text/plain", "x")))?;
    assert!(status == 415 && value["error"].is_string(), "{status} {value}");
    let (_, value) = server.ask("POST", "/v1/apply", Some(&fault))?;
    assert_eq!(value["faults"][0]["line"], 3);
    Ok(())
}

#[test]
fn too_much_and_garbage_leave_it_serving() -> Result<()> {
    let server = Server::start()?;
    let announced = "POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99000000\r\nConnection: close\r\n\r\n{";
    let (status, value) = answer(&raw(&server.socket, announced.as_bytes())?)?;
    assert!(status == 413 && value["error"].is_string(), "{status} {value}");
    let big = format!("{{\"files\": [], \"dry_run\": true, \"x\": \"{}\"}}", "x".repeat(17 << 20));
    let chunked = format!(
        "POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{big}\r\n0\r\n\r\n",
        big.len()
    );
    let text = raw(&server.socket, chunked.as_bytes())?;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 413"), "{text}");
    for garbage in [&b"\0\xff\xfe garbage\r\n\r\n"[..], b"GET", b"GET / HTTP/9\r\n\r\n", &[b'A'; 600_000], b"\r\n\r\n", b""] {
        let mut stream = UnixStream::connect(&server.socket)?;
        let _ = stream.write_all(garbage);
    }
    let nested = format!("{{\"other\": {}{}, \"dry_run\": true}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(server.ask("POST", "/v1/apply", Some(&nested))?.0, 422);
    assert_eq!(server.ask("GET", "/v1/status", None)?.0, 200);
    Ok(())
}

/// Runs `work` with another effective user and group.
fn as_user<T: Send>(id: u32, work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
            // SAFETY: the raw calls take three integers; they change this thread, which ends after `work`, and no other.
            let failed = unsafe { libc::syscall(call, -1, id, -1) };
            assert_eq!(failed, 0, "becoming user {id}: {}", std::io::Error::last_os_error());
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn ordinary_users_read_but_do_not_change() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED ordinary_users_read_but_do_not_change: needs root, to become someone else");
        return Ok(());
    }
    let server = Server::start()?;
    assert_eq!(std::fs::metadata(&server.socket)?.permissions().mode() & 0o777, 0o666);
    as_user(65534, || -> Result<()> {
        assert_eq!(server.ask("GET", "/v1/status", None)?.0, 200);
        for (method, path) in [("POST", "/v1/apply"), ("DELETE", "/v1/resources/LoadBalancer/web"), ("POST", "/v1/detach")] {
            let (status, value) = server.ask(method, path, Some("{}"))?;
            let error = value["error"].as_str().unwrap_or_default();
            assert!(
                status == 403 && error.contains("group 'vnet'") && error.contains("nobody"),
                "{method} {path}: {status} {value}"
            );
        }
        Ok(())
    })?;
    assert_eq!(server.ask("POST", "/v1/detach", None)?.0, 200);
    Ok(())
}

#[test]
fn the_group_that_was_named_may_change_things() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED the_group_that_was_named_may_change_things: needs root, to become someone else");
        return Ok(());
    }
    let group = nix::unistd::Group::from_gid(65534.into())?.context("group 65534 has a name")?;
    let server = Server::start_with(|socket| socket.for_group("vnet-no-such-group"))?;
    let (status, value) = as_user(65534, || server.ask("POST", "/v1/detach", None))?;
    assert!(status == 403 && value["error"].as_str().is_some_and(|e| e.contains("'vnet-no-such-group'")), "{status} {value}");
    let server = Server::start_with(|socket| socket.for_group(&group.name))?;
    assert_eq!(as_user(65534, || server.ask("POST", "/v1/detach", None))?.0, 200);
    Ok(())
}

#[test]
fn ordinary_users_cannot_use_up_all_connections() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED ordinary_users_cannot_use_up_all_connections: needs root, to become someone else");
        return Ok(());
    }
    let server = Server::start()?;
    let held = as_user(65534, || (0..64).map(|_| UnixStream::connect(&server.socket)).collect::<Result<Vec<_>, _>>())?;
    // They are accepted in order: when this one is answered, all those are in.
    assert_eq!(server.ask("GET", "/v1/status", None)?.0, 200);
    assert_eq!(as_user(65534, || raw(&server.socket, b"GET /v1/status HTTP/1.0\r\n\r\n"))?, "");
    // Who has used up none is not locked out.
    assert_eq!(as_user(4711, || server.ask("GET", "/v1/status", None))?.0, 200);
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(5);
    while as_user(65534, || server.ask("GET", "/v1/status", None)).is_err() {
        ensure!(Instant::now() < deadline, "the places of closed connections are not free again");
    }
    Ok(())
}

#[test]
fn who_says_nothing_is_hung_up_on_and_who_has_asked_is_not() -> Result<()> {
    let server = Server::start_with(|mut socket| {
        socket.patience = Duration::from_secs(1);
        socket
    })?;
    let mut silent = UnixStream::connect(&server.socket)?;
    silent.set_read_timeout(Some(Duration::from_secs(10)))?;
    silent.write_all(b"GET /v1/status HTTP/1.1\r\nHost:")?;
    assert_eq!(silent.read(&mut [0; 64])?, 0);
    let mut slow = UnixStream::connect(&server.socket)?;
    slow.set_read_timeout(Some(Duration::from_secs(10)))?;
    let head =
        "POST /v1/apply HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n";
    slow.write_all(head.as_bytes())?;
    std::thread::sleep(Duration::from_millis(1500));
    slow.write_all(br#"{"files": [], "dry_run": true}"#)?;
    let mut text = String::new();
    slow.read_to_string(&mut text)?;
    assert_eq!(answer(&text)?.0, 200);
    Ok(())
}

#[test]
fn ordinary_users_keep_no_connection_that_they_do_not_use() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED ordinary_users_keep_no_connection_that_they_do_not_use: needs root, to become someone else");
        return Ok(());
    }
    let server = Server::start()?;
    let text = as_user(65534, || raw(&server.socket, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"))?;
    assert!(text.starts_with("HTTP/1.1 200") && text.to_lowercase().contains("connection: close"), "{text}");
    Ok(())
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() -> Result<()> {
    let mut server = Server::start()?;
    let bind =
        |path: &Path| server.runtime.block_on(async { Socket::bind(path) }).map(drop).map_err(|error| format!("{error:#}"));
    let taken = bind(&server.socket).unwrap_err();
    assert!(taken.contains("another agent") && taken.contains(&format!("process {}", std::process::id())), "{taken}");
    assert_eq!(server.ask("GET", "/v1/status", None)?.0, 200);

    let stale = server.directory.join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale)?);
    assert_eq!(bind(&stale), Ok(()));

    let file = server.directory.join("file.sock");
    std::fs::write(&file, "precious")?;
    assert!(bind(&file).unwrap_err().contains("something else"));
    assert_eq!(std::fs::read_to_string(&file)?, "precious");

    server.end()?;
    assert!(!server.socket.exists(), "its socket is left");
    let left: Vec<_> = std::fs::read_dir(server.directory.join("run"))?.collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn what_is_under_way_is_answered_and_who_hangs_is_left() -> Result<()> {
    let mut server = Server::start()?;
    let socket = server.socket.clone();
    let slow = r#"{"files": [{"name": "a", "text": "slow"}], "dry_run": true}"#;
    let asking = std::thread::spawn(move || ask(&socket, "POST", "/v1/apply", Some(("application/json", slow))));
    std::thread::sleep(Duration::from_millis(100));
    let mut hangs = UnixStream::connect(&server.socket)?;
    hangs.write_all(b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n")?;
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    server.end()?;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let (status, _) = asking.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    assert_eq!(status, 200);
    Ok(())
}
