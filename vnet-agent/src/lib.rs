//! The vnet agent: compiles resources into map rows and keeps the datapath of this host.

pub mod api;
pub mod control;
pub mod datapath;
pub mod device;
pub mod elsewhere;
pub mod explain;
pub mod expression;
pub mod fleet;
pub mod lb;
mod memory;
pub mod object;
pub mod observe;
pub mod policy;
pub mod quarantine;
#[cfg(test)]
mod random;
pub mod resource;
mod socket_file;
pub mod source;
pub mod store;

/// The version of the agent.
pub const VERSION: &str =
    if cfg!(feature = "previous-abi") { concat!(env!("CARGO_PKG_VERSION"), "-previous") } else { env!("CARGO_PKG_VERSION") };
