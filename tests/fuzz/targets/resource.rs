//! What users write: YAML to resources, checked alone and together. What is refused has a place and a reason; what is taken comes out
//! as YAML that says the same.
//!
//! The named files in `corpus/resource` are resources of each kind and the shapes that YAML allows and nobody expects.

use vnet_agent::resource::{Located, Resource, check, parse, to_yaml};
use vnet_common::api::{Fault, File};

/// One file.
pub fn run(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let lines = text.lines().count() as u32 + 1;
    match read(text) {
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a reason");
            faults.iter().for_each(|fault| is_said_well(fault, lines));
        }
        Ok(found) => {
            check(&found, &[]).iter().for_each(|fault| is_said_well(fault, lines));
            let written: Vec<_> = found.iter().map(|located| to_yaml(&located.resource)).collect();
            let again = read(&written.join("---\n")).unwrap_or_else(|faults| panic!("{written:?} is refused: {faults:?}"));
            assert_eq!(resources(&again), resources(&found), "what was written is something else: {written:?}");
        }
    }
}

fn read(text: &str) -> Result<Vec<Located>, Vec<Fault>> {
    parse(&[File { name: "input".to_owned(), text: text.to_owned() }])
}

fn resources(located: &[Located]) -> Vec<&Resource> {
    located.iter().map(|located| &located.resource).collect()
}

fn is_said_well(fault: &Fault, lines: u32) {
    assert!(!fault.message.is_empty() && fault.file == "input" && fault.line <= lines, "{fault:?}");
    let is_odd = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!fault.message.contains(is_odd), "a terminal would obey this message: {fault:?}");
}
