mod fields;
mod many;
mod mutations;
mod policy_fields;
mod relations;

use vnet_common::api::{Fault, File};

use super::*;

const EXAMPLE: &str = include_str!("../../../policies/lb.yaml");
const QUARANTINE_EXAMPLE: &str = include_str!("../../../policies/quarantine.yaml");
const POLICY_EXAMPLE: &str = include_str!("../../../policies/policy.yaml");
const FLEET_EXAMPLE: &str = include_str!("../../../policies/fleet.yaml");

fn file(text: &str) -> Vec<File> {
    vec![File { name: "t.yaml".to_owned(), text: text.to_owned() }]
}

fn good(text: &str) -> Vec<Located> {
    parse(&file(text)).unwrap_or_else(|faults| panic!("{text}\n{}", show(&faults)))
}

fn bad(text: &str) -> Vec<Fault> {
    match parse(&file(text)).map(|found| check(&found, &[])) {
        Ok(faults) if faults.is_empty() => panic!("nothing is wrong with\n{text}"),
        Ok(faults) | Err(faults) => faults,
    }
}

fn show(faults: &[Fault]) -> String {
    let each = |f: &Fault| format!("{}:{}:{}: {}\n{}\n\n", f.file, f.line, f.column, f.message, f.snippet);
    faults.iter().map(each).collect()
}

#[test]
fn the_example_is_good() {
    let found = good(EXAMPLE);
    let names: Vec<&str> = found.iter().map(|located| located.resource.name()).collect();
    assert!(names.contains(&"web") && names.contains(&"dns"), "{names:?}");
    assert_eq!(check(&found, &[]), []);
}

#[test]
fn the_examples_of_policy_are_good() {
    let found = good(QUARANTINE_EXAMPLE);
    assert_eq!(check(&found, &[]), []);
    let in_force: Vec<Resource> = found.into_iter().map(|located| located.resource).collect();
    // The policies are about the groups of the other file.
    assert_eq!(check(&good(POLICY_EXAMPLE), &in_force.iter().collect::<Vec<_>>()), []);
    let kinds = |kind| in_force.iter().filter(|r| r.kind() == kind).count();
    assert!(kinds("SecurityGroup") >= 7 && kinds("TagSource") >= 3 && kinds("Endpoint") >= 4, "{in_force:#?}");
}

#[test]
fn the_example_of_a_fleet_is_good() {
    let found = good(FLEET_EXAMPLE);
    assert_eq!(check(&found, &[]), []);
    let on =
        |host| found.iter().filter(|l| matches!(&l.resource, Resource::Endpoint(e) if e.spec.host.as_deref() == host)).count();
    assert_eq!([Some("host-a"), Some("host-b"), Some("host-c"), None].map(on), [1; 4]);
}

#[test]
fn the_places_of_rules_are_known() {
    let lines = |located: &Located| {
        let origin = located.origin();
        assert_eq!(origin.place(origin.line), located.place());
        (origin.line, origin.egress, origin.ingress)
    };
    let found = good(&format!("# A comment.\n{}---\n{}", policy_fields::GROUP, policy_fields::POLICY));
    assert_eq!(
        found.iter().map(lines).collect::<Vec<_>>(),
        [(2, vec![24], vec![12]), (37, vec![], vec![]), (43, vec![56], vec![54])]
    );
}

#[test]
fn yaml_is_read_back_to_the_same() {
    let words =
        ["8080", "true", "null", "no", "1e3", "0x1F", "1.10", "1_000", "2026-11-23", "NaN", "a-b.c_d", "", "0", "0o7", "Y"];
    let fields = [fields::BALANCER, fields::SELECTOR, fields::HTTP, fields::UDP, fields::ENDPOINT];
    let policy =
        [policy_fields::GROUP, policy_fields::QUARANTINE, policy_fields::POLICY, policy_fields::SOURCE, policy_fields::SCANNER];
    let examples = [EXAMPLE, QUARANTINE_EXAMPLE];
    for mut resource in examples.iter().chain(&fields).chain(&policy).flat_map(|text| good(text)).map(|located| located.resource)
    {
        let labels = words.iter().enumerate().map(|(i, word)| (format!("l{i}"), (*word).to_owned()));
        let labels = labels.chain(words.iter().filter(|word| !word.is_empty()).map(|word| ((*word).to_owned(), "x".to_owned())));
        match &mut resource {
            Resource::LoadBalancer(it) => it.metadata.labels.extend(labels),
            Resource::Endpoint(it) => it.metadata.labels.extend(labels),
            Resource::SecurityGroup(it) => it.metadata.labels.extend(labels),
            Resource::Policy(it) => it.metadata.labels.extend(labels),
            Resource::TagSource(it) => it.metadata.labels.extend(labels),
        }
        let yaml = to_yaml(&resource);
        assert_eq!(good(&yaml)[0].resource, resource, "{yaml}");
    }
}

#[test]
fn the_schema_in_the_tree_is_up_to_date() {
    let written: serde_json::Value = serde_json::from_str(include_str!("../../../policies/schema.json")).unwrap();
    assert!(written == schema(), "policies/schema.json is not what the types say: run `cargo xtask schema`");
}
