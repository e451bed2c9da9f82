//! The tables that rows start from: one client, VIPs with groups, members; further endpoints where a row wants them.

use std::net::IpAddr;

use vnet_common::addr::{V4, V6};
use vnet_common::endpoint::{EndpointRow, flags as endpoint_flags};
use vnet_common::hash;
use vnet_common::host::Maps;
use vnet_common::lb::{Filter, GroupRow, LocalKey, MemberRow, VipKey, VipRow, state};
use vnet_common::map::MAGLEV_BLOCK;

/// The client's host-side device: the one that BPF_PROG_TEST_RUN takes by default.
pub const CLIENT: u32 = 1;
/// Further devices, which the kernel runner makes.
pub const NEAR: u32 = 11;
pub const FAR: u32 = 12;
/// A device without an endpoint.
pub const STRANGER: u32 = 13;

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// Slots of the flow cache, a CPU; the kernel tests' thread stays on the first CPU, which has the first ones.
pub const CACHE_SLOTS: u32 = 32;
/// Blocks of the pick table that each group has.
const BLOCKS: u32 = 4;

/// An address in each family: `10.0.<net>.<host>`, `fd00::<net>:<host>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub fn ip(self, net: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from([10, 0, net, host]),
            Self::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, u16::from(net), u16::from(host)]),
        }
    }
    pub fn client(self) -> IpAddr {
        self.ip(0, 10)
    }
    pub fn vip(self) -> IpAddr {
        self.ip(9, 1)
    }
    /// Member number `n`, from 0.
    pub fn member(self, n: u8) -> IpAddr {
        self.ip(1, n + 1)
    }
    pub fn outside(self) -> IpAddr {
        self.ip(77, 7)
    }
}

/// 16 bytes, as in map rows.
pub fn wide(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(a) => {
            let mut b = [0; 16];
            b[..4].copy_from_slice(&a.octets());
            b
        }
        IpAddr::V6(a) => a.octets(),
    }
}

fn filter_hash(network: u32, addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(a) => hash::filter(network, &V4::from(a)),
        IpAddr::V6(a) => hash::filter(network, &V6::from(a)),
    }
}

/// The tables, and what is needed to go on building them.
#[derive(Debug, Default)]
pub struct World {
    pub maps: Maps,
}

impl World {
    /// A client on a routed device; no VIPs.
    pub fn new() -> Self {
        let mut w = Self { maps: Maps { cache_slots: CACHE_SLOTS, ..Maps::default() } };
        w.endpoint(CLIENT, 1, CLIENT_MAC);
        for f in FAMILIES {
            w.local(f.client(), CLIENT);
        }
        w
    }

    /// A client, and in each family a VIP whose port 80 (TCP and UDP) has a group with one member, at `port`.
    /// The members' rows are 0 (TCP, IPv4), 1 (UDP, IPv4), 2 (TCP, IPv6), 3 (UDP, IPv6).
    pub fn balanced(port: u16) -> Self {
        let mut w = Self::new();
        for f in FAMILIES {
            for protocol in [6, 17] {
                let g = w.group(f.vip(), protocol, 80);
                w.member(g, f.member(0), port);
            }
        }
        w
    }

    /// An endpoint behind the device `ifindex`; row `slot` of the counters.
    pub fn endpoint(&mut self, ifindex: u32, slot: u32, mac: [u8; 6]) -> &mut EndpointRow {
        let row = EndpointRow { ifindex, id: 100 + slot, slot, mtu: 1500, mac, host_mac: HOST_MAC, ..EndpointRow::default() };
        self.maps.endpoints.entry(ifindex).insert_entry(row).into_mut()
    }
    /// Changes an endpoint's row.
    pub fn at(&mut self, ifindex: u32) -> &mut EndpointRow {
        self.maps.endpoints.get_mut(&ifindex).unwrap_or_else(|| panic!("no endpoint at {ifindex}"))
    }
    /// An address of an endpoint of this host.
    pub fn local(&mut self, addr: IpAddr, ifindex: u32) {
        let key = LocalKey { network: 0, version: if addr.is_ipv4() { 4 } else { 6 }, addr: wide(addr) };
        self.maps.locals.insert(key, ifindex);
    }

    pub fn vip_key(addr: IpAddr, protocol: u8, port: u16) -> VipKey {
        let version = if addr.is_ipv4() { 4 } else { 6 };
        VipKey { network: 0, addr: wide(addr), port: port.to_be_bytes(), protocol, version }
    }

    /// A VIP's port, with a group of its own.
    pub fn group(&mut self, vip: IpAddr, protocol: u8, port: u16) -> u32 {
        let group = self.maps.groups.len() as u32;
        let serial = 500 + group;
        self.maps.groups.push(GroupRow { table: 0, serial, flags: 0 });
        self.maps.maglev.resize(((group + 1) * BLOCKS) as usize, [0; MAGLEV_BLOCK]);
        self.port(vip, protocol, port, group);
        group
    }
    /// A further port of a group.
    pub fn port(&mut self, vip: IpAddr, protocol: u8, port: u16, group: u32) {
        let row = VipRow { group, serial: 500 + group };
        self.maps.vips.insert(Self::vip_key(vip, protocol, port), row);
        self.maps.vips.insert(Self::vip_key(vip, 0, 0), VipRow::default());
        self.maps.filters.insert(Filter::Vip.place(filter_hash(0, vip)));
    }

    /// A range of ports of a group, of those that begin with the first `bits` bits of `port`.
    pub fn range(&mut self, vip: IpAddr, protocol: u8, port: u16, bits: u32, group: u32) {
        let row = VipRow { group, serial: 500 + group };
        self.maps.vips.insert(Self::vip_key(vip, protocol, port).range(bits), row);
        self.maps.vips.entry(Self::vip_key(vip, 0, 0)).or_default().group |= 1 << bits;
        self.maps.filters.insert(Filter::Vip.place(filter_hash(0, vip)));
    }

    /// A member; it takes new flows.
    pub fn member(&mut self, group: u32, addr: IpAddr, port: u16) -> u32 {
        let index = self.maps.members.len() as u32;
        self.maps.members.push(MemberRow {
            addr: wide(addr),
            port: port.to_be_bytes(),
            serial: 1000 + index,
            group,
            state: state::ACTIVE,
            share: 100,
            ..MemberRow::default()
        });
        self.maps.filters.insert(Filter::Member.place(filter_hash(0, addr)));
        self.repick(group);
        index
    }
    /// Changes a member's row.
    pub fn edit(&mut self, member: u32) -> &mut MemberRow {
        &mut self.maps.members[member as usize]
    }
    /// Sets a member's state, and the group's pick table accordingly.
    pub fn set_state(&mut self, member: u32, state: u8) {
        self.edit(member).state = state;
        self.repick(self.maps.members[member as usize].group);
    }
    /// Sets a group's flags.
    pub fn set_flags(&mut self, group: u32, flags: u32) {
        self.maps.groups[group as usize].flags = flags;
    }
    /// Another policy generation.
    pub fn bump(&mut self) {
        self.maps.generation.set(self.maps.generation.get() + 1);
    }

    /// Fills the group's pick table with its active members, in turn.
    fn repick(&mut self, group: u32) {
        let takes = |m: &MemberRow| m.group == group && m.state == state::ACTIVE;
        let active: Vec<u32> = (0u32..).zip(&self.maps.members).filter(|(_, m)| takes(m)).map(|(i, _)| i).collect();
        let slots = if active.is_empty() { 0 } else { BLOCKS * MAGLEV_BLOCK as u32 };
        for slot in 0..slots as usize {
            let block = group as usize * BLOCKS as usize + slot / MAGLEV_BLOCK;
            self.maps.maglev[block][slot % MAGLEV_BLOCK] = active[slot % active.len()];
        }
        self.maps.groups[group as usize].table = u64::from(group * BLOCKS) << 32 | u64::from(slots);
    }

    /// Makes member `index` an endpoint of this host behind `ifindex`, delivered to past the stack.
    pub fn redirected(&mut self, index: u32, ifindex: u32, slot: u32, peer: bool) {
        let group = self.maps.members[index as usize].group;
        self.set_flags(group, vnet_common::lb::flags::REDIRECT);
        let addr = self.maps.members[index as usize].addr;
        let version = self.maps.vips.iter().find(|(_, r)| r.group == group && r.serial != 0).map_or(4, |(k, _)| k.version);
        self.maps.locals.insert(LocalKey { network: 0, version: u32::from(version), addr }, ifindex);
        self.edit(index).ifindex = ifindex;
        let row = self.endpoint(ifindex, slot, [2, 0, 0, 0, 1, slot as u8]);
        row.flags = endpoint_flags::REDIRECT_BACK | if peer { endpoint_flags::PEER } else { 0 };
        row.host_mac = [2, 0, 0, 0, 0xff, slot as u8];
    }
}
