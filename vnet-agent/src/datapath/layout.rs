//! What each pinned map must look like. The object's maps and those found pinned are both held against it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::{MapInfo, MapType};
use vnet_common::addr::{Address, V4, V6};
use vnet_common::endpoint::{EndpointCounters, EndpointRow, FlowCount, HALF_OPEN_QUOTA};
use vnet_common::event::EventBudget;
use vnet_common::flow::fragment::{FragmentKey, FragmentRow};
use vnet_common::flow::{CACHE_WAYS, CacheSlot, FlowEntry, FlowKey};
use vnet_common::lb::{AffinityKey, AffinityRow, GroupRow, LocalKey, MemberAnswers, MemberCounters, MemberRow, VipKey, VipRow};
use vnet_common::map::{Config, MAGLEV_BLOCK, MAPS};
use vnet_common::policy::{AddressKey, NetworkKey, PeerKey, PortRow, RuleCounters, RuleRow, SetRow};

const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

/// The knobs: how much the maps hold. The default is what [`MAPS`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Endpoints.
    pub endpoints: u32,
    /// IPv4 and IPv6 flow entries, two for each flow.
    pub flows: [u32; 2],
    /// IPv4 and IPv6 entries of connections being opened, two for each.
    pub half_open: [u32; 2],
    /// VIP rows.
    pub vips: u32,
    /// Groups.
    pub groups: u32,
    /// Members.
    pub members: u32,
    /// Blocks of pick tables.
    pub maglev: u32,
    /// Addresses of this host's endpoints.
    pub locals: u32,
    /// Clients whose new flows stick to a member.
    pub affinity: u32,
    /// Slots of a CPU's IPv4 and IPv6 flow cache: a power of two from [`CACHE_WAYS`] on each; 0 for no cache at all.
    pub cache: [u32; 2],
    /// Policy.
    pub policy: PolicySizes,
}

/// How much the policy's maps hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySizes {
    /// Sets.
    pub sets: u32,
    /// Rules of all sets together.
    pub rules: u32,
    /// Rows of `PORTS`.
    pub ports: u32,
    /// Words of `BITS`.
    pub bits: u32,
    /// Rows of `PEERS`.
    pub peers: u32,
    /// Addresses of endpoints and hosts, here and elsewhere.
    pub addresses: u32,
    /// Networks.
    pub networks: u32,
    /// Rules that are counted apart.
    pub counters: u32,
    /// Bytes of the ring buffer for events: a power of two, whole pages.
    pub events: u32,
}

/// [`MAPS`]' size of a map.
fn default_size(name: &str) -> u32 {
    MAPS.iter().find(|m| m.0 == name).map_or(1, |m| m.2)
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            endpoints: default_size("RING4") / HALF_OPEN_QUOTA,
            flows: [default_size("FLOWS4"), default_size("FLOWS6")],
            half_open: [default_size("HALF_OPEN4"), default_size("HALF_OPEN6")],
            vips: default_size("VIPS"),
            groups: default_size("GROUPS"),
            members: default_size("MEMBERS"),
            maglev: default_size("MAGLEV"),
            locals: default_size("LOCALS"),
            affinity: default_size("AFFINITY"),
            // Where the number of CPUs cannot be read, making the maps fails with the reason.
            cache: [default_cache_slots(aya::util::nr_cpus().unwrap_or(1)); 2],
            policy: PolicySizes::default(),
        }
    }
}

impl Default for PolicySizes {
    fn default() -> Self {
        Self {
            sets: default_size("SETS"),
            rules: default_size("RULES"),
            ports: default_size("PORTS"),
            bits: default_size("BITS"),
            peers: default_size("PEERS"),
            addresses: default_size("IPCACHE"),
            networks: default_size("CIDRS"),
            counters: default_size("RULE_COUNTERS"),
            events: default_size("EVENTS"),
        }
    }
}

/// Slots of a CPU's flow cache for either family: twice as many as the 64K flows that a busy CPU may have (24 MiB), fewer where all CPUs
/// together would take more than 256 MiB. The more CPUs, the fewer flows each of them sees.
fn default_cache_slots(cpus: usize) -> u32 {
    let slot = size_of::<CacheSlot<V4>>() + size_of::<CacheSlot<V6>>();
    let mut slots = 1 << 17;
    while slots * slot * cpus > 256 << 20 && slots > 1 << 10 {
        slots /= 2;
    }
    slots as u32
}

impl Sizes {
    /// Refuses what cannot be.
    pub fn check(&self) -> Result<()> {
        for (slots, v) in self.cache.iter().zip([4, 6]) {
            if *slots != 0 && !(slots.is_power_of_two() && *slots >= CACHE_WAYS) {
                bail!(
                    "flow cache for IPv{v}: {slots} slots is no power of two from {CACHE_WAYS} on; give one, or 0 for no cache"
                );
            }
        }
        if (self.cache[0] == 0) != (self.cache[1] == 0) {
            bail!("the flow caches for IPv4 and IPv6 are on or off together; give both a size, or 0 to both");
        }
        if self.endpoints > u32::MAX / HALF_OPEN_QUOTA {
            bail!("{} endpoints are too many; give at most {}", self.endpoints, u32::MAX / HALF_OPEN_QUOTA);
        }
        let all = [self.endpoints, self.vips, self.groups, self.members, self.maglev, self.locals, self.affinity];
        let p = &self.policy;
        let policy = [p.sets, p.rules, p.ports, p.bits, p.peers, p.addresses, p.networks, p.counters];
        if all.iter().chain(&self.flows).chain(&self.half_open).chain(&policy).any(|n| *n == 0) {
            bail!("a map of size 0 cannot be made; every size but the flow caches' must be at least 1");
        }
        if !p.events.is_power_of_two() || p.events < SMALLEST_BUFFER {
            bail!("a buffer of {} bytes for events cannot be made; give a power of two from {SMALLEST_BUFFER} on", p.events);
        }
        Ok(())
    }
}

/// A ring buffer is of whole pages; no page is larger than this.
const SMALLEST_BUFFER: u32 = 1 << 16;

/// One map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    /// Its name, in the object and in the pin directory.
    pub name: &'static str,
    /// Its type.
    pub kind: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many entries it has room for.
    pub max_entries: u32,
    /// Flags at creation.
    pub flags: u32,
}

/// Possible CPUs: per-CPU maps and the caches have a place for each.
pub fn cpus() -> Result<u32> {
    let n = aya::util::nr_cpus().map_err(|(path, e)| anyhow::anyhow!("reading {path} for the number of CPUs: {e}"))?;
    Ok(n as u32)
}

/// Every map, with the sizes that are asked for.
pub fn layouts(sizes: &Sizes) -> Result<Vec<Layout>> {
    let cpus = cpus()?;
    let cache =
        |slots: u32| slots.checked_mul(cpus).map(|n| n.max(1)).context("the flow cache has too many slots for this many CPUs");
    let (cache4, cache6) = (cache(sizes.cache[0])?, cache(sizes.cache[1])?);
    let hash =
        |name, k, v, n| Layout { name, kind: MapType::Hash, key_size: k, value_size: v, max_entries: n, flags: NO_PREALLOC };
    let flows = |name, k, v, n| Layout { flags: 0, ..hash(name, k, v, n) };
    let array = |name, v, n| Layout { name, kind: MapType::Array, key_size: 4, value_size: v, max_entries: n, flags: MMAPABLE };
    let per_cpu = |name, v, n| Layout { name, kind: MapType::PerCpuArray, key_size: 4, value_size: v, max_entries: n, flags: 0 };
    let (key4, entry4, key6, entry6) = (flow_key::<V4>(), flow_entry::<V4>(), flow_key::<V6>(), flow_entry::<V6>());
    let ring = sizes.endpoints * HALF_OPEN_QUOTA;
    Ok(vec![
        array("CONFIG", size::<Config>(), default_size("CONFIG")),
        array("CLOCK", 8, default_size("CLOCK")),
        array("ENDPOINTS", size::<EndpointRow>(), default_size("ENDPOINTS")),
        hash("ENDPOINTS_MORE", 4, size::<EndpointRow>(), default_size("ENDPOINTS_MORE")),
        per_cpu("ENDPOINT_COUNTERS", size::<EndpointCounters>(), sizes.endpoints),
        array("FLOW_COUNTS", size::<FlowCount>(), sizes.endpoints),
        flows("FLOWS4", key4, entry4, sizes.flows[0]),
        flows("FLOWS6", key6, entry6, sizes.flows[1]),
        flows("HALF_OPEN4", key4, entry4, sizes.half_open[0]),
        flows("HALF_OPEN6", key6, entry6, sizes.half_open[1]),
        array("RING4", key4, ring),
        array("RING6", key6, ring),
        array("RING_HEADS", 8, sizes.endpoints),
        array("CACHE4", size::<CacheSlot<V4>>(), cache4),
        array("CACHE6", size::<CacheSlot<V6>>(), cache6),
        array("STAMPS", 8, default_size("STAMPS")),
        array("FILTERS", 8, default_size("FILTERS")),
        hash("LOCALS", size::<LocalKey>(), 4, sizes.locals),
        hash("VIPS", size::<VipKey>(), size::<VipRow>(), sizes.vips),
        array("GROUPS", size::<GroupRow>(), sizes.groups),
        array("MEMBERS", size::<MemberRow>(), sizes.members),
        per_cpu("MEMBER_COUNTERS", size::<MemberCounters>(), sizes.members),
        per_cpu("MEMBER_ANSWERS", size::<MemberAnswers>(), sizes.members),
        array("CONNECTING", 8, default_size("CONNECTING")),
        array("MAGLEV", size::<[u32; MAGLEV_BLOCK]>(), sizes.maglev),
        array("TURNS", 8, sizes.groups),
        array("ACTIVE", 8, sizes.members),
        Layout { kind: MapType::LruHash, ..flows("AFFINITY", size::<AffinityKey>(), size::<AffinityRow>(), sizes.affinity) },
        Layout {
            kind: MapType::LruHash,
            ..flows("FRAGMENTS", size::<FragmentKey>(), size::<FragmentRow>(), default_size("FRAGMENTS"))
        },
        array("SETS", size::<SetRow>(), sizes.policy.sets),
        array("RULES", size::<RuleRow>(), sizes.policy.rules),
        array("PORTS", size::<PortRow>(), sizes.policy.ports),
        array("BITS", 8, sizes.policy.bits),
        hash("PEERS", size::<PeerKey>(), 4, sizes.policy.peers),
        hash("IPCACHE", size::<AddressKey>(), 4, sizes.policy.addresses),
        Layout { kind: MapType::LpmTrie, ..hash("CIDRS", size::<NetworkKey>(), 4, sizes.policy.networks) },
        per_cpu("RULE_COUNTERS", size::<RuleCounters>(), sizes.policy.counters),
        Layout { kind: MapType::RingBuf, flags: 0, ..hash("EVENTS", 0, 0, sizes.policy.events) },
        per_cpu("EVENT_BUDGET", size::<EventBudget>(), default_size("EVENT_BUDGET")),
    ])
}

const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

const fn flow_key<A: Address>() -> u32 {
    size::<FlowKey<A>>()
}

const fn flow_entry<A: Address>() -> u32 {
    size::<FlowEntry<A>>()
}

impl Layout {
    /// Of a map that exists.
    pub fn of(name: &'static str, info: &MapInfo) -> Result<Self> {
        let kind = info.map_type().with_context(|| format!("map {name}: reading its type"))?;
        let (key_size, value_size) = (info.key_size(), info.value_size());
        Ok(Self { name, kind, key_size, value_size, max_entries: info.max_entries(), flags: info.map_flags() })
    }

    /// Of a pinned map; `None` if nothing is pinned there.
    pub fn pinned(name: &'static str, path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let info = MapInfo::from_pin(path).with_context(|| format!("opening the pinned map {}", path.display()))?;
        Self::of(name, &info).map(Some)
    }

    /// The same but for the number of entries?
    pub fn compatible(&self, other: &Self) -> bool {
        Self { max_entries: other.max_entries, ..*self } == *other
    }

    /// Bytes of a value as bpf(2) copies it.
    pub fn copied_value_size(&self) -> Result<usize> {
        let size = (self.value_size as usize).next_multiple_of(8);
        Ok(match self.kind {
            MapType::PerCpuArray => size * cpus()? as usize,
            _ => self.value_size as usize,
        })
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, key_size, value_size, max_entries, flags, .. } = self;
        write!(f, "{kind:?}, key {key_size} bytes, value {value_size} bytes, {max_entries} entries, flags {flags:#x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_that_is_documented_has_a_layout_and_the_other_way_round() {
        let mut names: Vec<_> = layouts(&Sizes::default()).unwrap().iter().map(|l| l.name).collect();
        let mut documented: Vec<_> = MAPS.iter().map(|m| m.0).collect();
        names.sort_unstable();
        documented.sort_unstable();
        assert_eq!(names, documented);
    }

    #[test]
    fn a_cache_size_that_is_no_power_of_two_is_refused() {
        let sizes = Sizes { cache: [1000, 1024], ..Sizes::default() };
        assert!(sizes.check().unwrap_err().to_string().contains("1000 slots"));
    }

    #[test]
    fn a_policy_size_that_cannot_be_is_refused() {
        let with = |change: fn(&mut PolicySizes)| {
            let mut sizes = Sizes::default();
            change(&mut sizes.policy);
            sizes.check().map_err(|e| e.to_string())
        };
        assert!(with(|p| p.peers = 0).unwrap_err().contains("size 0"));
        assert!(with(|p| p.events = 100_000).unwrap_err().contains("100000 bytes"));
        assert!(with(|p| p.events = 4096).unwrap_err().contains("from 65536 on"));
        assert_eq!(with(|p| p.events = 1 << 16), Ok(()));
    }

    #[test]
    fn flow_caches_are_bounded_in_total() {
        assert_eq!([1, 10, 11, 64, 1024].map(default_cache_slots), [1 << 17, 1 << 17, 1 << 16, 1 << 14, 1 << 10]);
    }
}
