//! `flows`: who talks to whom, and which rule lets them.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use vnet_common::api::{EndpointFlow, EndpointFlowList};

use crate::client::segment;
use crate::output::Session;
use crate::style::{Paint, of_state};
use crate::table::{Cell, Table};
use crate::watch::{self, Before, WatchArgs};
use crate::{get, human, rule};

/// List the flows of endpoints: who, to whom, which member, verdict and rule
///
/// OPENED: `out` if the endpoint opened the flow, `in` if the peer did. SENT and RECEIVED are the endpoint's bytes, PACKETS both
/// directions together. `vnet-ctl lb flows` has only those that go through a VIP.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl flows
  vnet-ctl flows web-1 --watch
  vnet-ctl flows --limit 10000 -o json | jq -r '.flows[] | select(.verdict == \"redirected\") | .local'")]
pub struct Args {
    /// Only of this endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(..=65_536))]
    limit: u32,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let mut path = format!("/v1/endpoint-flows?limit={}", args.limit);
    if let Some(name) = &args.endpoint {
        path += &format!("&endpoint={}", segment(name));
    }
    let fetch = async || {
        let found = session.agent.get_quietly::<EndpointFlowList>(&path).await;
        match &args.endpoint {
            Some(name) => get::explain_endpoint(session, found, name).await,
            None => found,
        }
    };
    watch::run(session, args.watch, fetch, |list, before| {
        session.render(list, |list| text(list, before, session.wide(), session.paint))
    })
    .await
}

fn text(list: &EndpointFlowList, before: Before<'_, EndpointFlowList>, wide: bool, paint: Paint) -> String {
    if list.flows.is_empty() {
        return "there are no flows now\n".to_owned();
    }
    let mut columns = vec!["ENDPOINT", "OPENED", "PROTOCOL", "LOCAL", "REMOTE", "PEER", "MEMBER", "VERDICT", "RULE", "STATE"];
    columns.extend([">PACKETS", ">SENT", ">RECEIVED"]);
    columns.extend(before.is_some().then_some(">BYTES/S"));
    columns.push(">AGE");
    columns.extend(wide.then_some([">IDLE", "LB", "PLACE"]).into_iter().flatten());
    let mut table = Table::new(&columns);
    let was = before.map(|(list, time)| (list.flows.iter().map(|flow| (key(flow), total(flow))).collect(), time));
    for flow in &list.flows {
        table.row(row(flow, was.as_ref(), wide));
    }
    let shown = list.flows.len() as u64;
    let more = if shown < list.total {
        format!("{shown} of {}; --limit shows more\n", human::count(list.total, "flow"))
    } else {
        String::new()
    };
    table.render(paint) + &more
}

/// Bytes of flows at the last look, and how long ago that was.
type Was<'a> = (HashMap<[&'a str; 5], u64>, Duration);

fn row(flow: &EndpointFlow, was: Option<&Was<'_>>, wide: bool) -> Vec<Cell> {
    let mut row: Vec<Cell> = vec![(&flow.endpoint).into(), (&flow.opened).into(), (&flow.protocol).into(), (&flow.local).into()];
    row.extend([(&flow.remote).into(), (&flow.peer).into(), flow.member.clone().unwrap_or_default().into()]);
    let by = flow.rule.as_ref();
    row.extend([Cell::new(&flow.verdict, rule::look(&flow.verdict)), by.map(rule::name).unwrap_or_default().into()]);
    row.extend([Cell::new(&flow.state, of_state(&flow.state)), flow.packets.iter().sum::<u64>().into()]);
    row.extend(flow.bytes.map(|bytes| human::bytes(bytes).into()));
    if let Some((was, time)) = was {
        let rate = was.get(&key(flow)).map(|was| human::per_second(total(flow), *was, *time));
        row.push(rate.map(|rate| human::bytes(rate as u64)).unwrap_or_default().into());
    }
    row.push(human::seconds(flow.age_seconds).into());
    if wide {
        row.extend([human::seconds(flow.idle_seconds).into(), flow.lb.clone().unwrap_or_default().into()]);
        row.push(by.map(|rule| rule.place.clone()).unwrap_or_default().into());
    }
    row
}

/// Bytes in both directions.
pub fn total(flow: &EndpointFlow) -> u64 {
    flow.bytes.iter().sum()
}

/// What tells flows apart, when they are looked at again.
pub fn key(flow: &EndpointFlow) -> [&str; 5] {
    [&flow.endpoint, &flow.opened, &flow.protocol, &flow.local, &flow.remote]
}
