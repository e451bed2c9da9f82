//! Packets through the loaded programs by `BPF_PROG_TEST_RUN`: what every suite that measures ns per packet needs.

mod case;
mod frames;
mod kernel;

pub use case::Case;
pub use frames::{Family, PEERS, Peer, Protocol, Traffic, clients, members, peer, vip};
pub use kernel::Kernel;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps this thread on a CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("staying on CPU {cpu}"))
}
