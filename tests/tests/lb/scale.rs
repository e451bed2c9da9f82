//! A thousand load balancers.

use crate::support::{ask, json, total};
use anyhow::{Context as _, Result, ensure};
use std::fmt::Write as _;
use std::time::Instant;
use vnet_tests::{Agent, Routed};

const GROUPS: usize = 1000;
const MEMBERS: usize = 10;

/// `web0` to `web999`, each with a VIP of its own and ten members; of `web0`, one is real.
fn policy(real: std::net::Ipv4Addr) -> Result<String> {
    let mut yaml = String::new();
    for g in 0..GROUPS {
        let (high, low) = (g / 250, g % 250 + 1);
        writeln!(yaml, "---\napiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web{g} }}")?;
        writeln!(yaml, "spec:\n  vips: [10.97.{high}.{low}]\n  protocol: TCP\n  ports: [80]\n  members:")?;
        if g == 0 {
            writeln!(yaml, "    - {{ name: real, address: {real}, port: 8080 }}")?;
        }
        for m in usize::from(g == 0)..MEMBERS {
            let weight = if g == 0 { ", weight: 0" } else { "" };
            writeln!(yaml, "    - {{ address: 10.98.{m}.{low}, port: {}{weight} }}", 8000 + high)?;
        }
    }
    Ok(yaml)
}

#[test]
fn a_thousand_groups_of_ten() -> Result<()> {
    let mut net = Routed::new(1)?;
    net.members[0].serve_http(8080)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    let idle = json(&agent.ctl(&["status", "-o", "json"])?)?;
    let yaml = policy(net.members[0].v4)?;
    let begun = Instant::now();
    agent.apply(&yaml)?;
    let applied = begun.elapsed();
    let begun = Instant::now();
    agent.ctl(&["lb", "weight", "web500", "10.98.3.1", "5"]).or_else(|_| agent.ctl(&["lb", "members", "web500"]))?;
    let changed = begun.elapsed();

    let status = json(&agent.ctl(&["status", "-o", "json"])?)?;
    let number = |s: &serde_json::Value, name: &str| s[name].as_u64().with_context(|| format!("{name} in {s}"));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    ensure!(number(&status, "load_balancers")? == GROUPS as u64, "{status}");
    let maglev =
        status["maps"].as_array().into_iter().flatten().find(|m| m["name"] == "MAGLEV").context("MAGLEV in the status")?;
    println!(
        "{GROUPS} load balancers x {MEMBERS} members: applied in {applied:.2?}, one changed in {changed:.2?}; agent {:.1} MiB resident \
         (idle {:.1}), maps {:.1} MiB (idle {:.1}), of that pick tables {:.1} MiB",
        mib(number(&status, "rss_bytes")?),
        mib(number(&idle, "rss_bytes")?),
        mib(number(&status, "map_memory_bytes")?),
        mib(number(&idle, "map_memory_bytes")?),
        mib(number(maglev, "memory_bytes")?),
    );
    ensure!(number(maglev, "memory_bytes")? <= 64 << 20, "pick tables are bounded: {maglev}");
    let answers = ask(&net.client.host, "10.97.0.1", 5)?;
    ensure!(total(&answers) == 5, "{answers:?}");
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() -> Result<()> {
    let mut net = Routed::new(1)?;
    net.members[0].serve_http(8080)?;
    let agent = Agent::start_with(&net.host, &["client0"], &["--max-members", "50"])?;
    let real = net.members[0].v4;
    let small = "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: { name: web }\nspec:\n  vips: [10.96.0.10]\n  \
                 protocol: TCP\n  ports: [80]\n  members:\n";
    agent.apply(&format!("{small}    - {{ address: {real}, port: 8080 }}\n"))?;
    let mut yaml = String::new();
    for g in 0..10 {
        writeln!(yaml, "---\napiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: big{g} }}")?;
        writeln!(yaml, "spec:\n  vips: [10.97.0.{}]\n  protocol: TCP\n  ports: [80]\n  members:", g + 1)?;
        for m in 1..=10 {
            writeln!(yaml, "    - {{ address: 10.98.{g}.{m}, port: 80 }}")?;
        }
    }
    let refused = agent.apply(&yaml).err().context("it must be refused")?;
    let text = format!("{refused:#}");
    ensure!(text.contains("big") && text.contains("--max-members"), "it says what does not fit: {text}");
    let status = json(&agent.ctl(&["status", "-o", "json"])?)?;
    ensure!(status["load_balancers"] == 1, "{status}");
    ensure!(total(&ask(&net.client.host, "10.96.0.10", 5)?) == 5, "what was there serves");
    Ok(())
}
