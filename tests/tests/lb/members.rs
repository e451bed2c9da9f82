//! Members come and go.

use crate::support::{VIP, ask, total, web};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;
use vnet_tests::{Agent, Machine, Process, Routed, wait_for};

fn scene() -> Result<Routed> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    Ok(net)
}

/// A connection that stays open: iperf3 would need a server each, `nc` is not everywhere; curl reads a slow download.
/// `rate`: how much of it a second.
fn long_download(net: &Routed, rate: &str) -> Result<Process> {
    net.client.host.start(
        "curl",
        &[
            "-s",
            "-S",
            "--limit-rate",
            rate,
            "-m",
            "40",
            "-o",
            "/dev/null",
            "-w",
            "%{exitcode} %{size_download}",
            &format!("http://{VIP}/big"),
        ],
    )
}

/// More than all the buffers on the way take.
const BIG: usize = 30_000_000;

fn put_big_file(members: &mut [Machine], dirs: &[std::path::PathBuf]) -> Result<()> {
    ensure!(members.len() == dirs.len());
    for dir in dirs {
        std::fs::write(dir.join("big"), vec![b'x'; BIG]).with_context(|| format!("writing to {}", dir.display()))?;
    }
    Ok(())
}

#[test]
fn a_drained_member_keeps_its_connections_and_gets_no_new_ones() -> Result<()> {
    let mut net = Routed::new(3)?;
    let dirs = net.members.iter_mut().map(|m| Ok(m.serve_http(8080)?.to_owned())).collect::<Result<Vec<_>>>()?;
    put_big_file(&mut net.members, &dirs)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    let members: Vec<_> = net.members.iter().collect();
    agent.apply(&web(&members, 8080, ""))?;
    let mut downloads: Vec<Process> = (0..9).map(|_| long_download(&net, "8M")).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_millis(500));
    agent.ctl(&["lb", "drain", "web", "m1"])?;
    let answers = ask(&net.client.host, VIP, 60)?;
    ensure!(!answers.contains_key("m1") && total(&answers) == 60, "{answers:?}");
    for d in &mut downloads {
        d.wait(Duration::from_secs(20))?;
        ensure!(d.printed().trim() == format!("0 {BIG}"), "every download ends well: {}", d.printed());
    }
    agent.ctl(&["lb", "undrain", "web", "m1"])?;
    let answers = ask(&net.client.host, VIP, 60)?;
    ensure!(answers.contains_key("m1"), "{answers:?}");
    Ok(())
}

#[test]
fn the_connections_of_a_removed_member_are_reset() -> Result<()> {
    let mut net = Routed::new(2)?;
    let dirs = net.members.iter_mut().map(|m| Ok(m.serve_http(8080)?.to_owned())).collect::<Result<Vec<_>>>()?;
    put_big_file(&mut net.members, &dirs)?;
    // Where the whole file has room in the client's buffer, it is read to its end, reset or not.
    net.client.host.sysctl("net/ipv4/tcp_rmem", "4096 131072 1048576")?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&[&net.members[0]], 8080, ""))?;
    // Fifteen seconds: however long the change takes on a busy machine, it comes before the end.
    let mut download = long_download(&net, "2M")?;
    std::thread::sleep(Duration::from_millis(500));
    agent.apply(&web(&[&net.members[1]], 8080, ""))?;
    download.wait(Duration::from_secs(10)).context("a reset ends the download at once")?;
    // 56: failure in receiving.
    ensure!(download.printed().contains("56 "), "{}", download.printed());
    let answers = ask(&net.client.host, VIP, 10)?;
    ensure!(answers.get("m2") == Some(&10), "{answers:?}");
    Ok(())
}

#[test]
fn weights_are_shares() -> Result<()> {
    let net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    agent.ctl(&["lb", "weight", "web", "m1", "8"])?;
    let answers = ask(&net.client.host, VIP, 200)?;
    let m1 = answers.get("m1").copied().unwrap_or(0);
    // 160 expected, standard deviation 5.7.
    ensure!((130..=190).contains(&m1) && total(&answers) == 200, "{answers:?}");
    Ok(())
}

#[test]
fn no_member_means_refused() -> Result<()> {
    let net = scene()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&[&net.members[0]], 8080, ""))?;
    agent.ctl(&["lb", "drain", "web", "m1"])?;
    let get = |extra: &str| {
        net.client
            .host
            .printed("curl", &["-s", "-o", "/dev/null", "-w", "%{exitcode}", "-m", "1", &format!("http://{VIP}/{extra}")])
    };
    ensure!(get("")?.trim() == "7", "refused");
    agent.apply(&web(&[&net.members[0]], 8080, "  onNoMember: drop\n"))?;
    ensure!(get("")?.trim() == "28", "timed out");
    agent.ctl(&["lb", "undrain", "web", "m1"])?;
    wait_for("the member to be back", Duration::from_secs(2), || (get("").ok()?.trim() == "0").then_some(()))
}
