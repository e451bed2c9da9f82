//! `describe ts`.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use vnet_common::api::SourceStatus;

use super::fields::Fields;
use super::{inline, resource};
use crate::output::Session;
use crate::style::{Look, Paint, of_state};
use crate::table::Table;
use crate::target::Kind;
use crate::{get, time};

/// A tag source, and what came of it.
#[derive(Serialize)]
struct Description {
    source: SourceStatus,
    /// As it was applied; the operator needs none.
    resource: Option<Value>,
}

/// Shows it.
pub async fn describe(session: &Session, name: &str) -> Result<u8> {
    for source in get::find_sources(session, &[name.to_owned()]).await? {
        let description = Description { source, resource: resource(session, Kind::TagSource, name).await? };
        session.show(&description, |description| text_of(description, session.paint))?;
    }
    Ok(0)
}

fn text_of(Description { source, resource }: &Description, paint: Paint) -> String {
    let spec = |key: &str| resource.as_ref().and_then(|resource| resource.pointer(&format!("/spec/{key}")));
    let mut text = Fields::new(paint);
    text.add("Name", &source.name);
    text.add("Type", &source.kind);
    text.add_as("State", &source.state, of_state(&source.state));
    text.add("Input", &source.input);
    text.add("Users", &spec("users").map(inline).unwrap_or_default());
    text.add("Last event", &source.last_event_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", time::ago(ms))));
    if let Some(error) = &source.last_error {
        text.add_as("Last error", error, Look::Red);
    }
    let mut counts = Table::new(&[">EVENTS", ">TAGS", ">MALFORMED", ">REFUSED", ">DROPPED", ">UNMATCHED"]);
    let numbers = [source.events, source.tags, source.malformed, source.refused, source.dropped, source.unmatched];
    counts.row(numbers.into_iter().map(Into::into).collect());
    text.section("Counts", &counts.render(paint));
    list(&mut text, "May", spec("allow"), |item| {
        let may = |key: &str| item.get(key).is_none_or(|value| value == true);
        let what: Vec<&str> =
            [("set", may("set")), ("clear", may("clear"))].into_iter().filter(|(_, may)| *may).map(|(verb, _)| verb).collect();
        let severity = item.get("maxSeverity").map_or_else(|| "10".to_owned(), inline);
        format!("{} {}, severity up to {severity}", what.join(" and "), item.get("tag").map(inline).unwrap_or_default())
    });
    list(&mut text, "Mappings", spec("mappings"), |item| {
        let field = |key: &str| item.get(key).map(inline).unwrap_or_default();
        let verb = if field("operation") == "clear" { "clears" } else { "sets" };
        format!("{}: {verb} {}{} when {}", field("name"), field("tag"), field("tagFrom"), field("when"))
    });
    text.text()
}

fn list(text: &mut Fields, title: &str, items: Option<&Value>, line: impl Fn(&Value) -> String) {
    match items.and_then(Value::as_array).filter(|items| !items.is_empty()) {
        Some(items) => text.section(title, &items.iter().map(|item| line(item) + "\n").collect::<String>()),
        None => text.add(title, ""),
    }
}
