//! `lb ls`: the load balancers and their traffic.

use anyhow::Result;
use vnet_common::api::{LbStatus, MemberStatus};

use crate::lb;
use crate::output::Session;
use crate::style::Paint;
use crate::table::Table;
use crate::watch::{self, Before, WatchArgs};
use crate::{get, human};

/// List the load balancers with their traffic
///
/// FLOWS are those open now, NEW all those that were given to members. -o json gives members and counters.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  vnet-ctl lb ls
  vnet-ctl lb ls --watch
  vnet-ctl lb ls -o json | jq '.[] | {name, new: ([.members[].new_flows] | add)}'"
)]
pub struct Args {
    /// Only these
    #[arg(value_name = "LB")]
    names: Vec<String>,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let fetch = async || get::pick_lbs(session.agent.get_quietly("/v1/lb").await?, &args.names);
    watch::run(session, args.watch, fetch, |lbs, before| session.render(lbs, |lbs| text(lbs, before, session.paint))).await
}

fn text(lbs: &[LbStatus], before: Before<'_, Vec<LbStatus>>, paint: Paint) -> String {
    if lbs.is_empty() {
        return "there are no load balancers yet\n".to_owned();
    }
    let mut columns = vec!["NAME", "VIPS", "PORTS", "READY", ">FLOWS", ">NEW"];
    columns.extend(before.is_some().then_some(">NEW/S"));
    columns.extend([">RESETS", ">TO", ">FROM"]);
    let mut table = Table::new(&columns);
    for lb in lbs {
        let sum = |number: fn(&MemberStatus) -> u64| lb.members.iter().map(number).sum::<u64>();
        let new = sum(|member| member.new_flows);
        let ports = format!("{}/{}", human::list(&lb.all_ports()), lb.protocol);
        let mut row = vec![(&lb.name).into(), human::list(&lb.vips).into(), ports.into(), lb::ready(lb)];
        row.extend([sum(|member| member.active_flows).into(), new.into()]);
        if let Some((lbs, time)) = before {
            let was = lbs.iter().find(|was| was.name == lb.name);
            row.push(human::rate(new, was.map(|was| was.members.iter().map(|member| member.new_flows).sum()), time).into());
        }
        let [to, from] = [sum(|member| member.bytes[0]), sum(|member| member.bytes[1])].map(human::bytes);
        row.extend([sum(|member| member.resets).into(), to.into(), from.into()]);
        table.row(row);
    }
    table.render(paint)
}
