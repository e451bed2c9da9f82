//! All that the datapath follows from, and what follows: which devices are endpoints, and which groups there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use vnet_common::endpoint::flags;

use super::glob::Pattern;
use super::world::World;
use crate::device::Device;
use crate::elsewhere::Elsewhere;
use crate::lb::compile::{Context, Group, Local, Mac, Neighbour, Surroundings, compile};
use crate::lb::eject::Ejected;
use crate::lb::feedback::Hints;
use crate::lb::health::{Check, Health};
use crate::resource::{
    AntiSpoofing, Endpoint, EndpointSpec, LoadBalancer, Origin, Policy, Resource, SecurityGroup, TagSource, parse_mac,
};
use crate::store::MemberOverride;

/// Kind and name.
pub type Key = (String, String);

/// Resources by kind and name.
pub type Resources = BTreeMap<Key, Resource>;

/// Kind and name of a resource.
pub fn key(r: &Resource) -> Key {
    (r.kind().to_owned(), r.name().to_owned())
}

/// Everything that the datapath follows from.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// What users applied.
    pub resources: Resources,
    /// What operators changed, by load balancer and member name.
    pub overrides: HashMap<(String, String), MemberOverride>,
    /// The devices and neighbours of this host.
    pub world: World,
    /// Devices that are endpoints without a resource.
    pub attach: Vec<Pattern>,
    /// Devices that endpoints were given at run time, instead of those that their resources name.
    pub bindings: HashMap<String, String>,
    /// Where resources were written.
    pub origins: HashMap<Key, Origin>,
    /// What is known of the members' health.
    pub health: HashMap<Check, (Health, Option<String>)>,
    /// This host's name in its fleet.
    pub host: Option<String>,
    /// Endpoints that are to be on another host, and are still here: until their device is gone they have their rules here.
    pub staying: BTreeSet<String>,
    /// This host's zone.
    pub zone: Option<String>,
    /// Members that are out, since their connections failed.
    pub ejected: Ejected,
    /// The other hosts, and their endpoints.
    pub elsewhere: Arc<Elsewhere>,
    /// What load feedback says of members.
    pub feedback: Hints,
}

/// An endpoint, discovered or configured, whether its device is there or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// The resource's name, or the device's.
    pub name: String,
    /// Whether no resource names it.
    pub discovered: bool,
    /// The name of the host-side device.
    pub device: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its MAC; zero when not known.
    pub mac: Mac,
    /// Its addresses, configured or learned.
    pub addresses: Vec<IpAddr>,
    /// The device, if it is there, and no other endpoint's.
    pub link: Option<Device>,
    /// The bridge that the device is a port of, or 0.
    pub segment: u32,
    /// That bridge's MAC, or the device's own.
    pub host_mac: Mac,
    /// Its addresses were given, not learned.
    pub given: bool,
    /// What its resource says of it beyond rules: bits of [`EndpointRow::flags`](vnet_common::endpoint::EndpointRow::flags).
    pub guards: u16,
}

impl Nic {
    /// The device's index; 0 while there is none.
    pub fn ifindex(&self) -> u32 {
        self.link.as_ref().map_or(0, |d| d.ifindex)
    }

    fn as_member(&self) -> Local {
        Local {
            name: self.name.clone(),
            labels: self.labels.clone(),
            addresses: self.addresses.clone(),
            ifindex: self.ifindex(),
            segment: self.segment,
            mac: self.mac,
        }
    }
}

impl Inputs {
    /// The load balancers.
    pub fn load_balancers(&self) -> impl Iterator<Item = &LoadBalancer> {
        self.resources.values().filter_map(|r| match r {
            Resource::LoadBalancer(lb) => Some(lb),
            _ => None,
        })
    }

    /// The security groups.
    pub fn groups(&self) -> impl Iterator<Item = &SecurityGroup> {
        self.resources.values().filter_map(|r| match r {
            Resource::SecurityGroup(group) => Some(group),
            _ => None,
        })
    }

    /// Is there a quarantine group of this name?
    pub fn has_quarantine(&self, name: &str) -> bool {
        self.groups().any(|g| g.metadata.name == name && g.spec.quarantine.is_some())
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.resources.values().filter_map(|r| match r {
            Resource::Policy(policy) => Some(policy),
            _ => None,
        })
    }

    /// The tag sources.
    pub fn tag_sources(&self) -> impl Iterator<Item = &TagSource> {
        self.resources.values().filter_map(|r| match r {
            Resource::TagSource(source) => Some(source),
            _ => None,
        })
    }

    /// The host that an endpoint's resource says it is on.
    pub fn placed(&self, endpoint: &str) -> Option<&str> {
        match self.resources.get(&("Endpoint".to_owned(), endpoint.to_owned())) {
            Some(Resource::Endpoint(e)) => e.spec.host.as_deref(),
            _ => None,
        }
    }

    /// Forgets those of [`Inputs::staying`] whose device is gone.
    pub fn let_go(&mut self) {
        let staying = std::mem::take(&mut self.staying);
        let is_here = |name: &String| match self.resources.get(&("Endpoint".to_owned(), name.clone())) {
            Some(Resource::Endpoint(e)) => self.world.devices.values().any(|d| d.name == self.device_of(e)),
            _ => false,
        };
        self.staying = staying.into_iter().filter(is_here).collect();
    }

    fn endpoint_resources(&self) -> impl Iterator<Item = &Endpoint> {
        self.resources.values().filter_map(|r| match r {
            // Without a fleet there is no other host that it could be on.
            Resource::Endpoint(e) if self.host.is_none() || e.spec.host.is_none() || e.spec.host == self.host => Some(e),
            Resource::Endpoint(e) if self.staying.contains(&e.metadata.name) => Some(e),
            _ => None,
        })
    }

    /// Every endpoint of this host: those with a resource, and the devices that match a pattern. One with a resource whose device is not
    /// here, and which another host has, is none.
    pub fn endpoints(&self) -> Vec<Nic> {
        let owners = self.owners();
        let devices: HashMap<&str, &Device> = self.world.devices.values().map(|d| (d.name.as_str(), d)).collect();
        let link = |e: &Endpoint| {
            let device = self.device_of(e);
            devices.get(device).copied().filter(|_| owners.get(device) == Some(&e.metadata.name.as_str()))
        };
        let resources = self.endpoint_resources().map(|e| (e, link(e)));
        let here = resources.filter(|(e, link)| link.is_some() || !self.elsewhere.has(&e.metadata.name));
        let mut nics: Vec<Nic> = here.map(|(e, link)| self.configured(e, link)).collect();
        let matching = |d: &&Device| self.attach.iter().any(|p| p.matches(&d.name)) && !owners.contains_key(d.name.as_str());
        for device in self.world.devices.values().filter(matching) {
            nics.push(Nic { discovered: true, ..self.nic(&device.name, &device.name, Some(device), None, &[]) });
        }
        nics
    }

    /// Which endpoint has a device, of those with a resource. To be bound to it goes before to be named with it; of equals, the
    /// first name has it: the rules of two would take turns on it.
    pub fn owners(&self) -> HashMap<&str, &str> {
        let is_bound = |e: &&Endpoint| self.bindings.contains_key(&e.metadata.name);
        let (bound, others): (Vec<&Endpoint>, Vec<&Endpoint>) = self.endpoint_resources().partition(is_bound);
        let mut owners = HashMap::new();
        for e in bound.into_iter().chain(others) {
            owners.entry(self.device_of(e)).or_insert(e.metadata.name.as_str());
        }
        owners
    }

    fn device_of<'a>(&'a self, e: &'a Endpoint) -> &'a str {
        self.bindings.get(&e.metadata.name).unwrap_or(&e.spec.device)
    }

    fn configured(&self, e: &Endpoint, link: Option<&Device>) -> Nic {
        let (name, device) = (e.metadata.name.as_str(), self.device_of(e));
        let mac = e.spec.mac.as_deref().and_then(parse_mac);
        let nic = self.nic(name, device, link, mac, &e.spec.addresses);
        Nic { labels: e.metadata.labels.clone(), given: !e.spec.addresses.is_empty(), guards: guards(&e.spec), ..nic }
    }

    fn nic(&self, name: &str, device: &str, link: Option<&Device>, mac: Option<Mac>, addresses: &[IpAddr]) -> Nic {
        let nic = Nic { name: name.into(), device: device.into(), ..Nic::default() };
        let Some(link) = link else {
            return Nic { mac: mac.unwrap_or_default(), addresses: addresses.to_vec(), ..nic };
        };
        let (mac, addresses) = self.world.behind(link, mac, addresses);
        let bridge = self.world.bridge_of(link);
        let (segment, host_mac) = (bridge.map_or(0, |b| b.ifindex), bridge.unwrap_or(link).mac);
        Nic { mac, addresses, link: Some(link.clone()), segment, host_mac, ..nic }
    }

    /// Where members may be, given these endpoints.
    pub fn surroundings(&self, endpoints: &[Nic]) -> Surroundings {
        let segments: HashSet<u32> = endpoints.iter().map(|n| n.segment).filter(|s| *s != 0).collect();
        let on_segment = self.world.neighbours.iter().filter(|((device, _), _)| segments.contains(device));
        let neighbours = on_segment.map(|((segment, ip), mac)| (*ip, Neighbour { segment: *segment, mac: *mac })).collect();
        Surroundings::new(endpoints.iter().map(Nic::as_member).collect(), &neighbours, Arc::clone(&self.elsewhere))
    }

    /// The load balancer of this name, and the groups that it should have.
    pub fn compile(&self, name: &str, surroundings: &Surroundings) -> (Option<&LoadBalancer>, Vec<Group>) {
        let context = Context {
            overrides: &self.overrides,
            health: &self.health,
            ejected: &self.ejected,
            feedback: &self.feedback,
            surroundings,
            zone: self.zone.as_deref(),
            load_balancer: &|name| self.load_balancer(name),
        };
        match self.load_balancer(name) {
            Some(lb) => (Some(lb), compile(lb, context)),
            None => (None, Vec::new()),
        }
    }

    /// The load balancer of this name.
    pub fn load_balancer(&self, name: &str) -> Option<&LoadBalancer> {
        match self.resources.get(&load_balancer_key(name)) {
            Some(Resource::LoadBalancer(lb)) => Some(lb),
            _ => None,
        }
    }

    /// Adds the load balancers that have members of one of `names`, of those that have, and so on.
    pub fn add_containing(&self, names: &mut BTreeSet<String>) {
        let containing: Vec<&LoadBalancer> = self.load_balancers().filter(|lb| !lb.spec.member_groups.is_empty()).collect();
        loop {
            let has = |lb: &&&LoadBalancer| lb.spec.member_groups.iter().any(|g| names.contains(&g.load_balancer));
            let more = containing.iter().filter(|lb| !names.contains(&lb.metadata.name)).filter(has);
            let more: Vec<String> = more.map(|lb| lb.metadata.name.clone()).collect();
            if more.is_empty() {
                return;
            }
            names.extend(more);
        }
    }

    /// Puts resources into the place of others, or takes them away; gives what undoes it.
    pub fn replace(&mut self, resources: Vec<(Key, Option<Resource>)>) -> Vec<(Key, Option<Resource>)> {
        let swap = |(key, new): (Key, Option<Resource>)| {
            let old = match new {
                Some(new) => self.resources.insert(key.clone(), new),
                None => self.resources.remove(&key),
            };
            (key, old)
        };
        let mut undo: Vec<_> = resources.into_iter().map(swap).collect();
        undo.reverse();
        undo
    }
}

/// What is checked of an endpoint's packets, and what it may beyond others.
fn guards(spec: &EndpointSpec) -> u16 {
    let (mac, ip) = match spec.anti_spoofing {
        AntiSpoofing::Off => (false, false),
        AntiSpoofing::Strict => (true, true),
        AntiSpoofing::Auto => (spec.mac.is_some(), !spec.addresses.is_empty()),
    };
    let bit = |on: bool, bit: u16| if on { bit } else { 0 };
    bit(mac, flags::CHECK_MAC)
        | bit(ip && !spec.router, flags::CHECK_IP)
        | bit(spec.router, flags::ROUTER)
        | bit(spec.allow_tunnels, flags::TUNNELS)
}

/// The key of the endpoint of this name.
pub fn endpoint_key(name: &str) -> Key {
    ("Endpoint".to_owned(), name.to_owned())
}

/// The key of the load balancer of this name.
pub fn load_balancer_key(name: &str) -> Key {
    ("LoadBalancer".to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::compile::fixtures::{lb, member};
    use crate::resource::{API_VERSION, EndpointSpec, Metadata};

    fn device(name: &str, ifindex: u32, master: u32) -> Device {
        let mac = [0x0A, 0, 0, 0, 0, ifindex as u8];
        Device { name: name.into(), ifindex, mac, mtu: 1500, master, is_bridge: name == "br0", peer_elsewhere: false }
    }

    fn endpoint(name: &str, device: &str) -> Endpoint {
        let metadata =
            Metadata { name: name.into(), labels: BTreeMap::from([("app".into(), "web".into())]), resource_version: None };
        let spec = EndpointSpec { device: device.into(), ..EndpointSpec::default() };
        Endpoint { api_version: API_VERSION.into(), metadata, spec }
    }

    fn inputs(endpoints: Vec<Endpoint>) -> Inputs {
        let mut world = World::default();
        for d in [device("eth0", 2, 0), device("br0", 3, 0), device("tap1", 4, 3), device("tap2", 5, 0)] {
            world.devices.insert(d.ifindex, d);
        }
        let mac = |n: u8| [2, 0, 0, 0, 0, n];
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        world.neighbours =
            HashMap::from([((3, ip(1)), mac(1)), ((3, ip(9)), mac(9)), ((5, ip(2)), mac(2)), ((2, ip(3)), mac(3))]);
        let resources = endpoints.into_iter().map(Resource::Endpoint).map(|r| (key(&r), r)).collect();
        Inputs { resources, world, attach: vec!["tap*".parse().unwrap()], ..Inputs::default() }
    }

    #[test]
    fn devices_that_match_are_endpoints_with_what_was_learned() {
        let nics = inputs(vec![]).endpoints();
        let got: Vec<_> = nics.iter().map(|n| (n.name.as_str(), n.ifindex(), n.segment, n.mac[5], n.addresses.clone())).collect();
        assert_eq!(got, [("tap1", 4, 3, 0, vec![]), ("tap2", 5, 0, 2, vec![[10, 0, 0, 2].into()])]);
        assert!(nics.iter().all(|n| n.discovered));
        assert_eq!((nics[0].host_mac[5], nics[1].host_mac[5]), (3, 5), "the bridge's, or the device's own");
    }

    #[test]
    fn resources_name_devices_and_say_what_cannot_be_learned() {
        let (mut by_address, mut by_mac, mut other) = (endpoint("vm1", "tap1"), endpoint("vm2", "tap3"), endpoint("vm9", "tap2"));
        by_address.spec.addresses = vec![[10, 0, 0, 9].into()];
        by_mac.spec.mac = Some("02:00:00:00:00:01".into());
        other.spec.mac = Some("02:00:00:00:00:07".into());
        let mut i = inputs(vec![by_address, by_mac, endpoint("vm3", "eth0"), endpoint("vm5", "gone"), other]);
        i.world.devices.insert(6, device("tap3", 6, 3));
        let nics = i.endpoints();
        let last = |n: &Nic| n.addresses.first().map_or(0, |a| if let IpAddr::V4(a) = a { a.octets()[3] } else { 0 });
        let got: Vec<_> = nics.iter().map(|n| (n.name.as_str(), n.device.as_str(), n.ifindex(), n.mac[5], last(n))).collect();
        assert_eq!(
            got,
            [
                ("vm1", "tap1", 4, 9, 9),
                ("vm2", "tap3", 6, 1, 1),
                ("vm3", "eth0", 2, 3, 3),
                ("vm5", "gone", 0, 0, 0),
                ("vm9", "tap2", 5, 7, 0)
            ]
        );
        assert!(nics.iter().all(|n| n.labels["app"] == "web" && !n.discovered));
    }

    #[test]
    fn a_device_has_one_endpoint() {
        let mut i = inputs(vec![endpoint("alpha", "tap8"), endpoint("beta", "tap1"), endpoint("zeta", "tap9")]);
        let mut links = |bindings: &[(&str, &str)]| {
            i.bindings = bindings.iter().map(|(e, d)| ((*e).to_owned(), (*d).to_owned())).collect();
            let nics = i.endpoints();
            nics.iter().map(|n| format!("{} {}", n.name, n.ifindex())).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(links(&[]), "alpha 0, beta 4, zeta 0, tap2 5");
        assert_eq!(links(&[("zeta", "tap1")]), "alpha 0, beta 0, zeta 4, tap2 5");
        assert_eq!(links(&[("zeta", "tap1"), ("beta", "tap2")]), "alpha 0, beta 5, zeta 4");
        assert_eq!(links(&[("alpha", "tap1"), ("zeta", "tap1")]), "alpha 4, beta 0, zeta 0, tap2 5");
        assert_eq!(links(&[("gone", "tap1")]), "alpha 0, beta 4, zeta 0, tap2 5", "nobody's binding");
    }

    #[test]
    fn an_endpoint_is_where_its_device_is() {
        let mut i = inputs(vec![endpoint("here", "tap1"), endpoint("there", "tap8"), endpoint("nowhere", "tap9")]);
        let elsewhere = ["here", "there"].map(|name| (name, crate::elsewhere::fixtures::endpoint("b", "default", &[])));
        i.elsewhere = Arc::new(crate::elsewhere::fixtures::elsewhere(elsewhere.into()));
        let names: Vec<String> = i.endpoints().into_iter().map(|n| n.name).collect();
        assert_eq!(names, ["here", "nowhere", "tap2"]);
    }

    #[test]
    fn neighbours_count_on_bridges_of_endpoints_only() {
        let mut i = inputs(vec![]);
        let lb = Resource::LoadBalancer(lb("x", &["10.1.0.1"], vec![member("10.0.0.3"), member("10.0.0.9")]));
        i.resources.insert(key(&lb), lb);
        let (_, groups) = i.compile("x", &i.surroundings(&i.endpoints()));
        let segments: Vec<u32> = groups[0].members.iter().map(|m| m.place.segment).collect();
        assert_eq!(segments, [0, 3], "10.0.0.3 is behind a device that is no bridge");
    }
}
