//! Where desired state lives.

mod quarantine;
pub mod redb;

use anyhow::Result;

use crate::policy::ids::{IdChange, RuleKey};
use crate::resource::{Origin, Resource};

/// What an operator changed at run time, without editing a resource: it survives restarts and later applies.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemberOverride {
    /// Takes no new flows.
    pub drained: bool,
    /// Instead of the resource's weight.
    pub weight: Option<u16>,
}

/// Durable desired state. One method call is one atomic change: it is there as a whole after a crash, or not at all.
pub trait Store: Send + Sync {
    /// Every resource.
    fn resources(&self) -> Result<Vec<Resource>>;
    /// Puts and deletes resources together. `delete` names (kind, name); a name that does not exist is no error. What was changed or
    /// bound at run time goes with its resource.
    fn change(&self, put: &[Resource], delete: &[(String, String)]) -> Result<()>;
    /// Where resources were written that were applied from a file: (kind, name) and place.
    fn origins(&self) -> Result<Vec<((String, String), Origin)>>;
    /// Remembers where these were written. A resource that is deleted loses its place.
    fn set_origins(&self, origins: &[((String, String), Origin)]) -> Result<()>;
    /// Every rule's number.
    fn rule_ids(&self) -> Result<Vec<(RuleKey, u32)>>;
    /// Gives and takes back numbers of rules.
    fn change_rule_ids(&self, change: &IdChange) -> Result<()>;
    /// Every override: (load balancer, member name, override).
    fn overrides(&self) -> Result<Vec<(String, String, MemberOverride)>>;
    /// Sets one; the default value deletes it.
    fn set_override(&self, load_balancer: &str, member: &str, value: &MemberOverride) -> Result<()>;
    /// A number for an endpoint, never given to another name, the same for ever.
    fn endpoint_id(&self, name: &str) -> Result<u32>;
    /// Every name that has such a number.
    fn endpoint_ids(&self) -> Result<Vec<(String, u32)>>;
    /// Devices that endpoints were given at run time: (endpoint, device).
    fn bindings(&self) -> Result<Vec<(String, String)>>;
    /// Does this only keep what a store says that others share, too?
    fn has_joined(&self) -> Result<bool>;
    /// Notes whether it does.
    fn set_joined(&self, joined: bool) -> Result<()>;
    /// Gives an endpoint a device; no other has it any more.
    fn bind(&self, endpoint: &str, device: &str) -> Result<()>;
}
