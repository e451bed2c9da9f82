//! `lb weight`: a member's share of new flows.

use anyhow::Result;
use vnet_common::api::MemberChange;

use super::{Which, change};
use crate::fleet::WaitArgs;
use crate::output::Session;

/// Set a member's share of new flows, against the other members' weights
///
/// It holds instead of the weight in the resource, across restarts and applies, until `reset`. Open flows stay where they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl lb weight web 10.0.0.12 5
  vnet-ctl lb weight web 10.0.0.12 reset")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// 0 (no new flows) to 1000; reset: as the resource has it
    #[arg(value_name = "WEIGHT|reset", value_parser = weight)]
    weight: i32,
    #[command(flatten)]
    wait: WaitArgs,
}

fn weight(text: &str) -> Result<i32, String> {
    match text.parse() {
        _ if text == "reset" => Ok(-1),
        Ok(weight @ 0..=1000) => Ok(weight),
        _ => Err("a weight is 0 to 1000, or 'reset' for the resource's own".to_owned()),
    }
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let asked = MemberChange { drained: None, weight: Some(args.weight) };
    let changed = change(session, &args.which, &asked, args.wait).await?;
    let source = if args.weight == -1 { ", as its resource has it" } else { "" };
    let member = &changed.member;
    session.show(&changed.lb, |lb| {
        format!("member {}/{} weight {}{source}\n{}", lb.name, member.name, member.weight, changed.force())
    })?;
    Ok(0)
}
