//! `describe`: everything about one thing.

mod endpoint;
mod fields;
mod group;
mod load_balancer;
mod policy;
mod source;

use anyhow::Result;
use serde_json::Value;
use vnet_common::api::RuleStatus;

use crate::client::segment;
use crate::failure::{Misused, is_not_found};
use crate::output::Session;
use crate::style::Paint;
use crate::table::{Cell, Table};
use crate::target::{Kind, Target, TargetParser};
use crate::{human, rule};

/// Show everything about one resource: its settings, and what is
///
/// The settings and the live state, as text for people; -o json and -o yaml give the live state for programs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl describe lb web
  vnet-ctl describe endpoint tap0
  vnet-ctl describe sg/web
  vnet-ctl describe ep/tap0 -o json | jq '.packets'")]
pub struct Args {
    /// Its kind; KIND/NAME works too
    #[arg(value_name = "KIND", value_parser = TargetParser)]
    target: Target,
    /// Its name
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let names = args.target.names(args.name.as_slice());
    let [name] = names.as_slice() else {
        return Err(Misused("which one? Give one name, as in: vnet-ctl describe lb web".to_owned()).into());
    };
    match args.target.kind {
        Kind::LoadBalancer => load_balancer::describe(session, name).await,
        Kind::Endpoint => endpoint::describe(session, name).await,
        Kind::SecurityGroup => group::describe(session, name).await,
        Kind::Policy => policy::describe(session, name).await,
        Kind::TagSource => source::describe(session, name).await,
        Kind::All => Err(Misused(format!("'{name}' of which kind? As in: vnet-ctl describe lb {name}")).into()),
    }
}

/// The resource as it was applied; `None` where there is none: what is built in, what was only found, and what was deleted since.
async fn resource(session: &Session, kind: Kind, name: &str) -> Result<Option<Value>> {
    match session.agent.get(&format!("/v1/resources/{}/{}", kind.api(), segment(name))).await {
        Ok(resource) => Ok(Some(resource)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The rules of one resource.
async fn rules(session: &Session, kind: Kind, name: &str) -> Result<Vec<RuleStatus>> {
    let all: Vec<RuleStatus> = session.agent.get("/v1/rules").await?;
    Ok(all.into_iter().filter(|status| status.rule.kind == kind.api() && status.rule.resource == name).collect())
}

/// Rules of one resource with what they did.
fn rule_lines(rules: &[RuleStatus], paint: Paint) -> String {
    let mut table = Table::new(&["DIRECTION", "RULE", "ACTION", ">HITS", ">BYTES", ">WOULD HIT", "PLACE"]);
    for status in rules {
        let action = rule::action(&status.rule);
        let mut row: Vec<Cell> = vec![(&status.rule.direction).into(), (&status.rule.rule).into()];
        row.extend([Cell::new(&action, rule::look(&action)), status.hits.into(), human::bytes(status.bytes).into()]);
        row.extend([status.would_hit.into(), (&status.rule.place).into()]);
        table.row(row);
    }
    if rules.is_empty() { "none\n".to_owned() } else { table.render(paint) }
}

/// `interval: 2s, rise: 2` for an object, the text for a string.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| match key.strip_suffix("Ms").zip(value.as_u64()) {
                Some((key, milliseconds)) => format!("{key} {}", human::milliseconds(milliseconds)),
                None => format!("{key} {}", inline(value)),
            };
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
