//! What this host says of itself and its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use vnet_common::fleet::{EndpointState, HostState, IdentityLabels, Key, STATE};

use super::identity::Numbers;
use super::view::View;
use super::{Fleet, Hold};

/// What is here.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// The host.
    pub host: HostState,
    /// Its endpoints by their names; the numbers of their identities are filled in when it is said.
    pub endpoints: Vec<(String, EndpointState)>,
}

/// Who is held stays so for its peers, however long this host is not heard of, and so does what is said for that only; the others go
/// after a while.
fn lasting(endpoint: &EndpointState) -> Hold {
    if endpoint.quarantined || endpoint.gone { Hold::Kept } else { Hold::Lingering }
}

impl Fleet {
    /// Says what is here, if it is not what was said before: all of it.
    ///
    /// # Errors
    /// Something cannot be written as JSON.
    pub fn say_here(&self, view: &View, numbers: &mut Numbers, here: Here, now: Instant) -> Result<()> {
        let host = self.host();
        let upper = view.registered.get(host).map(|r| r.number);
        let mut endpoints = BTreeMap::new();
        for (name, mut state) in here.endpoints {
            let labels = IdentityLabels { group: state.group.clone(), labels: (*state.labels).clone() };
            state.identity = numbers.number(view, host, upper, &labels);
            endpoints.insert(Key::Endpoint(host.to_owned(), name), state);
        }
        let ours: BTreeSet<u32> = endpoints.values().map(|state| state.identity).collect();
        let given = numbers.settle(view, &ours, now).iter();
        let given: BTreeMap<Key, IdentityLabels> =
            given.map(|(number, labels)| (Key::Identity(host.to_owned(), *number), labels.clone())).collect();
        self.say_all(&format!("{STATE}identities/{}/", Key::part(host)), &given, |_| Hold::Kept)?;
        self.say_all(&format!("{STATE}endpoints/{}/", Key::part(host)), &endpoints, lasting)?;
        self.say(&Key::Alive(host.to_owned()), Some(&here.host), Hold::Alive)?;
        self.said_all();
        Ok(())
    }
}
