//! `quarantine hold`, `release`, `approve` and `dismiss`: what an operator decides.

use anyhow::{Result, bail};
use vnet_common::api::{Held, QuarantineRequest, QuarantineStatus};

use super::{change, reason};
use crate::output::Session;
use crate::{ask, human, near};

/// Move an endpoint into a quarantine group by hand
///
/// It takes effect on its very next packets, established connections included, and stays until `quarantine release`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl quarantine hold web-1 --group strict --reason 'call from the SOC, ticket 4711'")]
pub struct HoldArgs {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// The quarantine group; see `vnet-ctl group ls`
    #[arg(long, value_name = "GROUP")]
    group: String,
    /// Why; it goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
}

/// Release an endpoint from quarantine now, whatever its tags say (break-glass)
///
/// It goes back to the group that it came from, at once. It asks first, unless --yes. It says so in the audit log, with the reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl quarantine release web-1 --reason 'false alarm, ticket 4711'
  vnet-ctl quarantine release web-1 --reason 'false alarm' --yes")]
pub struct ReleaseArgs {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// Why; it goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Let a move happen that waits for approval
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl quarantine ls
  vnet-ctl quarantine approve web-1")]
pub struct ApproveArgs {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// Why; it goes into the audit log
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

/// Drop a move that waits for approval
///
/// It waits again when its transfer's criterion has ended and come true anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl quarantine dismiss web-1 --reason 'known scanner'")]
pub struct DismissArgs {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// Why; it goes into the audit log
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

/// Runs `quarantine hold`.
pub async fn hold(session: &Session, args: HoldArgs) -> Result<u8> {
    let request = QuarantineRequest { group: Some(args.group), reason: args.reason };
    let status = change(session, &args.endpoint, "hold", &request).await?;
    session.show(&status, |status| match held(status, &args.endpoint) {
        Some(held) => held_line(held),
        None => format!("endpoint/{} was moved, and is not held any more\n", args.endpoint),
    })?;
    Ok(0)
}

/// Runs `quarantine release`.
pub async fn release(session: &Session, args: ReleaseArgs) -> Result<u8> {
    let before: QuarantineStatus = session.agent.get("/v1/quarantine").await?;
    let Some(was) = held(&before, &args.endpoint) else {
        let names = before.held.iter().map(|held| held.endpoint.as_str());
        bail!(
            "endpoint '{}' is not in quarantine; {}",
            args.endpoint,
            near::hint(&args.endpoint, names, "endpoints in quarantine")
        );
    };
    if !args.yes {
        let tags = if was.tags.is_empty() { "no tag".to_owned() } else { was.tags.join(", ") };
        let question =
            format!("This releases {} from {} to {}, held by {tags}: {}.", was.endpoint, was.group, was.from, was.reason);
        if !ask::confirmed(&human::clean(&question), "releasing an endpoint breaks the glass")? {
            session.note("nothing was done");
            return Ok(1);
        }
    }
    let request = QuarantineRequest { group: None, reason: args.reason };
    let status = change(session, &args.endpoint, "release", &request).await?;
    let from = &was.from;
    session.show(&status, |status| match held(status, &args.endpoint) {
        None => format!("endpoint/{} released to {from}\n", args.endpoint),
        Some(again) => format!("endpoint/{} was released, and is held again: {}\n", args.endpoint, human::clean(&again.reason)),
    })?;
    Ok(0)
}

/// Runs `quarantine approve`.
pub async fn approve(session: &Session, args: ApproveArgs) -> Result<u8> {
    let status = decide(session, &args.endpoint, "approve", args.reason).await?;
    session.show(&status, |status| match held(status, &args.endpoint) {
        Some(held) => held_line(held),
        None => format!("endpoint/{} approved\n", args.endpoint),
    })?;
    Ok(0)
}

/// Runs `quarantine dismiss`.
pub async fn dismiss(session: &Session, args: DismissArgs) -> Result<u8> {
    let status = decide(session, &args.endpoint, "dismiss", args.reason).await?;
    session.show(&status, |_| format!("endpoint/{} stays where it is\n", args.endpoint))?;
    Ok(0)
}

/// Answers a move that waits for approval.
async fn decide(session: &Session, endpoint: &str, verb: &str, reason: String) -> Result<QuarantineStatus> {
    let before: QuarantineStatus = session.agent.get("/v1/quarantine").await?;
    let names = || before.pending.iter().map(|pending| pending.endpoint.as_str());
    if names().all(|name| name != endpoint) {
        bail!("no move of endpoint '{endpoint}' waits for approval; {}", near::hint(endpoint, names(), "moves that wait"));
    }
    change(session, endpoint, verb, &QuarantineRequest { group: None, reason }).await
}

fn held<'a>(status: &'a QuarantineStatus, endpoint: &str) -> Option<&'a Held> {
    status.held.iter().find(|held| held.endpoint == endpoint)
}

fn held_line(held: &Held) -> String {
    format!("endpoint/{} held in {} (from {}), {}\n", held.endpoint, held.group, held.from, held.state)
}
