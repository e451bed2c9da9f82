//! `detach`: takes vnet off this host.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result};
use vnet_common::api::{DetachResponse, Status};

use crate::failure::Misused;
use crate::human;
use crate::output::Session;

/// Take the datapath off every device of this host, and end the agent
///
/// Load balancing stops: connections that go through a VIP break. Resources stay in the agent's store, and are in force again
/// when it is started. (Merely stopping the agent leaves the datapath working.)
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
    if !std::io::stdin().is_terminal() {
        let why = "detaching stops load balancing on this host: without a terminal to ask on, it needs --yes";
        return Err(Misused(why.to_owned()).into());
    }
    eprint!(
        "This stops load balancing on this host ({}, {}): connections through a VIP break. Go on? [y/N] ",
        human::count(status.load_balancers.into(), "load balancer"),
        human::count(status.endpoints.into(), "endpoint")
    );
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn text(response: &DetachResponse) -> String {
    let devices: String = response.devices.iter().map(|device| format!("device/{device} detached\n")).collect();
    let flows = human::count(response.flows, "flow");
    format!("{devices}{}, {flows} forgotten; the agent has ended\n", human::count(response.devices.len() as u64, "device"))
}
