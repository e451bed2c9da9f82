//! Records of Suricata and events of other tag sources, through the mappings that are shipped.
//!
//! The named files in `corpus/eve` are real records and the shapes that once were, or might have been, trouble.

use std::sync::OnceLock;

use vnet_agent::expression::Variables;
use vnet_agent::resource::{Resource, is_tag_name, parse};
use vnet_agent::source::mapping::Mappings;
use vnet_common::api::File;

const EXAMPLES: [&str; 5] = [
    include_str!("../../../policies/sources/suricata.yaml"),
    include_str!("../../../policies/sources/falco.yaml"),
    include_str!("../../../policies/sources/wazuh.yaml"),
    include_str!("../../../policies/sources/osquery.yaml"),
    include_str!("../../../policies/sources/login.yaml"),
];

fn all() -> &'static [Mappings] {
    static ALL: OnceLock<Vec<Mappings>> = OnceLock::new();
    ALL.get_or_init(|| EXAMPLES.iter().map(|yaml| mappings(yaml)).collect())
}

fn mappings(yaml: &str) -> Mappings {
    let found = parse(&[File { name: "example".to_owned(), text: yaml.to_owned() }]).expect("the examples are good");
    match found.into_iter().next().map(|located| located.resource) {
        Some(Resource::TagSource(source)) => Mappings::compile(&source.spec.mappings).expect("and their mappings"),
        other => panic!("{other:?}"),
    }
}

/// One event.
pub fn run(text: &[u8]) {
    let event: Option<serde_json::Value> = serde_json::from_slice(text).ok();
    let mut variables = Variables::default();
    for mappings in all() {
        let may = mappings.may_match(text);
        let Some(event) = event.as_ref().filter(|event| event.is_object()) else { continue };
        let mut found = mappings.map(event, &mut variables, drop);
        assert!(found.is_empty() || may, "what is passed over by its text has a mapping that matches");
        found.extend(mappings.map_eve(event, &mut variables, drop));
        for it in found {
            assert!(is_tag_name(&it.name) && it.severity <= 10 && it.confidence <= 100);
            assert!(it.value.len() <= 1 << 10 && it.instance.len() <= 256 && it.evidence.len() <= 4 << 10);
            assert!(!it.value.chars().chain(it.instance.chars()).chain(it.evidence.chars()).any(char::is_control));
        }
    }
}
