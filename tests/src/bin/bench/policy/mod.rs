//! Suite `policy`: what rules cost, packets and the agent.

mod cases;
mod compile;
mod tables;

use crate::Options;
use crate::report::Row;
use anyhow::{Result, anyhow};

/// Runs what is wanted of the suite.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    // In a thread of its own: it stays on one CPU.
    let packets = std::thread::scope(|scope| scope.spawn(|| cases::run(options)).join());
    let mut rows = packets.map_err(|panic| anyhow!("measuring: {panic:?}"))??;
    rows.extend(compile::run(options)?);
    Ok(rows)
}
