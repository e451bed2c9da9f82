//! Waiting for what takes time.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Limits are for a machine that has nothing else to do; one whose cores are busy with other tests gets so many times as long.
const PATIENCE: u32 = 5;

/// Asks until there is an answer. `what` completes "waited … for".
///
/// # Errors
/// There was none within five times `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let limit = limit * PATIENCE;
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {} ms for {what}", limit.as_millis());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says that this test cannot run on this machine; return after it. `cargo xtask test` counts it, and CI fails.
pub fn skip(why: &str) {
    println!("\ntest skipped: {why}");
}
