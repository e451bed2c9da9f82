//! JSON events by HTTP: an object, a list of objects, or one object a line.

use std::time::Instant;

use serde_json::Value;
use vnet_common::api::IngestResponse;

use super::state::Source;
use super::text;
use crate::expression::Variables;

/// Bytes of a request or a file. Parsed, they can take 16 times as much.
pub(crate) const MOST: usize = 4 << 20;
/// Events in a request or a file.
const EVENTS: usize = 10_000;
/// Faults that are given back.
const FAULTS: usize = 100;
/// Bytes of one of them.
const FAULT: usize = 512;

/// Takes all events of a text. What is wrong with some does not keep others from being taken.
///
/// # Errors
/// There are no events in it, or too many: nothing was taken. The end of a sentence.
pub(super) fn ingest(source: &Source, text: &[u8], variables: &mut Variables) -> Result<IngestResponse, String> {
    let events = events(text).inspect_err(|why| source.malformed(why.clone()))?;
    let mut response = IngestResponse::default();
    for (number, event) in events.into_iter().enumerate() {
        let now = Instant::now();
        source.count_event(now);
        let faults = &mut response.faults;
        let mut fault = |why: String| {
            if faults.len() < FAULTS {
                faults.push(text::tidy(&format!("event {}: {why}", number + 1), FAULT));
            }
        };
        let event = match event {
            Ok(event) => event,
            Err(why) => {
                source.malformed(format!("an event that cannot be read: {why}"));
                fault(why);
                continue;
            }
        };
        response.events += 1;
        for change in source.changes(&event, false, variables, now, &mut fault) {
            match source.deliver(change) {
                Ok(made) => response.tags += u64::from(made),
                Err(why) => fault(why),
            }
        }
    }
    Ok(response)
}

/// The events of a text: those that cannot be read with the reason.
fn events(text: &[u8]) -> Result<Vec<Result<Value, String>>, String> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err("has no events: send a JSON object, a list of objects, or one object a line".to_owned());
    }
    let whole = match serde_json::from_slice(text) {
        Ok(Value::Array(events)) => Ok(events.into_iter().map(Ok).collect()),
        Ok(event) => Ok(vec![Ok(event)]),
        Err(error) => Err(error),
    };
    let events: Vec<Result<Value, String>> = match whole {
        Ok(events) => events,
        Err(error) => lines(text).ok_or_else(|| format!("is not JSON: {error}"))?,
    };
    if events.len() > EVENTS {
        return Err(format!("has {} events, and may have {EVENTS}: split it", events.len()));
    }
    let object = |event: Value| match event {
        Value::Object(_) => Ok(event),
        other => Err(format!("it must be a JSON object, but is {}", text::tidy(&other.to_string(), 80))),
    };
    Ok(events.into_iter().map(|event| event.and_then(object)).collect())
}

/// One event a line, if the first line is one. `None`: this is something else.
fn lines(text: &[u8]) -> Option<Vec<Result<Value, String>>> {
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let parse = |line: &[u8]| serde_json::from_slice::<Value>(line).map_err(|error| error.to_string());
    let first = parse(lines.next()?).ok()?;
    // One more than there may be is enough to know.
    Some(std::iter::once(Ok(first)).chain(lines.map(parse)).take(EVENTS + 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let shown = |event: Result<Value, String>| event.map_or_else(|why| format!("! {why}"), |event| event.to_string());
        events(text.as_bytes()).map(|events| events.into_iter().map(shown).collect())
    }

    #[test]
    fn an_object_a_list_or_lines() {
        let ok = |all: &[&str]| Ok(all.iter().map(|&one| one.to_owned()).collect::<Vec<_>>());
        assert_eq!(read(r#" {"a": 1}  "#), ok(&[r#"{"a":1}"#]));
        assert_eq!(read("{\n\"a\":\n 1}"), ok(&[r#"{"a":1}"#]));
        assert_eq!(read(r#"[{"a":1},{"b":2}]"#), ok(&[r#"{"a":1}"#, r#"{"b":2}"#]));
        assert_eq!(read("{\"a\":1}\r\n\n{\"b\":2}\n"), ok(&[r#"{"a":1}"#, r#"{"b":2}"#]));
        assert_eq!(read("[]"), ok(&[]));
    }

    #[test]
    fn what_is_wrong_is_said_by_number() {
        assert!(read("").unwrap_err().contains("has no events"));
        assert!(read("  \n ").unwrap_err().contains("has no events"));
        assert!(read("{\"a\":").unwrap_err().starts_with("is not JSON: EOF"));
        assert!(read("{\n\"a\":\n 1").unwrap_err().starts_with("is not JSON"), "not as many faults as it has lines");
        let mixed = read("{\"a\":1}\nnonsense\n3\n{\"b\":2}").unwrap();
        assert_eq!((mixed[0].as_str(), mixed[3].as_str()), (r#"{"a":1}"#, r#"{"b":2}"#));
        assert!(mixed[1].starts_with("! expected") && mixed[2].contains("must be a JSON object, but is 3"), "{mixed:?}");
        assert!(read("[1]").unwrap()[0].contains("JSON object"));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(read(&deep).unwrap_err().contains("recursion limit"));
        let many = "{}\n".repeat(EVENTS + 1);
        assert!(read(&many).unwrap_err().contains("may have 10000"));
        assert!(read(&format!("[{}]", vec!["{}"; EVENTS + 1].join(","))).unwrap_err().contains("may have 10000"));
        assert_eq!(read(&"{}\n".repeat(EVENTS)).unwrap().len(), EVENTS);
        assert!(events(b"\xff\xfe").unwrap_err().starts_with("is not JSON"));
    }
}
