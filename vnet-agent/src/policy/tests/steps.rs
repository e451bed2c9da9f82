//! From one image to the next.

use super::super::rules::DEFAULT_RULE;
use super::naive::{Packet, decided, packet};
use super::*;
use crate::random::Random;

/// Maps that look at every state that a packet could meet.
struct Watched<'a> {
    maps: &'a Maps,
    look: &'a dyn Fn(&Maps),
}

impl PolicyRows for Watched<'_> {
    fn limits(&self) -> Result<Limits> {
        self.maps.limits()
    }
    fn read(&self) -> Result<Tables> {
        self.maps.read()
    }
    fn write(&self, write: &Write) -> Result<()> {
        // One row at a time, as the kernel does.
        let each = |write: Write| {
            self.maps.write(&write)?;
            (self.look)(self.maps);
            anyhow::Ok(())
        };
        match write {
            Write::Addresses(rows) => rows.iter().try_for_each(|row| each(Write::Addresses(vec![*row]))),
            Write::RemoveAddresses(keys) => keys.iter().try_for_each(|key| each(Write::RemoveAddresses(vec![*key]))),
            Write::Cidrs(rows) => rows.iter().try_for_each(|row| each(Write::Cidrs(vec![*row]))),
            Write::RemoveCidrs(keys) => keys.iter().try_for_each(|key| each(Write::RemoveCidrs(vec![*key]))),
            other => each(other.clone()),
        }
    }
    fn bump_generation(&self) -> Result<()> {
        self.maps.bump_generation()
    }
    fn wait_for_programs(&self) {}
}

/// The world with the endpoints, hosts and networks of another.
fn mixed(rules: &World, endpoints: &World) -> World {
    World { groups: rules.groups.clone(), policies: rules.policies.clone(), targets: rules.targets.clone(), ..endpoints.clone() }
}

/// What is decided at every step is what the rules before or after say, about endpoints as they were before or after.
fn assert_between(maps: &Maps, images: [&Image; 2], worlds: &[World; 4], packets: &[Packet]) {
    let tables = maps.tables.borrow();
    for (name, assignment) in maps.endpoints.borrow().iter() {
        for p in packets {
            let may: Vec<_> = worlds.iter().filter_map(|w| w.decide(name, p)).collect();
            let found = images.map(|image| decided(&tables, image, assignment.set, p));
            let right = may.is_empty() || found.iter().any(|f| may.iter().any(|m| (&m.rule, m.action) == (&f.rule, f.action)));
            assert!(right, "{name} {p:?}: {found:?}, not {may:?}");
        }
    }
}

fn next(image: &Image, old: &World, new: &World, only_endpoints: bool) -> Image {
    if !only_endpoints {
        return new.compile(Previous::Image(image));
    }
    let changed = new.subjects.iter().filter(|s| !old.subjects.contains(s)).cloned().collect();
    let gone: Vec<Arc<str>> =
        old.subjects.iter().filter(|o| new.subjects.iter().all(|n| n.name != o.name)).map(|o| Arc::clone(&o.name)).collect();
    image.with(changed, &gone).unwrap()
}

/// Everything that should be there is, and nothing else.
fn assert_whole(maps: &Maps, applier: &Applier, image: &Image, world: &World, random: &mut Random) {
    let local: Vec<&str> = image.endpoints().filter(|p| p.local.is_some()).map(|p| &*p.subject.name).collect();
    let tables = maps.tables.borrow();
    for name in &local {
        let assignment = maps.endpoints.borrow()[*name].clone();
        assert_eq!(applier.assignment(name), Some(&assignment));
        for _ in 0..40 {
            let p = packet(random);
            assert_eq!(Some(decided(&tables, image, assignment.set, &p)), world.decide(name, &p), "{name} {p:?}");
        }
    }
    let fresh = Maps::default();
    to(&mut Applier::default(), &fresh, image).unwrap();
    let fresh = fresh.tables.borrow();
    assert_eq!((tables.sets.len(), tables.peers.len()), (fresh.sets.len(), fresh.peers.len()), "nothing is left over");
    assert_eq!((&tables.addresses, &tables.cidrs), (&fresh.addresses, &fresh.cidrs));
}

#[test]
fn every_step_is_right() {
    let mut random = Random(0x5eed_0002);
    for _ in 0..8 {
        let mut world = World::new(&mut random);
        let mut image = start(&world);
        let (maps, mut applier) = (Maps::default(), Applier::default());
        to(&mut applier, &maps, &image).unwrap();
        for _ in 0..20 {
            let old = world.clone();
            let only_endpoints = world.change(&mut random);
            let new_image = next(&image, &old, &world, only_endpoints);
            let packets: Vec<Packet> = (0..12).map(|_| packet(&mut random)).collect();
            let worlds = [old.clone(), mixed(&world, &old), mixed(&old, &world), world.clone()];
            // An endpoint that is no longer of this host is not looked at.
            maps.endpoints.borrow_mut().retain(|name, _| world.subjects.iter().any(|s| s.name == *name && s.local));
            let look = |maps: &Maps| assert_between(maps, [&image, &new_image], &worlds, &packets);
            let watched = Watched { maps: &maps, look: &look };
            let plan = applier.plan(&watched, &new_image).unwrap();
            let (generation, bump) = (maps.generation.get(), plan.bump);
            applier
                .run(&watched, plan, &mut |assigned| {
                    assigned.iter().try_for_each(|a| {
                        maps.switch(&[*a])?;
                        look(&maps);
                        Ok(())
                    })
                })
                .unwrap();
            assert!(!bump || maps.generation.get() == generation + 1);
            applier.sweep_all(&watched).unwrap();
            assert_whole(&maps, &applier, &new_image, &world, &mut random);
            image = new_image;
        }
    }
}

#[test]
fn what_the_agent_before_left_is_taken_over() {
    let mut random = Random(0x5eed_0003);
    for _ in 0..10 {
        let mut world = World::new(&mut random);
        let image = start(&world);
        let (maps, mut applier) = (Maps::default(), Applier::default());
        to(&mut applier, &maps, &image).unwrap();
        let before = maps.tables.borrow().clone();
        // The same again.
        let again = world.compile(Previous::Start { ids: image.ids(), tables: &before });
        let mut applier = Applier::default();
        let plan = applier.plan(&maps, &again).unwrap();
        assert!(plan.writes.is_empty() && !plan.bump, "{:?}", plan.writes);
        let (endpoints, generation) = (maps.endpoints.borrow().clone(), maps.generation.get());
        applier.run(&maps, plan, &mut |a| maps.switch(a)).unwrap();
        assert_eq!((&*maps.endpoints.borrow(), maps.generation.get()), (&endpoints, generation + 1));
        // Something else.
        for _ in 0..6 {
            world.change(&mut random);
        }
        let other = world.compile(Previous::Start { ids: image.ids(), tables: &before });
        let mut applier = Applier::default();
        to(&mut applier, &maps, &other).unwrap();
        applier.sweep_all(&maps).unwrap();
        assert_whole(&maps, &applier, &other, &world, &mut random);
    }
}

#[test]
fn a_write_that_fails_anywhere_is_healed() {
    let mut random = Random(0x5eed_0004);
    for _ in 0..4 {
        let mut world = World::new(&mut random);
        let (maps, mut applier) = (Maps::default(), Applier::default());
        let image = start(&world);
        to(&mut applier, &maps, &image).unwrap();
        let old = world.clone();
        for _ in 0..4 {
            world.change(&mut random);
        }
        for writes in 0.. {
            let new = world.compile(Previous::Image(&image));
            maps.writes_left.set(Some(writes));
            let done = to(&mut applier, &maps, &new).is_ok();
            maps.writes_left.set(None);
            // An agent that lives on goes back; one that died and came back goes on.
            if random.one_in(2) {
                to(&mut applier, &maps, &image).unwrap();
                applier.sweep_all(&maps).unwrap();
                assert_whole(&maps, &applier, &image, &old, &mut random);
            } else {
                let tables = maps.tables.borrow().clone();
                let (mut applier, ids) = (Applier::default(), new.ids());
                let again = world.compile(Previous::Start { ids, tables: &tables });
                to(&mut applier, &maps, &again).unwrap();
                applier.sweep_all(&maps).unwrap();
                assert_whole(&maps, &applier, &again, &world, &mut random);
            }
            applier.forget();
            to(&mut applier, &maps, &image).unwrap();
            applier.sweep_all(&maps).unwrap();
            if done {
                assert!(writes > 5);
                break;
            }
        }
    }
}

#[test]
fn numbers_stay_with_those_who_did_not_change() {
    let mut random = Random(0x5eed_0005);
    let mut world = World::new(&mut random);
    let mut image = start(&world);
    for _ in 0..100 {
        let old = world.clone();
        let only_endpoints = world.change(&mut random);
        let new = next(&image, &old, &world, only_endpoints);
        if only_endpoints {
            for s in world.subjects.iter().filter(|s| old.subjects.contains(s)) {
                assert_eq!(new.endpoint(&s.name).unwrap().claims, image.endpoint(&s.name).unwrap().claims);
            }
        }
        for (rule, _) in new.rules().filter(|(r, _)| r.rule == DEFAULT_RULE) {
            assert_eq!(
                image
                    .rules()
                    .find(|(r, _)| {
                        (&r.kind, &r.resource, &r.direction, &r.rule) == (&rule.kind, &rule.resource, &rule.direction, &rule.rule)
                    })
                    .unwrap()
                    .0
                    .id,
                rule.id
            );
        }
        image = new;
    }
}
