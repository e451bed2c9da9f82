//! `diff`: what `apply` would change.

use std::path::PathBuf;

use anyhow::{Result, bail};
use similar::TextDiff;
use vnet_common::api::{Action, ApplyRequest, ApplyResponse, Change};

use crate::output::Session;
use crate::style::{Look, Paint};
use crate::{apply, effects, files, fleet};

/// Show what `apply` would change, as a unified diff, and which live flows it would cut
///
/// After the diff come the rules that come and go, the endpoints that get other rules or another group, and the flows alive now
/// that would be cut (with the rule that does it), or moved to another member. -o json has all of it. In a fleet, the diff is to what all
/// hosts share, and the rest is about this host.
///
/// Exit codes: 0 no differences, 1 differences, 2 an error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl diff -f policies/lb.yaml
  vnet-ctl diff -f policies/ && echo nothing to do
  vnet-ctl diff -f policies/ -o json | jq '.effects.flows_total'

Exit codes:
  0  no differences      1  differences      2  an error")]
pub struct Args {
    /// A file, a directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE|DIR|-", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<PathBuf>,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let files = files::read(&args.files)?;
    // In a fleet, what others have may not be what is in force on this host.
    let response: ApplyResponse = match fleet::status(&session.agent).await? {
        Some(_) => apply::propose(session, files).await?.response,
        None => session.agent.post("/v1/apply", &ApplyRequest { files, delete: Vec::new(), dry_run: true }).await?,
    };
    if response.changes.is_empty() {
        bail!("there are no resources in what was given");
    }
    for warning in &response.warnings {
        session.warn(warning);
    }
    session.show(&response, |response| text(response, session.paint))?;
    Ok(u8::from(response.changes.iter().any(|change| change.action != Action::Unchanged)))
}

fn text(response: &ApplyResponse, paint: Paint) -> String {
    let diffs: String = response.changes.iter().map(|change| one(change, paint)).collect();
    let effects = response.effects.as_ref().map(|effects| effects::text(effects, paint)).unwrap_or_default();
    if diffs.is_empty() || effects.is_empty() { diffs + &effects } else { format!("{diffs}\n{effects}") }
}

fn one(change: &Change, paint: Paint) -> String {
    if change.action == Action::Unchanged {
        return String::new();
    }
    let name = apply::name(change);
    let mut text = String::new();
    if !change.diff.starts_with("---") {
        let (old, new) = match change.action {
            Action::Created => ("/dev/null".to_owned(), format!("new/{name}")),
            Action::Deleted => (format!("live/{name}"), "/dev/null".to_owned()),
            _ => (format!("live/{name}"), format!("new/{name}")),
        };
        text +=
            &format!("{}\n{}\n", paint.paint(Look::Bold, &format!("--- {old}")), paint.paint(Look::Bold, &format!("+++ {new}")));
    }
    text + &self::paint(&change.diff, paint)
}

/// What changed between two texts, with three lines around each change; empty if nothing did.
pub fn unified(old: &str, new: &str) -> String {
    TextDiff::from_lines(old, new).unified_diff().context_radius(3).to_string()
}

/// A unified diff in colours.
pub fn paint(text: &str, paint: Paint) -> String {
    text.lines().map(|line| paint.paint(look(line), line) + "\n").collect()
}

fn look(line: &str) -> Look {
    match line.as_bytes() {
        [b'-', b'-', b'-', ..] | [b'+', b'+', b'+', ..] => Look::Bold,
        [b'@', ..] => Look::Cyan,
        [b'-', ..] => Look::Red,
        [b'+', ..] => Look::Green,
        _ => Look::Plain,
    }
}
