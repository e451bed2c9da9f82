//! The compiler at the size that the goals are for. `cargo test --release -p vnet-tests --test policy -- --nocapture` prints what it took,
//! in time of the CPU: what else runs here does not count. A debug build is several times slower, and is only held to be right.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use vnet_agent::policy::apply::Applier;
use vnet_agent::policy::ids::RuleIds;
use vnet_agent::policy::live::{Limits, PolicyRows, Tables, Write};
use vnet_agent::policy::{Image, Previous};
use vnet_common::map::MAPS;
use vnet_tests::policy::{Scale, World};

/// Maps of the sizes that the agent's have.
struct Maps(RefCell<Tables>);

impl PolicyRows for Maps {
    fn limits(&self) -> Result<Limits> {
        let size = |name: &str| MAPS.iter().find(|m| m.0 == name).map_or(0, |m| m.2);
        Ok(Limits {
            sets: size("SETS"),
            rules: size("RULES"),
            ports: size("PORTS"),
            bits: size("BITS"),
            peers: size("PEERS"),
            addresses: size("IPCACHE"),
            cidrs: size("CIDRS"),
        })
    }
    fn read(&self) -> Result<Tables> {
        Ok(self.0.borrow().clone())
    }
    fn write(&self, write: &Write) -> Result<()> {
        self.0.borrow_mut().record(write);
        Ok(())
    }
    fn bump_generation(&self) -> Result<()> {
        Ok(())
    }
    fn wait_for_programs(&self) {}
}

/// Time that this thread has had of a CPU.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn since(start: Duration) -> Duration {
    now() - start
}

/// Plans and writes; gives how long the plan took, and how many writes there were.
fn to(applier: &mut Applier, maps: &Maps, image: &Image) -> (Duration, usize) {
    let start = now();
    let plan = applier.plan(maps, image).unwrap();
    let (took, writes) = (since(start), plan.writes.len());
    applier.run(maps, plan, &mut |_| Ok(())).unwrap();
    (took, writes)
}

/// In the release build the goal must be met; here it is only printed.
fn assert_within(what: &str, took: Duration, goal: Duration) {
    println!("{what}: {took:?} (goal {goal:?})");
    assert!(cfg!(debug_assertions) || took <= goal, "{what}: {took:?}, and may take {goal:?}");
}

#[test]
fn the_goal_is_compiled_in_time() {
    let world = World::new(Scale::GOAL);
    let maps = Maps(RefCell::default());
    let mut applier = Applier::default();

    let (ids, tables) = (RuleIds::default(), Tables::default());
    let start = now();
    let image = world.compile(Previous::Start { ids: &ids, tables: &tables }).unwrap();
    let compiled = since(start);
    let (planned, _) = to(&mut applier, &maps, &image);
    println!("image {compiled:?}, plan {planned:?}");
    assert_within("full compile", compiled + planned, Duration::from_secs(2));

    let usage = applier.usage();
    let bytes = [
        (u64::from(usage.sets), 64),
        (u64::from(usage.rules), 16),
        (u64::from(usage.ports), 8),
        (u64::from(usage.bits), 8),
        (u64::from(usage.peers), 12),
        (u64::from(usage.addresses), 28),
        (u64::from(usage.cidrs), 32),
    ];
    let total: u64 = bytes.iter().map(|(rows, size)| rows * size).sum();
    println!("{} rules, {} identities, {usage:?}: {total} bytes of keys and values", image.rules().count(), image.identities());
    assert!(image.rules().count() >= 10_000 && usage.sets >= 200);

    let mut subject = world.subjects[50].clone();
    assert!(subject.local);
    let mut one = |what: &str, image: &Image, subject| {
        let start = now();
        let next = image.with(vec![subject], &[]).unwrap();
        let made = since(start);
        let (planned, writes) = to(&mut applier, &maps, &next);
        println!("  image {made:?}, plan {planned:?}, {writes} writes");
        assert_within(what, made + planned, Duration::from_millis(10));
        next
    };
    let image = one("the same endpoint again", &image, subject.clone());
    let mut labels = (*subject.labels).clone();
    labels.insert("zone".into(), "zone-3".into());
    labels.insert("team".into(), "team-7".into());
    subject.labels = labels.into();
    let image = one("another label", &image, subject.clone());
    subject.group = "app-3".into();
    let image = one("another group", &image, subject.clone());
    subject.addresses = vec![[10, 200, 0, 1].into()];
    let image = one("another address", &image, subject.clone());
    let mut elsewhere = world.subjects[5000].clone();
    elsewhere.group = "app-9".into();
    let image = one("an endpoint elsewhere, in another group", &image, elsewhere);

    let start = now();
    let (tables, _) = image.fill(&["vm-50", "vm-150"]).unwrap();
    assert_within("tables for an explanation", since(start), Duration::from_millis(10));
    assert_eq!(tables.sets.len(), 2);
    let start = now();
    let again = world.compile(Previous::Image(&image)).unwrap();
    println!("full compile after another: {:?}, {:?}", since(start), to(&mut applier, &maps, &again));

    // A rule for everyone: every set is another, and the old ones are still there.
    let mut world = world;
    let mut everywhere = world.policies[1].clone();
    everywhere.metadata.name = "everywhere".to_owned();
    everywhere.spec.applied_to = Default::default();
    world.policies.push(everywhere);
    let start = now();
    let everywhere = world.compile(Previous::Image(&again)).unwrap();
    let compiled = since(start);
    let planned = to(&mut applier, &maps, &everywhere);
    let both = applier.usage();
    println!("a rule for everyone: image {compiled:?}, plan and writes {planned:?}; before old sets are taken out {both:?}");
    assert!(both.sets >= 400 && everywhere.rule_users().values().any(|n| *n == 200));
    applier.sweep_all(&maps).unwrap();
    assert_eq!(applier.usage().sets, 200);

    let start = now();
    let tables = maps.0.borrow().clone();
    let adopted = world.compile(Previous::Start { ids: everywhere.ids(), tables: &tables }).unwrap();
    let mut applier = Applier::default();
    let (planned, writes) = to(&mut applier, &maps, &adopted);
    println!("after a restart: {:?}, of which the plan {planned:?}; {writes} writes", since(start));
    assert_eq!(writes, 0, "what the agent before wrote is taken over");
}
