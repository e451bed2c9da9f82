//! An endpoint that comes from another host, or goes to one: its flows go along, through the store. [`Moves`] says when; here it is done.
//!
//! The host that has it now lets nothing through until it has its flows, or [`PATIENCE`] is over: a flow whose member it does not know would
//! come to another one, and be reset. Flow tables are read and written by a task of its own: policies and holds do not wait for that.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{Notify, watch};
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::{sleep, sleep_until};
use vnet_common::api::moving::{FlowExport, MovedFlow};
use vnet_common::fleet::{Key, MovingPiece, STATE};

use super::super::{Agent, State, moving};
use super::{Sharing, now};
use crate::fleet::Hold;
use crate::fleet::claims::At;
use crate::fleet::exports::{PIECE, PIECES, Taken, below, cut};
use crate::fleet::moves::{AGAIN, Moves, PATIENCE, Telling};
use crate::observe::Saying;

/// How long flows stay in the store.
const KEPT: Duration = Duration::from_secs(30);

/// What an agent keeps of endpoints that come and go.
pub(super) struct Moving {
    moves: Moves,
    /// Exports that were taken over.
    taken: Taken,
    /// What was told, by endpoint.
    kept: BTreeMap<String, Kept>,
    /// Counts what was told.
    serial: u64,
    /// There may be something to tell, or to take.
    work: Arc<Notify>,
    /// When somebody has waited for long enough.
    deadline: watch::Sender<Option<Instant>>,
}

/// Flows in the store.
#[derive(Debug)]
struct Kept {
    since: Instant,
    /// The number of the next piece.
    next: u32,
    /// What flows these are: see [`mark`].
    flows: HashSet<u64>,
}

impl Default for Moving {
    fn default() -> Self {
        // Of an agent before this one there may be pieces left: they must not be taken for some of this one's.
        let serial = u64::from(RandomState::new().build_hasher().finish() as u32);
        let (work, deadline) = (Arc::default(), watch::Sender::new(None));
        Self { moves: Moves::default(), taken: Taken::default(), kept: BTreeMap::new(), serial, work, deadline }
    }
}

impl Moving {
    fn set_deadline(&self) {
        let due = self.moves.deadline();
        self.deadline.send_if_modified(|before| std::mem::replace(before, due) != due);
    }
}

impl State {
    /// Looks who came and who went. `changed` are claims that changed.
    pub(in super::super) fn look_at_moves(&mut self, changed: &BTreeSet<At>) {
        let attached = self.policy.endpoints().iter().filter(|nic| nic.ifindex() != 0 && !nic.discovered);
        let here = attached.map(|nic| (nic.name.clone(), nic.device.clone())).collect();
        let Some(Sharing { moving, view, fleet, .. }) = self.sharing.as_mut() else { return };
        let came = moving.moves.look(&here, view, fleet.host(), changed, now());
        moving.set_deadline();
        moving.work.notify_one();
        for name in came {
            log::info!("endpoint {name} came from another host: it waits for its flows");
            self.wait_for_flows(&name, true);
        }
    }

    /// Flows were told by another host.
    pub(super) fn look_for_flows(&self) {
        if let Some(sharing) = self.sharing.as_ref() {
            sharing.moving.work.notify_one();
        }
    }

    fn wait_for_flows(&self, name: &str, wait: bool) {
        if let Err(e) = self.parts.placements.wait(name, wait) {
            log::error!("endpoint {name}: {e:#}");
        }
    }

    /// Lets go on who has waited for long enough.
    fn end_waiting(&mut self) {
        let Some(Sharing { moving, .. }) = self.sharing.as_mut() else { return };
        let over = moving.moves.over(now());
        moving.set_deadline();
        for name in over {
            log::warn!(
                "endpoint {name} came from another host, which has not told its flows within {} ms: it goes on without",
                PATIENCE.as_millis()
            );
            self.wait_for_flows(&name, false);
        }
    }

    /// Takes out of the store what nobody asks for any more.
    pub(super) fn forget_flows(&mut self) {
        let Some(Sharing { moving: Moving { moves, kept, .. }, fleet, .. }) = self.sharing.as_mut() else { return };
        kept.retain(|name, kept| {
            if kept.since.elapsed() < KEPT || moves.goes(name, now()) {
                return true;
            }
            let said = fleet.say_all::<MovingPiece>(&below(fleet.host(), name), &BTreeMap::new(), |_| Hold::Alive);
            said.unwrap_or_else(|e| log::error!("{e:#}"));
            false
        });
    }
}

/// Tells and takes flows, for ever.
pub async fn move_flows(agent: Arc<Agent>) {
    let Some(work) = agent.of_moving(|moving| Arc::clone(&moving.work)) else { return };
    let mut again = false;
    loop {
        tokio::select! {
            () = work.notified() => {}
            () = sleep(AGAIN), if again => {}
        }
        let working = Arc::clone(&agent);
        again = spawn_blocking(move || working.take_and_tell()).await.unwrap_or_else(|e| {
            log::error!("moving flows between hosts: {e}");
            true
        });
    }
}

/// Lets endpoints go on that have waited for long enough, for ever.
pub async fn keep_patience(agent: Arc<Agent>) {
    let Some(mut deadline) = agent.of_moving(|moving| moving.deadline.subscribe()) else { return };
    loop {
        let due = *deadline.borrow_and_update();
        let over = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => block_in_place(|| agent.event(State::end_waiting)),
            changed = deadline.changed() => if changed.is_err() { return },
        }
    }
}

impl Agent {
    fn of_moving<T>(&self, f: impl FnOnce(&mut Moving) -> T) -> Option<T> {
        self.ask(|s| Ok(s.sharing.as_mut().map(|sharing| f(&mut sharing.moving)))).ok().flatten()
    }

    /// Takes over the flows of endpoints that came, and tells those of endpoints that go. Is this to be done again in a while?
    fn take_and_tell(&self) -> bool {
        let mut unread = BTreeMap::new();
        self.event(|s| {
            let Some(Sharing { moving: Moving { taken, moves, .. }, fleet, .. }) = s.sharing.as_mut() else { return };
            let mirror = fleet.mirror();
            unread = taken.unread(mirror.below(&format!("{STATE}moving/")), |name, host| moves.takes(name, host));
        });
        for ((name, host), pieces) in unread {
            let whole = pieces.join();
            self.of_moving(|moving| moving.taken.note(&name, &host, &whole.pieces));
            whole.exports.iter().for_each(|export| self.take_flows(&name, &host, export));
        }
        let (mut telling, mut again) = (Vec::new(), false);
        self.event(|s| {
            let Some(Sharing { moving: Moving { moves, kept, .. }, view, fleet, .. }) = s.sharing.as_mut() else { return };
            let all = moves.take_telling(view, fleet.host(), now());
            telling = all.into_iter().map(|telling| (kept.remove(&telling.name), telling)).collect();
            again = moves.is_telling(now());
        });
        if let Err(e) = self.tell_flows(telling) {
            log::error!("telling the flows of endpoints that go to other hosts: {e:#}");
        }
        again
    }

    fn tell_flows(&self, telling: Vec<(Option<Kept>, Telling)>) -> Result<()> {
        if telling.is_empty() {
            return Ok(());
        }
        let endpoints: Vec<(&str, &str)> = telling.iter().map(|(_, t)| (t.name.as_str(), t.device.as_str())).collect();
        let exports = moving::exports(self, &endpoints).map_err(|e| anyhow::anyhow!("{e}"))?;
        for (export, (kept, telling)) in exports.into_iter().zip(telling) {
            let kept = kept.filter(|_| !telling.all);
            // What one fails for, the next need not.
            self.tell(&telling.name, export, kept).unwrap_or_else(|e| log::error!("endpoint {}: {e:#}", telling.name));
        }
        Ok(())
    }

    /// Tells flows of an endpoint: all, or those that are not among those that were told.
    fn tell(&self, name: &str, export: FlowExport, kept: Option<Kept>) -> Result<()> {
        let marks: HashSet<u64> = export.flows.iter().map(mark).collect();
        let Some(serial) = self.of_moving(|moving| {
            moving.serial += 1;
            moving.serial
        }) else {
            return Ok(());
        };
        let pieces = |export: &FlowExport| -> Result<Vec<MovingPiece>> {
            Ok(cut(&serde_json::to_string(export).context("writing the flows as JSON")?, serial, PIECE))
        };
        let (mut first, mut told) = (0, Vec::new());
        if let Some(kept) = &kept {
            let flows: Vec<MovedFlow> = export.flows.iter().filter(|flow| !kept.flows.contains(&mark(flow))).cloned().collect();
            first = kept.next;
            if !flows.is_empty() {
                told = pieces(&FlowExport { flows, ..export.clone() })?;
            }
        }
        // Where there is no room beside what was told, all of it is told anew.
        if first as usize + told.len() > PIECES || kept.is_none() {
            (first, told) = (0, pieces(&export)?);
        }
        if told.len() > PIECES {
            log::error!("endpoint {name} has more flows than can be told ({}): it goes without them", export.flows.len());
            told.clear();
        }
        let kept = Kept { since: now(), next: first + told.len() as u32, flows: marks };
        self.event(|s| {
            let Some(Sharing { moving, fleet, .. }) = s.sharing.as_mut() else { return };
            let key = |n: u32| Key::Moving(fleet.host().to_owned(), name.to_owned(), n);
            let said = if first == 0 {
                log::info!("endpoint {name} goes to another host: told {} flows", export.flows.len());
                let all = (0..).map(key).zip(told).collect();
                fleet.say_all(&below(fleet.host(), name), &all, |_| Hold::Alive)
            } else {
                (first..).zip(told).try_for_each(|(n, piece)| fleet.say(&key(n), Some(&piece), Hold::Alive))
            };
            said.unwrap_or_else(|e| log::error!("{e:#}"));
            moving.kept.insert(name.to_owned(), kept);
        });
        Ok(())
    }

    fn take_flows(&self, name: &str, host: &str, export: &FlowExport) {
        let what = match moving::import(self, name, export) {
            Ok(done) => {
                done.refused.iter().for_each(|r| {
                    log::warn!("endpoint {name}: the flow {} to {} could not be taken over: {}", r.local, r.remote, r.reason)
                });
                format!(
                    "came from host {host} with {} flows ({} were known, {} could not be taken over)",
                    done.taken,
                    done.known,
                    done.refused.len()
                )
            }
            Err(e) => format!("came from host {host}, and its flows could not be taken over: {e}"),
        };
        self.parts.observer.events.say(Saying::Device, name, "moved", what);
        self.event(|s| {
            let Some(Sharing { moving, .. }) = s.sharing.as_mut() else { return };
            if moving.moves.end_waiting(name) {
                moving.set_deadline();
                s.wait_for_flows(name, false);
            }
        });
    }
}

/// What a flow is known by. That two have the same costs one of them a second, until all are told.
fn mark(flow: &MovedFlow) -> u64 {
    let mut hasher = DefaultHasher::new();
    (flow.protocol, flow.local, flow.remote, flow.member, flow.local_port_there).hash(&mut hasher);
    hasher.finish()
}
