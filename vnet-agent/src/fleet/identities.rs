//! What the numbers of identities stand for, as hosts say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use vnet_common::fleet::IdentityLabels;

/// All numbers, and what is asked of them for each endpoint.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    /// By host and number, with the revision since which they are there.
    said: BTreeMap<(String, u32), (i64, Arc<IdentityLabels>)>,
    /// The numbers of what is the same, the oldest first.
    by_labels: HashMap<Arc<IdentityLabels>, BTreeSet<(i64, u32)>>,
    changes: u64,
}

impl Identities {
    /// A host says what a number stands for, and since which revision, or (`None`) takes it back.
    pub fn put(&mut self, host: &str, number: u32, said: Option<(i64, IdentityLabels)>) {
        let key = (host.to_owned(), number);
        if let Some((since, labels)) = self.said.remove(&key)
            && let Some(numbers) = self.by_labels.get_mut(&labels)
        {
            numbers.remove(&(since, number));
            if numbers.is_empty() {
                self.by_labels.remove(&labels);
            }
        }
        if let Some((since, labels)) = said {
            // Most have labels that others have too: they are kept once.
            let labels = self.by_labels.get_key_value(&labels).map_or_else(|| Arc::new(labels), |(known, _)| Arc::clone(known));
            self.by_labels.entry(Arc::clone(&labels)).or_default().insert((since, number));
            self.said.insert(key, (since, labels));
        }
        self.changes += 1;
    }

    /// The oldest number of an identity.
    #[must_use]
    pub fn number(&self, labels: &IdentityLabels) -> Option<u32> {
        self.by_labels.get(labels)?.first().map(|(_, number)| *number)
    }

    /// The numbers that a host gave out, in order.
    pub fn of<'a>(&'a self, host: &'a str) -> impl Iterator<Item = (u32, &'a IdentityLabels)> {
        let all = self.said.range((host.to_owned(), 0)..).take_while(move |((of, _), _)| of == host);
        all.map(|((_, number), (_, labels))| (*number, &**labels))
    }

    /// Grows with every change.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_number_of_what_is_the_same_counts() {
        let labels = |group: &str| IdentityLabels { group: group.into(), labels: BTreeMap::new() };
        let mut all = Identities::default();
        all.put("b", 7, Some((5, labels("web"))));
        all.put("a", 9, Some((4, labels("web"))));
        all.put("a", 3, Some((6, labels("db"))));
        assert_eq!((all.number(&labels("web")), all.number(&labels("none"))), (Some(9), None));
        assert_eq!(all.of("a").map(|(n, l)| (n, l.group.as_str())).collect::<Vec<_>>(), [(3, "db"), (9, "web")]);
        all.put("a", 9, Some((4, labels("db"))));
        assert_eq!((all.number(&labels("web")), all.number(&labels("db"))), (Some(7), Some(9)));
        all.put("b", 7, None);
        all.put("c", 1, None);
        assert_eq!((all.number(&labels("web")), all.of("b").count(), all.changes()), (None, 0, 6));
        assert_eq!(all.by_labels.len(), 1);
    }
}
