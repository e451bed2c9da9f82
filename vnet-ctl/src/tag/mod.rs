//! `tag`: what is known about endpoints, and who said so.

mod add;
mod ls;
mod rm;
mod source;

use anyhow::Result;

use crate::output::Session;

pub use ls::table;

/// Put tags on endpoints, take them off, list them; see and try the sources that do
///
/// A tag says something about an endpoint: that it was seen attacking, that a scan found it clean, who is logged in on it. The
/// transfers of security groups decide by tags who is moved into quarantine, and who is released.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl tag ls
  vnet-ctl tag add web-1 suspicious --severity 7 --ttl 1h --evidence 'ticket 4711'
  vnet-ctl tag rm web-1 suspicious
  vnet-ctl tag source ls"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    Add(add::Args),
    Rm(rm::Args),
    Ls(ls::Args),
    Source(source::Args),
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Add(args) => add::run(session, args).await,
        Verb::Rm(args) => rm::run(session, args).await,
        Verb::Ls(args) => ls::run(session, args).await,
        Verb::Source(args) => source::run(session, args.verb).await,
    }
}
