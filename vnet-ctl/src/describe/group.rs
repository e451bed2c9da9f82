//! `describe sg`.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use vnet_common::api::{EndpointStatus, GroupStatus, RuleStatus};

use super::fields::Fields;
use super::{inline, resource, rule_lines, rules};
use crate::get;
use crate::output::Session;
use crate::style::{Look, Paint, of_policy};
use crate::table::{Cell, Table};
use crate::target::Kind;

/// A group, and all that belongs to it.
#[derive(Serialize)]
struct Description {
    group: GroupStatus,
    /// As it was applied; `default` may be built in.
    resource: Option<Value>,
    members: Vec<EndpointStatus>,
    rules: Vec<RuleStatus>,
}

/// Shows it.
pub async fn describe(session: &Session, name: &str) -> Result<u8> {
    let all: Vec<EndpointStatus> = session.agent.get("/v1/endpoints").await?;
    for group in get::find_groups(session, &[name.to_owned()]).await? {
        let is_member = |ep: &&EndpointStatus| group.endpoints.contains(&ep.name);
        let description = Description {
            resource: resource(session, Kind::SecurityGroup, name).await?,
            members: all.iter().filter(is_member).cloned().collect(),
            rules: rules(session, Kind::SecurityGroup, name).await?,
            group,
        };
        session.show(&description, |description| text_of(description, session.paint))?;
    }
    Ok(0)
}

fn text_of(description: &Description, paint: Paint) -> String {
    let Description { group, resource, members, rules } = description;
    let spec = |key: &str| resource.as_ref().and_then(|resource| resource.pointer(&format!("/spec/{key}")));
    let mut text = Fields::new(paint);
    text.add("Name", &group.name);
    text.add("Type", get::kind_of(group));
    text.add("Id", &group.id.to_string());
    if !group.quarantine {
        text.add("Selector", &spec("selector").map(inline).unwrap_or_default());
        text.add("Precedence", &spec("precedence").map(inline).unwrap_or_default());
    }
    text.add("Default ingress", &group.defaults[0]);
    text.add("Default egress", &group.defaults[1]);
    for (title, key) in [("Treatment", "quarantine"), ("Brakes", "brakes")] {
        if let Some(value) = spec(key) {
            text.add(title, &inline(value));
        }
    }
    if members.is_empty() {
        text.add("Members", "none");
    } else {
        text.section("Members", &member_table(members).render(paint));
    }
    text.section("Rules", &rule_lines(rules, paint));
    match spec("transfers").and_then(Value::as_array).filter(|transfers| !transfers.is_empty()) {
        Some(transfers) => text.section("Transfers", &transfers.iter().map(|value| transfer(value, paint)).collect::<String>()),
        None => text.add("Transfers", &group.transfers.join(", ")),
    }
    text.text()
}

fn member_table(members: &[EndpointStatus]) -> Table {
    let mut table = Table::new(&["ENDPOINT", "DEVICE", "POLICY", "ADDRESSES", "TAGS"]);
    for ep in members {
        let policy = Cell::new(&ep.policy, of_policy(&ep.policy));
        table.row(vec![(&ep.name).into(), (&ep.device).into(), policy, ep.addresses.join(",").into(), ep.tags.join(",").into()]);
    }
    table
}

/// A transfer, with its criteria below.
fn transfer(value: &Value, paint: Paint) -> String {
    let text = |key: &str| value.get(key).map(inline).unwrap_or_default();
    let mode = value.get("mode").map_or_else(|| "enforce".to_owned(), inline);
    let mut lines = format!("{} -> {} ({mode})\n", paint.paint(Look::Bold, &text("name")), text("to"));
    let settings = [
        ("when", "when"),
        ("release when", "releaseWhen"),
        ("priority", "priority"),
        ("held at least", "minHoldSeconds"),
        ("held at most", "maxHoldSeconds"),
        ("flap damping", "flapDamping"),
    ];
    for (title, key) in settings {
        if value.get(key).is_some() {
            let unit = if key.ends_with("HoldSeconds") { " s" } else { "" };
            lines += &format!("  {title:<14} {}{unit}\n", text(key));
        }
    }
    lines
}
