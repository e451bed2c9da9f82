//! The maps, as the control logic reads and writes them.
//!
//! Rows of arrays are written in mapped memory, word by word: what has to change at once (the generation, a group's pick
//! table, a filter word, a stamp) is one word, and the programs see it before or after the change.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use vnet_common::addr::{V4, V6};
use vnet_common::api::MapStatus;
use vnet_common::endpoint::{EndpointCounters, EndpointRow, FlowCount};
use vnet_common::flow::fragment::{FragmentKey, FragmentRow};
use vnet_common::lb::{AffinityKey, AffinityRow, GroupRow, LocalKey, MemberAnswers, MemberCounters, MemberRow, VipKey, VipRow};
use vnet_common::map::{Config, MAGLEV_BLOCK, MAPS};

use super::batch::{BATCH, Table};
use super::flows::FlowTables;
use super::layout::Layout;
use super::load::LoadedMap;
use super::mmap::Mapped;
use super::percpu::PerCpu;
use super::policy::PolicyTables;

/// Words of [`Config`].
const GENERATION: usize = 0;
const FLOW_QUOTA: usize = 1;
const EVENTS: usize = 4;
const EVENT_RATE: usize = 5;
/// The same, of 64 bits.
const TUNNEL_PORTS: usize = 1;

const NO_WORD: &str = "map CONFIG has no such word";
/// The layout before this one had none for tunnels and events.
const HAS_SWITCHES: bool = !cfg!(feature = "previous-abi");

/// Every map, open.
pub struct Maps {
    config: Mapped<Config>,
    pub(super) clock: Mapped<u64>,
    pub(super) endpoints: Mapped<EndpointRow>,
    pub(super) endpoints_more: Table<u32, EndpointRow>,
    pub(super) endpoint_counters: PerCpu<EndpointCounters>,
    pub(super) flow_counts: Mapped<FlowCount>,
    pub(super) stamps: Mapped<u64>,
    pub(super) filters: Mapped<u64>,
    pub(super) locals: Table<LocalKey, u32>,
    pub(super) vips: Table<VipKey, VipRow>,
    groups: Mapped<GroupRow>,
    members: Mapped<MemberRow>,
    member_counters: PerCpu<MemberCounters>,
    member_answers: PerCpu<MemberAnswers>,
    pub(super) maglev: Table<u32, [u32; MAGLEV_BLOCK]>,
    pub(super) turns: Mapped<u64>,
    pub(super) active: Mapped<u64>,
    pub(super) affinity: Table<AffinityKey, AffinityRow>,
    pub(super) fragments: Table<FragmentKey, FragmentRow>,
    /// IPv4 flows.
    pub(super) flows4: FlowTables<V4>,
    /// IPv6 flows.
    pub(super) flows6: FlowTables<V6>,
    pub(super) policy: PolicyTables,
    all: Vec<(Layout, OwnedFd)>,
}

/// Finds maps by name, each with the types that its layout was checked against.
pub(super) struct Source<'a>(pub(super) &'a BTreeMap<&'static str, LoadedMap>);

impl Source<'_> {
    pub(super) fn get(&self, name: &str) -> Result<&LoadedMap> {
        self.0.get(name).with_context(|| format!("there is no map {name}"))
    }
    pub(super) fn mapped<T: aya::Pod>(&self, name: &str) -> Result<Mapped<T>> {
        let map = self.get(name)?;
        Mapped::new(map.fd.as_fd(), map.layout.max_entries).with_context(|| format!("mapping {name} into memory"))
    }
    pub(super) fn table<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> Result<Table<K, V>> {
        let map = self.get(name)?;
        Table::new(map.raw()?, &map.layout)
    }
    pub(super) fn per_cpu<T: aya::Pod>(&self, name: &str) -> Result<PerCpu<T>> {
        let map = self.get(name)?;
        PerCpu::new(map.raw()?, &map.layout)
    }
}

impl Maps {
    pub(super) fn new(maps: &BTreeMap<&'static str, LoadedMap>, cache: [u32; 2]) -> Result<Self> {
        let s = Source(maps);
        let mut all = Vec::new();
        for (name, ..) in MAPS {
            let map = s.get(name)?;
            let fd = map.fd.try_clone().with_context(|| format!("map {name}: duplicating its handle"))?;
            all.push((map.layout, fd));
        }
        Ok(Self {
            config: s.mapped("CONFIG")?,
            clock: s.mapped("CLOCK")?,
            endpoints: s.mapped("ENDPOINTS")?,
            endpoints_more: s.table("ENDPOINTS_MORE")?,
            endpoint_counters: s.per_cpu("ENDPOINT_COUNTERS")?,
            flow_counts: s.mapped("FLOW_COUNTS")?,
            stamps: s.mapped("STAMPS")?,
            filters: s.mapped("FILTERS")?,
            locals: s.table("LOCALS")?,
            vips: s.table("VIPS")?,
            groups: s.mapped("GROUPS")?,
            members: s.mapped("MEMBERS")?,
            member_counters: s.per_cpu("MEMBER_COUNTERS")?,
            member_answers: s.per_cpu("MEMBER_ANSWERS")?,
            maglev: s.table("MAGLEV")?,
            turns: s.mapped("TURNS")?,
            active: s.mapped("ACTIVE")?,
            affinity: s.table("AFFINITY")?,
            fragments: s.table("FRAGMENTS")?,
            flows4: FlowTables::new(&s, ["FLOWS4", "HALF_OPEN4", "CACHE4", "RING4"], cache[0])?,
            flows6: FlowTables::new(&s, ["FLOWS6", "HALF_OPEN6", "CACHE6", "RING6"], cache[1])?,
            policy: PolicyTables::new(&s)?,
            all,
        })
    }

    fn config_word(&self, word: usize) -> Result<&AtomicU32> {
        self.config.word32(0, word).context("map CONFIG has no row")
    }

    /// The policy generation in force.
    pub fn generation(&self) -> Result<u32> {
        Ok(self.config_word(GENERATION)?.load(Ordering::Acquire))
    }

    /// Starts a new policy generation: every flow is judged again on its next packet. All rows written before are seen by
    /// who sees the new generation. Gives it.
    pub fn bump_generation(&self) -> Result<u32> {
        Ok(self.config_word(GENERATION)?.fetch_add(1, Ordering::AcqRel).wrapping_add(1))
    }

    /// Flows that an endpoint may have.
    pub fn flow_quota(&self) -> Result<u32> {
        Ok(self.config_word(FLOW_QUOTA)?.load(Ordering::Relaxed))
    }

    /// Sets how many flows an endpoint may have.
    pub fn set_flow_quota(&self, quota: u32) -> Result<()> {
        self.config_word(FLOW_QUOTA)?.store(quota, Ordering::Relaxed);
        Ok(())
    }

    /// The UDP ports that only tunnels use.
    pub fn tunnel_ports(&self) -> Result<Vec<u16>> {
        let word = self.config.word64(0, TUNNEL_PORTS).context(NO_WORD)?.load(Ordering::Relaxed);
        let ports = word.to_ne_bytes();
        Ok(ports.as_chunks::<2>().0.iter().map(|p| u16::from_be_bytes(*p)).filter(|p| *p != 0).collect())
    }

    /// Sets the UDP ports that only tunnels use: at most four.
    pub fn set_tunnel_ports(&self, ports: &[u16]) -> Result<()> {
        let mut word = [0; 8];
        if ports.len() > word.len() / 2 {
            bail!("{} ports of tunnels: the datapath knows at most {}", ports.len(), word.len() / 2);
        }
        for (place, port) in word.as_chunks_mut::<2>().0.iter_mut().zip(ports) {
            *place = port.to_be_bytes();
        }
        if HAS_SWITCHES {
            let ports = u64::from_ne_bytes(word);
            if self.config.word64(0, TUNNEL_PORTS).context(NO_WORD)?.swap(ports, Ordering::AcqRel) != ports {
                // Flows that are cached are not looked at for tunnels.
                self.bump_generation()?;
            }
        }
        Ok(())
    }

    /// Sets which kinds of events ([`vnet_common::event::kind`]) are wanted, and how many each CPU reports in a window
    /// ([`vnet_common::event::WINDOW_JIFFIES`]).
    pub fn set_events(&self, kinds: u8, rate: u32) -> Result<()> {
        if !HAS_SWITCHES {
            return Ok(());
        }
        let word = |word| self.config.word32(0, word).context(NO_WORD);
        word(EVENT_RATE)?.store(rate, Ordering::Relaxed);
        word(EVENTS)?.store(u32::from(kinds), Ordering::Release);
        Ok(())
    }

    /// The kinds of events that are wanted.
    pub fn events(&self) -> Result<u8> {
        Ok(self.config.word32(0, EVENTS).context(NO_WORD)?.load(Ordering::Relaxed) as u8)
    }

    /// Makes all switches those of others, but for the generation.
    pub(super) fn copy_config(&self, of: &Self, generation: u32) -> Result<()> {
        let config = of.config.load(0).context("map CONFIG has no row")?;
        in_range("CONFIG", 0, self.config.store(0, &Config { generation, ..config }))
    }

    /// Every VIP row.
    pub fn vips(&self) -> Result<Vec<(VipKey, VipRow)>> {
        collect(&self.vips)
    }

    /// Sets a VIP row.
    pub fn put_vip(&self, key: &VipKey, row: &VipRow) -> Result<()> {
        self.vips.put(key, row)
    }

    /// Removes a VIP row; says if there was one.
    pub fn remove_vip(&self, key: &VipKey) -> Result<bool> {
        self.vips.remove(key)
    }

    /// Every group row that was ever written.
    pub fn groups(&self) -> BTreeMap<u32, GroupRow> {
        written(&self.groups, |g| g.serial)
    }

    /// A group row.
    pub fn group(&self, row: u32) -> Option<GroupRow> {
        self.groups.load(row)
    }

    /// Writes a group row. Its pick table is one word.
    pub fn put_group(&self, row: u32, value: &GroupRow) -> Result<()> {
        in_range("GROUPS", row, self.groups.store(row, value))
    }

    /// Every member row that was ever written.
    pub fn members(&self) -> BTreeMap<u32, MemberRow> {
        written(&self.members, |m| m.serial)
    }

    /// A member row.
    pub fn member(&self, row: u32) -> Option<MemberRow> {
        self.members.load(row)
    }

    /// Writes a member row, its serial after what it is: a program takes the row for the new member when it is whole.
    pub fn put_member(&self, row: u32, value: &MemberRow) -> Result<()> {
        in_range("MEMBERS", row, self.members.store(row, value))
    }

    /// Writes pick table blocks, from `first` on. No group may lead to them yet: they are not written at once.
    pub fn put_maglev(&self, first: u32, blocks: &[[u32; MAGLEV_BLOCK]]) -> Result<()> {
        let rows: Vec<u32> = (first..).take(blocks.len()).collect();
        self.maglev.put_all(&rows, blocks)
    }

    /// Reads `count` pick table blocks, from `first` on.
    pub fn maglev(&self, first: u32, count: u32) -> Result<Vec<[u32; MAGLEV_BLOCK]>> {
        let fd = self.maglev.raw().fd();
        let blocks = Mapped::<[u32; MAGLEV_BLOCK]>::window(fd, first, count);
        let blocks = blocks.with_context(|| format!("map MAGLEV: reading {count} blocks from {first} on"))?;
        Ok((0..count).filter_map(|row| blocks.load(row)).collect())
    }

    /// The filter words: [`vnet_common::lb::Filter::place`] says which bit is where.
    pub fn filter_words(&self) -> Vec<u64> {
        (0..self.filters.rows()).filter_map(|row| self.filters.load(row)).collect()
    }

    /// Writes a filter word.
    pub fn set_filter_word(&self, word: u32, bits: u64) -> Result<()> {
        in_range("FILTERS", word, self.filters.store(word, &bits))
    }

    /// Every address of this host's endpoints, with the device.
    pub fn locals(&self) -> Result<Vec<(LocalKey, u32)>> {
        collect(&self.locals)
    }

    /// Says which device the endpoint with this address has.
    pub fn put_local(&self, key: &LocalKey, ifindex: u32) -> Result<()> {
        self.locals.put(key, &ifindex)
    }

    /// Removes an address of an endpoint; says if there was one.
    pub fn remove_local(&self, key: &LocalKey) -> Result<bool> {
        self.locals.remove(key)
    }

    /// A member's counters, all CPUs together, less what flow caches hold ([`super::pending::Pending`]).
    pub fn member_counters(&self, row: u32) -> Result<MemberCounters> {
        let mut sum = MemberCounters::default();
        for c in self.member_counters.get(row)? {
            sum.new_flows += c.new_flows;
            sum.established += c.established;
            sum.resets += c.resets;
            for d in 0..2 {
                sum.packets[d] += c.packets[d];
                sum.bytes[d] += c.bytes[d];
            }
        }
        Ok(sum)
    }

    /// How a member answers, all CPUs together.
    pub fn member_answers(&self, row: u32) -> Result<MemberAnswers> {
        let mut sum = MemberAnswers::default();
        for a in self.member_answers.get(row)? {
            sum.resets += a.resets;
            sum.unreachable += a.unreachable;
            sum.connect_us += a.connect_us;
            sum.given_up += a.given_up;
            sum.connects.iter_mut().zip(a.connects).for_each(|(sum, n)| *sum += n);
        }
        Ok(sum)
    }

    /// Sets a member's counters to 0. Packets counted meanwhile may be lost: no member may be using the row.
    pub fn reset_member_counters(&self, row: u32) -> Result<()> {
        self.member_counters.reset(row)?;
        self.member_answers.reset(row)
    }

    /// How many entries a map has room for; `None` if there is no such map.
    pub fn capacity(&self, name: &str) -> Option<u32> {
        self.all.iter().find(|(l, _)| l.name == name).map(|(l, _)| l.max_entries)
    }

    /// Another handle of a map.
    pub(super) fn handle(&self, name: &str) -> Result<OwnedFd> {
        let (_, fd) = self.all.iter().find(|(l, _)| l.name == name).with_context(|| format!("there is no map {name}"))?;
        fd.try_clone().with_context(|| format!("map {name}: duplicating its handle"))
    }

    /// Every map. How full the flow tables are is what the collector found last.
    pub fn status(&self) -> Result<Vec<MapStatus>> {
        let mut status = Vec::new();
        for ((layout, fd), (_, holds, _)) in self.all.iter().zip(MAPS) {
            status.push(MapStatus {
                name: layout.name.to_owned(),
                holds: (*holds).to_owned(),
                used: self.used(layout.name)?,
                capacity: layout.max_entries,
                memory_bytes: memory(layout, fd)?,
            });
        }
        Ok(status)
    }

    fn used(&self, name: &str) -> Result<Option<u32>> {
        Ok(match name {
            "FLOWS4" => self.flows4.main.found(),
            "HALF_OPEN4" => self.flows4.half_open.found(),
            "FLOWS6" => self.flows6.main.found(),
            "HALF_OPEN6" => self.flows6.half_open.found(),
            "VIPS" => Some(count(&self.vips)?),
            "AFFINITY" => Some(count(&self.affinity)?),
            "FRAGMENTS" => Some(count(&self.fragments)?),
            "LOCALS" => Some(count(&self.locals)?),
            "ENDPOINTS_MORE" => Some(count(&self.endpoints_more)?),
            _ => self.policy.used(name)?,
        })
    }
}

pub(super) fn in_range(map: &str, row: u32, done: bool) -> Result<()> {
    if !done {
        bail!("map {map} has no row {row}");
    }
    Ok(())
}

pub(super) fn written<T: aya::Pod>(rows: &Mapped<T>, serial: impl Fn(&T) -> u32) -> BTreeMap<u32, T> {
    (0..rows.rows()).filter_map(|row| Some((row, rows.load(row)?))).filter(|(_, r)| serial(r) != 0).collect()
}

pub(super) fn collect<K: aya::Pod, V: aya::Pod>(table: &Table<K, V>) -> Result<Vec<(K, V)>> {
    let mut all = Vec::with_capacity(BATCH);
    table.for_each(|k, v| all.push((k, v)))?;
    Ok(all)
}

pub(super) fn count<K: aya::Pod, V: aya::Pod>(table: &Table<K, V>) -> Result<u32> {
    let mut n = 0;
    table.for_each(|_, _| n += 1)?;
    Ok(n)
}

/// What the kernel says that a map takes.
fn memory(layout: &Layout, fd: &OwnedFd) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(&path).with_context(|| format!("map {}: reading {path}", layout.name))?;
    let line = info
        .lines()
        .find_map(|l| l.strip_prefix("memlock:"))
        .with_context(|| format!("map {}: {path} has no line memlock", layout.name))?;
    line.trim().parse().with_context(|| format!("map {}: {path}: memlock is no number", layout.name))
}
