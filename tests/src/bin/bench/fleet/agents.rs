//! A process of simulated agents, which says how it stands with them to whoever connects to its socket.

use super::simulated::{Cost, Gate, Simulated};
use super::world::{Estate, host_name};
use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vnet_agent::fleet::{Consumer, Settings};
use vnet_common::etcd::{Access, Tls};
use vnet_common::fleet::LINGER_SECONDS;

/// Agents that compile at the same time.
const AT_ONCE: usize = 2;

/// What the process is told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The store.
    #[arg(long)]
    store: String,
    /// Where the hosts' certificates are.
    #[arg(long)]
    certificates: PathBuf,
    /// How many.
    #[arg(long)]
    hosts: u32,
    /// The store's revision that they have to come to.
    #[arg(long)]
    revision: i64,
    /// Where they keep what they know.
    #[arg(long)]
    state: PathBuf,
    /// Where it listens.
    #[arg(long)]
    socket: PathBuf,
}

/// How it stands with all of them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Agents that know and have compiled everything.
    pub converged: u32,
    /// When the last one did, by the monotonic clock.
    pub last: u64,
    /// Endpoints of others that an agent knows, at least.
    pub endpoints: usize,
    /// For each endpoint that says when it was written, that and the agent's ms until it was compiled. Told once.
    pub latencies: Vec<(u64, f64)>,
    /// Of all agents, by step: how often, and CPU time in ms.
    pub costs: BTreeMap<String, (u64, f64)>,
    /// CPU time of the process in s.
    pub cpu: f64,
    /// How often agents lost the store, and why at last.
    pub lost: (u32, String),
}

/// Runs them until it is killed.
pub fn run(options: &Options) -> Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut estate = Estate::new(options.hosts);
    estate.revision = options.revision;
    let (estate, gate) = (Arc::new(estate), Arc::new(Gate::new(AT_ONCE)));
    let agents: Arc<Mutex<Vec<Arc<Simulated>>>> = Arc::default();
    let (listener, told) = (UnixListener::bind(&options.socket)?, Arc::clone(&agents));
    std::thread::spawn(move || serve(&listener, &told));
    for number in 0..options.hosts {
        let file = |end: &str| options.certificates.join(format!("{}.{end}", host_name(number)));
        let tls = Tls { ca: options.certificates.join("ca.pem"), cert: file("pem"), key: file("key") };
        let settings =
            Settings { access: Access::new(&options.store, Some(tls))?, host: host_name(number), linger: LINGER_SECONDS };
        let state = options.state.join(host_name(number));
        let agent = Simulated::open(settings, &state, number, Arc::clone(&estate), Arc::clone(&gate))?;
        agents.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&agent));
        runtime.spawn(Arc::clone(&agent.fleet).run(Arc::clone(&agent) as Arc<dyn Consumer>));
        runtime.spawn(agent.report());
    }
    runtime.block_on(std::future::pending())
}

fn serve(listener: &UnixListener, agents: &Mutex<Vec<Arc<Simulated>>>) {
    for stream in listener.incoming() {
        let agents: Vec<Arc<Simulated>> = agents.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = stream.map_err(anyhow::Error::from).and_then(|stream| Ok(serde_json::to_writer(stream, &report(&agents)?)?));
        // Whoever asked may be gone, and another one asks.
        told.unwrap_or_else(|e| log::warn!("saying how it stands: {e:#}"));
    }
}

fn report(agents: &[Arc<Simulated>]) -> Result<Report> {
    let mut report = Report { endpoints: usize::MAX, ..Report::default() };
    for agent in agents {
        let standing = agent.standing();
        if let Some(at) = standing.converged {
            (report.converged, report.last) = (report.converged + 1, report.last.max(at));
        }
        report.endpoints = report.endpoints.min(standing.endpoints);
        report.latencies.extend(standing.latencies);
        for (step, Cost { times, ms }) in standing.costs {
            let all = report.costs.entry(step.to_owned()).or_default();
            (all.0, all.1) = (all.0 + times, all.1 + ms);
        }
        if standing.lost.0 > 0 {
            report.lost = (report.lost.0 + standing.lost.0, standing.lost.1);
        }
    }
    report.cpu = Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?).as_secs_f64();
    Ok(report)
}
