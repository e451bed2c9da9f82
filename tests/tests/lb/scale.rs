//! A thousand load balancers.

use crate::support::{ask, json, total};
use anyhow::{Context as _, Result, ensure};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Host, Routed, wait_for};

const GROUPS: usize = 1000;
const MEMBERS: usize = 10;
/// So many groups have health checks.
const CHECKED: usize = 4;
const FIRST: &str = "web0";
const FIRST_VIP: &str = "10.97.0.1";

/// `web0` to `web999`, each with a VIP of its own and ten members. Of the first `served`, some members are real, the others get
/// no flows, and their spec has the lines `more`.
fn policy(served: usize, real: &[Ipv4Addr], more: &str) -> Result<String> {
    let mut yaml = String::new();
    for g in 0..GROUPS {
        let (high, low) = (g / 250, g % 250 + 1);
        writeln!(yaml, "---\napiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web{g} }}")?;
        writeln!(yaml, "spec:\n  vips: [10.97.{high}.{low}]\n  protocol: TCP\n  ports: [80]")?;
        let (real, more, weight) = if g < served { (real, more, ", weight: 0") } else { (&[][..], "", "") };
        writeln!(yaml, "{more}  members:")?;
        for (m, address) in real.iter().enumerate() {
            writeln!(yaml, "    - {{ name: real{m}, address: {address}, port: 8080 }}")?;
        }
        for m in real.len()..MEMBERS {
            writeln!(yaml, "    - {{ address: 10.98.{m}.{low}, port: {}{weight} }}", 8000 + high)?;
        }
    }
    Ok(yaml)
}

#[test]
fn a_thousand_groups_of_ten() -> Result<()> {
    let mut net = Routed::new(2)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let idle = json(&agent.ctl(&["status", "-o", "json"])?)?;
    let yaml = policy(1, &[net.members[0].v4, net.members[1].v4], "")?;
    let begun = Instant::now();
    agent.apply(&yaml)?;
    let applied = begun.elapsed();

    let status = json(&agent.ctl(&["status", "-o", "json"])?)?;
    let number = |s: &serde_json::Value, name: &str| s[name].as_u64().with_context(|| format!("{name} in {s}"));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    ensure!(number(&status, "load_balancers")? == GROUPS as u64, "{status}");
    let maglev =
        status["maps"].as_array().into_iter().flatten().find(|m| m["name"] == "MAGLEV").context("MAGLEV in the status")?;
    println!(
        "{GROUPS} load balancers x {MEMBERS} members: applied in {applied:.2?}; agent {:.1} MiB resident (idle {:.1}), maps {:.1} MiB \
         (idle {:.1}), of that pick tables {:.1} MiB",
        mib(number(&status, "rss_bytes")?),
        mib(number(&idle, "rss_bytes")?),
        mib(number(&status, "map_memory_bytes")?),
        mib(number(&idle, "map_memory_bytes")?),
        mib(number(maglev, "memory_bytes")?),
    );
    ensure!(number(maglev, "memory_bytes")? <= 64 << 20, "pick tables are bounded: {maglev}");
    let answers = ask(&net.client.host, FIRST_VIP, 40)?;
    ensure!(total(&answers) == 40 && answers.len() == 2, "{answers:?}");
    net.members[0].end_servers();
    time_drains(&agent, &net.client.host)
}

/// What one change among so many takes, from the start of the command until the maps say it: the drained member refuses connections,
/// so the last one that is refused was the last one it got.
fn time_drains(agent: &Agent<'_>, client: &Host) -> Result<()> {
    let (mut written, mut ended) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        let (starting, started) = channel();
        let seen = std::thread::scope(|scope| -> Result<Seen> {
            let connecting = scope.spawn(|| {
                client.run(move || {
                    // Connections are made for a while before the command; entering the host may take long.
                    let begun = Instant::now() + Duration::from_millis(50);
                    starting.send(begun)?;
                    connect_until(FIRST_VIP, begun, Duration::from_millis(400))
                })
            });
            let begun = started.recv()?;
            std::thread::sleep(begun.saturating_duration_since(Instant::now()));
            agent.ctl(&["lb", "drain", FIRST, "real0"])?;
            ended.push(begun.elapsed());
            connecting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?
        })?;
        ensure!(seen.lost > 0 && seen.answered > 0, "both members get flows, and one serves: {seen:?}");
        written.push(seen.last_lost);
        agent.ctl(&["lb", "undrain", FIRST, "real0"])?;
    }
    for (what, mut times) in [("the last new flow to the member", written), ("the end of the command", ended)] {
        times.sort();
        println!("drain: {what} after {:.1?} (median; longest {:.1?})", times[times.len() / 2], times[times.len() - 1]);
    }
    Ok(())
}

#[test]
fn a_dead_member_gets_no_new_connections_in_time_among_a_thousand_groups() -> Result<()> {
    let mut net = Routed::new(2)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let check = "  healthCheck: { intervalMs: 200, timeoutMs: 100, rise: 1, fall: 2 }\n";
    agent.apply(&policy(CHECKED, &[net.members[0].v4, net.members[1].v4], check)?)?;
    // interval × fall + timeout + 100 ms
    let bound = Duration::from_millis(2 * 200 + 100 + 100);
    // On a machine that does other things too, the agent or this test may not run for a while. Whether the bound itself held is
    // printed; that it ends is asserted.
    let slack = Duration::from_millis(1300);
    for silent in [false, true, false, true] {
        wait_for("both members to serve", Duration::from_secs(5), || {
            let members = agent.ctl(&["lb", "members", FIRST]).ok()?;
            let answers = ask(&net.client.host, FIRST_VIP, 20).ok()?;
            (!members.contains("unknown") && answers.len() == 2).then_some(())
        })?;
        // Before it dies: what is measured is rather too long than too short.
        let killed = Instant::now();
        if silent {
            // Without a way back nothing is answered.
            net.members[0].host.ip("route del default\nroute del 10.0.1.1 dev eth0")?;
        } else {
            net.members[0].end_servers();
        }
        let seen = net.client.host.run(|| connect_until(FIRST_VIP, killed, bound + slack))??;
        println!(
            "a member that {}: {} of {} new flows went to it, the last after {} ms; the bound of {} ms {}",
            if silent { "is silent" } else { "refuses" },
            seen.lost,
            seen.lost + seen.answered,
            seen.last_lost.as_millis(),
            bound.as_millis(),
            if seen.last_lost <= bound { "held" } else { "DID NOT HOLD" },
        );
        ensure!(seen.lost > 0, "before the first check nobody knows that it is dead");
        wait_for("the dead member to get no new flows", Duration::from_secs(5), || {
            let answers = ask(&net.client.host, FIRST_VIP, 20).ok()?;
            (total(&answers) == 20 && answers.len() == 1).then_some(())
        })?;
        if silent {
            net.members[0].host.ip("route add 10.0.1.1 dev eth0\nroute add default via 10.0.1.1")?;
        } else {
            net.members[0].serve_http(8080)?;
        }
    }
    Ok(())
}

/// What became of new connections.
#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    /// Those that went to the dead member: refused, or without an answer.
    lost: usize,
    /// When the last of them began.
    last_lost: Duration,
}

/// Makes a connection each millisecond until it is `end` after `since`. None waits for those before it, which may go to a silent
/// member.
fn connect_until(vip: &str, since: Instant, end: Duration) -> Result<Seen> {
    let to = SocketAddr::new(vip.parse()?, 80);
    let mut seen = Seen::default();
    std::thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        while since.elapsed() < end {
            threads.push(scope.spawn(move || {
                let begun = since.elapsed();
                // Less than a second: a SYN that is sent again would be counted at the time of the first.
                (begun, TcpStream::connect_timeout(&to, Duration::from_millis(500)))
            }));
            std::thread::sleep(Duration::from_millis(1));
        }
        for thread in threads {
            match thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                (_, Ok(_)) => seen.answered += 1,
                (begun, Err(e)) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::TimedOut) => {
                    seen.lost += 1;
                    seen.last_lost = seen.last_lost.max(begun);
                }
                (_, Err(e)) => return Err(e).context("connecting to the VIP"),
            }
        }
        Ok(())
    })?;
    Ok(seen)
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() -> Result<()> {
    let mut net = Routed::new(1)?;
    net.members[0].serve_http(8080)?;
    let agent = Agent::start_with(&net.host, &["client0"], &["--max-members", "50"])?;
    let real = net.members[0].v4;
    let small = "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: { name: web }\nspec:\n  vips: [10.96.0.10]\n  \
                 protocol: TCP\n  ports: [80]\n  members:\n";
    agent.apply(&format!("{small}    - {{ address: {real}, port: 8080 }}\n"))?;
    let mut yaml = String::new();
    for g in 0..10 {
        writeln!(yaml, "---\napiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: big{g} }}")?;
        writeln!(yaml, "spec:\n  vips: [10.97.0.{}]\n  protocol: TCP\n  ports: [80]\n  members:", g + 1)?;
        for m in 1..=10 {
            writeln!(yaml, "    - {{ address: 10.98.{g}.{m}, port: 80 }}")?;
        }
    }
    let refused = agent.apply(&yaml).err().context("it must be refused")?;
    let text = format!("{refused:#}");
    ensure!(text.contains("big") && text.contains("--max-members"), "it says what does not fit: {text}");
    let status = json(&agent.ctl(&["status", "-o", "json"])?)?;
    ensure!(status["load_balancers"] == 1, "{status}");
    ensure!(total(&ask(&net.client.host, "10.96.0.10", 5)?) == 5, "what was there serves");
    Ok(())
}
