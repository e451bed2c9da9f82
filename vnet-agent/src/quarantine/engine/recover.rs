//! What a restart finds: the datapath may be ahead of the store, or behind it. The stricter of both wins.
//!
//! Moves into quarantine are enforced before they are stored, releases are stored before they are done, and the number of
//! moves says which side is newer:
//!
//! | datapath | store | then |
//! |---|---|---|
//! | held | held, as new | that |
//! | held | held, newer, in another group | it is held there |
//! | newer | held | it stays in the datapath's group; nobody knows why |
//! | held, not newer | let go, to be opened | it is opened |
//! | held | let go, or unknown | it stays held: nobody knows why |
//! | open | held | it is held again |
//! | open | let go | that is done |

use std::collections::BTreeSet;

use vnet_common::api::AuditRecord;

use super::{Action, Enforced, Engine};
use crate::quarantine::clock::Now;
use crate::quarantine::state::{Hold, Holder, Pinned};

impl Engine {
    /// Brings together what was stored and what the datapath says. What follows is in actions and in the next batch.
    pub fn recover(&mut self, pinned: Vec<Pinned>, now: Now) {
        let mut seen = BTreeSet::new();
        for pin in pinned {
            seen.insert(pin.endpoint.clone());
            match pin.quarantined {
                true => self.recover_held(&pin, now),
                false => self.recover_open(&pin, now),
            }
        }
        let absent: Vec<String> = self.live.keys().filter(|name| !seen.contains(*name)).cloned().collect();
        for name in absent {
            let Some(live) = self.live.get_mut(&name) else { continue };
            if let Some(hold) = &live.row.held {
                live.enforced = Enforced::NoDevice;
                // Whoever writes its row has to know before it has a device.
                let (group, moves) = (hold.group.clone(), live.row.moves);
                self.actions.push_back(Action { endpoint: name.clone(), group, moves });
            }
            // Without a row in the datapath there is nothing to open.
            if std::mem::take(&mut live.row.opening) {
                self.touched.insert(name);
            }
        }
    }

    fn recover_held(&mut self, pin: &Pinned, now: Now) {
        let order = self.tags.order();
        let live = self.live.entry(pin.endpoint.clone()).or_default();
        let row = &mut live.row;
        let found = Hold {
            group: pin.group.clone(),
            from: row.base.clone(),
            by: Holder::Recovered,
            since: now.at,
            since_wall: now.wall,
            reason: "it was held when the agent started, and what led to it was not stored".to_owned(),
            ..Hold::default()
        };
        match &mut row.held {
            Some(hold) if pin.moves <= row.moves => {
                let same = hold.group == pin.group;
                if same && pin.moves == row.moves {
                    return;
                }
                let (group, moves) = (hold.group.clone(), row.moves);
                self.actions.push_back(Action { endpoint: pin.endpoint.clone(), group, moves });
                if same {
                    return;
                }
                self.note_recovery(pin, "the store knows of a later move to another quarantine group", now);
            }
            Some(hold) => {
                // A tag that led to this is lost: what the store knows does not say when to let it go.
                let (since, since_wall, not_before) = (hold.since, hold.since_wall, hold.not_before);
                row.held = Some(Hold { since, since_wall, not_before, ..found });
                (row.moves, row.waived) = (pin.moves, Some(order));
                self.note_recovery(pin, "the datapath had a later move, and what led to it was not stored", now);
            }
            None if row.opening && pin.moves <= row.moves => {
                live.leaving = Some((found, pin.moves));
                self.touched.insert(pin.endpoint.clone());
                self.note_recovery(pin, "its release was stored, and is completed now", now);
            }
            None => {
                let base = row.base.clone();
                let newer = pin.moves >= row.moves;
                row.moves = row.moves.max(pin.moves) + u32::from(!newer);
                (row.opening, row.waived) = (false, Some(order));
                let moves = row.moves;
                row.held = Some(found);
                if !newer {
                    self.actions.push_back(Action { endpoint: pin.endpoint.clone(), group: pin.group.clone(), moves });
                }
                // A move that may have been automatic: brakes count it.
                if !base.is_empty() {
                    self.common.windows.entry(base).or_default().push(now.at);
                    self.common_touched = true;
                }
                self.note_recovery(pin, "it was held when the agent started, and what led to it was not stored", now);
            }
        }
    }

    fn recover_open(&mut self, pin: &Pinned, now: Now) {
        let Some(live) = self.live.get_mut(&pin.endpoint) else { return };
        let row = &mut live.row;
        if let Some(hold) = &row.held {
            row.moves = row.moves.max(pin.moves + 1);
            let (group, moves) = (hold.group.clone(), row.moves);
            self.actions.push_back(Action { endpoint: pin.endpoint.clone(), group, moves });
            self.note_recovery(pin, "the store says that it is held, and the datapath was open", now);
        } else if row.opening || row.moves < pin.moves {
            row.opening = false;
            row.moves = row.moves.max(pin.moves);
            self.touched.insert(pin.endpoint.clone());
        }
    }

    fn note_recovery(&mut self, pin: &Pinned, why: &str, now: Now) {
        self.touched.insert(pin.endpoint.clone());
        self.changed.insert(pin.endpoint.clone());
        let to =
            self.live.get(&pin.endpoint).map(|live| live.row.held.as_ref().map_or(&live.row.base, |hold| &hold.group).clone());
        self.record(AuditRecord {
            at_ms: now.wall,
            endpoint: pin.endpoint.clone(),
            action: "recover".to_owned(),
            from: pin.group.clone(),
            to: to.unwrap_or_default(),
            who: "agent".to_owned(),
            reason: why.to_owned(),
            evidence: self.evidence(&pin.endpoint),
            ..AuditRecord::default()
        });
    }
}
