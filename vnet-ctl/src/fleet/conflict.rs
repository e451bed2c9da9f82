//! Two who change the same: what each wants is shown, and nothing is written.

use anyhow::anyhow;
use serde_json::Value;

use crate::output::{Session, yaml};
use crate::{diff, human};

/// A key that somebody else changed.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// What it is about, as `loadbalancer/web`.
    pub what: String,
    /// What there was when the change was proposed, where that is known.
    pub was: Option<Option<Value>>,
    /// What there is.
    pub now: Option<Value>,
    /// What we want there to be.
    pub wanted: Option<Value>,
}

/// Shows on standard error what others changed and what we would make of it; gives the error. `last` says who changed something last.
pub fn explain(session: &Session, conflicts: &[Conflict], last: &str) -> anyhow::Error {
    for conflict in conflicts {
        let Conflict { what, was, now, wanted } = conflict;
        session.beside(&format!("{what} was changed meanwhile:"));
        if let Some(was) = was {
            session.beside_diff(&both(was.as_ref(), now.as_ref(), ("proposed-from", "now"), what));
            session.beside("and this would make of it:");
        }
        session.beside_diff(&both(now.as_ref(), wanted.as_ref(), ("now", "new"), what));
    }
    let names: Vec<&str> = conflicts.iter().map(|conflict| conflict.what.as_str()).collect();
    anyhow!(
        "nothing was written: somebody else changed {} meanwhile (the last change: {last}). If yours is still what should be, do it \
         again; else bring the two together first",
        names.join(", ")
    )
}

/// A unified diff of YAML.
fn both(old: Option<&Value>, new: Option<&Value>, (from, to): (&str, &str), what: &str) -> String {
    let name = |value: Option<&Value>, side: &str| value.map_or_else(|| "/dev/null".to_owned(), |_| format!("{side}/{what}"));
    let lines = diff::unified(&text(old), &text(new));
    format!("--- {}\n+++ {}\n{lines}", name(old, from), name(new, to))
}

/// A resource without where it was written, or whatever else there is.
fn text(value: Option<&Value>) -> String {
    let Some(value) = value else { return String::new() };
    let shown = value.get("resource").unwrap_or(value);
    // Nothing in JSON is beyond YAML.
    yaml(shown).unwrap_or_else(|error| format!("# it cannot be shown: {}\n", human::clean(&format!("{error:#}"))))
}
