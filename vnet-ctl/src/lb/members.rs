//! `lb members`: who serves, and how much.

use anyhow::Result;
use vnet_common::api::{LbStatus, MemberStatus};

use crate::client::segment;
use crate::output::Session;
use crate::style::{Look, of_state};
use crate::table::{Cell, Table};
use crate::watch::{self, Before, WatchArgs};
use crate::{human, lb};

/// List the members of a load balancer: state, flows, traffic
///
/// CONNECT is how long it takes to answer a connection, from SYN to SYN-ACK, in the mean. FLOWS are those open now; NEW all those
/// that were given to it, and SHARE its part of them; TO and FROM are bytes. With -o wide, CONNECT 99% is what 99 % of the answers take
/// less than, BY MEMBER those of RESETS that it sent, UNREACHABLE the flows about which ICMP said so, TARGET the part of new flows that
/// it is to get now, and ESTABLISHED are those of NEW that it answered. States: active, draining, down (its health check fails), ejected
/// (too many of its connections failed), unknown (not checked yet; takes flows). HEALTH says why a member is down or ejected.
/// Where load feedback is on, FACTOR is what WEIGHT is multiplied by, and ELSEWHERE are the flows that leastConnections counts of other hosts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl lb members web
  vnet-ctl lb members web --watch
  vnet-ctl lb members web -o json | jq '.members[] | {name, new_flows}'")]
pub struct Args {
    /// The load balancer
    #[arg(value_name = "LB")]
    name: String,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let path = format!("/v1/lb/{}", segment(&args.name));
    let fetch = async || lb::explain(session, session.agent.get_quietly(&path).await, &args.name).await;
    watch::run(session, args.watch, fetch, |lb: &LbStatus, before| {
        session.render(lb, |lb| match lb.members.is_empty() {
            true => format!("load balancer '{}' has no members\n", lb.name),
            false => table(lb, before, session.wide()).render(session.paint),
        })
    })
    .await
}

/// The members of `lb`, with rates since `before`.
pub fn table(lb: &LbStatus, before: Before<'_, LbStatus>, wide: bool) -> Table {
    let health = lb.members.iter().any(|member| member.health.is_some());
    let feedback = lb.members.iter().any(|member| member.factor_percent.is_some());
    let elsewhere = lb.members.iter().any(|member| member.flows_elsewhere > 0);
    let mut columns = vec!["MEMBER", "ADDRESS", ">WEIGHT"];
    columns.extend(feedback.then_some(">FACTOR"));
    columns.extend(["STATE", ">FLOWS"]);
    columns.extend(elsewhere.then_some(">ELSEWHERE"));
    columns.push(">NEW");
    columns.extend(before.is_some().then_some(">NEW/S"));
    columns.extend([">SHARE", ">CONNECT", ">RESETS", ">TO", ">FROM"]);
    columns.extend(
        wide.then_some([
            ">CONNECT 99%",
            ">BY MEMBER",
            ">UNREACHABLE",
            ">TARGET",
            ">ESTABLISHED",
            ">PACKETS TO",
            ">PACKETS FROM",
            "DEVICE",
            "ZONE",
        ])
        .into_iter()
        .flatten(),
    );
    columns.extend(health.then_some("HEALTH"));
    let mut table = Table::new(&columns);
    let all = lb.members.iter().map(|member| member.new_flows).sum();
    for member in &lb.members {
        let mut row = own(member, feedback, elsewhere);
        if let Some((was, time)) = before {
            let was = was.members.iter().find(|was| was.name == member.name).map(|was| was.new_flows);
            row.push(human::rate(member.new_flows, was, time).into());
        }
        let [to, from] = member.bytes.map(human::bytes);
        let connect = member.connect.mean_us().map(human::microseconds).unwrap_or_default();
        row.extend([human::percent(member.new_flows, all).into(), connect.into(), member.resets.into(), to.into(), from.into()]);
        if wide {
            let device = member.device.clone().unwrap_or_default();
            let target = format!("{:.1}%{}", member.target_percent, if member.backup { " (backup)" } else { "" });
            row.extend([within(member).into(), member.resets_by_member.into(), member.unreachable.into()]);
            row.extend([target.into(), member.established.into(), member.packets[0].into(), member.packets[1].into()]);
            row.extend([device.into(), member.zone.clone().unwrap_or_default().into()]);
        }
        if health {
            row.push(member.health.as_ref().map_or_else(Cell::default, |why| Cell::new(why, Look::Red)));
        }
        table.row(row);
    }
    table
}

/// What comes before the rates.
fn own(member: &MemberStatus, feedback: bool, elsewhere: bool) -> Vec<Cell> {
    let mut row = vec![(&member.name).into(), address(member).into(), member.weight.into()];
    if feedback {
        row.push(member.factor_percent.map(|percent| format!("{percent}%")).unwrap_or_default().into());
    }
    row.extend([Cell::new(&member.state, of_state(&member.state)), member.active_flows.into()]);
    row.extend(elsewhere.then(|| member.flows_elsewhere.into()));
    row.push(member.new_flows.into());
    row
}

/// Below which 99 % of its connections are answered.
fn within(member: &MemberStatus) -> String {
    match member.connect.within_us(990) {
        Some(us) => format!("<{}", human::microseconds(us)),
        None if member.connect.count() > 0 => "long".to_owned(),
        None => String::new(),
    }
}

fn address(member: &MemberStatus) -> String {
    match member.port {
        Some(port) if member.address.contains(':') => format!("[{}]:{port}", member.address),
        Some(port) => format!("{}:{port}", member.address),
        None => member.address.clone(),
    }
}
