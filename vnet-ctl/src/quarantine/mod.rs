//! `quarantine`: who is held, and why.

mod act;
mod log;
mod ls;
mod never;

use anyhow::Result;
use vnet_common::api::{QuarantineRequest, QuarantineStatus};

use crate::client::segment;
use crate::get;
use crate::output::Session;

pub use ls::details;

/// See who is held in quarantine and why; hold, release, approve
///
/// Endpoints are moved by the transfers of their security groups, as their tags say. What is done here by hand goes into the audit
/// log, with the reason given.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl quarantine ls
  vnet-ctl quarantine hold web-1 --group strict --reason 'ticket 4711'
  vnet-ctl quarantine release web-1 --reason 'false alarm, ticket 4711'
  vnet-ctl quarantine log web-1"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    Ls(ls::Args),
    Hold(act::HoldArgs),
    Release(act::ReleaseArgs),
    Approve(act::ApproveArgs),
    Dismiss(act::DismissArgs),
    Never(never::Args),
    Log(log::Args),
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ls(args) => ls::run(session, args).await,
        Verb::Hold(args) => act::hold(session, args).await,
        Verb::Release(args) => act::release(session, args).await,
        Verb::Approve(args) => act::approve(session, args).await,
        Verb::Dismiss(args) => act::dismiss(session, args).await,
        Verb::Never(args) => never::run(session, args.verb).await,
        Verb::Log(args) => log::run(session, args).await,
    }
}

/// Asks the agent to do `verb` about an endpoint; gives who is held then.
async fn change(session: &Session, endpoint: &str, verb: &str, request: &QuarantineRequest) -> Result<QuarantineStatus> {
    let answer = session.agent.post(&format!("/v1/quarantine/{}/{verb}", segment(endpoint)), request).await;
    get::explain_endpoint(session, answer, endpoint).await
}

/// A reason that says something: it is all that the audit log has to tell why.
fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a reason must say something: it goes into the audit log".to_owned()),
        text => Ok(text.to_owned()),
    }
}
