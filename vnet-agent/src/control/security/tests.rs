//! Drafts, against maps that take everything.

use std::time::Instant;

use super::super::inputs::key;
use super::*;
use crate::elsewhere::fixtures::{elsewhere, endpoint};
use crate::elsewhere::{RemoteEndpoint, RemoteHost};
use crate::policy::ids::RuleKey;
use crate::policy::live::{Limits, Tables, Write};
use crate::resource::parse;
use vnet_common::api::File;

/// Maps that take everything.
struct Maps;

impl PolicyRows for Maps {
    fn limits(&self) -> Result<Limits> {
        Ok(Limits::NONE)
    }
    fn read(&self) -> Result<Tables> {
        Ok(Tables::default())
    }
    fn write(&self, _: &Write) -> Result<()> {
        Ok(())
    }
    fn bump_generation(&self) -> Result<()> {
        Ok(())
    }
    fn wait_for_programs(&self) {}
}

/// A group of one rule.
fn inputs(rule: &str) -> Inputs {
    let text = format!(
        "apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: web }}\nspec: {{ ingress: [{{ name: {rule}, action: allow }}] }}\n"
    );
    let located = parse(&[File { name: "t.yaml".into(), text }]).unwrap();
    Inputs { resources: located.into_iter().map(|l| (key(&l.resource), l.resource)).collect(), ..Inputs::default() }
}

#[test]
fn numbers_are_stored_when_rules_come_or_go() {
    let mut security = Security::new(RuleIds::default(), Vec::new());
    // (the rule, did resources change, does the store take it, what is stored)
    for (what, rule, rules, takes, expected) in [
        ("at first", "a", true, true, Some("+a -")),
        ("a device came", "a", false, true, None),
        ("the same again", "a", true, true, None),
        ("the maps will not take it", "b", true, true, Some("+b -a")),
        ("so it is taken back", "a", true, true, Some("+a -b")),
        ("the store does not take it", "c", true, false, Some("+c -a")),
        ("a is still stored", "a", true, true, None),
    ] {
        let nobody = subjects(&[], |_| "default".into());
        let draft = security.draft(&Maps, &inputs(rule), nobody, Around::default(), rules);
        let draft = draft.unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut stored = None;
        let done = security.store_ids(&draft, |change| {
            let own = |key: &&RuleKey| key.rule != "default";
            let given: String = change.given.iter().map(|(key, _)| key).filter(own).map(|key| key.rule.as_str()).collect();
            let freed: String = change.freed.iter().filter(own).map(|key| key.rule.as_str()).collect();
            stored = Some(format!("+{given} -{freed}"));
            if takes { Ok(()) } else { Err(anyhow::anyhow!("disk full")) }
        });
        assert_eq!((stored.as_deref(), done.is_ok()), (expected, takes), "{what}");
        // The first is in force.
        security.image.get_or_insert(draft.image);
    }
}

/// A draft put in force, as far as there is anything to put it into.
fn enforce(security: &mut Security, inputs: &Inputs, here: &[Nic], rules: bool) -> Arc<Image> {
    let here = subjects(here, |_| "default".into());
    let around = Around::new(inputs, &Desired::default(), None);
    let Draft { image, plan, around } = security.draft(&Maps, inputs, here, around, rules).unwrap_or_else(|e| panic!("{e}"));
    security.applier.run(&Maps, plan, &mut |_| Ok(())).unwrap();
    (security.image, security.around) = (Some(Arc::clone(&image)), around);
    image
}

fn nic(name: &str, address: &str) -> Nic {
    Nic { name: name.into(), addresses: vec![address.parse().unwrap()], given: true, ..Nic::default() }
}

#[test]
fn other_hosts_come_with_their_endpoints_and_rules_for_those_that_they_hold() {
    let (mut security, mut inputs) = (Security::new(RuleIds::default(), Vec::new()), inputs("a"));
    inputs.world.addresses = vec!["10.0.0.1".parse().unwrap()];
    let here = [nic("vm1", "10.1.0.1")];
    let identity = |image: &Image, a: &str| image.identity(0, a.parse().unwrap());
    let alone = enforce(&mut security, &inputs, &here, true);
    let of_peers = |image: &Image| image.rules().filter(|(_, tier)| *tier == "peer-quarantine").count();
    assert_eq!(of_peers(&alone), 0);
    let mut others =
        elsewhere(vec![("vm2", endpoint("b", "default", &["10.1.0.2"])), ("vm1", endpoint("b", "web", &["10.1.0.3"]))]);
    others.hosts.insert("b".into(), RemoteHost { addresses: vec!["10.0.0.2".parse().unwrap()], ..RemoteHost::default() });
    inputs.elsewhere = Arc::new(others.clone());
    let image = enforce(&mut security, &inputs, &here, false);
    assert!(of_peers(&image) > 0);
    let names = |image: &Image| {
        let mut names: Vec<String> = image.endpoints().map(|p| p.subject.name.to_string()).collect();
        names.sort_unstable();
        names.join(", ")
    };
    assert_eq!(names(&image), "vm1, vm1 on b, vm2");
    let (host, remote) = (vnet_common::policy::identity::HOST, vnet_common::policy::identity::REMOTE_HOST);
    assert_eq!((identity(&image, "10.0.0.1"), identity(&image, "10.0.0.2")), (host, remote));
    // What is other of other hosts, and of this one, is found without making rules anew.
    let vm2 = RemoteEndpoint { quarantined: true, ..endpoint("b", "later", &["10.1.0.2"]) };
    Arc::make_mut(&mut others.endpoints).insert("vm2".into(), Arc::new(vm2));
    others.hosts.insert("c".into(), RemoteHost { addresses: vec!["10.0.0.3".parse().unwrap()], ..RemoteHost::default() });
    inputs.elsewhere = Arc::new(others.clone());
    let next = enforce(&mut security, &inputs, &[], false);
    assert_eq!((names(&next), next.holds_elsewhere(), image.holds_elsewhere()), ("vm1, vm2".into(), true, false));
    assert_eq!((identity(&next, "10.0.0.3"), identity(&next, "10.1.0.1")), (remote, vnet_common::policy::identity::WORLD));
    assert!(Arc::ptr_eq(&image.rules_by_number(), &next.rules_by_number()));
    let same = enforce(&mut security, &inputs, &[], false);
    assert!(Arc::ptr_eq(&next, &same), "nothing changed");
    inputs.elsewhere = Arc::default();
    let alone = enforce(&mut security, &inputs, &here, false);
    assert_eq!((names(&alone), of_peers(&alone)), ("vm1".into(), 0));
}

/// Prints how long it takes until a change at another host is planned and done; what it asserts is that it was.
#[test]
fn one_of_many_changes_elsewhere() {
    let (mut security, mut inputs) = (Security::new(RuleIds::default(), Vec::new()), inputs("a"));
    let address = |i: u32| IpAddr::from((0x0a80_0000 + i).to_be_bytes()).to_string();
    let here: Vec<Nic> = (0..100).map(|i| nic(&format!("here-{i}"), &address(i))).collect();
    let there: Vec<(String, String)> = (0..10_000).map(|i| (format!("vm-{i}"), address(i + 100))).collect();
    let there = there.iter().map(|(name, a)| (name.as_str(), endpoint("b", "default", &[a]))).collect();
    let mut others = elsewhere(there);
    inputs.elsewhere = Arc::new(others.clone());
    let start = Instant::now();
    enforce(&mut security, &inputs, &here, true);
    println!("10,000 endpoints elsewhere, 100 here: compiled and planned in {:?}", start.elapsed());
    for round in 0..4 {
        let one = &mut Arc::make_mut(Arc::make_mut(&mut others.endpoints).get_mut("vm-5000").unwrap());
        (one.quarantined, one.group) = (round % 2 == 0, if round % 2 == 0 { "later".into() } else { "default".into() });
        inputs.elsewhere = Arc::new(others.clone());
        let start = Instant::now();
        let image = enforce(&mut security, &inputs, &here, false);
        println!("one of them is {} in {:?}", if round % 2 == 0 { "held" } else { "let go" }, start.elapsed());
        assert_eq!(image.holds_elsewhere(), round % 2 == 0);
    }
}
