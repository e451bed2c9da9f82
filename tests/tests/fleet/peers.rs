//! What a host says of its endpoints, and what the others make of it.

use crate::scene::{
    CLOSED, HOSTS, Open, SERVED, SOON, Trio, alarm, alarms, connects, everywhere, explained, go_on, host_is, json, no_alarm,
    passes, policy, reaches, serve_name,
};
use crate::support::Scene;
use anyhow::{Context as _, Result, ensure};
use vnet_tests::wait_for;

#[test]
fn endpoints_of_a_host_that_dies_linger_and_those_that_are_held_stay() -> Result<()> {
    let trio = Trio::new()?;
    let mut agents = trio.agents(&["--linger", "35"])?;
    agents[1].ctl(&["quarantine", "hold", "b1", "--group", "isolated", "--reason", "a test"])?;
    passes(&agents[0], "a0", "10.1.0.11:8080/tcp", false)?;
    agents[1].kill()?;
    trio.fleet.cut_dead(1)?;
    for agent in [&agents[0], &agents[2]] {
        host_is(agent, "host-b", "silent")?;
    }
    // Its lease for being alive has ended, that of its endpoints has not.
    for (agent, member) in [(&agents[0], "a1:8080/tcp"), (&agents[2], "c1:8080/tcp")] {
        let (through, story) = explained(agent, "10.1.0.10", member)?;
        ensure!(through, "b0 is not known any more, as soon as its host is silent: {story}");
    }
    for (agent, client, member) in [(&agents[0], "a0", "a1:8080/tcp"), (&agents[2], "c0", "c1:8080/tcp")] {
        let gone = || explained(agent, "10.1.0.10", member).ok().filter(|(through, _)| !through);
        wait_for("b0 to be gone", SOON * 3, gone).with_context(|| agent.logged())?;
        let (through, story) = explained(agent, client, "10.1.0.11:8080/tcp")?;
        ensure!(!through && story.contains("which holds the peer"), "b1 is held still: {story}");
    }
    ensure!(trio.connects(0, 2, SERVED)?, "the others go on");

    trio.fleet.mend(1)?;
    agents[1].begin()?;
    HOSTS.iter().try_for_each(|host| host_is(&agents[0], host, "alive"))?;
    passes(&agents[0], "10.1.0.10", "a1:8080/tcp", true)?;
    passes(&agents[0], "a0", "10.1.0.11:8080/tcp", false)?;
    agents[1].ctl(&["quarantine", "release", "b1", "--reason", "it was a test", "--yes"])?;
    trio.peers_known(&agents)
}

const DOUBLE: &str = "apiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: { name: vm, labels: { app: shop } }\n\
                      spec: { device: tap0, addresses: [10.0.0.10] }\n";

#[test]
fn an_endpoint_on_two_hosts_is_one_hosts_for_all_and_said() -> Result<()> {
    let scene = Scene::new(&["host-a", "host-b", "host-c"], 1)?;
    scene.fleet.host(2).ip("link set tap0 name other")?;
    let agents = (0..3).map(|host| scene.fleet.agent(host, &[])).collect::<Result<Vec<_>>>()?;
    scene.alive(&agents[0], 3)?;
    agents[0].apply(DOUBLE)?;
    let mut said = Vec::new();
    for agent in &agents {
        alarm(agent, "endpoint vm is claimed by host ")?;
        said.push(alarms(agent)?);
    }
    ensure!(said.iter().all(|alarms| *alarms == said[0]), "all say the same: {said:?}");
    for agent in &agents[..2] {
        let events = agent.ctl(&["events", "-o", "json"])?;
        ensure!(events.lines().any(|l| l.contains("\"conflict\"") && l.contains("\"vm\"")), "{events}");
    }
    // The one whose it is not goes.
    let loser = usize::from(said[0].contains("claimed by host host-a and"));
    scene.fleet.host(loser).ip("link delete tap0")?;
    agents.iter().try_for_each(no_alarm)
}

/// What keeps traffic off at host-b is host-b's own, though nothing at host-a does.
#[test]
fn who_is_held_on_one_host_is_kept_off_by_its_peers_own_datapath() -> Result<()> {
    let trio = Trio::new()?;
    let mut agents = trio.agents(&[])?;
    let (a0, b0) = (trio.fleet.vm(0, 0), trio.fleet.vm(1, 0));
    serve_name(a0, a0.v4.into(), 22)?;
    let listener = trio.fleet.core.run(|| std::net::TcpListener::bind("10.99.0.1:9000"))??;
    // Those of a0 come first, and end with the datapath of host-a.
    let mut others = trio.open()?.into_iter().skip(9).filter(|open| open.who == "c1").collect::<Vec<_>>();
    let b1 = trio.fleet.vm(1, 1);
    let mut sessions = vec![
        Open::to(&a0.host, b1.v4.into(), SERVED)?,
        Open::to(&a0.host, b1.v6.into(), SERVED)?,
        Open::to(&b0.host, a0.v4.into(), 22)?,
    ];
    agents[0].ctl(&["tag", "add", "a0", "malware", "--severity", "9", "--evidence", "a test"])?;
    for agent in &agents[1..] {
        passes(agent, "10.0.0.10", if agent.pid()? == agents[1].pid()? { "b1:8080/tcp" } else { "c1:8080/tcp" }, false)?;
    }
    for session in &mut sessions {
        ensure!(session.is_cut()?, "{session:?}");
    }
    // Now without anything at host-a.
    agents[0].kill()?;
    trio.fleet.host(0).output("rm", &["-rf", "/sys/fs/bpf/vnet"])?;
    reaches(&a0.host, trio.fleet.vm(0, 1).v4.into(), CLOSED).context("host-a enforces something still")?;
    ensure!(connects(&a0.host, "10.99.0.1".parse()?, 9000)?, "a0 gets out of host-a");
    drop(listener);
    for session in &mut sessions {
        ensure!(session.is_cut()?, "a session goes on, with nobody but host-b to keep it from that");
    }
    for host in [1, 2] {
        ensure!(!trio.connects(0, host, SERVED)?, "a0 opens a connection to {}", HOSTS[host]);
    }
    ensure!(!connects(&b0.host, a0.v4.into(), 22)?, "b0 opens one to a0");
    let (_, story) = explained(&agents[1], "10.0.0.10", "b1:8080/tcp")?;
    ensure!(story.contains("which holds the peer"), "{story}");
    let seen = || {
        let events = agents[1].ctl(&["events", "--kind", "drop", "-o", "json"]).ok()?;
        events.lines().find(|line| line.contains("PeerQuarantine") && line.contains("10.0.0.10")).map(str::to_owned)
    };
    let event =
        wait_for("an event of it at host-b", SOON, seen).with_context(|| agents[1].ctl(&["events"]).unwrap_or_default())?;
    println!("host-b: {event}");
    let rules = json(&agents[1], &["policy", "ls"])?;
    let hits = rules.as_array().into_iter().flatten().filter(|r| r["rule"]["kind"] == "PeerQuarantine");
    let hits: u64 = hits.filter_map(|r| r["hits"].as_u64()).sum();
    ensure!(hits > 0, "{rules}");

    agents[0].begin()?;
    agents[0].ctl(&["tag", "rm", "a0", "malware"])?;
    reaches(&a0.host, b1.v4.into(), SERVED)?;
    reaches(&b0.host, a0.v4.into(), 22)?;
    go_on(&mut others)
}

#[test]
fn a_peer_that_becomes_another_loses_the_connections_that_it_may_not_have() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let direct = |from: usize| -> Result<Vec<Open>> {
        (0..3).map(|to| Open::to(&trio.fleet.vm(from, 0).host, trio.fleet.vm(to, 1).v4.into(), SERVED)).collect()
    };
    let (mut of_b0, mut of_c0) = (direct(1)?, direct(2)?);
    let other = policy("").replace("name: b0, labels: { app: shop }", "name: b0, labels: { app: other }");
    everywhere(&agents[2], &other)?;
    passes(&agents[0], "10.1.0.10", "a1:8080/tcp", false)?;
    passes(&agents[2], "10.1.0.10", "c1:8080/tcp", false)?;
    for (connection, host) in of_b0.iter_mut().zip(HOSTS) {
        ensure!(connection.is_cut()?, "b0 is in no group that {host} lets in");
    }
    go_on(&mut of_c0)?;
    everywhere(&agents[0], &policy(""))?;
    passes(&agents[0], "10.1.0.10", "a1:8080/tcp", true)?;
    passes(&agents[2], "10.1.0.10", "c1:8080/tcp", true)?;
    go_on(&mut of_b0)?;
    go_on(&mut open)
}
