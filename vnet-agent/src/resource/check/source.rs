//! Faults of tag sources.

use std::path::{Path, PathBuf};

use super::super::tag_source::{Allow, Mapping, OnExpiry, Operation, SourceType, TagSource, TagSourceSpec};
use super::alone::Report;
use super::rule::{expression, names, only_one};
use crate::control::glob::Pattern;
use crate::socket_file;
use crate::source::mapping::Mappings;

/// Where a Suricata source listens that does not say, unless the agent has another run directory: then only its start can tell.
const DEFAULT_SOCKET: &str = "/run/vnet/suricata/eve.sock";
/// What expressions of mappings may ask for.
const OF_EVENTS: &[&str] = &["event"];
/// The operator's resource, of which there is one.
const OPERATOR: &str = "operator";
/// Bytes of the path of a unix socket that someone else made: what `sockaddr_un` has, less the NUL.
const LONGEST_SOCKET: usize = 107;

/// Looks at a tag source.
pub(super) fn source(source: &TagSource, whole: bool, report: Report<'_>) {
    let mut found = false;
    fields(source, whole, &mut |pointer, message| {
        found = true;
        report(pointer, message);
    });
    // Whatever else there may be that keeps its mappings from being used.
    if whole
        && !found
        && let Err(faults) = Mappings::compile(&source.spec.mappings)
    {
        faults.into_iter().for_each(|(at, message)| report(&format!("/spec/mappings{at}"), message));
    }
}

fn fields(source: &TagSource, whole: bool, report: Report<'_>) {
    let spec = &source.spec;
    names(spec.mappings.iter().map(|m| m.name.as_str()), "/spec/mappings", "mapping", report);
    for (index, allow) in spec.allow.iter().enumerate() {
        if !allow.set && !allow.clear {
            report(&format!("/spec/allow/{index}"), format!("nothing may be done with `{}`: remove the entry", allow.tag));
        }
    }
    for (index, mapping) in spec.mappings.iter().enumerate() {
        let pointer = format!("/spec/mappings/{index}");
        self::mapping(mapping, &pointer, whole, report);
        if whole {
            allowed(mapping, &spec.allow, &pointer, report);
        }
    }
    let longest = if spec.r#type == SourceType::Suricata { socket_file::LONGEST } else { LONGEST_SOCKET };
    if let Some(socket) = spec.input.socket.as_deref().filter(|socket| socket.len() > longest) {
        let message = format!("a socket's path has at most {longest} bytes here, and this one {}", socket.len());
        report("/spec/input/socket", message);
    }
    for (index, _) in spec.users.iter().enumerate().filter(|(_, user)| user.trim().is_empty()) {
        report(&format!("/spec/users/{index}"), "a user has a name or a number, and this is empty".to_owned());
    }
    if whole {
        of_type(source, report);
    }
}

/// What a source of this type has nothing to do with, or cannot do without.
fn of_type(source: &TagSource, report: Report<'_>) {
    let (spec, input) = (&source.spec, &source.spec.input);
    let (name, takes): (&str, &[&str]) = match spec.r#type {
        SourceType::Suricata => ("suricata", &["mappings", "input/socket", "users", "lostAfterSeconds"]),
        SourceType::Clamav => ("clamav", &["input/socket", "input/guests", "input/maxFileMib", "lostAfterSeconds"]),
        SourceType::Json => ("json", &["mappings", "input/directory", "users", "lostAfterSeconds"]),
        SourceType::Operator => (OPERATOR, &[]),
    };
    let fields = [
        ("mappings", !spec.mappings.is_empty()),
        ("input/socket", input.socket.is_some()),
        ("input/directory", input.directory.is_some()),
        ("input/guests", !input.guests.is_empty()),
        ("input/maxFileMib", input.max_file_mib.is_some()),
        ("users", !spec.users.is_empty()),
        ("lostAfterSeconds", spec.lost_after_seconds.is_some()),
    ];
    for (field, _) in fields.iter().filter(|(field, given)| *given && !takes.contains(field)) {
        let what = field.rsplit('/').next().unwrap_or(field);
        report(&format!("/spec/{field}"), format!("a source of type `{name}` has no `{what}`: remove it"));
    }
    if takes.contains(&"mappings") && spec.mappings.is_empty() {
        report("/spec", format!("a source of type `{name}` needs `mappings`: which events become which tags?"));
    }
    if (spec.r#type == SourceType::Operator) != (source.metadata.name == OPERATOR) {
        let message =
            format!("the name `{OPERATOR}` and the type `{OPERATOR}` belong together: the resource says what `vnet-ctl tag` may");
        report("/metadata/name", message);
    }
}

fn mapping(mapping: &Mapping, pointer: &str, whole: bool, report: Report<'_>) {
    let subject = &mapping.subject;
    let expressions = [
        ("when", Some(&mapping.when)),
        ("tagFrom", mapping.tag_from.as_ref()),
        ("valueFrom", mapping.value_from.as_ref()),
        ("instanceFrom", mapping.instance_from.as_ref()),
        ("severityFrom", mapping.severity_from.as_ref()),
        ("evidenceFrom", mapping.evidence_from.as_ref()),
        ("subject/addressFrom", subject.address_from.as_ref()),
        ("subject/endpointFrom", subject.endpoint_from.as_ref()),
        ("subject/macFrom", subject.mac_from.as_ref()),
        ("subject/labelValueFrom", subject.label_value_from.as_ref()),
    ];
    for (field, text) in expressions {
        expression(text.map(String::as_str), &format!("{pointer}/{field}"), OF_EVENTS, report);
    }
    let given = |name: &'static str| {
        let is = expressions.iter().any(|(field, text)| *field == format!("subject/{name}") && text.is_some());
        (name, is)
    };
    let subjects = ["addressFrom", "endpointFrom", "macFrom", "labelValueFrom"].map(given);
    only_one(&subjects, &format!("{pointer}/subject"), "a subject", whole, report);
    match (&subject.label, &subject.label_value_from) {
        (Some(_), None) if whole => {
            report(&format!("{pointer}/subject/label"), "`label` is for `labelValueFrom`, which is not given".to_owned());
        }
        (None, Some(_)) if whole => {
            report(
                &format!("{pointer}/subject/labelValueFrom"),
                "`labelValueFrom` needs `label`: the value of which one?".to_owned(),
            );
        }
        _ => {}
    }
    only_one(&[("tag", mapping.tag.is_some()), ("tagFrom", mapping.tag_from.is_some())], pointer, "a mapping", whole, report);
    if mapping.severity.is_some() && mapping.severity_from.is_some() {
        report(&format!("{pointer}/severityFrom"), "there is `severity` as well: keep one of the two".to_owned());
    }
    if mapping.on_expiry == OnExpiry::Hold && mapping.ttl_seconds.is_none() && whole {
        report(
            &format!("{pointer}/onExpiry"),
            "without `ttlSeconds` the tag never expires: remove `onExpiry`, or give that".to_owned(),
        );
    }
}

/// What the source itself may not, its mappings cannot.
fn allowed(mapping: &Mapping, allow: &[Allow], pointer: &str, report: Report<'_>) {
    let Some(tag) = &mapping.tag else { return };
    let (verb, may): (&str, &dyn Fn(&Allow) -> bool) = match mapping.operation {
        Operation::Set => ("set", &|a| a.set),
        Operation::Clear => ("clear", &|a| a.clear),
    };
    let named: Vec<&Allow> = allow.iter().filter(|a| may(a) && a.tag.parse::<Pattern>().is_ok_and(|p| p.matches(tag))).collect();
    let most = named.iter().map(|a| a.max_severity).max();
    match (most, mapping.severity) {
        (None, _) => report(&format!("{pointer}/tag"), format!("nothing in `allow` lets this source {verb} the tag `{tag}`")),
        (Some(most), Some(severity)) if severity > most && mapping.operation == Operation::Set => {
            let message = format!("`allow` lets this source set `{tag}` with a severity of at most {most}, not {severity}");
            report(&format!("{pointer}/severity"), message);
        }
        _ => {}
    }
}

/// What no other source can have: its socket, or its directory.
pub(super) fn claims(spec: &TagSourceSpec) -> Vec<(String, &'static str)> {
    // However it is written.
    let plain = |path: &str| Path::new(path).components().collect::<PathBuf>().display().to_string();
    let socket = || plain(spec.input.socket.as_deref().unwrap_or(DEFAULT_SOCKET));
    let directory = spec.input.directory.as_deref().map(plain);
    match spec.r#type {
        SourceType::Suricata => vec![(format!("socket `{}`", socket()), "/spec/input/socket")],
        SourceType::Json => directory.map(|path| (format!("directory `{path}`"), "/spec/input/directory")).into_iter().collect(),
        SourceType::Clamav | SourceType::Operator => Vec::new(),
    }
}
