//! `lb drain` and `lb undrain`.

use std::time::Duration;

use anyhow::{Result, bail};
use vnet_common::api::{LbStatus, MemberChange, MemberStatus};

use super::{Which, change, one};
use crate::human;
use crate::output::Session;
use crate::progress::Progress;

/// Give a member no new flows; those it has live on
///
/// It stays so, across restarts and applies, until `lb undrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl lb drain web 10.0.0.11
  vnet-ctl lb drain web 10.0.0.11 --wait && reboot")]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Return only when its last flow has ended
    #[arg(long)]
    wait: bool,
}

/// Give a drained member new flows again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl lb undrain web 10.0.0.11")]
pub struct UndrainArgs {
    #[command(flatten)]
    which: Which,
}

/// Runs `lb drain`.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let (mut lb, mut member) = change(session, &args.which, &drained(true)).await?;
    let mut progress = Progress::new();
    while args.wait && member.active_flows > 0 {
        progress.show(&format!("{} left", human::count(member.active_flows, "flow")));
        tokio::time::sleep(Duration::from_millis(500)).await;
        lb = one(session, &args.which.lb).await?;
        member = match lb.members.iter().find(|member| member.name == args.which.member) {
            Some(member) if member.state == "active" => bail!("member {}/{} was undrained meanwhile", lb.name, member.name),
            Some(member) => member.clone(),
            // It was removed, and its flows with it.
            None => MemberStatus { active_flows: 0, ..member },
        };
    }
    drop(progress);
    let left = human::count(member.active_flows, "flow");
    tell(session, &lb, &member, &format!("{left} left"))
}

/// Runs `lb undrain`.
pub async fn undo(session: &Session, args: UndrainArgs) -> Result<u8> {
    let (lb, member) = change(session, &args.which, &drained(false)).await?;
    tell(session, &lb, &member, &format!("weight {}", member.weight))
}

fn drained(drained: bool) -> MemberChange {
    MemberChange { drained: Some(drained), weight: None }
}

fn tell(session: &Session, lb: &LbStatus, member: &MemberStatus, more: &str) -> Result<u8> {
    session.show(lb, |lb| format!("member {}/{} {} ({more})\n", lb.name, member.name, member.state))?;
    Ok(0)
}
