//! Criteria: expressions in the Common Expression Language (<https://cel.dev>), as resources have them.
//!
//! Numbers of JSON that are whole are `int`, so that they can be calculated with whatever literals are written.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use cel::common::ast::{EntryExpr, Expr, LiteralValue, operators};
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt};
use cel::common::value::Val;
use cel::objects::Key;
use cel::{Context, IdedExpr, Program, Value};

/// Brackets and prefix operators within each other, at most: the parser calls itself for each.
const DEEPEST: usize = 32;
/// Of the thread that parses, in bytes: a level of brackets takes tens of KiB in a debug build.
const STACK: usize = 32 << 20;

/// Names of types: values of their own.
const TYPES: [&str; 9] = ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "uint"];

/// An expression, parsed.
#[derive(Debug)]
pub struct Expression {
    text: String,
    program: Program,
}

/// What all expressions can call. To make it takes longer than to evaluate most of them.
static FUNCTIONS: LazyLock<Context<'static, 'static>> = LazyLock::new(Context::default);

/// The values of an expression's variables.
pub struct Variables(Context<'static, 'static>);

impl Default for Variables {
    fn default() -> Self {
        Self(FUNCTIONS.new_inner_scope())
    }
}

/// What the text of a JSON object must contain for an expression over it to hold: cheap to look for before it is parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing that is known.
    Nothing,
    /// This string of JSON, with its quotes.
    Text(String),
    /// Each of these.
    All(Vec<Need>),
    /// One of these.
    Any(Vec<Need>),
}

impl Need {
    /// Is it there, as far as `contains` tells?
    pub fn met(&self, contains: &mut impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::Nothing => true,
            Self::Text(text) => contains(text),
            Self::All(needs) => needs.iter().all(|need| need.met(contains)),
            Self::Any(needs) => needs.iter().any(|need| need.met(contains)),
        }
    }

    /// Nothing that is left out of `parts` can be missing.
    fn all(parts: Vec<Self>) -> Self {
        let mut parts: Vec<Self> = parts.into_iter().filter(|part| *part != Self::Nothing).collect();
        match parts.len() {
            0 => Self::Nothing,
            1 => parts.remove(0),
            _ => Self::All(parts),
        }
    }

    fn any(parts: Vec<Self>) -> Self {
        if parts.contains(&Self::Nothing) { Self::Nothing } else { Self::Any(parts) }
    }
}

impl Variables {
    /// Gives a variable its value.
    pub fn set(&mut self, name: &str, value: &serde_json::Value) {
        self.0.add_variable_as_val(name, of_json(value));
    }
}

impl Expression {
    /// Reads an expression that may use these variables.
    ///
    /// # Errors
    /// Why it is none, as the end of a sentence: what is wrong, and where in it.
    pub fn parse(text: &str, variables: &[&str]) -> Result<Self, String> {
        if depth(text) > DEEPEST {
            return Err(format!("has more than {DEEPEST} brackets within each other"));
        }
        let parsed = std::thread::scope(|scope| {
            let parser = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || Program::compile(text));
            // The parser is made by a generator: should it ever panic on a text, that must not end the agent.
            parser.map(|parser| parser.join())
        });
        let program = match parsed.map_err(|e| format!("cannot be parsed now: starting a thread: {e}"))? {
            Ok(Ok(program)) => program,
            Ok(Err(errors)) => {
                let first =
                    errors.errors.first().map_or_else(|| errors.to_string(), |e| format!("{} (column {})", e.msg, e.pos.1));
                return Err(format!("is no CEL expression: {first}"));
            }
            Err(_) => return Err("is no CEL expression".to_owned()),
        };
        if let Some(unknown) = unknown(program.expression(), &mut variables.to_vec()) {
            return Err(format!("knows no variable `{unknown}`: there are {}", variables.join(", ")));
        }
        Ok(Self { text: text.to_owned(), program })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Does it ask for this variable?
    #[must_use]
    pub fn asks_for(&self, variable: &str) -> bool {
        self.program.references().has_variable(variable)
    }

    /// Does it ask for this field of this variable?
    #[must_use]
    pub fn asks_for_field(&self, variable: &str, field: &str) -> bool {
        any(self.program.expression(), &mut |e| match &e.expr {
            Expr::Select(select) => select.field == field && is_ident(&select.operand, variable),
            Expr::Call(call) if call.func_name == operators::INDEX => {
                matches!(&call.args[..], [of, at] if is_ident(of, variable) && text(at) == Some(field))
            }
            _ => false,
        })
    }

    /// What must be in the JSON that `variable` stands for so that it can hold. JSON with `\u` escapes may say the same in other
    /// words.
    #[must_use]
    pub fn need(&self, variable: &str) -> Need {
        need(self.program.expression(), variable)
    }

    /// Its value, as JSON.
    ///
    /// # Errors
    /// It cannot be evaluated with these values, or its value is nothing that JSON has.
    pub fn value(&self, variables: &Variables) -> Result<serde_json::Value, String> {
        let failed = |why: String| format!("`{}` cannot be evaluated: {why}", self.text);
        // Whatever an expression does to the library that evaluates it, it must not end the agent.
        let value = catch_unwind(AssertUnwindSafe(|| self.program.execute(&variables.0)));
        let value = value.map_err(|_| failed("the evaluation broke down".to_owned()))?.map_err(|e| failed(e.to_string()))?;
        to_json(&value).ok_or_else(|| failed(format!("its value is a {}", value.type_of())))
    }

    /// Does it hold?
    ///
    /// # Errors
    /// It cannot be evaluated with these values, or its value is not true or false.
    pub fn holds(&self, variables: &Variables) -> Result<bool, String> {
        match self.value(variables)? {
            serde_json::Value::Bool(holds) => Ok(holds),
            other => Err(format!("`{}` must be true or false, but is {other}", self.text)),
        }
    }
}

/// What is compared with text must be in the JSON as this very text: `event.a.b == "x"`, `event.a in ["x", "y"]`.
fn need(e: &IdedExpr, variable: &str) -> Need {
    let Expr::Call(call) = &e.expr else { return Need::Nothing };
    let (name, [one, other]) = (call.func_name.as_str(), &call.args[..]) else { return Need::Nothing };
    let of = |text: &str| {
        // These may be escaped, or have to be.
        let plain = !text.contains(['/', '"', '\\']) && !text.contains(char::is_control);
        if plain { Need::Text(format!("\"{text}\"")) } else { Need::Nothing }
    };
    match name {
        operators::LOGICAL_AND => Need::all(vec![need(one, variable), need(other, variable)]),
        operators::LOGICAL_OR => Need::any(vec![need(one, variable), need(other, variable)]),
        operators::EQUALS => match (text(one), text(other)) {
            (None, Some(text)) if is_path(one, variable) => of(text),
            (Some(text), None) if is_path(other, variable) => of(text),
            _ => Need::Nothing,
        },
        operators::IN if is_path(one, variable) => match &other.expr {
            Expr::List(list) if !list.elements.is_empty() => {
                Need::any(list.elements.iter().map(|e| text(e).map_or(Need::Nothing, of)).collect())
            }
            _ => Need::Nothing,
        },
        _ => Need::Nothing,
    }
}

fn is_ident(e: &IdedExpr, variable: &str) -> bool {
    matches!(&e.expr, Expr::Ident(name) if name == variable)
}

/// A field of the variable, or of a field of it…
fn is_path(e: &IdedExpr, variable: &str) -> bool {
    match &e.expr {
        Expr::Select(select) => !select.test && (is_ident(&select.operand, variable) || is_path(&select.operand, variable)),
        _ => false,
    }
}

fn text(e: &IdedExpr) -> Option<&str> {
    match &e.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// Is there a part for which `holds` does?
fn any(e: &IdedExpr, holds: &mut impl FnMut(&IdedExpr) -> bool) -> bool {
    if holds(e) {
        return true;
    }
    match &e.expr {
        Expr::Call(call) => call.target.iter().map(|t| t.as_ref()).chain(&call.args).any(|e| any(e, holds)),
        Expr::List(list) => list.elements.iter().any(|e| any(e, holds)),
        Expr::Select(select) => any(&select.operand, holds),
        Expr::Map(map) => map.entries.iter().any(|entry| entry_any(&entry.expr, holds)),
        Expr::Struct(it) => it.entries.iter().any(|entry| entry_any(&entry.expr, holds)),
        Expr::Comprehension(c) => {
            [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result].into_iter().any(|e| any(e, holds))
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => false,
    }
}

fn entry_any(entry: &EntryExpr, holds: &mut impl FnMut(&IdedExpr) -> bool) -> bool {
    match entry {
        EntryExpr::StructField(field) => any(&field.value, holds),
        EntryExpr::MapEntry(pair) => any(&pair.key, holds) || any(&pair.value, holds),
    }
}

/// The first name that is neither a variable nor bound by a macro around it.
fn unknown<'e>(e: &'e IdedExpr, known: &mut Vec<&'e str>) -> Option<&'e str> {
    match &e.expr {
        Expr::Ident(name) => (!known.contains(&name.as_str()) && !TYPES.contains(&name.as_str())).then_some(name),
        Expr::Call(call) => call.target.iter().map(|t| t.as_ref()).chain(&call.args).find_map(|e| unknown(e, known)),
        Expr::List(list) => list.elements.iter().find_map(|e| unknown(e, known)),
        Expr::Select(select) => unknown(&select.operand, known),
        Expr::Map(map) => map.entries.iter().find_map(|entry| entry_unknown(&entry.expr, known)),
        Expr::Struct(it) => it.entries.iter().find_map(|entry| entry_unknown(&entry.expr, known)),
        Expr::Comprehension(c) => {
            let bound = known.len();
            let first = [&c.iter_range, &c.accu_init].into_iter().find_map(|e| unknown(e, known));
            known.extend([c.iter_var.as_str(), c.accu_var.as_str()].into_iter().chain(c.iter_var2.as_deref()));
            let found = first.or_else(|| [&c.loop_cond, &c.loop_step, &c.result].into_iter().find_map(|e| unknown(e, known)));
            known.truncate(bound);
            found
        }
        Expr::Literal(_) | Expr::Unspecified => None,
    }
}

fn entry_unknown<'e>(entry: &'e EntryExpr, known: &mut Vec<&'e str>) -> Option<&'e str> {
    match entry {
        EntryExpr::StructField(field) => unknown(&field.value, known),
        EntryExpr::MapEntry(pair) => unknown(&pair.key, known).or_else(|| unknown(&pair.value, known)),
    }
}

/// How deep brackets, and runs of prefix operators, go; those in string literals count too.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest, mut prefixes, mut before) = (0_usize, 0, 0_usize, ' ');
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            // `a ? b : c ? d : …` and chains of operators nest too.
            '!' | '?' => prefixes += 1,
            '-' if !before.is_alphanumeric() => prefixes += 1,
            _ => {}
        }
        before = c;
        deepest = deepest.max(open + prefixes);
    }
    deepest
}

fn of_json(value: &serde_json::Value) -> Box<dyn Val> {
    use serde_json::Value as Json;
    match value {
        Json::Null => Box::new(CelNull),
        Json::Bool(b) => Box::new(CelBool::from(*b)),
        Json::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), ..) => Box::new(CelInt::from(n)),
            (_, Some(n), _) => Box::new(CelUInt::from(n)),
            (.., n) => Box::new(CelDouble::from(n.unwrap_or_default())),
        },
        Json::String(s) => Box::new(CelString::from(s.clone())),
        Json::Array(items) => Box::new(CelList::from(items.iter().map(of_json).collect::<Vec<_>>())),
        Json::Object(fields) => {
            let field = |(name, value): (&String, &Json)| (CelMapKey::from(Key::from(name.clone())), of_json(value));
            Box::new(CelMap::from(fields.iter().map(field).collect::<HashMap<_, _>>()))
        }
    }
}

fn to_json(value: &Value) -> Option<serde_json::Value> {
    use serde_json::Value as Json;
    Some(match value {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(n) => (*n).into(),
        Value::UInt(n) => (*n).into(),
        Value::Float(n) => serde_json::Number::from_f64(*n)?.into(),
        Value::String(s) => Json::String(s.to_string()),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Value::Map(map) => {
            let pairs = map.map.iter().map(|(key, value)| Some((key.to_string(), to_json(value)?)));
            Json::Object(pairs.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn variables(event: serde_json::Value) -> Variables {
        let mut v = Variables::default();
        v.set("event", &event);
        v
    }

    #[test]
    fn values_of_json_can_be_asked_for_and_calculated_with() {
        let v = variables(json!({"alert": {"severity": 2, "tags": ["a", "b"]}, "src_ip": "10.0.0.1", "ratio": 0.5}));
        for (text, value) in [
            ("event.alert.severity <= 2", json!(true)),
            ("10 - event.alert.severity * 2", json!(6)),
            ("event.alert.tags.exists(t, t == \"b\")", json!(true)),
            ("[event.src_ip, \"::1\"]", json!(["10.0.0.1", "::1"])),
            ("has(event.dest_ip)", json!(false)),
            ("event.ratio > 0.25 ? \"much\" : \"little\"", json!("much")),
            ("event.src_ip.matches(\"^10[.]\")", json!(true)),
        ] {
            let e = Expression::parse(text, &["event"]).unwrap();
            assert_eq!(e.value(&v), Ok(value), "{text}");
            assert!(e.asks_for("event") && !e.asks_for("tags"));
        }
    }

    #[test]
    fn what_breaks_the_library_is_a_fault_of_the_expression() {
        let mut functions = Context::default();
        // Without the message of a panic: it is meant.
        let broken = |n: i64| -> i64 { if n > 1 { std::panic::resume_unwind(Box::new("broken")) } else { n } };
        functions.add_function("broken", broken).unwrap();
        let v = Variables(functions);
        let e = |text: &str| Expression::parse(text, &[]).unwrap();
        assert_eq!(e("broken(1) == 1").holds(&v), Ok(true));
        let why = "`broken(2) == 2` cannot be evaluated: the evaluation broke down";
        assert_eq!(e("broken(2) == 2").holds(&v), Err(why.to_owned()));
        assert_eq!(e("broken(2) == 2").value(&v), Err(why.to_owned()));
    }

    #[test]
    fn what_must_be_in_the_text_is_known() {
        let need = |text: &str| Expression::parse(text, &["event"]).unwrap().need("event");
        let is = |text: &str| Need::Text(format!("\"{text}\""));
        for (text, expected) in [
            ("event.event_type == \"alert\" && event.alert.severity <= 2", is("alert")),
            ("\"alert\" == event.event_type", is("alert")),
            ("event.a == \"x\" && event.b.c == \"y\"", Need::All(vec![is("x"), is("y")])),
            ("event.a == \"x\" || event.b == \"y\"", Need::Any(vec![is("x"), is("y")])),
            ("event.a in [\"x\", \"y\"]", Need::Any(vec![is("x"), is("y")])),
            ("event.a == \"x\" || event.b > 1", Need::Nothing),
            ("event.a != \"x\"", Need::Nothing),
            ("!(event.a == \"x\")", Need::Nothing),
            ("event.a in []", Need::Nothing),
            ("event.a + \"\" == \"x\"", Need::Nothing),
            ("event.a == \"a/b\"", Need::Nothing),
            ("event.a == \"say \\\"x\\\"\"", Need::Nothing),
        ] {
            assert_eq!(need(text), expected, "{text}");
        }
        let e = Expression::parse("[event].exists(e, e.x == 1) || event.event_type == \"a\" || event[\"b\"] == 1", &["event"]);
        let e = e.unwrap();
        assert!(e.asks_for_field("event", "event_type") && e.asks_for_field("event", "b"));
        assert!(!e.asks_for_field("event", "x") && !e.asks_for_field("tags", "event_type"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let parse = |text: &str| Expression::parse(text, &["tags", "labels"]).map(|_| ()).unwrap_err();
        assert!(parse("tags.exists(t, t.name ==").starts_with("is no CEL expression: "));
        assert!(parse("tag.size() > 0").contains("no variable `tag`: there are tags, labels"));
        assert!(parse(&"(".repeat(3000)).contains("brackets"));
        assert!(parse(&"!".repeat(3000)).contains("brackets"));
        let deep = format!("{}1{}", "(".repeat(DEEPEST), ")".repeat(DEEPEST));
        assert_eq!(
            parse(&format!("{deep} == x")),
            "knows no variable `x`: there are tags, labels",
            "it fits the stack of a thread"
        );
        assert!(parse("").starts_with("is no CEL expression"));
        let v = variables(json!({"a": 1}));
        let e = Expression::parse("event.b == 1", &["event"]).unwrap();
        assert!(e.holds(&v).unwrap_err().contains("cannot be evaluated: No such key: b"));
        let e = Expression::parse("event.a", &["event"]).unwrap();
        assert_eq!(e.holds(&v).unwrap_err(), "`event.a` must be true or false, but is 1");
    }
}
