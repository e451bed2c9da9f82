//! This host's devices and neighbours, as far as endpoints and members need them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::device::{Device, Snapshot};
use crate::lb::compile::Mac;

/// Devices and neighbours, indexed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Devices by index.
    pub devices: BTreeMap<u32, Device>,
    /// The neighbour table: MACs by device and address.
    pub neighbours: HashMap<(u32, IpAddr), Mac>,
    /// This host's own addresses.
    pub addresses: Vec<IpAddr>,
}

impl From<Snapshot> for World {
    fn from(s: Snapshot) -> Self {
        let devices = s.devices.into_iter().map(|d| (d.ifindex, d)).collect();
        let neighbours = s.neighbors.into_iter().map(|n| ((n.ifindex, n.address), n.mac)).collect();
        Self { devices, neighbours, addresses: s.addresses }
    }
}

impl World {
    /// The bridge that a device is a port of.
    pub fn bridge_of(&self, device: &Device) -> Option<&Device> {
        self.devices.get(&device.master).filter(|d| d.is_bridge)
    }

    /// The MAC and addresses behind a device: what a resource says, and what was learned where it says nothing.
    ///
    /// Behind a routed device whoever answers there is the endpoint. On a bridge the neighbour table does not say on which
    /// port someone is: the resource must give the MAC or an address.
    pub fn behind(&self, device: &Device, mac: Option<Mac>, addresses: &[IpAddr]) -> (Mac, Vec<IpAddr>) {
        let bridge = self.bridge_of(device);
        let segment = bridge.unwrap_or(device).ifindex;
        let by_address = || addresses.iter().find_map(|a| self.neighbours.get(&(segment, *a))).copied();
        let mac = mac.or_else(by_address).or_else(|| if bridge.is_none() { self.only_neighbour(segment) } else { None });
        let Some(mac) = mac else { return (Mac::default(), addresses.to_vec()) };
        if !addresses.is_empty() {
            return (mac, addresses.to_vec());
        }
        let here = self.neighbours.iter().filter(|((on, _), m)| *on == segment && **m == mac);
        let mut learned: Vec<IpAddr> = here.map(|((_, ip), _)| *ip).filter(|ip| !is_link_local(ip)).collect();
        learned.sort_unstable();
        (mac, learned)
    }

    /// The one MAC behind a routed device; with several, none is the endpoint's for sure.
    fn only_neighbour(&self, ifindex: u32) -> Option<Mac> {
        let mut macs: Vec<Mac> = self.neighbours.iter().filter(|((on, _), _)| *on == ifindex).map(|(_, mac)| *mac).collect();
        macs.sort_unstable();
        macs.dedup();
        if let [one] = macs.as_slice() { Some(*one) } else { None }
    }
}

/// Nobody connects to a member by such an address: it would need a scope.
fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
