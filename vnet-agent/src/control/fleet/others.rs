//! Other hosts, and what is there: brings rules and load balancers after it.

use std::collections::BTreeSet;

use super::super::State;
use super::Sharing;
use crate::fleet::claims::At;
use crate::observe::Saying;

impl State {
    /// Brings what depends on other hosts after what the store says of them. `changed` are claims that changed.
    pub(in super::super) fn follow_others(&mut self, changed: &BTreeSet<At>) {
        let Some(Sharing { view, others, fleet, .. }) = self.sharing.as_mut() else { return };
        let inputs = self.policy.inputs();
        let elsewhere = others.elsewhere(view, fleet.host(), changed, |name| inputs.placed(name).map(str::to_owned));
        self.elsewhere_changed(elsewhere);
        self.look_for_conflicts();
    }

    fn look_for_conflicts(&mut self) {
        let Some(sharing) = self.sharing.as_mut() else { return };
        let inputs = self.policy.inputs();
        let own = sharing.fleet.host();
        let mut said = BTreeSet::new();
        for (name, owner, others) in sharing.view.conflicts(|name| inputs.placed(name).map(str::to_owned)) {
            let text = format!(
                "endpoint {name} is claimed by host {owner} and by {}: that of {owner} counts, which its resource names or which had it first",
                others.join(", ")
            );
            if !sharing.conflicts.contains(&text) && (owner == own || others.iter().any(|o| o == own)) {
                log::warn!("{text}");
                self.parts.observer.events.say(Saying::Store, &name, "conflict", text.clone());
            }
            said.insert(text);
        }
        sharing.conflicts = said;
    }
}
