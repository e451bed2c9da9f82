//! The host's network devices and neighbours, as netlink tells them.
//!
//! Every message of the kernel only says "look again": the state is then read anew and handed on whole, so that a lost or
//! reordered message cannot leave a wrong picture. Devices that went away are named beside it: their index may already
//! belong to another one.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// After the first message of a burst, for the rest of it.
const SETTLE: Duration = Duration::from_millis(2);
/// Between two readings: neighbours of a busy host change all the time.
const PACE: Duration = Duration::from_millis(50);

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
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
    /// The host's own addresses, each once, in order.
    pub addresses: Vec<IpAddr>,
    /// Indices of devices that went away since the snapshot before; some may have been given to new devices.
    pub gone: Vec<u32>,
}

/// Sends a snapshot now and after every change, until the receiver is dropped.
///
/// # Errors
/// When netlink cannot be opened or read.
pub async fn watch(to: mpsc::Sender<Snapshot>) -> Result<()> {
    // Subscribe first: what changes while the first snapshot is read is told again.
    let groups = [MulticastGroup::Link, MulticastGroup::Neigh, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) =
        rtnetlink::new_multicast_connection(&groups).context("opening netlink to follow network devices")?;
    tokio::spawn(connection);
    let mut gone = Vec::new();
    loop {
        let mut snapshot = read(&handle).await?;
        snapshot.gone = std::mem::take(&mut gone);
        if to.send(snapshot).await.is_err() {
            return Ok(());
        }
        let next = Instant::now() + PACE;
        let Some((first, _)) = messages.next().await else { anyhow::bail!("netlink was closed") };
        note_gone(&first.payload, &mut gone);
        // A message about a device is not made to wait for the pace of the neighbours.
        let mut urgent = is_link(&first.payload);
        while let Ok(Some((message, _))) = timeout(SETTLE, messages.next()).await {
            note_gone(&message.payload, &mut gone);
            urgent |= is_link(&message.payload);
            if Instant::now() > next {
                break;
            }
        }
        if !urgent {
            sleep_until(next).await;
        }
    }
}

fn is_link(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelLink, NewLink};
    matches!(payload, NetlinkPayload::InnerMessage(NewLink(_) | DelLink(_)))
}

fn note_gone(payload: &NetlinkPayload<RouteNetlinkMessage>, gone: &mut Vec<u32>) {
    // A bridge also says "deleted" of a port that merely leaves it, in a message of its own family.
    if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) = payload
        && u8::from(link.header.interface_family) == 0
    {
        gone.push(link.header.index);
    }
}

/// Reads everything.
///
/// # Errors
/// When the kernel does not answer.
pub async fn read(handle: &Handle) -> Result<Snapshot> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.context("listing network devices")?;
    let neighbors: Vec<NeighbourMessage> =
        handle.neighbours().get().execute().try_collect().await.context("listing neighbours")?;
    let mut devices: Vec<Device> = links.iter().filter_map(device).collect();
    devices.sort_by_key(|d| d.ifindex);
    let neighbors = neighbors.iter().filter_map(neighbor).collect();
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.context("listing this host's addresses")?;
    let mut addresses: Vec<IpAddr> = addresses.iter().filter_map(address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(Snapshot { devices, neighbors, addresses, gone: Vec::new() })
}

/// The host's own end; of a point-to-point device, the other is said too.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let of = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(a) if local => Some(*a),
            AddressAttribute::Address(a) if !local => Some(*a),
            _ => None,
        })
    };
    of(true).or_else(|| of(false))
}

fn device(link: &LinkMessage) -> Option<Device> {
    let mut d = Device {
        name: String::new(),
        ifindex: link.header.index,
        mac: [0; 6],
        mtu: 0,
        master: 0,
        is_bridge: false,
        peer_elsewhere: false,
    };
    let (mut is_veth, mut peer_namespace) = (false, false);
    for a in &link.attributes {
        match a {
            LinkAttribute::IfName(name) => d.name.clone_from(name),
            LinkAttribute::Address(mac) => d.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => d.mtu = *mtu,
            LinkAttribute::Controller(master) => d.master = *master,
            LinkAttribute::LinkNetNsId(_) => peer_namespace = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => d.is_bridge = true,
                        LinkInfo::Kind(InfoKind::Veth) => is_veth = true,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    d.peer_elsewhere = is_veth && peer_namespace;
    (!d.name.is_empty()).then_some(d)
}

fn neighbor(message: &NeighbourMessage) -> Option<Neighbor> {
    if matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::Noarp) {
        return None;
    }
    let (mut address, mut mac): (_, Option<[u8; 6]>) = (None, None);
    for a in &message.attributes {
        match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(m) => mac = m.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let (address, mac) = (address?, mac?);
    let multicast = address.is_multicast() || mac == [0; 6] || mac[0] & 1 != 0;
    (!multicast).then_some(Neighbor { ifindex: message.header.ifindex, address, mac })
}
