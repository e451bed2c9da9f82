//! `get`: lists things.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use vnet_common::api::{API_VERSION, EndpointStatus, LbStatus};

use crate::cli::Format;
use crate::failure::Misused;
use crate::lb;
use crate::output::{self, Session, print};
use crate::style::{Look, of_state};
use crate::table::{Cell, Table};
use crate::target::{Kind, Target, TargetParser};
use crate::{human, near};

/// List load balancers or endpoints; with -o yaml, as files for `apply`
///
/// Endpoints include those that were discovered. With -o yaml or json come the resources as they were applied, which `apply`
/// takes again, and discovered endpoints in the same form with `discovered: true`, which `apply` passes over. The live state
/// for programs is in `describe -o json` and `lb ls -o json`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl get lb
  vnet-ctl get lb web -o yaml > web.yaml
  vnet-ctl get endpoints -o wide
  vnet-ctl get all")]
pub struct Args {
    /// What to list; KIND/NAME works too
    #[arg(value_name = "KIND", value_parser = TargetParser)]
    target: Target,
    /// Only these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let names = args.target.names(&args.names);
    let kind = args.target.kind;
    if kind == Kind::All && !names.is_empty() {
        return Err(Misused(format!("'all' lists every kind: names need one kind, as in: vnet-ctl get lb {}", names[0])).into());
    }
    if matches!(session.format, Format::Json | Format::Yaml) {
        return resources(session, kind, &names).await;
    }
    let mut tables = Vec::new();
    if kind != Kind::Endpoint {
        tables.push(load_balancers(session, &names, kind == Kind::All).await?);
    }
    if kind != Kind::LoadBalancer {
        tables.push(endpoints(session, &names, kind == Kind::All).await?);
    }
    tables.retain(|table| !table.is_empty());
    print(&tables.join("\n"))?;
    if tables.is_empty() {
        session.note(&format!("there are no {} yet", kind.plural()));
    }
    Ok(0)
}

async fn resources(session: &Session, kind: Kind, names: &[String]) -> Result<u8> {
    let mut all: Vec<Value> = session.agent.get(&format!("/v1/resources/{}", kind.api())).await?;
    if kind != Kind::LoadBalancer {
        all.extend(find_endpoints(session, &[]).await?.iter().filter(|ep| ep.discovered).map(found));
    }
    let picked =
        pick(all, names, |resource| resource.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default(), kind)?;
    let text = match (session.format, names.len()) {
        (Format::Json, 1) => output::json(&picked[0])?,
        (Format::Json, _) => output::json(&picked)?,
        _ => picked.iter().map(output::yaml).collect::<Result<Vec<_>>>()?.join("---\n"),
    };
    print(&text)?;
    if picked.is_empty() {
        session.note(&format!("there are no {} yet", kind.plural()));
    }
    Ok(0)
}

/// A discovered endpoint, as a resource for it would be; but marked, so that `apply` passes it over.
fn found(ep: &EndpointStatus) -> Value {
    let mut spec = json!({ "device": ep.device });
    if let Some(mac) = &ep.mac {
        spec["mac"] = json!(mac);
    }
    if !ep.addresses.is_empty() {
        spec["addresses"] = json!(ep.addresses);
    }
    json!({
        "apiVersion": API_VERSION, "kind": Kind::Endpoint.api(), "metadata": { "name": ep.name }, "discovered": true, "spec": spec,
    })
}

async fn load_balancers(session: &Session, names: &[String], prefixed: bool) -> Result<String> {
    let lbs = lb::find(session, names).await?;
    let mut columns = vec!["NAME", "VIPS", "PROTOCOL", "PORTS", "READY", "DELIVERY"];
    if session.wide() {
        columns.extend([">FLOWS", "MEMBERS"]);
    }
    let mut table = Table::new(&columns);
    for lb in &lbs {
        let name = if prefixed { format!("loadbalancer/{}", lb.name) } else { lb.name.clone() };
        let vips = few(&lb.vips, session.wide());
        let mut row: Vec<Cell> = vec![name.into(), vips.into(), (&lb.protocol).into(), human::list(&lb.ports).into()];
        row.extend([lb::ready(lb), (&lb.delivery).into()]);
        if session.wide() {
            row.push(lb.members.iter().map(|member| member.active_flows).sum::<u64>().into());
            row.push(human::list(&lb.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>()).into());
        }
        table.row(row);
    }
    Ok(if lbs.is_empty() { String::new() } else { table.render(session.paint) })
}

async fn endpoints(session: &Session, names: &[String], prefixed: bool) -> Result<String> {
    let endpoints = find_endpoints(session, names).await?;
    let mut columns = vec!["NAME", "DEVICE", "ORIGIN", "STATE", "ADDRESSES", ">SENT", ">RECEIVED"];
    if session.wide() {
        columns.extend([">ID", ">IFINDEX", "MAC", "LABELS", "FOREIGN PROGRAMS"]);
    }
    let mut table = Table::new(&columns);
    for ep in &endpoints {
        let name = if prefixed { format!("endpoint/{}", ep.name) } else { ep.name.clone() };
        let [sent, received] = ep.bytes.map(human::bytes);
        let mut row: Vec<Cell> =
            vec![name.into(), (&ep.device).into(), origin(ep).into(), Cell::new(&ep.state, of_state(&ep.state))];
        row.extend([few(&ep.addresses, session.wide()).into(), sent.into(), received.into()]);
        if session.wide() {
            row.extend([ep.id.into(), ep.ifindex.into(), ep.mac.clone().unwrap_or_default().into()]);
            row.extend([labels(ep).into(), human::list(&ep.foreign_programs).into()]);
        }
        table.row(row);
    }
    Ok(if endpoints.is_empty() { String::new() } else { table.render(session.paint) })
}

/// The endpoints of these names, or all.
pub async fn find_endpoints(session: &Session, names: &[String]) -> Result<Vec<EndpointStatus>> {
    let all: Vec<EndpointStatus> = session.agent.get("/v1/endpoints").await?;
    pick(all, names, |ep| &ep.name, Kind::Endpoint)
}

/// Those of `all` that are called like one of `names`; all, if there are no names.
pub fn pick<T: Clone>(all: Vec<T>, names: &[String], name_of: impl Fn(&T) -> &str, kind: Kind) -> Result<Vec<T>> {
    if names.is_empty() {
        return Ok(all);
    }
    let mut picked = Vec::new();
    for name in names {
        match all.iter().find(|each| name_of(each) == name) {
            Some(each) => picked.push(each.clone()),
            None => {
                bail!("there is no {} '{name}'; {}", kind.singular(), near::hint(name, all.iter().map(&name_of), kind.plural()))
            }
        }
    }
    Ok(picked)
}

/// Where an endpoint comes from.
pub fn origin(ep: &EndpointStatus) -> &'static str {
    if ep.discovered { "discovered" } else { "applied" }
}

/// `app=web,zone=a`.
pub fn labels(ep: &EndpointStatus) -> String {
    human::list(&ep.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>())
}

/// The first one and how many more there are; or all.
fn few(items: &[String], all: bool) -> String {
    match items {
        [first, second, ..] if !all && items.len() > 2 => format!("{first},{second} +{}", items.len() - 2),
        _ => human::list(items),
    }
}

/// The load balancer's members that take new flows, of all.
pub fn ready_look(ready: usize, all: usize) -> Look {
    match ready {
        0 => Look::Red,
        ready if ready < all => Look::Yellow,
        _ => Look::Green,
    }
}

/// See [`pick`].
pub fn pick_lbs(all: Vec<LbStatus>, names: &[String]) -> Result<Vec<LbStatus>> {
    pick(all, names, |lb| &lb.name, Kind::LoadBalancer)
}
