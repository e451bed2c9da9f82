//! `vnet-bench`: what the datapath costs. `cargo xtask bench` builds and runs it; `docs/BENCH.md` says how it measures.

mod feedback;
mod fleet;
mod lb;
mod packets;
mod policy;
mod quarantine;
mod report;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

/// What the datapath costs, with goals.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// The load balancer: ns per packet, and traffic end to end.
    Lb(Options),
    /// Load feedback: three hosts, and members of unequal capacity.
    Feedback(feedback::Args),
    /// Rules: ns per packet, and the agent with 10,000 of them.
    Policy(Options),
    /// Quarantine: from an alert to the datapath, and back.
    Quarantine(Options),
    /// Many hosts that share an etcd: until all have a change, and what they cost the store.
    Fleet(Options),
    /// What the suite `fleet` starts by itself.
    #[command(hide = true)]
    SimulatedAgents(fleet::agents::Options),
}

/// What every suite takes.
#[derive(Debug, clap::Args)]
struct Options {
    /// Print a list of {suite, case, unit, min, median, p90, p99, max} and, where there is a goal, {floor, of, goal, met}.
    #[arg(long)]
    json: bool,
    /// Fewer and shorter runs: good for a first look, too noisy to compare.
    #[arg(long)]
    quick: bool,
    /// Only the cases whose "suite case" contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The eBPF object to measure, built with feature `bench`; by default it is built.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

fn main() -> Result<()> {
    let (rows, options) = match Args::parse().suite {
        Suite::Lb(options) => (lb::run(&options)?, options),
        Suite::Feedback(args) => (feedback::run(&args)?, args.options),
        Suite::Policy(options) => (policy::run(&options)?, options),
        Suite::Quarantine(options) => (quarantine::run(&options)?, options),
        Suite::Fleet(options) => (fleet::run(&options)?, options),
        Suite::SimulatedAgents(options) => return fleet::agents::run(&options),
    };
    if options.json { report::print_json(&rows) } else { report::print_table(&rows) }
}

impl Options {
    /// Is the case wanted?
    fn wants(&self, suite: &str, case: &str) -> bool {
        format!("{suite} {case}").contains(&self.only)
    }

    /// The kernel half with the benchmark's own programs in it.
    fn object(&self) -> Result<Vec<u8>> {
        let path = match &self.object {
            Some(path) => path.clone(),
            None => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package lies in no workspace")?;
                eprintln!("building the kernel half with feature bench");
                xtask::build_ebpf(root, &root.join("target/bpf-bench"), &["bench"]).map_err(anyhow::Error::msg)?
            }
        };
        std::fs::read(&path).with_context(|| format!("reading the eBPF object {}", path.display()))
    }
}
