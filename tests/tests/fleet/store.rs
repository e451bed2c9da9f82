//! The store goes away, and comes back.

use crate::scene::{HOSTS, SERVED, SOON, Trio, alarm, allow, connected, everywhere, go_on, metric, no_alarm, web};
use anyhow::{Context as _, Result, ensure};
use vnet_tests::wait_for;

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
    for host in 0..HOSTS.len() {
        ensure!(!trio.connects(host, (host + 1) % 3, SERVED + 1)?, "a change after it came back");
        ensure!(metric(&agents[host], trio.fleet.host(host), "vnet_store_connected")? == 1.0);
    }
    trio.in_force()?;
    go_on(&mut open)
}
