//! What a store costs: what its members say of themselves, and what goes over the wire.

use anyhow::{Context as _, Result};
use vnet_tests::{Fleet, Host};

/// The members of the cluster.
const MEMBERS: usize = 3;

/// Counters and sizes of the whole cluster at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Transactions that wrote.
    pub revision: f64,
    /// Events that members told those who watch.
    pub events: f64,
    /// Bytes from members to clients, with all that TLS and TCP add, and back.
    pub sent: f64,
    pub received: f64,
    /// CPU time of the members in s.
    pub cpu: f64,
    /// Memory of the largest member in MiB.
    pub memory: f64,
    /// The largest database in MiB, and what of that is in use.
    pub database: f64,
    pub used: f64,
}

impl Sample {
    /// Takes one. Clients are behind `device` of the core.
    pub fn take(fleet: &Fleet, device: &str) -> Result<Self> {
        let mut sample = Self {
            revision: fleet.etcd.revision()? as f64,
            sent: counter(&fleet.core, device, "tx_bytes")?,
            received: counter(&fleet.core, device, "rx_bytes")?,
            ..Self::default()
        };
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        for member in 0..MEMBERS {
            let text = fleet.etcd.metrics(member)?;
            let value = |name: &str| number(&text, name).with_context(|| format!("{name} of member {member} of etcd"));
            sample.events += value("etcd_debugging_mvcc_events_total")?;
            sample.cpu += value("process_cpu_seconds_total")?;
            sample.memory = sample.memory.max(mib(value("process_resident_memory_bytes")?));
            sample.database = sample.database.max(mib(value("etcd_mvcc_db_total_size_in_bytes")?));
            sample.used = sample.used.max(mib(value("etcd_mvcc_db_total_size_in_use_in_bytes")?));
        }
        Ok(sample)
    }
}

fn number(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn counter(host: &Host, device: &str, name: &str) -> Result<f64> {
    let path = format!("/sys/class/net/{device}/statistics/{name}");
    let text = host.run(|| std::fs::read_to_string(&path))?.with_context(|| format!("reading {path}"))?;
    text.trim().parse().with_context(|| format!("{path} has `{}`", text.trim()))
}
