//! ICMP errors about balanced flows reach the client as errors about its connection to the VIP.

use crate::support::{VIP, VIP6, json, load_balancer};
use anyhow::{Result, ensure};
use vnet_tests::{Agent, Routed};

/// The way to the member takes less than client and member can: the client has to be told, and to believe it.
#[test]
fn path_mtu_discovery() -> Result<()> {
    let net = Routed::new(1)?;
    let server = net.members[0].host.start("iperf3", &["-s", "-p", "5201", "--forceflush"])?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&load_balancer("bulk", "TCP", 5201, &net.members.iter().collect::<Vec<_>>(), 5201, ""))?;
    vnet_tests::wait_for("iperf3 to listen", std::time::Duration::from_secs(5), || {
        server.printed().contains("listening").then_some(())
    })?;
    net.host.ip("link set m1 mtu 1300")?;
    for vip in [VIP, VIP6] {
        let report = json(&net.client.host.output("iperf3", &["-c", vip, "-p", "5201", "-t", "2", "-J"])?)?;
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
        ensure!(bytes > 1 << 20, "{vip}: {bytes} bytes arrived");
        let route = net.client.host.output("ip", &["route", "get", vip])?;
        ensure!(route.contains("mtu 1300"), "the client knows the way's MTU: {route}");
    }
    Ok(())
}

#[test]
fn a_closed_port_of_a_member() -> Result<()> {
    let net = Routed::new(1)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&load_balancer("dns", "UDP", 53, &net.members.iter().collect::<Vec<_>>(), 5353, ""))?;
    for vip in [VIP, VIP6] {
        // dig says so only of an error that its kernel took for one about its socket, which is connected to the VIP.
        let dig = net.client.host.printed("dig", &[&format!("@{vip}"), "+timeout=2", "+tries=1", "x.lab"])?;
        ensure!(dig.contains("connection refused"), "{vip}: {dig}");
    }
    Ok(())
}
