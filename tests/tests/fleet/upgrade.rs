//! Hosts are upgraded one by one: two builds of the agent at one store.

use crate::scene::{HOSTS, SERVED, SOON, Trio, alarm, alarms, allow, everywhere, go_on, json, no_alarm, policy, web};
use anyhow::{Context as _, Result, ensure};
use vnet_tests::{ROOT, bin_dir, wait_for};

/// The previous build has another map layout, and does not know `feedback`.
#[test]
fn a_fleet_is_upgraded_host_by_host() -> Result<()> {
    let trio = Trio::new()?;
    let (previous, new) = (bin_dir()?.join("vnet-agent-previous-abi"), bin_dir()?.join("vnet-agent"));
    let mut agents = trio.agents_program(&previous, &[])?;
    let mut open = trio.open()?;
    let versions = |agents: &[vnet_tests::Agent<'_>]| -> Result<Vec<bool>> {
        let hosts = json(&agents[1], &["host", "ls"])?;
        let each = hosts.as_array().context("a list of hosts")?.iter();
        Ok(each.map(|host| host["version"].as_str().is_some_and(|v| v.ends_with("-previous"))).collect())
    };
    ensure!(versions(&agents)? == [true; 3], "all are of the previous version");

    agents[0].kill()?;
    agents[0].begin_program(&new)?;
    no_alarm(&agents[0])?;
    let one = || versions(&agents).ok().filter(|are| *are == [false, true, true]);
    wait_for("one host to be of the new version", SOON, one)?;
    trio.in_force()?;
    go_on(&mut open)?;

    // What only the new one knows is in force where it is known, and said where it is not.
    let fed = policy("").replace("  algorithm: roundRobin\n", "  algorithm: roundRobin\n  feedback: { mode: leastLoad }\n");
    everywhere(&agents[0], &fed)?;
    for agent in &agents[1..] {
        alarm(agent, "does not know `spec.feedback`")?;
    }
    trio.in_force()?;
    // The other ones' operators write the same resources, and all that they do not know of them stays.
    everywhere(&agents[1], &policy("").replace("ports: [80]", "ports: [80, 81]"))?;
    everywhere(&agents[2], &web(&allow("second", SERVED + 1)))?;
    let stored = trio.fleet.etcd.etcdctl(ROOT, &["get", "/vnet/v1/desired/resources/LoadBalancer/web", "--print-value-only"])?;
    let stored: serde_json::Value = serde_json::from_str(&stored)?;
    ensure!(stored["resource"]["spec"]["feedback"]["mode"] == "leastLoad", "{stored}");
    ensure!(stored["resource"]["spec"]["ports"] == serde_json::json!([80, 81]), "{stored}");
    ensure!(trio.connects(2, 0, SERVED + 1)? && trio.connects(0, 2, SERVED + 1)?, "what the older one's operator wrote");
    go_on(&mut open)?;

    for host in [1, 2] {
        agents[host].kill()?;
        agents[host].begin_program(&new)?;
        no_alarm(&agents[host])?;
        go_on(&mut open)?;
    }
    let all = || versions(&agents).ok().filter(|are| *are == [false; 3]);
    wait_for("all to be of the new version", SOON, all)?;
    for (agent, host) in agents.iter().zip(HOSTS) {
        ensure!(!alarms(agent)?.contains("feedback"), "{host} knows it now");
        let shown = agent.ctl(&["get", "loadbalancer", "web", "-o", "yaml"])?;
        ensure!(shown.contains("leastLoad"), "{shown}");
    }
    trio.in_force()?;
    go_on(&mut open)
}
