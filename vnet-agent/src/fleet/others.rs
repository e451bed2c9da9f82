//! Other hosts, and what is there: from the store's keys to what rules and load balancers follow from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use vnet_common::fleet::{EndpointState, HostState};

use super::view::View;
use crate::elsewhere::{Elsewhere, RemoteEndpoint, RemoteHost, qualified};

/// What was made of others' endpoints: made again only of those that changed.
#[derive(Debug, Default)]
pub struct Others {
    made: HashMap<(String, String), (Arc<EndpointState>, Arc<RemoteEndpoint>)>,
    /// Hosts that are alive, or have been while their endpoints linger.
    hosts: BTreeMap<String, HostState>,
}

impl Others {
    /// What is elsewhere, seen from the host `own`. `placed` gives the host that an endpoint's resource names.
    pub fn elsewhere(&mut self, view: &View, own: &str, placed: impl Fn(&str) -> Option<String>) -> Elsewhere {
        self.hosts.extend(view.alive.iter().map(|(host, (_, state))| (host.clone(), state.clone())));
        let lingering: BTreeSet<&String> = view.endpoints.values().flat_map(|claims| claims.keys()).collect();
        self.hosts.retain(|host, _| view.alive.contains_key(host) || lingering.contains(host));
        let drained = |host: &str| view.registered.get(host).is_some_and(|r| r.drained);
        let mut made = HashMap::with_capacity(view.endpoints.len());
        let mut elsewhere = Elsewhere { drained: drained(own), ..Elsewhere::default() };
        for (name, claims) in &view.endpoints {
            let (discovered, named): (Vec<_>, Vec<_>) = claims.iter().partition(|(_, (_, state))| state.discovered);
            // Only endpoints with a resource are one and the same wherever they are.
            let owner = view.owner(name, placed(name).as_deref()).filter(|_| !named.is_empty());
            let counts = named.into_iter().filter(|(host, _)| Some(host.as_str()) == owner);
            for (host, (_, state)) in discovered.into_iter().chain(counts).filter(|(host, _)| *host != own) {
                let key = (host.clone(), name.clone());
                let known = self.made.get(&key).filter(|(from, _)| Arc::ptr_eq(from, state));
                let remote = known.map_or_else(|| Arc::new(remote(host, state)), |(_, remote)| Arc::clone(remote));
                elsewhere.endpoints.insert(qualified(host, name, state.discovered), Arc::clone(&remote));
                made.insert(key, (Arc::clone(state), remote));
            }
        }
        self.made = made;
        for (host, state) in self.hosts.iter().filter(|(host, _)| *host != own) {
            let remote = RemoteHost { addresses: state.addresses.clone(), zone: state.zone.clone(), drained: drained(host) };
            elsewhere.hosts.insert(host.clone(), remote);
        }
        elsewhere
    }
}

fn remote(host: &str, state: &EndpointState) -> RemoteEndpoint {
    RemoteEndpoint {
        host: host.into(),
        labels: Arc::new(state.labels.clone()),
        addresses: state.addresses.clone(),
        given: state.given,
        group: state.group.as_str().into(),
        quarantined: state.quarantined,
        identity: state.identity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(view: &mut View, host: &str, name: &str, since: i64, discovered: bool) {
        let state = EndpointState { discovered, group: host.into(), ..EndpointState::default() };
        view.endpoints.entry(name.into()).or_default().insert(host.into(), (since, Arc::new(state)));
    }

    #[test]
    fn each_endpoint_is_where_its_owner_has_it_and_devices_of_one_name_are_several() {
        let mut view = View::default();
        for host in ["a", "b", "c"] {
            view.alive.insert(host.into(), (1, HostState::default()));
            claim(&mut view, host, "tap0", 1, true);
        }
        claim(&mut view, "c", "vm1", 2, false);
        claim(&mut view, "b", "vm1", 3, false);
        claim(&mut view, "a", "vm2", 2, false);
        claim(&mut view, "b", "vm2", 3, false);
        claim(&mut view, "gone", "vm3", 3, false);
        let mut others = Others::default();
        let names = |e: &Elsewhere| e.endpoints.iter().map(|(n, e)| format!("{n}@{}", e.host)).collect::<Vec<_>>().join(" ");
        let first = others.elsewhere(&view, "a", |_| None);
        assert_eq!(names(&first), "b/tap0@b c/tap0@c vm1@c vm3@gone");
        let placed = |name: &str| (name == "vm1").then(|| "b".to_owned());
        assert_eq!(names(&others.elsewhere(&view, "a", placed)), "b/tap0@b c/tap0@c vm1@b vm3@gone");
        // What did not change is the same value, not only an equal one.
        claim(&mut view, "c", "vm1", 2, false);
        let second = others.elsewhere(&view, "a", |_| None);
        assert!(Arc::ptr_eq(&first.endpoints["b/tap0"], &second.endpoints["b/tap0"]));
        assert!(!Arc::ptr_eq(&first.endpoints["vm1"], &second.endpoints["vm1"]));
    }

    #[test]
    fn a_host_that_is_gone_is_known_as_long_as_its_endpoints_linger() {
        let mut view = View::default();
        let addresses = vec!["10.0.0.9".parse().unwrap()];
        view.alive.insert("b".into(), (1, HostState { addresses, ..HostState::default() }));
        claim(&mut view, "b", "vm", 1, false);
        let mut others = Others::default();
        others.elsewhere(&view, "a", |_| None);
        view.alive.clear();
        assert_eq!(others.elsewhere(&view, "a", |_| None).hosts["b"].addresses.len(), 1);
        view.endpoints.clear();
        assert!(others.elsewhere(&view, "a", |_| None).is_empty());
    }
}
