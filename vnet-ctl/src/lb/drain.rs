//! `lb drain` and `lb undrain`.

use std::time::Duration;

use anyhow::{Result, bail};
use vnet_common::api::{MemberChange, MemberStatus};

use super::elsewhere::Elsewhere;
use super::{Changed, Which, change, one};
use crate::fleet::WaitArgs;
use crate::human;
use crate::output::Session;
use crate::progress::Progress;

/// Give a member no new flows; those it has live on
///
/// It stays so, across restarts and applies, until `lb undrain`. In a fleet no host gives it new flows any more, and --wait counts the
/// flows of all hosts, by what these last reported (every few seconds).
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
    #[command(flatten)]
    wait: WaitArgs,
}

/// Runs `lb drain`.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let mut changed = change(session, &args.which, &drained(true), WaitArgs::default()).await?;
    if args.wait {
        empty(session, &args.which, &mut changed).await?;
    }
    let left = human::count(changed.member.active_flows, "flow");
    tell(session, &changed, &format!("{left} left"))
}

/// Waits until the last flow of a drained member has ended, on this host and in the fleet.
async fn empty(session: &Session, which: &Which, changed: &mut Changed) -> Result<()> {
    let mut elsewhere = Elsewhere::begin(session, &changed.lb.name, &changed.member).await?;
    let mut progress = Progress::new();
    loop {
        let others = match &mut elsewhere {
            Some(elsewhere) => elsewhere.look(session).await?,
            None => Some(0),
        };
        let here = changed.member.active_flows;
        if here == 0 && others == Some(0) {
            return Ok(());
        }
        progress.show(&match others {
            Some(others) => format!("{} left", human::count(here.max(others), "flow")),
            None => format!("{} left here, those of other hosts are being counted", human::count(here, "flow")),
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        changed.lb = one(session, &which.lb).await?;
        let member = changed.lb.members.iter().find(|member| member.name == which.member);
        changed.member = match member {
            Some(member) if member.state == "active" => {
                bail!("member {}/{} was undrained meanwhile", changed.lb.name, member.name)
            }
            Some(member) => member.clone(),
            // It was removed, and its flows with it.
            None => MemberStatus { active_flows: 0, ..changed.member.clone() },
        };
    }
}

/// Runs `lb undrain`.
pub async fn undo(session: &Session, args: UndrainArgs) -> Result<u8> {
    let changed = change(session, &args.which, &drained(false), args.wait).await?;
    tell(session, &changed, &format!("weight {}", changed.member.weight))
}

fn drained(drained: bool) -> MemberChange {
    MemberChange { drained: Some(drained), weight: None }
}

fn tell(session: &Session, changed: &Changed, more: &str) -> Result<u8> {
    let member = &changed.member;
    session
        .show(&changed.lb, |lb| format!("member {}/{} {} ({more})\n{}", lb.name, member.name, member.state, changed.force()))?;
    Ok(0)
}
