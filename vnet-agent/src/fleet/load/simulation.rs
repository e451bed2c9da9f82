//! Three hosts whose clients connect to members of unequal capacity: the loop is closed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vnet_common::fleet::{Global, MemberKey};

use super::*;
use crate::random::Random;
use crate::resource::Feedback;

/// What hosts are.
pub const HOSTS: usize = 3;
/// An answer is in force so long after it was given, in µs.
const DELIVERY: u64 = 300_000;
const WINDOW_US: u64 = WINDOW.as_micros() as u64;

/// How hosts pick.
#[derive(Clone, Copy, PartialEq)]
pub enum Pick {
    /// At random, by weight.
    Weights,
    /// Who has the fewest, by what the host knows.
    Fewest,
}

/// What goes wrong, by time in s.
#[derive(Clone, Copy)]
pub enum Trouble {
    /// Nobody's reports come from here on.
    NoReports,
    /// This host's reports do not come any more.
    NoReportsOf(usize),
    /// Nobody aggregates any more.
    NoAggregator,
    /// Another host aggregates, which goes on from what it received.
    Takeover,
    /// Flows stop.
    Stop,
    /// Flows begin again.
    Start,
    /// This member takes no new flows.
    Out(usize),
    /// It does again.
    In(usize),
}

enum Event {
    Arrival(usize),
    End(usize, usize),
    Report(usize),
    Aggregate,
    Answer(usize, Global),
    Sample,
    Trouble(Trouble),
}

/// What is simulated.
pub struct Setup {
    /// How long each member keeps a flow, in s.
    pub stay: Vec<f64>,
    /// New flows each second, of all hosts.
    pub rate: f64,
    /// How hosts pick.
    pub pick: Pick,
    /// What the load balancer says.
    pub feedback: &'static str,
    /// What goes wrong when.
    pub troubles: Vec<(u64, Trouble)>,
    /// Flows of the first host that are open from the start and never end, by member.
    pub stuck: Vec<u64>,
    /// For how long, in s.
    pub seconds: u64,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            stay: vec![1.0, 2.0, 4.0],
            rate: 450.0,
            pick: Pick::Weights,
            feedback: "{ mode: leastLoad }",
            troubles: Vec::new(),
            stuck: Vec::new(),
            seconds: 60,
            seed: 7,
        }
    }
}

/// What was seen at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    /// In s.
    pub time: f64,
    /// Open flows of the members that take new ones, of all hosts.
    pub open: Vec<u64>,
    /// Their factors at the first host, in percent.
    pub factors: Vec<u32>,
}

impl Sample {
    /// The most by the mean.
    pub fn imbalance(&self) -> f64 {
        let sum = self.open.iter().sum::<u64>();
        self.open.iter().max().map_or(1.0, |most| (most * self.open.len() as u64) as f64 / sum.max(1) as f64)
    }
}

struct Host {
    counted: Vec<Counted>,
    reporter: Reporter,
    received: Received,
    /// What is in force.
    factors: Vec<u32>,
}

struct World {
    setup: Setup,
    start: Instant,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    /// By the number of the event.
    what: HashMap<u64, Event>,
    count: u64,
    random: Random,
    hosts: Vec<Host>,
    out: Vec<bool>,
    flowing: bool,
    silent: [bool; HOSTS],
    /// Who aggregates.
    elected: usize,
    aggregator: Option<Aggregator>,
    samples: Vec<Sample>,
}

/// The member.
pub fn key(member: usize) -> MemberKey {
    MemberKey { lb: "web".into(), port: 80, at: SocketAddr::from(([10, 9, 0, member as u8 + 1], 8080)) }
}

/// Runs it; gives what was seen every half second.
pub fn run(setup: Setup) -> Vec<Sample> {
    let members = setup.stay.len();
    let host = |n: usize| Host {
        counted: vec![Counted { serial: 1, ..Counted::default() }; members],
        reporter: Reporter::default(),
        received: Received::new(&name(n)),
        factors: vec![100; members],
    };
    let mut world = World {
        start: Instant::now(),
        now: 0,
        events: BinaryHeap::new(),
        what: HashMap::new(),
        count: 0,
        random: Random(setup.seed),
        hosts: (0..HOSTS).map(host).collect(),
        out: vec![false; members],
        flowing: true,
        silent: [false; HOSTS],
        elected: 0,
        aggregator: Some(Aggregator::default()),
        samples: Vec::new(),
        setup,
    };
    for (member, flows) in world.setup.stuck.clone().into_iter().enumerate() {
        (world.hosts[0].counted[member].new, world.hosts[0].counted[member].active) = (flows, flows);
    }
    for n in 0..HOSTS {
        world.arrival(n);
        // Not all at once.
        world.at(WINDOW_US * n as u64 / HOSTS as u64, Event::Report(n));
    }
    world.at(WINDOW_US + WINDOW_US / 20, Event::Aggregate);
    world.at(0, Event::Sample);
    for (time, trouble) in world.setup.troubles.clone() {
        world.at(time * 1_000_000, Event::Trouble(trouble));
    }
    world.run()
}

fn name(host: usize) -> String {
    format!("h{host}")
}

impl World {
    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count)));
        self.what.insert(self.count, event);
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.at(self.now + (seconds * 1e6) as u64, event);
    }

    /// Exponentially distributed.
    fn about(&mut self, mean: f64) -> f64 {
        -mean * ((self.random.below(1 << 31) + 1) as f64 / (1u64 << 31) as f64).ln()
    }

    fn arrival(&mut self, host: usize) {
        let next = self.about(HOSTS as f64 / self.setup.rate);
        self.after(next, Event::Arrival(host));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_micros(self.now)
    }

    fn run(mut self) -> Vec<Sample> {
        while let Some(Reverse((time, number))) = self.events.pop() {
            self.now = time;
            if time > self.setup.seconds * 1_000_000 {
                break;
            }
            match self.what.remove(&number).unwrap() {
                Event::Arrival(host) => {
                    if self.flowing {
                        self.flow(host);
                    }
                    self.arrival(host);
                }
                Event::End(host, member) => self.hosts[host].counted[member].active -= 1,
                Event::Report(host) => self.report(host),
                Event::Aggregate => self.aggregate(),
                Event::Answer(from, global) => {
                    let now = self.instant();
                    self.hosts.iter_mut().for_each(|h| h.received.take(&name(from), global.clone(), now));
                }
                Event::Sample => self.sample(),
                Event::Trouble(trouble) => self.trouble(trouble),
            }
        }
        self.samples
    }

    fn flow(&mut self, host: usize) {
        let there: Vec<usize> = (0..self.out.len()).filter(|m| !self.out[*m]).collect();
        let h = &self.hosts[host];
        let member = match self.setup.pick {
            Pick::Weights => {
                let sum: u32 = there.iter().map(|m| h.factors[*m]).sum();
                let mut at = self.random.below(u64::from(sum)) as u32;
                let found = there.iter().find(|m| {
                    let here = at < h.factors[**m];
                    at = at.saturating_sub(h.factors[**m]);
                    here
                });
                *found.unwrap()
            }
            Pick::Fewest => {
                let elsewhere = h.received.elsewhere(self.instant());
                let flows = |m: usize| h.counted[m].active + u64::from(elsewhere.get(&key(m)).copied().unwrap_or(0));
                let first = self.random.index(there.len());
                (0..there.len()).map(|n| there[(first + n) % there.len()]).min_by_key(|m| flows(*m)).unwrap()
            }
        };
        let counted = &mut self.hosts[host].counted[member];
        (counted.new, counted.active, counted.connected) = (counted.new + 1, counted.active + 1, counted.connected + 1);
        let stay = self.about(self.setup.stay[member]);
        self.after(stay, Event::End(host, member));
    }

    fn report(&mut self, host: usize) {
        let now = self.instant();
        let counted = self.hosts[host].counted.iter().enumerate().map(|(m, c)| (key(m), *c)).collect();
        if let Some(report) = self.hosts[host].reporter.look(now, counted) {
            self.hosts[host].received.reported(report.clone());
            if let Some(aggregator) = self.aggregator.as_mut().filter(|_| !self.silent[host]) {
                aggregator.hear(&name(host), report, now);
            }
        }
        self.at(self.now + WINDOW_US, Event::Report(host));
        // What the agent does every window.
        let h = &mut self.hosts[host];
        let factors = h.received.factors(now);
        let wanted: Vec<u32> = (0..h.factors.len()).map(|m| factors.get(&key(m)).copied().unwrap_or(100)).collect();
        if factors.is_empty() || h.factors.iter().zip(&wanted).any(|(old, new)| differs(*old, *new)) {
            h.factors = wanted;
        }
    }

    fn aggregate(&mut self) {
        self.at(self.now + WINDOW_US, Event::Aggregate);
        let feedback: Feedback = serde_saphyr::from_str(self.setup.feedback).unwrap();
        let members = (0..self.out.len()).filter(|m| !self.out[*m]).map(|m| (key(m).at, 1)).collect();
        let group = |settings| Group { lb: "web".into(), port: 80, zone: None, settings, members };
        // Least connections are levelled by who picks.
        let groups: Vec<Group> =
            Settings::of(&feedback).filter(|_| self.setup.pick == Pick::Weights).map(group).into_iter().collect();
        let now = self.instant();
        let answer = self.aggregator.as_mut().and_then(|aggregator| aggregator.step(|_| true, &groups, now));
        if let Some(global) = answer {
            self.at(self.now + DELIVERY, Event::Answer(self.elected, global));
        }
    }

    fn sample(&mut self) {
        let open = |m: usize| self.hosts.iter().map(|h| h.counted[m].active).sum();
        let open = (0..self.out.len()).filter(|m| !self.out[*m]).map(open).collect();
        let sample = Sample { time: self.now as f64 / 1e6, open, factors: self.hosts[0].factors.clone() };
        self.samples.push(sample);
        self.at(self.now + 500_000, Event::Sample);
    }

    fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::NoReports => self.silent = [true; HOSTS],
            Trouble::NoReportsOf(host) => self.silent[host] = true,
            Trouble::NoAggregator => self.aggregator = None,
            Trouble::Takeover => {
                self.elected = 1;
                let last = self.hosts[1].received.newest(self.instant());
                self.aggregator = Some(Aggregator::new(last.as_ref()));
            }
            Trouble::Stop => self.flowing = false,
            Trouble::Start => self.flowing = true,
            Trouble::Out(member) => self.out[member] = true,
            Trouble::In(member) => self.out[member] = false,
        }
    }
}
