//! `describe pol`.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;
use vnet_common::api::RuleStatus;

use super::fields::Fields;
use super::{resource, rule_lines, rules};
use crate::output::Session;
use crate::style::Paint;
use crate::target::Kind;
use crate::{get, near};

/// A policy, and what its rules did.
#[derive(Serialize)]
struct Description {
    resource: Value,
    rules: Vec<RuleStatus>,
}

/// Shows it.
pub async fn describe(session: &Session, name: &str) -> Result<u8> {
    let Some(resource) = resource(session, Kind::Policy, name).await? else {
        let all: Vec<Value> = session.agent.get("/v1/resources/Policy").await?;
        let names = all.iter().filter_map(|resource| resource.pointer("/metadata/name").and_then(Value::as_str));
        bail!("there is no policy '{name}'; {}", near::hint(name, names, Kind::Policy.plural()));
    };
    let description = Description { resource, rules: rules(session, Kind::Policy, name).await? };
    session.show(&description, |description| text_of(name, description, session.paint))?;
    Ok(0)
}

fn text_of(name: &str, description: &Description, paint: Paint) -> String {
    let setting = |key: &str, default: &str| get::setting(&description.resource, key, default);
    let mut text = Fields::new(paint);
    text.add("Name", name);
    text.add("Tier", &setting("tier", "app"));
    text.add("Priority", &setting("priority", "1000"));
    text.add("Mode", &setting("mode", "enforce"));
    text.add("Applied to", &get::applied_to(&description.resource));
    let endpoints = description.rules.iter().map(|rule| rule.endpoints).max().unwrap_or(0);
    text.add("Local endpoints", &endpoints.to_string());
    text.section("Rules", &rule_lines(&description.rules, paint));
    text.text()
}
