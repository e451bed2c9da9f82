//! Tags, quarantine and which group each endpoint is in.
//!
//! `tags` says what is known of endpoints, `engine` what follows, [`Service`] does it: [`Enforce`] first, then
//! [`Journal`], for moves into quarantine; the other way round for releases.

pub mod clock;
mod criteria;
mod engine;
mod membership;
mod model;
mod service;
mod state;
mod tags;
#[cfg(test)]
pub(crate) mod tests;

pub use engine::{Assignment, Engine, Operation, Refused, SourceCounts, TagApplied, TagChange};
pub use model::{Inputs, Model, OPERATOR};
pub use service::{Running, Service};
pub use state::{Batch, Because, Common, Enforce, Hold, Holder, Journal, Member, Pinned, Saved, Waiting};
pub use tags::{TagKey, TagState, TagWrite};
