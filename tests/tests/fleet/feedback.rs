//! Load feedback: hosts that see a third of the traffic each bring members of unequal capacity to the same load.

use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use vnet_common::api::fleet::HostStatus;
use vnet_common::api::{LbStatus, MemberStatus};
use vnet_tests::{Agent, Clients, Farm, Fleet, Host, imbalance, wait_for};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];

fn fleet() -> Result<Fleet> {
    let fleet = Fleet::new(&HOSTS, 1)?;
    fleet.init_store()?;
    Ok(fleet)
}

/// All agents, each of which knows of all.
fn agents(fleet: &Fleet) -> Result<Vec<Agent<'_>>> {
    let agents = (0..HOSTS.len()).map(|host| fleet.agent(host, &[])).collect::<Result<Vec<_>>>()?;
    for agent in &agents {
        let all = || hosts(agent).ok().filter(|hosts| hosts.iter().filter(|host| host.alive).count() == HOSTS.len());
        wait_for("all hosts to be alive", Duration::from_secs(20), all).with_context(|| agent.logged())?;
    }
    Ok(agents)
}

fn hosts(agent: &Agent<'_>) -> Result<Vec<HostStatus>> {
    Ok(serde_json::from_str(&agent.ctl(&["host", "ls", "-o", "json"])?)?)
}

fn members(agent: &Agent<'_>) -> Result<Vec<MemberStatus>> {
    Ok(serde_json::from_str::<LbStatus>(&agent.ctl(&["lb", "members", "web", "-o", "json"])?)?.members)
}

fn factors(agent: &Agent<'_>) -> Result<Vec<Option<u32>>> {
    Ok(members(agent)?.iter().map(|member| member.factor_percent).collect())
}

/// Waits until this is the state of what members have open, for three looks a second apart.
fn settled(farm: &Farm, what: &str, is_so: impl Fn(f64) -> bool) -> Result<f64> {
    let begun = Instant::now();
    let mut last = Vec::new();
    let looks = || {
        std::thread::sleep(Duration::from_secs(1));
        let open = farm.open();
        last.push(imbalance(&open));
        println!("{:5.1} s {open:?} {:.2}", begun.elapsed().as_secs_f64(), imbalance(&open));
        (last.len() > 3 && last.iter().rev().take(3).all(|value| is_so(*value))).then_some(())
    };
    wait_for(what, Duration::from_secs(60), looks)?;
    println!("{what} after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(last.last().copied().unwrap_or(1.0))
}

#[test]
fn members_of_unequal_capacity_get_the_same_load_from_hosts_that_see_a_third_each() -> Result<()> {
    let fleet = fleet()?;
    let farm = Farm::new(&fleet.core, &[1, 2, 4].map(|seconds| Some(Duration::from_secs(seconds))))?;
    let mut agents = agents(&fleet)?;
    agents[0].apply(&farm.balancer(VIP, ""))?;
    let clients = Clients::start((0..HOSTS.len()).map(|host| &fleet.vm(host, 0).host), (VIP, 80).into(), 60)?;
    settled(&farm, "unequal load by static weights", |value| value >= 1.4)?;
    println!("{}", agents[0].apply(&farm.balancer(VIP, "  feedback: { mode: leastLoad }\n"))?);
    settled(&farm, "the same load by feedback", |value| value <= 1.3)?;
    println!("{}", agents[1].ctl(&["lb", "members", "web"])?);

    // Another one goes on from the last factors.
    let before = factors(&agents[1])?;
    ensure!(before.iter().flatten().any(|factor| *factor > 130), "{before:?}");
    let oldest = fleet.elected(&agents[1])?.context("no host is elected")?;
    agents[oldest].kill()?;
    let other = (oldest + 1) % HOSTS.len();
    let taken_over = || fleet.elected(&agents[other]).ok().flatten().filter(|elected| *elected != oldest);
    let elected = wait_for("another elected host", Duration::from_secs(60), taken_over)?;
    println!("{} is elected after {}", HOSTS[elected], HOSTS[oldest]);
    settled(&farm, "the same load by another one's feedback", |value| value <= 1.3)?;
    agents[oldest].begin()?;

    // Nobody hears of the others: weights are as configured again.
    fleet.etcd.stop_all()?;
    for agent in &agents {
        let configured = || factors(agent).ok().filter(|factors| factors.iter().flatten().all(|factor| *factor == 100));
        wait_for("weights as configured", Duration::from_secs(60), configured).with_context(|| agent.logged())?;
    }
    settled(&farm, "unequal load without the store", |value| value >= 1.4)?;
    println!("{} connections failed", clients.failed());
    Ok(())
}

/// Opens connections that stay.
fn open(from: &Host, many: usize) -> Result<Vec<TcpStream>> {
    let to = SocketAddr::new(VIP, 80);
    let connect = || (0..many).map(|_| TcpStream::connect_timeout(&to, Duration::from_secs(5))).collect::<Result<_, _>>();
    from.run(connect)?.with_context(|| format!("connecting to {to}"))
}

#[test]
fn least_connections_counts_those_of_all_hosts() -> Result<()> {
    let fleet = fleet()?;
    let farm = Farm::new(&fleet.core, &[None; 3])?;
    let agents = agents(&fleet)?;
    agents[0].apply(&farm.balancer(VIP, "  algorithm: leastConnections\n  feedback: { mode: leastLoad }\n"))?;
    // All of them to one member.
    for member in ["m2", "m3"] {
        agents[0].ctl(&["lb", "drain", "web", member])?;
    }
    let loaded = |open: &[u64]| farm.open() == open;
    let has = |what: &str, expected: [u64; 3]| {
        wait_for(what, Duration::from_secs(10), || loaded(&expected).then_some(())).with_context(|| format!("{:?}", farm.open()))
    };
    let drained = |agent: &Agent<'_>| members(agent).is_ok_and(|m| m.iter().filter(|m| m.state == "draining").count() == 2);
    wait_for("members to be drained", Duration::from_secs(10), || drained(&agents[0]).then_some(()))?;
    let _of_a = open(&fleet.vm(0, 0).host, 40)?;
    has("host-a's connections", [40, 0, 0])?;
    for member in ["m2", "m3"] {
        agents[0].ctl(&["lb", "undrain", "web", member])?;
    }
    let known = || {
        let members = members(&agents[1]).ok()?;
        let there = members.iter().all(|m| m.state != "draining");
        let elsewhere: Vec<u64> = members.iter().map(|m| m.flows_elsewhere).collect();
        (there && elsewhere == [40, 0, 0]).then_some(())
    };
    wait_for("host-b to know of host-a's connections", Duration::from_secs(30), known).with_context(|| agents[1].logged())?;
    println!("{}", agents[1].ctl(&["lb", "members", "web"])?);
    let of_b = open(&fleet.vm(1, 0).host, 30)?;
    has("host-b to avoid what host-a loads", [40, 15, 15])?;

    // Those that end are of no more consequence.
    drop(of_b);
    has("the end of host-b's connections", [40, 0, 0])
}

/// However quiet the other hosts are, and whatever becomes of them.
#[test]
fn who_waits_for_the_last_flow_of_a_member_waits_for_all_hosts() -> Result<()> {
    let fleet = fleet()?;
    let farm = Farm::new(&fleet.core, &[None; 3])?;
    let agents = agents(&fleet)?;
    agents[0].apply(&farm.balancer(VIP, ""))?;
    let there = || members(&agents[2]).is_ok_and(|members| members.len() == 3);
    wait_for("the members", Duration::from_secs(10), || there().then_some(()))?;
    // host-c had flows once, host-b never.
    drop(open(&fleet.vm(2, 0).host, 3)?);
    let gone = || members(&agents[2]).is_ok_and(|members| members.iter().all(|m| m.active_flows == 0));
    wait_for("host-c's flows to be over", Duration::from_secs(30), || gone().then_some(()))?;
    std::thread::sleep(Duration::from_secs(5));
    let begun = Instant::now();
    println!("{}", agents[0].ctl_within(30, &["lb", "drain", "web", "m1", "--wait"])?);
    println!("drained after {:.1} s", begun.elapsed().as_secs_f64());

    // A member of the store goes, and the flows of host-b stay.
    let of_b = open(&fleet.vm(1, 0).host, 6)?;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| agents[0].ctl_within(60, &["lb", "drain", "web", "m2", "--wait"]));
        std::thread::sleep(Duration::from_secs(6));
        ensure!(!waiting.is_finished(), "host-b has flows to it");
        for member in 0..3 {
            fleet.etcd.kill(member)?;
            std::thread::sleep(Duration::from_secs(3));
            ensure!(!waiting.is_finished(), "it goes on without member {member} of the store");
            fleet.etcd.restart(member)?;
        }
        drop(of_b);
        waiting.join().map_err(|_| anyhow::anyhow!("a panic"))?.map(|printed| println!("{printed}"))
    })?;

    // A host that is cut off may have them for ever.
    let _of_b = open(&fleet.vm(1, 0).host, 2)?;
    std::thread::sleep(Duration::from_secs(3));
    fleet.cut(1)?;
    let error = agents[0].ctl_within(90, &["lb", "drain", "web", "m3", "--wait"]).err().context("host-b was not asked")?;
    let error = format!("{error:#}");
    ensure!(error.contains("host host-b is not heard of, and had 2 flows to it"), "{error}");
    println!("{}", agents[0].ctl_within(90, &["lb", "drain", "web", "m3", "--wait", "--regardless"])?);
    Ok(())
}
