//! The programs on a packet that is none: a second instance of the object, which shares the policy with the one at work and has flows,
//! counters and events of its own. Nothing that it does is seen by anybody else.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use vnet_common::addr::{V4, V6};
use vnet_common::endpoint::{EndpointCounters, EndpointRow, FlowCount};
use vnet_common::event::EventRow;
use vnet_common::flow::fragment::{FragmentKey, FragmentRow};
use vnet_common::flow::{FlowEntry, FlowKey, Table};
use vnet_common::lb::{AffinityKey, AffinityRow};
use vnet_common::verdict::{Direction, Reason};

use super::Datapath;
use super::attach::Programs;
use super::events::EventReader;
use super::layout::{Layout, Sizes};
use super::load::load;
use super::maps::Maps;
use super::sys;

/// Maps that the programs only read: those of load balancers, of addresses, and of rules.
pub const BALANCING: [&str; 5] = ["FILTERS", "VIPS", "GROUPS", "MEMBERS", "MAGLEV"];
/// See [`BALANCING`].
pub const LOCALS: [&str; 1] = ["LOCALS"];
/// See [`BALANCING`].
pub const RULES: [&str; 7] = ["SETS", "RULES", "PORTS", "BITS", "PEERS", "IPCACHE", "CIDRS"];
/// Slots of the endpoint that is asked about, and of all others.
const SLOTS: u32 = 2;
/// Entries that a flow table of its own has room for.
const FLOWS: u32 = 64;

/// The second instance.
pub struct Rehearsal {
    maps: Maps,
    programs: Programs,
    events: EventReader,
    /// Devices whose rows are there.
    devices: Vec<u32>,
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What it returned: `TC_ACT_…`, or -1 for `TCX_NEXT`.
    pub action: i32,
    /// The reason that it counted; `None`: none, or several.
    pub reason: Option<Reason>,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// What it reported.
    pub events: Vec<EventRow>,
}

/// What a run meets, besides maps that were filled before.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// The policy generation.
    pub generation: u32,
    /// Rows of endpoints.
    pub endpoints: Vec<EndpointRow>,
    /// IPv4 entries in the flow tables.
    pub v4: HashMap<(Table, FlowKey<V4>), FlowEntry<V4>>,
    /// IPv6 entries likewise.
    pub v6: HashMap<(Table, FlowKey<V6>), FlowEntry<V6>>,
    /// What picks follow from.
    pub picks: Picks,
}

/// What picks of members, and the ways of fragments, follow from that every flow changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picks {
    /// Flows given in turn, by group.
    pub turns: HashMap<u32, u32>,
    /// Flows that are not closed, by member.
    pub active: HashMap<u32, u32>,
    /// Members that clients stick to.
    pub affinity: HashMap<AffinityKey, AffinityRow>,
    /// Datagrams whose first fragment was seen.
    pub fragments: HashMap<FragmentKey, FragmentRow>,
}

impl Datapath {
    /// Loads the second instance: takes as long as loading the first did. `shared` are the maps that are the datapath's own; others of
    /// those that are only read are empty.
    pub fn rehearsal(&self, shared: &[&str]) -> Result<Rehearsal> {
        let dir = self.root.complete(vnet_common::flow::ABI);
        let sizes = Sizes { cache: [0, 0], ..self.sizes.clone() };
        let mut wanted = super::layout::layouts(&sizes)?;
        let mut pins: BTreeMap<&'static str, PathBuf> = BTreeMap::new();
        for layout in &mut wanted {
            match shared.contains(&layout.name) {
                true => {
                    pins.insert(layout.name, dir.join(layout.name));
                }
                false => layout.max_entries = own_size(layout),
            }
        }
        let loaded = load(&self.object, &wanted, &pins, &sizes, false).context("loading a second instance of the programs")?;
        let maps = Maps::new(&loaded.maps, sizes.cache)?;
        let events = maps.event_reader()?;
        Ok(Rehearsal { maps, programs: loaded.programs, events, devices: Vec::new() })
    }
}

fn own_size(layout: &Layout) -> u32 {
    match layout.name {
        "ENDPOINT_COUNTERS" | "FLOW_COUNTS" | "RING_HEADS" => SLOTS,
        "FLOWS4" | "FLOWS6" | "HALF_OPEN4" | "HALF_OPEN6" => FLOWS,
        "EVENTS" => 1 << 16,
        // Rows that are not there are passed over: which flow would be pushed out, what members and rules have counted.
        "RING4" | "RING6" | "MEMBER_COUNTERS" | "MEMBER_ANSWERS" | "RULE_COUNTERS" => 1,
        _ => layout.max_entries,
    }
}

impl Rehearsal {
    /// The maps, to fill those that are not shared.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Runs the program of one direction at a device. `live` has the switches and the counts of flows.
    pub fn run(&mut self, live: &Maps, setting: &Setting, direction: Direction, ifindex: u32, frame: &[u8]) -> Result<Ran> {
        self.prepare(live, setting, ifindex)?;
        self.events.drain(usize::MAX, |_| {});
        let program = match direction {
            Direction::Egress => &self.programs.from_endpoint,
            Direction::Ingress => &self.programs.to_endpoint,
        };
        let ran = sys::test_run(program.fd.as_fd(), frame, ifindex);
        let (action, bytes) = ran.with_context(|| format!("running a program on a frame of {} bytes", frame.len()))?;
        let counted = self.maps.endpoint_counters(0)?;
        let mut events = Vec::new();
        self.events.drain(usize::MAX, |row| events.push(*row));
        Ok(Ran { action, reason: counted_reason(&counted, direction), bytes, events })
    }

    /// Makes the tables as they are to be, but for slots and copies for service nodes.
    fn prepare(&mut self, live: &Maps, setting: &Setting, ifindex: u32) -> Result<()> {
        self.clear()?;
        for device in std::mem::take(&mut self.devices) {
            self.maps.remove_endpoint(device)?;
        }
        for row in &setting.endpoints {
            let asked = row.ifindex == ifindex;
            let slot = u32::from(!asked);
            self.maps.set_endpoint(&EndpointRow { slot, ..*row }.with_mirror(0))?;
            self.devices.push(row.ifindex);
            if asked && let Some(count) = live.flow_counts.load(row.slot) {
                self.maps.flow_counts.store(0, &count);
            }
        }
        self.maps.flow_counts.store(1, &FlowCount::default());
        self.maps.copy_config(live, setting.generation)?;
        self.maps.set_events(u8::MAX, u32::MAX)?;
        for ((table, key), entry) in &setting.v4 {
            self.maps.flows4.entries(*table).put(key, entry)?;
        }
        for ((table, key), entry) in &setting.v6 {
            self.maps.flows6.entries(*table).put(key, entry)?;
        }
        let picks = &setting.picks;
        for (group, n) in &picks.turns {
            self.maps.turns.store(*group, &u64::from(*n));
        }
        for (member, n) in &picks.active {
            self.maps.active.store(*member, &u64::from(*n));
        }
        picks.affinity.iter().try_for_each(|(key, row)| self.maps.affinity.put(key, row))?;
        picks.fragments.iter().try_for_each(|(key, row)| self.maps.fragments.put(key, row))
    }

    /// Forgets what the run before left.
    fn clear(&self) -> Result<()> {
        self.maps.flows4.clear()?;
        self.maps.flows6.clear()?;
        self.maps.affinity.clear()?;
        self.maps.fragments.clear()?;
        (0..SLOTS).try_for_each(|slot| self.maps.endpoint_counters.reset(slot))
    }
}

fn counted_reason(counters: &EndpointCounters, direction: Direction) -> Option<Reason> {
    let counts = &counters.packets[direction as usize];
    let mut counted = Reason::ALL.iter().filter(|r| counts[**r as usize] != 0);
    counted.next().copied().filter(|_| counted.next().is_none())
}
