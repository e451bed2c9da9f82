//! Other hosts, and what is there: from the store's keys to what rules and load balancers follow from.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vnet_common::fleet::{EndpointState, HostState};

use super::claims::At;
use super::holds::Newest;
use super::view::View;
use crate::elsewhere::{Elsewhere, RemoteEndpoint, RemoteHost, qualified};

/// What was made of others' endpoints: made again only of those that changed.
#[derive(Debug, Default)]
pub struct Others {
    made: Elsewhere,
    /// Hosts that are alive, or have been while their endpoints linger.
    hosts: BTreeMap<String, HostState>,
}

impl Others {
    /// What is elsewhere, seen from the host `own`. `changed` are the claims that changed since the last time, `placed` gives the host that
    /// an endpoint's resource names.
    pub fn elsewhere(
        &mut self,
        view: &View,
        own: &str,
        changed: &BTreeSet<At>,
        placed: impl Fn(&str) -> Option<String>,
    ) -> Elsewhere {
        for (name, host) in changed.iter().filter(|(_, host)| host != own) {
            let claim = view.endpoints.of(name).and_then(|claims| claims.get(host));
            let state = claim.map(|(_, state)| &**state).filter(|state| state.discovered);
            self.put(qualified(host, name, true), state.map(|state| (host.as_str(), state)));
        }
        // Of several claims, which one counts depends on who is alive, and on resources.
        let names: BTreeSet<&str> = changed.iter().map(|(name, _)| name.as_str()).collect();
        for name in names.into_iter().chain(view.endpoints.contested().map(|(name, _)| name)) {
            let owner = view.owner(name, placed(name).as_deref()).filter(|host| *host != own);
            let claim = owner.and_then(|host| Some((host, &*view.endpoints.of(name)?.get(host)?.1)));
            // Only endpoints with a resource are one and the same wherever they are.
            let claim = claim.filter(|(_, state)| !state.discovered);
            let standing = claim.and_then(|(host, state)| {
                let others = Newest::of_others(view.endpoints.of(name), host, Some(host));
                Some((host, standing(state, &others)?))
            });
            self.put(name.into(), standing.as_ref().map(|(host, state)| (*host, &**state)));
        }
        self.hosts.extend(view.alive.iter().map(|(host, (_, state))| (host.clone(), state.clone())));
        self.hosts.retain(|host, _| view.alive.contains_key(host) || view.endpoints.is_host(host));
        let drained = |host: &str| view.registered.get(host).is_some_and(|r| r.drained);
        let hosts = self.hosts.iter().filter(|(host, _)| *host != own).map(|(host, state)| {
            let remote = RemoteHost { addresses: state.addresses.clone(), zone: state.zone.clone(), drained: drained(host) };
            (host.clone(), remote)
        });
        self.made.hosts = hosts.collect();
        self.made.drained = drained(own);
        self.made.clone()
    }

    /// An endpoint is on a host, or (`None`) on none other than this.
    fn put(&mut self, name: Arc<str>, claim: Option<(&str, &EndpointState)>) {
        let there = self.made.endpoints.get(&name);
        let remote = claim.map(|(host, state)| remote(host, state));
        // What is the same stays the same value: it is known by that.
        if there.map(|there| &**there) == remote.as_ref() {
            return;
        }
        let endpoints = Arc::make_mut(&mut self.made.endpoints);
        match remote {
            Some(remote) => drop(endpoints.insert(name, Arc::new(remote))),
            None => drop(endpoints.remove(&name)),
        }
    }
}

/// What counts of an endpoint whose claim this is, by what others say of who holds it; `None`: it is nowhere, and nobody does.
fn standing<'a>(state: &'a EndpointState, others: &Newest<'a>) -> Option<Cow<'a, EndpointState>> {
    let mut standing = Cow::Borrowed(state);
    if let Some(holder) = others.holds(state) {
        let of = standing.to_mut();
        (of.group, of.identity, of.quarantined) = (holder.group.clone(), holder.identity, true);
    }
    if state.gone {
        // It is known by its addresses, unless others have these by now, and takes no part beyond that.
        let of = standing.to_mut();
        (of.labels, of.given) = (Arc::default(), false);
        return standing.quarantined.then_some(standing);
    }
    Some(standing)
}

fn remote(host: &str, state: &EndpointState) -> RemoteEndpoint {
    RemoteEndpoint {
        host: host.into(),
        labels: Arc::clone(&state.labels),
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
        view.endpoints.put(name, host, Some((since, state)));
    }

    fn elsewhere(others: &mut Others, view: &mut View, placed: impl Fn(&str) -> Option<String>) -> Elsewhere {
        let changed = view.endpoints.take_changed();
        let step_by_step = others.elsewhere(view, "a", &changed, &placed);
        // As if all of it were new.
        let all = view.endpoints.names().flat_map(|(name, claims)| claims.keys().map(|host| (name.clone(), host.clone())));
        let at_once = Others { hosts: others.hosts.clone(), ..Others::default() }.elsewhere(view, "a", &all.collect(), placed);
        assert_eq!(step_by_step, at_once);
        step_by_step
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
        let first = elsewhere(&mut others, &mut view, |_| None);
        assert_eq!(names(&first), "b/tap0@b c/tap0@c vm1@c vm3@gone");
        let placed = |name: &str| (name == "vm1").then(|| "b".to_owned());
        assert_eq!(names(&elsewhere(&mut others, &mut view, placed)), "b/tap0@b c/tap0@c vm1@b vm3@gone");
        // What did not change is the same value, not only an equal one.
        claim(&mut view, "c", "tap0", 2, true);
        let changed = EndpointState { group: "other".into(), ..EndpointState::default() };
        view.endpoints.put("vm1", "c", Some((2, changed)));
        let second = elsewhere(&mut others, &mut view, |_| None);
        for same in ["b/tap0", "c/tap0", "vm3"] {
            assert!(Arc::ptr_eq(&first.endpoints[same], &second.endpoints[same]), "{same}");
        }
        assert_eq!(&*second.endpoints["vm1"].group, "other");
        // Who is alive, and what resources say, counts where several claim one.
        view.alive.remove("c");
        assert_eq!(names(&elsewhere(&mut others, &mut view, |_| None)), "b/tap0@b c/tap0@c vm1@b vm3@gone");
        view.endpoints.put("vm2", "a", None);
        view.endpoints.put("tap0", "b", None);
        claim(&mut view, "b", "vm3", 1, true);
        assert_eq!(names(&elsewhere(&mut others, &mut view, |_| None)), "b/vm3@b c/tap0@c vm1@b vm2@b");
    }

    #[test]
    fn who_was_held_before_it_came_is_held_until_the_host_that_has_it_says_otherwise() {
        let mut view = View::default();
        let mut put = |host: &str, since: i64, state: Option<EndpointState>| {
            view.alive.insert(host.into(), (1, HostState::default()));
            view.endpoints.put("vm", host, state.map(|state| (since, state)));
            let found = elsewhere(&mut Others::default(), &mut view, |_| None).endpoints.get("vm").cloned();
            found.map(|e| (e.host.to_string(), e.group.to_string(), e.quarantined, e.labels.len(), e.given))
        };
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let of = |group: &str, turn: u32, gone: bool| {
            let (group, quarantined) = (group.to_owned(), group == "strict");
            Some(EndpointState {
                group,
                quarantined,
                turn,
                gone,
                labels: labels.clone().into(),
                given: true,
                ..EndpointState::default()
            })
        };
        let is = |host: &str, group: &str, labels: usize, given: bool| {
            Some((host.to_owned(), group.to_owned(), group == "strict", labels, given))
        };
        assert_eq!(put("b", 1, of("strict", 1, true)), is("b", "strict", 0, false), "it is nowhere");
        assert_eq!(put("c", 2, of("web", 0, false)), is("c", "strict", 1, true), "c has not heard of it");
        assert_eq!(put("d", 3, of("strict", 7, true)), is("c", "strict", 1, true));
        assert_eq!(put("c", 2, of("web", 2, false)), is("c", "web", 1, true), "let go; d never had it");
        assert_eq!(put("b", 1, of("strict", 1, false)), is("b", "strict", 1, true), "back where it was, and not heard of that");
        assert_eq!(put("b", 1, of("web", 2, true)), is("c", "web", 1, true));
        assert_eq!(put("c", 2, of("web", 2, true)), None, "nowhere, and not held by who had it");
    }

    #[test]
    fn a_host_that_is_gone_is_known_as_long_as_its_endpoints_linger() {
        let mut view = View::default();
        let addresses = vec!["10.0.0.9".parse().unwrap()];
        view.alive.insert("b".into(), (1, HostState { addresses, ..HostState::default() }));
        claim(&mut view, "b", "vm", 1, false);
        let mut others = Others::default();
        elsewhere(&mut others, &mut view, |_| None);
        view.alive.clear();
        assert_eq!(elsewhere(&mut others, &mut view, |_| None).hosts["b"].addresses.len(), 1);
        view.endpoints.put("vm", "b", None);
        assert!(elsewhere(&mut others, &mut view, |_| None).is_empty());
    }
}
