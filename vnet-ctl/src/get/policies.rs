//! What `get` shows of policies: the resources, and what their rules have done.

use anyhow::Result;
use serde_json::Value;
use vnet_common::api::RuleStatus;

use super::pick;
use crate::output::Session;
use crate::style::Look;
use crate::table::{Cell, Table};
use crate::target::Kind;

/// A policy, and its rules as they are in force.
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    resource: Value,
    rules: Vec<RuleStatus>,
}

/// The policies of these names, or all.
pub async fn find(session: &Session, names: &[String]) -> Result<Vec<Policy>> {
    let resources: Vec<Value> = session.agent.get("/v1/resources/Policy").await?;
    if resources.is_empty() && names.is_empty() {
        return Ok(Vec::new());
    }
    let rules: Vec<RuleStatus> = session.agent.get("/v1/rules").await?;
    let of = |resource: Value| {
        let name = resource.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let own = |status: &&RuleStatus| status.rule.kind == "Policy" && status.rule.resource == name;
        Policy { rules: rules.iter().filter(own).cloned().collect(), name, resource }
    };
    pick(resources.into_iter().map(of).collect(), names, |policy| &policy.name, Kind::Policy)
}

/// As a table. `prefix` comes before each name.
pub fn table(policies: &[Policy], prefix: &str, wide: bool) -> Table {
    let mut columns = vec!["NAME", "TIER", ">PRIORITY", "MODE", "APPLIED TO", ">RULES", ">HITS", ">WOULD HIT"];
    columns.extend(wide.then_some([">ENDPOINTS", "PLACE"]).into_iter().flatten());
    let mut table = Table::new(&columns);
    for policy in policies {
        let setting = |key: &str, default: &str| setting(&policy.resource, key, default);
        let mode = setting("mode", "enforce");
        let look = if mode == "staged" { Look::Yellow } else { Look::Plain };
        let rules = ["ingress", "egress"].map(|side| written(&policy.resource, side)).iter().sum::<usize>();
        let sum = |count: fn(&RuleStatus) -> u64| policy.rules.iter().map(count).sum::<u64>();
        let mut row: Vec<Cell> = vec![format!("{prefix}{}", policy.name).into(), setting("tier", "app").into()];
        row.extend([setting("priority", "1000").into(), Cell::new(mode, look), applied_to(&policy.resource).into()]);
        row.extend([rules.into(), sum(|rule| rule.hits).into(), sum(|rule| rule.would_hit).into()]);
        if wide {
            let endpoints = policy.rules.iter().map(|rule| rule.endpoints).max().unwrap_or(0);
            let place = policy.rules.first().map(|rule| rule.rule.place.clone()).unwrap_or_default();
            row.extend([endpoints.into(), place.into()]);
        }
        table.row(row);
    }
    table
}

/// A setting of a policy as text, or what it is where the resource does not say.
pub fn setting(resource: &Value, key: &str, default: &str) -> String {
    match resource.pointer(&format!("/spec/{key}")) {
        None => default.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// How many rules are written for a direction.
fn written(resource: &Value, side: &str) -> usize {
    resource.pointer(&format!("/spec/{side}")).and_then(Value::as_array).map_or(0, Vec::len)
}

/// Whom a policy is about: `all`, or `groups web,db`, `app=web`, `labels.env == "dev"`.
pub fn applied_to(resource: &Value) -> String {
    let mut parts = Vec::new();
    let at = |path: &str| resource.pointer(&format!("/spec/appliedTo/{path}"));
    if let Some(groups) = at("groups").and_then(Value::as_array).filter(|groups| !groups.is_empty()) {
        parts.push(format!("groups {}", groups.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")));
    }
    if let Some(labels) = at("selector/matchLabels").and_then(Value::as_object) {
        parts.extend(labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    if let Some(expression) = at("selector/expression").and_then(Value::as_str) {
        parts.push(expression.to_owned());
    }
    if parts.is_empty() { "all".to_owned() } else { parts.join(" ") }
}
