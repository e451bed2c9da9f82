//! A VM that fetches a marked file is held until a scan finds it clean: real Suricata, real clamd, real clients.

use crate::support::{Suspect, as_stranger, both, connects, nothing, reaches, wait_for_group};
use anyhow::{Context as _, Result, ensure};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use vnet_tests::{Capture, Host, Marked, Pins, Session, wait_for};

const MOMENT: Duration = Duration::from_millis(300);

/// Fetches the marked file with curl, and waits until the VM is held.
fn infect(suspect: &Suspect, pins: &Pins) -> Result<()> {
    let fetched = suspect.vm().printed("curl", &["-sS", "--max-time", "2", "http://10.0.1.50/marked"])?;
    let held = || pins.is_held(suspect.device).unwrap_or(false).then_some(());
    wait_for("the VM to be held", Duration::from_secs(5), held).with_context(|| format!("it got {fetched:?}"))
}

#[test]
fn a_marked_file_cuts_the_vm_off_until_a_scan_finds_it_clean() -> Result<()> {
    let suspect = Suspect::new("limited")?;
    let agent = suspect.agent()?;
    let _ids = suspect.suricata(&agent)?;
    let (vm, other) = (suspect.vm(), &suspect.net.bystander.host);
    let mut sessions = Vec::new();
    for (there, here) in both("10.0.1.50", "fd00:1::50")?.into_iter().zip(both("10.0.0.10", "fd00::10")?) {
        sessions.push(Session::open(vm, other, there, 2222)?);
        sessions.push(Session::open(other, vm, here, 2222)?);
    }
    for session in &mut sessions {
        let arrived = session.exchange(MOMENT)?;
        ensure!(arrived[0] > 0 && arrived[1] > 0, "the session works: {arrived:?}");
    }
    infect(&suspect, &suspect.pins()?)?;
    sessions.iter_mut().try_for_each(Session::drain)?;
    for session in &mut sessions {
        nothing(session.exchange(MOMENT)?)?;
    }
    wait_for_group(&agent, "web-1", "limited")?;
    let recorder = Capture::start(&suspect.net.members[1].host)?;
    only_help_is_reached(vm, other, &suspect)?;
    let seen = recorder.packets()?;
    let (here, help): (IpAddr, IpAddr) = ("10.0.0.10".parse()?, "10.0.1.11".parse()?);
    ensure!(seen.contains(&(here, help)) && seen.contains(&(help, here)), "the recorder sees both directions: {seen:?}");

    // An infected disk keeps it, a clean one brings it back.
    let scan = || agent.ctl(&["tag", "source", "scan", "clamav", "web-1"]);
    let infected = format!("{:#}", scan().expect_err("exit code 1"));
    ensure!(infected.contains("Vnet.Test.Mark"), "{infected}");
    std::thread::sleep(MOMENT);
    wait_for_group(&agent, "web-1", "limited")?;
    ensure!(!connects(vm, "10.0.1.50".parse()?, 80)?, "it is held as long as it is infected");
    std::fs::remove_file(suspect.guest.path().join("invoice.exe"))?;
    scan()?;
    reaches(vm, "10.0.1.50".parse()?, 80)?;
    wait_for_group(&agent, "web-1", "web")?;
    let log = agent.ctl(&["quarantine", "log", "web-1"])?;
    ensure!(log.contains("ids.malware") && log.contains("av.clean"), "the audit log has the evidence: {log}");
    Ok(())
}

fn only_help_is_reached(vm: &Host, other: &Host, suspect: &Suspect) -> Result<()> {
    for (help, away) in both("10.0.1.11", "fd00:1::11")?.into_iter().zip(both("10.0.1.50", "fd00:1::50")?) {
        ensure!(connects(vm, help, 80)?, "remediation at {help}");
        ensure!(!connects(vm, help, 8080)?, "another port of it");
        ensure!(!connects(vm, away, 80)?, "{away}");
    }
    ensure!(!connects(other, "10.0.0.10".parse()?, 22)?, "nobody reaches it");
    ensure!(!connects(&suspect.net.host, "10.0.0.10".parse()?, 22)?, "not even its own host");
    Ok(())
}

#[test]
fn whatever_it_connects_to_is_the_remediation_service() -> Result<()> {
    let suspect = Suspect::new("remediated")?;
    let agent = suspect.agent()?;
    let _ids = suspect.suricata(&agent)?;
    let vm = suspect.vm();
    ensure!(vm.output("curl", &["-sS", "http://10.0.1.50/"])?.starts_with("bystander "), "so far it is free");
    infect(&suspect, &suspect.pins()?)?;
    let packets = Capture::start(vm)?;
    // A server that it knows, one that nobody has, and another port.
    for to in ["10.0.1.50", "203.0.113.7", "10.0.1.50:8443"] {
        let answer = vm.output("curl", &["-sS", "--max-time", "3", &format!("http://{to}/")])?;
        ensure!(answer == "m1 10.0.1.11 10.0.0.10\n", "http://{to}/ was answered by {answer}");
    }
    let name = vm.output("dig", &["@203.0.113.7", "+short", "+timeout=2", "+tries=1", "whoami.lab", "TXT"])?;
    ensure!(name == "\"m1\"\n", "so was a question over UDP: {name}");
    let seen = packets.packets()?;
    let help: IpAddr = "10.0.1.11".parse()?;
    ensure!(seen.iter().all(|(from, to)| *from != help && *to != help), "the VM sees the addresses it asked for: {seen:?}");
    ensure!(!connects(&suspect.net.bystander.host, "10.0.0.10".parse()?, 22)?, "nobody reaches it");
    std::fs::remove_file(suspect.guest.path().join("invoice.exe"))?;
    agent.ctl(&["tag", "source", "scan", "clamav", "web-1"])?;
    wait_for("the web without a detour", Duration::from_secs(5), || {
        let answer = vm.printed("curl", &["-sS", "--max-time", "1", "http://10.0.1.50/"]).ok()?;
        answer.starts_with("bystander ").then_some(())
    })
}

#[test]
fn an_alert_cuts_it_off_within_milliseconds() -> Result<()> {
    const TRIALS: usize = 20;
    let suspect = Suspect::new("limited")?;
    let agent = suspect.agent()?;
    let ids = suspect.suricata(&agent)?;
    let (pins, server) = (suspect.pins()?, Marked::serve(&suspect.net.bystander.host, "10.0.1.50:81".parse()?)?);
    let mut times = Vec::new();
    for trial in 0..TRIALS {
        let (_open, sent) = server.fetch(suspect.vm()).with_context(|| format!("trial {trial}"))?;
        while !pins.is_held(suspect.device)? {
            ensure!(sent.elapsed() < Duration::from_secs(5), "trial {trial}: no alert\n{}\n{}", ids.printed(), agent.logged());
        }
        times.push(sent.elapsed());
        agent.ctl(&["tag", "rm", "web-1", "ids.malware", "--source", "suricata"])?;
        agent.ctl(&["quarantine", "release", "web-1", "--reason", "the next trial", "--yes"])?;
        reaches(suspect.vm(), "10.0.1.50".parse()?, 80)?;
    }
    times.sort_unstable();
    println!("marked file sent → VM held, {TRIALS} trials: p50 {:?}, p99 {:?}", times[TRIALS / 2], times[TRIALS - 1]);
    // The goals are the benchmark's; on a machine with other work to do they are missed.
    ensure!(times[TRIALS / 2] < Duration::from_millis(50), "{times:?}");
    Ok(())
}

#[test]
fn who_may_not_speak_is_not_heard() -> Result<()> {
    let suspect = Suspect::new("limited")?;
    let agent = suspect.agent()?;
    let vm = suspect.vm();
    let alert = include_str!("../../vectors/sources/suricata.json").lines().next().unwrap_or_default();
    let alert = alert.replace("10.0.0.2", "10.0.0.10");
    let eve = agent.dir().path().join("suricata/eve.sock");
    let code = "\n%{http_code}";
    let (socket, json) = (agent.socket().display().to_string(), "content-type: application/json");
    let post = |path: &str, body: &str| {
        let url = format!("http://vnet{path}");
        let curl = ["curl", "-sS", "-w", code, "--unix-socket", &socket, "-H", json, "--data-binary", body, &url];
        let stranger = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
        suspect.net.host.output("setpriv", &[&stranger[..], &curl].concat())
    };
    let forged = r#"{"tag": "host.broken", "vm": "web-1"}"#;
    for (path, body) in [
        ("/v1/sources/guest/events", forged),
        ("/v1/sources/suricata/events", alert.as_str()),
        ("/v1/tags", r#"{"subject": "web-1", "name": "ids.malware", "severity": 9}"#),
        ("/v1/quarantine/web-1/hold", r#"{"group": "limited", "reason": "mischief"}"#),
    ] {
        let answer = post(path, body)?;
        ensure!(answer.ends_with("\n403") && answer.contains("may look but not change"), "{path}: {answer}");
    }
    let send = || UnixDatagram::unbound()?.send_to(alert.as_bytes(), &eve);
    let refused = as_stranger(&suspect.net.host, send)?.map_err(|error| error.kind());
    ensure!(refused == Err(ErrorKind::PermissionDenied), "{refused:?}");
    // A source that may do one thing does another.
    let url = "http://vnet/v1/sources/guest/events";
    let event = r#"{"tag": "ids.malware", "vm": "web-1"}"#;
    let answer = suspect.net.host.output("curl", &["-sS", "--unix-socket", &socket, "--data-binary", event, url])?;
    ensure!(answer.contains("\"tags\":0") && answer.contains("may not"), "{answer}");
    let logged = || agent.ctl(&["quarantine", "log", "web-1"]).ok().filter(|log| log.contains("tag-refused"));
    let log = wait_for("the refusal in the audit log", Duration::from_secs(5), logged)?;
    ensure!(log.contains("guest") && log.contains("ids.malware"), "{log}");
    std::thread::sleep(MOMENT);
    ensure!(!suspect.pins()?.is_held(suspect.device)?, "it was moved");
    ensure!(agent.ctl(&["tag", "ls"])?.lines().count() <= 1, "no tag was set");
    wait_for_group(&agent, "web-1", "web")?;
    ensure!(connects(vm, "10.0.1.50".parse()?, 80)?, "nothing moved");
    Ok(())
}
