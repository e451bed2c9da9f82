//! Suite `lb`: the load balancer.

mod cases;
mod end_to_end;
mod scale;
mod traffic;

use crate::Options;
use crate::report::Row;
use anyhow::{Result, anyhow};

/// Runs what is wanted of the suite.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    // In a thread of its own: it stays on one CPU, and the traffic after it needs all of them.
    let packets = std::thread::scope(|scope| scope.spawn(|| cases::run(options)).join());
    let mut rows = packets.map_err(|panic| anyhow!("measuring packets: {panic:?}"))??;
    rows.extend(end_to_end::run(options)?);
    rows.extend(scale::run(options)?);
    Ok(rows)
}
