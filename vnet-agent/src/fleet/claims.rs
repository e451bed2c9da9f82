//! Where endpoints are: which hosts say that they have them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use vnet_common::fleet::EndpointState;

/// What a host says of an endpoint, and since which revision.
pub type Claim = (i64, Arc<EndpointState>);

/// An endpoint's name and a host.
pub type At = (String, String);

/// Who claims a name: hardly ever more than one.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Vec<(String, Claim)>);

impl Hosts {
    /// What a host says of it.
    #[must_use]
    pub fn get(&self, host: &str) -> Option<&Claim> {
        self.iter().find(|(name, _)| *name == host).map(|(_, claim)| claim)
    }

    /// Does a host claim it?
    #[must_use]
    pub fn contains_key(&self, host: &str) -> bool {
        self.get(host).is_some()
    }

    /// The hosts and their claims, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Claim)> {
        self.0.iter().map(|(host, claim)| (host, claim))
    }

    /// The hosts, in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.iter().map(|(host, _)| host)
    }

    /// Their claims, in the same order.
    pub fn values(&self) -> impl Iterator<Item = &Claim> {
        self.iter().map(|(_, claim)| claim)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives what the host said before.
    fn put(&mut self, host: &str, claim: Option<Claim>) -> Option<Claim> {
        match (self.0.binary_search_by(|(name, _)| name.as_str().cmp(host)), claim) {
            (Ok(at), Some(claim)) => self.0.get_mut(at).map(|there| std::mem::replace(&mut there.1, claim)),
            (Ok(at), None) => Some(self.0.remove(at).1),
            (Err(at), Some(claim)) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (host.to_owned(), claim));
                None
            }
            (Err(_), None) => None,
        }
    }
}

impl<'a> IntoIterator for &'a Hosts {
    type Item = (&'a String, &'a Claim);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, (String, Claim)>, fn(&'a (String, Claim)) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(host, claim)| (host, claim))
    }
}

/// The claims of a name.
#[derive(Clone, Debug, Default)]
struct Named {
    claims: Hosts,
    /// How many of them have a resource.
    with_resource: u32,
}

/// All claims, and what would take long to find out of all of them.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    by_name: BTreeMap<String, Named>,
    /// Names that several hosts claim, and at least one with a resource. Devices are named alike everywhere.
    contested: BTreeSet<String>,
    /// How many each host claims.
    by_host: BTreeMap<String, u32>,
    /// How many have an identity, by its number.
    by_identity: HashMap<u32, u32>,
    /// Claims that changed and were not taken yet.
    changed: BTreeSet<At>,
    /// Labels of endpoints: many have the same.
    labels: HashSet<Arc<BTreeMap<String, String>>>,
}

impl Claims {
    /// A host claims an endpoint, or (`None`) does not any more.
    pub fn put(&mut self, name: &str, host: &str, claim: Option<(i64, EndpointState)>) {
        let named = self.by_name.entry(name.to_owned()).or_default();
        let claim = claim.map(|(since, mut state)| {
            match self.labels.get(&state.labels) {
                Some(known) => state.labels = Arc::clone(known),
                None => drop(self.labels.insert(Arc::clone(&state.labels))),
            }
            (since, Arc::new(state))
        });
        let (is, number) = (claim.is_some(), claim.as_ref().map(|(_, state)| state.identity));
        let has_resource = |claim: &Option<Claim>| claim.as_ref().is_some_and(|(_, state)| !state.discovered);
        let more = has_resource(&claim);
        let before = named.claims.put(host, claim);
        if more != has_resource(&before) {
            count(&mut named.with_resource, more);
        }
        match named.claims.len() > 1 && named.with_resource > 0 {
            true => drop(self.contested.insert(name.to_owned())),
            false => drop(self.contested.remove(name)),
        }
        if named.claims.is_empty() {
            self.by_name.remove(name);
        }
        if is != before.is_some() {
            let claimed = self.by_host.entry(host.to_owned()).or_default();
            count(claimed, is);
            if *claimed == 0 {
                self.by_host.remove(host);
            }
        }
        for (number, more) in number.map(|n| (n, true)).into_iter().chain(before.map(|(_, state)| (state.identity, false))) {
            let users = self.by_identity.entry(number).or_default();
            count(users, more);
            if *users == 0 {
                self.by_identity.remove(&number);
            }
        }
        self.changed.insert((name.to_owned(), host.to_owned()));
        // Labels that only this has are nobody's any more.
        if self.labels.len() > 2 * self.by_name.len() + 64 {
            self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        }
    }

    /// Who claims an endpoint; `None`: nobody does.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&Hosts> {
        self.by_name.get(name).map(|named| &named.claims)
    }

    /// Every name, with who claims it.
    pub fn names(&self) -> impl Iterator<Item = (&String, &Hosts)> {
        self.by_name.iter().map(|(name, named)| (name, &named.claims))
    }

    /// The names that several hosts claim, and at least one with a resource.
    pub fn contested(&self) -> impl Iterator<Item = (&str, &Hosts)> {
        self.contested.iter().filter_map(|name| Some((name.as_str(), self.of(name)?)))
    }

    /// The hosts that claim any endpoint, with how many.
    pub fn hosts(&self) -> impl Iterator<Item = (&String, u32)> {
        self.by_host.iter().map(|(host, count)| (host, *count))
    }

    /// Does a host claim any endpoint?
    #[must_use]
    pub fn is_host(&self, host: &str) -> bool {
        self.by_host.contains_key(host)
    }

    /// Does an endpoint have this identity?
    #[must_use]
    pub fn has_identity(&self, number: u32) -> bool {
        self.by_identity.contains_key(&number)
    }

    /// The claims that changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<At> {
        std::mem::take(&mut self.changed)
    }
}

fn count(users: &mut u32, more: bool) {
    *users = if more { *users + 1 } else { users.saturating_sub(1) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// What is counted as claims change is what there is to count afterwards.
    #[test]
    fn what_is_counted_is_there() {
        let (mut random, mut claims) = (Random(0x5eed_0012), Claims::default());
        let (names, hosts) = (["x", "y", "z"], ["a", "b", "c"]);
        for step in 0..500 {
            let (name, host) = (names[random.index(3)], hosts[random.index(3)]);
            let identity = random.index(4) as u32;
            let discovered = random.one_in(2);
            let claim = (!random.one_in(3)).then(|| (step, EndpointState { identity, discovered, ..EndpointState::default() }));
            claims.put(name, host, claim);
            assert_eq!(claims.take_changed(), [(name.to_owned(), host.to_owned())].into());
            let all: Vec<(&String, &String, &Claim)> =
                claims.names().flat_map(|(n, c)| c.iter().map(move |(h, claim)| (n, h, claim))).collect();
            let contested: Vec<&str> = claims.contested().map(|(name, _)| name).collect();
            let is_contested = |c: &Hosts| c.len() > 1 && c.values().any(|(_, state)| !state.discovered);
            let expected: Vec<&str> = claims.names().filter(|(_, c)| is_contested(c)).map(|(n, _)| n.as_str()).collect();
            assert_eq!(contested, expected);
            for host in hosts {
                let counted = claims.hosts().find(|(h, _)| *h == host).map_or(0, |(_, n)| n);
                assert_eq!(counted as usize, all.iter().filter(|(_, h, _)| *h == host).count());
                assert_eq!(claims.is_host(host), counted > 0);
            }
            for number in 0..4 {
                assert_eq!(claims.has_identity(number), all.iter().any(|(_, _, (_, state))| state.identity == number));
            }
            assert!(claims.names().all(|(_, claims)| !claims.is_empty()));
        }
    }
}
