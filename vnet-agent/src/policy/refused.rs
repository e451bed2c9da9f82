//! What the datapath cannot take.

use std::fmt;

use vnet_common::api::RuleRef;
use vnet_common::policy::{MAX_PORT_ROWS, MAX_RULES};
use vnet_common::verdict::Direction;

use super::ids::{MAX_ID, RuleKey};
use super::set::TooLong;

/// Why there is no image, or no plan. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There are more rules than numbers for them.
    #[error("{rule}: there are more than {} rules in all, and this one has no number left", MAX_ID - 1)]
    Numbers {
        /// The first without one.
        rule: RuleName,
    },
    /// An endpoint has more rules, or more ports in them, than fit into one list.
    #[error("{rule}: with this rule, {about} has more than {limit} for {direction}, which is all that one endpoint can have")]
    Long {
        /// The rule that is too much.
        rule: RuleName,
        /// The endpoint, or quarantine group.
        about: String,
        /// What there is too much of.
        limit: &'static str,
        /// Which list.
        direction: &'static str,
    },
    /// An endpoint is in a group that is not there.
    #[error("endpoint `{endpoint}` is in the security group `{group}`, which does not exist")]
    Group {
        /// The endpoint.
        endpoint: String,
        /// The group.
        group: String,
    },
    /// A map is too small.
    #[error("{cause}: no room for {what} in map {map} ({needed} more needed, {free} of {capacity} free)")]
    Room {
        /// The rule, or the endpoint, that did not fit.
        cause: String,
        /// What there is no room for.
        what: &'static str,
        /// The map.
        map: &'static str,
        /// How many rows it would take.
        needed: u32,
        /// How many are free.
        free: u32,
        /// How many there are in all.
        capacity: u32,
    },
}

impl Refused {
    /// Of a list that is too long.
    pub fn long(rule: RuleName, about: String, too_long: TooLong) -> Self {
        const _: () = assert!(MAX_RULES == 4096 && MAX_PORT_ROWS == 8192);
        let limit = if too_long.rules { "4096 rules" } else { "8192 ranges of ports" };
        let direction = match too_long.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        Self::Long { rule, about, limit, direction }
    }
}

/// A rule, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleName {
    kind: String,
    resource: String,
    rule: String,
    place: String,
}

impl From<&RuleRef> for RuleName {
    fn from(r: &RuleRef) -> Self {
        Self { kind: r.kind.clone(), resource: r.resource.clone(), rule: r.rule.clone(), place: r.place.clone() }
    }
}

impl From<RuleKey> for RuleName {
    fn from(key: RuleKey) -> Self {
        Self { kind: key.kind, resource: key.resource, rule: key.rule, place: String::new() }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`, rule `{}`", self.kind, self.resource, self.rule)?;
        if self.place.is_empty() { Ok(()) } else { write!(f, " ({})", self.place) }
    }
}
