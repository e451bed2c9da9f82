//! Policy on a datapath, from resources as users write them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use vnet_agent::datapath::Datapath;
use vnet_agent::elsewhere::{ByAddress, Elsewhere, RemoteEndpoint};
use vnet_agent::observe::Names;
use vnet_agent::policy::apply::Applier;
use vnet_agent::policy::ids::RuleIds;
use vnet_agent::policy::live::Tables;
use vnet_agent::policy::plan::Assignment;
use vnet_agent::policy::{HostKind, Image, Inputs, Led, Previous, Subject, Written};
use vnet_agent::resource::{self, Resource};
use vnet_common::api::File;
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_common::lb::LocalKey;
use vnet_common::policy::AddressKey;

/// An endpoint: name, device (0: elsewhere), address and group; with `!` after it, that holds it.
pub type Endpoint<'a> = (&'a str, u32, IpAddr, &'a str);

pub fn subject((name, device, address, group): &Endpoint<'_>) -> Subject {
    Subject {
        name: (*name).into(),
        labels: Arc::default(),
        addresses: vec![*address],
        learned: Vec::new(),
        group: group.trim_end_matches('!').into(),
        local: *device != 0,
        held: group.ends_with('!'),
        network: 0,
    }
}

/// The image that follows from resources.
pub fn compile(yaml: &str, subjects: Vec<Subject>, hosts: &[IpAddr]) -> Image {
    let parsed = resource::parse(&[File { name: "policy.yaml".into(), text: yaml.into() }]);
    let resources: Vec<Resource> = parsed.unwrap_or_else(|f| panic!("{f:#?}")).into_iter().map(|l| l.resource).collect();
    let (mut groups, mut policies) = (Vec::new(), Vec::new());
    for resource in &resources {
        match resource {
            Resource::SecurityGroup(g) => groups.push(g),
            Resource::Policy(p) => policies.push(p),
            other => panic!("{} is no policy", other.kind()),
        }
    }
    let led = |_: &str| Vec::new();
    let elsewhere = subjects.iter().any(|s| s.held).then_some(&led as &dyn Fn(&str) -> Vec<Led>);
    let written = Written { groups, policies, origins: &HashMap::new(), targets: &|_| Vec::new(), elsewhere };
    let hosts = hosts.iter().map(|a| (*a, HostKind::This)).collect();
    let inputs = Inputs { written, subjects, hosts, networks: vec![] };
    let start = Previous::Start { ids: &RuleIds::default(), tables: &Tables::default() };
    Image::compile(&inputs, start).unwrap_or_else(|e| panic!("{e}"))
}

/// The number of the identity that endpoints elsewhere have there.
pub const THERE: u32 = 0x0002_0010;

/// What everything is called. Who is elsewhere is on host `b`.
pub fn names(image: &Image, endpoints: &[Endpoint<'_>], id: impl Fn(&str) -> u32) -> Names {
    let (here, there): (Vec<&Endpoint<'_>>, Vec<&Endpoint<'_>>) = endpoints.iter().partition(|e| e.1 != 0);
    let far = |e: &&Endpoint<'_>| {
        let Subject { labels, addresses, group, held, .. } = subject(e);
        let (host, quarantined) = ("b".into(), held);
        Arc::new(RemoteEndpoint { host, labels, addresses, given: true, group, quarantined, identity: THERE })
    };
    let elsewhere =
        Elsewhere { endpoints: Arc::new(there.iter().map(|e| (e.0.into(), far(e))).collect()), ..Elsewhere::default() };
    Names {
        endpoints: Arc::new(here.iter().map(|e| (id(e.0), e.0.into())).collect()),
        addresses: Arc::new(here.iter().map(|e| (e.2, e.0.into())).collect()),
        elsewhere: Arc::new(ByAddress::new(Arc::new(elsewhere))),
        rules: image.rules_by_number(),
        ..Names::default()
    }
}

pub fn key(address: IpAddr) -> AddressKey {
    let mut addr = [0; 16];
    match address {
        IpAddr::V4(a) => addr[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => addr = a.octets(),
    }
    AddressKey { network: 0, version: if address.is_ipv4() { 4 } else { 6 }, addr }
}

/// Puts the image in force: endpoints of this host have numbers from 100 on, in their order.
pub fn enforce(d: &Arc<Datapath>, image: &Image, endpoints: &[Endpoint<'_>]) {
    let maps = d.maps();
    maps.set_flow_quota(100_000).unwrap();
    for (slot, (_, device, address, _)) in (0..).zip(endpoints.iter().filter(|e| e.1 != 0)) {
        let there = maps.endpoint(*device).unwrap().unwrap_or_default();
        maps.set_endpoint(&EndpointRow { id: 100 + slot, slot, ifindex: *device, mtu: 1500, ..there }).unwrap();
        let AddressKey { network, version, addr } = key(*address);
        maps.put_local(&LocalKey { network, version, addr }, *device).unwrap();
    }
    let device = |name: &str| endpoints.iter().find(|e| e.0 == name).map(|e| e.1).unwrap();
    let mut switch = |assignments: &[&Assignment]| {
        for a in assignments {
            let there = maps.endpoint(device(&a.name))?.unwrap();
            let bits = if a.policed { flags::POLICED | flags::NEIGHBORS | flags::CHECK_IP } else { 0 };
            maps.set_endpoint(&EndpointRow { set: a.set, identity: a.identity, flags: bits, ..there })?;
        }
        Ok(())
    };
    let mut applier = Applier::default();
    let plan = applier.plan(d, image).unwrap_or_else(|e| panic!("{e}"));
    applier.run(d, plan, &mut switch).unwrap_or_else(|e| panic!("{e:#}"));
}
