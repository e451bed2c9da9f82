//! Which endpoint an event is about.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// An event's own words for the endpoint that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Those that have one of these addresses.
    Addresses(Vec<IpAddr>),
    /// The one of this name.
    Endpoint(String),
    /// The one with this MAC.
    Mac([u8; 6]),
    /// Those with this label.
    Label(String, String),
}

/// Knows endpoints.
pub trait Directory: Send + Sync + 'static {
    /// The names of those that are meant, each once.
    fn find(&self, reference: &Reference) -> Vec<String>;
}

/// One endpoint, as events may refer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC, if known.
    pub mac: Option<[u8; 6]>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

/// Every endpoint, indexed.
#[derive(Debug, Default)]
pub struct Endpoints {
    names: HashSet<Arc<str>>,
    addresses: HashMap<IpAddr, Vec<Arc<str>>>,
    macs: HashMap<[u8; 6], Vec<Arc<str>>>,
    labels: HashMap<(String, String), Vec<Arc<str>>>,
}

impl FromIterator<Known> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Known>>(all: I) -> Self {
        let mut endpoints = Self::default();
        for known in all {
            let name: Arc<str> = known.name.into();
            known.addresses.into_iter().for_each(|address| add(&mut endpoints.addresses, address.to_canonical(), &name));
            known.mac.into_iter().for_each(|mac| add(&mut endpoints.macs, mac, &name));
            known.labels.into_iter().for_each(|label| add(&mut endpoints.labels, label, &name));
            endpoints.names.insert(name);
        }
        endpoints
    }
}

fn add<K: Eq + Hash>(to: &mut HashMap<K, Vec<Arc<str>>>, key: K, name: &Arc<str>) {
    let names = to.entry(key).or_default();
    if !names.contains(name) {
        names.push(Arc::clone(name));
    }
}

impl Directory for Endpoints {
    fn find(&self, reference: &Reference) -> Vec<String> {
        let text = |names: Option<&Vec<Arc<str>>>| names.into_iter().flatten().map(|name| name.to_string()).collect::<Vec<_>>();
        match reference {
            Reference::Endpoint(name) => self.names.get(name.as_str()).map(|name| name.to_string()).into_iter().collect(),
            Reference::Mac(mac) => text(self.macs.get(mac)),
            Reference::Label(label, value) => text(self.labels.get(&(label.clone(), value.clone()))),
            Reference::Addresses(addresses) => {
                let mut found: Vec<String> = addresses.iter().flat_map(|a| text(self.addresses.get(&a.to_canonical()))).collect();
                let mut seen = HashSet::new();
                found.retain(|name| seen.insert(name.clone()));
                found
            }
        }
    }
}

/// The endpoints as they are now: replaced as a whole, and never waited for.
#[derive(Debug, Default)]
pub struct Current(RwLock<Arc<Endpoints>>);

impl Current {
    /// From now on these are.
    pub fn replace(&self, endpoints: Endpoints) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(endpoints);
    }
}

impl Directory for Current {
    fn find(&self, reference: &Reference) -> Vec<String> {
        let endpoints = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        endpoints.find(reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_found_by_whatever_an_event_calls_them() {
        let current = Current::default();
        assert!(current.find(&Reference::Endpoint("vm1".into())).is_empty());
        let known = |name: &str, address: &str, mac: u8| Known {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            mac: Some([2, 0, 0, 0, 0, mac]),
            labels: vec![("host".into(), "h1".into())],
        };
        current.replace(
            [known("vm1", "10.0.0.1", 1), known("vm2", "fd00::2", 2), known("vm3", "10.0.0.1", 3)].into_iter().collect(),
        );
        let addresses = |all: &[&str]| Reference::Addresses(all.iter().map(|a| a.parse().unwrap()).collect());
        for (reference, expected) in [
            (Reference::Endpoint("vm2".into()), &["vm2"][..]),
            (Reference::Endpoint("vm".into()), &[]),
            (Reference::Mac([2, 0, 0, 0, 0, 3]), &["vm3"]),
            (Reference::Label("host".into(), "h1".into()), &["vm1", "vm2", "vm3"]),
            (Reference::Label("host".into(), "h2".into()), &[]),
            (addresses(&["::ffff:10.0.0.1", "10.0.0.1"]), &["vm1", "vm3"]),
            (addresses(&["192.0.2.1", "fd00::2"]), &["vm2"]),
            (addresses(&[]), &[]),
        ] {
            assert_eq!(current.find(&reference), expected, "{reference:?}");
        }
    }
}
