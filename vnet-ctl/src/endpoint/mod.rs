//! `endpoint`: the NICs of VMs and containers.

mod attach;
mod moving;
mod relocate;

use anyhow::Result;
use vnet_common::api::EndpointStatus;

use crate::get;
use crate::output::Session;
use crate::target::Kind;
use crate::watch::{self, WatchArgs};

/// See the endpoints; attach a device; move flows between hosts
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl endpoint ls --watch
  vnet-ctl endpoint attach tap100i0 --hold
  vnet-ctl endpoint export web-1 > web-1.flows"
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
    Attach(attach::Args),
    Export(moving::ExportArgs),
    Import(moving::ImportArgs),
    Move(relocate::Args),
}

/// List the endpoints: device, security group, whether policy applies, traffic
///
/// POLICY: allowed (no rules apply), policed, or quarantined. -o wide adds identity, labels, tags and more.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  vnet-ctl endpoint ls
  vnet-ctl endpoint ls web-1 -o wide --watch
  vnet-ctl endpoint ls -o json | jq -r '.[] | select(.policy == \"quarantined\") | .name'"
)]
pub struct LsArgs {
    /// Only these
    #[arg(value_name = "ENDPOINT")]
    names: Vec<String>,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ls(args) => ls(session, args).await,
        Verb::Attach(args) => attach::run(session, args).await,
        Verb::Export(args) => moving::export(session, args).await,
        Verb::Import(args) => moving::import(session, args).await,
        Verb::Move(args) => relocate::run(session, args).await,
    }
}

async fn ls(session: &Session, args: LsArgs) -> Result<u8> {
    let fetch = async || {
        let all: Vec<EndpointStatus> = session.agent.get_quietly("/v1/endpoints").await?;
        get::pick(all, &args.names, |ep| &ep.name, Kind::Endpoint)
    };
    watch::run(session, args.watch, fetch, |endpoints, _| {
        session.render(endpoints, |endpoints| match endpoints.is_empty() {
            true => "there are no endpoints yet\n".to_owned(),
            false => get::endpoint_table(endpoints, "", session.wide()).render(session.paint),
        })
    })
    .await
}
