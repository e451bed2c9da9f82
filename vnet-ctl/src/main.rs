//! `vnet-ctl`: looks at and changes what the vnet agent of this host does, over the agent's unix socket.

mod apply;
mod ask;
mod cli;
mod client;
mod completions;
mod delete;
mod describe;
mod detach;
mod diff;
mod effects;
mod endpoint;
mod events;
mod explain;
mod failure;
mod files;
mod fleet;
mod flows;
mod get;
mod group;
mod host;
mod human;
mod lb;
mod link;
mod man;
mod near;
mod output;
mod policy;
mod progress;
mod quarantine;
mod rollout;
mod rule;
mod status;
mod store;
mod style;
mod table;
mod tag;
mod target;
mod time;
mod top;
mod version;
mod watch;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches};

use cli::{Cli, Verb};
use output::Session;
use style::Color;

fn main() -> ExitCode {
    let command = Cli::command().color(Color::from_arguments().for_clap());
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let failed = if matches!(cli.verb, Verb::Diff(_) | Verb::Explain(_)) { 2 } else { 1 };
    let paint = cli.global.color.on_stderr();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => failure::report(&error, paint, failed),
    }
}

fn run(cli: Cli) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the I/O runtime")?;
    let session = Session::new(&cli.global);
    runtime.block_on(dispatch(&session, cli.verb))
}

/// Runs a verb; gives the exit code.
async fn dispatch(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Apply(args) => apply::run(session, args).await,
        Verb::Diff(args) => diff::run(session, args).await,
        Verb::Get(args) => get::run(session, args).await,
        Verb::Describe(args) => describe::run(session, args).await,
        Verb::Delete(args) => delete::run(session, args).await,
        Verb::Status => status::run(session).await,
        Verb::Lb(args) => lb::run(session, args.verb).await,
        Verb::Endpoint(args) => endpoint::run(session, args.verb).await,
        Verb::Group(args) => group::run(session, args.verb).await,
        Verb::Policy(args) => policy::run(session, args.verb).await,
        Verb::Host(args) => host::run(session, args.verb).await,
        Verb::Rollout(args) => rollout::run(session, args.verb).await,
        Verb::Store(args) => store::run(session, *args).await,
        Verb::Tag(args) => tag::run(session, args.verb).await,
        Verb::Quarantine(args) => quarantine::run(session, args.verb).await,
        Verb::Events(args) => events::run(session, args).await,
        Verb::Flows(args) => flows::run(session, args).await,
        Verb::Top(args) => top::run(session, args).await,
        Verb::Explain(args) => explain::run(session, *args).await,
        Verb::Detach(args) => detach::run(session, args).await,
        Verb::Completions(args) => completions::run(session, args),
        Verb::Man(args) => man::run(session, args),
        Verb::Version => version::run(session).await,
    }
}
