//! `rollout`: changes that only some hosts of the fleet have so far.

mod begin;
mod finish;
mod record;
mod show;

use anyhow::Result;

use crate::fleet::{self, WaitArgs};
use crate::output::Session;

pub use begin::begin;

/// See changes that only some hosts have; give them to all, or take them back
///
/// `apply --canary` begins one. It lies in the store beside the resources. The hosts that it names go by it, all others by the resources as they are.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl apply -f lb.yaml --canary host-a --name faster
  vnet-ctl rollout ls
  vnet-ctl rollout status faster
  vnet-ctl rollout promote faster"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List the rollouts, with their hosts and what they change
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  vnet-ctl rollout ls\n  vnet-ctl rollout ls -o json | jq -r '.[].name'"
    )]
    Ls,
    /// Show which hosts of a rollout have it in force, and whether it still fits
    ///
    /// FITS no: somebody changed that resource after the rollout was begun, so that it can be rolled back and begun anew, but not
    /// promoted.
    #[command(after_help = "Examples:\n  vnet-ctl rollout status faster")]
    Status(Which),
    Promote(PromoteArgs),
    Rollback(RollbackArgs),
}

/// A rollout.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// Its name
    #[arg(value_name = "NAME", value_parser = fleet::name)]
    name: String,
}

/// Give a rollout to all hosts: it becomes the resources
///
/// In one transaction, and only if the resources are still what they were when it was begun (else the difference is shown), and if it fits all
/// else that hosts share by now. Hosts of the rollout that do not have it in force stop this, unless --force.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl rollout promote faster
  vnet-ctl rollout promote faster --wait 30s")]
pub struct PromoteArgs {
    #[command(flatten)]
    which: Which,
    /// Also if hosts that were to try it refuse it, or are not alive
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Take a rollout back: its hosts go by the resources again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl rollout rollback faster")]
pub struct RollbackArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ls => show::ls(session).await,
        Verb::Status(which) => show::status(session, &which.name).await,
        Verb::Promote(args) => finish::promote(session, args).await,
        Verb::Rollback(args) => finish::rollback(session, args).await,
    }
}
