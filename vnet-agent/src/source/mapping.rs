//! How events become changes of tags: the mappings of a [`TagSource`](crate::resource::TagSource), compiled.

use std::time::Duration;

use serde_json::Value;

use super::change::{EVIDENCE, INSTANCE, VALUE};
use super::directory::Reference;
use super::text;
use crate::expression::{Expression, Need, Variables};
use crate::resource::{self, Mapping, OnExpiry, Operation, parse_mac};

/// Endpoints that one event may be about by address.
const ADDRESSES: usize = 16;
/// The severity of a tag whose mapping does not say.
const SEVERITY: u8 = 5;
/// The variable of expressions.
const EVENT: &str = "event";

/// All mappings of a source.
#[derive(Debug, Default)]
pub struct Mappings(Vec<Compiled>);

/// What a mapping makes of an event. Which endpoints are meant has yet to be found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Who.
    pub reference: Reference,
    /// Set or clear.
    pub operation: Operation,
    /// The tag's name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Its instance.
    pub instance: String,
    /// 0 to 10.
    pub severity: u8,
    /// In per cent.
    pub confidence: u8,
    /// What shows it.
    pub evidence: String,
    /// Until it expires.
    pub ttl: Option<Duration>,
    /// What its expiry means.
    pub on_expiry: OnExpiry,
}

#[derive(Debug)]
struct Compiled {
    name: String,
    when: Expression,
    need: Need,
    /// `when` says which types of EVE records it is about.
    typed: bool,
    subject: Subject,
    operation: Operation,
    tag: Either<String>,
    value: Option<Expression>,
    instance: Option<Expression>,
    severity: Either<u8>,
    confidence: u8,
    evidence: Option<Expression>,
    ttl: Option<Duration>,
    on_expiry: OnExpiry,
}

#[derive(Debug)]
enum Subject {
    Address(Expression),
    Endpoint(Expression),
    Mac(Expression),
    Label(String, Expression),
}

/// A value, or where it is in the event.
#[derive(Debug)]
enum Either<T> {
    Fixed(T),
    From(Expression),
}

/// Faults of mappings: JSON pointers into the list of mappings, and what is wrong there.
pub type Faults = Vec<(String, String)>;

impl Mappings {
    /// Compiles them.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn compile(mappings: &[Mapping]) -> Result<Self, Faults> {
        let mut faults = Faults::new();
        let compiled: Vec<Option<Compiled>> =
            mappings.iter().enumerate().map(|(index, mapping)| Compiled::new(index, mapping, &mut faults)).collect();
        for (index, mapping) in mappings.iter().enumerate() {
            if let Some(first) = mappings[..index].iter().position(|before| before.name == mapping.name) {
                let message = format!("mapping {} has the name `{}` already: choose another", first + 1, mapping.name);
                faults.push((format!("/{index}/name"), message));
            }
        }
        if faults.is_empty() { Ok(Self(compiled.into_iter().flatten().collect())) } else { Err(faults) }
    }

    /// Could a mapping match an event of this JSON text? Much cheaper than to parse it.
    #[must_use]
    pub fn may_match(&self, text: &[u8]) -> bool {
        // What is escaped is not found as it is.
        let escaped = || memchr::memmem::find(text, b"\\u").is_some();
        self.0.iter().any(|mapping| mapping.is_met(text)) || !self.0.is_empty() && escaped()
    }

    /// Does any ask for other records of Suricata than alerts?
    #[must_use]
    pub fn ask_for_types(&self) -> bool {
        self.0.iter().any(|mapping| mapping.typed)
    }

    /// What they make of an event. What cannot be evaluated is given to `failed`, and makes nothing.
    pub fn map(&self, event: &Value, variables: &mut Variables, failed: impl FnMut(String)) -> Vec<Mapped> {
        self.map_those(|_| true, event, variables, failed)
    }

    /// The same for a record of Suricata: a mapping that does not ask for the type of the record is about alerts.
    pub fn map_eve(&self, event: &Value, variables: &mut Variables, failed: impl FnMut(String)) -> Vec<Mapped> {
        let alert = event.get("event_type").and_then(Value::as_str) == Some("alert");
        self.map_those(|mapping| alert || mapping.typed, event, variables, failed)
    }

    fn map_those(
        &self,
        those: impl Fn(&Compiled) -> bool,
        event: &Value,
        variables: &mut Variables,
        mut failed: impl FnMut(String),
    ) -> Vec<Mapped> {
        let mut found = Vec::new();
        let mut set = false;
        for mapping in self.0.iter().filter(|mapping| those(mapping)) {
            if !set {
                variables.set(EVENT, event);
                set = true;
            }
            match mapping.apply(variables) {
                Ok(mapped) => found.extend(mapped),
                Err(why) => failed(format!("mapping {}: {why}", mapping.name)),
            }
        }
        found
    }
}

impl Compiled {
    fn new(index: usize, mapping: &Mapping, faults: &mut Faults) -> Option<Self> {
        let mut fault = |field: &str, message: String| faults.push((format!("/{index}{field}"), message));
        let mut parse = |field: &str, text: &str| match Expression::parse(text, &[EVENT]) {
            Ok(expression) => Some(expression),
            Err(why) => {
                fault(&format!("/{field}"), format!("`{}` {why}", field.rsplit('/').next().unwrap_or(field)));
                None
            }
        };
        let when = parse("when", &mapping.when);
        let value = mapping.value_from.as_ref().map(|text| parse("valueFrom", text));
        let instance = mapping.instance_from.as_ref().map(|text| parse("instanceFrom", text));
        let evidence = mapping.evidence_from.as_ref().map(|text| parse("evidenceFrom", text));
        let tag_from = mapping.tag_from.as_ref().map(|text| parse("tagFrom", text));
        let severity_from = mapping.severity_from.as_ref().map(|text| parse("severityFrom", text));
        let subject = Subject::new(&mapping.subject, &mut parse);
        let tag = match (&mapping.tag, tag_from) {
            (Some(tag), None) => Some(Either::Fixed(tag.clone())),
            (None, Some(from)) => from.map(Either::From),
            _ => {
                fault("", "a mapping has either `tag` or `tagFrom`".to_owned());
                None
            }
        };
        let severity = match (mapping.severity, severity_from) {
            (severity, None) => Some(Either::Fixed(severity.unwrap_or(SEVERITY))),
            (None, Some(from)) => from.map(Either::From),
            (Some(_), Some(_)) => {
                fault("/severity", "there is `severityFrom` as well: keep one of them".to_owned());
                None
            }
        };
        let subject = subject.map_err(|message| fault("/subject", message)).ok()?;
        let when = when?;
        Some(Self {
            name: mapping.name.clone(),
            need: when.need(EVENT),
            typed: when.asks_for_field(EVENT, "event_type"),
            when,
            subject: subject?,
            operation: mapping.operation,
            tag: tag?,
            value: all(value)?,
            instance: all(instance)?,
            severity: severity?,
            confidence: mapping.confidence.unwrap_or(100),
            evidence: all(evidence)?,
            ttl: mapping.ttl_seconds.map(|seconds| Duration::from_secs(seconds.into())),
            on_expiry: mapping.on_expiry,
        })
    }

    fn is_met(&self, text: &[u8]) -> bool {
        self.need.met(&mut |part| memchr::memmem::find(text, part.as_bytes()).is_some())
    }

    fn apply(&self, event: &Variables) -> Result<Option<Mapped>, String> {
        if !self.when.holds(event)? {
            return Ok(None);
        }
        let text_of = |expression: &Option<Expression>| match expression {
            Some(expression) => Ok(text::of(&expression.value(event)?)),
            None => Ok::<_, String>(String::new()),
        };
        Ok(Some(Mapped {
            reference: self.subject.refer(event)?,
            operation: self.operation,
            name: match &self.tag {
                Either::Fixed(name) => name.clone(),
                Either::From(expression) => tag_name(&expression.value(event)?, expression)?,
            },
            value: text::tidy(&text_of(&self.value)?, VALUE),
            instance: text::distinct(&text_of(&self.instance)?, INSTANCE),
            severity: match &self.severity {
                Either::Fixed(severity) => *severity,
                Either::From(expression) => severity(&expression.value(event)?, expression)?,
            },
            confidence: self.confidence,
            evidence: text::tidy(&text_of(&self.evidence)?, EVIDENCE),
            ttl: self.ttl,
            on_expiry: self.on_expiry,
        }))
    }
}

/// An expression that is not there is fine; one that is there and is none is not.
fn all(expression: Option<Option<Expression>>) -> Option<Option<Expression>> {
    match expression {
        None => Some(None),
        Some(None) => None,
        Some(Some(expression)) => Some(Some(expression)),
    }
}

impl Subject {
    /// `Ok(None)`: the fault was reported.
    fn new(
        subject: &resource::Subject,
        parse: &mut impl FnMut(&str, &str) -> Option<Expression>,
    ) -> Result<Option<Self>, String> {
        let resource::Subject { address_from, endpoint_from, mac_from, label_value_from, label } = subject;
        let mut of = |field: &str, text: &str| parse(&format!("subject/{field}"), text);
        let made = match (address_from, endpoint_from, mac_from, label_value_from) {
            (Some(text), None, None, None) => of("addressFrom", text).map(Self::Address),
            (None, Some(text), None, None) => of("endpointFrom", text).map(Self::Endpoint),
            (None, None, Some(text), None) => of("macFrom", text).map(Self::Mac),
            (None, None, None, Some(text)) => {
                let label = label.as_ref().ok_or("`labelValueFrom` needs `label`: the value of which label is it?")?;
                of("labelValueFrom", text).map(|expression| Self::Label(label.clone(), expression))
            }
            _ => {
                let fields = "`addressFrom`, `endpointFrom`, `macFrom` or `labelValueFrom`";
                return Err(format!("a subject has exactly one of {fields}"));
            }
        };
        match label {
            Some(_) if label_value_from.is_none() => Err("`label` goes with `labelValueFrom` only".to_owned()),
            _ => Ok(made),
        }
    }

    fn refer(&self, event: &Variables) -> Result<Reference, String> {
        let text = |expression: &Expression| match expression.value(event)? {
            Value::String(text) if !text.is_empty() => Ok(text),
            other => Err(wrong(expression, "text that is not empty", &other)),
        };
        match self {
            Self::Address(expression) => addresses(&expression.value(event)?, expression),
            Self::Endpoint(expression) => text(expression).map(Reference::Endpoint),
            Self::Label(label, expression) => text(expression).map(|value| Reference::Label(label.clone(), value)),
            Self::Mac(expression) => {
                let text = text(expression)?;
                let mac = parse_mac(&text.replace('-', ":"));
                mac.map(Reference::Mac).ok_or_else(|| wrong(expression, "a MAC", &text.into()))
            }
        }
    }
}

fn addresses(value: &Value, expression: &Expression) -> Result<Reference, String> {
    let one = |value: &Value| {
        let address = value.as_str().and_then(|text| text.parse().ok());
        address.ok_or_else(|| wrong(expression, "an address, or a list of addresses", value))
    };
    match value {
        Value::Array(all) if all.len() > ADDRESSES => Err(format!("`{}` has more than {ADDRESSES} addresses", expression.text())),
        Value::Array(all) => all.iter().map(one).collect::<Result<_, _>>().map(Reference::Addresses),
        value => Ok(Reference::Addresses(vec![one(value)?])),
    }
}

fn tag_name(value: &Value, expression: &Expression) -> Result<String, String> {
    match value {
        Value::String(name) if resource::is_tag_name(name) => Ok(name.clone()),
        other => Err(wrong(expression, "a tag's name: letters, digits, '_' '.' '-', at most 63 characters", other)),
    }
}

/// Brought to the nearer end of 0 to 10.
fn severity(value: &Value, expression: &Expression) -> Result<u8, String> {
    let number = value.as_f64().ok_or_else(|| wrong(expression, "a number", value))?;
    // A cast of floating point saturates.
    Ok(number.round().clamp(0.0, 10.0) as u8)
}

fn wrong(expression: &Expression, expected: &str, is: &Value) -> String {
    format!("`{}` must be {expected}, but is {}", expression.text(), text::tidy(&is.to_string(), 80))
}

#[cfg(test)]
mod tests;
