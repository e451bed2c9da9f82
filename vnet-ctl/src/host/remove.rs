//! `host remove`.

use anyhow::{Result, bail};
use serde_json::Value;
use vnet_common::etcd::{RoleSet, Snapshot, Write};
use vnet_common::fleet::{DESIRED, Key, Rollout, writable};

use super::{Done, drain};
use crate::fleet::{self, Etcd, Need, Plan};
use crate::output::Session;

/// Take a host out of the fleet for good
///
/// Its number, all that it said of itself, and its user in the store are deleted; that takes root's certificate. Its endpoints are gone for
/// the others at once. Detach the host, or stop its agent, first: what is alive is refused. With --force it is removed all the same, and
/// can write nothing any more as its user is gone; so not with --no-auth, where it would write all of it again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl host drain host-b && vnet-ctl host remove host-b --store-cert root.crt --store-key root.key
  vnet-ctl host remove host-b --no-auth")]
pub struct Args {
    /// The host
    #[arg(value_name = "HOST", value_parser = fleet::name)]
    name: String,
    /// Also if it is alive: it goes on with what it has, and can say nothing any more
    #[arg(long)]
    force: bool,
    /// Leave the store's users and roles alone: an operator's certificate is enough for the rest, if it is not alive
    #[arg(long)]
    no_auth: bool,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let name = &args.name;
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    if fleet::alive(&mut etcd, name).await? {
        match (args.force, args.no_auth) {
            (false, _) => {
                bail!("host '{name}' is alive: stop its agent first (vnet-ctl detach there takes vnet off it), or --force")
            }
            (true, true) => bail!(
                "host '{name}' is alive, and with --no-auth it keeps its user: its agent would write again what is deleted here. Stop \
                 its agent first, or leave --no-auth away (with root's certificate)"
            ),
            (true, false) => warn_of(session, &etcd, name).await,
        }
    }
    let snapshot = etcd.read(DESIRED).await?;
    let key = Key::Registration(name.clone()).to_string();
    // One that was never registered may have left something all the same.
    if etcd.get(&Key::Applied(name.clone()).to_string()).await?.is_none() {
        drain::registration(&snapshot, name)?;
    }
    for what in named(&snapshot, name) {
        session.warn(&format!("{what} names this host"));
    }
    // The user first: it writes nothing any more after that.
    if !args.no_auth {
        let removed = RoleSet(&mut etcd.client).remove_host(name).await;
        removed.map_err(|error| {
            etcd.teach(error, Need::Roles).context("host remove removes its user; --no-auth leaves that to others")
        })?;
    }
    let (single, below) = writable(name);
    let own = [key].into_iter().chain(single).map(Write::Delete).chain(below.into_iter().map(Write::DeleteBelow));
    let writes: Vec<Write> = own.collect();
    let plan = |_: &Snapshot| Ok(Plan { writes: writes.clone(), about: () });
    fleet::edit(&mut etcd, &format!("remove host {name}"), plan).await?;
    Done { host: args.name, action: "removed", number: None, force: None }.show(session)
}

/// Warns of a host that is alive, if the store lets it go on writing.
async fn warn_of(session: &Session, etcd: &Etcd, name: &str) {
    // Where that is not known, it is as if it did.
    if !RoleSet::is_enabled(&etcd.access, etcd.client.endpoint()).await.unwrap_or(false) {
        session.warn(&format!(
            "host '{name}' is alive, and the store does not check its clients: its agent writes again what is deleted here, until it is \
             stopped"
        ));
    }
}

/// What else operators wrote that names the host.
fn named(snapshot: &Snapshot, host: &str) -> Vec<String> {
    let mut named = Vec::new();
    for (key, entry) in &snapshot.entries {
        match Key::parse(key) {
            Some(Key::Rollout(name)) => {
                let rollout: Rollout = serde_json::from_slice(&entry.value).unwrap_or_default();
                named.extend(rollout.hosts.iter().any(|each| each == host).then(|| format!("rollout/{name}")));
            }
            Some(Key::Resource(kind, name)) => {
                let stored: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
                let is_there = stored["resource"]["spec"]["host"] == host;
                named.extend(is_there.then(|| format!("{}/{name}", kind.to_lowercase())));
            }
            _ => {}
        }
    }
    named
}
