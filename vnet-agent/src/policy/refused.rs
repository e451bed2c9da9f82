//! What the datapath cannot take.

use vnet_common::api::RuleRef;
use vnet_common::policy::{MAX_PORT_ROWS, MAX_RULES};
use vnet_common::verdict::Direction;

use super::ids::MAX_ID;
use super::set::TooLong;

/// Why there is no image, or no plan. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There are more rules than numbers for them.
    #[error("{rule}: there are more than {} rules in all, and this one has no number left", MAX_ID - 1)]
    Numbers {
        /// The first without one.
        rule: String,
    },
    /// An endpoint has more rules, or more ports in them, than fit into one list.
    #[error("{rule}: with this rule, {about} has more than {limit} for {direction}, which is all that one endpoint can have")]
    Long {
        /// The rule that is too much.
        rule: String,
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
    pub fn long(rule: String, about: String, too_long: TooLong) -> Self {
        const _: () = assert!(MAX_RULES == 4096 && MAX_PORT_ROWS == 8192);
        let limit = if too_long.rules { "4096 rules" } else { "8192 ranges of ports" };
        let direction = match too_long.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        Self::Long { rule, about, limit, direction }
    }
}

/// A rule, for people: whose it is, its name, and where it was written if that is known.
pub fn rule_name(rule: &RuleRef) -> String {
    let name = format!("{} `{}`, rule `{}`", rule.kind, rule.resource, rule.rule);
    if rule.place.is_empty() { name } else { format!("{name} ({})", rule.place) }
}
