//! A served API in a directory of its own, and the built program against it. Behind the API is a control logic that keeps
//! resources in memory and has made-up counters. In front of it is a server with the routes of [`crate::fake`].

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use vnet_agent::api::{Control, Quarantine, Refusal, Routes, Socket, Sources, serve_on};
use vnet_common::api::moving::{FLOW_EXPORT, FlowExport, FlowImport, MovedFlow, RefusedFlow};
use vnet_common::api::*;

use crate::fake;
use crate::shared::{self, Fleet};

/// The resources and members at the start.
pub const WEB: &str = "\
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata:
  name: web
  labels: {app: shop}
spec:
  vips: [10.0.0.100, 'fd00::100']
  protocol: TCP
  ports: [80, 443]
  healthCheck: {intervalMs: 500, timeoutMs: 1500}
";

/// A security group, a policy and a tag source.
pub const POLICY: &str = "\
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  defaults: {ingress: deny}
  transfers:
  - {name: infected, to: strict, when: 'tags.exists(t, t.severity >= 7)', minHoldSeconds: 60, mode: require-approval}
  brakes: {maxPercent: 10}
---
apiVersion: vnet/v1alpha1
kind: Policy
metadata: {name: base}
spec:
  tier: security
  priority: 10
  appliedTo: {groups: [web, db]}
  egress:
  - {name: no-ssh, action: deny, ports: [{protocol: TCP, port: 22}]}
---
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: {name: suricata}
spec:
  type: suricata
  allow: [{tag: 'ids.*', maxSeverity: 8}]
  mappings:
  - {name: alerts, when: 'event.event_type == \"alert\"', subject: {addressFrom: event.src_ip}, tag: ids.malware}
";

/// Keeps resources, the members of `web`, and what `fake` keeps.
pub struct Memory {
    resources: Mutex<Vec<Value>>,
    members: Mutex<Vec<MemberStatus>>,
    /// Grows with each look at counters, and they with it.
    pub looks: AtomicU64,
    pub tags: Mutex<Vec<Tag>>,
    pub quarantine: Mutex<QuarantineStatus>,
    /// Requests, by what they were about.
    pub asked: Mutex<Vec<(String, Value)>>,
    /// What was changed of members, by load balancer and member.
    pub overrides: Mutex<BTreeMap<(String, String), Value>>,
    /// The fleet, if there is one.
    pub fleet: tokio::sync::Mutex<Option<Fleet>>,
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn name(resource: &Value) -> &str {
    resource["metadata"]["name"].as_str().unwrap_or_default()
}

fn member(name: &str, address: &str, flows: u64) -> MemberStatus {
    MemberStatus {
        name: name.to_owned(),
        address: address.to_owned(),
        port: Some(8080),
        weight: 1,
        state: "active".to_owned(),
        active_flows: flows,
        new_flows: flows * 10,
        established: flows * 9,
        connect: ConnectTimes { total_us: flows * 2150, buckets: [flows * 9, flows, 0, 0, 0, 0, 0, 0] },
        bytes: [flows * 1500, flows * 150_000],
        ..MemberStatus::default()
    }
}

impl Memory {
    fn new() -> Self {
        let mut down = member("c", "fd00::13", 0);
        down.state = "down".to_owned();
        down.health = Some("connection refused".to_owned());
        let web = serde_saphyr::from_str(WEB).unwrap();
        Self {
            resources: Mutex::new(vec![web]),
            members: Mutex::new(vec![member("a", "10.0.0.11", 3), member("b", "10.0.0.12", 1), down]),
            looks: AtomicU64::new(0),
            tags: Mutex::default(),
            quarantine: Mutex::default(),
            asked: Mutex::default(),
            overrides: Mutex::default(),
            fleet: tokio::sync::Mutex::default(),
        }
    }

    fn status_of(&self, resource: &Value) -> LbStatus {
        let strings = |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect();
        let members = if name(resource) == "web" { self.members.lock().unwrap().clone() } else { Vec::new() };
        LbStatus {
            name: name(resource).to_owned(),
            vips: strings(&resource["spec"]["vips"]),
            protocol: "TCP".to_owned(),
            ports: vec![80, 443],
            port_ranges: vec![],
            algorithm: "maglev".into(),
            delivery: "stack".to_owned(),
            members,
        }
    }

    /// Has a resource, as if it had been applied.
    pub fn put_resource(&self, document: &Value) {
        self.put(document, false);
    }

    /// Has none any more.
    pub fn forget_resources(&self) {
        self.resources.lock().unwrap().clear();
    }

    fn put(&self, document: &Value, dry_run: bool) -> Change {
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        let at = resources.iter().position(|old| old["kind"] == document["kind"] && name(old) == name(document));
        let (action, diff) = match at.map(|at| &resources[at]) {
            None => (Action::Created, "@@ -0,0 +1 @@\n+new: true\n"),
            Some(old) if old == document => (Action::Unchanged, ""),
            Some(_) => (Action::Configured, "@@ -1 +1 @@\n-old: true\n+new: true\n"),
        };
        if !dry_run {
            match at {
                Some(at) => resources[at] = document.clone(),
                None => resources.push(document.clone()),
            }
        }
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        Change { kind, name: name(document).to_owned(), action, diff: diff.to_owned() }
    }
}

impl Control for Memory {
    fn export_flows(&self, endpoint: &str) -> Result<FlowExport, Refusal> {
        if endpoint != "web-1" {
            return Err(Refusal::not_found(format!("there is no endpoint '{endpoint}' on this host")));
        }
        let flow = MovedFlow {
            protocol: 6,
            local: "10.0.1.11:40000".parse().unwrap(),
            remote: "10.96.0.10:80".parse().unwrap(),
            member: Some("10.0.0.11:8080".parse().unwrap()),
            local_port_there: None,
            inbound: false,
            replied: true,
            picked_up: false,
            ended: [false; 2],
            packets: [3, 2],
            bytes: [300, 200],
            age_seconds: 9,
            idle_seconds: 1,
        };
        Ok(FlowExport { version: FLOW_EXPORT, endpoint: endpoint.to_owned(), flows: vec![flow], left: 2 })
    }
    fn import_flows(&self, endpoint: &str, export: &FlowExport) -> Result<FlowImport, Refusal> {
        let (known, other): (Vec<_>, Vec<_>) = export.flows.iter().partition(|flow| flow.remote.port() == 80);
        let refused = other.iter().map(|flow| RefusedFlow {
            local: flow.local,
            remote: flow.remote,
            reason: "no such load balancer".to_owned(),
        });
        let (taken, refused) = (known.len() as u64, refused.collect());
        Ok(FlowImport { endpoint: endpoint.to_owned(), taken, known: 0, refused })
    }
    fn status(&self) -> Result<Status, Refusal> {
        let map = |name: &str, used, capacity| MapStatus {
            name: name.into(),
            holds: "flows".into(),
            used,
            capacity,
            memory_bytes: 1 << 26,
        };
        Ok(Status {
            version: "1.2.3".to_owned(),
            pid: 42,
            uptime_seconds: 7500,
            rss_bytes: 12 << 20,
            endpoints: 2,
            load_balancers: 1,
            alarms: vec!["the flow table is 91% full: raise --flows".to_owned()],
            maps: vec![map("flows", Some(910), 1000), map("config", None, 1)],
            fleet: self.fleet.blocking_lock().as_ref().map(shared::brief),
            ..Status::default()
        })
    }
    fn apply(&self, request: ApplyRequest) -> Result<ApplyResponse, Refusal> {
        let mut documents: Vec<Value> = Vec::new();
        let mut faults = Vec::new();
        for file in &request.files {
            for (i, line) in file.text.lines().enumerate().filter(|(_, line)| line.contains("prots")) {
                let snippet = format!("  |\n{} | {line}\n  |   ^^^^^", i + 1);
                let message = "unknown field `prots`, did you mean `ports`?".to_owned();
                faults.push(Fault { file: file.name.clone(), line: i as u32 + 1, column: 3, message, snippet });
            }
            if file.text.contains("slow") {
                std::thread::sleep(Duration::from_secs(4));
            }
            documents
                .extend(serde_saphyr::from_multiple::<Value>(&file.text).map_err(|error| Refusal::invalid(error.to_string()))?);
        }
        documents.retain(|document| document["discovered"] != true);
        if !faults.is_empty() {
            return Err(Refusal::faults("nothing was applied", faults));
        }
        let mut changes: Vec<Change> = documents.iter().map(|document| self.put(document, request.dry_run)).collect();
        if !request.dry_run {
            let delete = DeleteRequest { resources: request.delete, ignore_not_found: true };
            changes.extend(self.delete(delete)?.changes);
        }
        let warned = documents.iter().any(|document| name(document) == "odd");
        Ok(ApplyResponse {
            changes,
            warnings: warned.then(|| "loadbalancer/odd has no members".to_owned()).into_iter().collect(),
            effects: (request.dry_run && documents.iter().any(|document| document["kind"] == "Policy")).then(effects),
        })
    }
    fn resources(&self, kind: Option<&str>) -> Result<Vec<Value>, Refusal> {
        let all = self.resources.lock().unwrap().clone();
        Ok(all.into_iter().filter(|resource| kind.is_none_or(|kind| resource["kind"] == kind)).collect())
    }
    fn delete(&self, request: DeleteRequest) -> Result<ApplyResponse, Refusal> {
        let mut resources = self.resources.lock().unwrap();
        let is = |old: &Value, (kind, wanted): &(String, String)| old["kind"] == *kind && name(old) == wanted;
        let (there, missing): (Vec<_>, Vec<_>) =
            request.resources.into_iter().partition(|wanted| resources.iter().any(|old| is(old, wanted)));
        if !missing.is_empty() && !request.ignore_not_found {
            return Err(Refusal::not_found(format!("there is no {missing:?}")));
        }
        resources.retain(|old| !there.iter().any(|wanted| is(old, wanted)));
        let change = |(kind, name)| Change { kind, name, action: Action::Deleted, diff: String::new() };
        Ok(ApplyResponse { changes: there.into_iter().map(change).collect(), warnings: Vec::new(), effects: None })
    }
    fn endpoints(&self) -> Result<Vec<EndpointStatus>, Refusal> {
        let resources = self.resources(Some("Endpoint"))?;
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        let applied = resources.iter().map(|resource| EndpointStatus {
            name: name(resource).to_owned(),
            mac: resource["spec"]["mac"].as_str().map(str::to_owned),
            policy: "policed".to_owned(),
            bytes: [looks << 20, 0],
            packets: [(
                "egress".to_owned(),
                [("flow-quota", 40), ("vlan", 10), ("established", 700)]
                    .map(|(reason, count)| (reason.to_owned(), looks * count))
                    .into(),
            )]
            .into(),
            ..EndpointStatus::default()
        });
        let found = EndpointStatus {
            name: "tap0".to_owned(),
            discovered: true,
            id: 1,
            device: "tap0".to_owned(),
            ifindex: 7,
            state: "attached".to_owned(),
            mac: Some("52:54:00:00:00:01".to_owned()),
            addresses: vec!["10.0.0.1".to_owned()],
            group: "web".to_owned(),
            policy: "policed".to_owned(),
            identity: 17,
            bytes: [2048, 10],
            packets: [(
                "egress".to_owned(),
                [("lb-new-flow", 4), ("flow-quota", 2), ("not-ip", 6)].map(|(reason, count)| (reason.to_owned(), count)).into(),
            )]
            .into(),
            ..EndpointStatus::default()
        };
        Ok(applied.chain([found]).collect())
    }
    fn attach(&self, request: AttachRequest) -> Result<EndpointStatus, Refusal> {
        self.attached(request)
    }
    fn rules(&self, endpoint: Option<&str>) -> Result<Vec<RuleStatus>, Refusal> {
        Ok(self.rules_about(endpoint))
    }
    fn lbs(&self) -> Result<Vec<LbStatus>, Refusal> {
        Ok(self.resources(Some("LoadBalancer"))?.iter().map(|resource| self.status_of(resource)).collect())
    }
    fn lb(&self, wanted: &str) -> Result<LbStatus, Refusal> {
        self.lbs()?
            .into_iter()
            .find(|lb| lb.name == wanted)
            .ok_or_else(|| Refusal::not_found(format!("no load balancer {wanted}")))
    }
    fn change_member(&self, lb: &str, wanted: &str, change: MemberChange) -> Result<LbStatus, Refusal> {
        self.lb(lb)?;
        let mut members = self.members.lock().unwrap();
        let Some(member) = members.iter_mut().find(|member| member.name == wanted) else {
            return Err(Refusal::not_found(format!("no member {wanted}")));
        };
        if let Some(drained) = change.drained {
            member.state = if drained { "draining" } else { "active" }.to_owned();
            member.active_flows = 0;
        }
        if let Some(weight) = change.weight {
            member.weight = u16::try_from(weight).unwrap_or(1);
        }
        drop(members);
        let mut overrides = self.overrides.lock().unwrap();
        let key = (lb.to_owned(), wanted.to_owned());
        let value = overrides.entry(key.clone()).or_insert_with(|| json!({"drained": false, "weight": null}));
        if let Some(drained) = change.drained {
            value["drained"] = drained.into();
        }
        if let Some(weight) = change.weight {
            value["weight"] = if weight < 0 { Value::Null } else { weight.into() };
        }
        if *value == json!({"drained": false, "weight": null}) {
            overrides.remove(&key);
        }
        drop(overrides);
        self.lb(lb)
    }
    fn flows(&self, lb: Option<&str>, limit: usize) -> Result<FlowList, Refusal> {
        lb.map(|lb| self.lb(lb)).transpose()?;
        let flow = |port: usize| FlowStatus {
            protocol: "TCP".to_owned(),
            client: format!("10.0.0.1:{}", 40_000 + port),
            vip: "10.0.0.100:80".to_owned(),
            member: "10.0.0.11:8080".to_owned(),
            state: "established".to_owned(),
            bytes: [1024, 2048],
            age_seconds: 75,
            idle_seconds: 3,
            ..FlowStatus::default()
        };
        Ok(FlowList { flows: (0..limit.min(200)).map(flow).collect(), total: 200 })
    }
    fn detach(&self) -> Result<DetachResponse, Refusal> {
        Ok(DetachResponse { devices: vec!["tap0".to_owned(), "tap1".to_owned()], flows: 200 })
    }
}

/// What a change of a policy does.
fn effects() -> Effects {
    Effects {
        rules_added: vec![fake::rule("no-ssh")],
        rules_removed: vec![fake::rule("web-out")],
        endpoints: vec![("tap0".to_owned(), "other rules".to_owned())],
        flows_cut: vec![(fake::flow("10.0.0.9:22"), Some(fake::rule("no-ssh")))],
        flows_moved: vec![(fake::flow("10.0.0.100:80"), "10.0.0.12:8080".to_owned())],
        flows_total: [3, 1],
    }
}

/// The API, served; and a place for files.
pub struct Host {
    pub directory: PathBuf,
    /// Everything.
    pub socket: PathBuf,
    /// The agent's own server: without the routes of [`crate::fake`], but it sees who asks.
    pub agent: PathBuf,
    pub memory: Arc<Memory>,
    _runtime: Runtime,
}

/// Asks the server at `socket` the same.
async fn forward(socket: &Path, request: Request) -> Response {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap().map(Body::new)
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Host {
    pub fn start() -> Self {
        let directory = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-ctl-XXXXXX")).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        let socket = directory.join("agent.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (memory, agent) = (Arc::new(Memory::new()), directory.join("real.sock"));
        let bound = runtime.block_on(async { Socket::bind(&agent) }).unwrap();
        let (control, sources, quarantine): (Arc<dyn Control>, Arc<dyn Sources>, Arc<dyn Quarantine>) =
            (memory.clone(), memory.clone(), memory.clone());
        let routes = Routes::from(control).with(sources).with(quarantine);
        runtime.spawn(serve_on(bound, routes, std::future::pending()));
        let inner = agent.clone();
        let front = fake::router(memory.clone())
            .merge(shared::router(memory.clone()))
            .fallback(async move |request: Request| forward(&inner, request).await);
        let listener = runtime.block_on(async { UnixListener::bind(&socket) }).unwrap();
        runtime.spawn(async move { axum::serve(listener, front).await });
        Self { directory, socket, agent, memory, _runtime: runtime }
    }

    /// The last request about this.
    pub fn asked(&self, what: &str) -> Value {
        let asked = self.memory.asked.lock().unwrap();
        asked.iter().rev().find(|(path, _)| path == what).map(|(_, request)| request.clone()).unwrap_or_default()
    }

    /// The program, with this host's socket and no settings of whoever runs the tests.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnet-ctl"));
        command.args(args).current_dir(&self.directory).env("VNET_SOCKET", &self.socket);
        command.env("TZ", "UTC").env("HOME", &self.directory);
        let store = ["VNET_STORE", "VNET_STORE_CA", "VNET_STORE_CERT", "VNET_STORE_KEY"];
        for variable in ["NO_COLOR", "CLICOLOR_FORCE", "COLUMNS", "SUDO_USER"].into_iter().chain(store) {
            command.env_remove(variable);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    pub fn run_with_input(&self, args: &[&str], input: &str) -> Ran {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    }

    /// From now on this host is in a fleet.
    pub fn join(&self, fleet: Fleet) {
        *self.memory.fleet.blocking_lock() = Some(fleet);
    }

    /// Changes the fleet.
    pub fn change_fleet(&self, change: impl FnOnce(&mut Fleet)) {
        change(self.memory.fleet.blocking_lock().as_mut().unwrap());
    }

    /// Writes a file, by its name in the directory that the program runs in.
    pub fn file(&self, name: &str, text: &str) {
        self.file_of(name, text.as_bytes());
    }

    /// The same with any bytes.
    pub fn file_of(&self, name: &str, bytes: &[u8]) {
        let path = self.directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Another load balancer than [`WEB`].
pub fn load_balancer(name: &str) -> String {
    let resource = json!({
        "apiVersion": "vnet/v1alpha1", "kind": "LoadBalancer", "metadata": {"name": name},
        "spec": {"vips": ["10.0.0.200"], "protocol": "TCP", "ports": [53]},
    });
    serde_saphyr::to_string(&resource).unwrap()
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
