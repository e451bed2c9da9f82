//! A host that routes for the VM.

use crate::support::{VIP, VIP6, ask, json, load_balancer, total, web};
use anyhow::{Result, ensure};
use vnet_tests::{Agent, Routed};

#[test]
fn http_reaches_every_member_and_nobody_else() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    net.bystander.serve_http(80)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;

    for vip in [VIP, VIP6] {
        let answers = ask(&net.client.host, vip, 90)?;
        ensure!(total(&answers) == 90, "every request is answered: {answers:?}");
        ensure!(answers.len() == 3 && answers.values().all(|&n| n >= 10), "each member gets its share: {answers:?}");
    }
    let direct = ask(&net.client.host, &net.bystander.v4.to_string(), 10)?;
    ensure!(direct.get("bystander") == Some(&10), "{direct:?}");

    let status = json(&agent.ctl(&["lb", "members", "web", "-o", "json"])?)?;
    let new: u64 = status["members"].as_array().into_iter().flatten().filter_map(|m| m["new_flows"].as_u64()).sum();
    ensure!(new == 180, "each connection is counted once: {status}");
    Ok(())
}

#[test]
fn dns_over_udp() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        m.serve_dns(5353)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&load_balancer("dns", "UDP", 53, &net.members.iter().collect::<Vec<_>>(), 5353, ""))?;
    for vip in [VIP, VIP6] {
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let at = format!("@{vip}");
            let answer =
                net.client.host.output("dig", &[at.as_str(), "+short", "+timeout=2", "+tries=1", "whoami.lab", "TXT"])?;
            names.insert(answer.trim().trim_matches('"').to_owned());
        }
        ensure!(names.len() == 3 && names.iter().all(|n| n.starts_with('m')), "{names:?}");
    }
    Ok(())
}

/// A VM asks a VIP whose member it is itself: its server sees the VIP, and its client is answered by it.
#[test]
fn a_member_is_its_own_client() -> Result<()> {
    let mut net = Routed::new(0)?;
    net.client.serve_http(8080)?;
    net.client.serve_dns(5353)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    let members = [&net.client];
    agent.apply(&(web(&members, 8080, "") + "---\n" + &load_balancer("dns", "UDP", 53, &members, 5353, "")))?;
    for vip in [VIP, VIP6] {
        let answers = ask(&net.client.host, vip, 10)?;
        ensure!(answers.get("client") == Some(&10), "{vip}: {answers:?}");
        let at = format!("@{vip}");
        let answer = net.client.host.output("dig", &[at.as_str(), "+short", "+timeout=2", "+tries=1", "whoami.lab", "TXT"])?;
        ensure!(answer.trim() == "\"client\"", "{vip}: {answer}");
    }
    Ok(())
}

#[test]
fn a_vip_is_like_a_host() -> Result<()> {
    let mut net = Routed::new(1)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    let client = &net.client.host;
    for vip in [VIP, VIP6] {
        let ping = client.output("ping", &["-c", "5", "-i", "0.05", "-W", "1", vip])?;
        ensure!(ping.contains(" 0% packet loss"), "{ping}");
        // curl's exit code 7: the connection was refused, which only a reset says so fast.
        let host = if vip.contains(':') { format!("[{vip}]") } else { vip.to_owned() };
        let code = client.printed(
            "curl",
            &["-s", "-g", "-o", "/dev/null", "-w", "%{exitcode} %{time_total}", "-m", "2", &format!("http://{host}:81/")],
        )?;
        ensure!(code.starts_with("7 0."), "a closed port refuses: {code}");
        // dig says "connection refused" on an ICMP port unreachable.
        let dig = client.printed("dig", &[&format!("@{vip}"), "-p", "81", "+timeout=2", "+tries=1", "x.lab"])?;
        ensure!(dig.contains("connection refused"), "{dig}");
    }
    Ok(())
}

/// Packets of local sockets carry partial checksums. Where a device must complete them in software, a wrong one is seen:
/// the receiver drops it.
#[test]
fn checksums_are_right_on_the_wire() -> Result<()> {
    let mut net = Routed::new(1)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
        m.serve_dns(5353)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let members: Vec<_> = net.members.iter().collect();
    agent.apply(&(web(&members, 8080, "") + "---\n" + &load_balancer("dns", "UDP", 53, &members, 5353, "")))?;
    // The host's device towards the member completes the checksum of what the client sent, the one towards the client
    // that of what the member sent.
    net.host.checksum_in_software("m1")?;
    net.host.checksum_in_software("client0")?;
    for m in &net.members {
        m.host.output("true", &[] as &[&str])?;
    }
    for vip in [VIP, VIP6] {
        let answers = ask(&net.client.host, vip, 10)?;
        ensure!(total(&answers) == 10, "{answers:?}");
        let answer =
            net.client.host.output("dig", &[&format!("@{vip}"), "+short", "+timeout=2", "+tries=1", "whoami.lab", "TXT"])?;
        ensure!(answer.trim() == "\"m1\"", "{answer}");
        let host = if vip.contains(':') { format!("[{vip}]") } else { vip.to_owned() };
        let code = net.client.host.printed(
            "curl",
            &["-s", "-g", "-o", "/dev/null", "-w", "%{exitcode} %{time_total}", "-m", "2", &format!("http://{host}:81/")],
        )?;
        ensure!(code.starts_with("7 0."), "the reset's checksum is right too: {code}");
        let dig = net.client.host.printed("dig", &[&format!("@{vip}"), "-p", "81", "+timeout=2", "+tries=1", "x.lab"])?;
        ensure!(dig.contains("connection refused"), "and that of the ICMP error: {dig}");
    }
    Ok(())
}

#[test]
fn bulk_tcp_with_offloads() -> Result<()> {
    let net = Routed::new(1)?;
    let server = net.members[0].host.start("iperf3", &["-s", "-p", "5201", "--forceflush"])?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&load_balancer("bulk", "TCP", 5201, &net.members.iter().collect::<Vec<_>>(), 5201, ""))?;
    vnet_tests::wait_for("iperf3 to listen", std::time::Duration::from_secs(5), || {
        server.printed().contains("listening").then_some(())
    })?;
    for vip in [VIP, VIP6] {
        for direction in [&[][..], &["-R"][..]] {
            let mut args = vec!["-c", vip, "-p", "5201", "-t", "1", "-J"];
            args.extend(direction);
            let report = json(&net.client.host.output("iperf3", &args)?)?;
            let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
            ensure!(bits > 100e6, "segmentation offload works through the balancer: {bits} bit/s");
        }
    }
    Ok(())
}

#[test]
fn the_hosts_firewall_sees_whole_connections() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    net.host.output(
        "nft",
        &["add table inet fw; add chain inet fw pass { type filter hook forward priority 0; policy drop; }; \
        add rule inet fw pass ct state invalid drop; add rule inet fw pass ct state established,related accept; \
        add rule inet fw pass tcp dport 8080 accept; add rule inet fw pass meta l4proto ipv6-icmp accept"],
    )?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    for vip in [VIP, VIP6] {
        let answers = ask(&net.client.host, vip, 30)?;
        ensure!(total(&answers) == 30, "{answers:?}");
    }
    Ok(())
}

#[test]
fn detach_takes_everything_off() -> Result<()> {
    let mut net = Routed::new(1)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let mut agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    ensure!(total(&ask(&net.client.host, VIP, 3)?) == 3);
    agent.ctl(&["detach", "--yes"])?;
    let left = net.host.printed("find", &["/sys/fs/bpf", "-mindepth", "1", "-not", "-name", "*.debug"])?;
    ensure!(!left.contains("vm_egress") && !left.contains("FLOWS4") && !left.contains("links"), "{left}");
    agent.process()?.wait(std::time::Duration::from_secs(5))?;
    ensure!(total(&ask(&net.client.host, VIP, 1)?) == 0, "nothing answers for the VIP any more");
    Ok(())
}
