//! `apply`: makes the agent's resources be what files say.

use std::path::PathBuf;

use anyhow::{Result, bail};
use vnet_common::api::{Action, ApplyRequest, ApplyResponse, Change};

use crate::output::Session;
use crate::style::{Look, Paint};
use crate::{effects, files};

/// Create or change resources from YAML files: all of them, or none
///
/// A resource is created when there is none of its kind and name, else changed to what the file says. Faults are all told at once,
/// and then nothing is changed. Resources that are not in the files stay. If live flows are cut or moved, it says how many, and by
/// which rules; `diff` lists them before.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl apply -f policies/lb.yaml
  vnet-ctl apply -f policies/                          Every *.yaml, *.yml and *.json in it
  vnet-ctl apply -f lb.yaml -f endpoints.yaml --dry-run
  vnet-ctl get all -o yaml | vnet-ctl apply -f -")]
pub struct Args {
    /// A file, a directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE|DIR|-", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Check everything and say what would change, but change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let mut request = ApplyRequest { files: files::read(&args.files)?, dry_run: true };
    // First what it would do: afterwards nobody can tell which flows it has cut.
    let mut response: ApplyResponse = session.agent.post("/v1/apply", &request).await?;
    if response.changes.is_empty() {
        bail!("there are no resources in what was given");
    }
    for warning in response.effects.iter().flat_map(|effects| effects::warnings(effects, args.dry_run)) {
        session.warn(&warning);
    }
    if !args.dry_run {
        request.dry_run = false;
        response = session.agent.post("/v1/apply", &request).await?;
    }
    for warning in &response.warnings {
        session.warn(warning);
    }
    let note = if args.dry_run { " (dry run)" } else { "" };
    session.show(&response, |response| lines(&response.changes, note, session.paint))?;
    Ok(0)
}

/// `loadbalancer/web created`, for each change.
pub fn lines(changes: &[Change], note: &str, paint: Paint) -> String {
    let line = |change: &Change| {
        let (word, look) = match change.action {
            Action::Created => ("created", Look::Green),
            Action::Configured => ("configured", Look::Yellow),
            Action::Unchanged => ("unchanged", Look::Dim),
            Action::Deleted => ("deleted", Look::Red),
        };
        format!("{} {}{note}\n", name(change), paint.paint(look, word))
    };
    changes.iter().map(line).collect()
}

/// `loadbalancer/web`.
pub fn name(change: &Change) -> String {
    format!("{}/{}", change.kind.to_lowercase(), change.name)
}
