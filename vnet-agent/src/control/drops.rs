//! Packets dropped for want of room: an alarm while it goes on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use vnet_common::endpoint::EndpointCounters;
use vnet_common::verdict::Reason;

/// How long after the last such packet the alarm stays.
const STAYS: Duration = Duration::from_secs(60);

/// Reasons that an operator can do something about.
const WANTS: [(Reason, &str); 4] = [
    (Reason::FlowTableFull, "the flow table is full; start the agent with a larger --max-flows (IPv6: --max-flows6)"),
    (Reason::FlowQuota, "the endpoint has as many flows as it may have; see --flows-per-endpoint"),
    (Reason::FlowCollision, "too many clients with one address and port use the same members; add members, or addresses of them"),
    (Reason::NoMemory, "the kernel has no memory for packets or flows"),
];

/// What was seen of the counters.
#[derive(Debug, Default)]
pub struct Drops {
    seen: HashMap<(u32, Reason), Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    count: u64,
    /// When it last grew, and by how much since the alarm began.
    grown: Option<(Instant, u64)>,
}

impl Drops {
    /// Looks at the counters of the endpoint with number `id`.
    pub fn look(&mut self, id: u32, counters: &EndpointCounters, now: Instant) {
        for (reason, _) in WANTS {
            let count = counters.packets.iter().map(|by_reason| by_reason[reason as usize]).sum();
            let seen = self.seen.entry((id, reason)).or_insert(Seen { count, grown: None });
            let current = seen.grown.filter(|(when, _)| now.duration_since(*when) < STAYS);
            seen.grown = match count.saturating_sub(seen.count) {
                0 => current,
                n => Some((now, n + current.map_or(0, |(_, before)| before))),
            };
            seen.count = count;
        }
    }

    /// These are all endpoints: what was seen of others is not kept.
    pub fn retain(&mut self, is_there: impl Fn(u32) -> bool) {
        self.seen.retain(|(id, _), _| is_there(*id));
    }

    /// The alarms about an endpoint.
    pub fn alarms(&self, id: u32, name: &str) -> Vec<String> {
        let grown = |reason| self.seen.get(&(id, reason)).and_then(|s| s.grown);
        let alarm = |(reason, advice): (Reason, &str)| {
            grown(reason).map(|(_, n)| format!("endpoint {name}: {n} packets were dropped ({}): {advice}", reason.name()))
        };
        WANTS.into_iter().filter_map(alarm).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_while_it_goes_on_and_a_minute_after() {
        let (mut drops, mut counters, start) = (Drops::default(), EndpointCounters::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        counters.packets[0][Reason::FlowQuota as usize] = 7;
        drops.look(1, &counters, at(0));
        assert!(drops.alarms(1, "vm").is_empty(), "what was before the agent started is history");
        counters.packets[0][Reason::FlowQuota as usize] = 9;
        drops.look(1, &counters, at(5));
        counters.packets[0][Reason::FlowQuota as usize] = 10;
        drops.look(1, &counters, at(10));
        drops.look(1, &counters, at(69));
        assert!(drops.alarms(1, "vm")[0].starts_with("endpoint vm: 3 packets were dropped (flow-quota)"));
        assert!(drops.alarms(2, "other").is_empty());
        drops.look(1, &counters, at(70));
        assert!(drops.alarms(1, "vm").is_empty());
        drops.look(2, &counters, at(70));
        drops.retain(|id| id == 2);
        assert!(drops.seen.len() == WANTS.len() && drops.seen.keys().all(|(id, _)| *id == 2));
    }
}
