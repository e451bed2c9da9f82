//! The datapath in the kernel with one endpoint, one group and a plan of packets; run by `BPF_PROG_TEST_RUN`.

use super::frames::{self, ENDPOINT, Family, MEMBER_PORT, MEMBERS, PEERS, Peer, Protocol, SLOT, Traffic};
use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use vnet_common::addr::{Address as _, V4, V6};
use vnet_common::bench::{AT_RANDOM, IN_ORDER, Plan};
use vnet_common::endpoint::{EndpointCounters, EndpointRow, FlowCount, HALF_OPEN_QUOTA, flags as endpoint_flags};
use vnet_common::flow::FlowKey;
use vnet_common::hash;
use vnet_common::lb::{Filter, GroupRow, LocalKey, MemberRow, VipKey, VipRow, flags as group_flags, state};
use vnet_common::map::{Config, MAGLEV_BLOCK, MAPS};
use vnet_common::verdict::{Direction, Reason};

/// Slots of a CPU's flow cache, as the agent has them: IPv4, IPv6.
const CACHE: [u32; 2] = [1 << 17, 1 << 17];
/// Slots of the pick table of a group of [`MEMBERS`].
const PICKS: u32 = 1024;
/// Members of a large group; other groups beside it.
pub const MANY: u32 = 10_000;
/// Slots of a large group's pick table.
const MANY_PICKS: u32 = 1 << 17;
/// The first row of other groups.
const OTHERS: u32 = 100;
/// `lo`: what a test run's packet seems to have come from.
const DEVICE: u32 = 1;
/// The first member's device, where members are endpoints of this host.
const MEMBER_DEVICES: u32 = 100;
const GROUP: u32 = 1;
const SERIAL: u32 = 1;

/// The programs of `BENCH_PROGRAMS`, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Null,
    Egress,
    Ingress,
}
const TARGETS: [&str; 3] = ["bench_null", "vm_egress", "vm_ingress"];

impl From<Direction> for Target {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Egress => Self::Egress,
            Direction::Ingress => Self::Ingress,
        }
    }
}

/// A loaded datapath.
pub struct Kernel {
    ebpf: Ebpf,
    // The kernel empties a program array that nobody holds.
    _programs: ProgramArray<MapData>,
    links: Vec<(&'static str, SchedClassifierLinkId)>,
    /// Members of the group.
    members: u32,
}

impl Kernel {
    /// Loads the object, with room for so many entries in the main tables instead of the default; sets up the endpoint, the
    /// group and its members: on other hosts, or behind veths of this one and delivered to past the stack.
    pub fn load(object: &[u8], entries: Option<u32>, past_the_stack: bool) -> Result<Self> {
        let mut kernel = Self::load_empty(object, entries, true)?;
        kernel.set_up(past_the_stack)?;
        Ok(kernel)
    }

    /// With [`MANY`] members, and as many other groups with a VIP each.
    pub fn load_crowded(object: &[u8]) -> Result<Self> {
        let mut kernel = Self::load_empty(object, None, true)?;
        kernel.members = MANY;
        for n in 0..MANY {
            let addr = frames::other_vip(n);
            let key = VipKey { network: 0, addr, port: 80u16.to_be_bytes(), protocol: 17, version: 4 };
            kernel.put("GROUPS", OTHERS + n, GroupRow { table: 1, serial: SERIAL, flags: 0 })?;
            kernel.put_vip(Family::V4, key, OTHERS + n)?;
        }
        kernel.set_up(false)?;
        Ok(kernel)
    }

    /// Has the group of a family pick otherwise: see [`group_flags`].
    pub fn set_algorithm(&mut self, family: Family, flags: u32) -> Result<()> {
        self.set_group_row(group_of(family), self.members, flags)
    }

    /// The same without that the endpoints' rules are ever asked.
    pub fn load_without_rules(object: &[u8]) -> Result<Self> {
        let mut kernel = Self::load_empty(object, None, false)?;
        kernel.set_up(false)?;
        Ok(kernel)
    }

    /// With empty tables. `rules`: are they asked?
    pub fn load_empty(object: &[u8], entries: Option<u32>, rules: bool) -> Result<Self> {
        let cpus = u32::try_from(nr_cpus().map_err(|(file, e)| anyhow!("reading {file}: {e}"))?)?;
        let (on, no_rules, masks) = (1u32, u32::from(!rules), CACHE.map(|slots| slots - 1));
        let mut loader = EbpfLoader::new();
        loader.override_global("NO_RULES", &no_rules, true);
        loader.override_global("CACHE_ON", &on, true).override_global("CACHE_MASK", &masks[0], true);
        loader.override_global("CACHE_MASK6", &masks[1], true);
        for &(name, _, size) in MAPS {
            loader.map_max_entries(name, size);
        }
        loader.map_max_entries("CACHE4", CACHE[0] * cpus).map_max_entries("CACHE6", CACHE[1] * cpus);
        if let Some(entries) = entries {
            loader.map_max_entries("FLOWS4", entries).map_max_entries("FLOWS6", entries);
        }
        let mut ebpf = loader.load(object).context("loading the eBPF object (was it built with feature bench?)")?;
        for name in TARGETS.iter().chain(&["bench_peer", "bench4", "bench6", "bench_forget4", "bench_forget6", "bench_uncache"]) {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
            program.load().with_context(|| format!("loading program {name}"))?;
        }
        let mut programs = ProgramArray::try_from(ebpf.take_map("BENCH_PROGRAMS").context("no map BENCH_PROGRAMS")?)?;
        for (index, name) in TARGETS.iter().enumerate() {
            let program: &SchedClassifier = ebpf.program(name).context("a program is gone")?.try_into()?;
            programs.set(index as u32, program.fd()?, 0)?;
        }
        Ok(Self { ebpf, _programs: programs, links: Vec::new(), members: MEMBERS })
    }

    /// Attaches programs to a device of the caller's network namespace: for what its endpoint sends, and for what reaches it.
    pub fn attach(&mut self, device: &str, [egress, ingress]: [&'static str; 2]) -> Result<()> {
        for (name, hook) in [(egress, TcAttachType::Ingress), (ingress, TcAttachType::Egress)] {
            let program: &mut SchedClassifier = self.ebpf.program_mut(name).context("a program is gone")?.try_into()?;
            let link = program.attach(device, hook).with_context(|| format!("attaching {name} to {device}"))?;
            self.links.push((name, link));
        }
        Ok(())
    }

    /// Takes the programs off all devices.
    pub fn detach(&mut self) -> Result<()> {
        for (name, link) in std::mem::take(&mut self.links) {
            let program: &mut SchedClassifier = self.ebpf.program_mut(name).context("a program is gone")?.try_into()?;
            program.detach(link).with_context(|| format!("detaching {name}"))?;
        }
        Ok(())
    }

    /// Sets the policy generation, and a quota that is never reached.
    pub fn set_up_config(&mut self) -> Result<()> {
        self.put("CONFIG", 0, Config { generation: 1, flow_quota: u32::MAX >> 1, ..Config::default() })
    }

    /// Sets the row of a group of as many members, and its pick table.
    pub fn set_group(&mut self, group: u32, first_member: u32, members: u32, flags: u32) -> Result<()> {
        let (first_block, slots) = picks(group, members);
        for block in 0..slots / MAGLEV_BLOCK as u32 {
            let picks: [u32; MAGLEV_BLOCK] =
                std::array::from_fn(|i| first_member + (block * MAGLEV_BLOCK as u32 + i as u32) % members);
            self.put("MAGLEV", first_block + block, picks)?;
        }
        self.set_group_row(group, members, flags)
    }

    fn set_group_row(&mut self, group: u32, members: u32, flags: u32) -> Result<()> {
        let (first_block, slots) = picks(group, members);
        // Of those that are compared each has one slot.
        let slots = if flags & group_flags::ALGORITHM == group_flags::LEAST_CONNECTIONS { members } else { slots };
        self.put("GROUPS", group, GroupRow { table: u64::from(first_block) << 32 | u64::from(slots), serial: SERIAL, flags })
    }

    /// Sets a member's row.
    pub fn put_member(&mut self, index: u32, row: MemberRow) -> Result<()> {
        self.put("MEMBERS", index, row)?;
        let family = if row.addr[4..] == [0; 12] { Family::V4 } else { Family::V6 };
        self.set_filter(Filter::Member, filter_of(family, row.addr))
    }

    /// Leads a VIP's port to a group.
    pub fn put_vip(&mut self, family: Family, key: VipKey, group: u32) -> Result<()> {
        self.set_filter(Filter::Vip, filter_of(family, key.addr))?;
        self.insert("VIPS", key, VipRow { group, serial: SERIAL })
    }

    fn set_up(&mut self, past_the_stack: bool) -> Result<()> {
        self.set_up_config()?;
        self.put_endpoint(EndpointRow::default())?;
        for family in [Family::V4, Family::V6] {
            self.set_up_group(family, past_the_stack)?;
            for addr in frames::clients(family, 1) {
                self.put_local(family, addr)?;
            }
        }
        self.check_strangers()
    }

    /// A group of each family, for UDP and TCP.
    fn set_up_group(&mut self, family: Family, past_the_stack: bool) -> Result<()> {
        let (group, members) = (group_of(family), self.members);
        let first_member = 16 + (group - GROUP) * members;
        self.set_group(group, first_member, members, if past_the_stack { group_flags::REDIRECT } else { 0 })?;
        for n in 0..members {
            let (addr, port) = (frames::member(family, n), MEMBER_PORT.to_be_bytes());
            let ifindex = if past_the_stack { MEMBER_DEVICES + n } else { 0 };
            if ifindex != 0 {
                let (id, slot, flags) = (ENDPOINT + 1 + n, SLOT + 1 + n, endpoint_flags::PEER);
                self.put(
                    "ENDPOINTS",
                    ifindex,
                    EndpointRow { ifindex, id, slot, mtu: 1500, mac: [2, 0, 0, 0, 2, 1], flags, ..EndpointRow::default() },
                )?;
            }
            let row = MemberRow {
                addr,
                port,
                serial: SERIAL,
                group,
                ifindex,
                state: state::ACTIVE,
                share: 100,
                ..MemberRow::default()
            };
            self.put_member(first_member + n, row)?;
        }
        for protocol in [Protocol::Udp, Protocol::Ack] {
            let traffic = Traffic { family, protocol, direction: Direction::Egress, peer: Peer::Vip, flows: 1 << 19 };
            self.put_vip(family, traffic.vip_key(), group)?;
            self.note_members(traffic)?;
        }
        Ok(())
    }

    /// Works out which member each flow will get, for its replies.
    fn note_members(&mut self, t: Traffic) -> Result<()> {
        let (plan, number) = (t.plan()?, self.members);
        let mut members: Array<_, [u8; 4]> = Array::try_from(self.map("BENCH_MEMBERS")?)?;
        for flow in 0..t.flows {
            let (addr, port) = plan.client(flow);
            let hash = match t.family {
                Family::V4 => hash::pick(&FlowKey { src: V4::from(addr), sport: port, ..plan.key4 }, 0),
                Family::V6 => {
                    let mut src = plan.key6.src.octets();
                    src[12..].copy_from_slice(&addr);
                    hash::pick(&FlowKey { src: V6::from(src), sport: port, ..plan.key6 }, 0)
                }
            };
            let slot = (u64::from(hash) * u64::from(picks(0, number).1)) >> 32;
            let m = frames::member(t.family, slot as u32 % number);
            let tail = if t.family == Family::V4 { [m[0], m[1], m[2], m[3]] } else { [m[12], m[13], m[14], m[15]] };
            members.set(plan.members + flow, tail, 0)?;
        }
        Ok(())
    }

    /// Gives each flow of `t` a peer of its own.
    pub fn note_peers(&mut self, t: Traffic) -> Result<()> {
        let mut members: Array<_, [u8; 4]> = Array::try_from(self.map("BENCH_MEMBERS")?)?;
        for flow in 0..t.flows {
            let [a, b, c, d, .., w, x, y, z] = frames::peer(t.family, flow % PEERS);
            let tail = if t.family == Family::V4 { [a, b, c, d] } else { [w, x, y, z] };
            members.set(t.members_at() + flow, tail, 0)?;
        }
        Ok(())
    }

    /// An address that shares its filter bit with a VIP or a member is looked up like one: a rare case, and not the one measured.
    fn check_strangers(&mut self) -> Result<()> {
        for (family, addr) in
            [(Family::V4, frames::peer4(Peer::Stranger).widen()), (Family::V6, frames::peer6(Peer::Stranger).widen())]
        {
            let (word, bit) = Filter::Vip.place(filter_of(family, addr));
            let words: Array<_, u64> = Array::try_from(self.map("FILTERS")?)?;
            ensure!(words.get(&word, 0)? >> bit & 1 == 0, "the stranger's address has the filter bit of a VIP: choose another");
        }
        Ok(())
    }

    fn set_filter(&mut self, kind: Filter, hash: u32) -> Result<()> {
        let (word, bit) = kind.place(hash);
        let mut words: Array<_, u64> = Array::try_from(self.map("FILTERS")?)?;
        let old = words.get(&word, 0)?;
        Ok(words.set(word, old | 1 << bit, 0)?)
    }

    /// Reads all events that were reported since this was asked last; says how many.
    pub fn drain_events(&mut self) -> Result<u64> {
        let mut ring = RingBuf::try_from(self.map("EVENTS")?)?;
        let mut events = 0;
        while ring.next().is_some() {
            events += 1;
        }
        Ok(events)
    }

    /// Writes the endpoint's row.
    pub fn put_endpoint(&mut self, row: EndpointRow) -> Result<()> {
        let row = EndpointRow { ifindex: DEVICE, id: ENDPOINT, slot: SLOT, mtu: 1500, ..row };
        self.put("ENDPOINTS", DEVICE, row)
    }

    /// An address of the endpoint's.
    pub fn put_local(&mut self, family: Family, addr: [u8; 16]) -> Result<()> {
        let version = if family == Family::V4 { 4 } else { 6 };
        self.insert("LOCALS", LocalKey { network: 0, version, addr }, DEVICE)
    }

    /// A map.
    pub fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    /// Inserts into a hash map.
    pub fn insert<K: aya::Pod, V: aya::Pod>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let mut map: HashMap<_, K, V> = HashMap::try_from(self.map(name)?)?;
        map.insert(key, value, 0).with_context(|| format!("writing a row of {name}"))
    }

    /// Writes a row of an array.
    pub fn put<V: aya::Pod>(&mut self, name: &str, index: u32, value: V) -> Result<()> {
        let mut array: Array<_, V> = Array::try_from(self.map(name)?)?;
        array.set(index, value, 0).with_context(|| format!("writing row {index} of {name}"))
    }

    /// Runs a program; gives ns per repeat.
    fn test_run(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<f64> {
        let program: &SchedClassifier = self.ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?;
        let result = program.test_run(TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() });
        Ok(result.with_context(|| format!("test run of {name}"))?.duration.as_nanos() as f64)
    }

    /// The cost of a program that does nothing, without the harness's own.
    pub fn bare_null(&mut self, repeat: u32) -> Result<f64> {
        self.test_run("bench_null", &[0; 100], repeat)
    }

    /// Sends packets of random flows to a program; gives ns per packet. Each flow comes once before any comes again.
    pub fn send(&mut self, t: Traffic, target: Target, repeat: u32) -> Result<f64> {
        let plan = Plan { program: target as u32, multiplier: AT_RANDOM.0, increment: AT_RANDOM.1, ..t.plan()? };
        self.run_plan(t, plan, repeat)
    }

    /// Sends one packet of each of `count` flows from number `first` on.
    fn send_in_order(&mut self, t: Traffic, first: u32, count: u32) -> Result<f64> {
        let target = Target::from(t.direction) as u32;
        let plan = in_order(Plan { program: target, state: first.wrapping_sub(1), ..t.plan()? });
        self.run_plan(t, plan, count)
    }

    fn run_plan(&mut self, t: Traffic, plan: Plan, repeat: u32) -> Result<f64> {
        self.put("BENCH_PLAN", 0, plan)?;
        self.test_run(if t.family == Family::V4 { "bench4" } else { "bench6" }, &t.frame()?, repeat)
    }

    /// Makes all the flows of `t`, as their first packets do.
    pub fn establish(&mut self, t: Traffic) -> Result<()> {
        let request = t.request();
        if t.protocol == Protocol::Udp {
            self.send_in_order(request, 0, t.flows)?;
            return Ok(());
        }
        // No more at a time than may be half-open.
        let batch = t.flows.min(HALF_OPEN_QUOTA);
        for first in (0..t.flows).step_by(batch as usize) {
            let syn = Traffic { protocol: Protocol::Syn, ..request };
            self.send_in_order(syn, first, batch)?;
            self.send_in_order(syn.answer(), first, batch)?;
            self.send_in_order(request, first, batch)?;
        }
        Ok(())
    }

    /// Removes all the flows of `t` from the tables.
    pub fn forget(&mut self, t: Traffic) -> Result<()> {
        self.put("BENCH_PLAN", 0, in_order(t.request().plan()?))?;
        self.test_run(if t.family == Family::V4 { "bench_forget4" } else { "bench_forget6" }, &[0; 100], t.flows)?;
        self.put("FLOW_COUNTS", SLOT, FlowCount::default())?;
        if t.protocol == Protocol::Udp {
            return Ok(());
        }
        for place in SLOT * HALF_OPEN_QUOTA..(SLOT + 1) * HALF_OPEN_QUOTA {
            match t.family {
                Family::V4 => self.put("RING4", place, FlowKey::<V4>::default())?,
                Family::V6 => self.put("RING6", place, FlowKey::<V6>::default())?,
            }
        }
        Ok(())
    }

    /// Empties this CPU's flow caches.
    pub fn empty_caches(&mut self, t: Traffic) -> Result<()> {
        let slots = CACHE[0].max(CACHE[1]);
        self.put("BENCH_PLAN", 0, in_order(Plan { mask: slots - 1, ..t.plan()? }))?;
        self.test_run("bench_uncache", &[0; 100], slots).map(drop)
    }

    /// How many packets the endpoint had with this outcome.
    pub fn count(&mut self, direction: Direction, reason: Reason) -> Result<u64> {
        let counters: PerCpuArray<_, EndpointCounters> = PerCpuArray::try_from(self.map("ENDPOINT_COUNTERS")?)?;
        let per_cpu = counters.get(&SLOT, 0)?;
        Ok(per_cpu.iter().map(|c| c.packets[direction as usize][reason as usize]).sum())
    }
}

fn group_of(family: Family) -> u32 {
    GROUP + u32::from(family == Family::V6)
}

/// The pick table of a group of so many members: its first block, and how many slots it has.
fn picks(group: u32, members: u32) -> (u32, u32) {
    let slots = if members > MEMBERS { MANY_PICKS } else { PICKS };
    (group * (slots / MAGLEV_BLOCK as u32), slots)
}

fn in_order(plan: Plan) -> Plan {
    Plan { shift: 31, multiplier: IN_ORDER.0, increment: IN_ORDER.1, ..plan }
}

fn filter_of(family: Family, addr: [u8; 16]) -> u32 {
    match family {
        Family::V4 => hash::filter(0, &V4::narrow(&addr)),
        Family::V6 => hash::filter(0, &V6::narrow(&addr)),
    }
}
