//! `lb flows`: who is connected to what.

use anyhow::Result;
use vnet_common::api::{FlowList, FlowStatus};

use crate::client::segment;
use crate::output::{Session, print};
use crate::style::{Paint, of_state};
use crate::table::{Cell, Table};
use crate::{human, lb};

/// List flows: the client, the VIP it connected to, the member that it got
///
/// SENT and RECEIVED are the client's bytes; IDLE is the time since the last packet in either direction.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl lb flows
  vnet-ctl lb flows web --limit 1000
  vnet-ctl lb flows web -o json | jq '.total'")]
pub struct Args {
    /// Only of this load balancer
    #[arg(value_name = "LB")]
    lb: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(..=65_536))]
    limit: u32,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let mut path = format!("/v1/flows?limit={}", args.limit);
    if let Some(name) = &args.lb {
        path += &format!("&lb={}", segment(name));
    }
    let found = session.agent.get(&path).await;
    let list: FlowList = match &args.lb {
        Some(name) => lb::explain(session, found, name).await?,
        None => found?,
    };
    print(&session.render(&list, |list| text(list, session.wide(), session.paint))?)?;
    let shown = list.flows.len() as u64;
    if shown < list.total {
        session.note(&format!("{shown} of {}; --limit shows more", human::count(list.total, "flow")));
    } else if shown == 0 {
        session.note("there are no flows now");
    }
    Ok(0)
}

fn text(list: &FlowList, wide: bool, paint: Paint) -> String {
    if list.flows.is_empty() {
        return String::new();
    }
    let mut columns = vec!["PROTOCOL", "CLIENT", "VIP", "MEMBER", "STATE", ">SENT", ">RECEIVED", ">AGE", ">IDLE"];
    if wide {
        columns.extend(["ENDPOINT", "LB", "MEMBER NAME", ">PACKETS SENT", ">PACKETS RECEIVED"]);
    }
    let mut table = Table::new(&columns);
    for flow in &list.flows {
        table.row(row(flow, wide));
    }
    table.render(paint)
}

fn row(flow: &FlowStatus, wide: bool) -> Vec<Cell> {
    let [sent, received] = flow.bytes.map(human::bytes);
    let mut row: Vec<Cell> = vec![
        (&flow.protocol).into(),
        (&flow.client).into(),
        (&flow.vip).into(),
        (&flow.member).into(),
        Cell::new(&flow.state, of_state(&flow.state)),
        sent.into(),
        received.into(),
        human::seconds(flow.age_seconds).into(),
        human::seconds(flow.idle_seconds).into(),
    ];
    if wide {
        row.extend([(&flow.endpoint).into(), (&flow.lb).into(), (&flow.member_name).into()]);
        row.extend([flow.packets[0].into(), flow.packets[1].into()]);
    }
    row
}
