//! The kernel's program on the same packet, and whether it does the same.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use vnet_common::verdict::{Direction, Verdict};

use super::rows::Rows;
use super::view::View;
use super::walk::Entry;
use crate::datapath::Datapath;
use crate::datapath::rehearsal::{BALANCING, LOCALS, RULES, Ran, Rehearsal, Setting};

/// How long the second instance is kept after it was used last.
const KEPT: Duration = Duration::from_secs(60);
/// `TCX_NEXT`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// The second instance, loaded when it is first asked for.
#[derive(Default)]
pub struct Rehearsals(Mutex<Option<(Rehearsal, Instant)>>);

impl std::fmt::Debug for Rehearsals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rehearsals")
    }
}

impl Rehearsals {
    /// Calls `f` with it.
    pub fn with<T>(&self, datapath: &Datapath, f: impl FnOnce(&mut Stage<'_>) -> Result<T>) -> Result<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rehearsal = match kept.take() {
            Some((rehearsal, _)) => rehearsal,
            None => datapath.rehearsal(&[&BALANCING[..], &LOCALS, &RULES].concat())?,
        };
        let done = f(&mut Stage::new(&mut rehearsal, datapath));
        *kept = Some((rehearsal, Instant::now()));
        done
    }

    /// Gives it back if it was not used for a while.
    pub fn tidy(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(|(_, used)| used.elapsed() > KEPT) {
            *kept = None;
        }
    }

    /// Is it loaded now?
    pub fn is_loaded(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// The second instance, beside the datapath.
pub struct Stage<'a> {
    rehearsal: &'a mut Rehearsal,
    datapath: &'a Datapath,
}

impl<'a> Stage<'a> {
    /// With an instance that is kept elsewhere.
    pub(super) fn new(rehearsal: &'a mut Rehearsal, datapath: &'a Datapath) -> Self {
        Self { rehearsal, datapath }
    }

    /// Runs the kernel's program on the packet, and says what it does otherwise than the host's evaluation has done.
    pub fn compare<R: Rows>(
        &mut self,
        view: &View<'_, R>,
        entry: Entry,
        frame: &[u8],
        verdict: Verdict,
        after: &[u8],
    ) -> Result<Vec<String>> {
        let (v4, v6) = view.seen();
        let setting =
            Setting { generation: view.rows().generation(), endpoints: view.rows().endpoints(), v4, v6, picks: view.picks() };
        let ran = self.rehearsal.run(self.datapath.maps(), &setting, entry.direction, entry.ifindex, frame)?;
        Ok(differences(&ran, entry.direction, verdict, after))
    }
}

fn differences(ran: &Ran, direction: Direction, verdict: Verdict, after: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let way = if direction == Direction::Egress { "egress" } else { "ingress" };
    let expected = match verdict {
        Verdict::Next(_) => NEXT,
        Verdict::Drop(_) => SHOT,
        Verdict::Redirect { .. } | Verdict::Reply(_) | Verdict::Bounce(_) => REDIRECT,
    };
    if ran.action != expected {
        found.push(format!("{way}: the kernel's program returned {}, expected was {}", action(ran.action), action(expected)));
    }
    let reason = verdict.reason();
    match ran.reason {
        Some(other) if other == reason => {}
        Some(other) => {
            found.push(format!("{way}: the kernel's program counted {}, expected was {}", other.name(), reason.name()))
        }
        None => found.push(format!("{way}: the kernel's program counted no single reason, expected was {}", reason.name())),
    }
    // What becomes of a dropped packet is of no interest.
    if !matches!(verdict, Verdict::Drop(_)) && ran.bytes != after {
        let first = ran.bytes.iter().zip(after).position(|(a, b)| a != b).unwrap_or(ran.bytes.len().min(after.len()));
        found.push(format!(
            "{way}: the kernel's packet has {} bytes, expected were {}; they differ from byte {first} on",
            ran.bytes.len(),
            after.len()
        ));
    }
    found
}

fn action(number: i32) -> String {
    match number {
        NEXT => "next".into(),
        SHOT => "drop".into(),
        REDIRECT => "redirect".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use vnet_common::verdict::Reason;

    use super::*;

    #[test]
    fn every_difference_is_said() {
        let ran = Ran { action: SHOT, reason: Some(Reason::Denied), bytes: vec![1, 2, 3], events: Vec::new() };
        let same = differences(&ran, Direction::Egress, Verdict::Drop(Reason::Denied), &[9]);
        assert!(same.is_empty(), "{same:?}");
        let all = differences(&ran, Direction::Ingress, Verdict::Next(Reason::Allowed), &[1, 2, 4]);
        assert_eq!(
            all,
            [
                "ingress: the kernel's program returned drop, expected was next",
                "ingress: the kernel's program counted denied, expected was allowed",
                "ingress: the kernel's packet has 3 bytes, expected were 3; they differ from byte 2 on",
            ]
        );
        let none = Ran { reason: None, action: NEXT, ..ran };
        assert_eq!(differences(&none, Direction::Egress, Verdict::Next(Reason::Allowed), &[1, 2, 3]).len(), 1);
    }
}
