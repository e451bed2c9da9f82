//! `host add`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::json;
use vnet_common::etcd::{RoleSet, Snapshot};
use vnet_common::fleet::{Key, Registration};

use super::Done;
use crate::fleet::{self, Etcd, Need, Plan};
use crate::output::Session;

/// Let a host take part in the fleet
///
/// It gets the lowest number that no other host has: the upper half of all identity numbers that it gives out. In the store it gets a
/// user of its name, which may write what is its own and read the rest; that takes root's certificate. Its certificate must have
/// the name as its common name.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl host add host-d --store-cert root.crt --store-key root.key
  vnet-ctl host add host-d --no-auth")]
pub struct Args {
    /// The host; its agent is started with --host of the same
    #[arg(value_name = "HOST", value_parser = fleet::host_name)]
    name: String,
    /// Leave the store's users and roles alone: an operator's certificate is enough for the rest
    #[arg(long)]
    no_auth: bool,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    // The user first: what is refused there leaves nothing half.
    if !args.no_auth {
        let made = RoleSet(&mut etcd.client).host(&args.name).await;
        made.map_err(|error| {
            etcd.teach(error, Need::Roles).context("host add makes the host's user; --no-auth leaves that to others")
        })?;
    }
    let (number, new) = register(&mut etcd, &args.name).await?;
    let action = if new { "registered" } else { "registered already" };
    Done { host: args.name, action, number: Some(number), force: None }.show(session)
}

/// Registers a host. Gives its number, and whether it had none.
pub async fn register(etcd: &mut Etcd, name: &str) -> Result<(u16, bool)> {
    let (revision, number) = fleet::edit(etcd, &format!("add host {name}"), |snapshot| plan(snapshot, name)).await?;
    Ok((number, revision.is_some()))
}

fn plan(snapshot: &Snapshot, name: &str) -> Result<Plan<u16>> {
    let mut taken = BTreeSet::new();
    for (key, entry) in &snapshot.entries {
        let Some(Key::Registration(host)) = Key::parse(key) else { continue };
        let known: Registration =
            serde_json::from_slice(&entry.value).with_context(|| format!("reading {key} from the store"))?;
        if host == name {
            return Ok(Plan { writes: Vec::new(), about: known.number });
        }
        taken.insert(known.number);
    }
    let Some(number) = (1..=u16::MAX).find(|number| !taken.contains(number)) else {
        bail!("there are {} hosts: no number is left for another", taken.len())
    };
    let write = fleet::put(&Key::Registration(name.to_owned()).to_string(), &json!({ "number": number }));
    Ok(Plan { writes: vec![write], about: number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnet_common::etcd::{Entry, Write};

    #[test]
    fn a_host_gets_the_lowest_number_that_is_free() {
        let mut snapshot = Snapshot::default();
        let mut add = |name: &str, value: &str| {
            let entry = Entry { value: value.into(), created: 1, modified: 1, lease: 0 };
            snapshot.entries.insert(Key::Registration(name.into()).to_string(), entry);
            plan(&snapshot, "new").map(|plan| (plan.about, plan.writes))
        };
        let (number, writes) = add("a", r#"{"number": 1}"#).unwrap();
        assert_eq!(number, 2);
        assert_eq!(writes, [Write::Put("/vnet/v1/desired/hosts/new".into(), br#"{"number":2}"#.to_vec(), 0)]);
        assert_eq!(add("b", r#"{"number": 3, "later": true}"#).unwrap().0, 2);
        assert_eq!(add("c", r#"{"number": 2}"#).unwrap().0, 4);
        assert_eq!(add("new", r#"{"number": 9}"#).unwrap(), (9, Vec::new()));
        assert!(add("a", "{}").is_err(), "a number that cannot be read may be any");
    }
}
