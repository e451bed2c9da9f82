//! What the numbers and addresses in rows stand for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use vnet_common::api::RuleRef;
use vnet_common::policy::identity;

use crate::elsewhere::{ByAddress, RemoteEndpoint};

/// Names, as of some moment. Cheap to copy; who changes one kind of names shares the others.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Endpoints of this host by their numbers.
    pub endpoints: Arc<HashMap<u32, Arc<str>>>,
    /// Endpoints of this host by their addresses in the default network.
    pub addresses: Arc<HashMap<IpAddr, Arc<str>>>,
    /// Those of other hosts likewise.
    pub elsewhere: Arc<ByAddress>,
    /// What addresses of no endpoint are, by their identity: `world`, `unknown` or a host's, where rules name their networks.
    pub places: Arc<HashMap<u32, &'static str>>,
    /// Rules by their numbers.
    pub rules: Arc<HashMap<u32, Arc<RuleRef>>>,
    /// Load balancer and member by the member's row and serial.
    pub members: Arc<HashMap<(u32, u32), (String, String)>>,
}

impl Names {
    /// An endpoint of this host.
    pub fn endpoint(&self, number: u32) -> Arc<str> {
        let gone = || format!("(gone, number {number})").into();
        self.endpoints.get(&number).map_or_else(gone, Arc::clone)
    }

    /// The endpoint with this address, here or elsewhere.
    pub fn at(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.addresses.get(&address).or_else(|| self.elsewhere.all().get(&address).map(|(name, _)| name))
    }

    /// The endpoint of another host with this address, if none of this host has it.
    pub fn elsewhere(&self, address: IpAddr) -> Option<&(Arc<str>, Arc<RemoteEndpoint>)> {
        self.elsewhere.all().get(&address).filter(|_| !self.addresses.contains_key(&address))
    }

    /// The other side of a flow: an endpoint's name, or what its identity is called; empty if it has neither.
    pub fn peer(&self, address: IpAddr, identity: u32) -> Arc<str> {
        let place = || reserved(identity).or_else(|| self.places.get(&identity).copied()).unwrap_or_default().into();
        self.at(address).map_or_else(place, Arc::clone)
    }

    /// A rule. One that is no more is known by its number only.
    pub fn rule(&self, number: u32) -> Option<Arc<RuleRef>> {
        let gone = || Arc::new(RuleRef { id: number, rule: "(removed)".into(), ..RuleRef::default() });
        (number != 0).then(|| self.rules.get(&number).map_or_else(gone, Arc::clone))
    }
}

/// The name of an identity that is always there.
pub fn reserved(number: u32) -> Option<&'static str> {
    Some(match number {
        identity::UNKNOWN => "unknown",
        identity::HOST => "host",
        identity::REMOTE_HOST => "remote-host",
        identity::WORLD => "world",
        identity::HEALTH => "health",
        _ => return None,
    })
}

/// The names in force, for whoever needs some.
#[derive(Debug, Default)]
pub struct Directory(RwLock<Names>);

impl Directory {
    /// All names.
    pub fn get(&self) -> Names {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes some.
    pub fn update(&self, f: impl FnOnce(&mut Names)) {
        f(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elsewhere::fixtures::{elsewhere, endpoint};

    #[test]
    fn endpoints_of_this_host_come_before_those_of_others() {
        let a = |n: u8| IpAddr::from([10, 0, 0, n]);
        let others = elsewhere(vec![("b/tap0", endpoint("b", "g", &["10.0.0.1", "10.0.0.2"]))]);
        let names = Names {
            addresses: Arc::new(HashMap::from([(a(1), "vm1".into())])),
            elsewhere: Arc::new(ByAddress::new(Arc::new(others))),
            ..Names::default()
        };
        let peers = [1, 2, 3].map(|n| names.peer(a(n), identity::WORLD).to_string());
        assert_eq!(peers, ["vm1", "b/tap0", "world"]);
        let remote = [1, 2, 3].map(|n| names.elsewhere(a(n)).map(|(_, e)| e.host.to_string()));
        assert_eq!(remote, [None, Some("b".into()), None]);
    }
}
