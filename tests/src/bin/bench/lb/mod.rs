//! Suite `lb`: the load balancer.

mod cases;
mod frames;
mod kernel;

use crate::Options;
use crate::report::Row;
use anyhow::Result;

/// Runs what is wanted of the suite.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    cases::run(options)
}
