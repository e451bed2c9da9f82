//! `apply`: makes the agent's resources be what files say.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Serialize;
use vnet_common::api::fleet::{FleetStatus, Proposal, ProposeRequest};
use vnet_common::api::{Action, ApplyRequest, ApplyResponse, Change, File};

use crate::failure::Misused;
use crate::fleet::{self, InForce, Made, WaitArgs, Wanted, Written};
use crate::output::Session;
use crate::style::{Look, Paint};
use crate::{effects, files, rollout};

/// Create or change resources from YAML files: all of them, or none
///
/// A resource is created when there is none of its kind and name, else changed to what the file says. Faults are all told at once,
/// and then nothing is changed. Resources that are not in the files stay. If live flows are cut or moved, it says how many, and by
/// which rules; `diff` lists them before.
///
/// In a fleet, the agent says what the change would be, and it is written to the store that the hosts share, in one transaction: nothing
/// is, if somebody else changed the same meanwhile (then the difference is shown). It then waits until every host that is alive has it in
/// force, and warns of those that do not; it is done all the same, and the exit code is 0. With --canary only the named hosts get it,
/// until `rollout promote` or `rollout rollback`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl apply -f policies/lb.yaml
  vnet-ctl apply -f policies/                          Every *.yaml, *.yml and *.json in it
  vnet-ctl apply -f lb.yaml -f endpoints.yaml --dry-run
  vnet-ctl apply -f lb.yaml --canary host-a,host-b     These hosts first; then: vnet-ctl rollout
  vnet-ctl get all -o yaml | vnet-ctl apply -f -")]
pub struct Args {
    /// A file, a directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE|DIR|-", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Check everything and say what would change, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// In a fleet: only on these hosts, until it is promoted or rolled back
    #[arg(long, value_name = "HOST,…", value_delimiter = ',', conflicts_with = "dry_run")]
    canary: Vec<String>,
    /// What the rollout is called, with --canary [default: after the first resource]
    #[arg(long, value_name = "NAME", requires = "canary", value_parser = fleet::name)]
    name: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What was done, for programs: as without a fleet, and who has it in force.
#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    response: &'a ApplyResponse,
    #[serde(rename = "inForce", skip_serializing_if = "Option::is_none")]
    force: Option<InForce>,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let files = files::read(&args.files)?;
    match fleet::status(&session.agent).await? {
        Some(fleet) if args.canary.is_empty() => together(session, &fleet, &args, files).await,
        Some(fleet) => rollout::begin(session, &fleet, files, &args.canary, args.name, args.wait).await,
        None if args.canary.is_empty() => alone(session, &args, files).await,
        None => Err(Misused("--canary is for hosts of a fleet, and this host is in none".to_owned()).into()),
    }
}

/// On this host, which keeps a store of its own.
async fn alone(session: &Session, args: &Args, files: Vec<File>) -> Result<u8> {
    let mut request = ApplyRequest { files, delete: Vec::new(), dry_run: true };
    // First what it would do: afterwards nobody can tell which flows it has cut.
    let mut response: ApplyResponse = session.agent.post("/v1/apply", &request).await?;
    nonempty(&response)?;
    for warning in response.effects.iter().flat_map(|effects| effects::warnings(effects, args.dry_run)) {
        session.warn(&warning);
    }
    if !args.dry_run {
        request.dry_run = false;
        response = session.agent.post("/v1/apply", &request).await?;
    }
    show(session, &response, args.dry_run, None)
}

/// In a fleet, for all its hosts.
async fn together(session: &Session, fleet: &FleetStatus, args: &Args, files: Vec<File>) -> Result<u8> {
    if args.dry_run {
        let proposal = propose(session, files).await?;
        hear(session, &proposal, true)?;
        return show(session, &proposal.response, true, None);
    }
    let wanted = Wanted { request: ProposeRequest::Apply { files }, what: "apply".to_owned(), instead: None };
    let made = fleet::make(session, fleet, &wanted, |proposal| hear(session, proposal, false)).await?;
    show_made(session, &made, args.wait).await
}

/// What applying these files would be, in a fleet.
pub async fn propose(session: &Session, files: Vec<File>) -> Result<Proposal> {
    fleet::propose(session, &ProposeRequest::Apply { files }).await
}

/// Warns of what a proposed change does on this host; that it is none is an error.
pub fn hear(session: &Session, proposal: &Proposal, dry_run: bool) -> Result<()> {
    nonempty(&proposal.response)?;
    for warning in proposal.response.effects.iter().flat_map(|effects| effects::warnings(effects, dry_run)) {
        session.warn(&format!("on this host, {warning}"));
    }
    Ok(())
}

fn nonempty(response: &ApplyResponse) -> Result<()> {
    if response.changes.is_empty() {
        bail!("there are no resources in what was given");
    }
    Ok(())
}

/// Says what was done in a fleet, and then who has it in force.
pub async fn show_made(session: &Session, made: &Made, wait: WaitArgs) -> Result<u8> {
    let response = &made.response;
    for warning in &response.warnings {
        session.warn(warning);
    }
    let written = Written { revision: made.revision, limit: wait.wait, hosts: None };
    fleet::say(session, written, &lines(&response.changes, "", session.paint), |force| Done { response, force }).await?;
    Ok(0)
}

/// Says what was done, and who has it in force.
pub fn show(session: &Session, response: &ApplyResponse, dry_run: bool, force: Option<InForce>) -> Result<u8> {
    for warning in &response.warnings {
        session.warn(warning);
    }
    let note = if dry_run { " (dry run)" } else { "" };
    session.show(&Done { response, force }, |done| {
        let force = done.force.as_ref().map(InForce::line).unwrap_or_default();
        lines(&done.response.changes, note, session.paint) + &force
    })?;
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
