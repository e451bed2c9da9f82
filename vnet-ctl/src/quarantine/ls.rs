//! `quarantine ls`: who is held, who would be, and who never is.

use anyhow::Result;
use vnet_common::api::{Held, Pending, QuarantineStatus};

use crate::output::Session;
use crate::style::{Look, Paint, of_state};
use crate::table::{Cell, Table};
use crate::watch::{self, WatchArgs};
use crate::{human, time};

/// List who is held, which moves wait for approval, and who is never moved
///
/// SINCE is how long ago. RELEASE says what a release waits for. -o wide adds the tags that hold each, and the latest release.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  vnet-ctl quarantine ls
  vnet-ctl quarantine ls --watch
  vnet-ctl quarantine ls -o json | jq -r '.held[].endpoint'"
)]
pub struct Args {
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let fetch = async || session.agent.get_quietly::<QuarantineStatus>("/v1/quarantine").await;
    watch::run(session, args.watch, fetch, |status, _| {
        session.render(status, |status| text(status, session.wide(), session.paint))
    })
    .await
}

fn text(status: &QuarantineStatus, wide: bool, paint: Paint) -> String {
    let mut text: String =
        status.alarms.iter().map(|alarm| format!("{} {}\n", paint.paint(Look::Red, "!"), human::clean(alarm))).collect();
    let mut section = |title: &str, lines: String| {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!("{}\n{lines}", paint.paint(Look::Bold, title));
    };
    match status.held.as_slice() {
        [] => section("Held: nobody", String::new()),
        held => section("Held", held_table(held, wide).render(paint)),
    }
    if !status.pending.is_empty() {
        section("Waiting for approval", pending_table(&status.pending).render(paint));
    }
    if !status.never.is_empty() {
        section("Never", status.never.iter().map(|name| format!("{name}\n")).collect());
    }
    text
}

fn held_table(held: &[Held], wide: bool) -> Table {
    let mut columns = vec!["ENDPOINT", "GROUP", "FROM", "BY", ">SINCE", "STATE", "RELEASE"];
    columns.extend(wide.then_some(["AT THE LATEST", "TAGS"]).into_iter().flatten());
    columns.push("REASON");
    let mut table = Table::new(&columns);
    for held in held {
        let mut row: Vec<Cell> = vec![(&held.endpoint).into(), (&held.group).into(), (&held.from).into(), by(held).into()];
        row.extend([time::ago(held.since_ms).into(), Cell::new(&held.state, of_state(&held.state)), release(held).into()]);
        if wide {
            row.extend([held.until_ms.map(time::until).unwrap_or_default().into(), held.tags.join(",").into()]);
        }
        row.push((&held.reason).into());
        table.row(row);
    }
    table
}

fn by(held: &Held) -> &str {
    if held.transfer.is_empty() { "operator" } else { &held.transfer }
}

/// What a release waits for.
fn release(held: &Held) -> String {
    let early = held.not_before_ms > time::now_ms();
    match (early, held.waiting_for.as_str()) {
        (true, "") => format!("{} at the earliest", time::until(held.not_before_ms)),
        (_, why) => why.to_owned(),
    }
}

fn pending_table(pending: &[Pending]) -> Table {
    let mut table = Table::new(&["ENDPOINT", "TO", "TRANSFER", ">SINCE", "BECAUSE OF", "REASON"]);
    for pending in pending {
        let mut row: Vec<Cell> = vec![(&pending.endpoint).into(), (&pending.to).into(), (&pending.transfer).into()];
        row.extend([time::ago(pending.since_ms).into(), (&pending.because).into(), (&pending.reason).into()]);
        table.row(row);
    }
    table
}

/// Everything about one that is held, in lines.
pub fn details(held: &Held, paint: Paint) -> String {
    let state = paint.paint(of_state(&held.state), &held.state);
    let mut lines = format!("{}, from {}, by {} {} ago, {state}\n", held.group, held.from, by(held), time::ago(held.since_ms));
    let latest = held.until_ms.map(|ms| format!("at the latest {}", time::until(ms))).unwrap_or_default();
    for (title, value) in
        [("reason", &held.reason), ("held by", &held.tags.join(", ")), ("release", &release(held)), ("released", &latest)]
    {
        if !value.is_empty() {
            lines += &format!("{title}: {}\n", human::clean(value));
        }
    }
    lines
}
