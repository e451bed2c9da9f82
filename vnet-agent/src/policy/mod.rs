//! Policy: from security groups and policies to map rows.
//!
//! [`compile`] makes an [`Image`]: every endpoint's identity, and what rules there are about those of this host, in their order.
//! [`plan`] says how to get there from what is in the maps ([`live`]), [`apply`] does it.
//!
//! ```text
//! peers of all rules ─ peers ──► atoms ─┐                        ┌─ identity ──► IPCACHE, CIDRS
//! endpoints' labels, groups, addresses ─┴─ which match which ────┤
//! rules in their order (rules) ──────────── bits by atom (set) ──┴────────────► SETS RULES PORTS BITS PEERS
//! ```

pub mod apply;
pub mod compile;
mod identity;
pub mod ids;
mod image;
mod known;
pub mod live;
mod networks;
mod peers;
pub mod plan;
mod refused;
mod rules;
mod selector;
mod set;
mod subject;
#[cfg(test)]
mod tests;

pub use compile::{Image, Inputs, Previous};
pub use image::{Claim, Local, Placed, Rank};
pub use refused::Refused;
pub use rules::held::{Led, PEER_QUARANTINE};
pub use rules::{Target, Written};
pub use set::Set;
pub use subject::{HostKind, Subject};
