//! Endpoints of other hosts: as rules see them, and what of that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Agent, State};
use crate::elsewhere::{ByAddress, Elsewhere, RemoteEndpoint};
use crate::policy::{Image, Subject};

impl Agent {
    /// What is known of other hosts and their endpoints changed: this is all of it. Rules, load balancers and names follow.
    ///
    /// What follows the store calls it by itself; for whoever has no store.
    pub fn elsewhere_changed(&self, elsewhere: Elsewhere) {
        self.event(|s| s.elsewhere_changed(elsewhere));
    }
}

impl State {
    /// What is known of other hosts and their endpoints changed: this is all of it. Rules, load balancers and names follow.
    ///
    /// It is called with what was known last before the first look at devices, too: what is in force is made from what is known by then,
    /// and nobody held elsewhere is to be let in meanwhile. Nothing is written before that.
    pub(super) fn elsewhere_changed(&mut self, elsewhere: Elsewhere) {
        if *self.policy.inputs().elsewhere == elsewhere {
            return;
        }
        let elsewhere = Arc::new(elsewhere);
        let here = self.policy.set_elsewhere(Arc::clone(&elsewhere));
        if self.policy.known().is_some() {
            self.follow_elsewhere(here);
        }
        self.parts.observer.names.update(|names| names.elsewhere = Arc::new(ByAddress::new(elsewhere)));
    }

    /// Brings what depends on other hosts after it. `here`: other endpoints are on this host.
    fn follow_elsewhere(&mut self, here: bool) {
        if here {
            self.tell();
        }
        self.policy.refresh();
        self.secure(false);
        self.follow(false);
    }
}

/// Endpoints of other hosts as rules see them. `is_here`: is there an endpoint of this name on this host?
pub fn subjects(elsewhere: &Elsewhere, is_here: impl Fn(&str) -> bool) -> impl Iterator<Item = Subject> {
    elsewhere.endpoints.iter().map(move |(name, e)| subject(name, e, is_here(name)))
}

/// The name that an endpoint of another host has here. Where one of this host has the same, both stay: with the addresses that only the
/// other host gives it, it is the endpoint that the other host says; an address that both give it is that of the one here, if neither was
/// given or both were. No name of a resource or device has a space.
fn name_here(name: &Arc<str>, endpoint: &RemoteEndpoint, is_here: bool) -> Arc<str> {
    if is_here { format!("{name} on {}", endpoint.host).into() } else { Arc::clone(name) }
}

fn subject(name: &Arc<str>, endpoint: &RemoteEndpoint, is_here: bool) -> Subject {
    let addresses = endpoint.addresses.clone();
    let (addresses, learned) = if endpoint.given { (addresses, Vec::new()) } else { (Vec::new(), addresses) };
    Subject {
        name: name_here(name, endpoint, is_here),
        labels: Arc::clone(&endpoint.labels),
        addresses,
        learned,
        group: Arc::clone(&endpoint.group),
        local: false,
        held: endpoint.quarantined,
        network: 0,
    }
}

/// What rules see differently, of all endpoints: those that changed or are new, and the names of those that are gone. The image was made of
/// `before`; `here` are the endpoints that are on this host now.
pub fn changes(
    image: &Image,
    here: Vec<Subject>,
    before: &Arc<Elsewhere>,
    after: &Arc<Elsewhere>,
) -> (Vec<Subject>, Vec<Arc<str>>) {
    let differs = |s: &Subject| image.endpoint(&s.name).is_none_or(|placed| placed.subject != *s);
    let is: BTreeSet<Arc<str>> = here.iter().map(|s| Arc::clone(&s.name)).collect();
    let was: BTreeSet<Arc<str>> = image.locals().map(|(placed, _)| Arc::clone(&placed.subject.name)).collect();
    let mut names: BTreeSet<&Arc<str>> = is.symmetric_difference(&was).filter(|n| before.has(n) || after.has(n)).collect();
    if !Arc::ptr_eq(before, after) {
        names.extend(before.differing(after));
    }
    let mut gone: BTreeSet<Arc<str>> = was.difference(&is).cloned().collect();
    let mut changed: BTreeMap<Arc<str>, Subject> = BTreeMap::new();
    for name in names {
        if let Some(e) = before.endpoints.get(name) {
            gone.insert(name_here(name, e, was.contains(name)));
        }
        if let Some(e) = after.endpoints.get(name) {
            let subject = subject(name, e, is.contains(name));
            changed.insert(Arc::clone(&subject.name), subject);
        }
    }
    changed.extend(here.into_iter().map(|s| (Arc::clone(&s.name), s)));
    gone.retain(|name| !changed.contains_key(name));
    (changed.into_values().filter(differs).collect(), gone.into_iter().collect())
}

#[cfg(test)]
mod tests;
