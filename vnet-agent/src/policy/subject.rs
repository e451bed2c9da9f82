//! Whom rules are about.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// An endpoint, on this host or another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The addresses that somebody gave it.
    pub addresses: Vec<IpAddr>,
    /// Others that were learned. Where several endpoints claim an address, one that was given it has it.
    pub learned: Vec<IpAddr>,
    /// The security group that it is in now.
    pub group: Arc<str>,
    /// Whether it is on this host: then it needs a set.
    pub local: bool,
    /// If it is on another: that group holds it, in quarantine.
    pub held: bool,
    /// The network that its addresses are in.
    pub network: u32,
}

/// Whose address it is that is no endpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostKind {
    /// This host's.
    This,
    /// Another host's that runs an agent.
    Remote,
}
