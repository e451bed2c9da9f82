//! Resources for tests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::elsewhere::Elsewhere;
use crate::lb::compile::{Context, Desired, Local, Neighbour, Surroundings};
use crate::lb::eject::Ejected;
use crate::lb::feedback::Hints;
use crate::lb::health::{Check, Health};
use crate::resource::{
    API_VERSION, Algorithm, Delivery, HealthCheck, LoadBalancer, LoadBalancerSpec, Member as MemberSpec, Metadata,
    OnMemberRemoved, OnNoMember, Preference, Protocol,
};
use crate::store::MemberOverride;

/// An address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A member with default settings.
pub fn member(address: &str) -> MemberSpec {
    MemberSpec { name: None, address: ip(address), port: None, weight: 1, mac: None, zone: None, backup: false }
}

/// A load balancer of TCP port 80 with default settings.
pub fn lb(name: &str, vips: &[&str], members: Vec<MemberSpec>) -> LoadBalancer {
    let spec = LoadBalancerSpec {
        vips: vips.iter().map(|v| ip(v)).collect(),
        protocol: Protocol::Tcp,
        ports: vec![80],
        port_ranges: vec![],
        any_port: false,
        algorithm: Algorithm::Maglev,
        affinity: None,
        prefer: Preference::Any,
        min_healthy_percent: 0,
        slow_start_seconds: 0,
        members,
        member_selector: None,
        member_groups: vec![],
        delivery: Delivery::Stack,
        on_no_member: OnNoMember::Reject,
        on_member_removed: OnMemberRemoved::Reset,
        health_check: None,
        passive_health: None,
        feedback: None,
    };
    LoadBalancer {
        api_version: API_VERSION.into(),
        metadata: Metadata { name: name.into(), labels: BTreeMap::new(), resource_version: None },
        spec,
    }
}

/// A health check, as YAML.
pub fn health_check(yaml: &str) -> HealthCheck {
    serde_saphyr::from_str(yaml).unwrap()
}

/// Everything that groups follow from.
#[derive(Clone, Debug, Default)]
pub struct Input {
    pub load_balancers: Vec<LoadBalancer>,
    pub overrides: HashMap<(String, String), MemberOverride>,
    pub endpoints: Vec<Local>,
    pub neighbours: HashMap<IpAddr, Neighbour>,
    pub elsewhere: Elsewhere,
    pub down: HashSet<Check>,
    pub ejected: Ejected,
    pub feedback: Hints,
}

/// What follows from it.
pub fn compile(input: &Input) -> Desired {
    let surroundings = Surroundings::new(input.endpoints.clone(), &input.neighbours, Arc::new(input.elsewhere.clone()));
    let health = input.down.iter().map(|c| (c.clone(), (Health::Down, None))).collect();
    let find = |name: &str| input.load_balancers.iter().find(|lb| lb.metadata.name == name);
    let context = Context {
        overrides: &input.overrides,
        health: &health,
        ejected: &input.ejected,
        feedback: &input.feedback,
        surroundings: &surroundings,
        zone: None,
        load_balancer: &find,
    };
    let mut desired = Desired::default();
    for lb in &input.load_balancers {
        desired.put(&lb.metadata.name, Some(lb), super::compile(lb, context));
    }
    desired
}
