//! YAML documents as trees that know where each value stands.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_saphyr::granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span as Marks, Tag, options};

use super::source::{Faults, Source, Span, quote};

/// How deep values may lie in each other. Resources need 6.
const DEPTH: usize = 32;

/// A value.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Where it starts; a scalar also ends there.
    pub(super) span: Span,
    /// Where its field name stands, if it is a field's value.
    pub(super) key: Option<Span>,
    /// What it is.
    pub(super) value: Value,
}

/// See [`Node`].
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text, a number, or nothing.
    Scalar(Scalar, String),
    /// Values in order.
    List(Vec<Node>),
    /// Fields in order; no name twice.
    Map(Vec<(String, Node)>),
    /// Something whose fault has been reported.
    Faulty,
}

/// What a scalar is, by the core schema of YAML 1.2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    /// Nothing, or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number; the nearest that fits.
    Integer(i64),
    /// Any other number.
    Number,
    /// Anything else.
    Text,
}

impl Node {
    /// Where to point for a fault of this value.
    pub(super) fn place(&self) -> Span {
        match (&self.value, self.key) {
            (Value::List(_) | Value::Map(_), Some(key)) => key,
            (_, Some(key)) if self.span.start == self.span.end => key,
            _ => self.span,
        }
    }

    /// The field of that name.
    pub(super) fn field(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The values of a list.
    pub(super) fn items(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The value at a JSON pointer, or the nearest one above it.
    pub(super) fn at(&self, pointer: &str) -> &Node {
        let mut node = self;
        for step in pointer.split('/').skip(1) {
            let child = match &node.value {
                Value::List(items) => step.parse().ok().and_then(|index: usize| items.get(index)),
                _ => node.field(&step.replace("~1", "/").replace("~0", "~")),
            };
            match child {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    /// The same value, without the places.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(Scalar::Bool(value), _) => (*value).into(),
            Value::Scalar(Scalar::Integer(value), _) => (*value).into(),
            Value::Scalar(Scalar::Number | Scalar::Text, text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(fields) => fields.iter().map(|(key, node)| (key.clone(), node.to_json())).collect(),
            Value::Scalar(Scalar::Null, _) | Value::Faulty => serde_json::Value::Null,
        }
    }
}

/// The documents of a file that are not empty. One that is no YAML is a fault, and those after it are read all the same.
pub(super) fn documents(source: &Source, faults: &mut Faults) -> Vec<Node> {
    let mut parser = Parser::new_from_str_with_options(&source.text, limits());
    let mut reader = Reader { source, faults, open: Vec::new(), documents: Vec::new() };
    loop {
        match parser.next_event() {
            Some(Ok((event, marks))) => reader.event(event, marks),
            Some(Err(error)) => {
                reader.syntax(&error);
                if !matches!(parser.proceed_next_document(), Ok(true)) {
                    break;
                }
            }
            None => break,
        }
    }
    reader.documents
}

fn limits() -> Options {
    options! {
        disallow_directives: true,
        emit_unresolved_aliases: true,
        emit_comments: false,
        flow_nesting_limit: DEPTH,
        block_nesting_limit: DEPTH,
    }
}

/// Builds documents from the parser's events.
struct Reader<'a> {
    source: &'a Source,
    faults: &'a mut Faults,
    open: Vec<Open>,
    documents: Vec<Node>,
}

/// A list or map whose end is still to come.
enum Open {
    List { span: Span, items: Vec<Node> },
    Map { span: Span, fields: Vec<(String, Node)>, lines: HashMap<String, u32>, key: Option<Key> },
}

/// A field's name, before its value comes. `None` for one whose fault has been reported.
struct Key {
    name: Option<String>,
    span: Span,
}

impl Reader<'_> {
    fn event(&mut self, event: Event<'_>, marks: Marks) {
        let span = span(&marks);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_extras(span, anchor, tag.as_deref());
                let kind = if style == ScalarStyle::Plain { resolve(&text) } else { Scalar::Text };
                self.close(span, Value::Scalar(kind, Cow::into_owned(text)));
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_extras(span, anchor, tag.as_deref());
                self.open.push(Open::List { span, items: Vec::new() });
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_extras(span, anchor, tag.as_deref());
                self.open.push(Open::Map { span, fields: Vec::new(), lines: HashMap::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { span, items }) => self.close(span, Value::List(items)),
                Some(Open::Map { span, fields, .. }) => self.close(span, Value::Map(fields)),
                None => {}
            },
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.fault(span, "aliases (`*name`) are not supported: write the value out");
                self.close(span, Value::Faulty);
            }
            _ => {}
        }
    }

    /// A value is complete: it goes where it belongs.
    fn close(&mut self, span: Span, value: Value) {
        let node = Node { span, key: None, value };
        match self.open.last_mut() {
            None if matches!(node.value, Value::Scalar(Scalar::Null, _)) => {}
            None => self.documents.push(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { key: key @ None, .. }) => {
                let (name, message) = match node.value {
                    Value::Scalar(_, name) if !name.is_empty() => (Some(name), None),
                    Value::Faulty => (None, None),
                    _ => (None, Some("a field needs a name, as in `name: value`")),
                };
                *key = Some(Key { name, span });
                if let Some(message) = message {
                    self.fault(span, message);
                }
            }
            Some(Open::Map { key, fields, lines, .. }) => {
                let Some(Key { name: Some(name), span }) = key.take() else { return };
                if let Some(line) = lines.get(&name) {
                    let message = format!("{} is already set on line {line}: remove one of the two", quote(&name));
                    return self.fault(span, message);
                }
                lines.insert(name.clone(), span.line);
                fields.push((name, Node { key: Some(span), ..node }));
            }
        }
    }

    /// What YAML can and resources need not.
    fn refuse_extras(&mut self, span: Span, anchor: usize, tag: Option<&Tag>) {
        if anchor != 0 {
            self.fault(span, "anchors (`&name`) are not supported: remove it, and write values out where they are used");
        }
        if let Some(tag) = tag {
            let tag = quote(&tag.original());
            self.fault(span, format!("tags are not supported: remove {tag}; to make a number text, put it in quotes"));
        }
    }

    fn syntax(&mut self, error: &ScanError) {
        self.open.clear();
        let at = error.marker();
        let start = at.byte_offset().unwrap_or(self.source.text.len());
        let place = Span { line: number(at.line()), column: number(at.col() + 1), start, end: start };
        self.fault(place, format!("this is not YAML: {}{}", error.info(), hint(error.kind())));
    }

    fn fault(&mut self, span: Span, message: impl Into<String>) {
        self.faults.push(self.source.fault(span, message));
    }
}

/// What to do about a syntax error, where the parser's words leave that open.
fn hint(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::MappingValueNotAllowed => " (wrong indentation? Or text with `: ` in it, which needs quotes)",
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::InvalidIndentation => " (wrong indentation?)",
        ErrorKind::SimpleKeyExpected => " (a field without `: value`?)",
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation => " (use spaces)",
        ErrorKind::RecursionLimitExceeded => " (values lie too deep in each other)",
        _ => "",
    }
}

fn span(marks: &Marks) -> Span {
    let start = marks.start.byte_offset().unwrap_or_default();
    let end = marks.end.byte_offset().unwrap_or(start).max(start);
    Span { line: number(marks.start.line()), column: number(marks.start.col() + 1), start, end }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What a scalar without quotes is.
fn resolve(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let all = |digits: &str, radix| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    if all(digits, 10) {
        let nearest = if text.starts_with('-') { i64::MIN } else { i64::MAX };
        return Scalar::Integer(text.parse().unwrap_or(nearest));
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix).filter(|digits| all(digits, radix)) {
            return Scalar::Integer(i64::from_str_radix(digits, radix).unwrap_or(i64::MAX));
        }
    }
    let starts_like_one = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let is_float = matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    if is_float || (starts_like_one && digits.parse::<f64>().is_ok()) { Scalar::Number } else { Scalar::Text }
}
