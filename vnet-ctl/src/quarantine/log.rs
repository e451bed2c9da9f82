//! `quarantine log`: what happened, who did it, and on which evidence.

use anyhow::Result;
use vnet_common::api::AuditRecord;

use crate::client::segment;
use crate::output::{Session, print};
use crate::style::Look;
use crate::table::{Cell, Table};
use crate::{get, time};

/// Show the audit log: who or what moved which endpoint when, why, and on which evidence
///
/// The newest comes last. The newest million records are kept. -o wide adds the evidence.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl quarantine log
  vnet-ctl quarantine log web-1 -o wide
  vnet-ctl quarantine log --limit 1000 -o json | jq '.[] | select(.action == \"break-glass\")'")]
pub struct Args {
    /// Only of this endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// At most so many: the newest
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    limit: u32,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let mut path = format!("/v1/audit?limit={}", args.limit);
    if let Some(name) = &args.endpoint {
        path += &format!("&endpoint={}", segment(name));
    }
    let found = session.agent.get(&path).await;
    let records: Vec<AuditRecord> = match &args.endpoint {
        Some(name) => get::explain_endpoint(session, found, name).await?,
        None => found?,
    };
    print(&session.render(&records, |records| table(records, session.wide()).render(session.paint))?)?;
    if records.is_empty() && session.for_people() {
        session.note("nothing is in the audit log about it yet");
    }
    Ok(0)
}

fn table(records: &[AuditRecord], wide: bool) -> Table {
    let mut columns = vec!["TIME", "ENDPOINT", "ACTION", "FROM", "TO", "WHO", "REASON"];
    if wide {
        columns.insert(0, ">NUMBER");
        columns.extend(["TRANSFER", "EVIDENCE"]);
    }
    let mut table = Table::new(&columns);
    for record in records {
        let mut row: Vec<Cell> = Vec::new();
        row.extend(wide.then(|| Cell::from(record.number)));
        row.extend([
            time::stamp(record.at_ms).into(),
            (&record.endpoint).into(),
            Cell::new(&record.action, look(&record.action)),
        ]);
        row.extend([(&record.from).into(), (&record.to).into(), (&record.who).into(), (&record.reason).into()]);
        if wide {
            row.extend([(&record.transfer).into(), record.evidence.join("; ").into()]);
        }
        table.row(row);
    }
    table
}

fn look(action: &str) -> Look {
    match action {
        "move" | "hold" | "error" | "tag-refused" => Look::Red,
        "break-glass" | "pending" | "would-move" | "recover" => Look::Yellow,
        "release" => Look::Green,
        _ => Look::Plain,
    }
}
