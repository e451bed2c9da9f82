//! Resources that a newer vnet wrote: what this one does not know of them it passes over, and keeps.

use serde_json::{Map, Value};

use super::schema;

/// Takes out the fields that the schema does not have; gives their paths, as `spec.members[2].later`. `None`: of a kind that is not known.
#[must_use]
pub fn without_unknown(resource: &mut Value) -> Option<Vec<String>> {
    let mut paths = Vec::new();
    let schema = schema_of(resource)?;
    walk(resource, schema, "", &mut |fields, name, path| {
        fields.remove(name);
        paths.push(path);
    });
    Some(paths)
}

/// Puts the fields of `before` that the schema does not have into `after`, where they are not: of lists, into the item of the same `name`,
/// or at the same place.
pub fn keep_unknown(before: &Value, after: &mut Value) {
    if let Some(schema) = schema_of(before) {
        keep(before, after, schema);
    }
}

fn schema_of(resource: &Value) -> Option<&'static Value> {
    let kind = resource.get("kind")?.as_str()?;
    let all = schema::shared().get("oneOf")?.as_array()?;
    all.iter().find(|s| s.pointer("/properties/kind/const").and_then(Value::as_str) == Some(kind))
}

fn resolved(schema: &'static Value) -> &'static Value {
    let pointer = schema.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix('#'));
    pointer.and_then(|at| schema::shared().pointer(at)).unwrap_or(schema)
}

fn properties(schema: &'static Value) -> Option<&'static Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

/// What becomes of a field that is not known: the fields around it, its name and its path.
type Found<'a> = dyn FnMut(&mut Map<String, Value>, &str, String) + 'a;

fn walk(value: &mut Value, schema: &'static Value, path: &str, found: &mut Found<'_>) {
    let schema = resolved(schema);
    match value {
        Value::Object(fields) => {
            let Some(known) = properties(schema) else { return };
            for name in fields.keys().cloned().collect::<Vec<_>>() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match (known.get(&name), fields.get_mut(&name)) {
                    (Some(schema), Some(value)) => walk(value, schema, &path, found),
                    _ => found(fields, &name, path),
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = schema.get("items") else { return };
            items.iter_mut().enumerate().for_each(|(i, item)| walk(item, schema, &format!("{path}[{i}]"), found));
        }
        _ => {}
    }
}

fn keep(before: &Value, after: &mut Value, schema: &'static Value) {
    let schema = resolved(schema);
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let Some(known) = properties(schema) else { return };
            for (name, old) in before {
                match (known.get(name), after.get_mut(name)) {
                    (Some(schema), Some(new)) => keep(old, new, schema),
                    (None, None) => drop(after.insert(name.clone(), old.clone())),
                    _ => {}
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            let Some(schema) = schema.get("items") else { return };
            let same_length = before.len() == after.len();
            for (i, new) in after.iter_mut().enumerate() {
                let named = new.get("name").cloned();
                let old = match &named {
                    Some(name) => before.iter().find(|old| old.get("name") == Some(name)),
                    None => before.get(i).filter(|old| same_length && old.get("name").is_none()),
                };
                if let Some(old) = old {
                    keep(old, new, schema);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn newer() -> Value {
        json!({
            "kind": "LoadBalancer", "apiVersion": "vnet/v1alpha1", "later": 1,
            "metadata": { "name": "web", "labels": { "any": "label" } },
            "spec": {
                "vips": ["10.0.0.1"], "ports": [80], "protocol": "TCP", "nextTo": { "x": 1 },
                "members": [{ "address": "10.0.0.2", "name": "a", "colour": "red" }, { "address": "10.0.0.3", "name": "b" }]
            }
        })
    }

    #[test]
    fn an_older_agent_reads_what_it_knows() {
        let mut value = newer();
        let mut paths = without_unknown(&mut value).unwrap();
        paths.sort();
        assert_eq!(paths, ["later", "spec.members[0].colour", "spec.nextTo"]);
        assert_eq!(value.pointer("/metadata/labels/any"), Some(&json!("label")));
        serde_json::from_value::<crate::resource::Resource>(value).unwrap();
        assert_eq!(without_unknown(&mut json!({ "kind": "VpnConnection" })), None);
    }

    #[test]
    fn and_what_it_does_not_know_survives_its_write() {
        let mut after = newer();
        without_unknown(&mut after).unwrap();
        // Somebody changes the member's weight, and the order.
        after["spec"]["members"] =
            json!([{ "address": "10.0.0.3", "name": "b" }, { "address": "10.0.0.2", "name": "a", "weight": 3 }]);
        keep_unknown(&newer(), &mut after);
        assert_eq!(after["later"], json!(1));
        assert_eq!(after["spec"]["nextTo"], json!({ "x": 1 }));
        assert_eq!(after["spec"]["members"][1], json!({ "address": "10.0.0.2", "name": "a", "weight": 3, "colour": "red" }));
        assert_eq!(after["spec"]["members"][0].get("colour"), None);
        // What is known and was taken away stays away.
        after["spec"].as_object_mut().unwrap().remove("members");
        keep_unknown(&newer(), &mut after);
        assert_eq!(after["spec"].get("members"), None);
    }
}
