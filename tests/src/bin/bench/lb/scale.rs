//! Many members, many groups: what the agent takes to apply them, and what they take of memory.

use crate::Options;
use crate::report::Row;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::time::Instant;
use vnet_tests::{Agent, Host, Machine, connect};

const SUITE: &str = "lb at scale";
/// Members of the one group, and groups.
const MANY: usize = 10_000;

/// Measures what is wanted.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, policy) in [("1 group of 10,000 members", one_group()?), ("10,000 groups of 1 member", many_groups()?)] {
        if options.wants(SUITE, name) {
            rows.extend(measure(name, &policy, if options.quick { 1 } else { 5 })?);
        }
    }
    Ok(rows)
}

fn one_group() -> Result<String> {
    let mut yaml = head(0)?;
    for m in 0..MANY {
        writeln!(yaml, "    - {{ address: {} }}", member(m))?;
    }
    Ok(yaml)
}

fn many_groups() -> Result<String> {
    let mut yaml = String::new();
    for g in 0..MANY {
        writeln!(yaml, "{}    - {{ address: {} }}", head(g)?, member(g))?;
    }
    Ok(yaml)
}

fn head(g: usize) -> Result<String> {
    let mut yaml = String::new();
    writeln!(yaml, "---\napiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web{g} }}")?;
    writeln!(yaml, "spec:\n  vips: [10.96.{}.{}]\n  protocol: TCP\n  ports: [80]\n  members:", g / 250, g % 250 + 1)?;
    Ok(yaml)
}

fn member(m: usize) -> String {
    format!("10.97.{}.{}", m / 250, m % 250 + 1)
}

fn measure(name: &str, yaml: &str, rounds: usize) -> Result<Vec<Row>> {
    let (mut applied, mut again, mut one, mut resident, mut maps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let host = Host::new("host")?;
        let client = Machine::new("client", [10, 0, 0, 10].into(), "fd00::10".parse()?)?;
        connect((&host, "client0", &["10.0.0.1/24"]), (&client.host, "eth0", &["10.0.0.10/24"]))?;
        let agent = Agent::start(&host, &["client0"])?;
        let idle = numbers(&agent)?;
        applied.push(timed(|| agent.apply(yaml).map(drop))?);
        let full = numbers(&agent)?;
        resident.push((full[0] - idle[0]) / f64::from(1 << 20));
        maps.push((full[1] - idle[1]) / f64::from(1 << 20));
        again.push(timed(|| agent.apply(yaml).map(drop))?);
        for _ in 0..5 {
            one.push(timed(|| agent.ctl(&["lb", "weight", "web0", "10.97.0.1", "200"]).map(drop))? * 1e3);
            agent.ctl(&["lb", "weight", "web0", "10.97.0.1", "100"])?;
        }
    }
    let row = |what: &str, unit, values: &[f64]| Row::new(SUITE, format!("{name}: {what}"), unit, values);
    Ok(vec![
        row("applied", "s", &applied),
        row("applied again, nothing changes", "s", &again),
        row("the weight of one member", "ms", &one),
        row("more memory of the agent", "MiB", &resident),
        row("more memory of maps", "MiB", &maps),
    ])
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    act()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Memory of the agent and of its maps, in bytes.
fn numbers(agent: &Agent<'_>) -> Result<[f64; 2]> {
    let status: serde_json::Value = serde_json::from_str(&agent.ctl(&["status", "-o", "json"])?)?;
    let number = |name: &str| status[name].as_f64().with_context(|| format!("{name} in {status}"));
    Ok([number("rss_bytes")?, number("map_memory_bytes")?])
}
