//! Metrics in Prometheus' text format. `docs/OPERATIONS.md` lists them.
//!
//! All of it is read when it is asked for: nothing is counted twice, and who does not ask pays nothing. How many series there can be is
//! bounded: of each kind of thing, the [`MOST`] busiest have series of their own, and how many are left out is a metric.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use vnet_common::api::fleet::FleetBrief;
use vnet_common::api::{ConnectTimes, EndpointStatus, LbStatus, QuarantineStatus, RuleStatus, SourceStatus, Status};

pub use prometheus_text::CONTENT_TYPE;

/// Of endpoints, of rules and of members, those that have series.
pub const MOST: usize = 2000;

/// How long things took, since the agent started.
#[derive(Clone, Debug)]
pub struct Timings {
    compile: Histogram,
    apply: Histogram,
    enforce: Histogram,
}

impl Default for Timings {
    fn default() -> Self {
        // 0.1 ms to 6.5 s.
        let histogram = || Histogram::new((0..9).map(|n| 1e-4 * f64::from(4u32.pow(n))));
        // 20 µs to 10 ms: the goal is 1 ms.
        let enforce = [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2];
        Self { compile: histogram(), apply: histogram(), enforce: Histogram::new(enforce) }
    }
}

impl Timings {
    /// Policy was compiled.
    pub fn compiled(&self, took: Duration) {
        self.compile.observe(took.as_secs_f64());
    }

    /// What was compiled was written into the datapath.
    pub fn applied(&self, took: Duration) {
        self.apply.observe(took.as_secs_f64());
    }

    /// An endpoint was moved by a tag: from the tag's arrival until it was enforced.
    pub fn enforced(&self, took: Duration) {
        self.enforce.observe(took.as_secs_f64());
    }

    fn register(&self, registry: &mut Registry) {
        for (name, help, histogram) in [
            ("vnet_policy_compile_duration_seconds", "Compiling resources into rows", &self.compile),
            ("vnet_policy_apply_duration_seconds", "Writing rows into the datapath", &self.apply),
            ("vnet_quarantine_enforce_duration_seconds", "From a tag's arrival until it is enforced", &self.enforce),
        ] {
            registry.register(name, help, histogram.clone());
        }
    }
}

/// Events of the datapath, and who reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Reported.
    pub reported: u64,
    /// Not reported, since there were too many.
    pub suppressed: u64,
    /// Readers that follow.
    pub followers: usize,
}

/// What the metrics are made from: all that the API tells too.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The agent.
    pub status: Status,
    /// Endpoints.
    pub endpoints: Vec<EndpointStatus>,
    /// Flows of endpoints in the main table, by name.
    pub endpoint_flows: BTreeMap<String, u64>,
    /// Load balancers.
    pub lbs: Vec<LbStatus>,
    /// Rules.
    pub rules: Vec<RuleStatus>,
    /// Quarantine.
    pub quarantine: QuarantineStatus,
    /// Tag sources.
    pub sources: Vec<SourceStatus>,
    /// Events.
    pub events: EventCounts,
}

/// The metrics as text.
pub fn text(snapshot: Snapshot, timings: &Timings) -> Result<String> {
    let mut registry = Registry::default();
    timings.register(&mut registry);
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).context("writing metrics")?;
    Ok(text)
}

/// Labels with their values.
type Labels<const N: usize> = [(&'static str, String); N];

/// Writes metrics. Two rows with the same labels would make a scrape worthless: they are added.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// A number that only grows; `_total` is added to its name.
    fn counter<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<N>, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in summed(rows) {
            metric.encode_family(&labels)?.encode_counter(&value, None::<&Exemplar<Vec<(String, String)>, f64>>)?;
        }
        Ok(())
    }

    /// Times.
    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<N>, ConnectTimes)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, times) in rows {
            // The last one, without an end, is the encoder's own.
            let ends = ConnectTimes::ends().into_iter().flatten().map(|us| us as f64 / 1e6);
            let buckets: Vec<_> = ends.zip(times.buckets).collect();
            let none = None::<&HashMap<usize, Exemplar<Vec<(String, String)>, f64>>>;
            metric.encode_family(&labels)?.encode_histogram(times.total_us as f64 / 1e6, times.count(), &buckets, none)?;
        }
        Ok(())
    }

    /// A number that goes up and down.
    fn gauge<const N: usize>(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels<N>, u64)>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in summed(rows) {
            metric.encode_family(&labels)?.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }
}

fn summed<const N: usize>(rows: impl IntoIterator<Item = (Labels<N>, u64)>) -> BTreeMap<Labels<N>, u64> {
    let mut all = BTreeMap::new();
    for (labels, value) in rows {
        *all.entry(labels).or_default() += value;
    }
    all
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut w = Writer(encoder);
        let endpoints = busiest(&self.endpoints, |e| e.bytes[0] + e.bytes[1]);
        let rules = busiest(&self.rules, |r| r.hits + r.would_hit);
        let members: Vec<_> = self.lbs.iter().flat_map(|lb| lb.members.iter().map(move |m| Member { lb, status: m })).collect();
        let members = busiest(&members, |m| m.status.new_flows);
        self.agent(&mut w)?;
        self.endpoints(&mut w, &endpoints)?;
        self.rules(&mut w, &rules)?;
        balanced(&mut w, &members)?;
        self.quarantine(&mut w)?;
        self.sources(&mut w)?;
        let all = self.lbs.iter().map(|lb| lb.members.len()).sum::<usize>();
        let left_out = [
            ("endpoints", self.endpoints.len() - endpoints.len()),
            ("rules", self.rules.len() - rules.len()),
            ("members", all - members.len()),
        ];
        let left_out = left_out.map(|(of, n)| ([("of", of.to_owned())], n as u64));
        w.gauge("vnet_metrics_left_out", "Things that are too many to have series of their own", left_out)
    }
}

/// At most [`MOST`] of the list: where it is longer, those with the largest counts.
fn busiest<T>(list: &[T], count: impl Fn(&T) -> u64) -> Vec<&T> {
    let mut all: Vec<&T> = list.iter().collect();
    if all.len() > MOST {
        all.sort_by_key(|t| Reverse(count(t)));
        all.truncate(MOST);
    }
    all
}

/// The store that a fleet shares, and its hosts.
fn shared(w: &mut Writer<'_>, fleet: &FleetBrief) -> fmt::Result {
    w.gauge("vnet_store_connected", "Whether the shared store is heard of", [([], u64::from(fleet.connected.is_some()))])?;
    w.gauge("vnet_store_silent_seconds", "For how long the shared store has not been heard of", [([], fleet.silent_seconds)])?;
    let applied = u64::try_from(fleet.applied).unwrap_or(0);
    w.gauge("vnet_store_applied_revision", "The newest revision of what is desired that is in force here", [([], applied)])?;
    w.gauge("vnet_store_refused", "Whether a newer revision was refused here", [([], u64::from(fleet.refused))])?;
    let states = [("alive", fleet.alive), ("silent", fleet.hosts.saturating_sub(fleet.alive))];
    let hosts = states.map(|(state, n)| ([("state", state.to_owned())], u64::from(n)));
    w.gauge("vnet_fleet_hosts", "Hosts of the fleet", hosts)
}

struct Member<'a> {
    lb: &'a LbStatus,
    status: &'a vnet_common::api::MemberStatus,
}

impl Snapshot {
    fn agent(&self, w: &mut Writer<'_>) -> fmt::Result {
        let s = &self.status;
        let info = [("version", s.version.clone()), ("abi", s.abi.to_string())];
        w.gauge("vnet_agent_info", "The agent's version and map layout", [(info, 1)])?;
        w.gauge("vnet_agent_uptime_seconds", "Since the agent started", [([], s.uptime_seconds)])?;
        w.gauge("vnet_agent_resident_memory_bytes", "The agent's resident memory", [([], s.rss_bytes)])?;
        w.gauge("vnet_alarms", "Things an operator should look at", [([], (s.alarms.len()) as u64)])?;
        w.gauge("vnet_policy_generation", "The policy generation in force", [([], u64::from(s.generation))])?;
        let map = |name: &str| [("map", name.to_owned())];
        let used = s.maps.iter().filter_map(|m| Some((map(&m.name), u64::from(m.used?))));
        w.gauge("vnet_map_entries", "Entries in use, of maps of which that is known", used)?;
        let capacity = s.maps.iter().map(|m| (map(&m.name), u64::from(m.capacity)));
        w.gauge("vnet_map_capacity_entries", "Entries that a map has room for", capacity)?;
        w.gauge("vnet_map_memory_bytes", "Kernel memory of a map", s.maps.iter().map(|m| (map(&m.name), m.memory_bytes)))?;
        let flows = [("ipv4", "FLOWS4", "HALF_OPEN4"), ("ipv6", "FLOWS6", "HALF_OPEN6")];
        let flows = flows.into_iter().flat_map(|(family, main, half_open)| {
            [("open", main), ("half-open", half_open)].map(|(state, map)| (family, state, map))
        });
        let flows = flows.filter_map(|(family, state, map)| {
            let used = s.maps.iter().find(|m| m.name == map)?.used?;
            Some(([("family", family.to_owned()), ("state", state.to_owned())], u64::from(used / 2)))
        });
        w.gauge("vnet_flows", "Flows in the tables", flows)?;
        w.counter("vnet_events_reported", "Events that the datapath reported", [([], self.events.reported)])?;
        w.counter("vnet_events_suppressed", "Events that were too many to be reported", [([], self.events.suppressed)])?;
        w.gauge("vnet_event_followers", "Readers that follow events", [([], self.events.followers as u64)])?;
        s.fleet.as_ref().map_or(Ok(()), |fleet| shared(w, fleet))
    }

    fn endpoints(&self, w: &mut Writer<'_>, endpoints: &[&EndpointStatus]) -> fmt::Result {
        let name = |e: &EndpointStatus| ("endpoint", e.name.clone());
        let packets = endpoints.iter().flat_map(|e| {
            e.packets.iter().flat_map(move |(direction, reasons)| {
                reasons
                    .iter()
                    .map(move |(reason, n)| ([name(e), ("direction", direction.clone()), ("reason", reason.clone())], *n))
            })
        });
        w.counter("vnet_endpoint_packets", "Packets of an endpoint, by what was done with them", packets)?;
        let bytes = endpoints.iter().flat_map(|e| {
            ["egress", "ingress"].into_iter().zip(e.bytes).map(|(d, n)| ([name(e), ("direction", d.to_owned())], n))
        });
        w.counter("vnet_endpoint_bytes", "Bytes from and to an endpoint", bytes)?;
        let flows = endpoints.iter().filter_map(|e| Some(([name(e)], *self.endpoint_flows.get(&e.name)?)));
        w.gauge("vnet_endpoint_flows", "Flows of an endpoint that are open", flows)?;
        let mut drops = BTreeMap::new();
        for e in &self.endpoints {
            for (direction, reasons) in &e.packets {
                for (reason, n) in reasons.iter().filter(|(reason, _)| e.is_drop(reason)) {
                    *drops.entry((direction, reason)).or_default() += n;
                }
            }
        }
        let drops = drops.into_iter().map(|((d, r), n)| ([("direction", d.clone()), ("reason", r.clone())], n));
        w.counter("vnet_drops", "Packets of all endpoints that were dropped or refused", drops)?;
        let mut states = BTreeMap::new();
        for e in &self.endpoints {
            *states.entry((without_cause(&e.state), e.policy.as_str())).or_default() += 1;
        }
        let states =
            states.into_iter().map(|((s, p), n): ((&str, &str), u64)| ([("state", s.to_owned()), ("policy", p.to_owned())], n));
        w.gauge("vnet_endpoints", "Endpoints by their state", states)
    }

    fn rules(&self, w: &mut Writer<'_>, rules: &[&RuleStatus]) -> fmt::Result {
        let labels = |r: &RuleStatus| {
            [
                ("kind", r.rule.kind.clone()),
                ("resource", r.rule.resource.clone()),
                ("rule", r.rule.rule.clone()),
                ("direction", r.rule.direction.clone()),
                ("action", r.rule.action.clone()),
                ("tier", r.tier.clone()),
            ]
        };
        let of = |count: fn(&RuleStatus) -> u64| rules.iter().map(move |r| (labels(r), count(r)));
        w.counter("vnet_rule_hits", "Flows that a rule decided about; of denied ones every packet", of(|r| r.hits))?;
        w.counter("vnet_rule_bytes", "Bytes of those packets", of(|r| r.bytes))?;
        let staged = rules.iter().filter(|r| r.rule.staged).map(|r| (labels(r), r.would_hit));
        w.counter("vnet_rule_would_hits", "Flows about which a staged rule would have decided", staged)
    }

    fn quarantine(&self, w: &mut Writer<'_>) -> fmt::Result {
        let mut held: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for h in &self.quarantine.held {
            *held.entry((&h.group, without_cause(&h.state))).or_default() += 1;
        }
        let held = held.into_iter().map(|((g, s), n)| ([("group", g.to_owned()), ("state", s.to_owned())], n));
        w.gauge("vnet_quarantine_held_endpoints", "Endpoints in quarantine", held)?;
        let mut pending: BTreeMap<&str, u64> = BTreeMap::new();
        for p in &self.quarantine.pending {
            *pending.entry(&p.because).or_default() += 1;
        }
        let pending = pending.into_iter().map(|(because, n)| ([("because", because.to_owned())], n));
        w.gauge("vnet_quarantine_pending_moves", "Moves that wait for approval", pending)?;
        let never = self.quarantine.never.len() as u64;
        w.gauge("vnet_quarantine_never_endpoints", "Endpoints that are never moved", [([], never)])
    }

    fn sources(&self, w: &mut Writer<'_>) -> fmt::Result {
        let labels = |s: &SourceStatus| [("source", s.name.clone()), ("kind", s.kind.clone())];
        let of = |count: fn(&SourceStatus) -> u64| self.sources.iter().map(move |s| (labels(s), count(s)));
        w.counter("vnet_tag_source_events", "Events that came from a tag source", of(|s| s.events))?;
        w.counter("vnet_tag_source_malformed", "Events that could not be read", of(|s| s.malformed))?;
        w.counter("vnet_tag_source_refused", "Events that the source may not send", of(|s| s.refused))?;
        w.counter("vnet_tag_source_dropped", "Events dropped since too many came at once", of(|s| s.dropped))?;
        w.counter("vnet_tag_source_tags", "Tags set and cleared", of(|s| s.tags))?;
        w.gauge(
            "vnet_tag_source_up",
            "1: the source is as it should be",
            of(|s| u64::from(matches!(&*s.state, "ok" | "silent"))),
        )?;
        let last = self.sources.iter().filter_map(|s| Some((labels(s), s.last_event_ms? / 1000)));
        w.gauge("vnet_tag_source_last_event_timestamp_seconds", "When the last event came", last)
    }
}

/// A state as a label: without what is after a colon, an error's text, of which there may be any number.
fn without_cause(state: &str) -> &str {
    state.split(':').next().unwrap_or_default()
}

fn balanced(w: &mut Writer<'_>, members: &[&Member<'_>]) -> fmt::Result {
    let labels = |m: &Member<'_>| [("lb", m.lb.name.clone()), ("member", m.status.name.clone())];
    let of = |count: fn(&Member<'_>) -> u64| members.iter().map(move |m| (labels(m), count(m)));
    let both = |counts: fn(&Member<'_>) -> [u64; 2]| {
        members.iter().flat_map(move |m| {
            let [lb, member] = labels(m);
            let row = |d: &str, n| ([lb.clone(), member.clone(), ("direction", d.to_owned())], n);
            let [to, from] = counts(m);
            [row("to", to), row("from", from)]
        })
    };
    w.gauge("vnet_member_active_flows", "Flows of a member", of(|m| m.status.active_flows))?;
    w.gauge(
        "vnet_member_up",
        "1: the member takes new flows",
        of(|m| u64::from(matches!(&*m.status.state, "active" | "unknown"))),
    )?;
    w.gauge("vnet_member_weight", "The weight in force", of(|m| u64::from(m.status.weight)))?;
    w.counter("vnet_member_new_flows", "Flows given to a member", of(|m| m.status.new_flows))?;
    w.counter("vnet_member_established", "Handshakes completed, and UDP flows", of(|m| m.status.established))?;
    w.counter("vnet_member_resets", "Resets seen", of(|m| m.status.resets))?;
    w.counter("vnet_member_resets_by_member", "Resets that the member sent", of(|m| m.status.resets_by_member))?;
    w.counter(
        "vnet_member_unreachable",
        "Flows about which ICMP said that the member cannot be reached",
        of(|m| m.status.unreachable),
    )?;
    // Datagrams are not answered in this sense.
    let times = members.iter().filter(|m| m.lb.protocol == "TCP").map(|m| (labels(m), m.status.connect));
    w.histogram("vnet_member_connect_seconds", "From SYN to SYN-ACK, as the datapath sees it", times)?;
    w.counter("vnet_member_packets", "Packets to and from a member", both(|m| m.status.packets))?;
    w.counter("vnet_member_bytes", "Bytes to and from a member", both(|m| m.status.bytes))
}

#[cfg(test)]
mod tests;
