//! `top`: where the traffic is now, from two looks at the counters.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use vnet_common::api::{EndpointFlow, EndpointFlowList, EndpointStatus};

use crate::output::{Session, print};
use crate::style::{Look, Paint, of_policy};
use crate::table::{Cell, Table};
use crate::watch::{self, Before};
use crate::{flows, human, rule};

/// Flows that are looked at: reading more takes longer than people watch.
const FLOWS: u32 = 10_000;

/// Show which endpoints and flows have the most traffic now, and what is dropped
///
/// Rates are of the time between two looks. DROPS/S are packets that went no further: dropped or refused, whatever the reason;
/// `vnet-ctl describe ep NAME` has them by reason, `vnet-ctl events --kind drop` one by one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl top
  vnet-ctl top --sort drops
  vnet-ctl top --once -o json | jq '.endpoints[0]'")]
pub struct Args {
    /// Look twice, show it once, and end
    #[arg(long, conflicts_with = "watch")]
    once: bool,
    /// Show it again and again, until Ctrl-C (this is what it does anyway)
    #[arg(short, long)]
    watch: bool,
    /// Between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// What comes first
    #[arg(long, value_enum, default_value_t = Sort::Bytes, value_name = "bytes|packets|drops|name", hide_possible_values = true)]
    sort: Sort,
    /// Endpoints and flows shown, of each at most so many
    #[arg(long, short = 'n', default_value_t = 10, value_name = "N")]
    limit: usize,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// The most bytes.
    Bytes,
    /// The most packets.
    Packets,
    /// The most drops.
    Drops,
    /// Endpoints by name.
    Name,
}

/// One look.
struct Seen {
    endpoints: Vec<EndpointStatus>,
    flows: EndpointFlowList,
}

/// What is shown.
#[derive(Serialize)]
struct Top {
    seconds: f64,
    endpoints: Vec<EndpointRate>,
    flows: Vec<FlowRate>,
    /// Flows there are.
    flows_total: u64,
    #[serde(skip)]
    flows_seen: usize,
}

#[derive(Serialize)]
struct EndpointRate {
    endpoint: String,
    group: String,
    policy: String,
    /// From it, to it.
    bytes_per_second: [f64; 2],
    packets_per_second: f64,
    drops_per_second: f64,
    #[serde(skip)]
    flows: usize,
}

#[derive(Serialize)]
struct FlowRate {
    bytes_per_second: f64,
    packets_per_second: f64,
    #[serde(flatten)]
    flow: EndpointFlow,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let path = format!("/v1/endpoint-flows?limit={FLOWS}");
    let fetch = async || {
        let endpoints = session.agent.get_quietly("/v1/endpoints").await?;
        Ok(Seen { endpoints, flows: session.agent.get_quietly(&path).await? })
    };
    let interval = Duration::from_secs(args.interval);
    if args.once {
        let (before, begun) = (fetch().await?, std::time::Instant::now());
        tokio::time::sleep(interval).await;
        let now = fetch().await?;
        print(&draw(session, &args, &now, Some((&before, begun.elapsed())))?)?;
        return Ok(0);
    }
    watch::follow(session, interval, fetch, |now, before| draw(session, &args, now, before)).await
}

/// Nothing at the first look: there is nothing to compare with.
fn draw(session: &Session, args: &Args, now: &Seen, before: Before<'_, Seen>) -> Result<String> {
    let Some((before, time)) = before else { return Ok(String::new()) };
    session.render(&compare(now, before, time, args), |top| text(top, session.paint))
}

fn compare(now: &Seen, before: &Seen, time: Duration, args: &Args) -> Top {
    let was: HashMap<&str, &EndpointStatus> = before.endpoints.iter().map(|ep| (ep.name.as_str(), ep)).collect();
    let mut endpoints: Vec<EndpointRate> =
        now.endpoints.iter().filter_map(|ep| Some(endpoint_rate(ep, was.get(ep.name.as_str())?, &now.flows, time))).collect();
    let thousandths = |rate: f64| (rate * 1000.0) as u64;
    endpoints.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
    endpoints.sort_by_key(|rate| {
        Reverse(match args.sort {
            Sort::Bytes => thousandths(rate.bytes_per_second.iter().sum()),
            Sort::Packets => thousandths(rate.packets_per_second),
            Sort::Drops => thousandths(rate.drops_per_second),
            Sort::Name => 0,
        })
    });
    endpoints.truncate(args.limit);
    let mut flows = flow_rates(now, before, time);
    flows.sort_by_key(|rate| {
        Reverse(thousandths(if args.sort == Sort::Packets { rate.packets_per_second } else { rate.bytes_per_second }))
    });
    flows.truncate(args.limit);
    Top { seconds: time.as_secs_f64(), endpoints, flows, flows_total: now.flows.total, flows_seen: now.flows.flows.len() }
}

fn endpoint_rate(now: &EndpointStatus, was: &EndpointStatus, flows: &EndpointFlowList, time: Duration) -> EndpointRate {
    // Both looks are read by its policy of now: a change of it in between makes no drops of what was counted before.
    let packets = |ep: &EndpointStatus, drops: bool| -> u64 {
        ep.packets.values().flatten().filter(|(reason, _)| !drops || now.is_drop(reason)).map(|(_, count)| count).sum()
    };
    let rate = |drops| human::per_second(packets(now, drops), packets(was, drops), time);
    EndpointRate {
        endpoint: now.name.clone(),
        group: now.group.clone(),
        policy: now.policy.clone(),
        bytes_per_second: [0, 1].map(|d| human::per_second(now.bytes[d], was.bytes[d], time)),
        packets_per_second: rate(false),
        drops_per_second: rate(true),
        flows: flows.flows.iter().filter(|flow| flow.endpoint == now.name).count(),
    }
}

/// Those that had a packet; a flow that was not there before has begun with nothing.
fn flow_rates(now: &Seen, before: &Seen, time: Duration) -> Vec<FlowRate> {
    let was: HashMap<_, _> = before.flows.flows.iter().map(|flow| (flows::key(flow), flow)).collect();
    let rate = |flow: &EndpointFlow| {
        let packets = |flow: &EndpointFlow| flow.packets.iter().sum::<u64>();
        let (bytes, count) = was.get(&flows::key(flow)).map_or((0, 0), |was| (flows::total(was), packets(was)));
        FlowRate {
            bytes_per_second: human::per_second(flows::total(flow), bytes, time),
            packets_per_second: human::per_second(packets(flow), count, time),
            flow: flow.clone(),
        }
    };
    now.flows.flows.iter().map(rate).filter(|rate| rate.packets_per_second > 0.0).collect()
}

fn text(top: &Top, paint: Paint) -> String {
    let per_second = |bytes: f64| human::bytes(bytes as u64);
    let mut endpoints =
        Table::new(&["ENDPOINT", "GROUP", "POLICY", ">SENT/S", ">RECEIVED/S", ">PACKETS/S", ">DROPS/S", ">FLOWS"]);
    for rate in &top.endpoints {
        let [sent, received] = rate.bytes_per_second.map(per_second);
        let drops =
            Cell::new(format!("{:.1}", rate.drops_per_second), if rate.drops_per_second > 0.0 { Look::Red } else { Look::Plain });
        let mut row: Vec<Cell> =
            vec![(&rate.endpoint).into(), (&rate.group).into(), Cell::new(&rate.policy, of_policy(&rate.policy))];
        row.extend([sent.into(), received.into(), format!("{:.1}", rate.packets_per_second).into(), drops, rate.flows.into()]);
        endpoints.row(row);
    }
    let mut flows = Table::new(&["ENDPOINT", "PROTOCOL", "LOCAL", " ", "REMOTE", "PEER", "VERDICT", ">BYTES/S", ">PACKETS/S"]);
    for FlowRate { flow, bytes_per_second, packets_per_second } in &top.flows {
        let sign = if flow.opened == "in" { "<" } else { ">" };
        let mut row: Vec<Cell> = vec![(&flow.endpoint).into(), (&flow.protocol).into(), (&flow.local).into(), sign.into()];
        row.extend([(&flow.remote).into(), (&flow.peer).into(), Cell::new(&flow.verdict, rule::look(&flow.verdict))]);
        row.extend([per_second(*bytes_per_second).into(), format!("{packets_per_second:.1}").into()]);
        flows.row(row);
    }
    let endpoints = if top.endpoints.is_empty() { "there are no endpoints\n".to_owned() } else { endpoints.render(paint) };
    let flows = if top.flows.is_empty() { "no flow had a packet\n".to_owned() } else { flows.render(paint) };
    let partly = top.flows_total > top.flows_seen as u64;
    let note = if partly { format!("of {} flows, {} were looked at\n", top.flows_total, top.flows_seen) } else { String::new() };
    format!("{endpoints}\n{flows}{note}")
}
