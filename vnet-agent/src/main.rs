//! `vnet-agent`: keeps the datapath of this host. See `vnet-agent --help`.

mod options;

use std::borrow::Cow;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::time::interval;
use vnet_agent::api::{self, Routes, Socket};
use vnet_agent::control::{Agent, Ground, run};
use vnet_agent::datapath::{self, Datapath, Logger, OpenReport, Origin};
use vnet_agent::fleet::{Consumer, Fleet};
use vnet_agent::lb::health::{Checker, Network};
use vnet_agent::object;
use vnet_agent::quarantine::clock::SystemClock;
use vnet_agent::source::Own;
use vnet_agent::store::redb::RedbStore;

use options::Options;

/// How long what is under way on threads of its own, as a scan, may keep the agent from ending.
const LAST: Duration = Duration::from_secs(1);
/// Between two looks for what the programs have logged: their ring buffer holds a few thousand lines.
const TRACES: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let options = Options::parse();
    // The loader of the eBPF object tells every relocation at level debug.
    let filter = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(filter).filter_module("aya_obj", log::LevelFilter::Info).init();
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("starting the I/O runtime")?;
    let result = runtime.block_on(serve(options));
    runtime.shutdown_timeout(LAST);
    log::logger().flush();
    result
}

async fn serve(options: Options) -> Result<()> {
    raise_file_limit();
    make_private(&options.state_dir)?;
    let store = RedbStore::open(&options.state_dir.join("vnet.redb"))?;
    let (datapath, report) = Datapath::open(&datapath_options(&options)?).context("opening the datapath")?;
    say(&report);
    datapath.maps().set_flow_quota(options.flows_per_endpoint)?;
    datapath.maps().set_tunnel_ports(&options.tunnel_ports)?;
    if let Some(logger) = datapath.take_logger() {
        tokio::spawn(write_traces(logger));
    }
    let fleet = options.fleet()?.map(|settings| Fleet::open(settings, &options.state_dir)).transpose()?;
    let (to, health) = mpsc::unbounded_channel();
    let agent = Arc::new(Agent::new(Ground {
        journal: Arc::new(store.clone()),
        store: Box::new(store),
        datapath,
        patterns: options.attach_patterns(),
        zone: options.zone.clone(),
        checker: Checker::new(Network::default(), to),
        networks: options.endpoint_networks.clone(),
        own: Own { run_dir: options.run_dir.clone(), state_dir: options.state_dir.clone() },
        clock: Arc::new(SystemClock::new()?),
        fleet: fleet.clone(),
    })?);
    let mut devices = run::follow_devices(Arc::clone(&agent));
    run::begin(&agent, &mut devices).await?;
    let _holding = agent.parts().quarantine.start()?;
    if let Some(fleet) = fleet {
        log::info!("sharing the store {} as host {}", fleet.access(), fleet.host());
        tokio::spawn(fleet.run(Arc::new(Arc::clone(&agent)) as Arc<dyn Consumer>));
    }
    // Only now: whoever can connect finds everything in force.
    let socket = Socket::bind(&options.run_dir.join("agent.sock"))?.for_group(&options.socket_group);
    log::info!("serving {}", socket.path().display());
    let mut ending = agent.ending();
    let shutdown = async move { drop(ending.wait_for(|ending| *ending).await) };
    agent.start_events(options.events())?;
    let routes = Routes::from(Arc::clone(&agent) as Arc<dyn api::Control>)
        .with(Arc::clone(&agent) as Arc<dyn api::Observe>)
        .with(Arc::clone(&agent) as Arc<dyn api::Fleet>)
        .with(Arc::clone(&agent) as Arc<dyn api::Quarantine>)
        .with(Arc::clone(&agent.parts().sources) as Arc<dyn api::Sources>);
    let server = tokio::spawn(api::serve_on(socket, routes, shutdown));
    if let Some(address) = options.metrics_listen {
        let (observer, told) = (Arc::clone(&agent) as Arc<dyn api::Observe>, Arc::clone(&agent));
        tokio::spawn(api::serve_metrics(address, observer, move |trouble| told.set_metrics_trouble(trouble)));
    }
    run::tell_systemd(&[NotifyState::Ready]);
    run::run(&agent, devices, health).await?;
    server.await.context("ending the API")?
}

fn datapath_options(o: &Options) -> Result<datapath::Options> {
    let object = match &o.object {
        None => Cow::Borrowed(object::object()),
        Some(path) => Cow::Owned(std::fs::read(path).with_context(|| format!("reading the eBPF object {}", path.display()))?),
    };
    Ok(datapath::Options {
        pins: o.bpffs.join("vnet"),
        lock: o.run_dir.join("agent.lock"),
        object,
        sizes: o.sizes(),
        order: datapath::Order::default(),
        foreign: o.foreign(),
        trace: log::max_level() >= log::LevelFilter::Trace,
        discard_newer: o.discard_newer,
    })
}

/// The store holds what only the agent may change.
fn make_private(dir: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("making the state directory {}", dir.display()))
}

/// Each health check takes a descriptor for a moment.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(e) = raised {
        log::warn!("raising the limit of open files: {e}; with thousands of health checks some may fail");
    }
}

fn say(report: &OpenReport) {
    let devices = report.devices.len();
    match &report.origin {
        Origin::Fresh => log::info!("the datapath is new"),
        Origin::Adopted => log::info!("took over the datapath, with the programs on {devices} devices"),
        Origin::Migrated { abi, moved } => {
            log::info!("moved the datapath from map layout {abi}, with the programs on {devices} devices: {moved:?}");
        }
    }
    report.notes.iter().for_each(|note| log::info!("{note}"));
}

/// What the programs log at trace level goes into the agent's log.
async fn write_traces(mut logger: Logger) {
    let mut ticks = interval(TRACES);
    loop {
        ticks.tick().await;
        logger.flush();
    }
}
