//! Which selectors select an endpoint: found by its labels, so that thousands of selectors cost little.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::expression::{Expression, Variables};
use crate::resource::Selector;

/// A selector, ready to be asked.
#[derive(Debug)]
pub struct Ready {
    labels: Vec<(String, String)>,
    expression: Option<Result<Expression, String>>,
}

impl Ready {
    /// Of a selector whose expression may use `name` and `labels`.
    pub fn new(selector: &Selector) -> Self {
        let labels = selector.match_labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let parse = |text: &String| Expression::parse(text, &["name", "labels"]).map_err(|e| format!("`{text}` {e}"));
        Self { labels, expression: selector.expression.as_ref().map(parse) }
    }
}

/// Selectors that were made ready: each once, and not again as long as some rule has it.
#[derive(Debug, Default)]
pub struct Known(HashMap<Selector, Arc<Ready>>);

impl Known {
    /// The selector, ready; as `before` has it, if it does.
    pub fn ready(&mut self, selector: &Selector, before: Option<&Self>) -> Arc<Ready> {
        if let Some(ready) = self.0.get(selector) {
            return Arc::clone(ready);
        }
        let known = before.and_then(|b| b.0.get(selector)).cloned();
        let ready = known.unwrap_or_else(|| Arc::new(Ready::new(selector)));
        self.0.insert(selector.clone(), Arc::clone(&ready));
        ready
    }
}

/// What selectors are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The endpoint's name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

impl Candidate<'_> {
    fn variables(&self) -> Variables {
        let mut variables = Variables::default();
        variables.set("name", &Value::from(self.name));
        variables.set("labels", &self.labels.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect());
        variables
    }
}

/// Selectors with their keys.
type Keyed<K> = Vec<(K, Arc<Ready>)>;

/// Selectors by what must be there for them to select anyone.
#[derive(Clone, Debug)]
pub struct Selectors<K> {
    /// By one of the labels that they ask for: name, then value.
    by_label: HashMap<String, HashMap<String, Keyed<K>>>,
    /// Those that ask for no label.
    others: Keyed<K>,
}

impl<K: Copy> Selectors<K> {
    /// Of these.
    pub fn new(selectors: impl IntoIterator<Item = (K, Arc<Ready>)>) -> Self {
        let all: Keyed<K> = selectors.into_iter().collect();
        let mut asked: HashMap<(String, String), usize> = HashMap::new();
        for label in all.iter().flat_map(|(_, s)| &s.labels) {
            *asked.entry(label.clone()).or_default() += 1;
        }
        let mut by_label: HashMap<String, HashMap<String, Keyed<K>>> = HashMap::new();
        let mut others = Vec::new();
        for (key, selector) in all {
            // The label that the fewest others ask for: few selectors are then looked at in vain.
            match selector.labels.iter().min_by_key(|label| asked.get(*label)).cloned() {
                Some((k, v)) => by_label.entry(k).or_default().entry(v).or_default().push((key, selector)),
                None => others.push((key, selector)),
            }
        }
        Self { by_label, others }
    }

    /// The keys of those that select it, and what went wrong with others: these do not select it.
    pub fn matching(&self, candidate: Candidate<'_>) -> (Vec<K>, Vec<(K, String)>) {
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        let mut variables = None;
        let by_label = candidate.labels.iter().filter_map(|(k, v)| self.by_label.get(k)?.get(v)).flatten();
        for (key, selector) in by_label.chain(&self.others) {
            if !selector.labels.iter().all(|(k, v)| candidate.labels.get(k) == Some(v)) {
                continue;
            }
            let holds = match &selector.expression {
                None => Ok(true),
                Some(Err(why)) => Err(why.clone()),
                Some(Ok(e)) => e.holds(variables.get_or_insert_with(|| candidate.variables())),
            };
            match holds {
                Ok(true) => found.push(*key),
                Ok(false) => {}
                Err(why) => faults.push((*key, why)),
            }
        }
        (found, faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(labels: &[(&str, &str)], expression: Option<&str>) -> Arc<Ready> {
        let match_labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Arc::new(Ready::new(&Selector { match_labels, expression: expression.map(str::to_owned) }))
    }

    #[test]
    fn all_that_is_given_must_match() {
        let all = Selectors::new(
            [
                selector(&[("app", "web")], None),
                selector(&[("app", "web"), ("env", "prod")], None),
                selector(&[("app", "web"), ("env", "dev")], None),
                selector(&[("app", "web")], Some("name.startsWith('w')")),
                selector(&[("app", "db")], Some("true")),
                selector(&[], Some("labels.env in ['prod', 'test']")),
                selector(&[], Some("tags.exists(t, t.name == 'bad')")),
                selector(&[], Some("labels.zone == 'a'")),
                selector(&[], Some("1 +")),
            ]
            .into_iter()
            .enumerate(),
        );
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned()), ("env".to_owned(), "prod".to_owned())]);
        let (mut found, faults) = all.matching(Candidate { name: "web-1", labels: &labels });
        found.sort_unstable();
        assert_eq!(found, [0, 1, 3, 5]);
        let faulty: Vec<usize> = faults.iter().map(|(key, _)| *key).collect();
        assert_eq!(faulty, [6, 7, 8]);
        for ((_, why), said) in faults.iter().zip(["no variable `tags`", "No such key", "is no CEL expression"]) {
            assert!(why.contains(said), "{faults:?}");
        }
    }
}
