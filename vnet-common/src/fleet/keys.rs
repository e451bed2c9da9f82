//! Keys.

use std::fmt;

/// What all watch.
pub const ROOT: &str = "/vnet/v1/";
/// What operators write.
pub const DESIRED: &str = "/vnet/v1/desired/";
/// Written with every change of what is desired: its revision says whether anything changed.
pub const SERIAL: &str = "/vnet/v1/desired/serial";
/// What hosts write.
pub const STATE: &str = "/vnet/v1/state/";
/// What hosts report, and only the elected one reads.
pub const LOAD: &str = "/vnet/load/v1/";

/// A key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A resource: kind and name.
    Resource(String, String),
    /// What was changed of a member: load balancer and member.
    Override(String, String),
    /// A host that may take part.
    Registration(String),
    /// A change that only some hosts have.
    Rollout(String),
    /// A host that is alive.
    Alive(String),
    /// How far a host has come.
    Applied(String),
    /// The fleet's load, as a host sees it.
    Global(String),
    /// What a host knows of members' health.
    Health(String),
    /// An endpoint: host and name.
    Endpoint(String, String),
    /// What a number of an identity stands for: host and number.
    Identity(String, u32),
    /// A piece of the flows of an endpoint that moves: host that had it, endpoint and number of the piece.
    Moving(String, String, u32),
    /// A host's load.
    Load(String),
}

impl Key {
    /// Takes a key apart; `None`: of something that this version does not know.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(host) = text.strip_prefix(LOAD) {
            return Some(Self::Load(unescape(host)?));
        }
        let parts: Vec<&str> = text.strip_prefix(ROOT)?.split('/').collect();
        let own = |part: &&str| unescape(part);
        Some(match parts.as_slice() {
            ["desired", "resources", kind, name] => Self::Resource(own(kind)?, own(name)?),
            ["desired", "overrides", lb, member] => Self::Override(own(lb)?, own(member)?),
            ["desired", "hosts", host] => Self::Registration(own(host)?),
            ["desired", "rollouts", name] => Self::Rollout(own(name)?),
            ["state", "alive", host] => Self::Alive(own(host)?),
            ["state", "applied", host] => Self::Applied(own(host)?),
            ["state", "global", host] => Self::Global(own(host)?),
            ["state", "health", host] => Self::Health(own(host)?),
            ["state", "endpoints", host, name] => Self::Endpoint(own(host)?, own(name)?),
            ["state", "identities", host, number] => Self::Identity(own(host)?, number.parse().ok()?),
            ["state", "moving", host, name, piece] => Self::Moving(own(host)?, own(name)?, piece.parse().ok()?),
            _ => return None,
        })
    }

    /// A name as it stands in a key.
    #[must_use]
    pub fn part(name: &str) -> String {
        escape(name)
    }

    /// Is it something that operators write?
    #[must_use]
    pub fn is_desired(&self) -> bool {
        matches!(self, Self::Resource(..) | Self::Override(..) | Self::Registration(_) | Self::Rollout(_))
    }

    /// The host that writes it; `None`: operators do.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Alive(host) | Self::Applied(host) | Self::Global(host) | Self::Health(host) | Self::Load(host) => Some(host),
            Self::Endpoint(host, _) | Self::Identity(host, _) | Self::Moving(host, ..) => Some(host),
            Self::Resource(..) | Self::Override(..) | Self::Registration(_) | Self::Rollout(_) => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(kind, name) => write!(f, "{DESIRED}resources/{}/{}", escape(kind), escape(name)),
            Self::Override(lb, member) => write!(f, "{DESIRED}overrides/{}/{}", escape(lb), escape(member)),
            Self::Registration(host) => write!(f, "{DESIRED}hosts/{}", escape(host)),
            Self::Rollout(name) => write!(f, "{DESIRED}rollouts/{}", escape(name)),
            Self::Alive(host) => write!(f, "{STATE}alive/{}", escape(host)),
            Self::Applied(host) => write!(f, "{STATE}applied/{}", escape(host)),
            Self::Global(host) => write!(f, "{STATE}global/{}", escape(host)),
            Self::Health(host) => write!(f, "{STATE}health/{}", escape(host)),
            Self::Endpoint(host, name) => write!(f, "{STATE}endpoints/{}/{}", escape(host), escape(name)),
            Self::Identity(host, number) => write!(f, "{STATE}identities/{}/{number}", escape(host)),
            Self::Moving(host, name, piece) => write!(f, "{STATE}moving/{}/{}/{piece:06}", escape(host), escape(name)),
            Self::Load(host) => write!(f, "{LOAD}{}", escape(host)),
        }
    }
}

/// Where a host writes: single keys, and prefixes of keys. Nobody else may.
#[must_use]
pub fn writable(host: &str) -> (Vec<String>, Vec<String>) {
    let host = escape(host);
    let single = ["alive", "applied", "global", "health"].map(|what| format!("{STATE}{what}/{host}"));
    let below = ["endpoints", "identities", "moving"].map(|what| format!("{STATE}{what}/{host}/"));
    (single.into_iter().chain([format!("{LOAD}{host}")]).collect(), below.into())
}

/// A name as a part of a key.
fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

fn unescape(part: &str) -> Option<String> {
    (!part.is_empty()).then(|| part.replace("%2F", "/").replace("%25", "%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        let owned = |s: &str| s.to_owned();
        for key in [
            Key::Resource(owned("Policy"), owned("a.b-c")),
            Key::Override(owned("web"), owned("pool/10.0.0.1")),
            Key::Override(owned("web"), owned("100%2F%")),
            Key::Registration(owned("h1")),
            Key::Rollout(owned("r")),
            Key::Alive(owned("h1")),
            Key::Applied(owned("h1")),
            Key::Global(owned("h1")),
            Key::Health(owned("h1")),
            Key::Endpoint(owned("h1"), owned("vm/1")),
            Key::Identity(owned("h1"), 65_537),
            Key::Moving(owned("h1"), owned("vm"), 3),
            Key::Load(owned("h1")),
        ] {
            assert_eq!(Key::parse(&key.to_string()), Some(key.clone()), "{key}");
            let (single, below) = writable("h1");
            let may = single.contains(&key.to_string()) || below.iter().any(|b| key.to_string().starts_with(b));
            assert_eq!(may, key.host() == Some("h1"), "{key}");
            assert_eq!(key.host().is_none(), key.is_desired());
        }
        for unknown in
            ["", "/vnet/v1/", "/vnet/v1/state/alive/", "/vnet/v1/state/later/h1", "/vnet/v1/state/identities/h/x", "/other"]
        {
            assert_eq!(Key::parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn nobody_writes_below_a_name_that_begins_like_theirs() {
        let (single, below) = writable("h1");
        let other = [Key::Endpoint("h10".into(), "x".into()), Key::Alive("h10".into()), Key::Endpoint("h".into(), "1/x".into())];
        for key in other.map(|k| k.to_string()) {
            assert!(!single.contains(&key) && !below.iter().any(|b| key.starts_with(b)), "{key}");
        }
    }
}
