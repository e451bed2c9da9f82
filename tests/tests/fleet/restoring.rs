//! A restore that takes several transactions, while agents follow the store.

use crate::scene::{HOSTS, SOON, Trio, alarm, content, go_on, host_is, no_alarm};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vnet_tests::{Agent, OPERATOR, ROOT, TempDir, wait_for};

/// Resources that the backup has besides: too many for one transaction.
const MORE: usize = 150;

/// The backup with these values besides, and without what has this key.
fn changed(backup: &Value, more: &[(String, Value)], without: Option<&str>) -> Result<String> {
    let mut backup = backup.clone();
    let values = backup["values"].as_array_mut().context("a list of values")?;
    values.retain(|line| without.is_none_or(|key| line["key"] != key));
    values.extend(more.iter().map(|(key, value)| json!({"key": key, "revision": 1, "value": value})));
    let count = |what: &str| values.iter().filter(|line| line["key"].as_str().is_some_and(|key| key.contains(what))).count();
    let (resources, unknown) = (count("/resources/"), count("/aaa"));
    backup["counts"]["resource"] = resources.into();
    if unknown > 0 {
        backup["counts"]["unknown value"] = unknown.into();
    }
    Ok(backup.to_string())
}

fn balancers() -> Vec<(String, Value)> {
    let one = |i: usize| {
        let spec = json!({"vips": [format!("10.96.1.{}", i + 1)], "protocol": "TCP", "ports": [80], "members": [
            {"address": "10.1.0.11", "port": 8080}
        ]});
        let resource = json!({"apiVersion": "vnet/v1alpha1", "kind": "LoadBalancer", "metadata": {"name": format!("more-{i}")}, "spec": spec});
        (format!("/vnet/v1/desired/resources/LoadBalancer/more-{i}"), json!({ "resource": resource }))
    };
    (0..MORE).map(one).collect()
}

/// How many of these an agent has in force.
fn balanced(agent: &Agent<'_>) -> Result<usize> {
    Ok(agent.ctl(&["lb", "ls"])?.lines().filter(|line| line.starts_with("more-")).count())
}

#[test]
fn a_restore_that_stops_half_way_puts_nothing_in_force() -> Result<()> {
    let trio = Trio::new()?;
    let mut agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let dir = TempDir::new()?;
    let file = dir.path().join("fleet.json");
    let name = file.to_str().context("a path of plain letters")?;
    trio.fleet.ctl(0, &["store", "backup", name])?;
    let backup: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;

    // Without the group that keeps strangers out; and the store does not take the last value.
    let mut more = balancers();
    more.push(("/vnet/v1/desired/aaa".to_owned(), json!("x".repeat(3 << 20))));
    std::fs::write(&file, changed(&backup, &more, Some("/vnet/v1/desired/resources/SecurityGroup/web"))?)?;
    let error = trio.fleet.ctl(0, &["store", "restore", name, "--replace"]).err().context("a value of 3 MiB")?;
    let error = format!("{error:#}");
    trio.in_force()?;
    ensure!(error.contains("hosts keep what they have until all are there"), "{error}");
    for agent in &agents {
        alarm(agent, "this host keeps what it has")?;
        ensure!(balanced(agent)? == 0, "{}", agent.ctl(&["lb", "ls"])?);
    }
    agents[2].kill()?;
    agents[2].begin()?;
    trio.in_force()?;
    go_on(&mut open.extract_if(.., |open| open.who != "c1").collect::<Vec<_>>())?;
    let refused = agents[1].apply(&crate::scene::web("")).err().context("a change of what is half there")?;
    println!("while it is half restored: {refused:#}");
    trio.in_force()?;

    std::fs::write(&file, changed(&backup, &balancers(), None)?)?;
    let printed = trio.fleet.ctl(0, &["store", "restore", name, "--replace"])?;
    ensure!(printed.contains("had been written half by something that was interrupted"), "{printed}");
    for agent in &agents {
        // The one that was started meanwhile waits for longer between two tries.
        let all = || balanced(agent).ok().filter(|count| *count == MORE);
        wait_for("what was restored", SOON * 2, all).with_context(|| agent.logged())?;
        no_alarm(agent)?;
        HOSTS.iter().try_for_each(|host| host_is(agent, host, "alive"))?;
    }
    trio.in_force()
}

#[test]
fn hosts_of_a_lost_store_get_their_numbers_back_and_go_on() -> Result<()> {
    let trio = Trio::new()?;
    let (store, root) = (trio.fleet.etcd.endpoints(), trio.fleet.etcd.pki.client(ROOT)?);
    // Not in the order in which they would be numbered anew.
    for change in [["remove", "host-b"], ["add", "host-x"], ["add", "host-b"]] {
        trio.fleet.ctl_as(&root, 0, &["host", change[0], change[1], "--store", &store])?;
    }
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let dir = TempDir::new()?;
    let file = dir.path().join("fleet.json");
    let name = file.to_str().context("a path of plain letters")?;
    trio.fleet.ctl(0, &["store", "backup", name])?;
    let before = content(&agents[0])?;
    trio.fleet.etcd.lose_all()?;
    trio.fleet.etcd.start_all()?;
    let init = ["store", "init", "--store", &store, "--operator", OPERATOR, "--from", name];
    let printed = trio.fleet.ctl_as(&root, 0, &init)?;
    ensure!(printed.contains("host/host-b registered (number 4)"), "{printed}");
    for agent in &agents {
        HOSTS.iter().try_for_each(|host| host_is(agent, host, "alive"))?;
    }
    trio.fleet.ctl(0, &["store", "restore", name])?;
    for agent in &agents {
        no_alarm(agent)?;
        ensure!(content(agent)? == before, "{}", content(agent)?);
    }
    trio.in_force()?;
    go_on(&mut open)
}
