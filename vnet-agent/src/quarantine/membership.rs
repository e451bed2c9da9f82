//! Which group an endpoint belongs to, if nobody holds it: its *base* group.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::criteria::variables;
use super::model::Group;
use crate::expression::Variables;

/// The group of whom no other selects.
pub const DEFAULT: &str = "default";

/// What labels alone say of an endpoint's group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The group that its labels select, by its place in the list; `None`: [`DEFAULT`].
    fixed: Option<usize>,
    /// Groups before that one whose selectors ask for tags.
    tagged: Vec<usize>,
    /// Groups before it whose selectors could not be evaluated, and why.
    faults: Vec<(usize, String)>,
}

/// What follows of an endpoint's group.
#[derive(Debug, PartialEq, Eq)]
pub struct Membership<'g> {
    /// Its base group.
    pub group: &'g str,
    /// Groups whose selectors could not be evaluated, though they would have come first, and why.
    pub faults: Vec<(&'g str, String)>,
}

/// The base group of an endpoint: the first of `groups` (in their order) that selects it. One whose selector cannot be
/// evaluated keeps the endpoint if that is in it (`now`), and takes in no other.
#[must_use]
pub fn membership<'g>(groups: &'g [Arc<Group>], place: &Place, now: &str, variables: &Variables) -> Membership<'g> {
    let name = |i: usize| groups.get(i).map_or(DEFAULT, |g| g.name.as_str());
    let mut faults = place.faults.clone();
    let mut found = place.fixed;
    for i in &place.tagged {
        match groups.get(*i).and_then(|g| g.selector.as_ref()).map(|criterion| criterion.holds(variables)) {
            Some(Ok(true)) => {
                found = Some(*i);
                break;
            }
            Some(Err(why)) => faults.push((*i, why)),
            Some(Ok(false)) | None => {}
        }
    }
    faults.retain(|(i, _)| found.is_none_or(|found| *i < found));
    faults.sort_unstable();
    let kept = faults.iter().map(|(i, _)| *i).find(|i| name(*i) == now);
    let group = kept.or(found).map_or(DEFAULT, name);
    Membership { group, faults: faults.into_iter().map(|(i, why)| (name(i), why)).collect() }
}

impl Place {
    /// What labels say: everything that does not have to be asked again when tags change.
    #[must_use]
    pub fn of(groups: &[Arc<Group>], name: &str, labels: &BTreeMap<String, String>) -> Self {
        let mut place = Self::default();
        let mut known = None;
        for (i, group) in groups.iter().enumerate() {
            if !group.selects() || !group.match_labels().iter().all(|(key, value)| labels.get(key) == Some(value)) {
                continue;
            }
            let Some(criterion) = &group.selector else {
                place.fixed = Some(i);
                break;
            };
            if criterion.asks_for_tags() {
                place.tagged.push(i);
                continue;
            }
            match criterion.holds(known.get_or_insert_with(|| variables(name, labels, std::iter::empty(), 0))) {
                Ok(false) => {}
                Ok(true) => {
                    place.fixed = Some(i);
                    break;
                }
                Err(why) => place.faults.push((i, why)),
            }
        }
        place
    }

    /// Do tags matter?
    #[must_use]
    pub fn asks_for_tags(&self) -> bool {
        !self.tagged.is_empty()
    }

    /// Can it change because time passes?
    #[must_use]
    pub fn is_aging(&self, groups: &[Arc<Group>]) -> bool {
        self.tagged.iter().any(|i| groups.get(*i).and_then(|g| g.selector.as_ref()).is_some_and(|c| c.is_aging()))
    }
}
