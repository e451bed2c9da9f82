//! `quarantine never`: who is never moved.

use anyhow::Result;
use vnet_common::api::{QuarantineRequest, QuarantineStatus};

use super::{change, reason};
use crate::output::Session;

/// Keep the list of endpoints that no transfer moves into quarantine
///
/// What would be moved waits for approval instead. An endpoint that is held cannot be put on it: release it first.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl quarantine never ls
  vnet-ctl quarantine never add dns-1 --reason 'the resolver of everybody'
  vnet-ctl quarantine never rm dns-1 --reason 'there are two now'"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List those on it
    #[command(visible_alias = "list", after_help = "Examples:\n  vnet-ctl quarantine never ls")]
    Ls,
    /// Put an endpoint on it
    #[command(after_help = "Examples:\n  vnet-ctl quarantine never add dns-1 --reason 'the resolver of everybody'")]
    Add(Which),
    /// Take an endpoint off it
    #[command(after_help = "Examples:\n  vnet-ctl quarantine never rm dns-1 --reason 'there are two now'")]
    Rm(Which),
}

/// An endpoint, and why.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// Why; it goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    let (which, path, done) = match verb {
        Verb::Ls => return ls(session).await,
        Verb::Add(which) => (which, "never", "is never quarantined from now on"),
        Verb::Rm(which) => (which, "unnever", "can be quarantined again"),
    };
    let request = QuarantineRequest { group: None, reason: which.reason };
    let status = change(session, &which.endpoint, path, &request).await?;
    session.show(&status, |_| format!("endpoint/{} {done}\n", which.endpoint))?;
    Ok(0)
}

async fn ls(session: &Session) -> Result<u8> {
    let status: QuarantineStatus = session.agent.get("/v1/quarantine").await?;
    session.show(&status.never, |never| never.iter().map(|name| format!("{name}\n")).collect())?;
    if status.never.is_empty() && session.for_people() {
        session.note("nobody is on the never-quarantine list");
    }
    Ok(0)
}
