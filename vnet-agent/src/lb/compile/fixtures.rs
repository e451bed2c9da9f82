//! Resources for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::resource::{
    API_VERSION, Delivery, LoadBalancer, LoadBalancerSpec, Member as MemberSpec, Metadata, OnMemberRemoved, OnNoMember, Protocol,
};

/// An address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A member with default settings.
pub fn member(address: &str) -> MemberSpec {
    MemberSpec { name: None, address: ip(address), port: None, weight: 1, mac: None }
}

/// A load balancer of TCP port 80 with default settings.
pub fn lb(name: &str, vips: &[&str], members: Vec<MemberSpec>) -> LoadBalancer {
    let spec = LoadBalancerSpec {
        vips: vips.iter().map(|v| ip(v)).collect(),
        protocol: Protocol::Tcp,
        ports: vec![80],
        members,
        member_selector: None,
        delivery: Delivery::Stack,
        on_no_member: OnNoMember::Reject,
        on_member_removed: OnMemberRemoved::Reset,
        health_check: None,
    };
    LoadBalancer { api_version: API_VERSION.into(), metadata: Metadata { name: name.into(), labels: BTreeMap::new() }, spec }
}
