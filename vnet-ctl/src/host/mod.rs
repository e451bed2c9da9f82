//! `host`: the hosts of the fleet.

mod add;
mod drain;
mod ls;
mod remove;

use anyhow::Result;
use serde::Serialize;

use crate::fleet::{self, InForce, WaitArgs};
use crate::output::Session;
use crate::watch::WatchArgs;

pub use add::register;

/// See the hosts of the fleet; let hosts in and out, drain them
///
/// What these change is in the store that the hosts share. `add` and `remove` also make and remove the host's user there, which takes
/// root's certificate; the others take an operator's, and `ls` none.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl host ls
  vnet-ctl host drain host-b
  vnet-ctl host add host-d --store-cert root.crt --store-key root.key"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List the hosts: whether they are alive, and how far they have come
    ///
    /// STATE: alive, silent (it does not keep its lease), drained; elected: it adds up the load of all. APPLIED is the newest revision of
    /// what operators wrote that is in force there. -o wide adds addresses and room.
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  vnet-ctl host ls
  vnet-ctl host ls -o wide --watch
  vnet-ctl host ls -o json | jq -r '.[] | select(.alive | not) | .name'"
    )]
    Ls(WatchArgs),
    /// Give a host's endpoints no new flows as members of load balancers
    ///
    /// Those that they have live on. It stays so, across restarts, until `host undrain`. The host itself goes on as before: its endpoints are policed, and may be
    /// clients.
    #[command(after_help = "Examples:\n  vnet-ctl host drain host-b\n  vnet-ctl host drain host-b --wait 30s")]
    Drain(DrainArgs),
    /// Give a drained host's endpoints new flows again
    #[command(after_help = "Examples:\n  vnet-ctl host undrain host-b")]
    Undrain(DrainArgs),
    Add(add::Args),
    Remove(remove::Args),
}

/// Which host.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// The host
    #[arg(value_name = "HOST", value_parser = fleet::name)]
    name: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What became of a host, for programs.
#[derive(Serialize)]
struct Done {
    host: String,
    /// In past tense.
    action: &'static str,
    /// The upper half of all identity numbers that it gives out.
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u16>,
    #[serde(rename = "inForce", skip_serializing_if = "Option::is_none")]
    force: Option<InForce>,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ls(args) => ls::run(session, args).await,
        Verb::Drain(args) => drain::run(session, args, true).await,
        Verb::Undrain(args) => drain::run(session, args, false).await,
        Verb::Add(args) => add::run(session, args).await,
        Verb::Remove(args) => remove::run(session, args).await,
    }
}

impl Done {
    /// Says it.
    fn show(&self, session: &Session) -> Result<u8> {
        session.show(self, Self::line)?;
        Ok(0)
    }

    /// `host/h1 registered (number 1)`.
    fn line(&self) -> String {
        let number = self.number.map(|number| format!(" (number {number})")).unwrap_or_default();
        format!("host/{} {}{number}\n", self.host, self.action)
    }
}
