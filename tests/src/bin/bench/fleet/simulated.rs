//! One simulated agent: all that a real one does about its fleet, by the same code, but for a datapath and devices.

use super::cpu;
use super::world::{ENDPOINTS, Estate, groups, loads};
use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vnet_agent::control::elsewhere::{changes, subjects};
use vnet_agent::elsewhere::Elsewhere;
use vnet_agent::fleet::here::Here;
use vnet_agent::fleet::identity::Numbers;
use vnet_agent::fleet::load::{Aggregator, WINDOW};
use vnet_agent::fleet::others::Others;
use vnet_agent::fleet::view::{Touched, View};
use vnet_agent::fleet::{Consumer, Fleet, Hold, Link, Settings};
use vnet_agent::policy::ids::RuleIds;
use vnet_agent::policy::live::Tables;
use vnet_agent::policy::{HostKind, Image, Inputs, Previous, Subject, Written};
use vnet_agent::resource::Resource;
use vnet_common::etcd::Entry;
use vnet_common::fleet::{Applied, EndpointState, Global, HostState, Key, LoadReport};

/// The label of an endpoint that says when it was written: nanoseconds of the monotonic clock.
pub const WRITTEN: &str = "written";

/// One of the hosts.
pub struct Simulated {
    /// Its end of the store.
    pub fleet: Arc<Fleet>,
    estate: Arc<Estate>,
    /// Which of the hosts it is.
    number: u32,
    state: Mutex<State>,
    /// It is the elected host.
    elected: AtomicBool,
    gate: Arc<Gate>,
}

/// What it knows, and how it went.
#[derive(Default)]
struct State {
    view: View,
    numbers: Numbers,
    others: Others,
    elsewhere: Arc<Elsewhere>,
    image: Option<Image>,
    /// The endpoints of this host, as rules see them.
    here: Vec<Subject>,
    /// When everything was known and compiled, by the monotonic clock.
    converged: Option<u64>,
    /// For each endpoint that says when it was written: that, and ms until it was compiled.
    latencies: Vec<(u64, f64)>,
    costs: BTreeMap<&'static str, Cost>,
    /// How often the store was lost, and why at last.
    lost: (u32, String),
}

/// What a step of the work took, of all that was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// How often.
    pub times: u64,
    /// CPU time in ms.
    pub ms: f64,
}

/// How it stands with an agent.
#[derive(Default)]
pub struct Standing {
    /// When everything was known and compiled, by the monotonic clock.
    pub converged: Option<u64>,
    /// Other hosts' endpoints that it knows.
    pub endpoints: usize,
    /// For each endpoint that says when it was written: that, and ms until it was compiled. Told once.
    pub latencies: Vec<(u64, f64)>,
    /// By step.
    pub costs: BTreeMap<&'static str, Cost>,
    /// How often the store was lost, and why at last.
    pub lost: (u32, String),
}

/// As many agents at a time as there are CPUs: a hundred that compile at once would let nobody keep a lease.
pub struct Gate(Mutex<usize>, Condvar);

/// Nanoseconds of the monotonic clock, which all processes share.
pub fn monotonic() -> Result<u64> {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).context("asking for the time")?.into();
    u64::try_from(now.as_nanos()).context("a time of 64 bits")
}

impl Gate {
    /// For so many at a time.
    pub fn new(places: usize) -> Self {
        Self(Mutex::new(places), Condvar::new())
    }

    fn pass<T>(&self, act: impl FnOnce() -> T) -> T {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = self.1.wait_while(places, |places| *places == 0).unwrap_or_else(PoisonError::into_inner);
        *places -= 1;
        drop(places);
        let result = act();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.1.notify_one();
        result
    }
}

impl Simulated {
    /// With what an agent before it left in `state_dir`, as a real one starts.
    pub fn open(settings: Settings, state_dir: &Path, number: u32, estate: Arc<Estate>, gate: Arc<Gate>) -> Result<Arc<Self>> {
        std::fs::create_dir_all(state_dir).with_context(|| format!("making {}", state_dir.display()))?;
        let fleet = Fleet::open(settings, state_dir)?;
        let here = estate.subjects(number).collect();
        let state = Mutex::new(State { here, ..State::default() });
        let agent = Self { fleet, estate, number, state, elected: AtomicBool::new(false), gate };
        agent.gate.pass(|| agent.follow())?;
        Ok(Arc::new(agent))
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let mut state = self.state();
        Standing {
            converged: state.converged,
            endpoints: state.elsewhere.endpoints.len(),
            latencies: std::mem::take(&mut state.latencies),
            costs: state.costs.clone(),
            lost: state.lost.clone(),
        }
    }

    /// Reports the load of its endpoints for ever; the elected host answers.
    pub async fn report(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(WINDOW);
        let mut aggregator = None;
        for serial in 1.. {
            ticks.tick().await;
            if let Err(e) = self.report_once(serial, &mut aggregator).await {
                log::warn!("{}: reporting its load: {e:#}", self.fleet.host());
            }
        }
    }

    async fn report_once(&self, serial: u64, aggregator: &mut Option<Aggregator>) -> Result<()> {
        let own = self.fleet.host();
        let report = LoadReport { serial, window_ms: WINDOW.as_millis() as u64, members: loads(self.number, serial) };
        self.fleet.report(&report)?;
        if !self.elected.load(Ordering::Relaxed) {
            *aggregator = None;
            return self.fleet.say::<Global>(&Key::Global(own.to_owned()), None, Hold::Alive);
        }
        let (aggregator, now) = (aggregator.get_or_insert_default(), Instant::now());
        for (host, report) in others(&self.fleet.loads().await?, own)? {
            aggregator.hear(&host, report, now);
        }
        aggregator.hear(own, report, now);
        let answer = aggregator.step(|_| true, &groups(), now);
        self.fleet.say(&Key::Global(own.to_owned()), answer.as_ref(), Hold::Alive)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `control::fleet` does when keys changed.
    fn follow(&self) -> Result<()> {
        let mut state = self.state();
        let State { view, others, .. } = &mut *state;
        let mut costs = Vec::new();
        let (keys, touched) = timed(&mut costs, "view", || self.fleet.news(view));
        if touched.hosts || touched.endpoints || touched.desired {
            let own = self.fleet.host();
            let changed = view.endpoints.take_changed();
            let elsewhere = timed(&mut costs, "others", || others.elsewhere(view, own, &changed, |_| None));
            timed(&mut costs, "image", || state.compile(elsewhere, touched))?;
        }
        let revision = state.view.moment.revision;
        let is_read = revision > 0;
        if is_read && (touched.desired || keys.is_empty()) {
            self.say_applied(state.view.moment.desired)?;
        }
        if is_read && (touched.desired || touched.hosts || touched.identities || keys.is_empty()) {
            timed(&mut costs, "here", || self.say_here(&mut state))?;
        }
        for (step, ms) in costs {
            let cost = state.costs.entry(step).or_default();
            (cost.times, cost.ms) = (cost.times + 1, cost.ms + ms);
        }
        self.elected.store(state.view.elected() == Some(self.fleet.host()), Ordering::Relaxed);
        state.look(&keys, is_read && revision >= self.estate.revision, (self.estate.endpoints() - ENDPOINTS) as usize)
    }

    fn say_applied(&self, revision: i64) -> Result<()> {
        let applied = Applied { revision, ..Applied::default() };
        self.fleet.say(&Key::Applied(self.fleet.host().to_owned()), Some(&applied), Hold::Alive)
    }

    fn say_here(&self, state: &mut State) -> Result<()> {
        let addresses = vec![IpAddr::from([10, 98, 0, 2])];
        let host = HostState { version: env!("CARGO_PKG_VERSION").to_owned(), zone: None, addresses, capacity: 1024 };
        let each = state.here.iter().map(|s| {
            let labels = Arc::clone(&s.labels);
            let (addresses, group) = (s.addresses.clone(), s.group.to_string());
            (s.name.to_string(), EndpointState { labels, addresses, given: true, group, ..EndpointState::default() })
        });
        let here = Here { host, endpoints: each.collect() };
        self.fleet.say_here(&state.view, &mut state.numbers, here, Instant::now())
    }
}

impl State {
    fn compile(&mut self, elsewhere: Elsewhere, touched: Touched) -> Result<()> {
        if !touched.desired && *self.elsewhere == elsewhere {
            return Ok(());
        }
        let after = Arc::new(elsewhere);
        let image = match &self.image {
            Some(image) if !touched.desired => {
                let (changed, gone) = changes(image, self.here.clone(), &self.elsewhere, &after);
                image.with(changed, &gone)
            }
            before => {
                let (ids, tables) = (RuleIds::default(), Tables::default());
                let previous = before.as_ref().map_or(Previous::Start { ids: &ids, tables: &tables }, Previous::Image);
                Image::compile(&self.inputs(&self.resources()?, &after), previous)
            }
        };
        self.image = Some(image.map_err(|refused| anyhow::anyhow!("{refused}"))?);
        self.elsewhere = after;
        Ok(())
    }

    fn resources(&self) -> Result<Vec<Resource>> {
        let read = |(_, stored): &(i64, vnet_common::fleet::Stored)| serde_json::from_value(stored.resource.clone());
        self.view.resources.values().map(read).collect::<Result<_, _>>().context("reading resources")
    }

    fn inputs<'a>(&self, resources: &'a [Resource], elsewhere: &Elsewhere) -> Inputs<'a> {
        static NOWHERE: std::sync::LazyLock<HashMap<(String, String), vnet_agent::resource::Origin>> =
            std::sync::LazyLock::new(HashMap::new);
        let groups = resources.iter().filter_map(|r| if let Resource::SecurityGroup(group) = r { Some(group) } else { None });
        let policies = resources.iter().filter_map(|r| if let Resource::Policy(policy) = r { Some(policy) } else { None });
        Inputs {
            written: Written {
                groups: groups.collect(),
                policies: policies.collect(),
                origins: &NOWHERE,
                targets: &|_| Vec::new(),
                elsewhere: Some(&|_| Vec::new()),
            },
            subjects: self.here.iter().cloned().chain(subjects(elsewhere, |_| false)).collect(),
            hosts: vec![(IpAddr::from([10, 98, 0, 2]), HostKind::This)],
            networks: Vec::new(),
        }
    }

    /// Notes when all was known, and how old what changed was.
    fn look(&mut self, keys: &BTreeSet<String>, is_newest: bool, expected: usize) -> Result<()> {
        if self.converged.is_none() && is_newest && self.image.is_some() && self.elsewhere.endpoints.len() >= expected {
            self.converged = Some(monotonic()?);
        }
        for key in keys {
            let Some(Key::Endpoint(_, name)) = Key::parse(key) else { continue };
            let written = self.elsewhere.endpoints.get(&*name).and_then(|e| e.labels.get(WRITTEN)?.parse::<u64>().ok());
            if let Some(written) = written {
                self.latencies.push((written, monotonic()?.saturating_sub(written) as f64 / 1e6));
            }
        }
        Ok(())
    }
}

impl Consumer for Simulated {
    fn changed(&self) {
        if let Err(e) = self.gate.pass(|| self.follow()) {
            log::error!("{}: {e:#}", self.fleet.host());
        }
    }

    fn link(&self, link: &Link) {
        if link.connected.is_none() {
            let why = link.trouble.clone().unwrap_or_default();
            log::warn!("{}: {why}", self.fleet.host());
            let mut state = self.state();
            state.lost = (state.lost.0 + 1, why);
        }
    }
}

/// What hosts report, but for this one.
fn others(entries: &BTreeMap<String, Entry>, own: &str) -> Result<Vec<(String, LoadReport)>> {
    let mut reports = Vec::new();
    for (key, entry) in entries {
        let Some(host) = Key::parse(key).and_then(|key| key.host().map(str::to_owned)).filter(|host| host != own) else {
            continue;
        };
        reports.push((host, serde_json::from_slice(&entry.value).context("reading a report of load")?));
    }
    Ok(reports)
}

/// Does something, and notes what CPU time it took, in ms.
fn timed<T>(costs: &mut Vec<(&'static str, f64)>, step: &'static str, act: impl FnOnce() -> T) -> T {
    let begun = cpu();
    let result = act();
    costs.push((step, (cpu() - begun) * 1e3));
    result
}
