//! The store that the hosts of a fleet share: an etcd (3.4 or newer), by one of its members at a time.
//!
//! A connection is to one member. A client with several endpoints at once fails as a whole when one of them is down (etcd-client's
//! balancing), and would hide from its user which one it talks to: whoever loses a connection takes the next endpoint ([`Rotation`]).

mod access;
mod certificate;
mod client;
mod enable;
mod error;
mod lease;
mod operators;

pub use access::{Access, Rotation, Stamp, Tls};
pub use client::{Change, Client, Condition, Entry, Member, Next, Outcome, Snapshot, Watch, Write, batches};
pub use error::{Failure, describe};
pub use lease::Lease;
pub use operators::{ROOT_USER, RoleSet};
