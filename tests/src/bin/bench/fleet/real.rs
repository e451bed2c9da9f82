//! Ten hosts with real agents: what an operator changes, and a VM that is held, until all of them have it.

use super::ask;
use super::packets::Streams;
use super::store::{connect, resource_put, seed, serial, within};
use crate::Options;
use crate::report::{Of, Row};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};
use vnet_agent::resource::{Resource, parse};
use vnet_common::api::File;
use vnet_common::etcd::Next;
use vnet_common::fleet::{Applied, Key, STATE};
use vnet_tests::{Agent, Fleet, wait_for};

const SUITE: &str = "fleet";
const APPLIED: &str = "a policy is committed → in force on all 10 hosts";
const HELD: &str = "a tag that holds a VM → no packet to it leaves 9 other hosts";
const LET_GO: &str = "it is removed → packets to the VM leave 9 other hosts";
const HOSTS: usize = 10;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two trials.
const PAUSE: Duration = Duration::from_millis(50);

/// All that is desired, but for the VMs.
const GROUPS: &str = r#"
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  transfers:
    - { name: malware, to: isolated, when: 'tags.exists(t, t.name == "malware")' }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: isolated }
spec: { quarantine: {} }
"#;

/// Measures what is wanted.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    if ![APPLIED, HELD, LET_GO].iter().any(|case| options.wants(SUITE, case)) {
        return Ok(Vec::new());
    }
    let names: Vec<String> = (0..HOSTS).map(|k| format!("host-{k}")).collect();
    let fleet = Fleet::new(&names.iter().map(String::as_str).collect::<Vec<_>>(), 1)?;
    let vms: String = (0..HOSTS).map(vm).collect();
    seed(&fleet, &names, resources(&format!("{GROUPS}{vms}"))?)?;
    let agents: Vec<Agent<'_>> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..HOSTS)
            .map(|k| {
                scope.spawn({
                    let fleet = &fleet;
                    move || fleet.agent(k, &[])
                })
            })
            .collect();
        let joined = starting.into_iter().map(|agent| agent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect::<Result<_>>()
    })?;
    let trials = if options.quick { 30 } else { 100 };
    let mut rows = Vec::new();
    if options.wants(SUITE, APPLIED) {
        let ms = within(&fleet.core, || changes(&fleet, &names, trials)).with_context(|| logs(&agents))?;
        rows.push(Row::new(SUITE, APPLIED, "ms", &ms).with_most(Of::P99, 100.0));
    }
    if options.wants(SUITE, HELD) || options.wants(SUITE, LET_GO) {
        let first = agents.first().context("ten agents")?;
        let [held, let_go] = holds(&fleet, first, trials).with_context(|| logs(&agents))?;
        rows.push(Row::new(SUITE, HELD, "ms", &held).with_most(Of::P99, 50.0));
        rows.push(Row::new(SUITE, LET_GO, "ms", &let_go));
    }
    rows.retain(|row| options.wants(SUITE, &row.case));
    Ok(rows)
}

fn vm(host: usize) -> String {
    format!(
        "---\napiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: {{ name: vm-{host}, labels: {{ app: web }} }}\n\
         spec: {{ device: tap0, host: host-{host}, addresses: [10.{host}.0.10, \"fd00:{host}::10\"] }}\n"
    )
}

fn resources(yaml: &str) -> Result<Vec<Resource>> {
    let located = parse(&[File { name: "desired.yaml".to_owned(), text: yaml.to_owned() }]);
    let located = located.map_err(|faults| anyhow::anyhow!("what is desired has faults: {faults:?}"))?;
    Ok(located.into_iter().map(|l| l.resource).collect())
}

fn logs(agents: &[Agent<'_>]) -> String {
    agents.iter().enumerate().map(|(k, agent)| format!("the agent of host {k}:\n{}\n", agent.logged())).collect()
}

/// From just before a change is committed until the last host says that it is in force, in ms.
async fn changes(fleet: &Fleet, hosts: &[String], trials: u16) -> Result<Vec<f64>> {
    let mut client = connect(fleet).await?;
    let prefix = format!("{STATE}applied/");
    let mut watch = client.watch(&prefix, client.revision() + 1).await?;
    let mut all = Vec::new();
    // The first one is of agents that have just started.
    for trial in 0..=trials {
        let policy = format!(
            "apiVersion: vnet/v1alpha1\nkind: Policy\nmetadata: {{ name: change }}\n\
             spec: {{ ingress: [{{ name: r, peers: [{{ cidr: 172.16.0.0/12 }}], ports: [{{ protocol: TCP, port: {} }}], action: deny }}] }}\n",
            1000 + trial
        );
        let mut writes = resources(&policy)?.iter().map(resource_put).collect::<Result<Vec<_>>>()?;
        writes.push(serial());
        let begun = Instant::now();
        let revision = client.write(&writes).await?;
        let mut missing: BTreeSet<&str> = hosts.iter().map(String::as_str).collect();
        while !missing.is_empty() {
            let next = tokio::time::timeout(LIMIT, watch.next()).await;
            let next = next.with_context(|| format!("trial {trial}: not in force on {missing:?} after {} s", LIMIT.as_secs()))?;
            let Next::Changes(changes, _) = next? else { bail!("the store has thrown away what was not read yet") };
            for change in changes {
                let (Some(Key::Applied(host)), Some(entry)) = (Key::parse(&change.key), change.entry) else { continue };
                let applied: Applied = serde_json::from_slice(&entry.value)?;
                ensure!(applied.trouble.is_none(), "{host} refuses the change: {applied:?}");
                if applied.revision >= revision {
                    missing.remove(host.as_str());
                }
            }
        }
        all.push(begun.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PAUSE).await;
    }
    all.remove(0);
    Ok(all)
}

/// From just before the first host's VM gets a tag until nothing sent to it leaves the other hosts any more, and back, in ms.
fn holds(fleet: &Fleet, agent: &Agent<'_>, trials: u16) -> Result<[Vec<f64>; 2]> {
    let streams = Streams::start(fleet, HOSTS)?;
    let (mut held, mut let_go) = (Vec::new(), Vec::new());
    for trial in 0..=trials {
        let about = || format!("trial {trial}");
        let all_pass = |since: SystemTime| wait_for("packets of all VMs", LIMIT, || streams.passed(since));
        all_pass(SystemTime::now()).with_context(about)?;
        let begun = SystemTime::now();
        post(agent, "/v1/tags")?;
        let last = wait_for("packets to be held", LIMIT, || streams.silent(begun)).with_context(about)?;
        held.push(last.duration_since(begun).unwrap_or_default().as_secs_f64() * 1e3);
        let begun = SystemTime::now();
        post(agent, "/v1/tags/remove")?;
        let passed = all_pass(begun).with_context(about)?;
        let_go.push(passed.duration_since(begun).unwrap_or_default().as_secs_f64() * 1e3);
        std::thread::sleep(PAUSE);
    }
    held.remove(0);
    let_go.remove(0);
    Ok([held, let_go])
}

/// Sets or removes the tag at its host's agent.
fn post(agent: &Agent<'_>, path: &str) -> Result<()> {
    ask(&agent.socket(), "POST", path, r#"{"subject":"vm-0","name":"malware","severity":9}"#).map(drop)
}
