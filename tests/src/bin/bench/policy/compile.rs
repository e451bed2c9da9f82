//! The compiler, the maps it fills, and explanations, at the size that the goals are for.

use crate::Options;
use crate::report::{Of, Row};
use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use vnet_agent::datapath::{Datapath, Foreign, Options as Opening, Order, Sizes};
use vnet_agent::explain::target::{Place, Scene};
use vnet_agent::explain::{self, Rehearsals};
use vnet_agent::observe::Names;
use vnet_agent::policy::apply::Applier;
use vnet_agent::policy::ids::RuleIds;
use vnet_agent::policy::live::Tables;
use vnet_agent::policy::plan::Assignment;
use vnet_agent::policy::{Image, Previous, Subject};
use vnet_common::api::ExplainRequest;
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_common::lb::LocalKey;
use vnet_tests::policy::{Scale, World};
use vnet_tests::{Host, TempDir};

const SUITE: &str = "policy at scale";
const FULL: &str = "full compile, and what is to be written";
const ONE: &str = "one endpoint has other labels, to the maps";
const HELD: &str = "an endpoint elsewhere is held or let go, to the maps";
const EXPLAIN: &str = "an explanation";
const STEADY: &str = "policy maps";
const CHANGING: &str = "policy maps, a rule for everyone not yet swept";
/// The maps that rules take.
const MAPS: [&str; 8] = ["SETS", "RULES", "PORTS", "BITS", "PEERS", "IPCACHE", "CIDRS", "RULE_COUNTERS"];
/// Devices of endpoints, none of which is there.
const FIRST_DEVICE: u32 = 1000;

/// Measures, if any of it is wanted.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let wanted = |case: &&str| options.wants(SUITE, case);
    if ![FULL, ONE, HELD, EXPLAIN, STEADY, CHANGING].iter().any(wanted) {
        return Ok(Vec::new());
    }
    let (host, dir) = (Host::new("scale")?, TempDir::new()?);
    let rows = host.run(|| Laden::open(&dir)?.measure(if options.quick { 3 } else { 15 }))??;
    Ok(rows.into_iter().filter(|row| wanted(&row.case.as_str())).collect())
}

/// 10,000 endpoints in the kernel's maps.
struct Laden {
    world: World,
    /// The endpoints of this host: their slots.
    here: HashMap<Arc<str>, u32>,
    datapath: Arc<Datapath>,
    applier: Applier,
}

impl Laden {
    fn open(dir: &TempDir) -> Result<Self> {
        let opening = Opening {
            pins: "/sys/fs/bpf/vnet".into(),
            lock: dir.path().join("lock"),
            object: vnet_agent::object::object().into(),
            sizes: Sizes::default(),
            order: Order::First,
            foreign: Foreign::Warn,
            trace: false,
            discard_newer: false,
        };
        let datapath = Arc::new(Datapath::open(&opening)?.0);
        let world = World::new(Scale::GOAL);
        let here: HashMap<Arc<str>, u32> = local(&world).map(|(slot, s)| (Arc::clone(&s.name), slot)).collect();
        for (slot, subject) in local(&world) {
            for address in &subject.addresses {
                datapath.maps().put_local(&local_key(*address), FIRST_DEVICE + slot)?;
            }
        }
        Ok(Self { world, here, datapath, applier: Applier::default() })
    }

    fn measure(mut self, rounds: u32) -> Result<Vec<Row>> {
        let (ids, tables) = (RuleIds::default(), Tables::default());
        let mut full = Vec::new();
        for _ in 0..rounds {
            let start = cpu()?;
            let image = self.world.compile(Previous::Start { ids: &ids, tables: &tables })?;
            Applier::default().plan(&self.datapath, &image)?;
            full.push(millis(start)?);
        }
        let mut image = self.world.compile(Previous::Start { ids: &ids, tables: &tables })?;
        self.enforce(&image)?;
        let steady = self.mib()?;

        let mut one = Vec::new();
        for round in 0..rounds * 10 {
            let start = cpu()?;
            image = image.with(vec![self.moved(round)?], &[])?;
            self.enforce(&image)?;
            one.push(millis(start)?);
        }

        let mut held = Vec::new();
        for round in 0..rounds * 10 {
            let start = cpu()?;
            image = image.with(vec![self.held(round)?], &[])?;
            self.enforce(&image)?;
            held.push(millis(start)?);
        }

        let (scene, rehearsals, mut explained) = (self.scene(&image), Rehearsals::default(), Vec::new());
        for place in &scene.places {
            let request =
                ExplainRequest { from: place.name.clone(), to: "vm-5000:443/tcp".to_owned(), ..ExplainRequest::default() };
            let start = cpu()?;
            explain::loaded(&self.datapath, &rehearsals, &scene, &request).map_err(|e| anyhow::anyhow!("{e}"))?;
            explained.push(millis(start)?);
        }

        // Every set is another, and the old ones are still there.
        let mut everywhere = self.world.policies.get(1).context("a world with policies")?.clone();
        everywhere.metadata.name = "everywhere".to_owned();
        everywhere.spec.applied_to = vnet_agent::resource::AppliedTo::default();
        self.world.policies.push(everywhere);
        let image = self.world.compile(Previous::Image(&image))?;
        self.enforce(&image)?;
        Ok(vec![
            Row::new(SUITE, FULL, "ms of one CPU", &full).with_most(Of::Max, 2000.0),
            Row::new(SUITE, ONE, "ms of one CPU", &one).with_most(Of::P99, 10.0),
            Row::new(SUITE, HELD, "ms of one CPU", &held).with_most(Of::P99, 10.0),
            Row::new(SUITE, EXPLAIN, "ms of one CPU", &explained).with_most(Of::P99, 10.0),
            Row::new(SUITE, STEADY, "MiB", &[steady]).with_most(Of::Max, 128.0),
            Row::new(SUITE, CHANGING, "MiB", &[self.mib()?]).with_most(Of::Max, 256.0),
        ])
    }

    /// Puts it in force, as the agent does.
    fn enforce(&mut self, image: &Image) -> Result<()> {
        let (here, maps) = (&self.here, self.datapath.maps());
        let mut switch = |assignments: &[&Assignment]| {
            for a in assignments {
                let Some(slot) = here.get(&*a.name).copied() else { continue };
                let flags = if a.policed { flags::POLICED | flags::NEIGHBORS } else { 0 };
                let row = EndpointRow { id: slot + 1, slot, ifindex: FIRST_DEVICE + slot, mtu: 1500, ..EndpointRow::default() };
                maps.set_endpoint(&EndpointRow { set: a.set, identity: a.identity, flags, ..row })?;
            }
            Ok(())
        };
        let plan = self.applier.plan(&self.datapath, image)?;
        self.applier.run(&self.datapath, plan, &mut switch)
    }

    /// One of them, with labels that it did not have.
    fn moved(&self, round: u32) -> Result<Subject> {
        let mut subject = self.world.subjects.get(round as usize % 200).context("an endpoint of this host")?.clone();
        let mut labels = (*subject.labels).clone();
        labels.insert("team".to_owned(), format!("team-{}", round % 50));
        subject.labels = labels.into();
        Ok(subject)
    }

    /// One of another host, which holds it in every other round: then everyone here is policed.
    fn held(&self, round: u32) -> Result<Subject> {
        let subject = self.world.subjects.get(200 + round as usize / 2).context("an endpoint of another host")?.clone();
        Ok(Subject { held: round.is_multiple_of(2), ..subject })
    }

    fn scene(&self, image: &Image) -> Scene {
        let place = |(slot, s): (u32, &Subject)| Place {
            name: s.name.to_string(),
            ifindex: FIRST_DEVICE + slot,
            addresses: s.addresses.clone(),
            ..Place::default()
        };
        let addresses = self.world.subjects.iter().flat_map(|s| s.addresses.iter().map(|a| (*a, Arc::clone(&s.name))));
        let names = Names {
            endpoints: Arc::new(local(&self.world).map(|(slot, s)| (slot + 1, Arc::clone(&s.name))).collect()),
            addresses: Arc::new(addresses.collect()),
            rules: image.rules_by_number(),
            ..Names::default()
        };
        Scene { places: local(&self.world).map(place).collect(), host: Vec::new(), names }
    }

    /// What the kernel says that the policy's maps take.
    fn mib(&self) -> Result<f64> {
        let maps = self.datapath.maps().status()?;
        let bytes: u64 = maps.iter().filter(|m| MAPS.contains(&m.name.as_str())).map(|m| m.memory_bytes).sum();
        Ok(bytes as f64 / f64::from(1 << 20))
    }
}

/// The endpoints of this host, with their slots.
fn local(world: &World) -> impl Iterator<Item = (u32, &Subject)> {
    (0..).zip(world.subjects.iter().filter(|s| s.local))
}

fn local_key(address: IpAddr) -> LocalKey {
    let mut addr = [0; 16];
    match address {
        IpAddr::V4(a) => addr[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => addr = a.octets(),
    }
    LocalKey { network: 0, version: if address.is_ipv4() { 4 } else { 6 }, addr }
}

/// Time that this thread has had of a CPU: what else runs here does not count.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn millis(since: Duration) -> Result<f64> {
    Ok((cpu()? - since).as_secs_f64() * 1e3)
}
