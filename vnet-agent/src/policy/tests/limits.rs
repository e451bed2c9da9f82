//! What does not fit is refused, with the rule that caused it.

use super::super::apply::PlanError;
use super::super::refused::Refused;
use super::super::rules::Written;
use super::world::{group, labels, policy, subject};
use super::*;
use crate::random::Random;
use crate::resource::{Origin, Policy, Rule};
use std::collections::HashMap;

fn world() -> World {
    let mut random = Random(7);
    let mut world = World { policies: vec![], ..World::new(&mut random) };
    world.groups = vec![group(&mut random, "g0", false), group(&mut random, "q0", true)];
    world.subjects = (1..9).map(|at| subject(&mut random, at)).collect();
    for s in &mut world.subjects {
        (s.local, s.held, s.group) = (true, false, "g0".into());
    }
    world
}

fn named(world: &mut World, name: &str) -> usize {
    let mut random = Random(8);
    let mut new = policy(&mut random, name);
    new.spec.applied_to = Default::default();
    (new.spec.ingress, new.spec.egress) = (vec![], vec![]);
    world.policies.push(new);
    world.policies.len() - 1
}

fn rule(name: String) -> Rule {
    Rule { name, peers: vec![], ports: vec![], action: crate::resource::Action::Allow, log: false }
}

fn compile(world: &World, origins: &HashMap<(String, String), Origin>) -> Result<Image, Refused> {
    let targets = |_: &str| vec![];
    let (groups, policies) = (world.groups.iter().collect(), world.policies.iter().collect());
    let written = Written { groups, policies, origins, targets: &targets, elsewhere: None };
    let inputs = Inputs { written, subjects: world.subjects.clone(), hosts: vec![], networks: vec![] };
    let (ids, tables) = (RuleIds::default(), Tables::default());
    Image::compile(&inputs, Previous::Start { ids: &ids, tables: &tables })
}

#[test]
fn a_list_that_is_too_long_is_refused() {
    let mut world = world();
    for i in 0..5 {
        let at = named(&mut world, &format!("p{i}"));
        world.policies[at].spec.priority = i;
        world.policies[at].spec.ingress = (0..1000).map(|n| rule(format!("r{n}"))).collect();
    }
    let lines = Origin { file: "p.yaml".into(), line: 1, egress: vec![], ingress: (0..1000).map(|n| 10 + n).collect() };
    let origins = HashMap::from([(("Policy".to_owned(), "p4".to_owned()), lines)]);
    let e = compile(&world, &origins).unwrap_err().to_string();
    assert!(e.starts_with("Policy `p4`, rule `r96` (p.yaml:106): with this rule, endpoint `e"), "{e}");
    assert!(e.ends_with("has more than 4096 rules for ingress, which is all that one endpoint can have"), "{e}");
}

#[test]
fn an_endpoint_in_no_group_is_refused() {
    let mut world = world();
    world.subjects[2].group = "nowhere".into();
    let e = compile(&world, &HashMap::new()).unwrap_err().to_string();
    assert_eq!(e, "endpoint `e3` is in the security group `nowhere`, which does not exist");
}

#[test]
fn a_map_that_is_full_is_named_and_nothing_is_written() {
    let mut world = world();
    let at = named(&mut world, "broad");
    let mut random = Random(9);
    let many: Policy = loop {
        let p = policy(&mut random, "broad");
        if p.spec.egress.len() > 40 {
            break p;
        }
    };
    world.policies[at].spec.egress = many.spec.egress;
    let image = compile(&world, &HashMap::new()).unwrap();
    let usage = {
        let (maps, mut applier) = (Maps::default(), Applier::default());
        to(&mut applier, &maps, &image).unwrap();
        applier.usage()
    };
    let all = Limits {
        sets: usage.sets + 1,
        rules: usage.rules,
        ports: usage.ports,
        bits: usage.bits,
        peers: usage.peers,
        addresses: usage.addresses,
        cidrs: usage.cidrs,
    };
    let fits = Maps { limits: Some(all), ..Maps::default() };
    to(&mut Applier::default(), &fits, &image).unwrap();
    let less: [(&str, &str, Limits); 7] = [
        ("SETS", "", Limits { sets: all.sets - 1, ..all }),
        ("RULES", "rule `", Limits { rules: all.rules - 1, ..all }),
        ("PORTS", "rule `", Limits { ports: all.ports - 1, ..all }),
        ("BITS", "rule `", Limits { bits: all.bits - 1, ..all }),
        ("PEERS", "rule `", Limits { peers: all.peers - 1, ..all }),
        ("IPCACHE", "endpoint `", Limits { addresses: all.addresses - 1, ..all }),
        ("CIDRS", "", Limits { cidrs: all.cidrs - 1, ..all }),
    ];
    for (map, cause, limits) in less {
        let maps = Maps { limits: Some(limits), ..Maps::default() };
        let e = match Applier::default().plan(&maps, &image) {
            Err(PlanError::Refused(e)) => e.to_string(),
            other => panic!("{map}: {other:?}"),
        };
        assert!(e.contains(&format!("in map {map} (")) && e.contains(cause), "{e}");
        assert_eq!(*maps.tables.borrow(), Tables::default());
    }
}

#[test]
fn room_that_was_in_use_a_moment_ago_is_used_when_it_is_needed() {
    let mut world = world();
    let at = named(&mut world, "one");
    world.policies[at].spec.egress = (0..100).map(|n| rule(format!("r{n}"))).collect();
    let first = compile(&world, &HashMap::new()).unwrap();
    let (mut maps, mut applier) = (Maps::default(), Applier::default());
    to(&mut applier, &maps, &first).unwrap();
    let usage = applier.usage();
    maps.limits = Some(Limits { rules: usage.rules * 2 + 10, ..Limits::NONE });
    for round in 0..5 {
        world.policies[at].spec.egress[0].log = round % 2 == 0;
        let next = world.compile(Previous::Image(&first));
        to(&mut applier, &maps, &next).unwrap();
    }
}

#[test]
fn warnings_say_what_should_be_known() {
    let mut world = world();
    for group in &mut world.groups {
        (group.spec.ingress, group.spec.egress) = (vec![], vec![]);
    }
    for name in ["b", "a"] {
        let at = named(&mut world, name);
        (world.policies[at].spec.priority, world.policies[at].spec.tier) = (5, crate::resource::Tier::Ops);
        world.policies[at].spec.egress = vec![rule("r".into())];
    }
    world.policies[0].spec.applied_to.selector =
        Some(crate::resource::Selector { expression: Some("labels.zone != 'x'".into()), ..Default::default() });
    for s in &mut world.subjects {
        s.labels = Arc::new(labels(&[("zone", "y")]));
    }
    world.subjects[0].labels = Arc::default();
    world.subjects[1].addresses = vec![[10, 7, 7, 7].into()];
    world.subjects[2].learned = vec![[10, 7, 7, 7].into()];
    let warnings = compile(&world, &HashMap::new()).unwrap().warnings();
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
    assert_eq!(
        warnings[0],
        "the policies `a`, `b` have tier ops and priority 5, and are about the same endpoints (`e2`, `e3`, `e4`, `e5`, `e6` and 2 more): \
         their order is that of their names; give them different priorities"
    );
    assert!(
        warnings[1].starts_with("the selector `labels.zone != 'x'` cannot be evaluated: No such key: zone"),
        "{}",
        warnings[1]
    );
    assert!(warnings[1].ends_with(": it does not select `e1`"), "{}", warnings[1]);
    assert_eq!(warnings[2], "the address 10.7.7.7 of `e2` is claimed by `e3` too: it counts as `e2`'s");
}
