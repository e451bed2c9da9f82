//! `endpoint export` and `import`: the flows of a VM go with it to another host.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vnet_common::api::moving::{FLOW_EXPORT, FlowExport, FlowImport};

use crate::client::segment;
use crate::output::{self, Session};
use crate::style::Look;
use crate::table::{Cell, Table};
use crate::{get, human};

/// Flows that go in one request.
const CHUNK: usize = 40_000;
/// Refused flows that are shown.
const SHOWN: usize = 10;

/// Print the flows of an endpoint, to be imported on the host that it moves to
///
/// Connections that are being opened or are over are not among them, nor are flows that a quarantine leads elsewhere: these begin anew.
/// Export when the VM stands still: what it does afterwards is not in the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl endpoint export web-1 > web-1.flows
  vnet-ctl endpoint export web-1 | ssh host-b vnet-ctl endpoint import -f -")]
pub struct ExportArgs {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
}

/// Take over the flows of an endpoint that moved to this host
///
/// The endpoint must be attached here, and its load balancers applied. Each flow keeps its member; at its next packet it is judged by the
/// rules in force here. A flow whose load balancer or member is not known here is refused and named; the others are taken, and then the exit
/// code is 1. Flows that are there already stay as they are: an import can be repeated.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl endpoint import -f web-1.flows
  vnet-ctl endpoint import -f - --endpoint web-1-new < web-1.flows")]
pub struct ImportArgs {
    /// What `endpoint export` printed; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The endpoint, where it has another name here [default: as in the file]
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<String>,
}

/// Runs it.
pub async fn export(session: &Session, args: ExportArgs) -> Result<u8> {
    let path = format!("/v1/endpoints/{}/flows", segment(&args.endpoint));
    let export: FlowExport = get::explain_endpoint(session, session.agent.get(&path).await, &args.endpoint).await?;
    if export.left > 0 {
        session.note(&format!("{} not exported: being opened, over, or led elsewhere", human::count(export.left, "flow")));
    }
    output::print(&(serde_json::to_string(&export).context("writing the flows")? + "\n"))?;
    Ok(0)
}

/// Runs it.
pub async fn import(session: &Session, args: ImportArgs) -> Result<u8> {
    let export = read(&args.file)?;
    let name = args.endpoint.unwrap_or_else(|| export.endpoint.clone());
    let path = format!("/v1/endpoints/{}/flows", segment(&name));
    let mut all = FlowImport { endpoint: name.clone(), ..FlowImport::default() };
    let chunks = export.flows.chunks(CHUNK).map(<[_]>::to_vec);
    // Also of no flows: whether the endpoint is here is asked anyway.
    for flows in chunks.chain(export.flows.is_empty().then(Vec::new)) {
        let part = FlowExport { version: export.version, endpoint: name.clone(), flows, left: 0 };
        let done = get::explain_endpoint(session, session.agent.post(&path, &part).await, &name).await;
        let done: FlowImport = done.with_context(|| match all.taken + all.known {
            0 => format!("importing the flows of endpoint '{name}'"),
            before => format!("importing the flows of endpoint '{name}': {before} are in force; the import can be repeated"),
        })?;
        all.taken += done.taken;
        all.known += done.known;
        all.refused.extend(done.refused);
    }
    session.show(&all, |all| text(all, session))?;
    Ok(u8::from(!all.refused.is_empty()))
}

fn read(path: &Path) -> Result<FlowExport> {
    let (text, name) = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        (text, "stdin".to_owned())
    } else {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        (text, path.display().to_string())
    };
    // First the version: what another one has is of no matter.
    let version = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|value| value["version"].as_u64());
    let faults = |version: Option<u64>| match version {
        Some(other) if other != u64::from(FLOW_EXPORT) => {
            format!("{name}: flows exported in version {other}; this vnet-ctl reads version {FLOW_EXPORT}")
        }
        _ => format!("{name}: this is not what `vnet-ctl endpoint export` prints"),
    };
    serde_json::from_str(&text).with_context(|| faults(version))
}

fn text(done: &FlowImport, session: &Session) -> String {
    let taken = human::count(done.taken, "flow");
    let known = if done.known > 0 { format!(", {} there already", done.known) } else { String::new() };
    let mut text = format!("endpoint {}: {taken} taken over{known}\n", done.endpoint);
    if done.refused.is_empty() {
        return text;
    }
    text += &format!("{} could not be taken over:\n", human::count(done.refused.len() as u64, "flow"));
    let mut table = Table::new(&["LOCAL", "REMOTE", "WHY"]);
    for flow in done.refused.iter().take(SHOWN) {
        table.row(vec![flow.local.to_string().into(), flow.remote.to_string().into(), Cell::new(&flow.reason, Look::Red)]);
    }
    text += &table.render(session.paint);
    let more = done.refused.len().saturating_sub(SHOWN);
    if more > 0 {
        text += &format!("and {more} more; -o json names all\n");
    }
    text
}
