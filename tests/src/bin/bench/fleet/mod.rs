//! Suite `fleet`: hosts that share an etcd: ten real ones, and many simulated ones.

pub mod agents;
mod growth;
mod metrics;
mod packets;
mod real;
mod simulated;
mod store;
mod world;

use crate::Options;
use crate::report::Row;
use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Runs what is wanted of the suite.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut rows = real::run(options)?;
    rows.extend(growth::run(options)?);
    Ok(rows)
}

/// CPU time of this thread in s.
fn cpu() -> f64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0.0, |time| Duration::from(time).as_secs_f64())
}

/// Asks an agent's API, without a program in between.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<serde_json::Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let head = "Host: vnet\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length:";
    stream.write_all(format!("{method} {path} HTTP/1.1\r\n{head} {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    let (_, json) = answer.split_once("\r\n\r\n").with_context(|| format!("{path}: {answer}"))?;
    serde_json::from_str(json).with_context(|| format!("{path}: {answer}"))
}
