//! Does a document have the form that the schema asks for? Finds every fault, and takes out what is faulty, so that the
//! rest can be read and looked at further.

use serde_json::{Map, Value as Json};

use super::format;
use super::similar::similar;
use super::source::{Faults, Source, Span, quote};
use super::tree::{Node, Scalar, Value};

/// One walk over one document.
pub(super) struct Walk<'a> {
    source: &'a Source,
    schema: &'a Json,
    faults: &'a mut Faults,
    /// Nothing was taken out so far.
    whole: bool,
    /// Something had to be put in so that the rest can be read.
    filled: bool,
}

/// What is left of a document.
pub(super) enum Outcome {
    /// All of it.
    Whole,
    /// Some of it; it can be read, but things that it lacks may have been there.
    Pruned,
    /// Some of it, and it says things that nobody wrote: only good for looking at single values.
    Filled,
    /// Not enough to be read.
    Unusable,
}

impl<'a> Walk<'a> {
    /// A walk that knows the schema of all resources.
    pub(super) fn new(source: &'a Source, schema: &'a Json, faults: &'a mut Faults) -> Self {
        Self { source, schema, faults, whole: true, filled: false }
    }

    /// Walks over a document. Its kind decides what it must look like; without one nothing else can be said of it.
    pub(super) fn document(mut self, root: &mut Node) -> Outcome {
        let Some(schema) = self.kind(root) else { return Outcome::Unusable };
        match self.node(root, schema, "the document") {
            true if self.filled => Outcome::Filled,
            true if self.whole => Outcome::Whole,
            true => Outcome::Pruned,
            false => Outcome::Unusable,
        }
    }

    /// The schema of the document's kind; of the kind that was probably meant, if there is none of that name.
    fn kind(&mut self, root: &mut Node) -> Option<&'a Json> {
        let place = root.place();
        let Value::Map(fields) = &mut root.value else {
            self.fault(place, "a resource starts with `apiVersion: …` and `kind: …` at the left margin");
            return None;
        };
        let schemas = self.schema.get("oneOf").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let named = |name: &str| schemas.iter().find(|schema| kind_of(schema) == Some(name));
        let kinds: Vec<&str> = schemas.iter().filter_map(kind_of).collect();
        let Some((_, node)) = fields.iter_mut().find(|(name, _)| name == "kind") else {
            self.fault(place, format!("the field `kind` is missing: it is {}", either(&kinds)));
            return None;
        };
        let place = node.place();
        let Value::Scalar(_, kind) = &mut node.value else {
            self.fault(place, format!("`kind` must be {}", either(&kinds)));
            return None;
        };
        if let Some(schema) = named(kind) {
            return Some(schema);
        }
        let meant = similar(kind, &kinds);
        let hint = meant.map_or(format!("it is {}", either(&kinds)), |meant| format!("did you mean `{meant}`?"));
        self.fault(place, format!("there is no kind {}: {hint}", quote(kind)));
        meant?.clone_into(kind);
        named(kind)
    }

    /// True if the value can be used. `what` starts the sentences about it.
    fn node(&mut self, node: &mut Node, schema: &'a Json, what: &str) -> bool {
        let schema = self.resolve(schema);
        // Either the fault has been reported, or there are so many that it would not be.
        if matches!(node.value, Value::Faulty) || self.faults.enough() {
            self.whole = false;
            return false;
        }
        if matches!(node.value, Value::Scalar(Scalar::Null, _)) {
            let message = format!("{what} has no value: it must be {}", describe(schema));
            return self.unusable(node.place(), message);
        }
        let choices = choices(schema);
        if !choices.is_empty() {
            return self.choice(node, &choices, what);
        }
        match (schema.get("type").and_then(Json::as_str), &node.value) {
            (Some("object"), Value::Map(_)) => self.map(node, schema, what),
            (Some("array"), Value::List(_)) => self.list(node, schema, what),
            (Some("integer"), Value::Scalar(Scalar::Integer(value), _)) => self.integer(node.place(), *value, schema, what),
            (Some("string"), Value::Scalar(Scalar::Text, text)) => self.text(node.place(), text, schema, what),
            (Some("boolean"), Value::Scalar(Scalar::Bool(_), _)) => true,
            // A number, or text: its format says what either must be.
            (None, Value::Scalar(Scalar::Integer(_) | Scalar::Text, text)) if schema.get("format").is_some() => {
                self.text(node.place(), text, schema, what)
            }
            _ => self.mismatch(node, schema, what),
        }
    }

    fn map(&mut self, node: &mut Node, schema: &'a Json, what: &str) -> bool {
        let place = node.place();
        let Value::Map(fields) = &mut node.value else { return false };
        let properties = schema.get("properties").and_then(Json::as_object);
        let required: Vec<&str> = strings(schema.get("required"));
        if fields.is_empty() && schema.get("minProperties").is_some() {
            self.unusable(place, format!("{what} must not be empty"));
        }
        for name in required.iter().filter(|name| !fields.iter().any(|(field, _)| field == *name)) {
            let about =
                properties.and_then(|properties| properties.get(*name)).map(|field| self.about(field)).unwrap_or_default();
            self.unusable(place, format!("{what} lacks the field `{name}`{about}"));
        }
        fields.retain_mut(|(name, value)| self.field(name, value, schema, what));
        let mut usable = true;
        for name in required {
            if !fields.iter().any(|(field, _)| field == name) {
                let filler = properties.and_then(|properties| filler(self.resolve(properties.get(name)?)));
                usable &= filler.is_some();
                self.filled |= filler.is_some();
                fields.extend(filler.map(|value| (name.to_owned(), Node { span: place, key: None, value })));
            }
        }
        usable
    }

    fn field(&mut self, name: &str, value: &mut Node, schema: &'a Json, what: &str) -> bool {
        let key = value.key.unwrap_or(value.span);
        let properties = schema.get("properties").and_then(Json::as_object);
        if let Some(schema) = properties.and_then(|properties| properties.get(name)) {
            return self.node(value, schema, &format!("`{name}`"));
        }
        match schema.get("additionalProperties").filter(|others| others.is_object()) {
            Some(others) => {
                let format = schema.pointer("/propertyNames/format").and_then(Json::as_str).unwrap_or_default();
                let good = match format::wrong(format, name) {
                    Some(fault) => self.unusable(key, format!("the name {} {fault}", quote(name))),
                    None => true,
                };
                self.node(value, others, &quote(name)) && good
            }
            None if self.faults.enough() => false,
            None => self.unusable(key, unknown(name, properties, what)),
        }
    }

    fn list(&mut self, node: &mut Node, schema: &'a Json, what: &str) -> bool {
        let place = node.place();
        let Value::List(items) = &mut node.value else { return false };
        if let Some(message) = wrong_count(items.len() as u64, schema, what) {
            return self.unusable(place, message);
        }
        if let Some(schema) = schema.get("items") {
            let what = format!("an entry of {what}");
            items.retain_mut(|item| self.node(item, schema, &what));
        }
        true
    }

    fn integer(&mut self, place: Span, value: i64, schema: &'a Json, what: &str) -> bool {
        let least = schema.get("minimum").and_then(Json::as_i64).unwrap_or(i64::MIN);
        let most = schema.get("maximum").and_then(Json::as_i64).unwrap_or(i64::MAX);
        if (least..=most).contains(&value) {
            return true;
        }
        let written = self.written(place);
        self.unusable(place, format!("{what} must be {}, but is {written}", describe(schema)))
    }

    fn text(&mut self, place: Span, text: &str, schema: &'a Json, what: &str) -> bool {
        let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
        match format::wrong(format, text) {
            Some(fault) => self.fault(place, format!("{what} {fault}")),
            None => return true,
        }
        // Other text can be read all the same, and more may be wrong with what is around it.
        self.whole = false;
        !matches!(format, "ip" | "http-status")
    }

    fn choice(&mut self, node: &mut Node, choices: &[&str], what: &str) -> bool {
        let place = node.place();
        let Value::Scalar(_, text) = &node.value else {
            return self.unusable(place, format!("{what} must be {}", either(choices)));
        };
        if choices.contains(&text.as_str()) {
            return true;
        }
        let hint = similar(text, choices).map(|meant| format!(": did you mean `{meant}`?")).unwrap_or_default();
        let message = format!("{what} must be {}, but is {}{hint}", either(choices), quote(text));
        self.unusable(place, message)
    }

    fn mismatch(&mut self, node: &Node, schema: &'a Json, what: &str) -> bool {
        let expected = describe(schema);
        let is = match &node.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a group of fields".to_owned(),
            Value::Scalar(kind, text) => {
                let hint = match (schema.get("type").and_then(Json::as_str), kind) {
                    (Some("string"), Scalar::Integer(_) | Scalar::Number) => ", a number: put it in quotes",
                    (Some("string"), Scalar::Bool(_)) => ", a truth value: put it in quotes",
                    (Some("integer"), Scalar::Text) if text.parse::<i64>().is_ok() => ", text: remove the quotes",
                    _ => "",
                };
                format!("{}{hint}", quote(text))
            }
            Value::Faulty => return false,
        };
        self.unusable(node.place(), format!("{what} must be {expected}, but is {is}"))
    }

    /// What the schema says of a field, as the end of a sentence.
    fn about(&self, field: &'a Json) -> String {
        let said = field.get("description").or_else(|| self.resolve(field).get("description")).and_then(Json::as_str);
        let said = said.and_then(|said| said.split(". ").next()).unwrap_or_default().trim_end_matches('.');
        let mut rest = said.chars();
        let lower = rest.next().map(|first| first.to_lowercase().chain(rest).collect::<String>());
        lower.map(|said| format!(": {said}")).unwrap_or_default()
    }

    fn written(&self, place: Span) -> String {
        quote(self.source.text.get(place.start..place.end).unwrap_or_default())
    }

    fn resolve(&self, schema: &'a Json) -> &'a Json {
        let pointer = |schema: &'a Json| schema.get("$ref").and_then(Json::as_str).and_then(|to| to.strip_prefix('#'));
        pointer(schema).and_then(|to| self.schema.pointer(to)).unwrap_or(schema)
    }

    fn fault(&mut self, place: Span, message: impl Into<String>) {
        self.faults.push(self.source.fault(place, message));
    }

    /// Reports a fault for which a value is taken out.
    fn unusable(&mut self, place: Span, message: impl Into<String>) -> bool {
        self.fault(place, message);
        self.whole = false;
        false
    }
}

fn kind_of(schema: &Json) -> Option<&str> {
    schema.pointer("/properties/kind/const").and_then(Json::as_str)
}

fn unknown(name: &str, properties: Option<&Map<String, Json>>, what: &str) -> String {
    let names: Vec<&str> = properties.map(|properties| properties.keys().map(String::as_str).collect()).unwrap_or_default();
    match similar(name, &names) {
        Some(meant) => format!("{what} has no field {}: did you mean `{meant}`?", quote(name)),
        None => format!("{what} has no field {}: its fields are {}", quote(name), listed(&names, "and")),
    }
}

fn wrong_count(count: u64, schema: &Json, what: &str) -> Option<String> {
    let limit = |name: &str| schema.get(name).and_then(Json::as_u64);
    if count == 0 && limit("minItems").is_some_and(|least| least > 0) {
        return Some(format!("{what} must not be empty"));
    }
    let most = limit("maxItems").filter(|most| count > *most)?;
    Some(format!("{what} has {count} entries, and may have at most {most}"))
}

/// The values that a schema allows, if it names them.
fn choices(schema: &Json) -> Vec<&str> {
    if let Some(only) = schema.get("const").and_then(Json::as_str) {
        return vec![only];
    }
    let named = strings(schema.get("enum"));
    let each = schema.get("oneOf").and_then(Json::as_array).into_iter().flatten();
    named.into_iter().chain(each.filter_map(|schema| schema.get("const").and_then(Json::as_str))).collect()
}

fn strings(list: Option<&Json>) -> Vec<&str> {
    list.and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect()
}

/// What can stand for a required value that is not there, until it is.
fn filler(schema: &Json) -> Option<Value> {
    let text = |text: &str| Value::Scalar(Scalar::Text, text.to_owned());
    if let Some(choice) = choices(schema).first() {
        return Some(text(choice));
    }
    let is_address = schema.get("format").is_some_and(|format| format == "ip");
    match schema.get("type").and_then(Json::as_str)? {
        "string" if !is_address => Some(text("")),
        "array" => Some(Value::List(Vec::new())),
        _ => None,
    }
}

/// What a value must be, as part of a sentence.
fn describe(schema: &Json) -> String {
    let choices = choices(schema);
    if !choices.is_empty() {
        return either(&choices);
    }
    match schema.get("type").and_then(Json::as_str).unwrap_or_default() {
        "object" => "a group of fields, each `name: value`".to_owned(),
        "array" => "a list, as in `[a, b]`".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "integer" => match (schema.get("minimum"), schema.get("maximum")) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            _ => "a whole number".to_owned(),
        },
        _ => match schema.get("format").and_then(Json::as_str) {
            Some("ip") => "an IP address".to_owned(),
            Some("mac") => "a MAC address in quotes".to_owned(),
            Some("http-status") => "a status code or a range of them, such as 200-299".to_owned(),
            _ => "text".to_owned(),
        },
    }
}

fn either(names: &[&str]) -> String {
    listed(names, "or")
}

fn listed(names: &[&str], joint: &str) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} {joint} {last}", rest.join(", ")),
        None => "nothing".to_owned(),
    }
}
