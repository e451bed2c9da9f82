//! The JSON schema of resources: for editors, and for [`parse`](super::parse) itself.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::Resource;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Resource).to_value();
    without_null(&mut schema);
    schema
});

/// The JSON schema (draft 2020-12) of one resource of any kind.
#[must_use]
pub fn schema() -> Value {
    SCHEMA.clone()
}

/// The same, shared.
pub(super) fn shared() -> &'static Value {
    &SCHEMA
}

/// Optional fields are left out, never null.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Object(fields) => {
            only_type(fields);
            only_alternative(fields);
            if fields.get("default").is_some_and(Value::is_null) {
                fields.remove("default");
            }
            fields.values_mut().for_each(without_null);
        }
        _ => {}
    }
}

fn only_type(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
}

fn only_alternative(schema: &mut Map<String, Value>) {
    let Some(Value::Array(alternatives)) = schema.get_mut("anyOf") else { return };
    alternatives.retain(|alternative| alternative.get("type").is_none_or(|name| name != "null"));
    if let [Value::Object(only)] = alternatives.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        schema.extend(only);
    }
}
