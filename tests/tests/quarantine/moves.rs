//! Into quarantine and back.

use crate::support::{GROUPS, both, connects, nothing, reaches, scene, wait_for_group};
use anyhow::{Result, ensure};
use std::time::Duration;
use vnet_tests::{Agent, Session};

const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn a_tag_cuts_open_connections_both_ways_and_its_removal_brings_the_vm_back() -> Result<()> {
    let net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(GROUPS)?;
    wait_for_group(&agent, "web-1", "web")?;
    let (vm, other) = (&net.client.host, &net.bystander.host);
    let mut sessions = Vec::new();
    for (there, here) in both("10.0.1.50", "fd00:1::50")?.into_iter().zip(both("10.0.0.10", "fd00::10")?) {
        sessions.push(Session::open(vm, other, there, 2222)?);
        sessions.push(Session::open(other, vm, here, 2222)?);
    }
    for session in &mut sessions {
        let arrived = session.exchange(MOMENT)?;
        ensure!(arrived[0] > 0 && arrived[1] > 0, "the session works: {arrived:?}");
    }
    agent.ctl(&["tag", "add", "web-1", "malware", "--severity", "9", "--evidence", "seen by hand"])?;
    std::thread::sleep(Duration::from_millis(5));
    for session in &mut sessions {
        session.drain()?;
    }
    for session in &mut sessions {
        nothing(session.exchange(MOMENT)?)?;
    }
    wait_for_group(&agent, "web-1", "isolated")?;
    for to in both("10.0.1.50", "fd00:1::50")? {
        ensure!(!connects(vm, to, 80)?, "isolated, it connects to {to}");
    }
    ensure!(!connects(vm, "10.0.0.1".parse()?, 22)?, "not even to its own host");
    agent.ctl(&["tag", "rm", "web-1", "malware"])?;
    reaches(vm, "10.0.1.50".parse()?, 80)?;
    wait_for_group(&agent, "web-1", "web")?;
    let log = agent.ctl(&["quarantine", "log", "web-1"])?;
    ensure!(log.contains("malware") && log.contains("isolated"), "the audit log says why: {log}");
    Ok(())
}

#[test]
fn an_allow_list_lets_it_reach_what_helps_and_nothing_else() -> Result<()> {
    let net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(GROUPS)?;
    let vm = &net.client.host;
    agent.ctl(&["tag", "add", "web-1", "odd"])?;
    wait_for_group(&agent, "web-1", "limited")?;
    for (help, other) in both("10.0.1.11", "fd00:1::11")?.into_iter().zip(both("10.0.1.50", "fd00:1::50")?) {
        ensure!(connects(vm, help, 80)?, "remediation at {help}");
        ensure!(!connects(vm, help, 81)?, "another port of it");
        ensure!(!connects(vm, other, 80)?, "{other}");
    }
    let refused = agent.ctl(&["delete", "SecurityGroup", "limited"]).err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(refused.contains("moves endpoints into SecurityGroup `limited`"), "a group that others name stays: {refused}");
    // The better transfer takes over, and lets go first.
    agent.ctl(&["tag", "add", "web-1", "malware", "--severity", "8"])?;
    wait_for_group(&agent, "web-1", "isolated")?;
    ensure!(!connects(vm, "10.0.1.11".parse()?, 80)?, "isolated");
    agent.ctl(&["tag", "rm", "web-1", "malware"])?;
    wait_for_group(&agent, "web-1", "limited")?;
    agent.ctl(&["quarantine", "release", "web-1", "--reason", "it was a test", "--yes"])?;
    wait_for_group(&agent, "web-1", "web")?;
    // Break-glass lets it go while the tag is there.
    reaches(vm, "10.0.1.50".parse()?, 80)
}
