//! This host's devices and neighbours, as far as endpoints and members need them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::lb::compile::Mac;

/// One network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Differs for every device that ever had this index.
    pub instance: u64,
    /// The MAC of the host's side.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// The bridge that it is a port of, or 0.
    pub bridge: u32,
    /// It is a veth whose peer is in another network namespace.
    pub peer_elsewhere: bool,
    /// The MAC that is behind it, if that is known for sure.
    pub known_mac: Option<Mac>,
}

impl Device {
    /// The same device, with what a resource says is behind it.
    pub fn with_mac(&self, mac: Option<Mac>) -> Self {
        Self { known_mac: mac.or(self.known_mac), ..self.clone() }
    }
}

/// Devices and neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Devices by index.
    pub devices: BTreeMap<u32, Device>,
    /// The neighbour table: MACs by device and address.
    pub neighbours: HashMap<(u32, IpAddr), Mac>,
    /// The bridges' forwarding tables: ports by bridge and MAC.
    pub ports: HashMap<(u32, Mac), u32>,
}

impl World {
    /// The MAC and addresses of who is behind a device, as far as they were learned.
    pub fn behind(&self, device: &Device) -> (Mac, Vec<IpAddr>) {
        let mac = device.known_mac.or_else(|| self.learned_mac(device));
        let Some(mac) = mac else { return Default::default() };
        let segment = if device.bridge != 0 { device.bridge } else { device.ifindex };
        let here = self.neighbours.iter().filter(|((on, _), m)| *on == segment && **m == mac);
        let mut addresses: Vec<IpAddr> = here.map(|((_, ip), _)| *ip).filter(|ip| !is_link_local(ip)).collect();
        addresses.sort_unstable();
        (mac, addresses)
    }

    /// The one MAC behind a device; with several (a VM that bridges itself), none is the endpoint's for sure.
    fn learned_mac(&self, device: &Device) -> Option<Mac> {
        let mut macs: Vec<Mac> = if device.bridge != 0 {
            let on_port = self.ports.iter().filter(|((bridge, _), port)| *bridge == device.bridge && **port == device.ifindex);
            on_port.map(|((_, mac), _)| *mac).collect()
        } else {
            self.neighbours.iter().filter(|((on, _), _)| *on == device.ifindex).map(|(_, mac)| *mac).collect()
        };
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
