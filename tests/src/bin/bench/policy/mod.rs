//! Suite `policy`: what rules cost.

mod cases;
mod tables;

use crate::Options;
use crate::report::Row;
use anyhow::{Result, anyhow};

/// Runs what is wanted of the suite.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    // In a thread of its own: it stays on one CPU.
    std::thread::scope(|scope| scope.spawn(|| cases::run(options)).join()).map_err(|panic| anyhow!("measuring: {panic:?}"))?
}
