//! Where the rows come from that a packet would meet: the live maps, or an image of what they would be.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::Result;
use vnet_common::addr::{V4, V6};
use vnet_common::endpoint::EndpointRow;
use vnet_common::flow::fragment::{FragmentKey, FragmentRow};
use vnet_common::flow::{FlowEntry, FlowKey, Table};
use vnet_common::lb::{AffinityKey, AffinityRow, Filter, GroupRow, LocalKey, MemberRow, VipKey, VipRow};
use vnet_common::map::MAGLEV_BLOCK;
use vnet_common::policy::{AddressKey, NetworkKey, PeerKey, PolicyMaps, PortRow, RuleRow, SetRow, identity};

use crate::datapath::look::Family;
use crate::datapath::rehearsal::{self, Rehearsal};
use crate::datapath::{Datapath, Maps};
use crate::lb;
use crate::policy::live::Tables;

/// Rows, one at a time and by value.
pub trait Rows {
    /// The policy generation.
    fn generation(&self) -> u32;
    /// The low half of the kernel's ticks.
    fn now(&self) -> u32;
    /// See [`vnet_common::endpoint::HostMaps`].
    fn is_tunnel_port(&self, port: [u8; 2]) -> bool;
    /// The endpoints of all devices.
    fn endpoints(&self) -> Vec<EndpointRow>;
    /// The endpoint of a device.
    fn endpoint(&self, ifindex: u32) -> Option<EndpointRow>;
    /// May the endpoint with this slot have another flow?
    fn has_room(&self, slot: u32) -> bool;
    /// An IPv4 flow's entry.
    fn flow4(&self, table: Table, key: &FlowKey<V4>) -> Option<FlowEntry<V4>>;
    /// An IPv6 flow's entry.
    fn flow6(&self, table: Table, key: &FlowKey<V6>) -> Option<FlowEntry<V6>>;
    /// See [`vnet_common::lb::LbMaps`].
    fn filter(&self, kind: Filter, hash: u32) -> bool;
    /// See [`vnet_common::lb::LbMaps`].
    fn vip(&self, key: &VipKey) -> Option<VipRow>;
    /// See [`vnet_common::lb::LbMaps`].
    fn group(&self, row: u32) -> Option<GroupRow>;
    /// See [`vnet_common::lb::LbMaps`].
    fn member(&self, row: u32) -> Option<MemberRow>;
    /// See [`vnet_common::lb::LbMaps`].
    fn pick(&self, block: u32, slot: u32) -> Option<u32>;
    /// See [`vnet_common::lb::LbMaps`].
    fn turn(&self, group: u32) -> u32;
    /// See [`vnet_common::lb::LbMaps`].
    fn active(&self, member: u32) -> u32;
    /// See [`vnet_common::lb::LbMaps`].
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRow>;
    /// See [`vnet_common::flow::fragment::FragmentMaps`].
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow>;
    /// See [`vnet_common::lb::LbMaps`].
    fn local(&self, key: &LocalKey) -> Option<u32>;
    /// See [`vnet_common::policy::PolicyMaps`].
    fn identity(&self, key: &AddressKey) -> u32;
    /// See [`vnet_common::policy::PolicyMaps`].
    fn set(&self, row: u32) -> Option<SetRow>;
    /// See [`vnet_common::policy::PolicyMaps`].
    fn peer(&self, key: &PeerKey) -> Option<u32>;
    /// See [`vnet_common::policy::PolicyMaps`].
    fn port(&self, row: u32) -> Option<PortRow>;
    /// See [`vnet_common::policy::PolicyMaps`].
    fn bits(&self, word: u32) -> Option<u64>;
    /// See [`vnet_common::policy::PolicyMaps`].
    fn rule(&self, row: u32) -> Option<RuleRow>;
}

/// The live maps, read and never written.
pub struct Live<'a> {
    maps: &'a Maps,
    generation: u32,
    now: u32,
    quota: u32,
    tunnels: Vec<u16>,
    /// The first read that failed: what was told after it is worth nothing.
    failed: RefCell<Option<anyhow::Error>>,
}

impl<'a> Live<'a> {
    /// The maps of this datapath.
    pub fn new(datapath: &'a Datapath) -> Result<Self> {
        let maps = datapath.maps();
        Ok(Self {
            maps,
            generation: maps.generation()?,
            now: datapath.now()?,
            quota: maps.flow_quota()?,
            tunnels: maps.tunnel_ports()?,
            failed: RefCell::default(),
        })
    }

    /// Did everything that was read come from the maps?
    pub fn check(self) -> Result<()> {
        self.failed.into_inner().map_or(Ok(()), Err)
    }

    fn noted<T>(&self, read: Result<Option<T>>) -> Option<T> {
        read.unwrap_or_else(|e| {
            self.failed.borrow_mut().get_or_insert(e);
            None
        })
    }
}

impl Rows for Live<'_> {
    fn generation(&self) -> u32 {
        self.generation
    }
    fn now(&self) -> u32 {
        self.now
    }
    fn is_tunnel_port(&self, port: [u8; 2]) -> bool {
        self.tunnels.contains(&u16::from_be_bytes(port))
    }
    fn endpoints(&self) -> Vec<EndpointRow> {
        self.noted(self.maps.endpoints().map(Some)).unwrap_or_default()
    }
    fn endpoint(&self, ifindex: u32) -> Option<EndpointRow> {
        self.noted(self.maps.endpoint(ifindex))
    }
    fn has_room(&self, slot: u32) -> bool {
        self.maps.flow_count(slot).is_some_and(|n| n < self.quota)
    }
    fn flow4(&self, table: Table, key: &FlowKey<V4>) -> Option<FlowEntry<V4>> {
        self.noted(V4::flow(self.maps, table, key))
    }
    fn flow6(&self, table: Table, key: &FlowKey<V6>) -> Option<FlowEntry<V6>> {
        self.noted(V6::flow(self.maps, table, key))
    }
    fn filter(&self, kind: Filter, hash: u32) -> bool {
        self.maps.filter(kind, hash)
    }
    fn vip(&self, key: &VipKey) -> Option<VipRow> {
        self.noted(self.maps.vip(key))
    }
    fn group(&self, row: u32) -> Option<GroupRow> {
        self.maps.group(row)
    }
    fn member(&self, row: u32) -> Option<MemberRow> {
        self.maps.member(row)
    }
    fn pick(&self, block: u32, slot: u32) -> Option<u32> {
        self.noted(self.maps.pick(block, slot))
    }
    fn turn(&self, group: u32) -> u32 {
        self.maps.turn(group)
    }
    fn active(&self, member: u32) -> u32 {
        self.maps.active(member)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRow> {
        self.noted(self.maps.affinity(key))
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        self.noted(self.maps.fragment(key))
    }
    fn local(&self, key: &LocalKey) -> Option<u32> {
        self.noted(self.maps.local(key))
    }
    fn identity(&self, key: &AddressKey) -> u32 {
        self.noted(self.maps.identity_of(key).map(Some)).unwrap_or(identity::UNKNOWN)
    }
    fn set(&self, row: u32) -> Option<SetRow> {
        self.maps.set(row)
    }
    fn peer(&self, key: &PeerKey) -> Option<u32> {
        self.noted(self.maps.peer(key))
    }
    fn port(&self, row: u32) -> Option<PortRow> {
        self.maps.port(row)
    }
    fn bits(&self, word: u32) -> Option<u64> {
        self.maps.word(word)
    }
    fn rule(&self, row: u32) -> Option<RuleRow> {
        self.maps.rule(row)
    }
}

/// What the maps would be after a change. What the change leaves alone, and all flows, are those of `live`.
pub struct Image<'a> {
    /// The maps as they are.
    pub live: &'a Live<'a>,
    /// The policy's rows: [`crate::policy::Image::fill`].
    pub policy: Tables,
    /// Rows of endpoints that would differ, by device.
    pub endpoints: HashMap<u32, EndpointRow>,
    /// The addresses of this host's endpoints, if they would differ.
    pub locals: Option<HashMap<LocalKey, u32>>,
    /// What load balancers have, if any of it would differ.
    pub balancing: Option<Balancing>,
}

/// The load balancers' rows after a change.
#[derive(Clone, Debug, Default)]
pub struct Balancing {
    rows: lb::live::Live,
    /// Blocks of new pick tables.
    blocks: HashMap<u32, [u32; MAGLEV_BLOCK]>,
}

impl Balancing {
    /// What `rows` become by these writes.
    pub fn after(mut rows: lb::live::Live, writes: &[lb::live::Write]) -> Self {
        let mut new = HashMap::new();
        for write in writes {
            rows.record(write);
            if let lb::live::Write::Blocks { first, blocks } = write {
                new.extend((*first..).zip(blocks.iter().copied()));
            }
        }
        Self { rows, blocks: new }
    }

    /// Writes them into empty maps. Pick tables that do not change are `live`'s.
    fn fill(&self, maps: &Maps, live: &Maps) -> Result<()> {
        self.rows.vips.iter().try_for_each(|(key, row)| maps.put_vip(key, row))?;
        self.rows.members.iter().try_for_each(|(row, member)| maps.put_member(*row, member))?;
        for (row, group) in &self.rows.groups {
            maps.put_group(*row, &group.row)?;
            for block in lb::live::table_blocks(group.row.table) {
                match self.blocks.get(&block) {
                    Some(new) => maps.put_maglev(block, &[*new])?,
                    None => maps.put_maglev(block, &live.maglev(block, 1)?)?,
                }
            }
        }
        (0..).zip(&self.rows.filter).try_for_each(|(word, bits)| maps.set_filter_word(word, *bits))
    }

    fn pick(&self, block: u32, slot: u32) -> Option<u32> {
        let members = self.blocks.get(&(block + slot / MAGLEV_BLOCK as u32))?;
        members.get(slot as usize % MAGLEV_BLOCK).copied()
    }
}

impl<'a> Image<'a> {
    /// The policy's rows would be these.
    pub fn new(live: &'a Live<'a>, policy: Tables) -> Self {
        Self { live, policy, endpoints: HashMap::new(), locals: None, balancing: None }
    }

    /// A second instance of the programs that has these rows.
    pub(super) fn rehearsal(&self, datapath: &Datapath) -> Result<Rehearsal> {
        let mut shared: Vec<&str> = Vec::new();
        if self.balancing.is_none() {
            shared.extend(rehearsal::BALANCING);
        }
        if self.locals.is_none() {
            shared.extend(rehearsal::LOCALS);
        }
        let second = datapath.rehearsal(&shared)?;
        let maps = second.maps();
        if let Some(balancing) = &self.balancing {
            balancing.fill(maps, self.live.maps)?;
        }
        self.locals.iter().flatten().try_for_each(|(key, ifindex)| maps.put_local(key, *ifindex))?;
        let p = &self.policy;
        p.sets.iter().try_for_each(|(row, set)| maps.put_set(*row, set))?;
        maps.put_rules(0, &p.rules)?;
        maps.put_ports(0, &p.ports)?;
        maps.put_bits(0, &p.bits)?;
        maps.put_peers(&p.peers.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>())?;
        maps.put_identities(&p.addresses.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>())?;
        let network = |(bits, address): &(u32, AddressKey)| NetworkKey { bits: *bits, address: *address };
        maps.put_networks(&p.cidrs.iter().map(|(k, v)| (network(k), *v)).collect::<Vec<_>>())?;
        Ok(second)
    }

    fn lb<T>(&self, image: impl FnOnce(&Balancing) -> T, live: impl FnOnce(&Live<'a>) -> T) -> T {
        match &self.balancing {
            Some(balancing) => image(balancing),
            None => live(self.live),
        }
    }
}

impl Rows for Image<'_> {
    fn generation(&self) -> u32 {
        // A change bumps it: flows that are known are judged again.
        self.live.generation.wrapping_add(1)
    }
    fn now(&self) -> u32 {
        self.live.now
    }
    fn is_tunnel_port(&self, port: [u8; 2]) -> bool {
        self.live.is_tunnel_port(port)
    }
    fn endpoints(&self) -> Vec<EndpointRow> {
        let stay = self.live.endpoints().into_iter().filter(|row| !self.endpoints.contains_key(&row.ifindex));
        stay.chain(self.endpoints.values().copied()).collect()
    }
    fn endpoint(&self, ifindex: u32) -> Option<EndpointRow> {
        self.endpoints.get(&ifindex).copied().or_else(|| self.live.endpoint(ifindex))
    }
    fn has_room(&self, slot: u32) -> bool {
        self.live.has_room(slot)
    }
    fn flow4(&self, table: Table, key: &FlowKey<V4>) -> Option<FlowEntry<V4>> {
        self.live.flow4(table, key)
    }
    fn flow6(&self, table: Table, key: &FlowKey<V6>) -> Option<FlowEntry<V6>> {
        self.live.flow6(table, key)
    }
    fn filter(&self, kind: Filter, hash: u32) -> bool {
        let (word, bit) = kind.place(hash);
        let set = |b: &Balancing| b.rows.filter.get(word as usize).is_some_and(|w| w >> bit & 1 != 0);
        self.lb(set, |l| l.filter(kind, hash))
    }
    fn vip(&self, key: &VipKey) -> Option<VipRow> {
        self.lb(|b| b.rows.vips.get(key).copied(), |l| l.vip(key))
    }
    fn group(&self, row: u32) -> Option<GroupRow> {
        self.lb(|b| b.rows.groups.get(&row).map(|g| g.row), |l| l.group(row))
    }
    fn member(&self, row: u32) -> Option<MemberRow> {
        self.lb(|b| b.rows.members.get(&row).copied(), |l| l.member(row))
    }
    fn pick(&self, block: u32, slot: u32) -> Option<u32> {
        let new = self.balancing.as_ref().and_then(|b| b.pick(block, slot));
        new.or_else(|| self.live.pick(block, slot))
    }
    fn turn(&self, group: u32) -> u32 {
        self.live.turn(group)
    }
    fn active(&self, member: u32) -> u32 {
        self.live.active(member)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRow> {
        self.live.affinity(key)
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRow> {
        self.live.fragment(key)
    }
    fn local(&self, key: &LocalKey) -> Option<u32> {
        match &self.locals {
            Some(locals) => locals.get(key).copied(),
            None => self.live.local(key),
        }
    }
    fn identity(&self, key: &AddressKey) -> u32 {
        self.policy.identity(key)
    }
    fn set(&self, row: u32) -> Option<SetRow> {
        self.policy.set(row).copied()
    }
    fn peer(&self, key: &PeerKey) -> Option<u32> {
        self.policy.peer(key)
    }
    fn port(&self, row: u32) -> Option<PortRow> {
        self.policy.port(row).copied()
    }
    fn bits(&self, word: u32) -> Option<u64> {
        self.policy.bits(word)
    }
    fn rule(&self, row: u32) -> Option<RuleRow> {
        self.policy.rule(row).copied()
    }
}
