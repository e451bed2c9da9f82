//! The host's network devices and neighbours, as netlink tells about them.
//!
//! [`watch`] subscribes first and reads what there is then, so that nothing is missed between the two; when the kernel
//! could not deliver changes because too many came at once, everything is read anew.

mod monitor;
mod parse;

use std::net::IpAddr;

use anyhow::Result;
use tokio::sync::mpsc;

/// A network device of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name; may change.
    pub name: String,
    /// Its index: unique among the devices there are now.
    pub ifindex: u32,
    /// Its own MAC; zero if it has none.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The device it is a port of (a bridge), or 0.
    pub master: u32,
    /// It is a bridge.
    pub is_bridge: bool,
    /// It is a veth whose peer is in another network namespace.
    pub peer_elsewhere: bool,
}

/// An entry of the neighbour table: who answers for an address behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// The device.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: [u8; 6],
}

/// All there is at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Devices, by index.
    pub devices: Vec<Device>,
    /// Neighbours with a usable MAC.
    pub neighbors: Vec<Neighbor>,
    /// Indices of devices that went away since the snapshot before; some may have been given to new devices.
    pub gone: Vec<u32>,
}

/// Sends a snapshot now and after every change, until the receiver is dropped. Follows the network namespace of the thread
/// that calls it first.
///
/// # Errors
/// When netlink cannot be opened or read.
pub async fn watch(to: mpsc::Sender<Snapshot>) -> Result<()> {
    let mut monitor = monitor::Monitor::start()?;
    while to.send(monitor.next().await?).await.is_ok() {}
    Ok(())
}
