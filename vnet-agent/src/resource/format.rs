//! Text of a certain form: what the schema says of it, and what is checked.

use std::net::IpAddr;

use hyper::http::uri::{Authority, Uri};
use schemars::{Schema, SchemaGenerator, json_schema};
use tokio_rustls::rustls::pki_types::ServerName;

use super::health_check::probe_data as probe_data_of;
use super::{Cidr, StatusRange};

/// Characters of a CEL expression.
const LONGEST_EXPRESSION: usize = 4096;
/// Bytes of a path: Linux's `PATH_MAX`, less the NUL.
const LONGEST_PATH: usize = 4095;
/// Bytes that a probe sends or expects.
const LONGEST_PROBE: usize = 1024;
/// Bytes of a URL's path and query that a probe asks for.
const LONGEST_HTTP_PATH: usize = 1024;

/// A resource's name.
pub(super) fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "name", "maxLength": 253, "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$" })
}

/// Labels, as in Kubernetes.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    let pattern = "^(([A-Za-z0-9][A-Za-z0-9_.-]*)?[A-Za-z0-9])?$";
    let key = "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?([A-Za-z0-9][A-Za-z0-9_.-]*)?[A-Za-z0-9]$";
    json_schema!({
        "type": "object",
        "propertyNames": { "type": "string", "format": "label-key", "maxLength": 317, "pattern": key },
        "additionalProperties": { "type": "string", "format": "label-value", "maxLength": 63, "pattern": pattern },
    })
}

/// At least one label.
pub(super) fn some_labels(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = labels(generator);
    schema.insert("minProperties".to_owned(), 1.into());
    schema
}

/// A member's name. Addresses are names too, since they are the default.
pub(super) fn member_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "member-name", "maxLength": 63, "pattern": "^[A-Za-z0-9:]([A-Za-z0-9_.:-]*[A-Za-z0-9:])?$" })
}

/// An address or a network.
pub(super) fn cidr(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "cidr", "maxLength": 49 })
}

/// Addresses or networks.
pub(super) fn cidrs(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 100, "items": cidr(generator) })
}

/// Names of resources.
pub(super) fn names(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 1000, "items": name(generator) })
}

/// A CEL expression.
pub(super) fn expression(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "cel", "minLength": 1, "maxLength": 4096 })
}

/// A protocol's name or number.
pub(super) fn protocol(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "protocol", "pattern": "^(TCP|UDP|ICMP|ICMPv6|SCTP|[0-9]{1,3})$" })
}

/// A tag's name.
pub(super) fn tag_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "tag-name", "maxLength": 63, "pattern": "^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$" })
}

/// Names of tags, with `*` for any characters.
pub(super) fn tag_pattern(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "tag-pattern", "minLength": 1, "maxLength": 63, "pattern": r"^[A-Za-z0-9_.*-]+$" })
}

/// A label's name.
pub(super) fn label_key(_: &mut SchemaGenerator) -> Schema {
    let key = "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?([A-Za-z0-9][A-Za-z0-9_.-]*)?[A-Za-z0-9]$";
    json_schema!({ "type": "string", "format": "label-key", "maxLength": 317, "pattern": key })
}

/// A file of the host.
pub(super) fn path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "path", "maxLength": 4095, "pattern": "^/" })
}

/// Files of the host by the name of a resource.
pub(super) fn paths_by_name(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "propertyNames": name(generator), "additionalProperties": path(generator) })
}

/// A MAC address.
pub(super) fn mac(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "mac", "pattern": "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$" })
}

/// A network device of Linux.
pub(super) fn device(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "device", "minLength": 1, "maxLength": 15, "pattern": r"^[^/:\s]+$" })
}

/// What a GET asks for.
pub(super) fn http_path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "http-path", "maxLength": 1024, "pattern": "^/[!-~]*$" })
}

/// A `Host` header.
pub(super) fn http_host(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "http-host", "minLength": 1, "maxLength": 255 })
}

/// A name of a certificate.
pub(super) fn server_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "server-name", "minLength": 1, "maxLength": 253 })
}

/// Status codes of HTTP, and ranges.
pub(super) fn statuses(_: &mut SchemaGenerator) -> Schema {
    let status = json_schema!({
        "type": ["integer", "string"],
        "format": "http-status",
        "minimum": 100,
        "maximum": 599,
        "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$",
    });
    json_schema!({ "type": "array", "minItems": 1, "maxItems": 100, "items": status })
}

/// Bytes of a datagram.
pub(super) fn probe_data(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "probe-data", "maxLength": 2052 })
}

/// What is wrong with `text` for a format of the schema, as the end of a sentence that starts with the field's name.
pub(super) fn wrong(format: &str, text: &str) -> Option<String> {
    match format {
        "ip" => wrong_ip(text),
        "mac" => wrong_mac(text),
        "device" => wrong_device(text),
        "name" => wrong_name(text, 253).map(str::to_owned),
        "label-key" => wrong_label_key(text),
        "label-value" if text.is_empty() => None,
        "label-value" => wrong_word(text, 63, "_.-"),
        "member-name" => wrong_word(text, 63, "_.-:"),
        "cidr" => Cidr::parse(text).err(),
        "cel" if text.trim().is_empty() => Some("must be a CEL expression, and is empty".to_owned()),
        "cel" => (text.chars().nth(LONGEST_EXPRESSION).is_some())
            .then(|| format!("must be at most {LONGEST_EXPRESSION} characters long")),
        "protocol" => protocol_number(text)
            .is_none()
            .then(|| "must be `TCP`, `UDP`, `ICMP`, `ICMPv6`, `SCTP`, or a number up to 255 in quotes".to_owned()),
        "tag-name" => wrong_word(text, 63, "_.-"),
        "tag-pattern" => wrong_tag_pattern(text),
        "path" => wrong_path(text),
        "http-path" => wrong_http_path(text),
        "http-host" => wrong_http_host(text),
        "http-status" => text.parse::<StatusRange>().err(),
        "server-name" => ServerName::try_from(text)
            .is_err()
            .then(|| "must be a DNS name or an IP address, as certificates have them, without a port".to_owned()),
        "probe-data" => wrong_probe_data(text),
        _ => None,
    }
}

/// `52:54:00:12:34:56`, in either case.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// `TCP`, or a number.
pub fn protocol_number(text: &str) -> Option<u8> {
    match text {
        "ICMP" => Some(1),
        "TCP" => Some(6),
        "UDP" => Some(17),
        "ICMPv6" => Some(58),
        "SCTP" => Some(132),
        number if number.starts_with(|c: char| c.is_ascii_digit()) => number.parse().ok(),
        _ => None,
    }
}

/// Can a resource, or a host, have this name?
pub fn is_name(text: &str) -> bool {
    wrong_name(text, 253).is_none()
}

/// Can a tag have this name?
pub fn is_tag_name(text: &str) -> bool {
    wrong_word(text, 63, "_.-").is_none()
}

fn wrong_ip(text: &str) -> Option<String> {
    if text.parse::<IpAddr>().is_ok() {
        return None;
    }
    let or = |text: &str| text.parse::<IpAddr>().ok();
    if let Some(address) = text.split_once('/').and_then(|(address, _)| or(address)) {
        return Some(format!("must be one address, not a network: write {address}"));
    }
    if let Some(address) = text.strip_prefix('[').and_then(|text| or(text.split_once(']')?.0)) {
        return Some(format!("must be an address alone, without brackets and port: write {address}"));
    }
    if let Some(address) = text.split_once('%').and_then(|(address, _)| or(address)) {
        return Some(format!("must be an address without a device: write {address}"));
    }
    match text.rsplit_once(':').and_then(|(address, _)| or(address)) {
        Some(address) => Some(format!("must be an address alone, without a port: write {address}")),
        None => Some("must be an IP address, such as 10.96.0.10 or fd00:96::10".to_owned()),
    }
}

fn wrong_mac(text: &str) -> Option<String> {
    let Some(mac) = parse_mac(text) else {
        return Some("must be a MAC address: six pairs of hexadecimal digits, such as 52:54:00:12:34:56".to_owned());
    };
    let usable = mac != [0; 6] && mac[0] & 1 == 0;
    (!usable).then(|| "must be the MAC address of one NIC, not a group's or zero".to_owned())
}

fn wrong_device(text: &str) -> Option<String> {
    let fault = match text {
        "" | "." | ".." => "must be the name of a network device, such as tap0",
        _ if text.len() > 15 => "must be at most 15 bytes long, as Linux has no longer device names",
        _ if text.contains(['/', ':']) || text.contains(char::is_whitespace) => {
            "must not contain '/', ':' or white space, as Linux has no such device names"
        }
        _ if text.contains(char::is_control) => "must not contain control characters",
        _ => return None,
    };
    Some(fault.to_owned())
}

fn wrong_tag_pattern(text: &str) -> Option<String> {
    let right = text.chars().all(|c| c.is_ascii_alphanumeric() || "_.*-".contains(c));
    match text {
        "" => Some("must not be empty: `*` stands for any tag".to_owned()),
        _ if text.chars().nth(63).is_some() => Some("must be at most 63 characters long".to_owned()),
        _ => (!right).then(|| "must consist of letters, digits, '_', '.' and '-', and `*` for any characters".to_owned()),
    }
}

fn wrong_path(text: &str) -> Option<String> {
    match text {
        _ if !text.starts_with('/') => Some("must be the full path of a file or directory, from `/` on".to_owned()),
        _ if text.len() > LONGEST_PATH => Some(format!("must be at most {LONGEST_PATH} bytes long")),
        _ => text.contains(char::is_control).then(|| "must not contain control characters".to_owned()),
    }
}

fn wrong_http_path(text: &str) -> Option<String> {
    match text {
        _ if !text.starts_with('/') => Some("must start with `/`".to_owned()),
        _ if text.len() > LONGEST_HTTP_PATH => Some(format!("must be at most {LONGEST_HTTP_PATH} bytes long")),
        _ if !text.bytes().all(|c| c.is_ascii_graphic() && c != b'#') => {
            Some("must be what a URL has after the host: no white space and no `#`, other characters as in `%20`".to_owned())
        }
        _ => text.parse::<Uri>().err().map(|why| format!("cannot be asked for: {why}")),
    }
}

fn wrong_http_host(text: &str) -> Option<String> {
    let right = text.len() <= 255 && !text.contains('@') && text.parse::<Authority>().is_ok();
    (!right).then(|| "must be a name or an address, with a port if it needs one, such as www.example.org:8080".to_owned())
}

fn wrong_probe_data(text: &str) -> Option<String> {
    match probe_data_of(text) {
        None => Some("has `hex:` in front: pairs of hexadecimal digits must follow, such as hex:0d0a".to_owned()),
        Some(bytes) => (bytes.len() > LONGEST_PROBE).then(|| format!("must be at most {LONGEST_PROBE} bytes long")),
    }
}

fn wrong_name(text: &str, longest: usize) -> Option<&'static str> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if text.len() > longest {
        return Some("must be at most 253 characters long");
    }
    let right = text.chars().all(inside) && edge(text.chars().next()) && edge(text.chars().next_back());
    (!right).then_some("must consist of lower-case letters, digits, '-' and '.', and start and end with a letter or digit")
}

fn wrong_label_key(text: &str) -> Option<String> {
    let (prefix, word) = match text.split_once('/') {
        Some((prefix, word)) => (Some(prefix), word),
        None => (None, text),
    };
    if let Some(fault) = prefix.and_then(|prefix| wrong_name(prefix, 253)) {
        return Some(format!("(the part before '/') {fault}"));
    }
    wrong_word(word, 63, "_.-")
}

/// Letters, digits and `others`, where `_`, `.` and `-` do not stand at either end.
fn wrong_word(text: &str, longest: usize, others: &str) -> Option<String> {
    if text.is_empty() {
        return Some("must not be empty".to_owned());
    }
    if text.chars().nth(longest).is_some() {
        return Some(format!("must be at most {longest} characters long"));
    }
    let inside = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    let right = text.chars().all(inside) && !text.starts_with(['_', '.', '-']) && !text.ends_with(['_', '.', '-']);
    let listed: Vec<String> = others.chars().map(|c| format!("'{c}'")).collect();
    (!right)
        .then(|| format!("must consist of letters, digits and {}, and start and end with a letter or digit", listed.join(" ")))
}
