//! How errors are told.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use vnet_common::api::{ErrorResponse, Fault};

use crate::human;
use crate::style::{Look, Paint};

/// The agent said no.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// Why.
    pub response: ErrorResponse,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.response.error)
    }
}

impl std::error::Error for Refused {}

/// What was asked for makes no sense: the exit code is that of a wrong command line.
#[derive(Debug)]
pub struct Misused(pub String);

impl fmt::Display for Misused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misused {}

/// Somebody broke off the waiting for hosts, after this revision of the store was written.
#[derive(Debug)]
pub struct Interrupted(pub i64);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "interrupted: it is written all the same (revision {} of the store), and hosts take it over; vnet-ctl host ls says who has",
            self.0
        )
    }
}

impl std::error::Error for Interrupted {}

/// The reader of our output has gone, as `head` does when it has seen enough.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for ReaderGone {}

/// Whether the agent said that there is no such thing.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 404)
}

/// Whether the agent said that it is about to know more, and is to be asked again.
pub fn is_busy(error: &anyhow::Error) -> bool {
    let again = |refused: &Refused| refused.status == 409 && refused.response.error.ends_with("try again");
    error.downcast_ref::<Refused>().is_some_and(again)
}

/// Prints an error to standard error, and gives the exit code: `failed`, or none where nothing went wrong but that the reader of
/// our output has gone.
pub fn report(error: &anyhow::Error, paint: Paint, failed: u8) -> ExitCode {
    if error.is::<ReaderGone>() {
        return ExitCode::SUCCESS;
    }
    // If nobody can be told, the exit code is all there is.
    let _ = std::io::stderr().write_all(text(error, paint).as_bytes());
    ExitCode::from(match error {
        error if error.is::<Misused>() => 2,
        // As of a program that the signal ends.
        error if error.is::<Interrupted>() => 130,
        _ => failed,
    })
}

fn text(error: &anyhow::Error, paint: Paint) -> String {
    let prefix = paint.paint(Look::Red, "error:");
    let faults = error.downcast_ref::<Refused>().map_or(&[][..], |refused| &refused.response.faults);
    if faults.is_empty() {
        let told: Vec<String> = format!("{error:#}").lines().map(human::clean).collect();
        return format!("{prefix} {}\n", told.join("\n"));
    }
    let mut files: Vec<&str> = faults.iter().map(|fault| fault.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let told: String = faults.iter().map(|each| fault(each, paint)).collect();
    let summary = format!("{} in {}", human::count(faults.len() as u64, "fault"), human::count(files.len() as u64, "file"));
    format!("{told}{prefix} {error:#}: {summary}\n")
}

fn fault(fault: &Fault, paint: Paint) -> String {
    let place = match fault {
        Fault { file, line: 0, .. } => file.clone(),
        Fault { file, line, column, .. } => format!("{file}:{line}:{column}"),
    };
    let snippet: String = fault.snippet.lines().map(|line| format!("{line}\n")).collect();
    format!("{}: {}\n{snippet}\n", paint.paint(Look::Bold, &place), fault.message.trim_end())
}
