//! Who is held, of endpoints that several hosts claim.
//!
//! A hold is the endpoint's, not the host's: it goes along when the endpoint moves, and ends for all hosts when it is let go on one. So
//! each claim says the *turn* that it knows: every hold and every release by a host's own quarantine gets one more than all claims have.
//! The claims of the highest turn say how it is; of those, one that is held counts before one that is not. A host that has the endpoint
//! does the same, and says the same turn.
//!
//! Not every claim counts: a host that was broken into claims what it likes. Who is let go is so by the claim that is the endpoint's for all
//! ([`View::owner`](super::view::View::owner)); who is held, also by those that are older: it was there before.
//!
//! A host whose device of it is gone goes on saying what it said, until a host that has it says the same, or something newer.

use vnet_common::fleet::EndpointState;

use super::claims::{Claim, Hosts};

/// What the newest claims of an endpoint say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest<'a> {
    /// Their turn.
    pub turn: u32,
    /// One that holds it: host and claim.
    pub held: Option<(&'a str, &'a EndpointState)>,
    /// One that does not.
    pub free: Option<(&'a str, &'a EndpointState)>,
}

/// What a host has said of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The turn.
    pub turn: u32,
    /// It was held.
    pub held: bool,
}

/// What a host is to do about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then<'a> {
    /// Nothing.
    Stay,
    /// Hold it in a group, as this host does.
    Hold {
        /// The quarantine group.
        group: &'a str,
        /// Who holds it.
        host: &'a str,
    },
    /// Let it go, as this host did.
    Release {
        /// Who let it go.
        host: &'a str,
    },
}

impl<'a> Newest<'a> {
    /// Of the claims of a name, but for those without a resource: these are other endpoints, and named alike.
    pub fn of(claims: impl Iterator<Item = (&'a String, &'a Claim)>) -> Self {
        let mut newest = Self::default();
        for (host, (_, state)) in claims.filter(|(_, (_, state))| !state.discovered) {
            if state.turn < newest.turn {
                continue;
            }
            if state.turn > newest.turn {
                newest = Self { turn: state.turn, ..Self::default() };
            }
            let one = if state.quarantined { &mut newest.held } else { &mut newest.free };
            one.get_or_insert((host, state));
        }
        newest
    }

    /// The same of the claims of other hosts that count for `own`, if that of `owner` is the endpoint's.
    #[must_use]
    pub fn of_others(claims: Option<&'a Hosts>, own: &str, owner: Option<&str>) -> Self {
        let ours = claims.and_then(|claims| claims.get(own)).map(|(since, _)| *since);
        let is_older = |since: i64| ours.is_none_or(|ours| since < ours);
        let counts = |host: &str, (since, state): &Claim| owner == Some(host) || state.quarantined && is_older(*since);
        Self::of(claims.into_iter().flatten().filter(|(host, claim)| *host != own && counts(host, claim)))
    }

    /// Does one of them hold an endpoint of which this is said?
    #[must_use]
    pub fn holds(&self, state: &EndpointState) -> Option<&'a EndpointState> {
        self.held.map(|(_, holder)| holder).filter(|_| !state.quarantined && self.turn >= state.turn)
    }
}

/// What follows from what `others` say for a host that has said this, and by whose quarantine the endpoint is `held` or not: the turn that
/// it says from now on, and what it does.
#[must_use]
pub fn follow<'a>(said: Said, held: bool, others: &Newest<'a>) -> (u32, Then<'a>) {
    // Its own quarantine held it, or let it go.
    if held != said.held {
        return (said.turn.max(others.turn).saturating_add(1), Then::Stay);
    }
    let turn = said.turn.max(others.turn);
    if others.turn < said.turn {
        return (turn, Then::Stay);
    }
    let then = match (others.held, others.free) {
        (Some((host, state)), _) if !held => Then::Hold { group: &state.group, host },
        (None, Some((host, _))) if held && others.turn > said.turn => Then::Release { host },
        _ => Then::Stay,
    };
    (turn, then)
}

/// What becomes of the claim of a host whose device of the endpoint is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away<'a> {
    /// It is over.
    Over,
    /// It is said on: nobody else does.
    Said,
    /// A host that has the endpoint says the same, or something newer.
    TakenOver {
        /// The host.
        host: &'a str,
    },
}

/// The same as [`follow`] for a host whose device of the endpoint is gone, by all claims: what it says from now on, and for how long.
#[must_use]
pub fn away<'a>(said: Said, held: bool, claims: Option<&'a Hosts>, own: &str, owner: Option<&str>) -> (Said, Away<'a>) {
    let newer = || said.turn.max(Newest::of_others(claims, own, owner).turn).saturating_add(1);
    let turn = if held == said.held { said.turn } else { newer() };
    let said = Said { turn, held };
    let others = || claims.into_iter().flatten().filter(|(host, (_, state))| *host != own && !state.discovered);
    let knows = |state: &EndpointState| state.turn > turn || state.turn == turn && (state.quarantined || !held);
    if let Some((host, _)) = others().find(|(host, (_, state))| owner == Some(host.as_str()) && !state.gone && knows(state)) {
        return (said, Away::TakenOver { host });
    }
    // Those of hosts that have not heard of the release would count again without it.
    let outdated = || others().any(|(_, (_, state))| state.quarantined && state.turn < turn);
    (said, if held || outdated() { Away::Said } else { Away::Over })
}

#[cfg(test)]
mod tests;
