//! `get`: lists things.

mod policies;
mod tables;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use vnet_common::api::{API_VERSION, EndpointStatus, GroupStatus, LbStatus, SourceStatus};

use crate::cli::Format;
use crate::failure::{Misused, is_not_found};
use crate::output::{self, Session, print};
use crate::style::Look;
use crate::target::{Kind, Target, TargetParser};
use crate::{human, lb, near};

pub use policies::{applied_to, setting};
pub use tables::{endpoints as endpoint_table, groups as group_table, kind_of, sources as source_table};

/// List resources of a kind; with -o yaml, as files for `apply`
///
/// Endpoints include those that were discovered. With -o yaml or json come the resources as they were applied, which `apply`
/// takes again, and discovered endpoints in the same form with `discovered: true`, which `apply` passes over. The live state
/// for programs is in `describe -o json`, and in the `ls -o json` of `lb`, `endpoint`, `group`, `policy` and `tag source`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl get lb
  vnet-ctl get lb web -o yaml > web.yaml
  vnet-ctl get endpoints -o wide
  vnet-ctl get sg
  vnet-ctl get policy base -o yaml
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
    let kinds = if kind == Kind::All { &EVERY[..] } else { &[kind][..] };
    let mut tables = Vec::new();
    for each in kinds {
        tables.push(table(session, *each, &names, kind == Kind::All).await?);
    }
    tables.retain(|table| !table.is_empty());
    print(&tables.join("\n"))?;
    if tables.is_empty() {
        session.note(&format!("there are no {} yet", kind.plural()));
    }
    Ok(0)
}

/// Kinds, in the order in which `all` shows them.
const EVERY: [Kind; 5] = [Kind::LoadBalancer, Kind::Endpoint, Kind::SecurityGroup, Kind::Policy, Kind::TagSource];

/// The table of a kind; empty if there is nothing to show. With `prefixed`, names have their kind in front.
async fn table(session: &Session, kind: Kind, names: &[String], prefixed: bool) -> Result<String> {
    let prefix = if prefixed { format!("{}/", kind.api().to_lowercase()) } else { String::new() };
    let (wide, paint) = (session.wide(), session.paint);
    Ok(match kind {
        Kind::LoadBalancer => tables::load_balancers(&lb::find(session, names).await?, &prefix, wide).render(paint),
        Kind::Endpoint => tables::endpoints(&find_endpoints(session, names).await?, &prefix, wide).render(paint),
        Kind::SecurityGroup => tables::groups(&find_groups(session, names).await?, &prefix, wide).render(paint),
        Kind::Policy => policies::table(&policies::find(session, names).await?, &prefix, wide).render(paint),
        Kind::TagSource => tables::sources(&find_sources(session, names).await?, &prefix, wide).render(paint),
        Kind::All => String::new(),
    })
}

async fn resources(session: &Session, kind: Kind, names: &[String]) -> Result<u8> {
    let mut all: Vec<Value> = session.agent.get(&format!("/v1/resources/{}", kind.api())).await?;
    if matches!(kind, Kind::Endpoint | Kind::All) {
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

/// The endpoints of these names, or all.
pub async fn find_endpoints(session: &Session, names: &[String]) -> Result<Vec<EndpointStatus>> {
    let all: Vec<EndpointStatus> = session.agent.get("/v1/endpoints").await?;
    pick(all, names, |ep| &ep.name, Kind::Endpoint)
}

/// What any status has.
#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Adds the names that exist to the error that something of this kind does not. `path`: where all of them are.
pub async fn explain<T>(session: &Session, found: Result<T>, (kind, path): (Kind, &str), name: &str) -> Result<T> {
    let error = match found {
        Err(error) if is_not_found(&error) => error,
        other => return other,
    };
    let all: Vec<Named> = session.agent.get(path).await?;
    if all.iter().all(|each| each.name != name) {
        let hint = near::hint(name, all.iter().map(|each| each.name.as_str()), kind.plural());
        bail!("there is no {} '{name}'; {hint}", kind.singular());
    }
    Err(error)
}

/// [`explain`] for endpoints.
pub async fn explain_endpoint<T>(session: &Session, found: Result<T>, name: &str) -> Result<T> {
    explain(session, found, (Kind::Endpoint, "/v1/endpoints"), name).await
}

/// The security groups of these names, or all.
pub async fn find_groups(session: &Session, names: &[String]) -> Result<Vec<GroupStatus>> {
    let all: Vec<GroupStatus> = session.agent.get("/v1/groups").await?;
    pick(all, names, |group| &group.name, Kind::SecurityGroup)
}

/// The tag sources of these names, or all.
pub async fn find_sources(session: &Session, names: &[String]) -> Result<Vec<SourceStatus>> {
    let all: Vec<SourceStatus> = session.agent.get("/v1/sources").await?;
    pick(all, names, |source| &source.name, Kind::TagSource)
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
