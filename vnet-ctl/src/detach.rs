//! `detach`: takes vnet off this host.

use anyhow::Result;
use vnet_common::api::{DetachResponse, Status};

use crate::output::Session;
use crate::{ask, human};

/// Take the datapath off every device of this host, and end the agent
///
/// Load balancing stops: connections that go through a VIP break. So does policy: whoever was in quarantine is free. Resources and
/// tags stay in the agent's store, and are in force again when it is started. (Merely stopping the agent leaves the datapath working.)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl detach
  vnet-ctl detach --yes -o json")]
pub struct Args {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    if !args.yes {
        let status: Status = session.agent.get("/v1/status").await?;
        if !confirmed(&status)? {
            session.note("nothing was done");
            return Ok(1);
        }
    }
    let response: DetachResponse = session.agent.post_empty("/v1/detach").await?;
    session.show(&response, text)?;
    Ok(0)
}

fn confirmed(status: &Status) -> Result<bool> {
    let question = format!(
        "This stops load balancing and policy on this host ({}, {}): connections through a VIP break, and nobody is in quarantine.",
        human::count(status.load_balancers.into(), "load balancer"),
        human::count(status.endpoints.into(), "endpoint")
    );
    ask::confirmed(&question, "detaching stops load balancing and policy on this host")
}

fn text(response: &DetachResponse) -> String {
    let devices: String = response.devices.iter().map(|device| format!("device/{device} detached\n")).collect();
    let flows = human::count(response.flows, "flow");
    format!("{devices}{}, {flows} forgotten; the agent has ended\n", human::count(response.devices.len() as u64, "device"))
}
