//! Between the agent and its fleet: what is desired comes from the store that all share, and what this host is goes there.
//!
//! What is desired takes effect as one change, as if somebody had applied it here; what this host refuses leaves everything as it was,
//! and is said, here and to the others. The local store keeps what is in force: an agent that starts while the shared one is away goes
//! on with that.

mod base;
mod desired;
mod holding;
pub mod load;
pub mod moving;
mod others;
mod probing;
mod propose;
mod saying;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use vnet_common::fleet::Global;

use crate::fleet::claims::At;
use crate::fleet::identity::Numbers;
use crate::fleet::others::Others;
use crate::fleet::probing::Probing;
use crate::fleet::view::View;
use crate::fleet::{Consumer, Fleet, Link};
use crate::observe::Saying;

use super::{Agent, State};
use desired::Desired;

/// What an agent keeps of its fleet.
pub(super) struct Sharing {
    fleet: Arc<Fleet>,
    view: View,
    desired: Desired,
    numbers: Numbers,
    probing: Probing,
    moving: moving::Moving,
    others: Others,
    holding: holding::Holding,
    /// What this host, or an agent before this one, said last of the fleet's load, when it was heard of first.
    answer: Option<(Global, Instant)>,
    /// Endpoints that several hosts claim, as they were told last.
    conflicts: BTreeSet<String>,
}

impl Sharing {
    /// Endpoints of this host as the agent before this one told them.
    fn were_here(&self) -> Vec<String> {
        let own = self.fleet.host();
        let ours = self
            .view
            .endpoints
            .names()
            .filter(|(_, claims)| claims.get(own).is_some_and(|(_, state)| !state.discovered && !state.gone));
        ours.map(|(name, _)| name.clone()).collect()
    }

    /// With what was known when the agent before this one ended. `joined`: it had something in force from a store.
    pub(super) fn new(fleet: Arc<Fleet>, joined: bool) -> Self {
        let mut view = View::default();
        if joined {
            fleet.forgot();
        }
        let _all_of_it = fleet.news(&mut view);
        let (desired, numbers, probing) = (Desired::default(), Numbers::default(), Probing::default());
        let holding = holding::Holding::recall(&view, fleet.host());
        Self {
            fleet,
            view,
            desired,
            numbers,
            probing,
            moving: moving::Moving::default(),
            others: Others::default(),
            holding,
            answer: None,
            conflicts: BTreeSet::new(),
        }
    }
}

impl Sharing {
    /// Has the store been read since the agent started?
    pub(super) fn is_read(&self) -> bool {
        self.view.moment.revision > 0
    }

    /// The claims to endpoints that changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> BTreeSet<At> {
        self.view.endpoints.take_changed()
    }
}

impl Consumer for Arc<Agent> {
    fn changed(&self) {
        self.event(State::store_changed);
    }

    fn link(&self, link: &Link) {
        let (reason, what) = match (&link.connected, &link.trouble) {
            (Some(endpoint), _) => ("connected", format!("the store is followed at {endpoint}")),
            (None, trouble) => (
                "lost",
                format!(
                    "the store is not heard of: {}; this host goes on with what it has",
                    trouble.as_deref().unwrap_or("no reason known")
                ),
            ),
        };
        self.parts.observer.events.say(Saying::Store, "", reason, what);
    }
}

impl State {
    /// What was known when the agent before this one ended counts, until the store says otherwise.
    pub(super) fn recall_fleet(&mut self) {
        let Some(sharing) = self.sharing.as_mut() else { return };
        let (were_here, all) = (sharing.were_here(), sharing.take_changed());
        self.policy.keep_here(were_here);
        self.follow_others(&all);
    }

    /// The store may have changed.
    fn store_changed(&mut self) {
        let Some(Sharing { fleet, view, answer, .. }) = self.sharing.as_mut() else { return };
        let (_, touched) = fleet.news(view);
        let changed = view.endpoints.take_changed();
        if touched.globals && answer.is_none() {
            // It is soon gone: nobody has said it since the agent started.
            *answer = view.globals.get(fleet.host()).map(|global| (global.clone(), now()));
        }
        self.follow_desired(false);
        if touched.hosts || touched.endpoints || touched.desired {
            self.follow_others(&changed);
        }
        if touched.hosts || touched.health {
            self.share_checks();
        }
        if touched.endpoints || touched.hosts || touched.desired {
            self.look_at_moves(&changed);
        }
        // Other hosts' endpoints are no reason to say anything, unless they are held there.
        if touched.endpoints {
            self.follow_holds(Some(&changed));
        }
        if touched.hosts || touched.identities || touched.desired {
            self.say_what_is_here();
        }
        if touched.moving {
            self.look_for_flows();
        }
    }

    /// Looks after what the fleet should know and have, and tries again what went wrong.
    pub(super) fn look_after_fleet(&mut self) {
        if self.sharing.is_some() {
            self.follow_desired(true);
            self.share_checks();
            self.say_what_is_here();
            self.forget_flows();
        }
    }
}

/// Now, for what is counted by this host's clock.
fn now() -> Instant {
    Instant::now()
}
