//! What the mirror's keys say.

use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use vnet_common::fleet::{Applied, DESIRED, EndpointState, Global, HealthReport, HostState, Key, Registration, Rollout, Stored};

use super::claims::{Claim, Claims};
use super::identities::Identities;
use super::mirror::{Mirror, Moment};

/// Kind and name of a resource.
pub type Name = (String, String);

/// The keys, read. Changed by what changed: with ten thousand endpoints nobody wants to read all of them because of one.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How far the mirror had come of which this is.
    pub moment: Moment,
    /// What is desired, and cannot be read: what to say of it, by its key.
    pub unreadable: BTreeMap<String, String>,
    /// What is desired of resources, with the revision of each.
    pub resources: BTreeMap<Name, (i64, Stored)>,
    /// What was changed of members: load balancer and member.
    pub overrides: BTreeMap<(String, String), (i64, serde_json::Value)>,
    /// Hosts that may take part.
    pub registered: BTreeMap<String, Registration>,
    /// Changes that only some hosts have.
    pub rollouts: BTreeMap<String, Rollout>,
    /// Hosts that keep their lease, and since which revision.
    pub alive: BTreeMap<String, (i64, HostState)>,
    /// How far hosts have come.
    pub applied: BTreeMap<String, Applied>,
    /// What hosts know of members' health.
    pub health: BTreeMap<String, HealthReport>,
    /// What hosts say the fleet's load is.
    pub globals: BTreeMap<String, Global>,
    /// Where endpoints are.
    pub endpoints: Claims,
    /// What numbers of identities stand for.
    pub identities: Identities,
}

/// What changed of a [`View`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Resources, overrides or rollouts.
    pub desired: bool,
    /// Who there is.
    pub hosts: bool,
    /// How far hosts have come.
    pub applied: bool,
    /// What hosts know of members' health.
    pub health: bool,
    /// The fleet's load.
    pub globals: bool,
    /// Where endpoints are, and what they are.
    pub endpoints: bool,
    /// What numbers stand for.
    pub identities: bool,
    /// Flows of endpoints that move.
    pub moving: bool,
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl View {
    /// Reads a value. What a host said and cannot be read is as if it were not there; what is desired is wrong with it.
    fn read<T: DeserializeOwned>(&mut self, key: &str, value: &[u8]) -> Option<T> {
        let e = match serde_json::from_slice(value) {
            Ok(value) => return Some(value),
            Err(e) => e,
        };
        let about = format!("the store has something at {key} that this agent cannot read: {e}");
        match key.starts_with(DESIRED) {
            true => drop(self.unreadable.insert(key.to_owned(), about)),
            false => log::error!("{about}; it goes on without it"),
        }
        None
    }

    /// These keys of the mirror changed.
    pub fn update(&mut self, mirror: &Mirror, keys: &BTreeSet<String>) -> Touched {
        let mut touched = Touched::default();
        self.moment = mirror.moment();
        for text in keys {
            let Some(key) = Key::parse(text) else { continue };
            self.take(mirror, text, key, &mut touched);
        }
        touched
    }

    fn take(&mut self, mirror: &Mirror, text: &str, key: Key, touched: &mut Touched) {
        let entry = mirror.get(text);
        self.unreadable.remove(text);
        macro_rules! value {
            () => {
                entry.and_then(|e| self.read(text, &e.value))
            };
            (modified) => {
                entry.and_then(|e| Some((e.modified, self.read(text, &e.value)?)))
            };
            (created) => {
                entry.and_then(|e| Some((e.created, self.read(text, &e.value)?)))
            };
        }
        match key {
            Key::Resource(kind, name) => {
                touched.desired = true;
                let value = value!(modified);
                put(&mut self.resources, (kind, name), value);
            }
            Key::Override(lb, member) => {
                touched.desired = true;
                let value = value!(modified);
                put(&mut self.overrides, (lb, member), value);
            }
            Key::Rollout(name) => {
                touched.desired = true;
                let value = value!();
                put(&mut self.rollouts, name, value);
            }
            Key::Registration(host) => {
                touched.hosts = true;
                let value = value!();
                put(&mut self.registered, host, value);
            }
            Key::Alive(host) => {
                touched.hosts = true;
                let value = value!(created);
                put(&mut self.alive, host, value);
            }
            Key::Applied(host) => {
                touched.applied = true;
                let value = value!();
                put(&mut self.applied, host, value);
            }
            Key::Health(host) => {
                touched.health = true;
                let value = value!();
                put(&mut self.health, host, value);
            }
            Key::Global(host) => {
                touched.globals = true;
                let value = value!();
                put(&mut self.globals, host, value);
            }
            Key::Endpoint(host, name) => {
                touched.endpoints = true;
                let value = value!(created);
                self.endpoints.put(&name, &host, value);
            }
            Key::Identity(host, number) => {
                touched.identities = true;
                let value = value!(created);
                self.identities.put(&host, number, value);
            }
            Key::Moving(..) => touched.moving = true,
            Key::Load(_) => {}
        }
    }

    /// The host that does for all what one has to do: of those that are alive, registered and not drained, the one that has been alive
    /// for the longest. Every host that has heard the same gives the same answer.
    #[must_use]
    pub fn elected(&self) -> Option<&str> {
        let may = |host: &String| self.registered.get(host).is_some_and(|r| !r.drained);
        let candidates = self.alive.iter().filter(|(host, _)| may(host));
        candidates.min_by_key(|(host, (since, _))| (*since, host.as_str())).map(|(host, _)| host.as_str())
    }

    /// The host whose claim of an endpoint counts: of those that have a device of it the one that its resource names (`placed`), if that
    /// claims it; else the one that is alive and has claimed it first.
    #[must_use]
    pub fn owner(&self, name: &str, placed: Option<&str>) -> Option<&str> {
        let claims = self.endpoints.of(name)?;
        let rank = |(host, (since, state)): &(&String, &Claim)| {
            (state.gone, placed != Some(host.as_str()), !self.alive.contains_key(*host), *since, (*host).clone())
        };
        claims.iter().min_by_key(rank).map(|(host, _)| host.as_str())
    }

    /// The endpoints with a resource that several living hosts claim: name, whose it is, and who else claims it.
    #[must_use]
    pub fn conflicts(&self, placed: impl Fn(&str) -> Option<String>) -> Vec<(String, String, Vec<String>)> {
        let mut all = Vec::new();
        for (name, claims) in self.endpoints.contested() {
            let has = |state: &EndpointState| !state.discovered && !state.gone;
            let living = claims.iter().filter(|(host, (_, state))| has(state) && self.alive.contains_key(*host));
            let living: Vec<&String> = living.map(|(host, _)| host).collect();
            let Some(owner) = self.owner(name, placed(name).as_deref()).filter(|_| living.len() > 1) else { continue };
            let others = living.into_iter().filter(|host| *host != owner).cloned().collect();
            all.push((name.to_owned(), owner.to_owned(), others));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnet_common::etcd::{Change, Entry};

    /// A mirror and its view, changed together.
    #[derive(Default)]
    struct Both(Mirror, View, i64);

    impl Both {
        fn put(&mut self, key: &Key, value: &str) -> Touched {
            self.2 += 1;
            let created = self.0.get(&key.to_string()).map_or(self.2, |e| e.created);
            let entry = Entry { value: value.into(), created, modified: self.2, lease: 0 };
            self.change(key, Some(entry))
        }
        fn delete(&mut self, key: &Key) -> Touched {
            self.2 += 1;
            self.change(key, None)
        }
        fn change(&mut self, key: &Key, entry: Option<Entry>) -> Touched {
            let keys = self.0.apply(vec![Change { key: key.to_string(), entry, revision: self.2 }], self.2);
            self.1.update(&self.0, &keys.into_iter().collect())
        }
    }

    fn alive(host: &str) -> Key {
        Key::Alive(host.into())
    }
    const HOST: &str = r#"{"version":"1","addresses":[],"capacity":9,"later":true}"#;

    #[test]
    fn the_oldest_living_host_that_may_is_elected() {
        let mut both = Both::default();
        for host in ["c", "b", "a"] {
            both.put(&Key::Registration(host.into()), r#"{"number":1}"#);
            both.put(&alive(host), HOST);
        }
        both.put(&alive("stranger"), HOST);
        assert_eq!(both.1.elected(), Some("c"));
        // It writes again, and stays what it is.
        both.put(&alive("c"), HOST);
        assert_eq!(both.1.elected(), Some("c"));
        both.put(&Key::Registration("c".into()), r#"{"number":1,"drained":true}"#);
        assert_eq!(both.1.elected(), Some("b"));
        both.delete(&alive("b"));
        assert_eq!(both.1.elected(), Some("a"));
        both.put(&alive("b"), HOST);
        assert_eq!(both.1.elected(), Some("a"), "back, but younger");
        both.delete(&alive("a"));
        both.delete(&alive("b"));
        assert_eq!(both.1.elected(), None);
    }

    #[test]
    fn an_endpoint_has_one_owner_whoever_asks() {
        let mut both = Both::default();
        let claim = |host: &str| Key::Endpoint(host.into(), "vm".into());
        let state = r#"{"group":"default","identity":0}"#;
        for host in ["a", "b"] {
            both.put(&alive(host), HOST);
        }
        assert_eq!(both.1.owner("vm", None), None);
        both.put(&claim("b"), state);
        both.put(&claim("a"), state);
        assert_eq!(both.1.owner("vm", None), Some("b"), "who was first");
        both.put(&claim("b"), state);
        assert_eq!(both.1.owner("vm", None), Some("b"));
        assert_eq!(both.1.owner("vm", Some("a")), Some("a"), "its resource says so");
        assert_eq!(both.1.owner("vm", Some("c")), Some("b"), "c does not have it");
        assert_eq!(both.1.conflicts(|_| None), [("vm".to_owned(), "b".to_owned(), vec!["a".to_owned()])]);
        both.delete(&alive("b"));
        assert_eq!(both.1.owner("vm", None), Some("a"), "a host that is gone keeps nobody from a new one");
        assert_eq!(both.1.conflicts(|_| None), []);
        both.delete(&claim("a"));
        assert_eq!(both.1.owner("vm", None), Some("b"), "its endpoints linger");
        both.delete(&claim("b"));
        assert_eq!((both.1.owner("vm", None), both.1.endpoints.names().count()), (None, 0));
    }

    #[test]
    fn what_cannot_be_read_is_wrong_if_it_is_desired_and_else_not_there() {
        let mut both = Both::default();
        assert!(both.put(&alive("a"), HOST).hosts);
        assert!(both.1.alive.contains_key("a"));
        both.put(&alive("a"), "{");
        assert!(!both.1.alive.contains_key("a"));
        assert!(both.1.unreadable.is_empty());
        let desired = [
            Key::Resource("Policy".into(), "p".into()),
            Key::Override("lb".into(), "m".into()),
            Key::Rollout("r".into()),
            Key::Registration("a".into()),
        ];
        for key in &desired {
            both.put(key, "{");
            assert!(both.1.unreadable.remove(&key.to_string()).is_some_and(|said| said.contains(&key.to_string())), "{key}");
            both.put(key, "[");
        }
        assert_eq!(both.1.unreadable.len(), desired.len());
        both.put(&desired[0], r#"{"resource":{}}"#);
        both.delete(&desired[1]);
        both.put(&desired[2], r#"{"hosts":[],"put":[],"bases":[]}"#);
        both.put(&desired[3], r#"{"number":1}"#);
        assert!(both.1.unreadable.is_empty());
        let unknown = BTreeSet::from(["/vnet/v1/state/later/a".to_owned()]);
        assert_eq!(both.1.update(&both.0, &unknown), Touched::default());
        assert_eq!(both.1.moment, both.0.moment());
    }
}
