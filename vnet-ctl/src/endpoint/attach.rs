//! `endpoint attach`: a device's state is in force before anything passes it.
//!
//! What starts a VM calls this first. With `--hold` the device is down until the agent says that its state is in force, and stays down
//! if it never says so: an agent that is dead, or refuses, means no traffic, not traffic without rules.

use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use tokio::time::{Instant, sleep};
use vnet_common::api::{AttachRequest, EndpointStatus};

use crate::failure::Refused;
use crate::human;
use crate::link::Link;
use crate::output::Session;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Have a device attached now, and wait until its endpoint's state is in force on it
///
/// With --hold the device is set down first, and up again only when the agent has answered that the endpoint's rules, or its
/// quarantine, are in force on it. If the agent does not answer in time, or refuses, the device stays down and the exit code is not 0.
/// Without --hold, the device is not set up or down. --timeout is how long to go on trying.
///
/// This is for the hooks of what starts VMs; see vnet-agent/dist/hooks, and "Before a VM's first packet" in docs/OPERATIONS.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl endpoint attach tap100i0 --hold
  vnet-ctl endpoint attach vnet7 --hold --endpoint web-1
  vnet-ctl endpoint attach vnet7 --hold --mac 52:54:00:12:34:56 --timeout 10s")]
pub struct Args {
    /// The host-side device
    #[arg(value_name = "DEVICE", value_parser = device)]
    device: String,
    /// The endpoint whose device it is from now on [default: the one whose resource names the device, or a discovered one]
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// Or the one whose resource has this MAC, if any has
    #[arg(long, value_name = "MAC", conflicts_with = "endpoint", value_parser = mac)]
    mac: Option<String>,
    /// The device is down until it is attached, and stays down if it cannot be; needs root
    #[arg(long)]
    hold: bool,
}

/// As the kernel has it: at most 15 bytes, no slash, no blanks.
fn device(text: &str) -> Result<String, String> {
    let wrong = text.len() > 15 || matches!(text, "" | "." | "..");
    if wrong || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        return Err("a device's name has 1 to 15 characters, without blanks, '/' and ':'".to_owned());
    }
    Ok(text.to_owned())
}

fn mac(text: &str) -> Result<String, String> {
    let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    if text.split(':').count() == 6 && text.split(':').all(is_byte) {
        return Ok(text.to_lowercase());
    }
    Err("a MAC is written as 52:54:00:12:34:56".to_owned())
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let link = if args.hold { Some(Link::open(&args.device)?) } else { None };
    if let Some(link) = &link {
        link.set(false).await?;
    }
    match attach(session, &args, link.as_ref()).await {
        Ok(endpoint) => {
            if let Some(link) = &link {
                link.set(true).await?;
            }
            session.show(&endpoint, |endpoint| line(endpoint, args.hold))?;
            Ok(0)
        }
        Err(error) => Err(kept(link.as_ref(), &args.device, error).await),
    }
}

/// Asks until the agent has done it, or refuses it, or the time is over.
async fn attach(session: &Session, args: &Args, link: Option<&Link>) -> Result<EndpointStatus> {
    let deadline = Instant::now() + session.agent.patience();
    loop {
        let error = match ask(session, args, deadline).await {
            Ok(endpoint) => {
                ensure!(endpoint.state == "attached", "the agent could not attach it: {}", endpoint.state);
                let other = link.filter(|link| link.index() != endpoint.ifindex);
                ensure!(other.is_none(), "it was replaced by another device of its name meanwhile");
                return Ok(endpoint);
            }
            Err(error) => error,
        };
        // What was refused is refused again; an agent that is busy or not there yet may do it in a moment.
        let refused = error.downcast_ref::<Refused>().is_some_and(|refused| refused.status < 500);
        if refused {
            return Err(error);
        }
        if Instant::now() + PAUSE >= deadline {
            let waited = human::milliseconds(u64::try_from(session.agent.patience().as_millis()).unwrap_or(u64::MAX));
            return Err(error.context(format!("given up after {waited}")));
        }
        sleep(PAUSE).await;
    }
}

async fn ask(session: &Session, args: &Args, deadline: Instant) -> Result<EndpointStatus> {
    // At least a moment, so that the one try with a short time is not in vain.
    let agent = session.agent.with_patience((deadline - Instant::now()).max(PAUSE));
    let mut endpoint = args.endpoint.clone();
    if let Some(mac) = &args.mac {
        let all: Vec<EndpointStatus> = agent.get("/v1/endpoints").await?;
        let has = |ep: &&EndpointStatus| !ep.discovered && ep.mac.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(mac));
        let found: Vec<&str> = all.iter().filter(has).map(|ep| ep.name.as_str()).collect();
        endpoint = match found.as_slice() {
            [] => None,
            [one] => Some((*one).to_owned()),
            several => bail!("MAC {mac} is of several endpoints ({}): name one with --endpoint", several.join(", ")),
        };
    }
    agent.post("/v1/endpoints/attach", &AttachRequest { device: args.device.clone(), endpoint }).await
}

/// The error, with what it means for the device. It may have been set up by others meanwhile: it is set down again.
async fn kept(link: Option<&Link>, device: &str, error: anyhow::Error) -> anyhow::Error {
    match link {
        None => anyhow!("device '{device}' is not attached: {error:#}"),
        Some(link) => match link.set(false).await {
            Ok(()) => anyhow!("device '{device}' is not attached, and stays down: {error:#}"),
            Err(again) => anyhow!("device '{device}' is not attached: {error:#}; and it may be up: {again:#}"),
        },
    }
}

fn line(endpoint: &EndpointStatus, held: bool) -> String {
    let up = if held { ", and up" } else { "" };
    let EndpointStatus { name, device, group, policy, .. } = endpoint;
    format!("device/{device} attached as endpoint/{name} (group {group}, {policy}){up}\n")
}
