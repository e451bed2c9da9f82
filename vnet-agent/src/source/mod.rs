//! Tag sources: what says that an endpoint is, or is no longer, something.
//!
//! | source | comes by | file |
//! |---|---|---|
//! | Suricata | EVE records on a unix datagram socket | `suricata.rs` |
//! | ClamAV | scans on demand | `clamav.rs` |
//! | JSON | HTTP, and files in a directory | `json.rs`, `watch.rs` |
//!
//! An event goes through the source's [mappings](mapping), which say what it means for which tag; a [`Directory`] says which
//! endpoints are meant; the [`Sink`] decides whether the source may do this, and does it.

mod acl;
mod change;
mod clamav;
mod directory;
mod ending;
mod json;
mod manager;
pub mod mapping;
mod own;
mod pending;
mod senders;
mod state;
mod suricata;
#[cfg(test)]
mod tests;
mod text;
mod trial;
mod watch;

pub(crate) use json::MOST as BODY_LIMIT;

pub use change::{Applied, Refused, Sink, SourceName, TRIAL_SUBJECT, TRIAL_TAG, TagChange};
pub use directory::{Current, Directory, Endpoints, Known, Reference};
pub use manager::Sources;
pub use own::Own;
