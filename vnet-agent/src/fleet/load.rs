//! Load feedback: what the members of load balancers have to do, for the clients of all hosts together, and what follows for their weights.
//!
//! ```text
//!  every host                      the elected host                       every host
//!  counters ─ Reporter ─► LoadReport ─► Aggregator ─► Global ─► Received ─► weights, flows elsewhere
//!                                   a Controller for each group
//! ```
//!
//! Each step takes a window of two seconds. Nothing here reads, writes or asks for the time. What is lost on the way is only missed: a host
//! that is not heard of any more is left out, and what was handed out fades away until weights are as configured.

mod aggregator;
mod controller;
mod received;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use vnet_common::fleet::{LoadReport, MemberKey, MemberLoad};

pub use aggregator::{Aggregator, Group};
pub use controller::{Aim, Controller, Load, Settings};
pub use received::Received;

/// Between two reports, and between two answers.
pub const WINDOW: Duration = Duration::from_secs(2);
/// Members in a report, or in an answer: those with the most flows. More would not fit into a value of the store.
pub const MAX_MEMBERS: usize = 4096;
/// What says nothing new for so long says nothing any more.
pub const STALE: Duration = Duration::from_secs(3 * WINDOW.as_secs());

/// What was counted of a member on this host so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Differs for every member that ever had the row that counts.
    pub serial: u32,
    /// Flows that are open.
    pub active: u64,
    /// Flows given to it.
    pub new: u64,
    /// Packets, both ways.
    pub packets: u64,
    /// Bytes, both ways.
    pub bytes: u64,
    /// Connections that it reset.
    pub resets: u64,
    /// Connections that it accepted.
    pub connected: u64,
    /// From SYN to SYN-ACK, all of these together, in µs.
    pub connect_us: u64,
}

impl Counted {
    /// What came since `before`; `None`, or another member's row: all of it.
    fn since(&self, before: Option<&Self>) -> MemberLoad {
        let none = Self::default();
        // Who has had fewer flows than before was counted anew.
        let before = before.filter(|b| b.serial == self.serial && b.new <= self.new).unwrap_or(&none);
        let new = self.new - before.new;
        MemberLoad {
            new,
            ended: (new + before.active).saturating_sub(self.active),
            active: self.active,
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
            resets: self.resets.saturating_sub(before.resets),
            connected: self.connected.saturating_sub(before.connected),
            connect_us: self.connect_us.saturating_sub(before.connect_us),
        }
    }
}

/// Makes a host's reports.
#[derive(Debug, Default)]
pub struct Reporter {
    serial: u64,
    before: Option<(Instant, HashMap<MemberKey, Counted>)>,
}

impl Reporter {
    /// The window from the last look to this one; `None` at the first. `counted` has every member of which anything was ever counted: one
    /// that was not there before has counted from zero.
    pub fn look(&mut self, now: Instant, counted: Vec<(MemberKey, Counted)>) -> Option<LoadReport> {
        let counted: HashMap<MemberKey, Counted> = counted.into_iter().collect();
        let (then, before) = self.before.replace((now, counted))?;
        let (_, counted) = self.before.as_ref()?;
        let loads = counted.iter().map(|(key, counted)| (key, counted.since(before.get(key))));
        let members = busiest(loads.map(|(key, load)| (key.clone(), load)).collect());
        self.serial += 1;
        let window_ms = u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(u64::MAX);
        Some(LoadReport { serial: self.serial, window_ms, members })
    }
}

/// The members that have something to do, in order; of too many those with the most flows.
fn busiest(mut members: Vec<(MemberKey, MemberLoad)>) -> Vec<(MemberKey, MemberLoad)> {
    members.retain(|(_, load)| *load != MemberLoad::default());
    if members.len() > MAX_MEMBERS {
        members.sort_unstable_by(|(a, x), (b, y)| (y.active + y.new).cmp(&(x.active + x.new)).then_with(|| a.cmp(b)));
        members.truncate(MAX_MEMBERS);
    }
    members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    members
}

/// Is `new` so far from `old` that something has to be done about it? Noise is not.
#[must_use]
pub fn differs(old: u32, new: u32) -> bool {
    u64::from(old.abs_diff(new)) * 100 > u64::from(old) * 3
}

#[cfg(test)]
mod closed_loop;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
