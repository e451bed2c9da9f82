//! An agent that is killed again and again in the midst of tags, holds and releases.

use crate::support::{GROUPS, connects, json, post, scene, wait_for_group};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_tests::{Agent, Host, Pins, wait_for};

/// How open a VM is: 0 in `isolated`, 1 in `limited`, 2 in its own group.
type Level = u8;
const OPEN: Level = 2;

fn level(group: &str) -> Level {
    match group {
        "isolated" => 0,
        "limited" => 1,
        _ => OPEN,
    }
}

/// What is done to the VM.
#[derive(Clone, Copy, Debug)]
enum Step {
    Set(&'static str),
    Clear(&'static str),
    Hold(&'static str),
    Release,
}

impl Step {
    fn random(random: &mut Random) -> Self {
        let tag = ["malware", "odd"][random.below(2) as usize];
        match random.below(10) {
            0..4 => Self::Set(tag),
            4..7 => Self::Clear(tag),
            7 => Self::Hold(["isolated", "limited"][random.below(2) as usize]),
            _ => Self::Release,
        }
    }

    /// May it only make the VM less open?
    fn tightens(self) -> bool {
        matches!(self, Self::Set(_))
    }

    /// Asks the agent for it; gives whether it did it.
    fn ask(self, agent: &Agent<'_>) -> Result<bool> {
        let (path, body) = match self {
            Self::Set(name) => ("/v1/tags", json!({"subject": "web-1", "name": name, "severity": 9})),
            Self::Clear(name) => ("/v1/tags/remove", json!({"subject": "web-1", "name": name})),
            Self::Hold(group) => ("/v1/quarantine/web-1/hold", json!({"group": group, "reason": "the storm"})),
            Self::Release => ("/v1/quarantine/web-1/release", json!({"reason": "the storm"})),
        };
        Ok(post(agent, path, &body.to_string())? < 300)
    }
}

/// What the VM's state follows from, as far as the agent has said.
#[derive(Clone, Debug, Default)]
struct Known {
    tags: BTreeSet<&'static str>,
    by_hand: Option<&'static str>,
    /// Nobody knows why it is held by hand: a tag that leads to the same group takes over.
    recovered: bool,
    /// It was let go, and no tag was set since.
    waived: bool,
}

impl Known {
    fn after(&self, step: Step) -> Self {
        let mut known = self.clone();
        match step {
            Step::Set(name) => {
                known.tags.insert(name);
                known.waived = false;
                let same = known.by_hand == Some(if name == "malware" { "isolated" } else { "limited" });
                if known.recovered && same {
                    (known.by_hand, known.recovered) = (None, false);
                }
            }
            Step::Clear(name) => {
                known.tags.remove(name);
            }
            Step::Hold(group) => known = Self { by_hand: Some(group), recovered: false, waived: false, ..known },
            Step::Release => known = Self { by_hand: None, recovered: false, waived: true, ..known },
        }
        known
    }

    fn level(&self) -> Level {
        match self.by_hand {
            Some(group) => level(group),
            None if self.waived => OPEN,
            None if self.tags.contains("malware") => 0,
            None if self.tags.contains("odd") => 1,
            None => OPEN,
        }
    }

    /// What an agent that has just started says.
    fn of(agent: &Agent<'_>) -> Result<Self> {
        let (tags, held) = (json(agent, &["tag", "ls"])?, json(agent, &["quarantine", "ls"])?);
        let is_set = |name: &&str| tags.as_array().is_some_and(|tags| tags.iter().any(|t| t["name"] == **name));
        let hold = held["held"].as_array().and_then(|held| held.first());
        let group = |hold: &serde_json::Value| ["isolated", "limited"].into_iter().find(|name| hold["group"] == **name);
        let tags: BTreeSet<&str> = ["malware", "odd"].into_iter().filter(is_set).collect();
        let by_hand = hold.filter(|hold| hold["transfer"] == "").and_then(group);
        let recovered = hold.is_some_and(|hold| hold["reason"].as_str().is_some_and(|why| why.contains("was not stored")));
        Ok(Self { recovered, waived: hold.is_none() && !tags.is_empty(), tags, by_hand })
    }
}

/// xorshift64*: the same storm for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

/// A datagram each millisecond from one host to another, and when they arrived.
struct Probe {
    arrived: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Probe {
    fn start(from: &Host, to: &Host, address: &str) -> Result<Self> {
        let server = to.run(|| UdpSocket::bind(address))??;
        let client = from.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        client.connect(address)?;
        server.set_nonblocking(true)?;
        let (arrived, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (at, done) = (arrived.clone(), stop.clone());
        let sender = std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let sent = Instant::now();
                // What passes has arrived when this returns.
                let _ = client.send(b"probe");
                while server.recv(&mut [0; 16]).is_ok() {
                    at.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self { arrived, stop, sender: Some(sender) })
    }

    /// How many of those sent since then have arrived.
    fn since(&self, start: Instant) -> usize {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|at| **at >= start).count()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its sockets go with it: the next probe has the same addresses.
        let _ = self.sender.take().map(JoinHandle::join);
    }
}

/// The datapath's own word.
struct Rows {
    pins: Pins,
    device: u32,
    /// Numbers of the quarantine groups, by level.
    numbers: [u64; 2],
}

impl Rows {
    fn level(&self) -> Result<Level> {
        let row: EndpointRow = self.pins.endpoint(self.device)?;
        let number = u64::from(row.group);
        Ok(match (row.flags & flags::QUARANTINED != 0, self.numbers.iter().position(|n| *n == number)) {
            (false, _) => OPEN,
            (true, Some(level)) => level as Level,
            (true, None) => 0,
        })
    }
}

/// Works in the agent until it is killed; gives the step that it died in, and how open the VM was before that step.
fn storm(agent: &Agent<'_>, rows: &Rows, random: &mut Random, known: &mut Known) -> Result<(Step, Level)> {
    let pid = Pid::from_raw(agent.pid()?.try_into()?);
    let after = Duration::from_micros(random.below(80_000));
    let killer = std::thread::spawn(move || {
        std::thread::sleep(after);
        kill(pid, Signal::SIGKILL)
    });
    let died_in = loop {
        let (step, before) = (Step::random(random), rows.level()?);
        match step.ask(agent) {
            Ok(true) => *known = known.after(step),
            Ok(false) => {}
            Err(_) => break (step, before),
        }
    };
    killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
    Ok(died_in)
}

#[test]
fn wherever_it_is_killed_the_vm_is_never_more_open_than_it_should_be() -> Result<()> {
    let (kills, seed) = if std::env::var_os("VNET_LONG").is_some() { (200, 7) } else { (16, 3) };
    let net = scene()?;
    let mut agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(GROUPS)?;
    wait_for_group(&agent, "web-1", "web")?;
    let (vm, other) = (&net.client.host, &net.bystander.host);
    let groups = json(&agent, &["group", "ls"])?;
    let number = |name: &str| groups.as_array()?.iter().find(|g| g["name"] == name)?["id"].as_u64();
    let numbers = [number("isolated").context("isolated")?, number("limited").context("limited")?];
    let device = net.host.output("cat", &["/sys/class/net/client0/ifindex"])?.trim().parse()?;
    let rows = Rows { pins: Pins::open(&net.host)?, device, numbers };
    let (mut random, mut known, mut levels) = (Random(seed), Known::default(), [0; 3]);
    for number in 0..kills {
        let (step, before) = storm(&agent, &rows, &mut random, &mut known)?;
        agent.process()?.wait(Duration::from_secs(10))?;
        let pinned = rows.level()?;
        let asked = known.after(step);
        // What was asked for and not answered may have been done, or not.
        let allowed = known.level().max(asked.level());
        // What was enforced stays so, though nobody was told and nothing written.
        let tightened = step.tightens() && before == known.level() && pinned < before;
        let most = if tightened { pinned } else { allowed };
        let what = format!("kill {number} of seed {seed}, in {step:?}: {known:?}, rows said {before} before and {pinned} after");
        ensure!(pinned <= allowed, "{what}: more open than {allowed}");
        let dead = Instant::now();
        let probes = [Probe::start(vm, other, "10.0.1.50:7000")?, Probe::start(other, vm, "10.0.0.10:7000")?];
        agent.begin()?;
        let says = || -> Result<Level> {
            let held = json(&agent, &["quarantine", "ls"])?["held"].as_array().and_then(|held| held.first()).cloned();
            Ok(held.and_then(|held| held["group"].as_str().map(level)).unwrap_or(OPEN))
        };
        let settled = || says().ok().filter(|said| rows.level().is_ok_and(|row| row == *said));
        let said = wait_for("the datapath to do what the agent says", Duration::from_secs(10), settled).with_context(|| {
            format!("{what}\nit says {:?}, the row {:?}\n{}", says(), rows.pins.endpoint(device), agent.logged())
        })?;
        ensure!(said <= most, "{what}: afterwards {said}, and at most {most} is right\n{}", agent.logged());
        let passed = probes.each_ref().map(|probe| probe.since(dead));
        ensure!(most == OPEN || passed == [0, 0], "{what}: {passed:?} packets passed while it started\n{}", agent.logged());
        drop(probes);
        let reached = [connects(vm, "10.0.1.11".parse()?, 80)?, connects(vm, "10.0.1.50".parse()?, 80)?];
        ensure!(reached == [said >= 1, said == OPEN], "{what}: afterwards {said}, and it reaches {reached:?}");
        levels[usize::from(said)] += 1;
        known = Known::of(&agent)?;
        ensure!(known.level() == said, "{what}: afterwards {said}, which does not follow from {known:?}");
    }
    println!("{kills} kills: afterwards isolated {}, limited {}, open {}", levels[0], levels[1], levels[2]);
    ensure!(levels.iter().all(|count| *count > 0), "the storm is one-sided: {levels:?}");
    Ok(())
}
