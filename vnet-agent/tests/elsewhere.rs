//! What an agent is told of other hosts, on its datapath: the call alone, without a fleet. Needs root.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{MEMBER, Machine, PORT, RUN, VIP, become_host, connect, echo, forward, open, serve_tcp, wait_for};
use tokio::sync::mpsc;
use vnet_agent::api::{Control, Observe};
use vnet_agent::control::{Agent, Ground, run};
use vnet_agent::elsewhere::{Elsewhere, RemoteEndpoint, RemoteHost};
use vnet_agent::lb::health::{Checker, Network};
use vnet_agent::quarantine::clock::SystemClock;
use vnet_agent::source::Own;
use vnet_agent::store::redb::RedbStore;
use vnet_common::api::{ApplyRequest, ExplainRequest, File};

/// An endpoint that nobody polices, and a quarantine group.
const RESOURCES: &str = "
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: vm1 }
spec: { device: c0, addresses: [10.0.1.2], antiSpoofing: off }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: isolated }
spec: { quarantine: {} }
";

fn agent() -> Agent {
    let state_dir = Path::new(RUN).join("state");
    std::fs::create_dir_all(&state_dir).unwrap();
    let store = RedbStore::open(&state_dir.join("vnet.redb")).unwrap();
    let datapath = open().0;
    datapath.maps().set_flow_quota(1000).unwrap();
    let ground = Ground {
        journal: Arc::new(store.clone()),
        store: Box::new(store),
        datapath,
        patterns: vec!["c0".parse().unwrap()],
        zone: None,
        checker: Checker::new(Network::default(), mpsc::unbounded_channel().0),
        networks: Vec::new(),
        own: Own { run_dir: RUN.into(), state_dir },
        clock: Arc::new(SystemClock::new().unwrap()),
        fleet: None,
    };
    Agent::new(ground).unwrap()
}

/// The machine at [`MEMBER`] is an endpoint of host `b`.
fn far(group: &str, change: impl FnOnce(&mut RemoteHost)) -> Elsewhere {
    let endpoint = RemoteEndpoint {
        host: "b".into(),
        labels: Arc::new([("app".to_owned(), "web".to_owned())].into()),
        addresses: vec![MEMBER.into()],
        given: true,
        group: group.into(),
        quarantined: group != "default",
        identity: 0x0002_0010,
    };
    let mut all = Elsewhere::default();
    Arc::make_mut(&mut all.endpoints).insert("vm7".into(), Arc::new(endpoint));
    change(all.hosts.entry("b".into()).or_default());
    all
}

fn apply(agent: &Agent, text: &str) {
    let files = vec![File { name: "t.yaml".into(), text: text.into() }];
    agent.apply(ApplyRequest { files, delete: Vec::new(), dry_run: false }).unwrap_or_else(|e| panic!("{e}"));
}

/// Packets of endpoints that a quarantine dropped.
fn dropped(agent: &Agent) -> u64 {
    let endpoints = agent.endpoints().unwrap();
    endpoints.iter().flat_map(|e| e.packets.values()).filter_map(|reasons| reasons.get("quarantined")).sum()
}

#[test]
fn who_is_held_elsewhere_is_cut_off_at_once_and_comes_back() {
    become_host();
    forward();
    let (client, member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    serve_tcp(&member);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let agent = Arc::new({
        let _entered = runtime.enter();
        agent()
    });
    // Before the devices are known nothing is written.
    agent.elsewhere_changed(far("default", |_| {}));
    let devices = runtime.block_on(async {
        let mut devices = run::follow_devices(Arc::clone(&agent));
        tokio::task::spawn({
            let agent = Arc::clone(&agent);
            async move { run::begin(&agent, &mut devices).await.map(|()| devices) }
        })
        .await
        .unwrap()
        .unwrap()
    });
    wait_for("c0 to be attached", || agent.endpoints().unwrap().iter().any(|e| e.state == "attached"));
    let balancer = format!(
        "---\napiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec: {{ vips: [{VIP}], protocol: TCP, ports: [{PORT}], \
         memberSelector: {{ matchLabels: {{ app: web }} }} }}\n"
    );
    apply(&agent, &format!("{RESOURCES}{balancer}"));
    let members = || agent.lb("web").unwrap().members.into_iter().map(|m| (m.name, m.state)).collect::<Vec<_>>();
    assert_eq!(members(), [("vm7".into(), "active".into())]);

    let mut direct = client.inside(|| TcpStream::connect((MEMBER, PORT)).unwrap());
    let mut balanced = connect(&client);
    echo(&mut direct);
    echo(&mut balanced);
    assert_eq!(dropped(&agent), 0);
    let start = Instant::now();
    agent.elsewhere_changed(far("isolated", |_| {}));
    println!("told that another host holds an endpoint: in force in {:?}", start.elapsed());
    for stream in [&mut direct, &mut balanced] {
        let before = dropped(&agent);
        stream.write_all(b"hello").unwrap();
        wait_for("what is sent to be dropped", || dropped(&agent) > before);
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let e = stream.read(&mut [0; 5]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}");
    }
    let request = ExplainRequest { from: "vm1".into(), to: "vm7:80".into(), ..ExplainRequest::default() };
    let story = agent.explain(request).unwrap();
    assert_eq!((&*story.outcome, &*story.reason), ("dropped", "quarantined"));
    assert!(format!("{story:?}").contains("is endpoint vm7 on host b: identity"), "{story:#?}");

    // What was sent meanwhile arrives.
    agent.elsewhere_changed(far("default", |_| {}));
    direct.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    direct.read_exact(&mut [0; 5]).expect("the echo of what was held off");
    echo(&mut direct);
    let mut balanced = connect(&client);
    echo(&mut balanced);

    // Its host is drained: who is connected stays.
    agent.elsewhere_changed(far("default", |host| host.drained = true));
    echo(&mut balanced);
    assert_eq!(members(), [("vm7".into(), "draining".into())]);
    drop(devices);
    agent.detach().unwrap();
}
