//! Load feedback in the agent: what is counted of members, and what becomes of their weights. Needs root.

mod support;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use support::{MEMBER, Machine, PORT, RUN, VIP, become_host, connect, echo, forward, open, serve_tcp, wait_for};
use tokio::sync::mpsc;
use vnet_agent::api::Control;
use vnet_agent::control::{Agent, Ground};
use vnet_agent::device;
use vnet_agent::fleet::load::Reporter;
use vnet_agent::lb::health::{Checker, Network};
use vnet_agent::quarantine::clock::SystemClock;
use vnet_agent::source::Own;
use vnet_agent::store::redb::RedbStore;
use vnet_common::api::{ApplyRequest, File};
use vnet_common::fleet::MemberKey;

/// An agent on this thread's host, which has read the devices, with one load balancer.
fn agent(runtime: &tokio::runtime::Runtime) -> Agent {
    let _guard = runtime.enter();
    let datapath = open().0;
    datapath.maps().set_flow_quota(1000).unwrap();
    let store = RedbStore::open(&PathBuf::from(RUN).join("vnet.redb")).unwrap();
    let agent = Agent::new(Ground {
        journal: Arc::new(store.clone()),
        store: Box::new(store),
        datapath,
        patterns: vec!["c0".parse().unwrap()],
        zone: None,
        checker: Checker::new(Network::default(), mpsc::unbounded_channel().0),
        networks: Vec::new(),
        own: Own { run_dir: RUN.into(), state_dir: RUN.into() },
        clock: Arc::new(SystemClock::new().unwrap()),
        fleet: None,
    });
    let agent = agent.unwrap();
    let snapshot = runtime.block_on(async {
        let (to, mut from) = mpsc::channel(1);
        let watch = tokio::spawn(device::watch(to));
        let first = from.recv().await.unwrap();
        watch.abort();
        first
    });
    assert!(agent.member_loads().is_err(), "what the maps say is not known yet");
    agent.devices_changed(snapshot);
    agent
}

fn apply(agent: &Agent, algorithm: &str, mode: &str) {
    let text = format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec:\n  vips: [{VIP}]\n  protocol: TCP\n  \
         ports: [{PORT}]\n  algorithm: {algorithm}\n  feedback: {{ mode: {mode} }}\n  members: [{{ name: m, address: {MEMBER}, \
         weight: 3 }}, {{ name: idle, address: 10.0.3.2, weight: 0 }}]\n"
    );
    let files = vec![File { name: "web.yaml".into(), text }];
    agent.apply(ApplyRequest { files, delete: Vec::new(), dry_run: false }).unwrap();
}

#[test]
fn members_are_counted_and_their_weights_follow() {
    become_host();
    forward();
    let (client, member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    serve_tcp(&member);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let agent = agent(&runtime);
    apply(&agent, "maglev", "leastLoad");
    assert_eq!(agent.member_loads().unwrap(), [], "nothing was counted");
    let key = MemberKey { lb: "web".into(), port: PORT, at: (MEMBER, PORT).into() };

    let mut reporter = Reporter::default();
    assert_eq!(reporter.look(std::time::Instant::now(), agent.member_loads().unwrap()), None);
    let mut streams: Vec<_> = (0..3).map(|_| connect(&client)).collect();
    streams.iter_mut().for_each(echo);
    drop(streams.pop());
    let active = |agent: &Agent| agent.member_loads().unwrap()[0].1.active;
    wait_for("the end of a connection", || active(&agent) == 2);
    let report = reporter.look(std::time::Instant::now(), agent.member_loads().unwrap()).unwrap();
    let (reported, load) = &report.members[0];
    assert_eq!((report.members.len(), reported), (1, &key));
    assert_eq!((load.new, load.ended, load.active, load.connected, load.resets), (3, 1, 2, 3, 0));
    assert!(load.connect_us > 0, "{load:?}");

    let groups = agent.feedback_groups();
    assert_eq!((groups.len(), &groups[0].members), (1, &vec![(key.at, 3)]));
    let said = |agent: &Agent| {
        let lb = agent.lb("web").unwrap();
        let m = lb.members.iter().find(|m| m.name == "m").unwrap();
        (m.weight, m.factor_percent, m.flows_elsewhere)
    };
    assert_eq!(said(&agent), (3, Some(100), 0));
    let (factors, elsewhere) = (HashMap::from([(key.clone(), 50)]), HashMap::from([(key, 7)]));
    agent.set_feedback(&factors, &elsewhere);
    assert_eq!(said(&agent), (3, Some(50), 0), "only least connections count what is elsewhere");
    apply(&agent, "leastConnections", "leastLoad");
    agent.set_feedback(&factors, &elsewhere);
    assert_eq!(said(&agent), (3, Some(100), 7), "and level the load themselves");
    assert_eq!(agent.feedback_groups(), []);
    apply(&agent, "leastConnections", "off");
    assert_eq!(said(&agent), (3, None, 0));
    streams.iter_mut().for_each(echo);
}
