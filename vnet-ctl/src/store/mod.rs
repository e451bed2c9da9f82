//! `store`: the etcd that the hosts of a fleet share.

mod backup;
mod content;
mod from;
mod init;
mod restore;
mod status;
mod to;
mod write;

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::fleet;
use crate::output::Session;

/// Set up, back up and move the store that the hosts of a fleet share
///
/// Which store: --store, or that of the agent of this host. Who you are to it: --store-ca, --store-cert and --store-key.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl store init --store etcd://10.0.0.1:2379,10.0.0.2:2379 --operator alice --host host-a --host host-b
  vnet-ctl store status
  vnet-ctl store backup fleet.json
  vnet-ctl store migrate --to etcd://10.0.0.1:2379"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    Init(InitArgs),
    /// Show the store's members, what they hold, and whether they check clients
    #[command(after_help = "\
Examples:
  vnet-ctl store status
  vnet-ctl store status --store etcd://10.0.0.1:2379 -o json | jq '.members[] | select(.answers | not)'")]
    Status,
    /// Write all that operators want into a file
    ///
    /// These are resources, what was changed of members, hosts and rollouts. The file is JSON, readable for its owner only. What hosts say of themselves is not in it: they say it again. Users and roles are not,
    /// either: `etcdctl snapshot save` has these, too.
    #[command(after_help = "\
Examples:
  vnet-ctl store backup fleet.json
  vnet-ctl store backup - | gpg -e -r ops > fleet.json.gpg")]
    Backup(BackupArgs),
    Restore(RestoreArgs),
    Migrate(MigrateArgs),
}

/// Prepare an etcd for a fleet: users, roles, numbers of hosts
///
/// With root's certificate (or while the etcd does not check its clients yet). Then the store checks its clients, by their certificates,
/// unless --no-auth. What is there already stays: it can be repeated, with more operators and hosts. Where an etcd was lost, --from gives
/// hosts the numbers that they had, before `store restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl store init --store etcd://10.0.0.1:2379,10.0.0.2:2379 --operator alice --host host-a --host host-b
  vnet-ctl store init --store etcd://10.0.0.1:2379,10.0.0.2:2379 --operator alice --from fleet.json
  vnet-ctl store init --store etcd://127.0.0.1:2379 --operator alice --host host-a --no-auth     To try it out")]
pub struct InitArgs {
    /// A user who may change everything: the common name of their certificate; may be repeated
    #[arg(long = "operator", required = true, value_name = "NAME", value_parser = fleet::name)]
    operators: Vec<String>,
    /// A host that takes part: the common name of its certificate; may be repeated
    #[arg(long = "host", value_name = "NAME", value_parser = fleet::host_name)]
    hosts: Vec<String>,
    /// The hosts of a backup take part, too, with the numbers that they had: for an etcd in place of one that was lost
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    from: Option<PathBuf>,
    /// Do not make the store check its clients: whoever reaches it may do everything
    #[arg(long)]
    no_auth: bool,
}

/// Where to.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The file; - for standard output
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
}

/// Write what a backup has into the store
///
/// All of it is read back and compared. A store that has other resources is refused, unless --replace: then these are deleted. Hosts that
/// are registered and not in the backup stay. Where it is much it takes several transactions: hosts keep what they have until the last of
/// them. If it is interrupted they go on so; do it again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl store restore fleet.json
  vnet-ctl store restore fleet.json --replace")]
pub struct RestoreArgs {
    /// What `store backup` wrote; - for standard input
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Delete what is there and not in the backup, and change what differs
    #[arg(long)]
    replace: bool,
}

/// Move all resources from the agent of this host into an etcd, or back
///
/// The agent keeps a store of its own in both cases: --to comes before it is started with --store, --from after it was started without. Only where
/// the store of a fleet was lost, and set up again, --to writes what a host of the fleet has in force.
/// Resources, and what was changed of members, are read back and compared one by one. Tags, holds and the audit log are each host's own,
/// and stay where they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl store migrate --to etcd://10.0.0.1:2379,10.0.0.2:2379
  vnet-ctl store migrate --from etcd://10.0.0.1:2379,10.0.0.2:2379")]
#[command(group = clap::ArgGroup::new("direction").required(true).args(["to", "from"]))]
pub struct MigrateArgs {
    /// Into this etcd, which has no resources yet
    #[arg(long, value_name = "STORE")]
    to: Option<String>,
    /// From this etcd into the agent
    #[arg(long, value_name = "STORE")]
    from: Option<String>,
    /// Delete what only the other side has, and change what differs there
    #[arg(long)]
    replace: bool,
}

/// What was done, and what comes next.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Each a sentence.
    done: Vec<String>,
    /// Each a step.
    next: Vec<String>,
}

impl Report {
    fn show(&self, session: &Session) -> Result<u8> {
        session.show(self, |report| {
            let lines = |lines: &[String], indent: &str| lines.iter().map(|line| format!("{indent}{line}\n")).collect::<String>();
            let next = if report.next.is_empty() { String::new() } else { format!("\nNext:\n{}", lines(&report.next, "  ")) };
            lines(&report.done, "") + &next
        })?;
        Ok(0)
    }
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    match args.verb {
        Verb::Init(args) => init::run(session, args).await,
        Verb::Status => status::run(session).await,
        Verb::Backup(args) => backup::run(session, &args.file).await,
        Verb::Restore(args) => restore::run(session, &args).await,
        Verb::Migrate(MigrateArgs { to: Some(store), replace, .. }) => to::run(session, &store, replace).await,
        Verb::Migrate(MigrateArgs { from: Some(store), replace, .. }) => from::run(session, &store, replace).await,
        Verb::Migrate(_) => Err(crate::failure::Misused("migrate --to or --from?".to_owned()).into()),
    }
}
