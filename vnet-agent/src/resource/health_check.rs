//! How members of a load balancer are watched: active checks, and what their connections tell.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::format;

/// A health check. With none of `http`, `udp` and `icmp`, a TCP connection that opens within the timeout is a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// The port to ask. Default: the member's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Between the starts of two checks, in milliseconds: 100 to 3,600,000.
    #[serde(default = "two_seconds")]
    #[schemars(range(min = 100, max = 3_600_000))]
    pub interval_ms: u32,
    /// Until a check has failed, in milliseconds: 10 to 60,000, at most the interval. All of it counts: the TLS handshake and the answer, too.
    #[serde(default = "one_second")]
    #[schemars(range(min = 10, max = 60_000))]
    pub timeout_ms: u32,
    /// Successes in a row after which a member is up: 1 to 10.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 10))]
    pub rise: u8,
    /// Failures in a row after which a member is down: 1 to 10.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 10))]
    pub fall: u8,
    /// Ask for a page by HTTP/1.1 GET. Redirects are not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Send a datagram, and wait for the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpCheck>,
    /// Ping: an ICMP or ICMPv6 echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpCheck>,
}

/// A check by HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// What to ask for, with a query if there is one.
    #[serde(default = "root")]
    #[schemars(schema_with = "format::http_path")]
    pub path: String,
    /// The `Host` header. Default: the member's address, and its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::http_host")]
    pub host: Option<String>,
    /// The status codes that are a success, each as a number or a range.
    #[serde(default = "good")]
    #[schemars(schema_with = "format::statuses")]
    pub status: Vec<StatusRange>,
    /// Over TLS.
    #[serde(default, skip_serializing_if = "is_false")]
    pub https: bool,
    /// With `https`: the name that the certificate must have. Default: that of `host`, else the member's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::server_name")]
    pub server_name: Option<String>,
    /// With `https`: a PEM file on this host with the certificates of the CAs to trust. Default: those that the host trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::path")]
    pub ca_file: Option<String>,
    /// With `https`: take any certificate.
    #[serde(default, skip_serializing_if = "is_false")]
    pub insecure_skip_verify: bool,
}

/// A check by UDP. It takes an answer to succeed: that a datagram could be sent says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UdpCheck {
    /// What to send: text, or `hex:` and hexadecimal digits.
    #[schemars(schema_with = "format::probe_data")]
    pub send: String,
    /// What the answer must have, in the same way. Default: any answer will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "format::probe_data")]
    pub expect: Option<String>,
    /// Where it must have it.
    #[serde(default)]
    pub r#match: Match,
}

/// Where an answer has what is expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Match {
    /// Anywhere in its first 4096 bytes.
    #[default]
    Contains,
    /// At its start.
    Prefix,
    /// It is nothing else.
    Exact,
}

/// A check by ping. There is nothing to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IcmpCheck {}

/// Passive health: a member whose connections fail gets no new ones for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PassiveHealth {
    /// Connections that must have failed within the window: reset, answered by an ICMP error, or not answered at all: 1 to 100,000.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100_000))]
    pub failures: u32,
    /// The share of all its new connections within the window that this must be, in per cent: 1 to 100.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 100))]
    pub failed_percent: u8,
    /// The window, in milliseconds: 1,000 to 60,000.
    #[serde(default = "ten_seconds")]
    #[schemars(range(min = 1000, max = 60_000))]
    pub window_ms: u32,
    /// How long a member is out for the first time, in milliseconds: 1,000 to 3,600,000. Each further time it is twice as long.
    #[serde(default = "half_a_minute")]
    #[schemars(range(min = 1000, max = 3_600_000))]
    pub base_eject_ms: u32,
    /// How long it is out at most, in milliseconds: 1,000 to 86,400,000.
    #[serde(default = "five_minutes")]
    #[schemars(range(min = 1000, max = 86_400_000))]
    pub max_eject_ms: u32,
    /// The share of the members that may be out of service, down ones included, in per cent: nobody is ejected beyond it. 1 to 100.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 100))]
    pub max_ejected_percent: u8,
}

/// Status codes of HTTP: one (`200`), or a range (`200-299`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl StatusRange {
    /// Whether it has this one.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let code = |text: &str| {
            let right = text.len() == 3 && text.bytes().all(|c| c.is_ascii_digit());
            text.parse().ok().filter(|code| right && (100..=599).contains(code))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (code(first), code(last)) {
            (Some(first), Some(last)) if last < first => Err(format!("ends before it starts: write {last}-{first}")),
            (Some(first), Some(last)) => Ok(Self { first, last }),
            _ => Err("must be a status code from 100 to 599, or a range of them, such as 200-299".to_owned()),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.first == self.last {
            true => to.serialize_u16(self.first),
            false => to.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader)
    }
}

/// Reads a status as people write it.
struct Reader;

impl Visitor<'_> for Reader {
    type Value = StatusRange;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a status code or a range of them")
    }

    fn visit_u64<E: de::Error>(self, code: u64) -> Result<StatusRange, E> {
        code.to_string().parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, code: i64) -> Result<StatusRange, E> {
        code.to_string().parse().map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRange, E> {
        text.parse().map_err(E::custom)
    }
}

/// The bytes that a text of [`UdpCheck`] stands for; `None` if it is wrong.
#[must_use]
pub fn probe_data(text: &str) -> Option<Vec<u8>> {
    let Some(digits) = text.strip_prefix("hex:") else { return Some(text.as_bytes().to_vec()) };
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let [high, low] = pair.map(|digit| (digit as char).to_digit(16));
        u8::try_from(high? << 4 | low?).ok()
    };
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(byte).collect()
}

fn is_false(value: &bool) -> bool {
    !value
}
fn root() -> String {
    "/".to_owned()
}
fn good() -> Vec<StatusRange> {
    vec![StatusRange { first: 200, last: 399 }]
}
fn two_seconds() -> u32 {
    2000
}
fn one_second() -> u32 {
    1000
}
fn ten_seconds() -> u32 {
    10_000
}
fn half_a_minute() -> u32 {
    30_000
}
fn five_minutes() -> u32 {
    300_000
}
fn two() -> u8 {
    2
}
fn three() -> u8 {
    3
}
fn five() -> u32 {
    5
}
fn fifty() -> u8 {
    50
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let read = |json: &str| serde_json::from_str::<StatusRange>(json).map(|s| (s.first, s.last)).ok();
        for (json, range) in [
            ("200", Some((200, 200))),
            ("\"200\"", Some((200, 200))),
            ("\"200-399\"", Some((200, 399))),
            ("\"399-200\"", None),
            ("99", None),
            ("600", None),
            ("-200", None),
            ("\"200-\"", None),
            ("\"2xx\"", None),
            ("\"+20\"", None),
            ("2e2", None),
        ] {
            assert_eq!(read(json), range, "{json}");
        }
        for text in ["204", "\"200-299\""] {
            assert_eq!(serde_json::to_string(&serde_json::from_str::<StatusRange>(text).unwrap()).unwrap(), text);
        }
        let some = StatusRange { first: 200, last: 299 };
        assert_eq!([199, 200, 299, 300].map(|code| some.contains(code)), [false, true, true, false]);
    }

    #[test]
    fn data_of_probes() {
        for (text, bytes) in [
            ("PING\r\n", Some(&b"PING\r\n"[..])),
            ("", Some(b"")),
            ("hex:", Some(b"")),
            ("hex:00ffAb", Some(b"\x00\xff\xab")),
            ("HEX:00", Some(b"HEX:00")),
            ("hex:0", None),
            ("hex:0x", None),
            ("hex:+1", None),
            ("hex:00 01", None),
        ] {
            assert_eq!(probe_data(text).as_deref(), bytes, "{text:?}");
        }
    }
}
