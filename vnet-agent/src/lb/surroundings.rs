//! Where members may be: the endpoints of this host and of others, and who else is on this host's bridges.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::compile::Desired;
use crate::elsewhere::{Elsewhere, RemoteEndpoint};
use crate::resource::MemberSelector;

/// A MAC; zero when not known.
pub type Mac = [u8; 6];

/// The endpoints, and who else is on the bridges of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    endpoints: Vec<Local>,
    places: HashMap<IpAddr, Place>,
    /// The one bridge that this host has endpoints on; 0 if there are none or several.
    only_segment: u32,
    elsewhere: Arc<Elsewhere>,
    /// Names that endpoints of this host and of another have.
    twice: BTreeSet<String>,
    /// Addresses of endpoints whose hosts are drained.
    drained: HashSet<IpAddr>,
}

/// An endpoint on this host, as a member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses, configured or learned.
    pub addresses: Vec<IpAddr>,
    /// The host-side device; 0 while there is none.
    pub ifindex: u32,
    /// The bridge that the device is a port of, or 0.
    pub segment: u32,
    /// Its MAC.
    pub mac: Mac,
}

/// What the neighbour table of a bridge says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The bridge.
    pub segment: u32,
    /// The MAC.
    pub mac: Mac,
}

/// Where a member is; zeros where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its MAC.
    pub mac: Mac,
    /// Its host-side device, if it is on this host.
    pub ifindex: u32,
    /// The bridge on which it can be reached by its MAC.
    pub segment: u32,
}

/// An endpoint that a selector found.
pub struct Selected<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// What the label `zone` says; of an endpoint of another host without it, that host's zone.
    pub zone: Option<&'a str>,
}

/// The label of an endpoint that says its zone.
const ZONE: &str = "zone";

impl Surroundings {
    /// Of the endpoints of this host, the neighbours on their bridges, and the other hosts.
    pub fn new(endpoints: Vec<Local>, neighbours: &HashMap<IpAddr, Neighbour>, elsewhere: Arc<Elsewhere>) -> Self {
        let by_neighbour = neighbours.iter().map(|(a, n)| (*a, Place { mac: n.mac, ifindex: 0, segment: n.segment }));
        let mut places: HashMap<IpAddr, Place> = by_neighbour.collect();
        for e in endpoints.iter().filter(|e| e.ifindex != 0) {
            let place = Place { mac: e.mac, ifindex: e.ifindex, segment: e.segment };
            places.extend(e.addresses.iter().map(|a| (*a, place)));
        }
        let segments: BTreeSet<u32> = endpoints.iter().map(|e| e.segment).filter(|s| *s != 0).collect();
        let only_segment = if segments.len() == 1 { segments.first().copied().unwrap_or(0) } else { 0 };
        let twice = endpoints.iter().map(|e| &e.name).filter(|name| elsewhere.has(name)).cloned().collect();
        let drained = drained(&endpoints, &elsewhere);
        Self { endpoints, places, only_segment, elsewhere, twice, drained }
    }

    /// The load balancers of `desired` that may become others when these surroundings become `new` ones.
    pub fn affected(&self, new: &Self, desired: &Desired) -> BTreeSet<String> {
        if self.only_segment != new.only_segment {
            return desired.groups().iter().map(|g| g.lb.clone()).collect();
        }
        let moved = |address: &&IpAddr| self.places.get(*address) != new.places.get(*address);
        let addresses = self.places.keys().filter(moved).chain(new.places.keys().filter(moved));
        let addresses = addresses.chain(self.drained.symmetric_difference(&new.drained));
        let mut names: BTreeSet<String> = addresses.flat_map(|a| desired.with_member(a)).cloned().collect();
        let lost = self.endpoints.iter().filter(|e| !new.endpoints.contains(e));
        let found = new.endpoints.iter().filter(|e| !self.endpoints.contains(e));
        let mut labels: Vec<&BTreeMap<String, String>> = lost.chain(found).map(|e| &e.labels).collect();
        labels.extend(self.changed_elsewhere(new));
        let selecting = desired.selectors().filter(|(_, s)| labels.iter().any(|labels| selects(s, labels)));
        names.extend(selecting.map(|(name, _)| name.clone()));
        names
    }

    /// The labels, before and after, of endpoints of other hosts of which anything changed that makes members.
    fn changed_elsewhere<'a>(&'a self, new: &'a Self) -> Vec<&'a BTreeMap<String, String>> {
        let (before, after) = (&*self.elsewhere, &*new.elsewhere);
        if Arc::ptr_eq(&self.elsewhere, &new.elsewhere) && self.twice == new.twice {
            return Vec::new();
        }
        let mut names: BTreeSet<&str> = before.differing(after).into_iter().map(|name| &**name).collect();
        names.extend(self.twice.symmetric_difference(&new.twice).map(String::as_str));
        let zone = |of: &Elsewhere, host: &str| of.hosts.get(host).and_then(|host| host.zone.clone());
        let hosts = before.hosts.keys().chain(after.hosts.keys()).filter(|host| zone(before, host) != zone(after, host));
        let hosts: BTreeSet<&str> = hosts.map(String::as_str).collect();
        if !hosts.is_empty() {
            let there = after.endpoints.iter().filter(|(_, e)| hosts.contains(&*e.host));
            names.extend(there.map(|(name, _)| &**name));
        }
        let states = names.into_iter().flat_map(|name| [before.endpoints.get(name), after.endpoints.get(name)]);
        states.flatten().map(|e| &*e.labels).collect()
    }

    /// The endpoints that have these labels. Of a name that is here and elsewhere, only the one that is here.
    pub fn selected<'a>(&'a self, selector: &'a MemberSelector) -> impl Iterator<Item = Selected<'a>> {
        let here = self.endpoints.iter().filter(|e| selects(selector, &e.labels));
        let here = here.map(|e| {
            let zone = e.labels.get(ZONE).map(String::as_str);
            Selected { name: &e.name, addresses: &e.addresses, zone }
        });
        let elsewhere = self.elsewhere.endpoints.iter().filter(|(_, e)| selects(selector, &e.labels));
        let elsewhere = elsewhere.filter(|(name, _)| !self.twice.contains(&***name)).map(|(name, e)| {
            let zone = e.labels.get(ZONE).map(String::as_str).or_else(|| self.elsewhere.zone(e));
            Selected { name, addresses: &e.addresses, zone }
        });
        here.chain(elsewhere)
    }

    /// Is this the address of an endpoint whose host is drained?
    pub fn is_drained(&self, address: &IpAddr) -> bool {
        self.drained.contains(address)
    }

    /// Where a member with this address is; `mac`: what its resource says.
    pub fn find(&self, address: &IpAddr, mac: Option<Mac>) -> Place {
        match self.places.get(address) {
            Some(place) => Place { mac: mac.unwrap_or(place.mac), ..*place },
            // Not seen here so far: a MAC in the resource says that it is on the clients' segment.
            None => {
                Place { mac: mac.unwrap_or_default(), ifindex: 0, segment: if mac.is_some() { self.only_segment } else { 0 } }
            }
        }
    }
}

/// The addresses of endpoints whose hosts are drained. One that an endpoint has whose host is not is none of them: it moved there.
fn drained(here: &[Local], elsewhere: &Elsewhere) -> HashSet<IpAddr> {
    if !elsewhere.drained && !elsewhere.hosts.values().any(|host| host.drained) {
        return HashSet::new();
    }
    let here = here.iter().filter(|e| e.ifindex != 0).map(|e| (elsewhere.drained, &e.addresses));
    let there = elsewhere.endpoints.values().map(|e: &Arc<RemoteEndpoint>| (elsewhere.is_drained(e), &e.addresses));
    let (leaving, staying): (Vec<_>, Vec<_>) = here.chain(there).partition(|(drained, _)| *drained);
    let mut addresses: HashSet<IpAddr> = leaving.into_iter().flat_map(|(_, addresses)| addresses).copied().collect();
    for address in staying.into_iter().flat_map(|(_, addresses)| addresses) {
        addresses.remove(address);
    }
    addresses
}

fn selects(selector: &MemberSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elsewhere::fixtures::{elsewhere, endpoint};
    use crate::lb::compile::fixtures::{Input, compile, ip, lb, member};

    fn labelled(host: &str, addresses: &[&str], labels: &[(&str, &str)]) -> RemoteEndpoint {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        RemoteEndpoint { labels: Arc::new(labels), ..endpoint(host, "default", addresses) }
    }

    fn around(endpoints: Vec<Local>, elsewhere: &Elsewhere) -> Surroundings {
        Surroundings::new(endpoints, &HashMap::new(), Arc::new(elsewhere.clone()))
    }

    fn local(name: &str, address: &str) -> Local {
        Local { name: name.into(), addresses: vec![ip(address)], ifindex: 4, ..Local::default() }
    }

    #[test]
    fn addresses_on_drained_hosts_are_told() {
        let mut all = elsewhere(vec![
            ("a", endpoint("b", "default", &["10.0.0.1"])),
            ("b", endpoint("b", "default", &["10.0.0.2"])),
            ("c", endpoint("c", "default", &["10.0.0.2", "10.0.0.3"])),
        ]);
        let told = |all: &Elsewhere| {
            let around = around(vec![local("x", "10.0.0.9"), local("y", "10.0.0.1")], all);
            let told = |n: u8| around.is_drained(&IpAddr::from([10, 0, 0, n]));
            (1..10).filter(|n| told(*n)).collect::<Vec<_>>()
        };
        assert_eq!(told(&all), [0_u8; 0]);
        all.drained = true;
        assert_eq!(told(&all), [9], "10.0.0.1 is elsewhere too");
        all.drained = false;
        all.hosts.get_mut("b").unwrap().drained = true;
        assert_eq!(told(&all), [0_u8; 0], "10.0.0.1 is here too, 10.0.0.2 at c");
        Arc::make_mut(&mut all.endpoints).remove("c");
        assert_eq!(told(&all), [2]);
    }

    #[test]
    fn what_changes_elsewhere_makes_load_balancers_stale() {
        let mut by_labels = lb("labels", &["10.1.0.1"], vec![]);
        let match_labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        by_labels.spec.member_selector = Some(MemberSelector { match_labels, port: None });
        let by_address = lb("address", &["10.1.0.2"], vec![member("10.0.0.2")]);
        let other = lb("other", &["10.1.0.3"], vec![member("10.0.0.7")]);
        let desired = compile(&Input { load_balancers: vec![by_labels, by_address, other], ..Input::default() });
        let web = |addresses: &[&str]| labelled("b", addresses, &[("app", "web")]);
        let before = elsewhere(vec![("vm1", web(&["10.0.0.1"])), ("vm2", endpoint("b", "default", &["10.0.0.2"]))]);
        let affected = |local: &[Local], change: &dyn Fn(&mut Elsewhere)| {
            let mut after = before.clone();
            change(&mut after);
            let after = around(local.to_vec(), &after);
            let names = around(Vec::new(), &before).affected(&after, &desired);
            names.into_iter().collect::<Vec<_>>().join(" ")
        };
        let put = |after: &mut Elsewhere, name: &str, e: RemoteEndpoint| {
            drop(Arc::make_mut(&mut after.endpoints).insert(name.into(), Arc::new(e)))
        };
        assert_eq!(affected(&[], &|_| {}), "");
        assert_eq!(affected(&[], &|e| put(e, "vm1", web(&["10.0.0.3"]))), "labels");
        assert_eq!(affected(&[], &|e| drop(Arc::make_mut(&mut e.endpoints).remove("vm1"))), "labels");
        assert_eq!(affected(&[], &|e| put(e, "vm1", labelled("b", &["10.0.0.1"], &[("app", "db")]))), "labels");
        assert_eq!(affected(&[], &|e| put(e, "vm3", endpoint("c", "default", &["10.0.0.7"]))), "");
        assert_eq!(affected(&[], &|e| e.hosts.get_mut("b").unwrap().drained = true), "address");
        assert_eq!(affected(&[], &|e| e.hosts.get_mut("b").unwrap().zone = Some("z".into())), "labels");
        assert_eq!(affected(&[local("vm1", "10.0.0.9")], &|_| {}), "labels", "vm1 is here now");
    }
}
