//! From files to resources: YAML, then the schema, then serde, then what a schema cannot say.

use std::sync::Arc;

use vnet_common::api::{Fault, File};

use super::source::{Faults, Source};
use super::structure::{Outcome, Walk};
use super::tree::{self, Node};
use super::{Origin, Resource, check, schema};

/// The largest file that is read, in bytes. The API refuses larger requests; this is for everyone else.
const LARGEST: usize = 16 << 20;

/// A resource that knows where it was written.
#[derive(Clone, Debug)]
pub struct Located {
    /// The resource.
    pub resource: Resource,
    source: Arc<Source>,
    root: Node,
}

impl Located {
    /// A fault at a JSON pointer into the resource, such as `/spec/members/2/weight`; where the user wrote nothing there,
    /// at the nearest thing around it.
    pub fn fault(&self, pointer: &str, message: impl Into<String>) -> Fault {
        self.source.fault(self.root.at(pointer).place(), message)
    }

    /// The file and the line at which it starts, as `web.yaml:3`.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}:{}", self.source.name, self.root.span.line)
    }

    /// The file, and the lines of the resource and of its rules.
    #[must_use]
    pub fn origin(&self) -> Origin {
        let lines = |list: &str| match self.root.at(&format!("/spec/{list}")).items() {
            Some(rules) => rules.iter().map(|rule| rule.span.line).collect(),
            None => Vec::new(),
        };
        let (egress, ingress) = (lines("egress"), lines("ingress"));
        Origin { file: self.source.name.clone(), line: self.root.span.line, egress, ingress }
    }
}

/// Every resource in `files`; or every fault in them, in order. This looks at the files alone; see [`check`](super::check)
/// for what else there is.
pub fn parse(files: &[File]) -> Result<Vec<Located>, Vec<Fault>> {
    let mut faults = Faults::default();
    let mut found = Vec::new();
    for file in files {
        let source = Arc::new(Source::new(file));
        if source.text.len() > LARGEST {
            faults.push(source.fault_of_file(format!("the file is larger than {} MiB: split it", LARGEST >> 20)));
            continue;
        }
        for root in tree::documents(&source, &mut faults).into_iter().filter(|root| !is_discovered(root)) {
            found.extend(read(&source, root, &mut faults));
        }
    }
    check::together(&found, &[], &mut faults);
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let faults = faults.into_sorted(&names);
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}

/// An endpoint that `vnet-ctl get` marks as discovered: nobody asked for it. It is passed over, so that what `get` gives can be
/// applied without making resources of devices that come and go.
fn is_discovered(root: &Node) -> bool {
    let is = |field, value: serde_json::Value| root.field(field).is_some_and(|node| node.to_json() == value);
    is("kind", "Endpoint".into()) && is("discovered", true.into())
}

/// One document, as far as it can be read.
fn read(source: &Arc<Source>, mut root: Node, faults: &mut Faults) -> Option<Located> {
    let outcome = Walk::new(source, schema::shared(), faults).document(&mut root);
    if matches!(outcome, Outcome::Unusable) {
        return None;
    }
    match serde_json::from_value(root.to_json()) {
        Ok(resource) => {
            let located = Located { resource, source: Arc::clone(source), root };
            check::alone(&located, matches!(outcome, Outcome::Whole), faults);
            (!matches!(outcome, Outcome::Filled)).then_some(located)
        }
        Err(error) => {
            faults.push(source.fault(root.place(), format!("the document cannot be read: {error}")));
            None
        }
    }
}
