//! Other hosts, and what is there: from the store to what rules and load balancers follow from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use vnet_common::fleet::{EndpointState, HostState};

use super::super::State;
use super::Sharing;
use crate::elsewhere::{Elsewhere, RemoteEndpoint, RemoteHost, qualified};
use crate::observe::Saying;

/// What was made of others' endpoints: made again only of those that changed.
#[derive(Debug, Default)]
pub(super) struct Others {
    made: HashMap<(String, String), (Arc<EndpointState>, Arc<RemoteEndpoint>)>,
    /// Hosts that are alive, or have been while their endpoints linger.
    hosts: BTreeMap<String, HostState>,
    /// Endpoints that several hosts claim, as they were told last.
    pub conflicts: BTreeSet<String>,
}

impl Sharing {
    fn elsewhere(&mut self, placed: impl Fn(&str) -> Option<String>) -> Elsewhere {
        let Self { view, others, fleet, .. } = self;
        let own = fleet.host();
        others.hosts.extend(view.alive.iter().map(|(host, (_, state))| (host.clone(), state.clone())));
        let lingering: BTreeSet<&String> = view.endpoints.values().flat_map(|claims| claims.keys()).collect();
        others.hosts.retain(|host, _| view.alive.contains_key(host) || lingering.contains(host));
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
                let known = others.made.get(&key).filter(|(from, _)| Arc::ptr_eq(from, state));
                let remote = known.map_or_else(|| Arc::new(remote(host, state)), |(_, remote)| Arc::clone(remote));
                elsewhere.endpoints.insert(qualified(host, name, state.discovered), Arc::clone(&remote));
                made.insert(key, (Arc::clone(state), remote));
            }
        }
        others.made = made;
        for (host, state) in others.hosts.iter().filter(|(host, _)| *host != own) {
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

impl State {
    /// Brings what depends on other hosts after what the store says of them.
    pub(in super::super) fn follow_others(&mut self) {
        let Some(mut sharing) = self.sharing.take() else { return };
        let inputs = self.policy.inputs();
        let elsewhere = sharing.elsewhere(|name| inputs.placed(name).map(str::to_owned));
        self.sharing = Some(sharing);
        self.elsewhere_changed(elsewhere);
        self.look_for_conflicts();
    }

    fn look_for_conflicts(&mut self) {
        let Some(sharing) = self.sharing.as_mut() else { return };
        let inputs = self.policy.inputs();
        let own = sharing.fleet.host();
        let mut said = BTreeSet::new();
        for (name, owner, others) in sharing.view.conflicts(|name| inputs.placed(name).map(str::to_owned)) {
            let text = format!(
                "endpoint {name} is claimed by host {owner} and by {}: that of {owner} counts, which its resource names or which had it first",
                others.join(", ")
            );
            if !sharing.others.conflicts.contains(&text) && (owner == own || others.iter().any(|o| o == own)) {
                log::warn!("{text}");
                self.parts.observer.events.say(Saying::Store, &name, "conflict", text.clone());
            }
            said.insert(text);
        }
        sharing.others.conflicts = said;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::view::View;
    use crate::fleet::{Fleet, Settings};
    use vnet_common::etcd::Access;

    fn sharing(tag: &str, view: View) -> (Sharing, std::path::PathBuf) {
        let dir = std::env::temp_dir().join(format!("vnet-others-{}-{tag}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let settings = Settings { access: Access::new("etcd://localhost:1", None).unwrap(), host: "a".into() };
        let mut sharing = Sharing::new(Fleet::open(settings, &dir).unwrap());
        sharing.view = view;
        (sharing, dir)
    }

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
        let (mut sharing, dir) = sharing("owner", view);
        let names = |e: &Elsewhere| e.endpoints.iter().map(|(n, e)| format!("{n}@{}", e.host)).collect::<Vec<_>>().join(" ");
        let first = sharing.elsewhere(|_| None);
        assert_eq!(names(&first), "b/tap0@b c/tap0@c vm1@c vm3@gone");
        let placed = |name: &str| (name == "vm1").then(|| "b".to_owned());
        assert_eq!(names(&sharing.elsewhere(placed)), "b/tap0@b c/tap0@c vm1@b vm3@gone");
        // What did not change is the same value, not only an equal one.
        claim(&mut sharing.view, "c", "vm1", 2, false);
        let second = sharing.elsewhere(|_| None);
        assert!(Arc::ptr_eq(&first.endpoints["b/tap0"], &second.endpoints["b/tap0"]));
        assert!(!Arc::ptr_eq(&first.endpoints["vm1"], &second.endpoints["vm1"]));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_host_that_is_gone_is_known_as_long_as_its_endpoints_linger() {
        let mut view = View::default();
        let addresses = vec!["10.0.0.9".parse().unwrap()];
        view.alive.insert("b".into(), (1, HostState { addresses, ..HostState::default() }));
        claim(&mut view, "b", "vm", 1, false);
        let (mut sharing, dir) = sharing("linger", view);
        sharing.elsewhere(|_| None);
        sharing.view.alive.clear();
        assert_eq!(sharing.elsewhere(|_| None).hosts["b"].addresses.len(), 1);
        sharing.view.endpoints.clear();
        assert!(sharing.elsewhere(|_| None).is_empty());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
