//! `rollout ls` and `rollout status`.

use anyhow::Result;
use serde::Serialize;
use vnet_common::fleet::DESIRED;

use super::record;
use crate::fleet::{self, Standing};
use crate::human;
use crate::output::Session;
use crate::style::{Look, Paint};
use crate::table::{Cell, Table};

/// A rollout, for programs.
#[derive(Serialize)]
struct Status {
    name: String,
    revision: i64,
    hosts: Vec<HostStanding>,
    changes: Vec<ChangeStanding>,
}

#[derive(Serialize)]
struct HostStanding {
    name: String,
    /// `in force`, `refused`, `not yet` or `silent`.
    state: &'static str,
    why: String,
    #[serde(skip)]
    look: Look,
}

#[derive(Serialize)]
struct ChangeStanding {
    what: String,
    /// `put` or `delete`.
    action: &'static str,
    /// What it was compared with is there still.
    fits: bool,
}

/// Runs `rollout ls`.
pub async fn ls(session: &Session) -> Result<u8> {
    let rollouts = fleet::required(session).await?.rollouts;
    if rollouts.is_empty() && session.for_people() {
        session.note("there are no rollouts: every host goes by the resources");
    }
    session.show(&rollouts, |rollouts| {
        let mut table = Table::new(&["NAME", "HOSTS", "CHANGES"]);
        for rollout in rollouts {
            table.row(vec![(&rollout.name).into(), human::list(&rollout.hosts).into(), human::list(&rollout.changes).into()]);
        }
        table.render(session.paint)
    })?;
    Ok(0)
}

/// Runs `rollout status`.
pub async fn status(session: &Session, name: &str) -> Result<u8> {
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let snapshot = etcd.read(DESIRED).await?;
    let record = record::find(&snapshot, name)?;
    let mut hosts = Vec::new();
    for host in &record.hosts {
        let standing = Standing::of(&mut etcd, host, record.revision).await?;
        hosts.push(HostStanding { name: host.clone(), state: standing.word(), why: standing.why(), look: standing.look() });
    }
    let change = |change: &record::Change| ChangeStanding {
        what: change.what.clone(),
        action: if change.value.is_some() { "put" } else { "delete" },
        fits: change.fits(&snapshot),
    };
    let changes = record.changes.iter().map(change).collect();
    let status = Status { name: name.to_owned(), revision: record.revision, hosts, changes };
    session.show(&status, |status| text(status, session.paint))?;
    Ok(0)
}

fn text(status: &Status, paint: Paint) -> String {
    let mut hosts = Table::new(&["HOST", "STATE", "WHY"]);
    for host in &status.hosts {
        hosts.row(vec![(&host.name).into(), Cell::new(host.state, host.look), (&host.why).into()]);
    }
    let mut changes = Table::new(&["CHANGE", "ACTION", "FITS"]);
    for change in &status.changes {
        let fits = if change.fits { Cell::new("yes", Look::Green) } else { Cell::new("no", Look::Red) };
        changes.row(vec![(&change.what).into(), change.action.into(), fits]);
    }
    format!("{}\n{}", hosts.render(paint), changes.render(paint))
}
