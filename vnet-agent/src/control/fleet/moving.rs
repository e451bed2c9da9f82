//! An endpoint that comes from another host, or goes to one: its flows go along, through the store.
//!
//! The host that had it tells its flows as soon as another one claims it, and once more when its own device is gone. The host that has it
//! now lets nothing through until it has them, or [`PATIENCE`] is over: a flow whose member it does not know would come to another one,
//! and be reset.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vnet_common::api::moving::FlowExport;
use vnet_common::fleet::{Key, MovingPiece, STATE};

use super::super::{Agent, State, moving};
use super::{Sharing, now};
use crate::fleet::Hold;
use crate::fleet::claims::{At, Claim};
use crate::fleet::view::View;
use crate::observe::Saying;

/// How long an endpoint that came waits for its flows.
pub const PATIENCE: Duration = Duration::from_millis(1000);
/// How long it is known that an endpoint was here, or elsewhere.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long flows stay in the store.
const KEPT: Duration = Duration::from_secs(30);
/// Bytes of a piece: the store takes 1.5 MiB at a time.
const PIECE: usize = 512 << 10;
/// Pieces of one endpoint at most: flows beyond stay behind.
const PIECES: usize = 64;

/// Endpoints that come and go.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Endpoints that are or were here: their device, and since when that is gone.
    here: BTreeMap<String, (String, Option<Instant>)>,
    /// Endpoints that are elsewhere.
    elsewhere: BTreeSet<String>,
    /// Those that were a moment ago, and until when.
    left: BTreeMap<String, Instant>,
    /// Endpoints whose flows are to be told, and were for this claim: host, and whether the device was here.
    told: BTreeMap<String, (String, bool)>,
    telling: BTreeSet<String>,
    /// Endpoints that wait for their flows, until when.
    waiting: BTreeMap<String, Instant>,
    /// Flows in the store, by endpoint, since when.
    kept: BTreeMap<String, Instant>,
    /// Counts what was told.
    serial: u64,
    /// Exports that were taken over: endpoint, host and serial.
    taken: BTreeSet<(String, String, u64)>,
}

/// Another host that has an endpoint with a resource.
fn elsewhere<'a>(view: &'a View, name: &str, own: &str) -> Option<&'a str> {
    let has = |(host, (_, state)): &(&String, &Claim)| *host != own && !state.discovered && view.alive.contains_key(*host);
    view.endpoints.of(name)?.iter().find(has).map(|(host, _)| host.as_str())
}

impl Moves {
    /// Where endpoints are by now. `here` are those of this host with their devices; `own` is its name; of the names in `changed`, claims
    /// changed, or those who claim them came or went. Gives those that came from elsewhere.
    pub fn look<'a>(
        &mut self,
        here: &BTreeMap<String, String>,
        view: &View,
        own: &str,
        changed: impl Iterator<Item = &'a str>,
        now: Instant,
    ) -> Vec<String> {
        let mut came = Vec::new();
        self.left.retain(|_, left| now.saturating_duration_since(*left) < REMEMBERED);
        for (name, device) in here {
            let known = self.here.insert(name.clone(), (device.clone(), None));
            let is_new = known.is_none_or(|(_, gone)| gone.is_some());
            if is_new && (self.elsewhere.contains(name) || self.left.contains_key(name)) {
                self.waiting.insert(name.clone(), now + PATIENCE);
                came.push(name.clone());
            }
        }
        for (_, (_, gone)) in self.here.iter_mut().filter(|(name, _)| !here.contains_key(*name)) {
            gone.get_or_insert(now);
        }
        self.here.retain(|_, (_, gone)| gone.is_none_or(|since| now.saturating_duration_since(since) < REMEMBERED));
        for name in changed {
            if elsewhere(view, name, own).is_some() {
                self.elsewhere.insert(name.to_owned());
            } else if self.elsewhere.remove(name) {
                self.left.insert(name.to_owned(), now);
            }
        }
        for (name, (_, gone)) in &self.here {
            let Some(host) = elsewhere(view, name, own) else { continue };
            let at = (host.to_owned(), gone.is_none());
            if self.told.get(name) != Some(&at) {
                self.told.insert(name.clone(), at);
                self.telling.insert(name.clone());
            }
        }
        self.told.retain(|name, _| self.here.contains_key(name));
        came
    }

    fn over(&mut self, now: Instant) -> Vec<String> {
        let over: Vec<String> = self.waiting.iter().filter(|(_, until)| **until <= now).map(|(name, _)| name.clone()).collect();
        self.waiting.retain(|name, _| !over.contains(name));
        over
    }
}

impl State {
    /// Looks who came and who went. `changed` are claims that changed; `hosts`: hosts came or went.
    pub(in super::super) fn look_at_moves(&mut self, changed: &BTreeSet<At>, hosts: bool) {
        let attached = self.policy.endpoints().iter().filter(|nic| nic.ifindex() != 0 && !nic.discovered);
        let here = attached.map(|nic| (nic.name.clone(), nic.device.clone())).collect();
        let Some(sharing) = self.sharing.as_mut() else { return };
        let Sharing { moves, view, fleet, .. } = sharing;
        let all = view.endpoints.names().filter(|_| hosts).map(|(name, _)| name.as_str());
        let changed = changed.iter().map(|(name, _)| name.as_str()).chain(all);
        let came = moves.look(&here, view, fleet.host(), changed, now());
        for name in came {
            log::info!("endpoint {name} came from another host: it waits for its flows");
            self.wait_for_flows(&name, true);
        }
    }

    fn wait_for_flows(&self, name: &str, wait: bool) {
        if let Err(e) = self.parts.placements.wait(name, wait) {
            log::error!("endpoint {name}: {e:#}");
        }
    }

    /// Lets go on who has waited for long enough; takes out of the store what nobody asks for any more.
    fn end_waiting(&mut self) {
        let Some(sharing) = self.sharing.as_mut() else { return };
        for name in sharing.moves.over(now()) {
            log::warn!(
                "endpoint {name} came from another host, which has not told its flows within {} ms: it goes on without",
                PATIENCE.as_millis()
            );
            self.wait_for_flows(&name, false);
        }
        let Some(sharing) = self.sharing.as_mut() else { return };
        let over: Vec<String> =
            sharing.moves.kept.iter().filter(|(_, since)| since.elapsed() >= KEPT).map(|(name, _)| name.clone()).collect();
        for name in over {
            sharing.moves.kept.remove(&name);
            let prefix = pieces_of(sharing.fleet.host(), &name);
            let said = sharing.fleet.say_all::<MovingPiece>(&prefix, &BTreeMap::new(), |_| Hold::Alive);
            said.unwrap_or_else(|e| log::error!("{e:#}"));
        }
    }
}

fn pieces_of(host: &str, endpoint: &str) -> String {
    format!("{STATE}moving/{}/{}/", Key::part(host), Key::part(endpoint))
}

impl Agent {
    /// Tells the flows of endpoints that went, and takes over those of endpoints that came. Flow tables are read without the lock.
    pub(super) fn move_flows(self: &Arc<Self>) {
        let (mut telling, mut coming, mut waits) = (Vec::new(), Vec::new(), false);
        self.event(|s| {
            let Some(sharing) = s.sharing.as_mut() else { return };
            let moves = &mut sharing.moves;
            let named = std::mem::take(&mut moves.telling);
            telling = named.into_iter().filter_map(|name| Some((moves.here.get(&name)?.0.clone(), name))).collect();
            coming = arrived(
                moves,
                &sharing.fleet,
                &s.policy.endpoints().iter().filter(|n| n.ifindex() != 0).map(|n| n.name.as_str()).collect(),
            );
            waits = !moves.waiting.is_empty();
        });
        for (device, name) in telling {
            if let Err(e) = self.tell_flows(&name, &device) {
                log::error!("telling the flows of endpoint {name}, which went to another host: {e:#}");
            }
        }
        for (name, export) in coming {
            self.take_flows(&name, &export);
        }
        if waits {
            let agent = Arc::clone(self);
            self.event(|s| {
                drop(s.runtime.spawn(async move {
                    tokio::time::sleep(PATIENCE).await;
                    tokio::task::block_in_place(|| agent.event(State::end_waiting));
                }));
            });
        }
    }

    /// Looks after what is waited for, and what stays in the store.
    pub(in super::super) fn look_after_moves(&self) {
        self.event(State::end_waiting);
    }

    fn tell_flows(&self, name: &str, device: &str) -> Result<()> {
        let export = moving::export_of(self, name, device).map_err(|e| anyhow::anyhow!("{e}"))?;
        let text = serde_json::to_string(&export).context("writing the flows as JSON")?;
        self.event(|s| {
            let Some(sharing) = s.sharing.as_mut() else { return };
            sharing.moves.serial += 1;
            let pieces = cut(&text, sharing.moves.serial, PIECE);
            if pieces.len() > PIECES {
                log::error!("endpoint {name} has more flows than can be told ({}): it goes without them", export.flows.len());
                return;
            }
            let host = sharing.fleet.host().to_owned();
            let said = pieces
                .into_iter()
                .enumerate()
                .map(|(n, piece)| (Key::Moving(host.clone(), name.to_owned(), n as u32), piece))
                .collect();
            log::info!("endpoint {name} went to another host: told {} flows", export.flows.len());
            sharing.moves.kept.insert(name.to_owned(), now());
            let said = sharing.fleet.say_all(&pieces_of(&host, name), &said, |_| Hold::Alive);
            said.unwrap_or_else(|e| log::error!("{e:#}"));
        });
        Ok(())
    }

    fn take_flows(&self, name: &str, export: &FlowExport) {
        let what = match moving::import(self, name, export) {
            Ok(done) => {
                done.refused.iter().for_each(|r| {
                    log::warn!("endpoint {name}: the flow {} to {} could not be taken over: {}", r.local, r.remote, r.reason)
                });
                format!(
                    "came from another host with {} flows ({} were known, {} could not be taken over)",
                    done.taken,
                    done.known,
                    done.refused.len()
                )
            }
            Err(e) => format!("came from another host, and its flows could not be taken over: {e}"),
        };
        self.parts.observer.events.say(Saying::Device, name, "moved", what);
        self.event(|s| {
            let waited = s.sharing.as_mut().is_some_and(|sharing| sharing.moves.waiting.remove(name).is_some());
            if waited {
                s.wait_for_flows(name, false);
            }
        });
    }
}

/// Exports that are whole, of endpoints that are here, and were not taken over.
fn arrived(moves: &mut Moves, fleet: &crate::fleet::Fleet, here: &BTreeSet<&str>) -> Vec<(String, FlowExport)> {
    let mut pieces: BTreeMap<(String, String), BTreeMap<u32, MovingPiece>> = BTreeMap::new();
    for (text, entry) in fleet.mirror().below(&format!("{STATE}moving/")) {
        let Some(Key::Moving(host, name, n)) = Key::parse(text) else { continue };
        if host == fleet.host() || !here.contains(name.as_str()) {
            continue;
        }
        if let Ok(piece) = serde_json::from_slice(&entry.value) {
            pieces.entry((name, host)).or_default().insert(n, piece);
        }
    }
    let mut all = Vec::new();
    for ((name, host), pieces) in pieces {
        let Some((serial, export)) = joined(&pieces) else { continue };
        if moves.taken.insert((name.clone(), host, serial)) {
            all.push((name, export));
        }
    }
    all
}

fn cut(text: &str, serial: u64, size: usize) -> Vec<MovingPiece> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut at = size.min(rest.len());
        while !rest.is_char_boundary(at) {
            at -= 1;
        }
        let (part, more) = rest.split_at(at);
        parts.push(part.to_owned());
        rest = more;
    }
    let of = parts.len() as u32;
    parts.into_iter().map(|text| MovingPiece { serial, of, text }).collect()
}

/// The export, if all its pieces are there.
fn joined(pieces: &BTreeMap<u32, MovingPiece>) -> Option<(u64, FlowExport)> {
    let first = pieces.get(&0)?;
    let parts: Vec<&str> = (0..first.of)
        .map(|n| pieces.get(&n).filter(|p| (p.serial, p.of) == (first.serial, first.of)).map(|p| p.text.as_str()))
        .collect::<Option<_>>()?;
    match serde_json::from_str(&parts.concat()) {
        Ok(export) => Some((first.serial, export)),
        Err(e) => {
            log::error!("flows of an endpoint that came from another host cannot be read: {e}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnet_common::fleet::{EndpointState, HostState};

    #[test]
    fn pieces_are_put_together_when_all_are_there() {
        let export = FlowExport { version: 1, endpoint: "vm".into(), left: 7, ..FlowExport::default() };
        let text = serde_json::to_string(&export).unwrap();
        let pieces = cut(&text, 3, 10);
        assert!(pieces.len() > 3);
        let mut all: BTreeMap<u32, MovingPiece> = pieces.into_iter().enumerate().map(|(n, p)| (n as u32, p)).collect();
        assert_eq!(joined(&all), Some((3, export)));
        let last = all.remove(&1).unwrap();
        assert_eq!(joined(&all), None);
        all.insert(1, MovingPiece { serial: 2, ..last });
        assert_eq!(joined(&all), None, "of another time");
    }

    fn claim(view: &mut View, host: &str, since: i64) {
        view.alive.insert(host.to_owned(), (1, HostState::default()));
        view.endpoints.put("vm", host, Some((since, EndpointState::default())));
    }

    fn changed() -> impl Iterator<Item = &'static str> {
        ["vm"].into_iter()
    }

    #[test]
    fn flows_are_told_when_another_claims_it_and_again_when_it_is_gone() {
        let (mut moves, mut view, now) = (Moves::default(), View::default(), Instant::now());
        let here = BTreeMap::from([("vm".to_owned(), "tap0".to_owned())]);
        claim(&mut view, "a", 1);
        assert_eq!(moves.look(&here, &view, "a", changed(), now), Vec::<String>::new());
        assert!(moves.telling.is_empty());
        claim(&mut view, "b", 2);
        moves.look(&here, &view, "a", changed(), now);
        assert_eq!(std::mem::take(&mut moves.telling).len(), 1);
        moves.look(&here, &view, "a", changed(), now);
        assert!(moves.telling.is_empty(), "once");
        moves.look(&BTreeMap::new(), &view, "a", changed(), now);
        assert_eq!(std::mem::take(&mut moves.telling).len(), 1, "its device is gone: for the last time");
        moves.look(&BTreeMap::new(), &view, "a", changed(), now + REMEMBERED);
        assert!(moves.here.is_empty());
    }

    #[test]
    fn who_comes_from_elsewhere_waits_and_who_was_always_here_does_not() {
        let (mut moves, mut view, now) = (Moves::default(), View::default(), Instant::now());
        let here = BTreeMap::from([("vm".to_owned(), "tap0".to_owned())]);
        claim(&mut view, "b", 1);
        moves.look(&BTreeMap::new(), &view, "a", changed(), now);
        // Its host has given it up before it is seen here.
        view.endpoints.put("vm", "b", None);
        assert_eq!(moves.look(&here, &view, "a", changed(), now), ["vm"]);
        assert_eq!(moves.look(&here, &view, "a", changed(), now), Vec::<String>::new());
        assert_eq!(moves.over(now), Vec::<String>::new());
        assert_eq!(moves.over(now + PATIENCE), ["vm"]);
        // For a while only.
        moves.look(&BTreeMap::new(), &view, "a", changed(), now);
        assert_eq!(moves.look(&here, &view, "a", changed(), now + REMEMBERED), Vec::<String>::new());
        let mut other = Moves::default();
        assert_eq!(other.look(&here, &view, "a", changed(), now), Vec::<String>::new());
    }
}
