//! Faults of a tag source.

use std::path::Path;

use super::super::{SourceType, TagSource, TagSourceSpec};
use super::alone::Report;
use crate::source::mapping::Mappings;

/// Where a Suricata source listens that does not say, below the run directory.
const DEFAULT_SOCKET: &str = "suricata/eve.sock";
/// Bytes of the path of a unix socket.
const SOCKET_PATH: usize = 107;
/// The source that is `vnet-ctl tag`.
const OPERATOR: &str = "operator";

pub(super) fn alone(source: &TagSource, whole: bool, report: Report<'_>) {
    let (name, spec) = (source.metadata.name.as_str(), &source.spec);
    match spec.r#type == SourceType::Operator {
        true if name != OPERATOR => report("/metadata/name", "a source of type `operator` is named `operator`".to_owned()),
        false if name == OPERATOR => report("/spec/type", "`operator` is `vnet-ctl tag`: name this source otherwise".to_owned()),
        _ => {}
    }
    if let Err(faults) = Mappings::compile(&spec.mappings) {
        faults.into_iter().for_each(|(at, message)| report(&format!("/spec/mappings{at}"), message));
    }
    match spec.r#type {
        SourceType::Suricata | SourceType::Json if whole && spec.mappings.is_empty() => {
            report("/spec", "`spec` needs `mappings`: what do its events mean?".to_owned());
        }
        SourceType::Clamav | SourceType::Operator if !spec.mappings.is_empty() => {
            report("/spec/mappings", "this type of source has no events to map: remove `mappings`".to_owned());
        }
        _ => {}
    }
    input(spec, report);
}

/// Fields that its type has no use for, and paths that cannot be used.
fn input(spec: &TagSourceSpec, report: Report<'_>) {
    use SourceType::{Clamav, Json, Suricata};
    let input = &spec.input;
    let fields = [
        ("/spec/input/socket", input.socket.is_some(), &[Suricata, Clamav][..]),
        ("/spec/input/directory", input.directory.is_some(), &[Json]),
        ("/spec/input/guests", !input.guests.is_empty(), &[Clamav]),
        ("/spec/input/maxFileMib", input.max_file_mib.is_some(), &[Clamav]),
        ("/spec/users", !spec.users.is_empty(), &[Suricata, Json]),
        ("/spec/lostAfterSeconds", spec.lost_after_seconds.is_some(), &[Suricata, Json, Clamav]),
    ];
    for (pointer, given, types) in fields {
        if given && !types.contains(&spec.r#type) {
            let field = pointer.rsplit('/').next().unwrap_or_default();
            report(pointer, format!("this type of source has no use for `{field}`: remove it"));
        }
    }
    let mut absolute = |pointer: &str, path: &str| {
        if !Path::new(path).is_absolute() || path.contains('\0') {
            report(pointer, format!("`{}` must be an absolute path", path.escape_debug()));
        }
    };
    for (field, path) in [("socket", &input.socket), ("directory", &input.directory)] {
        path.iter().for_each(|path| absolute(&format!("/spec/input/{field}"), path));
    }
    for (guest, path) in &input.guests {
        absolute(&format!("/spec/input/guests/{}", guest.replace('~', "~0").replace('/', "~1")), path);
    }
    if let Some(socket) = input.socket.as_ref().filter(|socket| socket.len() > SOCKET_PATH) {
        report(
            "/spec/input/socket",
            format!("the path of a socket has at most {SOCKET_PATH} bytes, and this one has {}", socket.len()),
        );
    }
}

/// What no other source can have: its socket, or its directory.
pub(super) fn claims(spec: &TagSourceSpec) -> Vec<(String, &'static str)> {
    let socket = || spec.input.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
    let directory = spec.input.directory.as_ref();
    match spec.r#type {
        SourceType::Suricata => vec![(format!("socket `{}`", socket()), "/spec/input/socket")],
        SourceType::Json => directory.map(|path| (format!("directory `{path}`"), "/spec/input/directory")).into_iter().collect(),
        SourceType::Clamav | SourceType::Operator => Vec::new(),
    }
}
