//! From netlink messages to what they mean.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::{Device, Mac, Neighbor};

/// The index of the device that a message is about. `None`: it is about a device's part in a bridge or another family; in
/// these a "deleted" link is one that left its bridge.
pub fn link_index(message: &LinkMessage) -> Option<u32> {
    (message.header.interface_family == AddressFamily::Unspec).then_some(message.header.index)
}

/// The device that a message describes.
pub fn device(message: &LinkMessage) -> Option<Device> {
    let mut device = Device {
        ifindex: link_index(message)?,
        name: String::new(),
        kind: String::new(),
        mac: None,
        mtu: 0,
        master: None,
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        peer_elsewhere: false,
    };
    let mut other_namespace = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(bytes) => device.mac = Mac::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Controller(index) => device.master = Some(*index).filter(|i| *i != 0),
            LinkAttribute::LinkNetNsId(_) => other_namespace = true,
            LinkAttribute::LinkInfo(infos) => device.kind = kind(infos),
            _ => {}
        }
    }
    device.peer_elsewhere = other_namespace && device.kind == "veth";
    Some(device)
}

fn kind(infos: &[LinkInfo]) -> String {
    let found = infos.iter().find_map(|i| if let LinkInfo::Kind(kind) = i { Some(kind) } else { None });
    found.map(InfoKind::to_string).unwrap_or_default()
}

/// The neighbour that a message is about, and whether it is there.
pub fn neighbor(message: &NeighbourMessage) -> Option<(Neighbor, bool)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let bridge = message.header.family == AddressFamily::Bridge;
    let known = match message.header.state {
        // Not resolved (yet, or any more).
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None => false,
        // Of a bridge: its ports' own addresses, and static ones of others. Else: addresses that are computed (multicast).
        NeighbourState::Permanent => !bridge,
        NeighbourState::Noarp => bridge,
        _ => true,
    };
    let known = known && mac.is_some();
    if bridge == address.is_some() || (bridge && mac.is_none()) {
        return None;
    }
    Some((Neighbor { ifindex: message.header.ifindex, address, mac: mac.unwrap_or_default() }, known))
}
