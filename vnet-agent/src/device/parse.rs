//! From netlink messages to what they mean.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::{Device, Neighbor};

/// The index of the device that a message is about. `None`: it is about a device's part in a bridge or another family; in
/// these a "deleted" link is one that left its bridge.
pub fn link_index(message: &LinkMessage) -> Option<u32> {
    (message.header.interface_family == AddressFamily::Unspec).then_some(message.header.index)
}

/// The device that a message describes.
pub fn device(message: &LinkMessage) -> Option<Device> {
    let ifindex = link_index(message)?;
    let mut device =
        Device { name: String::new(), ifindex, mac: [0; 6], mtu: 0, master: 0, is_bridge: false, peer_elsewhere: false };
    let (mut is_veth, mut other_namespace) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(mac) => device.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Controller(master) => device.master = *master,
            LinkAttribute::LinkNetNsId(_) => other_namespace = true,
            LinkAttribute::LinkInfo(infos) => {
                device.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    device.peer_elsewhere = is_veth && other_namespace;
    (!device.name.is_empty()).then_some(device)
}

/// The address that a message is about, and the neighbour that has it, if one is known.
pub fn neighbor(message: &NeighbourMessage) -> Option<((u32, IpAddr), Option<Neighbor>)> {
    let (mut address, mut mac): (_, Option<[u8; 6]>) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    // What a bridge learned of its ports has no address, or that of a tunnel.
    let address = address.filter(|_| message.header.family != AddressFamily::Bridge)?;
    // Not resolved (yet, or any more), or computed from the address.
    let unusable = [NeighbourState::None, NeighbourState::Incomplete, NeighbourState::Failed, NeighbourState::Noarp];
    let mac = mac.filter(|mac| !unusable.contains(&message.header.state) && *mac != [0; 6] && mac[0] & 1 == 0);
    let ifindex = message.header.ifindex;
    Some(((ifindex, address), mac.map(|mac| Neighbor { ifindex, address, mac })))
}
