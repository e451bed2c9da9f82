//! `tag ls`: the tags there are.

use anyhow::Result;
use vnet_common::api::Tag;

use crate::client::segment;
use crate::get::explain_endpoint;
use crate::output::{Session, print};
use crate::style::Look;
use crate::table::{Cell, Table};
use crate::{human, rule, time};

/// Of evidence, in a table that is not wide.
const EVIDENCE: usize = 60;

/// List the tags of all endpoints, or of one
///
/// -o wide shows the whole evidence, the confidence, and when each was set.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  vnet-ctl tag ls
  vnet-ctl tag ls web-1 -o wide
  vnet-ctl tag ls -o json | jq '.[] | select(.severity >= 7)'"
)]
pub struct Args {
    /// Only of this endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: Option<String>,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let tags: Vec<Tag> = match &args.endpoint {
        Some(name) => {
            let answer = session.agent.get(&format!("/v1/tags?subject={}", segment(name))).await;
            explain_endpoint(session, answer, name).await?
        }
        None => session.agent.get("/v1/tags").await?,
    };
    print(&session.render(&tags, |tags| table(tags, true, session.wide()).render(session.paint))?)?;
    if tags.is_empty() && session.for_people() {
        session.note("there are no tags");
    }
    Ok(0)
}

/// Tags, with or without whose they are.
pub fn table(tags: &[Tag], with_endpoint: bool, wide: bool) -> Table {
    let mut columns = Vec::new();
    columns.extend(with_endpoint.then_some("ENDPOINT"));
    columns.extend(["TAG", ">SEVERITY", "SOURCE", "EXPIRES"]);
    columns.extend(wide.then_some([">CONFIDENCE", "SET", "ON EXPIRY"]).into_iter().flatten());
    columns.push("EVIDENCE");
    let mut table = Table::new(&columns);
    for tag in tags {
        let mut row: Vec<Cell> = Vec::new();
        row.extend(with_endpoint.then(|| Cell::from(&tag.subject)));
        row.extend([rule::tag(tag).into(), severity(tag.severity), (&tag.source).into(), expires(tag)]);
        if wide {
            let on_expiry = if tag.hold_on_expiry { "hold" } else { "release" };
            row.extend([format!("{}%", tag.confidence).into(), time::stamp(tag.set_at_ms).into(), on_expiry.into()]);
        }
        row.push(if wide { (&tag.evidence).into() } else { human::short(&tag.evidence, EVIDENCE).into() });
        table.row(row);
    }
    table
}

fn severity(severity: u8) -> Cell {
    let look = match severity {
        7.. => Look::Red,
        4..7 => Look::Yellow,
        _ => Look::Plain,
    };
    Cell::new(severity, look)
}

fn expires(tag: &Tag) -> Cell {
    match tag.expires_at_ms {
        _ if tag.expired => Cell::new("expired, holds on", Look::Yellow),
        Some(ms) => time::until(ms).into(),
        None => "never".into(),
    }
}
