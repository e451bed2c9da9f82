//! Suite `quarantine`: from an alert to the datapath, and back.

mod scene;

use crate::Options;
use crate::report::{Of, Row};
use anyhow::{Context as _, Result, ensure};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use vnet_tests::{Agent, MARK, Marked, Session};

use scene::Scene;

const SUITE: &str = "quarantine";
const CUT: &str = "alert to the agent → enforced";
const BACK: &str = "its end → first packet passes";
const DATAGRAM: &str = "marked datagram, Suricata → enforced";
const FILE: &str = "marked file over HTTP, Suricata → enforced";
const BYTES: &str = "after enforcement";

/// Between two trials: what the last one caused has been done.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs what is wanted of the suite.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let net = Scene::network()?;
    let agent = Agent::start(&net.host, &["client0"])?;
    let scene = Scene::new(&net, &agent)?;
    let trials = if options.quick { 50 } else { 1000 };
    let mut rows = Vec::new();
    if options.wants(SUITE, CUT) || options.wants(SUITE, BACK) {
        rows.extend(by_hand(&scene, trials)?);
    }
    if options.wants(SUITE, DATAGRAM) || options.wants(SUITE, FILE) {
        rows.extend(through_suricata(&scene, trials / 2)?);
    }
    if options.wants(SUITE, BYTES) {
        rows.extend(bytes(&scene, if options.quick { 20 } else { 1000 })?);
    }
    rows.retain(|row| options.wants(SUITE, &row.case));
    Ok(rows)
}

fn us(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
}

/// Alerts of our own to the agent's socket, and their end.
fn by_hand(scene: &Scene<'_>, trials: usize) -> Result<Vec<Row>> {
    let flow = scene.flow()?;
    let (mut cut, mut back) = (Vec::new(), Vec::new());
    for trial in 0..trials {
        say(SUITE, "alerts", trial, trials);
        flow.passes().context("before an alert")?;
        let before = scene.generation()?;
        let sent = Instant::now();
        scene.alert()?;
        cut.push(scene.held(before)?.duration_since(sent));
        std::thread::sleep(PAUSE);
        ensure!(!flow.is_open()?, "trial {trial}: it is held, and a packet passed");
        let cleared = Instant::now();
        scene.clear()?;
        back.push(flow.passes()?.duration_since(cleared));
        std::thread::sleep(PAUSE);
    }
    Ok(vec![
        Row::new(SUITE, CUT, "us", &us(&cut)).with_most(Of::P99, 1000.0),
        Row::new(SUITE, BACK, "us", &us(&back)).with_most(Of::Max, 100_000.0),
    ])
}

fn through_suricata(scene: &Scene<'_>, trials: usize) -> Result<Vec<Row>> {
    let ids = scene.suricata()?;
    let server = Marked::serve(&scene.net.bystander.host, (scene.net.bystander.v4, 81).into())?;
    let flow = scene.flow()?;
    let sink = SocketAddr::from((scene.net.bystander.v4, 9999));
    // Where nobody listens, the next sending fails.
    let _sink = scene.net.bystander.host.run(|| UdpSocket::bind(sink))??;
    let marked = scene.socket(sink)?;
    let (mut datagrams, mut files) = (Vec::new(), Vec::new());
    for trial in 0..trials {
        say(SUITE, "alerts through Suricata", trial, trials);
        for by_file in [false, true] {
            let before = scene.generation()?;
            let (_open, sent) = if by_file {
                let (open, sent) = server.fetch(&scene.net.client.host)?;
                (Some(open), sent)
            } else {
                let sent = Instant::now();
                marked.send(MARK.as_bytes())?;
                (None, sent)
            };
            let took = scene.held(before).with_context(|| ids.printed())?.duration_since(sent);
            if by_file {
                files.push(took)
            } else {
                datagrams.push(took)
            }
            std::thread::sleep(PAUSE);
            scene.clear()?;
            flow.passes()?;
            std::thread::sleep(PAUSE);
        }
    }
    let rows = [(DATAGRAM, datagrams), (FILE, files)].into_iter().flat_map(|(case, times)| {
        let row = |of, goal| Row::new(SUITE, case, "us", &us(&times)).with_most(of, goal);
        [row(Of::Median, 500.0), row(Of::P99, 5000.0)]
    });
    Ok(rows.collect())
}

/// What two busy connections, one opened by the VM and one to it, get through from the moment of enforcement on.
fn bytes(scene: &Scene<'_>, trials: usize) -> Result<Vec<Row>> {
    const BEFORE: Duration = Duration::from_millis(5);
    const AFTER: Duration = Duration::from_millis(20);
    let flow = scene.flow()?;
    let (vm, other) = (&scene.net.client, &scene.net.bystander);
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for trial in 0..trials {
        say(SUITE, "trials with open connections", trial, trials);
        let mut opened = Session::open(&vm.host, &other.host, other.v4.into(), 2222)?;
        let mut accepted = Session::open(&other.host, &vm.host, vm.v4.into(), 2222)?;
        for session in [&mut opened, &mut accepted] {
            works(session, BEFORE).with_context(|| format!("trial {trial}"))?;
        }
        let before = scene.generation()?;
        scene.alert()?;
        while !scene.is_held(before)? {
            for session in [&mut opened, &mut accepted] {
                session.send();
            }
        }
        for session in [&mut opened, &mut accepted] {
            session.drain()?;
        }
        let (opened, accepted) = (opened.exchange(AFTER)?, accepted.exchange(AFTER)?);
        // The VM is the client of one, and the server of the other.
        out.push((opened[0] + accepted[1]) as f64);
        back.push((opened[1] + accepted[0]) as f64);
        scene.clear()?;
        flow.passes()?;
    }
    Ok(vec![
        Row::new(SUITE, format!("from the VM, {BYTES}"), "bytes", &out).with_most(Of::Max, 0.0),
        Row::new(SUITE, format!("to the VM, {BYTES}"), "bytes", &back).with_most(Of::Max, 0.0),
    ])
}

/// Waits until a connection carries something both ways, for a moment at least.
fn works(session: &mut Session, moment: Duration) -> Result<()> {
    let (start, mut arrived) = (Instant::now(), [0; 2]);
    while arrived.contains(&0) {
        ensure!(start.elapsed() < Duration::from_secs(5), "the connection carries nothing: {arrived:?}");
        let more = session.exchange(moment)?;
        arrived = [arrived[0] + more[0], arrived[1] + more[1]];
    }
    Ok(())
}

fn say(suite: &str, what: &str, trial: usize, trials: usize) {
    if trial.is_multiple_of(100) {
        eprintln!("{suite}: {what}, {trial} of {trials}");
    }
}
