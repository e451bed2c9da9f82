//! `cargo xtask lab`: a lab of network namespaces with the real agent in it.
//!
//! It makes the network, starts the agent, applies an example of `policies/`, sends real traffic, says what happened, and stays up
//! until Ctrl-C.

mod fleet;
mod lb;
mod quarantine;
mod scripts;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use vnet_tests::TempDir;

/// A lab of network namespaces: a host with the real agent, VMs and servers.
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
    /// Inline load balancing: a client VM, three members, a bystander.
    Lb,
    /// Three hosts that share an etcd: one apply for all, load feedback, a VM that is held, a member of etcd that dies.
    Fleet,
    /// A VM that fetches malware, is held, scanned and let go: with Suricata and clamd.
    Quarantine,
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
        Scene::Lb => lb::show(args.once),
        Scene::Fleet => fleet::show(args.once),
        Scene::Quarantine => quarantine::show(args.once),
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

/// Unless it ends here, stays for a person to play; gives whether all was as expected.
fn stay(once: bool, faults: &[String], hands: impl FnOnce() -> Result<TempDir>) -> Result<bool> {
    VERDICT.store(u8::from(!faults.is_empty()), Ordering::Relaxed);
    if once {
        return Ok(faults.is_empty());
    }
    let _scripts = hands()?;
    loop {
        std::thread::park();
    }
}

/// An example of this workspace.
fn policy(name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this package lies in no workspace")?;
    Ok(root.join("policies").join(name))
}

/// Its path as a person would write it.
fn shown(path: &Path) -> Result<String> {
    let here = std::env::current_dir().context("finding the working directory")?;
    Ok(path.strip_prefix(here).unwrap_or(path).display().to_string())
}
