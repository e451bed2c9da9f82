//! The hosts, and the connections between them.

use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use vnet_common::api::LbStatus;
use vnet_tests::{Agent, Clients, Farm, Fleet, imbalance, wait_for};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];
/// How long each member keeps a connection, in seconds.
const STAYS: [u64; 3] = [1, 2, 4];
/// New connections each second, of each host.
const RATE: u32 = 100;
/// How long anything may take.
const SOON: Duration = Duration::from_secs(20);

/// What members have at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Seconds since the scene began.
    pub time: f64,
    /// Seconds since this was watched.
    pub since: f64,
    /// Open connections of each member, as its server counts them.
    pub open: Vec<u64>,
}

impl Sample {
    /// The busiest by the mean, in percent.
    pub fn imbalance(&self) -> f64 {
        imbalance(&self.open) * 100.0
    }
}

/// Agents of all hosts, members behind the router, and clients on each host.
pub struct Scene<'a> {
    fleet: &'a Fleet,
    agents: Vec<Agent<'a>>,
    farm: Farm,
    _clients: Clients,
    begun: Instant,
    samples: Vec<Sample>,
    marks: Vec<(f64, &'static str)>,
}

impl<'a> Scene<'a> {
    /// Three hosts, with a store that knows them.
    pub fn network() -> Result<Fleet> {
        let fleet = Fleet::new(&HOSTS, 1)?;
        fleet.init_store()?;
        Ok(fleet)
    }

    /// Starts all of it, without feedback.
    pub fn new(fleet: &'a Fleet) -> Result<Self> {
        let farm = Farm::new(&fleet.core, &STAYS.map(|seconds| Some(Duration::from_secs(seconds))))?;
        let agents = (0..HOSTS.len()).map(|host| fleet.agent(host, &[])).collect::<Result<Vec<_>>>()?;
        for agent in &agents {
            let all = || agent.ctl(&["host", "ls"]).is_ok_and(|list| list.matches("alive").count() == HOSTS.len()).then_some(());
            wait_for("all hosts to be alive", SOON, all).with_context(|| agent.logged())?;
        }
        agents[0].apply(&farm.balancer(VIP, ""))?;
        let clients = Clients::start((0..HOSTS.len()).map(|host| &fleet.vm(host, 0).host), (VIP, 80).into(), RATE)?;
        let (samples, marks) = (Vec::new(), Vec::new());
        Ok(Self { fleet, agents, farm, _clients: clients, begun: Instant::now(), samples, marks })
    }

    /// Switches feedback on or off.
    pub fn feed_back(&mut self, on: bool) -> Result<()> {
        self.mark(if on { "leastLoad" } else { "off" });
        let mode = if on { "leastLoad" } else { "off" };
        self.agents[0].apply(&self.farm.balancer(VIP, &format!("  feedback: {{ mode: {mode} }}\n"))).map(drop)
    }

    /// Looks every second for so many seconds.
    pub fn watch(&mut self, what: &str, seconds: u32) -> Result<Vec<Sample>> {
        let begun = Instant::now();
        for second in 1..=seconds {
            std::thread::sleep((begun + Duration::from_secs(1) * second).saturating_duration_since(Instant::now()));
            self.look(begun);
        }
        let watched = self.samples[self.samples.len() - seconds as usize..].to_vec();
        let last: Vec<String> = watched.iter().map(|sample| format!("{:.0}", sample.imbalance())).collect();
        eprintln!("feedback: {what}: {}", last.join(" "));
        Ok(watched)
    }

    fn look(&mut self, since: Instant) {
        let seconds = |start: Instant| start.elapsed().as_secs_f64();
        self.samples.push(Sample { time: seconds(self.begun), since: seconds(since), open: self.farm.open() });
    }

    /// Kills the agent of the elected host.
    pub fn kill_elected(&mut self) -> Result<()> {
        let elected = self.fleet.elected(&self.agents[0])?.context("no host is elected")?;
        self.mark("agent killed");
        self.agents[elected].kill()?;
        // The last one answers `vnet-ctl` and has to live on.
        let killed = self.agents.remove(elected);
        drop(killed);
        Ok(())
    }

    /// Takes the store away from all hosts; gives the seconds until all weights are as configured.
    pub fn cut_all(&mut self) -> Result<f64> {
        self.mark("no store");
        let begun = Instant::now();
        self.fleet.etcd.stop_all()?;
        let configured = |agent: &Agent<'_>| -> Result<bool> {
            let lb: LbStatus = serde_json::from_str(&agent.ctl(&["lb", "members", "web", "-o", "json"])?)?;
            Ok(lb.members.iter().all(|member| member.factor_percent == Some(100)))
        };
        loop {
            std::thread::sleep(Duration::from_secs(1));
            self.look(begun);
            if self.agents.iter().map(configured).collect::<Result<Vec<_>>>()?.iter().all(|configured| *configured) {
                return Ok(begun.elapsed().as_secs_f64());
            }
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(180), "without the store, factors do not fade");
        }
    }

    fn mark(&mut self, what: &'static str) {
        self.marks.push((self.begun.elapsed().as_secs_f64(), what));
    }

    /// All that was seen.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// What was done when, in seconds.
    pub fn marks(&self) -> &[(f64, &'static str)] {
        &self.marks
    }
}
