//! `host ls`.

use anyhow::Result;
use serde::Serialize;
use vnet_common::api::fleet::{FleetStatus, HostStatus};

use crate::fleet;
use crate::human;
use crate::output::Session;
use crate::style::Look;
use crate::table::{Cell, Table};
use crate::watch::{self, WatchArgs};

/// A host, for programs.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    host: &'a HostStatus,
    elected: bool,
}

/// Runs it.
pub async fn run(session: &Session, args: WatchArgs) -> Result<u8> {
    let warn = |fleet: &FleetStatus| {
        for conflict in &fleet.conflicts {
            session.warn(conflict);
        }
    };
    let fetch = async || {
        let fleet = fleet::required(session).await?;
        warn(&fleet);
        Ok(fleet)
    };
    watch::run(session, args, fetch, |fleet, _| {
        let listed: Vec<_> =
            fleet.hosts.iter().map(|host| Listed { host, elected: fleet.elected.as_ref() == Some(&host.name) }).collect();
        session.render(&listed, |listed| match listed.is_empty() {
            true => "there are no hosts yet: vnet-ctl host add\n".to_owned(),
            false => table(listed, session.wide()).render(session.paint),
        })
    })
    .await
}

fn table(listed: &[Listed<'_>], wide: bool) -> Table {
    let refused = listed.iter().any(|each| each.host.refused.is_some());
    let mut columns = vec!["NAME", "STATE", "ZONE", "VERSION", ">ENDPOINTS", ">APPLIED"];
    columns.extend(wide.then_some([">ROOM", "ADDRESSES"]).into_iter().flatten());
    columns.extend(refused.then_some("REFUSED"));
    let mut table = Table::new(&columns);
    for each in listed {
        let host = each.host;
        let mut row: Vec<Cell> = vec![
            (&host.name).into(),
            state(each),
            host.zone.clone().unwrap_or_default().into(),
            (&host.version).into(),
            host.endpoints.into(),
            host.applied.into(),
        ];
        if wide {
            row.extend([host.capacity.into(), human::list(&host.addresses).into()]);
        }
        if refused {
            row.push(Cell::new(host.refused.clone().unwrap_or_default(), Look::Red));
        }
        table.row(row);
    }
    table
}

/// `alive, elected`.
fn state(each: &Listed<'_>) -> Cell {
    let host = each.host;
    let look = match (host.alive, host.drained || !host.registered) {
        (false, _) => Look::Red,
        (true, true) => Look::Yellow,
        (true, false) => Look::Green,
    };
    let alive = if host.alive { "alive" } else { "silent" };
    let more = [(host.drained, "drained"), (!host.registered, "not registered"), (each.elected, "elected")];
    let words = [alive].into_iter().chain(more.into_iter().filter(|(is, _)| *is).map(|(_, word)| word));
    Cell::new(words.collect::<Vec<_>>().join(", "), look)
}
