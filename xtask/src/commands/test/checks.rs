//! What is checked before anything runs: format, lints, docs, manifests.

use super::manifests;
use super::runner::Counts;
use crate::system::{cargo, root, target_dir};
use std::process::Command;
use std::time::Instant;

/// Runs every check, each with its duration; a failed one prints what it has to say.
pub fn run(counts: &mut Counts) {
    step(counts, "format", || quietly(cargo()?.args(["fmt", "--all", "--check"])));
    step(counts, "manifests inherit dependencies and lints", || manifests::check(&root()?));
    step(counts, "clippy", || quietly(cargo()?.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-Dwarnings"])));
    step(counts, "clippy of the kernel half", || xtask::clippy_ebpf(&root()?, &target_dir()?.join("bpf"), &[]));
    step(counts, "docs", || {
        quietly(cargo()?.args(["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings"))
    });
    step(counts, "examples in docs", || {
        quietly(cargo()?.args(["test", "--quiet", "--workspace", "--exclude=vnet-ebpf", "--doc"]))
    });
}

fn step(counts: &mut Counts, name: &str, check: impl FnOnce() -> Result<(), String>) {
    let start = Instant::now();
    match check() {
        Ok(()) => counts.passed_step(name, start.elapsed()),
        Err(error) => counts.failed_step(name, &error),
    }
}

/// Runs it and keeps its output for the case that it fails.
fn quietly(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|error| format!("running {command:?}: {error}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{}{}{command:?}: {}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr), out.status))
}
