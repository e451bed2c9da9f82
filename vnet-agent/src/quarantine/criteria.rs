//! Criteria of groups and transfers, read once, and the values they ask for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::tags::{TagKey, TagState};
use crate::expression::{Expression, Variables};

/// What a criterion may ask for.
pub const VARIABLES: [&str; 3] = ["tags", "labels", "name"];

/// A criterion.
#[derive(Debug)]
pub struct Criterion {
    text: String,
    parsed: Result<Expression, String>,
    aging: bool,
}

impl Criterion {
    /// Reads it. One that is faulty never holds, and says why whenever it is asked.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let parsed = Expression::parse(text, &VARIABLES).map_err(|why| format!("`{text}` {why}"));
        Self { text: text.to_owned(), parsed, aging: asks_for_age(text) }
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Can its value change because time passes?
    #[must_use]
    pub fn is_aging(&self) -> bool {
        self.aging
    }

    /// Does it ask for tags?
    #[must_use]
    pub fn asks_for_tags(&self) -> bool {
        self.parsed.as_ref().is_ok_and(|e| e.asks_for("tags"))
    }

    /// Does it hold?
    ///
    /// # Errors
    /// It cannot be said, with why.
    pub fn holds(&self, variables: &Variables) -> Result<bool, String> {
        self.parsed.as_ref().map_err(Clone::clone)?.holds(variables)
    }
}

/// Has it the word `age`? In a string it counts too: then it is evaluated more often than it had to be.
fn asks_for_age(text: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !word(c)).any(|part| part == "age")
}

/// Criteria by their text: reading one takes a while.
#[derive(Debug, Default)]
pub struct Criteria(Mutex<HashMap<String, Arc<Criterion>>>);

impl Criteria {
    /// The criterion of this text.
    pub fn get(&self, text: &str) -> Arc<Criterion> {
        if let Some(known) = self.known().get(text) {
            return Arc::clone(known);
        }
        let criterion = Arc::new(Criterion::new(text));
        self.known().insert(text.to_owned(), Arc::clone(&criterion));
        criterion
    }

    /// Forgets those that nobody uses.
    pub fn tidy(&self) {
        self.known().retain(|_, criterion| Arc::strong_count(criterion) > 1);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Criterion>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What criteria about an endpoint may ask for. `at` is the time that ages are counted to.
pub fn variables<'t>(
    name: &str,
    labels: &BTreeMap<String, String>,
    tags: impl Iterator<Item = (&'t TagKey, &'t TagState)>,
    at: u64,
) -> Variables {
    let tag = |(key, state): (&TagKey, &TagState)| {
        json!({
            "name": key.name,
            "value": state.value,
            "instance": key.instance,
            "severity": state.severity,
            "confidence": state.confidence,
            "source": key.source,
            "evidence": state.evidence,
            "expired": state.expired,
            "age": at.saturating_sub(state.set) / 1000,
        })
    };
    let mut variables = Variables::default();
    variables.set("tags", &Value::Array(tags.map(tag).collect()));
    variables.set("labels", &json!(labels));
    variables.set("name", &json!(name));
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criteria_ask_for_tags_labels_and_the_name() {
        let key = TagKey { subject: "vm".into(), source: "ids".into(), name: "malware".into(), instance: "7".into() };
        let state = TagState { value: "x".into(), severity: 8, confidence: 90, set: 1_000, ..TagState::default() };
        let labels = BTreeMap::from([("os".to_owned(), "linux".to_owned())]);
        let v = variables("vm", &labels, [(&key, &state)].into_iter(), 63_500);
        for (text, holds) in [
            (r#"tags.exists(t, t.name == "malware" && t.severity >= 7)"#, true),
            (r#"tags.exists(t, t.source == "ids" && t.value == "x" && t.instance == "7" && t.confidence == 90)"#, true),
            ("tags.all(t, t.age == 62 && !t.expired)", true),
            (r#"labels.os == "linux" && name == "vm" && tags.size() == 1"#, true),
            (r#"tags.exists(t, t.evidence != "")"#, false),
        ] {
            assert_eq!(Criterion::new(text).holds(&v), Ok(holds), "{text}");
        }
        assert!(Criterion::new("labels.rack == \"a\"").holds(&v).unwrap_err().contains("rack"));
        assert!(Criterion::new("tags.exists(").holds(&v).unwrap_err().contains("no CEL expression"));
    }

    #[test]
    fn criteria_that_time_changes_are_known() {
        for (text, aging) in [("tags.exists(t, t.age > 5)", true), ("t.page > 1", false), ("t.age2 > 1", false), ("age", true)] {
            assert_eq!(Criterion::new(text).is_aging(), aging, "{text}");
        }
    }

    #[test]
    fn a_text_is_read_once() {
        let criteria = Criteria::default();
        let a = criteria.get("name == \"a\"");
        assert!(Arc::ptr_eq(&a, &criteria.get("name == \"a\"")) && a.text() == "name == \"a\"");
        criteria.tidy();
        assert_eq!(criteria.known().len(), 1);
        drop(a);
        criteria.tidy();
        assert!(criteria.known().is_empty());
    }
}
