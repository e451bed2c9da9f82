//! ClamAV: files are scanned by clamd on demand, and the result becomes tags.
//!
//! | result | tags |
//! |---|---|
//! | something was found | `av.malware` is set (value: the first signature; severity 8; evidence: the files), `av.clean` is cleared |
//! | all was scanned and nothing found | `av.clean` is set (value: clamd's version), `av.malware` is cleared |
//! | nothing was found, yet not all was scanned | neither: nobody knows |
//!
//! Only a scan of all that the resource says about a guest can make it clean, and only if there was something to scan. Tags are subject to the source's `allow`.

mod client;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vnet_common::api::{ScanReport, ScanRequest};

use super::change::{EVIDENCE, TagChange, VALUE};
use super::state::{Source, as_tag};
use super::text;
use crate::api::Refusal;
use crate::resource::{Input, OnExpiry, Operation};
use client::{Clamd, Found};
use walk::{Item, Walk};

/// Where Debian's clamd listens.
pub(super) const SOCKET: &str = "/run/clamav/clamd.ctl";
/// Tag of who has malware.
pub(super) const MALWARE: &str = "av.malware";
/// Tag of who has none.
pub(super) const CLEAN: &str = "av.clean";
const SEVERITY: u8 = 8;

/// Files that are scanned at one time.
const AT_ONCE: usize = 2;
/// MiB of the largest file that is scanned, unless the resource says: what clamd takes by default.
const FILE_MIB: u32 = 100;
/// Lines of a report.
const LISTED: usize = 1000;
/// Bytes of a file's name in it.
const NAME: usize = 1024;

/// What the scanning threads find.
#[derive(Default)]
struct Tally {
    report: ScanReport,
    /// Infected and failed ones that the report has no room for.
    more: [u64; 2],
}

/// Scans what the request names, and tells the sink. What is left when `stop` is set is not scanned.
///
/// # Errors
/// The request makes no sense, or clamd does not answer.
pub(super) fn scan(source: &Source, request: &ScanRequest, stop: &AtomicBool) -> Result<ScanReport, Refusal> {
    let input = source.settings().spec.input.clone();
    let scope = scope(source, &input, request)?;
    let clamd = Clamd::new(socket(&input));
    let version = clamd.version().map_err(|error| {
        source.complain(format!("{error:#}"));
        Refusal::from(error)
    })?;
    let now = Instant::now();
    source.count_event(now);
    let tally = scan_all(&clamd, &scope.paths, most(&input), stop);
    let mut report = tally.finish();
    for change in changes(source, request, &report, &scope, &version, now) {
        let (tag, is_set) = (as_tag(&change), change.operation == Operation::Set);
        match source.deliver(change) {
            Ok(true) if is_set => report.tags.push(tag),
            Ok(true) => report.cleared.push(tag),
            Ok(false) => {}
            Err(why) => report.failed.push((String::new(), why)),
        }
    }
    Ok(report)
}

/// How long clamd takes for a file of 1 KiB, and its version.
pub(super) fn measure(source: &Source, trials: u32) -> anyhow::Result<(Vec<Duration>, String)> {
    let clamd = Clamd::new(socket(&source.settings().spec.input));
    let version = clamd.version()?;
    let mut times = Vec::new();
    for _ in 0..trials {
        let begun = Instant::now();
        clamd.scan(&mut &[b'x'; 1024][..], 1024)?;
        times.push(begun.elapsed());
    }
    Ok((times, version))
}

/// Where clamd is.
pub(super) fn socket(input: &Input) -> PathBuf {
    input.socket.as_deref().unwrap_or(SOCKET).into()
}

fn most(input: &Input) -> u64 {
    u64::from(input.max_file_mib.unwrap_or(FILE_MIB)) << 20
}

/// What is scanned.
struct Scope {
    paths: Vec<PathBuf>,
    /// It is all that there is of this guest.
    whole: bool,
}

fn scope(source: &Source, input: &Input, request: &ScanRequest) -> Result<Scope, Refusal> {
    let endpoint = &request.endpoint;
    if !source.knows(endpoint) {
        return Err(Refusal::not_found(format!("there is no endpoint '{endpoint}' here that a scan could be about")));
    }
    let guest = input.guests.get(endpoint).map(PathBuf::from);
    let paths: Vec<PathBuf> = match (&guest, request.paths.is_empty()) {
        (_, false) => request.paths.iter().map(PathBuf::from).collect(),
        (Some(guest), true) => vec![guest.clone()],
        (None, true) => {
            let source = &source.name;
            return Err(Refusal::invalid(format!(
                "nothing to scan: tag source {source} has no directory of {endpoint}: add it to `input.guests`, or name paths"
            )));
        }
    };
    if let Some(path) = paths.iter().find(|path| !path.is_absolute()) {
        return Err(Refusal::invalid(format!("{} is not absolute: paths are the agent's", path.display())));
    }
    // A directory above it may have much to scan, and the guest's be empty or not be there.
    let whole = guest.is_none_or(|guest| paths.contains(&guest));
    Ok(Scope { paths, whole })
}

fn scan_all(clamd: &Clamd, paths: &[PathBuf], most: u64, stop: &AtomicBool) -> Tally {
    let tally = Mutex::new(Tally::default());
    let bytes = AtomicU64::new(0);
    // A file waits open: not more than are scanned soon.
    let (to, from) = sync_channel::<Item>(AT_ONCE);
    let from = Mutex::new(from);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| scan_items(clamd, &from, most, &tally, &bytes));
        }
        for path in paths {
            let mut empty = true;
            Walk::new(path).run(stop, |item| {
                empty = false;
                // The threads take items until there are no more.
                let _ = to.send(item);
            });
            if empty {
                // A guest's disk that is not mounted leaves just this.
                let _ = to.send(Item { path: path.clone(), file: Err("there is nothing to scan: is it mounted?".to_owned()) });
            }
        }
        drop(to);
    });
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.report.bytes = bytes.into_inner();
    tally
}

fn scan_items(clamd: &Clamd, items: &Mutex<Receiver<Item>>, most: u64, tally: &Mutex<Tally>, bytes: &AtomicU64) {
    loop {
        let item = items.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(item) = item else { return };
        let found = match item.file {
            Ok(mut file) => clamd.scan(&mut file, most).map_err(|error| format!("{error:#}")),
            Err(why) => Err(why),
        };
        let name = text::tidy(&item.path.to_string_lossy(), NAME);
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok((found, read)) => {
                bytes.fetch_add(read, Ordering::Relaxed);
                tally.add(name, found);
            }
            Err(why) => tally.fail(name, why),
        }
    }
}

impl Tally {
    fn add(&mut self, name: String, found: Found) {
        match found {
            Found::Nothing => self.report.scanned += 1,
            Found::Signature(signature) => {
                self.report.scanned += 1;
                match self.report.infected.len() < LISTED {
                    true => self.report.infected.push((name, text::tidy(&signature, NAME))),
                    false => self.more[0] += 1,
                }
            }
            Found::Unscanned(why) => self.fail(name, why),
        }
    }

    fn fail(&mut self, name: String, why: String) {
        match self.report.failed.len() < LISTED {
            true => self.report.failed.push((name, text::tidy(&why, NAME))),
            false => self.more[1] += 1,
        }
    }

    fn finish(mut self) -> ScanReport {
        let [infected, failed] = self.more;
        self.report.infected.sort();
        self.report.failed.sort();
        if infected > 0 {
            self.report.infected.push(("…".to_owned(), format!("{infected} more files")));
        }
        if failed > 0 {
            self.report.failed.push(("…".to_owned(), format!("{failed} more files")));
        }
        self.report
    }
}

/// The changes that a scan means.
fn changes(
    source: &Source,
    request: &ScanRequest,
    report: &ScanReport,
    scope: &Scope,
    version: &str,
    at: Instant,
) -> Vec<TagChange> {
    let change = |operation, name: &str, value: &str, severity, evidence: String| TagChange {
        source: source.name.clone(),
        subject: request.endpoint.clone(),
        operation,
        name: name.to_owned(),
        value: text::tidy(value, VALUE),
        instance: String::new(),
        severity,
        confidence: 100,
        evidence: text::tidy(&evidence, EVIDENCE),
        ttl: None,
        on_expiry: OnExpiry::Release,
        received_at: at,
    };
    if let Some((_, signature)) = report.infected.first() {
        let files: Vec<String> = report.infected.iter().map(|(file, signature)| format!("{file}: {signature}")).collect();
        return vec![
            change(Operation::Set, MALWARE, signature, SEVERITY, files.join("; ")),
            change(Operation::Clear, CLEAN, "", 0, String::new()),
        ];
    }
    if !report.failed.is_empty() || !scope.whole {
        return Vec::new();
    }
    let paths: Vec<_> = scope.paths.iter().map(|path: &PathBuf| Path::display(path).to_string()).collect();
    let scanned = format!("{} files, {} bytes: {}", report.scanned, report.bytes, paths.join(" "));
    vec![change(Operation::Set, CLEAN, version, 0, scanned.clone()), change(Operation::Clear, MALWARE, "", 0, scanned)]
}

#[cfg(test)]
mod tests;
