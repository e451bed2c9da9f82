//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::fleet::StoreOptions;
use crate::style::Color;
use crate::{
    apply, completions, delete, describe, detach, diff, endpoint, events, explain, flows, get, group, host, lb, man, policy,
    quarantine, rollout, store, tag, time, top,
};

/// Looks at and changes what the vnet agent of this host does
///
/// Resources (load balancers, endpoints, security groups, policies, tag sources) are YAML: `apply` takes them, `get -o yaml` gives
/// them back. `lb` has what is only about load balancing, `tag` and `quarantine` what is only about who is held and why; `events`,
/// `flows`, `top` and `explain` answer what happens, and why.
#[derive(Debug, Parser)]
#[command(name = "vnet-ctl", version, arg_required_else_help = true, after_help = AFTER)]
pub struct Cli {
    /// For every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const AFTER: &str = "\
Examples:
  vnet-ctl apply -f policies/lb.yaml       Apply a file
  vnet-ctl get lb                          List the load balancers
  vnet-ctl lb members web --watch          See who gets the connections
  vnet-ctl lb drain web 10.0.0.11          Give a member no new connections
  vnet-ctl quarantine ls                   See who is held, and why
  vnet-ctl explain --from web-1 --to 10.0.0.9:443/tcp
                                           See what would become of a packet
  vnet-ctl events --follow --kind drop     Watch what is dropped

Exit codes:
  0  done      1  not done (diff: there are differences; explain: it does not get through)
  2  wrong usage (diff, explain: also an error)

Reading needs access to the agent's socket; changing needs root or membership of group 'vnet'.";

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The agent's socket [env: VNET_SOCKET] [default: /run/vnet/agent.sock]
    // Not with clap's `env`: a variable that is set would count as an argument, and be shown in every usage line.
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, hide_possible_values = true, value_name = "table|wide|json|yaml")]
    pub output: Format,
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, hide_possible_values = true, value_name = "auto|always|never")]
    pub color: Color,
    /// How long to wait for an answer of the agent, in seconds or as 2m [default: 30s; for scans and measurements 1h]
    #[arg(long, global = true, value_name = "DURATION", value_parser = patience)]
    pub timeout: Option<Duration>,
    /// The store that the hosts share, as etcd://HOST:PORT,… [env: VNET_STORE] [default: the agent's]
    #[arg(long, global = true, value_name = "STORE")]
    pub store: Option<String>,
    /// Authorities of the store's certificates [env: VNET_STORE_CA] [default: ~/.config/vnet/operator/ca.crt]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub store_ca: Option<PathBuf>,
    /// Your certificate for the store [env: VNET_STORE_CERT] [default: ~/.config/vnet/operator/tls.crt]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub store_cert: Option<PathBuf>,
    /// Its key [env: VNET_STORE_KEY] [default: ~/.config/vnet/operator/tls.key]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub store_key: Option<PathBuf>,
}

/// From a second to a day.
fn patience(text: &str) -> Result<Duration, String> {
    let duration = time::duration(text)?;
    if (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&duration) {
        return Ok(duration);
    }
    Err(format!("{text} is not between 1s and 24h"))
}

impl Global {
    /// The agent's socket: as the option says, or the environment, or where it usually is.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().or_else(|| variable("VNET_SOCKET")).unwrap_or_else(|| PathBuf::from("/run/vnet/agent.sock"))
    }

    /// The fleet's store, and the files with which we get into it: as the options say, or the environment.
    pub fn store(&self) -> StoreOptions {
        let file = |option: &Option<PathBuf>, name| option.clone().or_else(|| variable(name));
        StoreOptions {
            address: self.store.clone().or_else(|| std::env::var("VNET_STORE").ok().filter(|value| !value.is_empty())),
            files: [
                file(&self.store_ca, "VNET_STORE_CA"),
                file(&self.store_cert, "VNET_STORE_CERT"),
                file(&self.store_key, "VNET_STORE_KEY"),
            ],
        }
    }
}

/// A path in the environment; one that is empty is none.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For people with wide screens.
    Wide,
    /// For programs: numbers in base units.
    Json,
    /// Like JSON, and for `apply`.
    Yaml,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Apply(apply::Args),
    Diff(diff::Args),
    Get(get::Args),
    Describe(describe::Args),
    Delete(delete::Args),
    /// Show how the agent is: alarms, counts, memory, maps
    ///
    /// Alarms are things that someone should look at, each with what to do about it.
    #[command(after_help = "Examples:\n  vnet-ctl status\n  vnet-ctl status -o json | jq '.alarms'")]
    Status,
    Lb(lb::Args),
    Endpoint(endpoint::Args),
    Group(group::Args),
    Policy(policy::Args),
    Host(host::Args),
    Rollout(rollout::Args),
    Store(Box<store::Args>),
    Tag(tag::Args),
    Quarantine(quarantine::Args),
    Events(events::Args),
    Flows(flows::Args),
    Top(top::Args),
    Explain(Box<explain::Args>),
    Detach(detach::Args),
    Completions(completions::Args),
    Man(man::Args),
    /// Show the versions of this program and of the agent
    #[command(after_help = "Examples:\n  vnet-ctl version\n  vnet-ctl version -o json")]
    Version,
}
