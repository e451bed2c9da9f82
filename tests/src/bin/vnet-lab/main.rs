//! `cargo xtask lab`: a lab of network namespaces with the real agent in it.
//!
//! It makes the network, starts the agent, applies `policies/lb.yaml`, sends real traffic, says what happened, and stays up
//! until Ctrl-C.

mod hands;
mod report;
mod traffic;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use vnet_tests::{Agent, Routed, TempDir};

/// A lab of network namespaces: one host with the real agent, a client VM, three members, a bystander.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask lab")]
struct Args {
    /// What to show.
    #[arg(value_enum, default_value_t = Scene::Lb)]
    scene: Scene,
    /// End after the report; exit code 0 only if all was as expected.
    #[arg(long)]
    once: bool,
}

/// What can be shown.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Scene {
    /// Inline load balancing.
    Lb,
}

/// The exit code once there is a verdict; until then, that of a program that was interrupted.
static VERDICT: AtomicU8 = AtomicU8::new(130);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = end_on_signals() {
        eprintln!("lab: {error:#}");
        return ExitCode::FAILURE;
    }
    let shown = match args.scene {
        Scene::Lb => balance(args.once),
    };
    match shown {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C, and what asks a program to end, end this one at any moment. The kernel then ends the programs that were started, and
/// the namespaces with them; only directories have to be removed.
fn end_on_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Threads inherit this, so that only the one below gets them.
    signals.thread_block().context("keeping signals for one thread")?;
    std::thread::spawn(move || {
        while signals.wait().is_err() {}
        TempDir::remove_all();
        std::process::exit(VERDICT.load(Ordering::Relaxed).into());
    });
    Ok(())
}

/// The load balancer's scene; gives whether all was as expected. Unless `once`, it stays for a person to play.
fn balance(once: bool) -> Result<bool> {
    println!("making the network: a host that routes, and behind its devices a client, three members and a bystander");
    let mut net = Routed::new(3)?;
    for member in &mut net.members {
        member.serve_http(80)?;
        member.serve_dns(5353)?;
    }
    net.bystander.serve_http(80)?;
    println!("starting the agent, attached to client0");
    let agent = Agent::start(&net.host, &["client*"])?;
    let policy = policy()?;
    println!("applying {}", policy.strip_prefix(std::env::current_dir()?).unwrap_or(&policy).display());
    print!("{}", agent.ctl(&["apply", "-f", &policy.to_string_lossy()])?);

    println!("sending HTTP with curl and DNS queries with dig\n");
    let rows = traffic::send_all(&net)?;
    let faults = report::print(&net, &agent, &rows)?;
    VERDICT.store(u8::from(!faults.is_empty()), Ordering::Relaxed);
    if once {
        return Ok(faults.is_empty());
    }
    let _scripts = hands::print(&net, &agent)?;
    loop {
        std::thread::park();
    }
}

fn policy() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this package lies in no workspace")?;
    Ok(root.join("policies/lb.yaml"))
}
