//! The other hosts and their endpoints, as this host was told of them.
//!
//! What follows the fleet (`control::fleet`) puts one of these together and hands it over whole. Endpoints are shared: a copy in which one of 10,000 is another is cheap to make, and what differs is found without a look into the rest.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

/// What is known of other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// The other hosts, by their names.
    pub hosts: BTreeMap<String, RemoteHost>,
    /// Their endpoints, by names that are unique among all hosts: see [`qualified`].
    pub endpoints: Arc<BTreeMap<Arc<str>, Arc<RemoteEndpoint>>>,
    /// This host is drained: as members of load balancers its endpoints get no new flows.
    pub drained: bool,
}

/// Another host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteHost {
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its zone.
    pub zone: Option<String>,
    /// As members of load balancers its endpoints get no new flows.
    pub drained: bool,
}

/// An endpoint on another host, as that knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteEndpoint {
    /// The host.
    pub host: Arc<str>,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// They were given, not learned.
    pub given: bool,
    /// The security group that it is in now.
    pub group: Arc<str>,
    /// That group holds it: it is a quarantine group.
    pub quarantined: bool,
    /// The number of its identity at its host. Here it has another.
    pub identity: u32,
}

/// Endpoints of other hosts by their addresses, with their names: made when somebody asks for one, as most changes come before that.
#[derive(Debug, Default)]
pub struct ByAddress {
    of: Arc<Elsewhere>,
    all: OnceLock<HashMap<IpAddr, Named>>,
}

/// An endpoint and its name.
pub type Named = (Arc<str>, Arc<RemoteEndpoint>);

impl ByAddress {
    /// Of all that is elsewhere.
    #[must_use]
    pub fn new(of: Arc<Elsewhere>) -> Self {
        Self { of, all: OnceLock::new() }
    }

    /// All of them. Of several with one address that which was given it comes first, then the first name.
    pub fn all(&self) -> &HashMap<IpAddr, Named> {
        self.all.get_or_init(|| {
            let mut all = HashMap::<IpAddr, Named>::with_capacity(self.of.endpoints.len());
            for (name, endpoint) in &*self.of.endpoints {
                for address in &endpoint.addresses {
                    let there = all.get(address);
                    if there.is_none_or(|(_, there)| endpoint.given && !there.given) {
                        all.insert(*address, (Arc::clone(name), Arc::clone(endpoint)));
                    }
                }
            }
            all
        })
    }
}

/// The name of an endpoint among all hosts. That of a resource is one already; what is only named like its device is `host/device`.
#[must_use]
pub fn qualified(host: &str, name: &str, discovered: bool) -> Arc<str> {
    if discovered { format!("{host}/{name}").into() } else { name.into() }
}

impl RemoteEndpoint {
    /// The name that its host has for it.
    pub fn own_name<'a>(&self, qualified: &'a str) -> &'a str {
        qualified.strip_prefix(&*self.host).and_then(|rest| rest.strip_prefix('/')).unwrap_or(qualified)
    }
}

impl Elsewhere {
    /// Is there no other host?
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.endpoints.is_empty()
    }

    /// Does another host have an endpoint of this name?
    pub fn has(&self, name: &str) -> bool {
        self.endpoints.contains_key(name)
    }

    /// The zone of an endpoint's host.
    pub fn zone(&self, endpoint: &RemoteEndpoint) -> Option<&str> {
        self.hosts.get(&*endpoint.host)?.zone.as_deref()
    }

    /// Is an endpoint's host drained?
    pub fn is_drained(&self, endpoint: &RemoteEndpoint) -> bool {
        self.hosts.get(&*endpoint.host).is_some_and(|host| host.drained)
    }

    /// The endpoints that are other ones in `other`, or in one of the two only, in order.
    pub fn differing<'a>(&'a self, other: &'a Self) -> Vec<&'a Arc<str>> {
        if Arc::ptr_eq(&self.endpoints, &other.endpoints) {
            return Vec::new();
        }
        let mut sides = (self.endpoints.iter().peekable(), other.endpoints.iter().peekable());
        let mut found = Vec::new();
        loop {
            let order = match (sides.0.peek(), sides.1.peek()) {
                (None, None) => return found,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) if Arc::ptr_eq(a, b) => Ordering::Equal,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let this = if order == Ordering::Greater { None } else { sides.0.next() };
            let that = if order == Ordering::Less { None } else { sides.1.next() };
            if this.map(|(_, e)| e) != that.map(|(_, e)| e) {
                found.extend(this.or(that).map(|(name, _)| name));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// An endpoint of `host` in `group`, its addresses given.
    pub fn endpoint(host: &str, group: &str, addresses: &[&str]) -> RemoteEndpoint {
        RemoteEndpoint {
            host: host.into(),
            labels: Arc::default(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            given: true,
            group: group.into(),
            quarantined: false,
            identity: 0,
        }
    }

    /// These endpoints, and their hosts without anything.
    pub fn elsewhere(endpoints: Vec<(&str, RemoteEndpoint)>) -> Elsewhere {
        let hosts = endpoints.iter().map(|(_, e)| (e.host.to_string(), RemoteHost::default())).collect();
        let endpoints: BTreeMap<Arc<str>, Arc<RemoteEndpoint>> =
            endpoints.into_iter().map(|(name, e)| (name.into(), Arc::new(e))).collect();
        Elsewhere { hosts, endpoints: Arc::new(endpoints), drained: false }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{elsewhere, endpoint};
    use super::*;

    #[test]
    fn what_differs_is_found() {
        let all = |names: &[(&str, &str)]| elsewhere(names.iter().map(|(n, group)| (*n, endpoint("b", group, &[]))).collect());
        let before = all(&[("a", "g"), ("c", "g"), ("d", "g"), ("f", "g")]);
        let mut after = before.clone();
        let endpoints = Arc::make_mut(&mut after.endpoints);
        endpoints.extend((*all(&[("b", "g"), ("d", "h"), ("g", "g")]).endpoints).clone());
        endpoints.remove("a");
        // The same value in another place is no difference.
        endpoints.insert("c".into(), Arc::new(endpoint("b", "g", &[])));
        for (these, those) in [(&before, &after), (&after, &before)] {
            let names: Vec<&str> = these.differing(those).into_iter().map(|n| &**n).collect();
            assert_eq!(names, ["a", "b", "d", "g"]);
        }
        assert!(before.differing(&before.clone()).is_empty());
        assert_eq!(Elsewhere::default().differing(&after).len(), after.endpoints.len());
    }

    #[test]
    fn names_say_the_host_where_they_are_unique_there_only() {
        assert_eq!((&*qualified("b", "tap0", true), &*qualified("b", "vm7", false)), ("b/tap0", "vm7"));
        let e = endpoint("b", "g", &[]);
        assert_eq!((e.own_name("b/tap0"), e.own_name("vm7"), e.own_name("bb/tap0")), ("tap0", "vm7", "bb/tap0"));
    }

    #[test]
    fn an_address_is_of_whom_it_was_given() {
        let learned = |e: RemoteEndpoint| RemoteEndpoint { given: false, ..e };
        let all = elsewhere(vec![
            ("a", learned(endpoint("b", "g", &["10.0.0.1", "10.0.0.2"]))),
            ("b", learned(endpoint("b", "g", &["10.0.0.2"]))),
            ("c", endpoint("b", "g", &["10.0.0.1"])),
            ("d", endpoint("b", "g", &["10.0.0.1"])),
        ]);
        let by_address = ByAddress::new(Arc::new(all));
        let owner = |a: &str| &*by_address.all()[&a.parse::<IpAddr>().unwrap()].0;
        assert_eq!((owner("10.0.0.1"), owner("10.0.0.2")), ("c", "a"));
    }
}
