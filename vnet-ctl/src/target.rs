//! What a verb is about: a kind, and perhaps a name.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Error};

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `LoadBalancer`.
    LoadBalancer,
    /// `Endpoint`.
    Endpoint,
    /// `SecurityGroup`.
    SecurityGroup,
    /// `Policy`.
    Policy,
    /// `TagSource`.
    TagSource,
    /// Every kind.
    All,
}

/// `lb`, or `lb/web` as the verbs print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Of this kind.
    pub kind: Kind,
    /// The name after the slash.
    pub name: Option<String>,
}

/// Every name, its kind, and, of the one that help texts show, what it is.
const NAMES: [(&str, Kind, &str); 20] = [
    ("loadbalancer", Kind::LoadBalancer, ""),
    ("loadbalancers", Kind::LoadBalancer, ""),
    ("lb", Kind::LoadBalancer, "load balancers"),
    ("lbs", Kind::LoadBalancer, ""),
    ("endpoint", Kind::Endpoint, ""),
    ("endpoints", Kind::Endpoint, ""),
    ("ep", Kind::Endpoint, "endpoints: the NICs of VMs and containers"),
    ("eps", Kind::Endpoint, ""),
    ("securitygroup", Kind::SecurityGroup, ""),
    ("securitygroups", Kind::SecurityGroup, ""),
    ("sg", Kind::SecurityGroup, "security groups"),
    ("sgs", Kind::SecurityGroup, ""),
    ("policy", Kind::Policy, ""),
    ("policies", Kind::Policy, ""),
    ("pol", Kind::Policy, "policies"),
    ("pols", Kind::Policy, ""),
    ("tagsource", Kind::TagSource, ""),
    ("tagsources", Kind::TagSource, ""),
    ("ts", Kind::TagSource, "tag sources"),
    ("all", Kind::All, "every kind"),
];

impl Kind {
    /// The kind that goes by this name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)).map(|(_, kind, _)| *kind)
    }

    /// As the API calls it.
    pub fn api(self) -> &'static str {
        match self {
            Self::LoadBalancer => "LoadBalancer",
            Self::Endpoint => "Endpoint",
            Self::SecurityGroup => "SecurityGroup",
            Self::Policy => "Policy",
            Self::TagSource => "TagSource",
            Self::All => "all",
        }
    }

    /// Several of them.
    pub fn plural(self) -> &'static str {
        match self {
            Self::LoadBalancer => "load balancers",
            Self::Endpoint => "endpoints",
            Self::SecurityGroup => "security groups",
            Self::Policy => "policies",
            Self::TagSource => "tag sources",
            Self::All => "resources",
        }
    }

    /// One of them.
    pub fn singular(self) -> &'static str {
        match self {
            Self::LoadBalancer => "load balancer",
            Self::Endpoint => "endpoint",
            Self::SecurityGroup => "security group",
            Self::Policy => "policy",
            Self::TagSource => "tag source",
            Self::All => "resource",
        }
    }
}

impl Target {
    /// The names that are meant: the one after the slash and the others.
    pub fn names(&self, others: &[String]) -> Vec<String> {
        self.name.iter().chain(others).cloned().collect()
    }
}

/// Parses a [`Target`].
#[derive(Clone, Copy, Debug)]
pub struct TargetParser;

impl TypedValueParser for TargetParser {
    type Value = Target;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Target, Error> {
        let text = value.to_string_lossy();
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (kind, Some(name.to_owned())),
            None => (text.as_ref(), None),
        };
        match Kind::named(kind) {
            Some(kind) if name.as_deref() != Some("") => Ok(Target { kind, name }),
            _ => Err(unknown(command, arg, &text)),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            NAMES.iter().filter(|(.., help)| !help.is_empty()).map(|(name, _, help)| PossibleValue::new(*name).help(*help)),
        ))
    }
}

fn unknown(command: &Command, arg: Option<&Arg>, text: &str) -> Error {
    let mut error = Error::new(ErrorKind::InvalidValue).with_cmd(command);
    if let Some(arg) = arg {
        error.insert(ContextKind::InvalidArg, ContextValue::String(arg.to_string()));
    }
    error.insert(ContextKind::InvalidValue, ContextValue::String(text.to_owned()));
    let valid = NAMES.iter().filter(|(.., help)| !help.is_empty()).map(|(name, ..)| (*name).to_owned()).collect();
    error.insert(ContextKind::ValidValue, ContextValue::Strings(valid));
    error
}
