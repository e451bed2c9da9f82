//! Health checks that hosts share: three ask each member, the others believe them, and nobody believes against his own eyes.

use anyhow::{Context as _, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use vnet_common::api::fleet::HostStatus;
use vnet_common::api::{LbStatus, MemberStatus};
use vnet_tests::{Agent, Clients, Farm, Fleet, wait_for};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const HOSTS: [&str; 4] = ["host-a", "host-b", "host-c", "host-d"];
/// Hosts that ask each member.
const PROBERS: usize = 3;
/// Each member is asked so often by each of them.
const INTERVAL: Duration = Duration::from_millis(200);
/// Many intervals.
const WHILE: Duration = Duration::from_secs(2);
/// How long anything here may take.
const SOON: Duration = Duration::from_secs(30);

/// Waits until each agent knows of all of them.
fn all_know_all(agents: &[Agent<'_>]) -> Result<()> {
    let alive = |agent: &Agent<'_>| -> Result<usize> {
        let hosts: Vec<HostStatus> = serde_json::from_str(&agent.ctl(&["host", "ls", "-o", "json"])?)?;
        Ok(hosts.iter().filter(|host| host.alive).count())
    };
    agents.iter().try_for_each(|agent| {
        let all = || alive(agent).is_ok_and(|alive| alive == agents.len()).then_some(());
        wait_for("all hosts to be alive", SOON, all).with_context(|| agent.logged())
    })
}

/// Who asked each member within a while, and how often.
fn asked(farm: &Farm) -> Vec<BTreeMap<IpAddr, u64>> {
    let before: Vec<_> = farm.servers.iter().map(|server| server.accepted()).collect();
    std::thread::sleep(WHILE);
    let since = |(before, server): (&BTreeMap<IpAddr, u64>, &vnet_tests::Server)| {
        let new = server.accepted().into_iter().map(|(from, count)| (from, count - before.get(&from).copied().unwrap_or(0)));
        new.filter(|(_, count)| *count > 0).collect()
    };
    before.iter().zip(&farm.servers).map(since).collect()
}

/// Waits until each member is asked by so many hosts; gives by whom.
fn asked_by(farm: &Farm, hosts: usize) -> Result<Vec<BTreeSet<IpAddr>>> {
    let mut last = Vec::new();
    let by_so_many = || {
        last = asked(farm);
        last.iter().all(|asked| asked.len() == hosts).then(|| last.iter().map(|asked| asked.keys().copied().collect()).collect())
    };
    let by = wait_for(&format!("each member to be asked by {hosts} hosts"), SOON, by_so_many);
    println!("asked within {} intervals: {last:?}", WHILE.as_millis() / INTERVAL.as_millis());
    by.with_context(|| format!("{last:?}"))
}

fn member(agent: &Agent<'_>, name: &str) -> Result<MemberStatus> {
    let lb: LbStatus = serde_json::from_str(&agent.ctl(&["lb", "members", "web", "-o", "json"])?)?;
    lb.members.into_iter().find(|member| member.name == name).with_context(|| format!("there is no member {name}"))
}

/// Waits until a member is in this state at an agent; gives why.
fn is(agent: &Agent<'_>, name: &str, state: &str) -> Result<String> {
    let there = || member(agent, name).ok().filter(|member| member.state == state);
    let there = wait_for(&format!("{name} to be {state}"), SOON, there).with_context(|| agent.logged())?;
    Ok(there.health.unwrap_or_default())
}

#[test]
fn three_hosts_ask_each_member_and_the_others_believe_them() -> Result<()> {
    let fleet = Fleet::new(&HOSTS, 1)?;
    fleet.init_store()?;
    let mut farm = Farm::new(&fleet.core, &[None; 3])?;
    let mut agents = (0..PROBERS).map(|host| fleet.agent(host, &[])).collect::<Result<Vec<_>>>()?;
    all_know_all(&agents)?;
    let check = format!("  healthCheck: {{ intervalMs: {}, timeoutMs: 150, rise: 1, fall: 2 }}\n", INTERVAL.as_millis());
    agents[0].apply(&farm.balancer(VIP, &check))?;
    asked_by(&farm, PROBERS)?;

    // One more host is not one more to ask.
    agents.push(fleet.agent(PROBERS, &[])?);
    all_know_all(&agents)?;
    for agent in &agents {
        is(agent, "m1", "active")?;
    }
    let asking = asked_by(&farm, PROBERS)?;
    let address = |host: usize| IpAddr::from([10, 98, u8::try_from(host).unwrap_or(u8::MAX), 2]);
    let bystander = (0..HOSTS.len()).find(|host| !asking[0].contains(&address(*host))).context("all hosts ask m1")?;
    println!("{} does not ask m1", HOSTS[bystander]);

    farm.end(0);
    for (host, agent) in agents.iter().enumerate() {
        let why = is(agent, "m1", "down")?;
        println!("{}: m1 is down: {why}", HOSTS[host]);
        ensure!(why.contains("hosts say") == (host == bystander), "{}: {why}", HOSTS[host]);
        ensure!(member(agent, "m2")?.state == "active");
    }
    farm.start(0, None)?;
    for agent in &agents {
        is(agent, "m1", "active")?;
    }

    // What one host alone cannot reach is down for that one alone.
    let there = fleet.host(bystander);
    let drop_answers = "add table inet lost; add chain inet lost arriving { type filter hook prerouting priority raw; }; \
                        add rule inet lost arriving iifname up ip saddr 10.0.1.11 drop";
    there.output("nft", &[drop_answers])?;
    // One that waits for an answer opens no further ones meanwhile.
    let clients = Clients::start(std::iter::repeat_n(&fleet.vm(bystander, 0).host, 8), (VIP, 80).into(), 4)?;
    let why = is(&agents[bystander], "m1", "down")?;
    println!("{}: m1 is down: {why}; {} connections failed", HOSTS[bystander], clients.failed());
    ensure!(!why.contains("hosts say"), "{why}");
    for (_, agent) in agents.iter().enumerate().filter(|(host, _)| *host != bystander) {
        ensure!(member(agent, "m1")?.state == "active", "{}", agent.logged());
    }
    let spared = || {
        let before = member(&agents[bystander], "m1").ok()?.new_flows;
        std::thread::sleep(WHILE);
        (member(&agents[bystander], "m1").ok()?.new_flows == before).then_some(())
    };
    wait_for("new connections to avoid m1", SOON, spared)?;
    let before = member(&agents[bystander], "m2")?.new_flows;
    let others = || member(&agents[bystander], "m2").is_ok_and(|m2| m2.new_flows > before).then_some(());
    wait_for("new connections to m2", SOON, others)?;
    drop(clients);
    there.output("nft", &["delete table inet lost"])?;
    is(&agents[bystander], "m1", "active")?;

    // Without the store nobody is told anything: each sees for himself.
    fleet.etcd.stop_all()?;
    asked_by(&farm, HOSTS.len())?;
    for agent in &agents {
        ensure!(member(agent, "m1")?.state == "active", "{}", agent.logged());
    }
    fleet.etcd.start_all()?;
    // But for the one that had doubts about m1 a minute ago.
    let fewer = || asked(&farm)[1..].iter().all(|asked| asked.len() == PROBERS).then_some(());
    wait_for("hosts to believe each other again", SOON, fewer)
}
