//! Which group an endpoint belongs to, if nobody holds it: its *base* group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::criteria::variables;
use super::model::Group;
use crate::expression::Variables;
use crate::resource::DEFAULT_GROUP;

/// What labels alone say of an endpoint's group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Groups before `fixed` that may have it nevertheless, in order: their selectors ask for tags, or (with why) cannot be
    /// evaluated.
    open: Vec<(String, Option<String>)>,
    /// The group that its labels select; `None`: [`DEFAULT_GROUP`].
    fixed: Option<String>,
}

/// What follows of an endpoint's group.
#[derive(Debug, PartialEq, Eq)]
pub struct Membership<'p> {
    /// Its base group.
    pub group: &'p str,
    /// Groups whose selectors could not be evaluated, though they would have come first, and why.
    pub faults: Vec<(&'p str, String)>,
}

/// The base group of an endpoint: the first that selects it. One whose selector cannot be evaluated keeps the endpoint if that
/// is in it (`now`), and takes in no other.
#[must_use]
pub fn membership<'p>(groups: &HashMap<String, Arc<Group>>, place: &'p Place, now: &str, tags: &Variables) -> Membership<'p> {
    let mut faults = Vec::new();
    for (name, fault) in &place.open {
        let selector = groups.get(name).and_then(|group| group.selector.as_ref());
        let selects = match (fault, selector) {
            (Some(why), _) => Err(why.clone()),
            (None, Some(criterion)) => criterion.holds(tags),
            (None, None) => Ok(false),
        };
        let kept = selects.unwrap_or_else(|why| {
            faults.push((name.as_str(), why));
            name == now
        });
        if kept {
            return Membership { group: name, faults };
        }
    }
    Membership { group: place.fixed.as_deref().unwrap_or(DEFAULT_GROUP), faults }
}

/// Finds the places of endpoints among groups.
pub struct Placing<'g> {
    groups: &'g [Arc<Group>],
    /// Groups that ask for labels, by one of them.
    by_label: HashMap<(&'g str, &'g str), Vec<usize>>,
    /// Those that ask for none.
    others: Vec<usize>,
}

impl<'g> Placing<'g> {
    /// Among these, in the order in which they have whom they select.
    #[must_use]
    pub fn among(groups: &'g [Arc<Group>]) -> Self {
        let mut placing = Self { groups, by_label: HashMap::new(), others: Vec::new() };
        for (i, group) in groups.iter().enumerate().filter(|(_, group)| group.selects()) {
            match group.match_labels().first_key_value() {
                Some((key, value)) => placing.by_label.entry((key, value)).or_default().push(i),
                None => placing.others.push(i),
            }
        }
        placing
    }

    /// What these labels say.
    #[must_use]
    pub fn place(&self, name: &str, labels: &BTreeMap<String, String>) -> Place {
        let asked = labels.iter().filter_map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str()))).flatten();
        let mut candidates: Vec<usize> = asked.chain(&self.others).copied().collect();
        candidates.sort_unstable();
        let mut place = Place::default();
        let mut known = None;
        for group in candidates.into_iter().filter_map(|i| self.groups.get(i)) {
            if !group.match_labels().iter().all(|(key, value)| labels.get(key) == Some(value)) {
                continue;
            }
            let selects = match &group.selector {
                None => Ok(true),
                Some(criterion) if criterion.asks_for_tags() => {
                    place.open.push((group.name.clone(), None));
                    continue;
                }
                Some(criterion) => criterion.holds(known.get_or_insert_with(|| variables(name, labels, std::iter::empty(), 0))),
            };
            match selects {
                Ok(false) => {}
                Ok(true) => {
                    place.fixed = Some(group.name.clone());
                    break;
                }
                Err(why) => place.open.push((group.name.clone(), Some(why))),
            }
        }
        place
    }
}

impl Place {
    /// Does the group depend on more than labels?
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Can it change because time passes?
    #[must_use]
    pub fn is_aging(&self, groups: &HashMap<String, Arc<Group>>) -> bool {
        let selectors = self.open.iter().filter_map(|(name, _)| groups.get(name)?.selector.as_ref());
        selectors.into_iter().any(|criterion| criterion.is_aging())
    }
}
