//! `group`: security groups.

use anyhow::Result;
use vnet_common::api::GroupStatus;

use crate::get;
use crate::output::Session;
use crate::target::Kind;
use crate::watch::{self, WatchArgs};

/// See the security groups, and who is in them
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl group ls
  vnet-ctl describe sg/web"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    Ls(LsArgs),
}

/// List the security groups with their endpoints, rules and defaults
///
/// INGRESS and EGRESS are what becomes of flows to, and from, its endpoints that no rule matches. -o wide names the endpoints.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  vnet-ctl group ls
  vnet-ctl group ls -o wide --watch
  vnet-ctl group ls -o json | jq '.[] | select(.quarantine) | .endpoints'"
)]
pub struct LsArgs {
    /// Only these
    #[arg(value_name = "GROUP")]
    names: Vec<String>,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    let Verb::Ls(args) = verb;
    let fetch = async || {
        let all: Vec<GroupStatus> = session.agent.get_quietly("/v1/groups").await?;
        get::pick(all, &args.names, |group| &group.name, Kind::SecurityGroup)
    };
    watch::run(session, args.watch, fetch, |groups, _| {
        session.render(groups, |groups| get::group_table(groups, "", session.wide()).render(session.paint))
    })
    .await
}
