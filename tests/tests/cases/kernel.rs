//! The loaded programs, run by `BPF_PROG_TEST_RUN` over maps that are filled from the host's.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader, Pod};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::Pid;
use vnet_common::addr::{Address, V4, V6};
use vnet_common::endpoint::{EndpointCounters, EndpointRow, FlowCount, HALF_OPEN_QUOTA};
use vnet_common::event::EventRow;
use vnet_common::flow::fragment::{FragmentKey, FragmentRow};
use vnet_common::flow::{CacheSlot, FlowEntry, FlowKey, Rewrite};
use vnet_common::host::{Frame, Maps, Policy};
use vnet_common::lb::{AffinityKey, AffinityRow, LocalKey, MemberAnswers, MemberCounters, VipKey, VipRow};
use vnet_common::map::{Config, ENDPOINT_ROWS, MAGLEV_BLOCK};
use vnet_common::policy::{AddressKey, PeerKey, RuleCounters, SetRow};
use vnet_common::verdict::Direction;

use super::snapshot::Snapshot;
use super::world::{CACHE_SLOTS, FAR, NEAR, STRANGER};

/// Rows of per-endpoint tables that tests use.
const SLOTS: u32 = 4;
/// Rows of per-member tables that tests use.
const MEMBERS: u32 = 32;

/// Does the kernel take the frame in a test run? It wants a whole IP header where the EtherType promises one.
pub fn takes(frame: &[u8]) -> bool {
    let shortest = match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => 14 + 1,
    };
    frame.len() >= shortest
}

/// A program's answer to one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The TC action.
    pub action: i32,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// `skb->mark` afterwards.
    pub mark: u32,
}

/// The object, loaded once, in a namespace with the devices that rows use.
pub struct Kernel {
    ebpf: Ebpf,
    namespace: File,
    /// Rows of arrays that are not empty.
    endpoints: BTreeSet<u32>,
    filters: BTreeSet<u32>,
    sets: BTreeSet<u32>,
    groups: u32,
    members: u32,
    /// Above the greatest rule number of the present policy, and of those whose counters may not be 0.
    rules: [u32; 2],
    /// Gets what goes out of the device [`STRANGER`], where there is one.
    copies: Option<OwnedFd>,
    links: Vec<SchedClassifierLink>,
}

/// The kernel, for one test at a time; the calling thread enters its namespace.
pub fn lock() -> MutexGuard<'static, Kernel> {
    static KERNEL: OnceLock<Mutex<Kernel>> = OnceLock::new();
    static TRIED: AtomicBool = AtomicBool::new(false);
    let kernel = KERNEL.get_or_init(|| {
        // The verifier takes seconds to refuse.
        assert!(!TRIED.swap(true, Ordering::Relaxed), "the programs cannot be loaded: another test says why");
        Mutex::new(Kernel::with_devices())
    });
    // A test that failed has left nothing that `reset` does not clear.
    let k = kernel.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    setns(&k.namespace, CloneFlags::CLONE_NEWNET).expect("entering the tests' network namespace");
    let mut cpus = CpuSet::new();
    cpus.set(0).expect("CPU 0");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("staying on CPU 0");
    k
}

/// Frames that a packet socket got since this was asked last.
pub fn received(socket: &OwnedFd) -> Vec<Vec<u8>> {
    let (mut frames, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        frames.push(buffer[..n].to_vec());
    }
    frames
}

/// A packet socket (packet(7)) that gets every frame that comes in at a device of this thread's namespace.
pub fn packets_at(device: &str) -> std::io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let index = nix::net::if_::if_nametoindex(device)? as i32;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a file descriptor that was just opened, and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain data, for which zeros are valid.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (at.sll_family, at.sll_protocol, at.sll_ifindex) = (libc::AF_PACKET as u16, all, index);
    // SAFETY: an address of this size, which lives over the call.
    let bound = unsafe { libc::bind(fd, (&raw const at).cast(), size_of_val(&at) as u32) };
    if bound < 0 { Err(std::io::Error::last_os_error()) } else { Ok(socket) }
}

fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split(' ')).output().expect("running ip (package iproute2)");
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Kernel {
    /// In a network namespace of its own, with devices for rows.
    fn with_devices() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("making a network namespace: these tests must be run as root");
        // Where there is IPv6 it would send packets of its own.
        if let Err(e) = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
            assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "switching IPv6 off: {e}");
        }
        ip(&format!("link add near index {NEAR} type veth peer name far index {FAR}"));
        ip(&format!("link add stranger index {STRANGER} type veth peer name other"));
        ip("link set stranger up");
        ip("link set other up");
        let copies = packets_at("other").expect("opening a packet socket");
        Self { copies: Some(copies), ..Self::load() }
    }

    /// In the caller's namespaces.
    pub fn load() -> Self {
        let namespace = File::open("/proc/thread-self/ns/net").expect("opening the network namespace");
        let cpus = nr_cpus().expect("counting CPUs") as u32;
        let mut ebpf = EbpfLoader::new()
            .override_global("CACHE_ON", &1u32, true)
            .override_global("CACHE_MASK", &(CACHE_SLOTS - 1), true)
            .override_global("CACHE_MASK6", &(CACHE_SLOTS - 1), true)
            .map_max_entries("CACHE4", CACHE_SLOTS * cpus)
            .map_max_entries("CACHE6", CACHE_SLOTS * cpus)
            .load(vnet_agent::object::object())
            .expect("loading the eBPF object: these tests must be run as root");
        for name in ["vm_egress", "vm_ingress"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).expect(name).try_into().expect(name);
            program.load().unwrap_or_else(|e| panic!("loading {name}: {e}"));
        }
        let (endpoints, filters) = (BTreeSet::new(), BTreeSet::new());
        Self {
            ebpf,
            namespace,
            endpoints,
            filters,
            sets: BTreeSet::new(),
            groups: 0,
            members: 0,
            rules: [0; 2],
            copies: None,
            links: Vec::new(),
        }
    }

    /// Frames that went out of the device [`STRANGER`] since this was asked last.
    pub fn copies(&self) -> Vec<Vec<u8>> {
        self.copies.as_ref().map(received).unwrap_or_default()
    }

    /// Attaches the programs to a device of the caller's namespace, for as long as this lives.
    pub fn attach(&mut self, device: &str) {
        for (name, hook) in [("vm_egress", TcAttachType::Ingress), ("vm_ingress", TcAttachType::Egress)] {
            let program: &mut SchedClassifier = self.ebpf.program_mut(name).expect(name).try_into().expect(name);
            let link = program.attach(device, hook).unwrap_or_else(|e| panic!("attaching {name} to {device}: {e}"));
            self.links.push(program.take_link(link).expect("the link that was just made"));
        }
    }

    /// What the verifier looked at, by program.
    pub fn verified_instructions(&self) -> Vec<(&str, u32)> {
        let count = |p: &aya::programs::Program| p.info().ok()?.verified_instruction_count();
        self.ebpf.programs().filter_map(|(name, p)| Some((name, count(p)?))).collect()
    }

    fn array<V: Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }
    fn per_cpu<V: Pod>(&mut self, name: &str) -> PerCpuArray<&mut MapData, V> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }
    fn table<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }
    fn set<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        self.array(name).set(index, value, 0).unwrap_or_else(|e| panic!("writing {name}[{index}]: {e}"));
    }

    /// Makes a hash table hold exactly these rows.
    fn replace<K: Pod + PartialEq, V: Pod>(&mut self, name: &str, rows: impl Iterator<Item = (K, V)>) {
        let mut table = self.table::<K, V>(name);
        let rows: Vec<_> = rows.collect();
        let old: Vec<K> = table.keys().collect::<Result<_, _>>().expect(name);
        for key in old.iter().filter(|k| !rows.iter().any(|r| r.0 == **k)) {
            table.remove(key).expect(name);
        }
        for (key, value) in rows {
            table.insert(key, value, 0).expect(name);
        }
    }

    /// Writes everything that the agent writes.
    pub fn configure(&mut self, maps: &Maps) {
        let mut config = Config { generation: maps.generation.get(), flow_quota: maps.flow_quota, ..Config::default() };
        for (place, port) in config.tunnel_ports.iter_mut().zip(&maps.tunnel_ports) {
            *place = *port;
        }
        (config.events, config.event_rate) = (u32::from(maps.events.get()), u32::MAX);
        self.set("CONFIG", 0, config);
        self.configure_policy(&maps.policy);
        for ifindex in std::mem::take(&mut self.endpoints) {
            self.set("ENDPOINTS", ifindex % ENDPOINT_ROWS, EndpointRow::default());
        }
        for (ifindex, row) in &maps.endpoints {
            self.set("ENDPOINTS", ifindex % ENDPOINT_ROWS, *row);
            self.endpoints.insert(*ifindex);
        }
        for word in std::mem::take(&mut self.filters) {
            self.set("FILTERS", word, 0u64);
        }
        for (word, _) in &maps.filters {
            let bits = maps.filters.iter().filter(|f| f.0 == *word).fold(0u64, |bits, f| bits | 1 << f.1);
            self.set("FILTERS", *word, bits);
            self.filters.insert(*word);
        }
        let slots = maps.endpoints.values().all(|e| e.slot < SLOTS);
        assert!(slots && maps.members.len() <= MEMBERS as usize, "more than is read back from the kernel");
        self.replace::<VipKey, VipRow>("VIPS", maps.vips.iter().map(|(k, v)| (*k, *v)));
        self.replace::<LocalKey, u32>("LOCALS", maps.locals.iter().map(|(k, v)| (*k, *v)));
        for i in 0..self.groups.max(maps.groups.len() as u32) {
            self.set("GROUPS", i, maps.groups.get(i as usize).copied().unwrap_or_default());
        }
        for i in 0..self.members.max(maps.members.len() as u32) {
            self.set("MEMBERS", i, maps.members.get(i as usize).copied().unwrap_or_default());
        }
        (self.groups, self.members) = (maps.groups.len() as u32, maps.members.len() as u32);
        for (i, block) in (0..).zip(&maps.maglev) {
            self.set::<[u32; MAGLEV_BLOCK]>("MAGLEV", i, *block);
        }
    }

    /// How far the groups' turns are, and what members clients stick to: of what the programs write.
    fn reset_picks(&mut self) {
        for group in 0..self.groups {
            self.set("TURNS", group, 0u64);
        }
        for member in 0..MEMBERS {
            self.set("ACTIVE", member, 0u64);
        }
        self.replace::<AffinityKey, AffinityRow>("AFFINITY", std::iter::empty());
        self.replace::<FragmentKey, FragmentRow>("FRAGMENTS", std::iter::empty());
    }

    fn configure_policy(&mut self, policy: &Policy) {
        for row in std::mem::take(&mut self.sets) {
            self.set("SETS", row, SetRow::default());
        }
        for (row, set) in &policy.sets {
            self.set("SETS", *row, *set);
            self.sets.insert(*row);
        }
        for (i, rule) in (0..).zip(&policy.rules) {
            self.set("RULES", i, *rule);
        }
        let rules = policy.rules.iter().map(|r| r.id + 1).max().unwrap_or(0);
        self.rules = [rules, self.rules[1].max(rules)];
        for (i, port) in (0..).zip(&policy.ports) {
            self.set("PORTS", i, *port);
        }
        for (i, bits) in (0..).zip(&policy.bits) {
            self.set("BITS", i, *bits);
        }
        self.replace::<PeerKey, u32>("PEERS", policy.peers.iter().map(|(k, v)| (*k, *v)));
        self.replace::<AddressKey, u32>("IPCACHE", policy.ipcache.iter().map(|(k, v)| (*k, *v)));
        let mut cidrs: LpmTrie<&mut MapData, AddressKey, u32> =
            self.ebpf.map_mut("CIDRS").expect("CIDRS").try_into().expect("CIDRS");
        let old: Vec<_> = cidrs.keys().collect::<Result<_, _>>().expect("CIDRS");
        for key in old {
            cidrs.remove(&key).expect("CIDRS");
        }
        for ((bits, key), identity) in &policy.cidrs {
            cidrs.insert(&Key::new(*bits, *key), identity, 0).expect("CIDRS");
        }
    }

    /// The events that were reported since this was asked last.
    pub fn events(&mut self) -> Vec<EventRow> {
        let mut ring: RingBuf<&mut MapData> = self.ebpf.map_mut("EVENTS").expect("EVENTS").try_into().expect("EVENTS");
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            assert_eq!(item.len(), size_of::<EventRow>());
            // SAFETY: an item of this size is an `EventRow`: plain data, for which every bit pattern is valid.
            events.push(unsafe { item.as_ptr().cast::<EventRow>().read_unaligned() });
        }
        events
    }

    /// Clears flows and counters.
    pub fn reset(&mut self) {
        for slot in 0..SLOTS {
            let zero = vec![EndpointCounters::default(); nr_cpus().expect("counting CPUs")];
            let zero = PerCpuValues::try_from(zero).expect("one value a CPU");
            self.per_cpu("ENDPOINT_COUNTERS").set(slot, zero, 0).expect("ENDPOINT_COUNTERS");
            self.set("FLOW_COUNTS", slot, FlowCount::default());
        }
        for row in 0..MEMBERS {
            let zero = vec![MemberCounters::default(); nr_cpus().expect("counting CPUs")];
            let zero = PerCpuValues::try_from(zero).expect("one value a CPU");
            self.per_cpu("MEMBER_COUNTERS").set(row, zero, 0).expect("MEMBER_COUNTERS");
            let zero = vec![MemberAnswers::default(); nr_cpus().expect("counting CPUs")];
            let zero = PerCpuValues::try_from(zero).expect("one value a CPU");
            self.per_cpu("MEMBER_ANSWERS").set(row, zero, 0).expect("MEMBER_ANSWERS");
        }
        for id in 0..self.rules[1] {
            let zero = vec![RuleCounters::default(); nr_cpus().expect("counting CPUs")];
            let zero = PerCpuValues::try_from(zero).expect("one value a CPU");
            self.per_cpu("RULE_COUNTERS").set(id, zero, 0).expect("RULE_COUNTERS");
        }
        self.rules[1] = self.rules[0];
        self.reset_picks();
        self.events();
        self.copies();
        self.reset_flows::<V4>(["FLOWS4", "HALF_OPEN4", "CACHE4", "RING4"], 0);
        self.reset_flows::<V6>(["FLOWS6", "HALF_OPEN6", "CACHE6", "RING6"], 1);
        for slot in 0..SLOTS {
            self.set("RING_HEADS", slot, [0u32; 2]);
        }
    }

    fn reset_flows<A: Address>(&mut self, [main, half_open, cache, ring]: [&str; 4], family: usize) {
        self.replace::<FlowKey<A>, FlowEntry<A>>(main, std::iter::empty());
        self.replace::<FlowKey<A>, FlowEntry<A>>(half_open, std::iter::empty());
        let empty = CacheSlot::<A>::empty(FlowKey::default(), Rewrite::default());
        for i in 0..CACHE_SLOTS {
            self.set(cache, i, empty);
        }
        for slot in 0..SLOTS {
            let head = self.array::<[u32; 2]>("RING_HEADS").get(&slot, 0).expect("RING_HEADS")[family];
            for place in 1..=head.min(HALF_OPEN_QUOTA) {
                self.set(ring, slot * HALF_OPEN_QUOTA + place % HALF_OPEN_QUOTA, FlowKey::<A>::default());
            }
        }
    }

    /// Runs the program of one direction on a frame at the device `ifindex`.
    pub fn run(&mut self, direction: Direction, ifindex: u32, frame: &Frame) -> Ran {
        let name = if direction == Direction::Egress { "vm_egress" } else { "vm_ingress" };
        let program: &SchedClassifier = self.ebpf.program(name).expect(name).try_into().expect(name);
        let ctx = context(ifindex, frame.segment, frame.mark);
        let (mut out, mut ctx_out) = (vec![0; frame.bytes.len() + 256], ctx);
        let options = TestRunOptions {
            data_in: Some(&frame.bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&ctx),
            ctx_out: Some(&mut ctx_out),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).unwrap_or_else(|e| panic!("running {name} at {ifindex} on {frame:02x?}: {e:?}"));
        out.truncate(result.data_size_out as usize);
        let mark = ctx_out[MARK..MARK + 4].try_into().map(u32::from_ne_bytes).expect("four bytes");
        Ran { action: result.return_value as i32, bytes: out, mark }
    }

    /// Everything that was counted, and all flows.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut s = Snapshot::default();
        for slot in 0..SLOTS {
            let rows = self.per_cpu::<EndpointCounters>("ENDPOINT_COUNTERS").get(&slot, 0).expect("ENDPOINT_COUNTERS");
            s.add_endpoint(slot, rows.iter().fold(EndpointCounters::default(), sum_endpoint));
            let n: FlowCount = self.array("FLOW_COUNTS").get(&slot, 0).expect("FLOW_COUNTS");
            s.add_quota(slot, n.created.wrapping_sub(n.removed));
        }
        for row in 0..MEMBERS {
            let rows = self.per_cpu::<MemberCounters>("MEMBER_COUNTERS").get(&row, 0).expect("MEMBER_COUNTERS");
            s.add_member(row, rows.iter().fold(MemberCounters::default(), sum_member));
            let rows = self.per_cpu::<MemberAnswers>("MEMBER_ANSWERS").get(&row, 0).expect("MEMBER_ANSWERS");
            rows.iter().for_each(|answers| s.add_answers(row, answers));
            let active: u64 = self.array("ACTIVE").get(&row, 0).expect("ACTIVE");
            s.add_active(row, active as i64);
        }
        for id in 0..self.rules[1] {
            let rows = self.per_cpu::<RuleCounters>("RULE_COUNTERS").get(&id, 0).expect("RULE_COUNTERS");
            let sum = |a: RuleCounters, b: &RuleCounters| RuleCounters {
                hits: a.hits + b.hits,
                bytes: a.bytes + b.bytes,
                staged: a.staged + b.staged,
            };
            s.add_rule(id, rows.iter().fold(RuleCounters::default(), sum));
        }
        s.events = self.events().into_iter().map(|e| EventRow { jiffies: 0, ..e }).collect();
        self.add_flows::<V4>(&mut s, ["FLOWS4", "HALF_OPEN4", "CACHE4"]);
        self.add_flows::<V6>(&mut s, ["FLOWS6", "HALF_OPEN6", "CACHE6"]);
        s.sorted()
    }

    fn add_flows<A: Address>(&mut self, s: &mut Snapshot, [main, half_open, cache]: [&str; 3]) {
        let slots: Vec<CacheSlot<A>> = (0..CACHE_SLOTS).map(|i| self.array(cache).get(&i, 0).expect(cache)).collect();
        let main = self.table(main).iter().collect::<Result<_, _>>().expect("reading flows");
        let half_open = self.table(half_open).iter().collect::<Result<_, _>>().expect("reading half-open flows");
        s.add_flows(&slots, main, half_open);
    }
}

fn sum_endpoint(mut a: EndpointCounters, b: &EndpointCounters) -> EndpointCounters {
    for d in 0..2 {
        a.bytes[d] += b.bytes[d];
        a.packets[d].iter_mut().zip(b.packets[d]).for_each(|(a, b)| *a += b);
    }
    a
}

fn sum_member(mut a: MemberCounters, b: &MemberCounters) -> MemberCounters {
    a.new_flows += b.new_flows;
    a.established += b.established;
    a.resets += b.resets;
    for d in 0..2 {
        a.packets[d] += b.packets[d];
        a.bytes[d] += b.bytes[d];
    }
    a
}

/// Where `struct __sk_buff` (`linux/bpf.h`) has the mark.
const MARK: usize = 8;

/// A `struct __sk_buff` that says where the packet is and how it will be cut up.
fn context(ifindex: u32, segment: u32, mark: u32) -> [u8; 192] {
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut b = [0; 192];
    b[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
    b[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    b[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&segment.to_ne_bytes());
    b
}
