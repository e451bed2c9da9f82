//! Held, whatever happens to the agent.

use crate::support::{GROUPS, connects, nothing, reaches, scene, wait_for_group};
use anyhow::{Result, ensure};
use std::time::Duration;
use vnet_tests::{Agent, Session, connect};

#[test]
fn an_agent_that_dies_leaves_the_vm_held_and_the_next_one_knows_why() -> Result<()> {
    let net = scene()?;
    let mut agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(GROUPS)?;
    let vm = &net.client.host;
    let mut session = Session::open(vm, &net.bystander.host, "10.0.1.50".parse()?, 2222)?;
    agent.ctl(&["tag", "add", "web-1", "malware", "--severity", "9"])?;
    std::thread::sleep(Duration::from_millis(5));
    session.drain()?;
    agent.kill()?;
    nothing(session.exchange(Duration::from_millis(200))?)?;
    agent.begin()?;
    nothing(session.exchange(Duration::from_millis(200))?)?;
    wait_for_group(&agent, "web-1", "isolated")?;
    agent.ctl(&["tag", "rm", "web-1", "malware"])?;
    wait_for_group(&agent, "web-1", "web")?;
    reaches(vm, "10.0.1.50".parse()?, 80)
}

#[test]
fn a_vm_that_reboots_onto_a_new_device_sends_nothing_before_it_is_held() -> Result<()> {
    let net = scene()?;
    let mut agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(GROUPS)?;
    agent.ctl(&["tag", "add", "web-1", "malware", "--severity", "9"])?;
    wait_for_group(&agent, "web-1", "isolated")?;
    let (host, vm) = (&net.host, &net.client.host);
    for dead in [false, true] {
        if dead {
            agent.kill()?;
        }
        // The VM goes, and comes with another device, which its hypervisor leaves down; it floods from the first moment.
        host.ip("link del client0").or_else(|_| host.ip("link del client1"))?;
        let device = if dead { "client0" } else { "client1" };
        connect((host, device, &["10.0.0.1/24", "fd00::1/64"]), (vm, "eth0", &["10.0.0.10/24", "fd00::10/64"]))?;
        host.ip(&format!("link set {device} down"))?;
        vm.ip("route add default via 10.0.0.1")?;
        let sent = || -> Result<u64> {
            Ok(host.output("cat", &[&format!("/sys/class/net/{device}/statistics/rx_packets")])?.trim().parse()?)
        };
        let flood = vm.start("ping", &["-f", "-w", "20", "10.0.1.50"])?;
        let before = sent()?;
        let attached = agent.ctl(&["endpoint", "attach", device, "--endpoint", "web-1", "--hold", "--timeout", "2s"]);
        if dead {
            ensure!(attached.is_err(), "without an agent nothing is attached");
            let state = host.output("ip", &["-o", "link", "show", device])?;
            ensure!(!state.contains("state UP"), "the port stays down: {state}");
            ensure!(sent()? == before, "and nothing comes out of it");
            agent.begin()?;
            agent.ctl(&["endpoint", "attach", device, "--endpoint", "web-1", "--hold", "--timeout", "10s"])?;
        } else {
            attached?;
        }
        host.wait_up(device)?;
        std::thread::sleep(Duration::from_millis(200));
        ensure!(!connects(vm, "10.0.1.50".parse()?, 80)?, "it is held on its new device");
        let received = net.bystander.host.output("cat", &["/sys/class/net/eth0/statistics/rx_packets"])?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(net.bystander.host.output("cat", &["/sys/class/net/eth0/statistics/rx_packets"])? == received, "packets got out");
        drop(flood);
    }
    Ok(())
}
