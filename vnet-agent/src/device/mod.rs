//! The host's network devices and its neighbours, as netlink tells about them.
//!
//! [`Monitor`] subscribes first and reads what there is then, so that nothing is missed between the two; when the kernel
//! could not deliver events because too many came at once, it reads everything anew.

mod monitor;
mod parse;

use std::net::IpAddr;

pub use monitor::Monitor;

/// A MAC address.
pub type Mac = [u8; 6];

/// A network device of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index. Another device may get it when this one is gone.
    pub ifindex: u32,
    /// Its name; may change.
    pub name: String,
    /// `veth`, `tun`, `bridge`…; empty for hardware.
    pub kind: String,
    /// Its own MAC.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The bridge (or bond, or VRF) that it belongs to.
    pub master: Option<u32>,
    /// It is switched on and has a carrier.
    pub up: bool,
    /// A veth whose other end is in another network namespace.
    pub peer_elsewhere: bool,
}

/// Who answers to an address, or is behind a port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Neighbor {
    /// The device, or the port of the bridge.
    pub ifindex: u32,
    /// Its address; `None` if a bridge learned the MAC on this port.
    pub address: Option<IpAddr>,
    /// Its MAC.
    pub mac: Mac,
}

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device is there, or is not as it was.
    Device(Device),
    /// A device is gone: deleted, or moved to another namespace. A [`Event::Device`] of the same index that follows is
    /// another device.
    DeviceGone(u32),
    /// A neighbour is there, or has another MAC.
    Neighbor(Neighbor),
    /// A neighbour is gone.
    NeighborGone(Neighbor),
}
