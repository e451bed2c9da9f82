//! The agent itself: events, explanations and metrics over its socket, and metrics over TCP. Needs root.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{MEMBER, Machine, VIP, become_host, dying_with_test, forward, ping, wait_for};
use vnet_common::api::{EndpointFlowList, Event, Explanation};

const SOCKET: &str = "/run/vnet-test/agent/agent.sock";
const METRICS: &str = "127.0.0.1:9187";

/// The agent, in the caller's namespaces.
struct Agent(Child);

impl Agent {
    fn start(more: &[&str]) -> Self {
        let dirs = ["--bpffs", "/run/vnet-test/bpf", "--state-dir", "/run/vnet-test/state", "--run-dir", "/run/vnet-test/agent"];
        let small = ["--max-flows", "8192", "--max-flows6", "4096", "--max-endpoints", "8", "--max-members", "256"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnet-agent"));
        let child = dying_with_test(command.args(["--attach", "c0"]).args(dirs).args(small).args(more)).spawn().unwrap();
        wait_for("the agent to serve", || Path::new(SOCKET).exists());
        Self(child)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The head and the body of an answer.
fn answer(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> (String, String) {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: vnet\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

fn ask(method: &str, path: &str, body: &str) -> (String, String) {
    answer(UnixStream::connect(SOCKET).unwrap(), method, path, body)
}

/// Events as they come, from a chunked answer.
struct Stream(BufReader<UnixStream>);

impl Stream {
    fn open(path: &str) -> Self {
        let mut stream = UnixStream::connect(SOCKET).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: vnet\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(lines.read_line(&mut head).unwrap(), 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/x-ndjson"), "{head}");
        Self(lines)
    }

    /// The next event, or the end.
    fn next(&mut self) -> Option<Event> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("an event in time") == 0 {
                return None;
            }
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
            if line.trim() == "0" {
                return None;
            }
        }
    }
}

fn yaml() -> String {
    format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec:\n  vips: [{VIP}]\n  protocol: TCP\n  ports: [80]\n  minHealthyPercent: 0\n  \
         members: [{{ name: m, address: {MEMBER} }}]\n  healthCheck: {{ intervalMs: 200, timeoutMs: 100 }}\n"
    )
}

fn lb() -> String {
    serde_json::json!({"files": [{"name": "lb.yaml", "text": yaml()}], "dry_run": false}).to_string()
}

#[test]
fn events_explanations_and_metrics_are_served() {
    become_host();
    forward();
    let (client, _member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    let agent = Agent::start(&["--metrics-listen", METRICS, "--event-rate", "1000"]);

    // Nothing listens at the member: its check fails.
    let mut events = Stream::open("/v1/events?follow=true&kind=health");
    assert!(ask("POST", "/v1/apply", &lb()).0.starts_with("http/1.1 200"));
    let event = events.next().unwrap();
    assert_eq!((&*event.kind, &*event.reason), ("health", "down"));
    assert!(event.message.contains("member m of web (10.0.2.2:80) is down"), "{event:?}");
    let (head, kept) = ask("GET", "/v1/events?kind=health", "");
    assert!(head.contains("200 ok") && kept.contains(r#""reason":"down""#), "{head} {kept}");
    let (head, why) = ask("GET", "/v1/events?kind=helth", "");
    assert!(head.starts_with("http/1.1 400") && why.contains("no kind 'helth'") && why.contains("suppressed"), "{why}");
    let (head, _) = ask("GET", "/v1/events?folow=true", "");
    assert!(head.starts_with("http/1.1 400"), "{head}");

    assert_eq!(ping(&client, [10, 0, 1, 1].into(), 3, "0.01"), (3, 3));
    for stream in [Ok(TcpStream::connect(METRICS).unwrap()), Err(UnixStream::connect(SOCKET).unwrap())] {
        let (head, text) = match stream {
            Ok(tcp) => answer(tcp, "GET", "/metrics", ""),
            Err(unix) => answer(unix, "GET", "/metrics", ""),
        };
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        for series in [
            "vnet_endpoint_packets_total{endpoint=\"c0\",direction=\"egress\",reason=\"not-ours\"}",
            "vnet_member_active_flows{lb=\"web\",member=\"m\"} 0",
            "vnet_map_capacity_entries{map=\"PEERS\"}",
            "vnet_event_followers 1",
        ] {
            assert!(text.lines().any(|l| l.starts_with(series)), "no {series} in\n{text}");
        }
    }
    // Over TCP there is nothing else.
    assert!(answer(TcpStream::connect(METRICS).unwrap(), "GET", "/v1/status", "").0.starts_with("http/1.1 404"));

    let (_, flows) = ask("GET", "/v1/endpoint-flows?endpoint=c0", "");
    assert_eq!(serde_json::from_str::<EndpointFlowList>(&flows).unwrap(), EndpointFlowList::default());
    assert!(ask("GET", "/v1/endpoint-flows?endpoint=nobody", "").0.starts_with("http/1.1 404"));

    let question = r#"{"from":"10.0.1.2","to":"10.9.9.9:80","live":true}"#;
    let (head, text) = ask("POST", "/v1/explain", question);
    assert!(head.starts_with("http/1.1 200"), "{head} {text}");
    let answer: Explanation = serde_json::from_str(&text).unwrap();
    assert_eq!((&*answer.outcome, &*answer.reason), ("refused", "no-member"));
    assert_eq!((answer.hops[0].endpoint.as_str(), answer.differences), ("c0", Some(vec![])));
    let lb = answer.hops[0].stages.iter().find(|s| s.stage == "lb").unwrap();
    assert_eq!(lb.found, "a VIP's port; no member takes new flows");
    let (head, why) = ask("POST", "/v1/explain", r#"{"from":"nobody","to":"10.9.9.9:80"}"#);
    assert!(head.starts_with("http/1.1 404") && why.contains("no endpoint 'nobody'"), "{why}");

    // Files that are not applied: rules, and a load balancer.
    let strict = "apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: { name: default }\nspec: { defaults: { egress: deny, ingress: allow } }\n";
    let other = yaml().replace("10.9.9.9", "10.9.9.8").replace("name: web", "name: other");
    // Its member is known to be down, unless nobody looks.
    let other = other.split("  healthCheck").next().unwrap().to_owned();
    for (file, to, outcome, reason) in [
        (strict, "10.8.8.8:80", "dropped", "denied"),
        (other.as_str(), "10.9.9.8:80", "allowed", "new-flow"),
        (other.as_str(), "10.9.9.9:80", "refused", "no-member"),
    ] {
        let files = [serde_json::json!({"name": "new.yaml", "text": file})];
        let question = serde_json::json!({"from": "10.0.1.2", "to": to, "files": files, "live": true}).to_string();
        let (head, text) = ask("POST", "/v1/explain", &question);
        assert!(head.starts_with("http/1.1 200"), "{head} {text}");
        let answer: Explanation = serde_json::from_str(&text).unwrap();
        assert_eq!((&*answer.outcome, &*answer.reason), (outcome, reason), "{to} {answer:#?}");
        assert_eq!(answer.differences.as_deref(), Some(&[][..]), "{to} {answer:#?}");
        if file == strict {
            let rule = answer.hops[0].rule.as_ref().unwrap();
            assert_eq!((&*rule.resource, &*rule.rule), ("default", "default"));
        }
    }
    let faulty = serde_json::json!({"from": "10.0.1.2", "to": "10.8.8.8:80", "files": [{"name": "a", "text": "kind: Nothing"}]});
    assert!(ask("POST", "/v1/explain", &faulty.to_string()).0.starts_with("http/1.1 422"));

    // Who follows does not hold the agent.
    let start = Instant::now();
    kill(Pid::from_raw(agent.0.id() as i32), Signal::SIGTERM).unwrap();
    while events.next().is_some() {}
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
