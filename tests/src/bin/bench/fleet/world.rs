//! What there is in a simulated fleet: the same in the benchmark and in its agents.

use std::net::{IpAddr, SocketAddr};
use vnet_agent::fleet::load::{Aim, Group, Settings};
use vnet_agent::policy::Subject;
use vnet_agent::resource::Resource;
use vnet_common::fleet::{MemberKey, MemberLoad};
use vnet_tests::policy::{Scale, World};

/// Endpoints of a host.
pub const ENDPOINTS: u32 = 100;
/// Security groups, and rules of groups and policies.
const GROUPS: u32 = 100;
const RULES: u32 = 1000;
/// Members of load balancers, and those of them that a host's report is about.
const MEMBERS: u32 = 100;
const LOADED: u32 = 20;
const PORT: u16 = 443;

/// Hosts with endpoints, and rules about them.
pub struct Estate {
    /// How many hosts.
    pub hosts: u32,
    /// The store's revision that agents have to come to.
    pub revision: i64,
    world: World,
}

impl Estate {
    /// Of so many hosts.
    pub fn new(hosts: u32) -> Self {
        let scale = Scale { endpoints: hosts * ENDPOINTS, local: 0, groups: GROUPS, rules: RULES };
        Self { hosts, revision: 0, world: World::new(scale) }
    }

    /// All endpoints.
    pub fn endpoints(&self) -> u32 {
        self.hosts * ENDPOINTS
    }

    /// The endpoints of a host, as that one sees them.
    pub fn subjects(&self, host: u32) -> impl Iterator<Item = Subject> {
        let first = (host * ENDPOINTS) as usize;
        self.world.subjects[first..first + ENDPOINTS as usize].iter().map(|s| Subject { local: true, ..s.clone() })
    }

    /// What is desired.
    pub fn resources(&self) -> impl Iterator<Item = Resource> {
        let groups = self.world.groups.iter().cloned().map(Resource::SecurityGroup);
        groups.chain(self.world.policies.iter().cloned().map(Resource::Policy))
    }
}

/// A host's name.
pub fn host_name(host: u32) -> String {
    format!("sim-{host}")
}

/// The groups of members, ten each, whose weights follow the load.
pub fn groups() -> Vec<Group> {
    let settings = Settings { aim: Aim::LeastLoad, gain: 0.5, damping: 0.5, min: 0.5, max: 2.0 };
    let group = |n: u32| Group {
        lb: format!("web-{n}"),
        port: PORT,
        zone: None,
        settings,
        members: (n * 10..n * 10 + 10).map(|m| (member(m).at, 100)).collect(),
    };
    (0..MEMBERS / 10).map(group).collect()
}

/// What a host's clients do with members in a window: with a part of them, and never the same.
pub fn loads(host: u32, serial: u64) -> Vec<(MemberKey, MemberLoad)> {
    let load = |m: u32| {
        let new = 100 + (serial * 7 + u64::from(m)) % 50;
        let (active, packets, bytes) = (new * 3, new * 100, new * 80_000);
        MemberLoad { new, ended: new - 3, active, packets, bytes, resets: 1, connected: new, connect_us: new * 900 }
    };
    (0..LOADED).map(|m| (host * 3 + m) % MEMBERS).map(|m| (member(m), load(m))).collect()
}

fn member(number: u32) -> MemberKey {
    let [.., last] = number.to_be_bytes();
    MemberKey { lb: format!("web-{}", number / 10), port: PORT, at: SocketAddr::new(IpAddr::from([10, 129, 0, last]), 8443) }
}
