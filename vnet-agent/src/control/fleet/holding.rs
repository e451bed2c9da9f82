//! Who is held on another host is held here, too, and who is let go there is let go: see [`holds`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use vnet_common::fleet::EndpointState;

use super::super::State;
use super::super::inputs::endpoint_key;
use super::{Sharing, now};
use crate::fleet::claims::{At, Hosts};
use crate::fleet::holds::{Away, Newest, Said, Then, away, follow};
use crate::fleet::view::View;
use crate::resource::DEFAULT_GROUP;

/// For so long another host has to have an endpoint before its hold is left to it: its device may go, too.
const SETTLES: Duration = Duration::from_secs(5);

/// What this host says of who is held, of endpoints with a resource that are or were.
#[derive(Debug, Default)]
pub(super) struct Holding(BTreeMap<String, Held>);

#[derive(Debug, Default)]
struct Held {
    said: Said,
    /// The claim as it was last.
    state: EndpointState,
    /// Since when another host says the same, while the endpoint is not here.
    taken_over: Option<Instant>,
}

impl Holding {
    /// As the agent before this one said it.
    pub fn recall(view: &View, own: &str) -> Self {
        let ours = view.endpoints.names().filter_map(|(name, claims)| Some((name, &claims.get(own)?.1)));
        let about = ours.filter(|(_, state)| !state.discovered && (state.turn > 0 || state.quarantined));
        let held = |state: &EndpointState| Held {
            said: Said { turn: state.turn, held: state.quarantined },
            state: state.clone(),
            taken_over: None,
        };
        Self(about.map(|(name, state)| (name.clone(), held(state))).collect())
    }

    fn said(&self, name: &str) -> Said {
        self.0.get(name).map(|held| held.said).unwrap_or_default()
    }

    fn say(&mut self, name: &str, said: Said) {
        if said != Said::default() || self.0.contains_key(name) {
            let held = self.0.entry(name.to_owned()).or_default();
            (held.said, held.taken_over) = (said, None);
        }
    }
}

impl State {
    /// Does about endpoints of this host what other hosts did that held them, or let them go: about all, or those of which claims changed.
    pub(in super::super) fn follow_holds(&mut self, changed: Option<&BTreeSet<At>>) {
        let Some(Sharing { holding, view, fleet, .. }) = self.sharing.as_mut() else { return };
        let (quarantine, own, inputs) = (&self.parts.quarantine, fleet.host(), self.policy.inputs());
        let names: Option<BTreeSet<&str>> = changed.map(|changed| changed.iter().map(|(name, _)| name.as_str()).collect());
        let is_asked = |name: &str| names.as_ref().is_none_or(|names| names.contains(name));
        let here = self.policy.endpoints().iter().filter(|nic| nic.ifindex() != 0 && !nic.discovered && is_asked(&nic.name));
        let holds = quarantine.holds();
        for name in here.map(|nic| &nic.name) {
            let (said, held) = (holding.said(name), holds.contains_key(name));
            let claims = view.endpoints.of(name);
            // An agent that was let down by its own store goes by what it has said.
            if let Some(known) = holding.0.get(name).filter(|k| k.said.held && !held && !quarantine.remembers(name)) {
                quarantine.follow(name, Some(&known.state.group), own);
                continue;
            }
            let owner = view.owner(name, inputs.placed(name));
            let others = Newest::of_others(claims, own, owner);
            let (turn, then) = follow(said, held, &others);
            let (group, host) = match then {
                Then::Stay => {
                    holding.say(name, Said { turn, held });
                    continue;
                }
                Then::Hold { group, host } => (Some(group), host),
                Then::Release { host } => (None, host),
            };
            log::warn!(
                "endpoint {name}: host {host} {}",
                if held { "has let it go: it is free" } else { "holds it: it is held" }
            );
            quarantine.follow(name, group, host);
            let is_held = quarantine.holds().contains_key(name);
            if is_held != held {
                holding.say(name, Said { turn, held: is_held });
            }
        }
    }

    /// Notes what is said of endpoints that are here, and adds those that are not, and are said for who holds them.
    pub(super) fn with_holds(&mut self, endpoints: &mut Vec<(String, EndpointState)>) {
        let Some(Sharing { holding, view, fleet, .. }) = self.sharing.as_mut() else { return };
        let (quarantine, own, now) = (&self.parts.quarantine, fleet.host(), now());
        let mut here = BTreeSet::new();
        for (name, state) in endpoints.iter_mut().filter(|(_, state)| !state.discovered) {
            state.turn = holding.said(name).turn;
            if let Some(held) = holding.0.get_mut(name) {
                held.state = state.clone();
            }
            here.insert(name.clone());
        }
        if holding.0.is_empty() {
            return;
        }
        let holds = quarantine.holds();
        let inputs = self.policy.inputs();
        // Until its end is heard of, who comes back would find a claim that is not true any more.
        let is_said = |claims: Option<&Hosts>| claims.is_some_and(|claims| claims.contains_key(own));
        holding.0.retain(|name, held| {
            if here.contains(name) {
                return true;
            }
            let claims = view.endpoints.of(name);
            let is_known = inputs.resources.contains_key(&endpoint_key(name));
            let is_held = holds.contains_key(name) || held.said.held && !quarantine.remembers(name);
            let owner = view.owner(name, inputs.placed(name));
            let (said, away) = away(held.said, is_held, claims, own, owner);
            held.said = said;
            match away {
                Away::TakenOver { host } if now.saturating_duration_since(*held.taken_over.get_or_insert(now)) >= SETTLES => {
                    // First the claim goes, then the hold: who restarts between the two holds one too many, and lets nobody go.
                    if is_said(claims) {
                        return true;
                    }
                    log::info!("endpoint {name} is on host {host} now, and so is who holds it");
                    quarantine.hand_over(name, host);
                    // What cannot be stored is not done, and tried again.
                    held.said.held = quarantine.holds().contains_key(name);
                    return held.said.held;
                }
                Away::Over => return is_said(claims),
                Away::Said => held.taken_over = None,
                Away::TakenOver { .. } => {}
            }
            if is_known {
                let group = holds.get(name).cloned().unwrap_or_else(|| match is_held {
                    true => held.state.group.clone(),
                    false => DEFAULT_GROUP.to_owned(),
                });
                let state = EndpointState { group, quarantined: is_held, turn: said.turn, gone: true, ..held.state.clone() };
                endpoints.push((name.clone(), state));
            }
            is_known
        });
    }
}
