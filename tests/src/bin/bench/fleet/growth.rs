//! Fleets of simulated agents: what they cost the store, and how long they take, as they grow.

use super::agents::Report;
use super::metrics::Sample;
use super::simulated::{WRITTEN, monotonic};
use super::store::{connect, put, seed, within};
use super::world::{ENDPOINTS, Estate, host_name};
use crate::Options;
use crate::report::{Of, Row};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vnet_common::fleet::{EndpointState, Key, ROOT};
use vnet_tests::{Agent, Fleet, Pins, Process, TempDir, wait_for};

const SUITE: &str = "fleet at scale";
/// Fleets: so many hosts.
const FLEETS: [u32; 4] = [10, 30, 100, 200];
/// Those that a quick run has.
const QUICK: [u32; 2] = [10, 30];
/// The fleet that goals are for.
const GOAL: u32 = 100;
/// MiB that a simulated agent may take for each endpoint that it knows.
const PER_ENDPOINT: f64 = 0.004;
/// The host whose endpoint changes, and the one with the real agent.
const CHANGING: &str = "changing";
const REAL: &str = "real";
const LIMIT: Duration = Duration::from_secs(120);

/// Measures the fleets that are wanted.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for hosts in FLEETS {
        let name = format!("{hosts} hosts");
        if !options.wants(SUITE, &name) || options.quick && !QUICK.contains(&hosts) {
            continue;
        }
        let needed = f64::from(hosts * hosts * ENDPOINTS) * PER_ENDPOINT;
        let free = available()?;
        if needed > free {
            eprintln!("{SUITE}: {name} are left out: they may take {needed:.0} MiB of memory, and {free:.0} are free");
            continue;
        }
        rows.extend(Run::new(hosts)?.measure(options.quick).with_context(|| name)?);
    }
    Ok(rows)
}

/// Memory that nobody needs at the moment, in MiB.
fn available() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    Ok(field(&text, "MemAvailable:").context("/proc/meminfo has no MemAvailable")? / 1024.0)
}

fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// One fleet.
struct Run {
    hosts: u32,
    fleet: Fleet,
    dir: TempDir,
}

/// The process of the simulated agents.
struct Agents {
    process: Process,
    socket: PathBuf,
    started: u64,
}

impl Run {
    fn new(hosts: u32) -> Result<Self> {
        eprintln!("{SUITE}: {hosts} hosts");
        // The simulated agents are all in the first.
        let fleet = Fleet::new(&["agents", REAL], 1)?;
        let simulated = (0..hosts).map(host_name);
        let names: Vec<String> = simulated.chain([CHANGING.to_owned(), REAL.to_owned()]).collect();
        names.iter().try_for_each(|name| fleet.etcd.pki.client(name).map(drop))?;
        seed(&fleet, &names, Estate::new(hosts).resources())?;
        Ok(Self { hosts, fleet, dir: TempDir::in_memory()? })
    }

    fn measure(self, quick: bool) -> Result<Vec<Row>> {
        let mut rows = Rows(self.hosts, Vec::new());
        let mut real = self.fleet.agent(1, &[])?;
        wait_for("the real agent to read the store", LIMIT, || self.known(&real).ok())?;
        let alone = Memory::settled(&real)?;
        let before = Sample::take(&self.fleet, "host0")?;

        let mut agents = self.start(0)?;
        let cold = self.converged(&agents)?;
        let after = Sample::take(&self.fleet, "host0")?;
        rows.seconds("all start for the first time, with an empty store", agents.since(&cold));
        rows.cost("first start", &cold, &before, &after, self.hosts);

        self.steady(&agents, if quick { 10 } else { 30 }, &mut rows)?;
        let endpoints = self.hosts * ENDPOINTS;
        wait_for("the real agent to know all endpoints", LIMIT, || {
            self.known(&real).ok().filter(|known| *known >= u64::from(endpoints))
        })?;
        let full = Memory::settled(&real)?;
        self.changes(&agents, &real, if quick { 10 } else { 30 }, &mut rows)?;
        rows.memory("the real agent, with nobody else", &alone, None);
        let goal = (self.hosts == GOAL).then_some(100.0);
        rows.memory(&format!("the real agent, with {endpoints} endpoints elsewhere"), &full, goal);
        real.kill()?;
        real.begin()?;
        wait_for("the real agent to know all endpoints again", LIMIT, || {
            self.known(&real).ok().filter(|known| *known >= u64::from(endpoints))
        })?;
        rows.memory("the same after a restart", &Memory::settled(&real)?, goal);

        let before = Sample::take(&self.fleet, "host0")?;
        agents.process.stop(nix::sys::signal::Signal::SIGKILL)?;
        drop(agents);
        let agents = self.start(1)?;
        let warm = self.converged(&agents)?;
        let after = Sample::take(&self.fleet, "host0")?;
        let goal = (self.hosts == GOAL).then_some(10.0);
        rows.seconds("all restart at once", agents.since(&warm)).goal(goal);
        rows.cost("restart", &warm, &before, &after, self.hosts);
        rows.put("a simulated agent", "MiB", agents.memory()? / f64::from(self.hosts));
        rows.put("a member of etcd", "MiB", after.memory);
        rows.put("its database", "MiB", after.database);
        Ok(rows.1)
    }

    fn start(&self, time: u32) -> Result<Agents> {
        let socket = self.dir.path().join(format!("agents-{time}.sock"));
        let first = self.fleet.etcd.pki.client(&host_name(0))?;
        let certificates = first.certificate.parent().context("a file in a directory")?;
        let mut command = self.fleet.host(0).command(std::env::current_exe().context("finding this program")?)?;
        command.args(["simulated-agents", "--store", &self.fleet.etcd.endpoints(), "--hosts", &self.hosts.to_string()]);
        let newest = within(&self.fleet.core, || async { connect(&self.fleet).await?.read(ROOT).await })?;
        let revision = newest.entries.values().map(|entry| entry.modified).max().unwrap_or(0);
        command.args(["--revision", &revision.to_string()]);
        command.arg("--certificates").arg(certificates).arg("--state").arg(self.dir.path()).arg("--socket").arg(&socket);
        let started = monotonic()?;
        let mut process = Process::start(command)?;
        wait_for("the simulated agents to start", LIMIT, || match process.ended() {
            Ok(None) => UnixStream::connect(&socket).is_ok().then_some(Ok(())),
            _ => Some(Err(anyhow::anyhow!("they have ended: {}", process.printed()))),
        })??;
        Ok(Agents { process, socket, started })
    }

    fn converged(&self, agents: &Agents) -> Result<Report> {
        let all = |report: &Report| report.converged == self.hosts;
        let what = format!("{} agents to know everything", self.hosts);
        let report = wait_for(&what, LIMIT, || agents.report().ok().filter(all));
        let report = report.with_context(|| format!("{:?}\n{}", agents.report(), agents.process.printed()))?;
        if report.lost.0 > 0 {
            eprintln!("{SUITE}: agents lost the store {} times, as {}", report.lost.0, report.lost.1);
        }
        Ok(report)
    }

    /// Other hosts' endpoints that the real agent knows.
    fn known(&self, agent: &Agent<'_>) -> Result<u64> {
        let answer: serde_json::Value = super::ask(&agent.socket(), "GET", "/v1/fleet", "")?;
        ensure!(answer["applied"].as_i64() > Some(0), "the real agent has not read the store: {answer}");
        let hosts = answer["hosts"].as_array().context("a list of hosts")?.iter();
        Ok(hosts.filter(|h| h["name"] != REAL && h["name"] != CHANGING).filter_map(|h| h["endpoints"].as_u64()).sum())
    }

    /// Nothing but reports of load.
    fn steady(&self, agents: &Agents, seconds: u64, rows: &mut Rows) -> Result<()> {
        std::thread::sleep(Duration::from_secs(3));
        let (before, cpu, begun) = (Sample::take(&self.fleet, "host0")?, agents.report()?.cpu, Instant::now());
        std::thread::sleep(Duration::from_secs(seconds));
        let (after, report, time) = (Sample::take(&self.fleet, "host0")?, agents.report()?, begun.elapsed().as_secs_f64());
        let rate = |value: fn(&Sample) -> f64| (value(&after) - value(&before)) / time;
        let goal = (self.hosts == GOAL).then_some(200.0);
        rows.put("writes to the store, nothing but reports of load", "1/s", rate(|s| s.revision)).goal(goal);
        rows.put("events out of the store", "1/s", rate(|s| s.events));
        rows.put("from the store to the agents", "kB/s", rate(|s| s.sent) / 1e3);
        rows.put("from the agents to the store", "kB/s", rate(|s| s.received) / 1e3);
        rows.put("the database grows, without compaction", "kB/s", rate(|s| s.database) * 1048.576);
        rows.put("CPU of the three members of etcd", "%", rate(|s| s.cpu) * 100.0);
        rows.put("CPU of a simulated agent", "%", (report.cpu - cpu) / time * 100.0 / f64::from(self.hosts));
        Ok(())
    }

    /// An endpoint changes: until the last simulated agent has compiled it, and until the real one has it in force.
    fn changes(&self, agents: &Agents, real: &Agent<'_>, trials: u8, rows: &mut Rows) -> Result<()> {
        let pins = Pins::open(self.fleet.host(1))?;
        let before = agents.report()?.costs;
        let (mut last, mut forced, mut each) = (Vec::new(), Vec::new(), Vec::new());
        for trial in 0..=trials {
            let written = monotonic()?;
            let address = IpAddr::from([10, 130, 0, trial + 1]);
            let labels = [("app", "app-1".to_owned()), (WRITTEN, written.to_string())];
            let state = EndpointState {
                labels: BTreeMap::from(labels.map(|(k, v)| (k.to_owned(), v))).into(),
                addresses: vec![address],
                given: true,
                group: "app-1".to_owned(),
                ..EndpointState::default()
            };
            let write = put(&Key::Endpoint(CHANGING.to_owned(), "changing-vm".to_owned()), &state)?;
            let in_force = std::thread::scope(|scope| {
                let polled = scope.spawn(|| -> Result<f64> {
                    wait_for("the real agent to have it in force", LIMIT, || match pins.identity(address) {
                        Ok(None) => None,
                        Ok(Some(_)) => Some(Ok(())),
                        Err(e) => Some(Err(e)),
                    })??;
                    Ok((monotonic()? - written) as f64 / 1e6)
                });
                within(&self.fleet.core, || async { connect(&self.fleet).await?.write(&[write]).await })?;
                polled.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .with_context(|| real.logged())?;
            let mut latencies: Vec<f64> = Vec::new();
            wait_for("all simulated agents to compile it", LIMIT, || {
                latencies.extend(agents.report().ok()?.latencies.iter().filter(|(at, _)| *at == written).map(|(_, ms)| ms));
                (latencies.len() >= self.hosts as usize).then_some(())
            })?;
            if trial > 0 {
                last.push(latencies.iter().copied().fold(0.0, f64::max));
                each.extend(latencies);
                forced.push(in_force);
            }
        }
        rows.all("an endpoint changes → the last simulated agent has compiled it", "ms", &last);
        rows.all("an endpoint changes → a simulated agent has compiled it", "ms", &each);
        rows.all("an endpoint changes → the real agent has it in force", "ms", &forced);
        let after = agents.report()?.costs;
        for (step, (times, ms)) in after {
            let (times_before, ms_before) = before.get(&step).copied().unwrap_or_default();
            if times > times_before {
                rows.put(&format!("CPU of an agent at a change: {step}"), "ms", (ms - ms_before) / (times - times_before) as f64);
            }
        }
        Ok(())
    }
}

impl Agents {
    fn report(&self) -> Result<Report> {
        let mut text = String::new();
        UnixStream::connect(&self.socket)?.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("the simulated agents say `{text}`"))
    }

    /// Seconds until the last of them had converged.
    fn since(&self, report: &Report) -> f64 {
        report.last.saturating_sub(self.started) as f64 / 1e9
    }

    /// Memory of all, but for the program's file, in MiB.
    fn memory(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).context("asking for memory")?;
        Ok(field(&text, "RssAnon:").context("no RssAnon")? / 1024.0)
    }
}

/// What an agent takes, in MiB.
struct Memory {
    /// As its status says.
    resident: f64,
    /// Of that, its own: neither the program's file nor maps.
    own: f64,
}

impl Memory {
    /// When it has given back what it needed for a moment: every 10 s it does.
    fn settled(agent: &Agent<'_>) -> Result<Self> {
        std::thread::sleep(Duration::from_secs(12));
        Self::of(agent)
    }

    fn of(agent: &Agent<'_>) -> Result<Self> {
        let status: serde_json::Value = super::ask(&agent.socket(), "GET", "/v1/status", "")?;
        let text = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()?)).context("asking for memory")?;
        let resident = status["rss_bytes"].as_f64().with_context(|| format!("rss_bytes in {status}"))?;
        Ok(Self { resident: resident / f64::from(1 << 20), own: field(&text, "RssAnon:").context("no RssAnon")? / 1024.0 })
    }
}

/// Rows of a fleet of so many hosts.
struct Rows(u32, Vec<Row>);

impl Rows {
    fn all(&mut self, what: &str, unit: &'static str, values: &[f64]) -> Put<'_> {
        self.1.push(Row::new(SUITE, format!("{} hosts: {what}", self.0), unit, values));
        Put(&mut self.1)
    }

    fn put(&mut self, what: &str, unit: &'static str, value: f64) -> Put<'_> {
        self.all(what, unit, &[value])
    }

    fn seconds(&mut self, what: &str, value: f64) -> Put<'_> {
        self.put(what, "s", value)
    }

    fn memory(&mut self, what: &str, memory: &Memory, goal: Option<f64>) {
        self.put(&format!("{what}: resident"), "MiB", memory.resident).goal(goal);
        self.put(&format!("{what}: of that its own"), "MiB", memory.own);
    }

    /// What it took until all had converged.
    fn cost(&mut self, what: &str, report: &Report, before: &Sample, after: &Sample, hosts: u32) {
        self.put(&format!("{what}: CPU of a simulated agent"), "s", report.cpu / f64::from(hosts));
        for (step, (_, ms)) in &report.costs {
            self.put(&format!("{what}: CPU of a simulated agent: {step}"), "ms", ms / f64::from(hosts));
        }
        self.put(&format!("{what}: CPU of the three members of etcd"), "s", after.cpu - before.cpu);
        self.put(&format!("{what}: from the store to the agents"), "MB", (after.sent - before.sent) / 1e6);
        self.put(&format!("{what}: writes"), "count", after.revision - before.revision);
        self.put(&format!("{what}: events out of the store"), "count", after.events - before.events);
        self.put(&format!("{what}: agents that lost the store"), "count", f64::from(report.lost.0));
    }
}

/// A row that was just put.
struct Put<'a>(&'a mut Vec<Row>);

impl Put<'_> {
    fn goal(self, goal: Option<f64>) {
        let Some(goal) = goal else { return };
        let row = self.0.pop().map(|row| row.with_most(Of::Max, goal));
        self.0.extend(row);
    }
}
