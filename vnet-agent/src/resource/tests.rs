use vnet_common::api::File;

use super::*;

const EXAMPLE: &str = include_str!("../../../policies/lb.yaml");

fn file(text: &str) -> Vec<File> {
    vec![File { name: "t.yaml".to_owned(), text: text.to_owned() }]
}

#[test]
fn the_example_is_read() {
    let found = parse(&file(EXAMPLE)).unwrap_or_else(|faults| panic!("{faults:#?}"));
    let names: Vec<String> = found.iter().map(|it| format!("{} {}", it.resource.kind(), it.resource.name())).collect();
    assert_eq!(names, ["Endpoint client", "LoadBalancer web", "LoadBalancer dns"]);
    assert!(check(&found, &[]).is_empty());
}

#[test]
fn yaml_is_read_back_to_the_same() {
    for located in parse(&file(EXAMPLE)).unwrap() {
        let yaml = to_yaml(&located.resource);
        let again = parse(&file(&yaml)).unwrap_or_else(|faults| panic!("{yaml}\n{faults:#?}"));
        assert_eq!(again[0].resource, located.resource, "{yaml}");
    }
}
