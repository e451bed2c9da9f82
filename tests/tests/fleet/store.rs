//! The store goes away, and comes back.

use crate::scene::{
    HOSTS, SERVED, SOON, Trio, alarm, alarms, allow, connected, content, everywhere, explained, go_on, host_is, logs, metric,
    no_alarm, passes, refused, web,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::Duration;
use vnet_tests::{Agent, OPERATOR, ROOT, TempDir, wait_for};

#[test]
fn nothing_is_lost_but_changes_while_members_of_the_store_die() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;

    // One of three: changes come to all, by the members that are left.
    trio.fleet.etcd.kill(0)?;
    for agent in &agents {
        let other = || connected(agent).ok().flatten().filter(|at| !at.contains(":2379"));
        wait_for("another member", SOON, other).with_context(|| agent.logged())?;
    }
    everywhere(&agents[1], &web(&allow("second", SERVED + 1)))?;
    ensure!(trio.connects(0, 1, SERVED + 1)?, "what was applied while one member is away is in force");
    go_on(&mut open)?;

    // Two: it can be read, yet not changed; none: neither.
    for member in [1, 2] {
        trio.fleet.etcd.kill(member)?;
        agents.iter().try_for_each(|agent| alarm(agent, "the store has not been heard of for "))?;
        go_on(&mut open)?;
        trio.in_force()?;
    }
    for (agent, host) in agents.iter().zip(0..) {
        let events = agent.ctl(&["events", "-o", "json"])?;
        ensure!(events.lines().any(|l| l.contains("\"store\"") && l.contains("\"lost\"")), "{events}");
        ensure!(metric(agent, trio.fleet.host(host), "vnet_store_connected")? == 0.0);
        ensure!(metric(agent, trio.fleet.host(host), "vnet_store_silent_seconds")? > 0.0);
        let status = agent.ctl(&["status"])?;
        ensure!(status.contains("not heard of for"), "{status}");
    }
    let refused = agents[0].apply(&web("")).err().context("a change without a store")?;
    println!("without a store: {refused:#}");

    trio.fleet.etcd.start_all()?;
    agents.iter().try_for_each(no_alarm)?;
    go_on(&mut open)?;
    ensure!(trio.connects(0, 1, SERVED + 1)?, "what was refused is not in force");
    everywhere(&agents[2], &web(""))?;
    for (host, agent) in agents.iter().enumerate() {
        ensure!(!trio.connects(host, (host + 1) % 3, SERVED + 1)?, "a change after it came back");
        ensure!(metric(agent, trio.fleet.host(host), "vnet_store_connected")? == 1.0);
    }
    trio.in_force()?;
    go_on(&mut open)
}

/// For how long a host is cut off: longer than it counts as alive.
fn cut_off() -> Duration {
    Duration::from_secs(if std::env::var_os("VNET_LONG").is_some() { 60 } else { 13 })
}

#[test]
fn a_host_that_is_cut_off_keeps_what_it_had_and_comes_to_the_newest_at_once() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let other = |name: &str| {
        format!(
            "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: {name} }}\nspec:\n  vips: [10.96.0.20]\n  protocol: TCP\n  \
             ports: [80]\n  members: [{{ address: 10.1.0.11, port: {SERVED} }}]\n"
        )
    };
    everywhere(&agents[1], &other("before"))?;
    trio.fleet.cut(0)?;
    let began = std::time::Instant::now();
    alarm(&agents[0], "the store has not been heard of for ")?;
    host_is(&agents[1], "host-a", "silent")?;
    // Another port instead, step by step, and what came in between is thrown away.
    for port in 1..4 {
        let printed = agents[1].apply(&web(&allow("second", SERVED + port)))?;
        println!("while host-a is cut off: {printed}");
    }
    // One takes the place, and the VIP, of another: host-a hears of both at once.
    agents[1].ctl(&["delete", "lb", "before"])?;
    agents[1].apply(&other("after"))?;
    let last = web("").replace(&SERVED.to_string(), &(SERVED + 1).to_string());
    agents[1].apply(&last)?;
    trio.fleet.etcd.compact(trio.fleet.etcd.revision()?)?;
    while began.elapsed() < cut_off() {
        std::thread::sleep(Duration::from_millis(100));
    }
    // Its own members are as they were; the others know its client all the time.
    ensure!(trio.connects(1, 0, SERVED)? && !trio.connects(1, 0, SERVED + 1)?, "host-a has what it had");
    ensure!(!trio.connects(1, 2, SERVED)? && trio.connects(1, 2, SERVED + 1)?, "host-c has the newest");
    ensure!(trio.connects(0, 1, SERVED + 1)?, "host-a's client is known to host-b");
    let ours = open.iter_mut().filter(|open| open.who == "a1");
    ours.map(|open| open.ask()).collect::<Result<Vec<_>>>().context("flows to the host that is cut off")?;

    trio.fleet.mend(0)?;
    no_alarm(&agents[0])?;
    logs(&agents[0], "thrown away")?;
    passes(&agents[0], "10.1.0.10", "a1:8080/tcp", false)?;
    ensure!(!trio.connects(1, 0, SERVED)? && trio.connects(1, 0, SERVED + 1)?, "host-a has the newest");
    host_is(&agents[1], "host-a", "alive").with_context(|| agents[0].logged())?;
    let balancers = agents[0].ctl(&["lb", "ls"])?;
    ensure!(balancers.contains("after") && !balancers.contains("before"), "{balancers}");
    everywhere(&agents[0], &web(""))?;
    go_on(&mut open)
}

#[test]
fn an_agent_that_starts_while_the_store_is_away_goes_on_with_what_was() -> Result<()> {
    let trio = Trio::new()?;
    let mut agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    agents[1].ctl(&["quarantine", "hold", "b1", "--group", "isolated", "--reason", "a test"])?;
    passes(&agents[0], "a0", "10.1.0.11:8080/tcp", false)?;
    // What is known is written down every second.
    std::thread::sleep(Duration::from_secs(3));
    trio.fleet.etcd.stop_all()?;
    for agent in &mut agents[..2] {
        agent.kill()?;
        agent.begin()?;
    }
    alarm(&agents[0], "the store has not been heard of for ")?;
    for agent in &agents {
        let known = agent.ctl(&["host", "ls"])?;
        ensure!(HOSTS.iter().all(|host| known.contains(host)), "{known}");
    }
    // By the group that host-c told of its client, and that host-b told of its member.
    ensure!(trio.connects(2, 0, SERVED)?, "a client of another host is known");
    ensure!(!trio.connects(2, 0, super::scene::CLOSED)?, "a denied port stays so");
    let (through, story) = explained(&agents[0], "a0", "10.1.0.11:8080/tcp")?;
    ensure!(!through && story.contains("which holds the peer"), "{story}");
    ensure!(!trio.connects(0, 1, SERVED)? && !trio.connects(2, 1, SERVED)?, "who is held stays held");
    let mut with_others: Vec<_> = open.extract_if(.., |open| open.who != "b1").collect();
    go_on(&mut with_others)?;

    trio.fleet.etcd.start_all()?;
    agents.iter().try_for_each(no_alarm)?;
    agents[1].ctl(&["quarantine", "release", "b1", "--reason", "it was a test", "--yes"])?;
    passes(&agents[0], "a0", "10.1.0.11:8080/tcp", true)?;
    everywhere(&agents[1], &web(&allow("second", SERVED + 1)))?;
    go_on(&mut with_others)
}

/// The first value within another that is meant.
fn find<'a>(value: &'a Value, is_meant: &dyn Fn(&Value) -> bool) -> Option<&'a Value> {
    let within = || match value {
        Value::Array(all) => all.iter().find_map(|value| find(value, is_meant)),
        Value::Object(all) => all.values().find_map(|value| find(value, is_meant)),
        _ => None,
    };
    if is_meant(value) { Some(value) } else { within() }
}

#[test]
fn a_store_that_lost_everything_takes_nothing_away_and_is_filled_from_a_backup() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let dir = TempDir::new()?;
    let file = dir.path().join("fleet.json");
    let file = file.to_str().context("a path of plain letters")?;
    trio.fleet.ctl(0, &["store", "backup", file])?;
    let before = content(&agents[0])?;
    trio.fleet.etcd.lose_all()?;
    trio.fleet.etcd.start_all()?;
    for agent in &agents {
        alarm(agent, "the store has never been set up")?;
        ensure!(content(agent)? == before, "{}", alarms(agent)?);
    }
    trio.in_force()?;
    go_on(&mut open)?;

    let key = "/vnet/v1/desired/resources/SecurityGroup/shop";
    let store = trio.fleet.etcd.endpoints();
    let mut init = vec!["store", "init", "--store", store.as_str(), "--operator", OPERATOR];
    init.extend(HOSTS.iter().flat_map(|host| ["--host", *host]));
    trio.fleet.ctl_as(&trio.fleet.etcd.pki.client(ROOT)?, 0, &init)?;
    // Set up, and empty; then somebody who does not know writes one of all resources.
    let lacks =
        |agent: &Agent<'_>, count: u32| alarm(agent, &format!("the store is another than before, and lacks {count} of the 10"));
    agents.iter().try_for_each(|agent| lacks(agent, 10))?;
    let error = refused(agents[0].apply(&web("")), "a change of a store that nobody follows")?;
    ensure!(error.contains("nothing may be changed in a store that this host does not follow"), "{error}");
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let shop = find(&saved, &|value| value.pointer("/resource/metadata/name").is_some_and(|name| name == "shop"));
    trio.fleet.etcd.etcdctl(OPERATOR, &["put", key, &shop.context("group shop in the backup")?.to_string()])?;
    agents.iter().try_for_each(|agent| lacks(agent, 9))?;
    trio.in_force()?;
    go_on(&mut open)?;
    println!("{}", trio.fleet.ctl(0, &["store", "restore", file, "--replace"])?);
    agents.iter().try_for_each(no_alarm)?;
    for agent in &agents {
        ensure!(content(agent)? == before, "{}", content(agent)?);
        HOSTS.iter().try_for_each(|host| host_is(agent, host, "alive"))?;
    }
    trio.in_force()?;
    go_on(&mut open)?;
    everywhere(&agents[2], &web(&allow("second", SERVED + 1)))?;
    go_on(&mut open)?;

    // Once more, and without a backup: what a host has in force is all that is left.
    trio.fleet.etcd.lose_all()?;
    trio.fleet.etcd.start_all()?;
    trio.fleet.ctl_as(&trio.fleet.etcd.pki.client(ROOT)?, 0, &init)?;
    agents.iter().try_for_each(|agent| lacks(agent, 10))?;
    println!("{}", trio.fleet.ctl(1, &["store", "migrate", "--to", &store])?);
    agents.iter().try_for_each(no_alarm)?;
    ensure!(trio.connects(0, 1, SERVED + 1)?, "the newest of what was in force");
    trio.in_force()?;
    go_on(&mut open)
}
