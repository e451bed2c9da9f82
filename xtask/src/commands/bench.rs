//! `cargo xtask bench`

use crate::system::{as_root, cargo, root, run_to_end, set_up, target_dir};
use std::os::unix::process::CommandExt as _;

/// Builds what is measured as it is used, and measures it.
pub fn run(args: &[String]) -> Result<(), String> {
    let suite = args.first().filter(|arg| !arg.starts_with('-'));
    let options = if suite.is_some() { &args[1..] } else { args };
    set_up("test")?;
    // Built here, since root may have no compiler.
    let object = xtask::build_ebpf(&root()?, &target_dir()?.join("bpf-bench"), &["bench"])?;
    let packages = ["--package=vnet-agent", "--package=vnet-ctl", "--package=vnet-tests"];
    run_to_end(cargo()?.args(["build", "--release", "--bins"]).args(packages))?;
    let bench = target_dir()?.join("release/vnet-bench");
    let mut bench = as_root(&bench, "the benchmark loads eBPF programs and makes network namespaces")?;
    bench.arg(suite.map_or("lb", |suite| suite)).args(options).arg("--object").arg(object);
    // In place of this process, so that signals reach it.
    Err(format!("running {bench:?}: {}", bench.exec()))
}
