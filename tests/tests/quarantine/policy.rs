//! Policies, and answers to "why?".

use crate::support::{connects, json, scene};
use anyhow::{Result, ensure};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use vnet_tests::{Agent, wait_for};

const POLICY: &str = r#"
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: web-1, labels: { app: web } }
spec: { device: client0, addresses: [10.0.0.10, "fd00::10"] }
---
apiVersion: vnet/v1alpha1
kind: Policy
metadata: { name: web }
spec:
  appliedTo: { selector: { matchLabels: { app: web } } }
  egress:
    - { name: m1, peers: [{ cidr: 10.0.1.11 }], ports: [{ protocol: TCP, port: 80 }], action: allow }
    - { name: rest, action: reject, log: true }
  ingress:
    - { name: ssh, ports: [{ protocol: TCP, port: 22 }], action: allow }
    - { name: rest, action: deny }
"#;

#[test]
fn rules_decide_for_both_directions_and_say_so() -> Result<()> {
    let mut net = scene()?;
    net.client.serve_http(22)?;
    net.client.serve_http(8080)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(POLICY)?;
    let (vm, other) = (&net.client.host, &net.bystander.host);
    ensure!(connects(vm, "10.0.1.11".parse()?, 80)?, "allowed");
    let start = std::time::Instant::now();
    ensure!(!connects(vm, "10.0.1.50".parse()?, 80)?, "rejected");
    ensure!(start.elapsed() < Duration::from_millis(1400), "a rejection is said aloud: {:?}", start.elapsed());
    ensure!(connects(other, "10.0.0.10".parse()?, 22)?, "ssh comes in");
    ensure!(!connects(other, "10.0.0.10".parse()?, 8080)?, "nothing else does");
    ensure!(!connects(&net.host, "10.0.0.10".parse()?, 8080)?, "not even from its own host");
    ensure!(connects(&net.host, "10.0.0.10".parse()?, 22)?, "what is allowed does, also from its own host");

    let rules = json(&agent, &["policy", "ls"])?;
    let hits = |name: &str, direction: &str| {
        let rule = rules.as_array()?.iter().find(|r| r["rule"]["rule"] == name && r["rule"]["direction"] == direction)?;
        rule["hits"].as_u64()
    };
    ensure!(hits("m1", "egress") == Some(1) && hits("ssh", "ingress") == Some(2), "{rules}");
    ensure!(hits("rest", "egress").is_some_and(|n| n >= 1) && hits("rest", "ingress").is_some_and(|n| n >= 2), "{rules}");

    let explained = json(&agent, &["explain", "--from", "web-1", "--to", "10.0.1.50:80/tcp"]);
    let why = explained.map(|v| v.to_string()).unwrap_or_else(|e| format!("{e:#}"));
    ensure!(why.contains("rest") && why.contains("rejected"), "{why}");
    let event = wait_for("an event of the rejection", Duration::from_secs(5), || {
        let events = agent.ctl(&["events", "--kind", "drop", "-o", "json"]).ok()?;
        events.lines().find(|l| l.contains("\"rest\"") && l.contains("10.0.1.50")).map(str::to_owned)
    })?;
    ensure!(event.contains("web-1"), "{event}");
    Ok(())
}

/// A VM whose rules allow everything but one port, so that its flows are tracked.
const TUNNELS: &str = r#"
apiVersion: vnet/v1alpha1
kind: Policy
metadata: { name: web }
spec:
  appliedTo: { selector: { matchLabels: { app: web } } }
  egress: [{ name: no-telnet, ports: [{ protocol: TCP, port: 23 }], action: deny }]
---
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: web-1, labels: { app: web } }
spec: { device: client0, addresses: [10.0.0.10, "fd00::10"], allowTunnels: true }
"#;

#[test]
fn what_an_endpoint_may_send_counts_for_flows_that_are_open() -> Result<()> {
    let net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(TUNNELS)?;
    let to: SocketAddr = "10.0.1.50:4789".parse()?;
    let server = net.bystander.host.run(|| UdpSocket::bind(to))??;
    let client = net.client.host.run(|| UdpSocket::bind("10.0.0.10:0"))??;
    server.set_read_timeout(Some(Duration::from_millis(300)))?;
    let arrives = || -> Result<bool> {
        client.send_to(b"inner frame", to)?;
        Ok(server.recv(&mut [0; 64]).is_ok())
    };
    // More than one, so that the flow is in the cache.
    for n in 0..5 {
        ensure!(arrives()?, "datagram {n} of an endpoint that may tunnel");
    }
    agent.apply(&TUNNELS.replace("allowTunnels: true", "allowTunnels: false"))?;
    for n in 0..3 {
        ensure!(!arrives()?, "datagram {n} of the same flow, now that it may not");
    }
    agent.apply(TUNNELS)?;
    ensure!(arrives()?, "and it may again");
    Ok(())
}
