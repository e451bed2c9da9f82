//! `cargo xtask lab`

use crate::system::{as_root, cargo, run_to_end, set_up, target_dir};
use std::os::unix::process::CommandExt as _;

/// Builds the agent, the CLI and the lab, and runs the lab.
pub fn run(args: &[String]) -> Result<(), String> {
    // First: who may not run it need not wait until it is built.
    let mut lab = as_root(&target_dir()?.join("debug/vnet-lab"), "the lab makes network namespaces and loads eBPF programs")?;
    // Scenes that need more than others: an IDS and a virus scanner, an etcd.
    let has = |scene: &str| args.iter().any(|arg| arg == scene);
    set_up(match () {
        () if has("quarantine") => "lab-quarantine",
        () if has("fleet") => "lab-fleet",
        () => "lab",
    })?;
    run_to_end(cargo()?.args(["build", "--package=vnet-agent", "--package=vnet-ctl", "--package=vnet-tests", "--bins"]))?;
    // In place of this process, so that signals reach it.
    Err(format!("running {lab:?}: {}", lab.args(args).exec()))
}
