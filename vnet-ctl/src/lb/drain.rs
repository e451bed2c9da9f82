//! `lb drain` and `lb undrain`.

use std::time::Duration;

use anyhow::{Result, bail};
use vnet_common::api::{MemberChange, MemberStatus};

use super::elsewhere::{Elsewhere, Flows};
use super::{Changed, Which, change, one};
use crate::fleet::WaitArgs;
use crate::human;
use crate::output::Session;
use crate::progress::Progress;

/// Give a member no new flows; those it has live on
///
/// It stays so, across restarts and applies, until `lb undrain`. In a fleet no host gives it new flows any more, and --wait counts the
/// flows of all hosts, by what these last reported (every ten seconds, those with flows every two). A host that is silent may have some:
/// that is an error after half a minute, which names it.
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
    /// With --wait: hosts of the fleet that do not say what flows they have, have none
    #[arg(long, requires = "wait")]
    regardless: bool,
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
    let elsewhere = match args.wait {
        true => others(session, &args.which).await?,
        false => None,
    };
    let mut changed = change(session, &args.which, &drained(true), WaitArgs::default()).await?;
    if args.wait {
        empty(session, &args, elsewhere, &mut changed).await?;
    }
    let left = human::count(changed.member.active_flows, "flow");
    tell(session, &changed, &format!("{left} left"))
}

/// The flows of other hosts, if there are any and the member is there.
async fn others(session: &Session, which: &Which) -> Result<Option<Elsewhere>> {
    let lb = one(session, &which.lb).await?;
    match lb.members.iter().find(|member| member.name == which.member) {
        Some(member) => Elsewhere::begin(session, &lb.name, member).await,
        None => Ok(None),
    }
}

/// Waits until the last flow of a drained member has ended, on this host and in the fleet.
async fn empty(session: &Session, args: &Args, mut elsewhere: Option<Elsewhere>, changed: &mut Changed) -> Result<()> {
    let which = &args.which;
    let mut progress = Progress::new();
    loop {
        let others = match &mut elsewhere {
            Some(elsewhere) => elsewhere.look(session, args.regardless).await?,
            None => Flows::Known(0),
        };
        let here = changed.member.active_flows;
        if here == 0 && others == Flows::Known(0) {
            return Ok(());
        }
        progress.show(&match others {
            Flows::Known(others) => format!("{} left", human::count(here.max(others), "flow")),
            Flows::Awaited(from) => format!("{} left here; waiting to hear from {from}", human::count(here, "flow")),
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
