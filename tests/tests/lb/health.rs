//! Members that die and come back, however they are asked.

use crate::support::{VIP, ask, json, load_balancer, metrics, total, web};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Machine, Routed, TempDir, wait_for};

/// How often the members of these scenes are asked.
const QUICK: &str = "intervalMs: 200, timeoutMs: 150, rise: 1, fall: 2";

/// State and reason of a member.
fn state(agent: &Agent<'_>, lb: &str, member: &str) -> Result<(String, String)> {
    let lb = json(&agent.ctl(&["lb", "members", lb, "-o", "json"])?)?;
    let members = lb["members"].as_array().context("no members")?;
    let it = members.iter().find(|m| m["name"] == member).with_context(|| format!("no member {member}"))?;
    let text = |key: &str| it[key].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("health")))
}

/// Waits until a member is in this state, for a reason that has this in it.
fn wait_for_state(agent: &Agent<'_>, lb: &str, member: &str, wanted: &str, why: &str) -> Result<()> {
    let mut last = String::new();
    let there = wait_for(&format!("{member} of {lb} to be {wanted}: {why}"), Duration::from_secs(12), || {
        let (state, reason) = state(agent, lb, member).ok()?;
        last = format!("{state}: {reason}");
        (state == wanted && reason.contains(why)).then_some(())
    });
    there.with_context(|| format!("it is {last}\n{}", agent.logged()))
}

#[test]
fn a_dead_member_gets_no_new_connections_in_time() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let check = "  healthCheck: { intervalMs: 200, timeoutMs: 100, rise: 1, fall: 2 }\n";
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, check))?;
    wait_for("the members to be checked", Duration::from_secs(12), || {
        let members = agent.ctl(&["lb", "members", "web"]).ok()?;
        (!members.contains("unknown")).then_some(())
    })?;
    net.members[0].end_servers();
    let dead = Instant::now();
    // interval × fall + timeout + 100 ms
    let bound = Duration::from_millis(2 * 200 + 100 + 100);
    std::thread::sleep(bound.saturating_sub(dead.elapsed()));
    // Whether the bound held on a machine that does other things too is printed; that the member gets nothing any more is asserted.
    let by_others = || {
        let answers = ask(&net.client.host, VIP, 60).ok()?;
        (answers.keys().eq(["m2", "m3"]) && total(&answers) == 60).then_some(())
    };
    println!("the bound of {} ms {}", bound.as_millis(), if by_others().is_some() { "held" } else { "DID NOT HOLD" });
    wait_for("the dead member to get no new connections", Duration::from_secs(5), by_others)?;
    net.members[0].serve_http(8080)?;
    wait_for("the member to be back", Duration::from_secs(3), || {
        ask(&net.client.host, VIP, 20).ok()?.contains_key("m1").then_some(())
    })
}

#[test]
fn a_member_leaves_and_returns_with_the_status_of_a_page() -> Result<()> {
    let mut net = Routed::new(2)?;
    let pages = net.members.iter_mut().map(|m| Ok(m.serve_http(8080)?.join("checked/up"))).collect::<Result<Vec<PathBuf>>>()?;
    pages.iter().try_for_each(|page| std::fs::write(page, "yes\n"))?;
    let agent = Agent::start(&net.host, &["client0"])?;
    let members: Vec<&Machine> = net.members.iter().collect();
    let check = |http: &str| web(&members, 8080, &format!("  healthCheck: {{ {QUICK}, http: {{ {http} }} }}\n"));
    agent.apply(&check("path: /up, host: checked.lab"))?;
    ["m1", "m2", "m1-v6"].iter().try_for_each(|member| wait_for_state(&agent, "web", member, "active", ""))?;
    std::fs::remove_file(&pages[0])?;
    // The server is there, and answers connections.
    for member in ["m1", "m1-v6"] {
        wait_for_state(&agent, "web", member, "down", "8080/up: the status is 404 Not Found")?;
    }
    let answers = ask(&net.client.host, VIP, 30)?;
    ensure!(answers.get("m2") == Some(&30), "{answers:?}");
    std::fs::write(&pages[0], "yes\n")?;
    wait_for_state(&agent, "web", "m1", "active", "")?;
    let answers = ask(&net.client.host, VIP, 30)?;
    ensure!(answers.contains_key("m1") && total(&answers) == 30, "{answers:?}");
    let events = agent.ctl(&["events", "--kind", "health"])?;
    ensure!(events.contains("member m1 of web (10.0.1.11:8080) is down: GET http://10.0.1.11:8080/up"), "{events}");
    ensure!(events.contains("member m1 of web (10.0.1.11:8080) is up"), "{events}");
    // Another host has no such page, unless that is what is wanted.
    agent.apply(&check("path: /up"))?;
    wait_for_state(&agent, "web", "m2", "down", "404")?;
    agent.apply(&check("path: /up, status: [200-299, 404]"))?;
    wait_for_state(&agent, "web", "m2", "active", "")
}

/// Runs openssl, in a directory.
fn openssl(net: &Routed, dir: &Path, args: &str) -> Result<()> {
    let script = format!("cd {} && openssl {args} 2>&1", dir.display());
    net.host.output("sh", &["-c", &script]).map(drop)
}

/// Certificates for `checked.lab`: `m1.pem` by the CA `ca.pem`, `m2.pem` by another.
fn certificates(net: &Routed) -> Result<TempDir> {
    let dir = TempDir::new()?;
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for (ca, member) in [("ca", "m1"), ("other", "m2")] {
        let path = dir.path();
        let ca_options = "-days 9 -addext basicConstraints=critical,CA:TRUE";
        openssl(net, path, &format!("req -x509 {new} -keyout {ca}.key -out {ca}.pem -subj '/CN={ca}' {ca_options}"))?;
        let name = "-subj /CN=checked.lab -addext subjectAltName=DNS:checked.lab -addext basicConstraints=CA:FALSE";
        openssl(net, path, &format!("req {new} -keyout {member}.key -out {member}.csr {name}"))?;
        let by = format!("-CA {ca}.pem -CAkey {ca}.key -CAcreateserial -copy_extensions copy -days 9");
        openssl(net, path, &format!("x509 -req -in {member}.csr {by} -out {member}.pem"))?;
    }
    Ok(dir)
}

#[test]
fn certificates_are_verified() -> Result<()> {
    let mut net = Routed::new(2)?;
    let dir = certificates(&net)?;
    let file = |name: String| dir.path().join(name);
    for m in &mut net.members {
        let (certificate, key) = (file(format!("{}.pem", m.name)), file(format!("{}.key", m.name)));
        m.serve_https(8443, &certificate, &key)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let members: Vec<&Machine> = net.members.iter().collect();
    let apply = |more: &str| {
        let check = format!("  healthCheck: {{ {QUICK}, http: {{ https: true, {more} }} }}\n");
        agent.apply(&web(&members, 8443, &check))
    };
    let ca = file("ca.pem".to_owned());
    apply(&format!("serverName: checked.lab, caFile: {}", ca.display()))?;
    wait_for_state(&agent, "web", "m1", "active", "")?;
    wait_for_state(&agent, "web", "m1-v6", "active", "")?;
    wait_for_state(&agent, "web", "m2", "down", "TLS: invalid peer certificate: UnknownIssuer")?;
    // Another CA is trusted from now on.
    std::fs::copy(file("other.pem".to_owned()), &ca)?;
    wait_for_state(&agent, "web", "m2", "active", "")?;
    wait_for_state(&agent, "web", "m1", "down", "UnknownIssuer")?;
    apply(&format!("serverName: other.lab, caFile: {}", ca.display()))?;
    wait_for_state(&agent, "web", "m2", "down", "not valid for name")?;
    apply("insecureSkipVerify: true")?;
    wait_for_state(&agent, "web", "m1", "active", "")?;
    wait_for_state(&agent, "web", "m2", "active", "")
}

/// Asks a DNS server for the TXT record of whoami.lab. `02 6d` starts the text of the answer: its length, and an m.
const DNS: &str = "udp: { send: 'hex:0001010000010000000000000677686f616d69036c61620000100001', expect: 'hex:026d' }";

#[test]
fn datagrams_and_pings() -> Result<()> {
    let mut net = Routed::new(2)?;
    for m in &mut net.members {
        m.serve_dns(53)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let members: Vec<&Machine> = net.members.iter().collect();
    let check = |check: &str| format!("  healthCheck: {{ {QUICK}, {check} }}\n");
    agent.apply(&load_balancer("dns", "UDP", 53, &members, 53, &check(DNS)))?;
    agent.apply(&load_balancer("pinged", "UDP", 54, &members, 53, &check("icmp: {}")))?;
    for lb in ["dns", "pinged"] {
        ["m1", "m2", "m1-v6"].iter().try_for_each(|member| wait_for_state(&agent, lb, member, "active", ""))?;
    }
    net.members[0].host.sysctl("net/ipv4/icmp_echo_ignore_all", 1)?;
    net.members[0].host.sysctl("net/ipv6/icmp/echo_ignore_all", 1)?;
    for (member, address) in [("m1", "10.0.1.11"), ("m1-v6", "fd00:1::11")] {
        wait_for_state(&agent, "pinged", member, "down", &format!("ping of {address}: no answer within 150 ms"))?;
    }
    ensure!(state(&agent, "dns", "m1")?.0 == "active", "it answers datagrams");
    net.members[0].host.sysctl("net/ipv4/icmp_echo_ignore_all", 0)?;
    wait_for_state(&agent, "pinged", "m1", "active", "")?;
    net.members[1].end_servers();
    for member in ["m2", "m2-v6"] {
        wait_for_state(&agent, "dns", member, "down", "Connection refused")?;
    }
    ensure!(state(&agent, "pinged", "m2")?.0 == "active", "it answers pings");
    net.members[1].serve_dns(53)?;
    wait_for_state(&agent, "dns", "m2", "active", "")?;
    let members: Vec<&Machine> = net.members.iter().collect();
    agent.apply(&load_balancer("dns", "UDP", 53, &members, 53, &check("udp: { send: 'no question', expect: x }")))?;
    wait_for_state(&agent, "dns", "m1", "down", "UDP to 10.0.1.11:53: ")
}

/// Probes reach a member that may neither send nor be sent anything, and are answered.
#[test]
fn rules_do_not_keep_probes_out() -> Result<()> {
    let mut net = Routed::new(1)?;
    net.members[0].serve_http(8080)?;
    net.members[0].serve_dns(53)?;
    let agent = Agent::start(&net.host, &["client0", "m1"])?;
    let sealed = "\
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: sealed }
spec:
  selector: { matchLabels: { app: sealed } }
  defaults: { ingress: deny, egress: deny }
---
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: m1, labels: { app: sealed } }
spec: { device: m1, addresses: [10.0.1.11, 'fd00:1::11'] }
";
    agent.apply(sealed)?;
    let members: Vec<&Machine> = net.members.iter().collect();
    for (name, port, to, check) in [
        ("a-tcp", 81, 8080, "port: 8080"),
        ("a-http", 82, 8080, "http: {}"),
        ("a-udp", 83, 53, DNS),
        ("a-ping", 84, 53, "icmp: {}"),
    ] {
        agent.apply(&load_balancer(name, "TCP", port, &members, to, &format!("  healthCheck: {{ {QUICK}, {check} }}\n")))?;
        for member in ["m1", "m1-v6"] {
            wait_for_state(&agent, name, member, "active", "")?;
        }
    }
    for address in ["10.0.1.11", "fd00:1::11"] {
        ensure!(net.client.host.output("ping", &["-c", "1", "-W", "0.5", address]).is_err(), "the rules are not at work");
        ensure!(net.host.output("ping", &["-c", "1", "-W", "0.5", address]).is_err(), "this host's own pings are no probes");
    }
    // They stay active: a change of the rules does not end what is checked.
    agent.apply(
        &sealed.replace("app: sealed } }\n  defaults", "app: sealed } }\n  ingress: [{ name: none, action: deny }]\n  defaults"),
    )?;
    std::thread::sleep(Duration::from_millis(1000));
    for name in ["a-tcp", "a-http", "a-udp", "a-ping"] {
        ensure!(state(&agent, name, "m1")?.0 == "active", "{name}: {:?}", state(&agent, name, "m1")?);
    }
    Ok(())
}

#[test]
fn a_member_that_resets_is_ejected_for_a_while() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members[1..] {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let passive = "  passiveHealth: { failures: 5, windowMs: 5000, baseEjectMs: 6000, maxEjectMs: 9000 }\n";
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, passive))?;
    // What was counted before the agent looked for the first time, in the first second, is not held against anybody.
    std::thread::sleep(Duration::from_millis(2500));
    // Nobody listens at m1: a third of these is refused.
    let answers = ask(&net.client.host, VIP, 60)?;
    ensure!((20..=55).contains(&total(&answers)) && !answers.contains_key("m1"), "{answers:?}");
    wait_for_state(&agent, "web", "m1", "ejected", "ejected for 6 s: ")?;
    let answers = ask(&net.client.host, VIP, 60)?;
    ensure!(total(&answers) == 60, "nobody is sent to m1: {answers:?}");
    let table = agent.ctl(&["lb", "members", "web"])?;
    ensure!(table.contains("ejected") && table.contains("connections failed ("), "{table}");
    net.members[0].serve_http(8080)?;
    wait_for_state(&agent, "web", "m1", "active", "")?;
    let answers = ask(&net.client.host, VIP, 60)?;
    ensure!(answers.contains_key("m1") && total(&answers) == 60, "{answers:?}");
    let events = agent.ctl(&["events", "--kind", "health"])?;
    for said in
        ["member m1 of web (10.0.1.11:8080) is ejected for 6 s", "member m1 of web (10.0.1.11:8080) takes connections again"]
    {
        ensure!(events.contains(said), "{said}: {events}");
    }
    Ok(())
}

/// What ICMP says of datagrams is all there is to go by.
#[test]
fn a_member_whose_port_is_closed_is_ejected() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members[1..] {
        m.serve_dns(5353)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let passive = "  passiveHealth: { failures: 5, windowMs: 10000, baseEjectMs: 60000, maxEjectMs: 60000 }\n";
    agent.apply(&load_balancer("dns", "UDP", 53, &net.members.iter().collect::<Vec<_>>(), 5353, passive))?;
    std::thread::sleep(Duration::from_millis(2500));
    // Each from a port of its own. Those that m1 gets are refused by its kernel.
    let dig = |times: usize| {
        let dig =
            || net.client.host.printed("dig", &[&format!("@{VIP}"), "+timeout=2", "+tries=1", "+short", "TXT", "whoami.lab"]);
        (0..times).map(|_| dig()).collect::<Result<Vec<_>>>()
    };
    let answers = dig(40)?;
    ensure!(answers.iter().any(|answer| answer.contains("refused")), "{answers:?}");
    wait_for_state(&agent, "dns", "m1", "ejected", "unreachable")?;
    let lb = json(&agent.ctl(&["lb", "members", "dns", "-o", "json"])?)?;
    let counts: Vec<u64> = ["m1", "m2"]
        .iter()
        .filter_map(|name| lb["members"].as_array()?.iter().find(|m| m["name"] == *name)?["unreachable"].as_u64())
        .collect();
    ensure!(matches!(counts[..], [refused, 0] if refused >= 5), "{lb}");
    let answers = dig(20)?;
    ensure!(answers.iter().all(|answer| answer.contains("\"m2\"") || answer.contains("\"m3\"")), "{answers:?}");
    Ok(())
}

/// How long members take to answer, and who resets: as the datapath saw it.
#[test]
fn connects_are_timed_and_resets_told_apart() -> Result<()> {
    let mut net = Routed::new(2)?;
    net.members[1].serve_http(8080)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    let answered = total(&ask(&net.client.host, VIP, 40)?) as u64;
    let lb = json(&agent.ctl(&["lb", "members", "web", "-o", "json"])?)?;
    let member = |name: &str| lb["members"].as_array().and_then(|all| all.iter().find(|m| m["name"] == name)).cloned();
    let (Some(refusing), Some(serving)) = (member("m1"), member("m2")) else { anyhow::bail!("{lb}") };
    let connects = |m: &serde_json::Value| m["connect"]["buckets"].as_array().map(|b| b.iter().filter_map(|n| n.as_u64()).sum());
    ensure!(connects(&serving) == Some(answered) && serving["connect"]["total_us"].as_u64() > Some(0), "{serving}");
    ensure!(serving["resets_by_member"] == 0 && serving["unreachable"] == 0, "{serving}");
    // Who refuses has answered by a reset, not by SYN and ACK.
    ensure!(connects(&refusing) == Some(0), "{refusing}");
    ensure!(refusing["resets_by_member"].as_u64() == Some(40 - answered) && refusing["resets"] == refusing["resets_by_member"]);
    let table = agent.ctl(&["lb", "members", "web", "-o", "wide"])?;
    ensure!(table.contains("CONNECT") && table.contains("µs") && table.contains("BY MEMBER"), "{table}");
    let metrics = metrics(&agent, &net.host)?;
    for line in [
        format!("vnet_member_connect_seconds_count{{lb=\"web\",member=\"m2\"}} {answered}"),
        format!("vnet_member_resets_by_member_total{{lb=\"web\",member=\"m1\"}} {}", 40 - answered),
        format!("vnet_member_connect_seconds_bucket{{lb=\"web\",member=\"m2\",le=\"+Inf\"}} {answered}"),
    ] {
        ensure!(metrics.contains(&line), "{line}: {metrics}");
    }
    Ok(())
}
