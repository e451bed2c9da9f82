//! Members on the client's own host, reached past the stack.

use crate::support::{VIP, VIP6, ask, endpoint, json, mac, total, web};
use anyhow::{Result, ensure};
use vnet_tests::{Agent, Routed};

fn policy(net: &Routed) -> Result<String> {
    let members: Vec<_> = net.members.iter().collect();
    let mut yaml = web(&members, 8080, "  delivery: redirect\n");
    yaml += &endpoint(&net.client, "client0", Some(&mac(&net.client.host, "eth0")?));
    for m in &net.members {
        yaml += &endpoint(m, &m.name, Some(&mac(&m.host, "eth0")?));
    }
    Ok(yaml)
}

#[test]
fn both_directions_pass_by_the_hosts_stack() -> Result<()> {
    let mut net = Routed::new(2)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &[])?;
    agent.apply(&policy(&net)?)?;
    // What would go through the stack in either direction is dropped and counted.
    net.host.output(
        "nft",
        &["add table inet fw; add chain inet fw pass { type filter hook forward priority 0; }; \
        add rule inet fw pass tcp dport 8080 counter drop; add rule inet fw pass tcp sport 8080 counter drop"],
    )?;
    for vip in [VIP, VIP6] {
        let answers = ask(&net.client.host, vip, 40)?;
        ensure!(answers.len() == 2 && total(&answers) == 40, "{vip}: {answers:?}");
    }
    let rules = net.host.output("nft", &["list", "table", "inet", "fw"])?;
    ensure!(rules.matches("packets 0 bytes 0").count() == 2, "nothing went through the stack: {rules}");

    // The members' own ingress counters ran.
    let endpoints = json(&agent.ctl(&["get", "endpoints", "-o", "json"])?)?;
    let text = endpoints.to_string();
    ensure!(text.contains("m1") && text.contains("m2"), "{text}");
    Ok(())
}
