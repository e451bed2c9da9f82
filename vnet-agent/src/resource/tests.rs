mod fields;
mod many;
mod mutations;
mod relations;
mod tag_source;

use vnet_common::api::{Fault, File};

use super::*;

const EXAMPLE: &str = include_str!("../../../policies/lb.yaml");

fn file(text: &str) -> Vec<File> {
    vec![File { name: "t.yaml".to_owned(), text: text.to_owned() }]
}

fn good(text: &str) -> Vec<Located> {
    parse(&file(text)).unwrap_or_else(|faults| panic!("{text}\n{}", show(&faults)))
}

fn bad(text: &str) -> Vec<Fault> {
    match parse(&file(text)) {
        Ok(_) => panic!("nothing is wrong with\n{text}"),
        Err(faults) => faults,
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
fn yaml_is_read_back_to_the_same() {
    let words =
        ["8080", "true", "null", "no", "1e3", "0x1F", "1.10", "1_000", "2026-11-23", "NaN", "a-b.c_d", "", "0", "0o7", "Y"];
    for mut resource in [EXAMPLE, fields::BALANCER, fields::SELECTOR, fields::ENDPOINT, tag_source::SOURCE]
        .iter()
        .flat_map(|text| good(text))
        .map(|located| located.resource)
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
