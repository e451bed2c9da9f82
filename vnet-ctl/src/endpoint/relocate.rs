//! `endpoint move`: which host of the fleet has an endpoint.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vnet_common::api::File;
use vnet_common::api::fleet::{FleetStatus, ProposeRequest};

use crate::client::segment;
use crate::failure::is_not_found;
use crate::fleet::{self, WaitArgs, Wanted};
use crate::output::Session;
use crate::target::Kind;
use crate::{apply, near};

/// Say which host of the fleet has an endpoint, and have its flows go there
///
/// Sets `host` in the endpoint's resource. The host that has it now hands its flows over through the store, and the other one takes them
/// when the endpoint's device appears there: do this right before, or while, the VM moves. A file that the resource comes from should
/// say the same, or the next `apply` of it takes this back.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl endpoint move web-1 --to host-b && virsh migrate --live web-1 qemu+ssh://host-b/system")]
pub struct Args {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// The host that it moves to
    #[arg(long, value_name = "HOST", value_parser = fleet::name)]
    to: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let Some(fleet) = fleet::status(&session.agent).await? else {
        bail!("this host is in no fleet: flows go by `vnet-ctl endpoint export` and `import`, and the resource is applied there");
    };
    fleet::known(&fleet, std::slice::from_ref(&args.to))?;
    doubt(session, &fleet, &args.to);
    let mut resource = resource(session, &args.endpoint).await?;
    let spec = resource.get_mut("spec").and_then(Value::as_object_mut);
    let spec = spec.with_context(|| format!("the resource endpoint/{} has no spec", args.endpoint))?;
    spec.insert("host".to_owned(), args.to.clone().into());
    let files = vec![File { name: "endpoint move".to_owned(), text: format!("{resource:#}\n") }];
    let what = format!("move endpoint {} to {}", args.endpoint, args.to);
    let wanted = Wanted { request: ProposeRequest::Apply { files }, what, instead: None };
    let made = fleet::make(session, &fleet, &wanted, |proposal| apply::hear(session, proposal, false)).await?;
    apply::show_made(session, &made, args.wait).await
}

/// Warns of a host that is not the one to move to.
fn doubt(session: &Session, fleet: &FleetStatus, host: &str) {
    for to in fleet.hosts.iter().filter(|each| each.name == host) {
        if !to.alive {
            session.warn(&format!("host {host} is not alive: it takes the flows over when it is back"));
        }
        if to.drained {
            session.warn(&format!("host {host} is drained: as a member, the endpoint gets no new flows there"));
        }
    }
}

/// The resource of an endpoint.
async fn resource(session: &Session, name: &str) -> Result<Value> {
    let kind = Kind::Endpoint.api();
    match session.agent.get(&format!("/v1/resources/{kind}/{}", segment(name))).await {
        Err(error) if is_not_found(&error) => {
            let all: Vec<Value> = session.agent.get(&format!("/v1/resources/{kind}")).await?;
            let names = all.iter().filter_map(|each| each["metadata"]["name"].as_str());
            let hint = near::hint(name, names, "endpoints with a resource");
            bail!("no resource names the endpoint '{name}', so that no other host knows it by this name; {hint}")
        }
        found => found,
    }
}
