//! Who gets new flows: algorithms, affinity, preference, backups, ranges of ports, members of members.

use crate::support::{VIP, VIP6, ask, json, load_balancer, web};
use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use vnet_tests::{Agent, Machine, Routed, wait_for};

fn scene() -> Result<Routed> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    Ok(net)
}

fn all(net: &Routed) -> Vec<&Machine> {
    net.members.iter().collect()
}

/// Each member's target in percent, by its name.
fn targets(agent: &Agent<'_>) -> Result<BTreeMap<String, f64>> {
    let members = json(&agent.ctl(&["lb", "members", "web", "-o", "json"])?)?["members"].clone();
    let each = members.as_array().into_iter().flatten();
    Ok(each.map(|m| (m["name"].as_str().unwrap_or_default().into(), m["target_percent"].as_f64().unwrap_or(-1.0))).collect())
}

#[test]
fn algorithms_and_affinity_and_changes_between_them() -> Result<()> {
    let net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    let apply = |more: &str| agent.apply(&web(&all(&net), 8080, more));
    apply("  algorithm: roundRobin\n")?;
    for vip in [VIP, VIP6] {
        let answers = ask(&net.client.host, vip, 12)?;
        ensure!(answers.values().all(|n| *n == 4) && answers.len() == 3, "round robin at {vip}: {answers:?}");
    }
    apply("  algorithm: sourceHash\n")?;
    let answers = ask(&net.client.host, VIP, 10)?;
    ensure!(answers.len() == 1, "source hash: {answers:?}");
    apply("  algorithm: roundRobin\n  affinity: { timeoutSeconds: 2 }\n")?;
    let first = ask(&net.client.host, VIP, 6)?;
    ensure!(first.len() == 1, "affinity: {first:?}");
    std::thread::sleep(Duration::from_secs(4));
    let after = ask(&net.client.host, VIP, 6)?;
    ensure!(after.len() == 1 && after != first, "affinity ends: {first:?}, then {after:?}");
    Ok(())
}

/// Answers every connection with the machine's name, and keeps it open as long as the client does.
fn greet(machine: &Machine, port: u16) -> Result<()> {
    let listener = machine.host.run(|| TcpListener::bind(("::", port)))??;
    let name = format!("{:8}", machine.name);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || {
                let _ = stream.write_all(name.as_bytes());
                let _ = stream.read(&mut [0]);
            });
        }
    });
    Ok(())
}

fn greeted(net: &Routed, port: u16) -> Result<(String, TcpStream)> {
    let mut stream = net.client.host.run(|| TcpStream::connect((VIP, port)))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut name = [0; 8];
    stream.read_exact(&mut name)?;
    Ok((String::from_utf8_lossy(&name).trim().to_owned(), stream))
}

#[test]
fn the_fewest_connections_count() -> Result<()> {
    let net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    for m in &net.members {
        greet(m, 7100)?;
    }
    agent.apply(&load_balancer("web", "TCP", 7100, &all(&net), 7100, "  algorithm: leastConnections\n"))?;
    let mut open: Vec<(String, TcpStream)> = (0..9).map(|_| greeted(&net, 7100)).collect::<Result<_>>()?;
    let count = |open: &[(String, TcpStream)], name: &str| open.iter().filter(|(n, _)| n == name).count();
    for name in ["m1", "m2", "m3"] {
        ensure!(count(&open, name) == 3, "three each: {:?}", open.iter().map(|(n, _)| n).collect::<Vec<_>>());
    }
    // Those of m2 end: it gets the next three.
    open.retain(|(name, _)| name != "m2");
    std::thread::sleep(Duration::from_millis(200));
    let next: Vec<_> = (0..3).map(|_| greeted(&net, 7100)).collect::<Result<_>>()?;
    ensure!(count(&next, "m2") == 3, "what is free: {:?}", next.iter().map(|(n, _)| n).collect::<Vec<_>>());
    let status = json(&agent.ctl(&["lb", "members", "web", "-o", "json"])?)?;
    ensure!(status["algorithm"] == "leastConnections", "{status}");
    Ok(())
}

#[test]
fn ranges_and_any_port_and_members_of_members() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        for port in [8003, 8009, 9100] {
            m.serve_http(port)?;
        }
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let [m1, m2, m3] = [0, 1, 2].map(|n| net.members[n].v4);
    agent.apply(&format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: range }}\nspec:\n  vips: [{VIP}]\n  protocol: TCP\n  portRanges: [{{ port: 8000, endPort: 8010 }}]\n  members: [{{ name: m1, address: {m1} }}]\n---\n\
         apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: one }}\nspec:\n  vips: [{VIP}]\n  protocol: TCP\n  ports: [8009]\n  members: [{{ name: m2, address: {m2} }}]\n---\n\
         apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: any }}\nspec:\n  vips: [{VIP}]\n  protocol: TCP\n  anyPort: true\n  memberGroups: [{{ loadBalancer: one, backup: true }}]\n  members: [{{ name: m3, address: {m3}, port: 9100 }}]\n"
    ))?;
    for (port, who) in [(8003, "m1"), (8009, "m2"), (7, "m3"), (65535, "m3")] {
        let answers = ask(&net.client.host, &format!("{VIP}:{port}"), 5)?;
        ensure!(answers.get(who) == Some(&5), "port {port}: {answers:?}");
    }
    agent.ctl(&["lb", "drain", "any", "m3"])?;
    let answers = ask(&net.client.host, &format!("{VIP}:9100"), 5)?;
    ensure!(answers.get("m2") == Some(&5), "the other's member is a backup here: {answers:?}");
    let listed = agent.ctl(&["lb", "ls"])?;
    ensure!(listed.contains("8000-8010/TCP") && listed.contains("any/TCP"), "{listed}");
    let cycle = "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: { name: one }\nspec:\n  vips: [10.96.0.10]\n  protocol: TCP\n  ports: [8009]\n  memberGroups: [{ loadBalancer: any }]\n";
    let Err(refused) = agent.apply(cycle) else { bail!("a load balancer that contains itself was taken") };
    ensure!(format!("{refused:#}").contains("`one` would contain itself: one contains any contains one"), "{refused:#}");
    Ok(())
}

#[test]
fn health_is_ignored_rather_than_a_group_emptied_and_who_comes_back_comes_slowly() -> Result<()> {
    let mut net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    let check = "  healthCheck: { port: 9999, intervalMs: 100, timeoutMs: 50, rise: 1, fall: 1 }\n  slowStartSeconds: 4\n";
    agent.apply(&web(&all(&net), 8080, check))?;
    wait_for("every check to fail", Duration::from_secs(10), || {
        let members = agent.ctl(&["lb", "members", "web"]).ok()?;
        (members.matches(" down ").count() == 6).then_some(())
    })?;
    let answers = ask(&net.client.host, VIP, 30)?;
    ensure!(answers.len() == 3, "nobody checks right, everybody serves: {answers:?}");
    net.members[0].serve_http(9999)?;
    wait_for("the one that is well to serve alone", Duration::from_secs(10), || {
        (targets(&agent).ok()?.get("m1") == Some(&100.0)).then_some(())
    })?;
    net.members[1].serve_http(9999)?;
    wait_for("another to begin", Duration::from_secs(10), || {
        let m2 = *targets(&agent).ok()?.get("m2")?;
        (m2 > 0.0 && m2 < 45.0).then_some(())
    })?;
    wait_for("it to have its share", Duration::from_secs(20), || (targets(&agent).ok()?.get("m2") == Some(&50.0)).then_some(()))?;
    // The other way round: refused at once.
    net.members[0].end_servers();
    net.members[1].end_servers();
    agent.apply(&web(&all(&net), 8080, &format!("{check}  minHealthyPercent: 0\n")))?;
    wait_for("nobody to serve", Duration::from_secs(10), || {
        net.client.host.run(|| TcpStream::connect((VIP, 80))).ok()?.err().map(drop)
    })
}
