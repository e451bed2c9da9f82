//! Mappings: what is wrong with them, what they make of events, and how much of that they look at.

use serde_json::json;

use super::super::tests::EXAMPLES;
use super::*;
use crate::random::Random;

fn mapping(more: Value) -> Mapping {
    let mut fields = json!({"name": "m", "when": "true", "subject": {"endpointFrom": "event.vm"}, "tag": "t"});
    for (field, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(fields.as_object_mut().unwrap().remove(field)),
            value => fields[field] = value.clone(),
        }
    }
    serde_json::from_value(fields).unwrap()
}

fn compiled(more: Value) -> Mappings {
    Mappings::compile(&[mapping(more)]).unwrap()
}

fn map(mappings: &Mappings, event: Value) -> Result<Mapped, String> {
    let mut failed = Vec::new();
    let mut found = mappings.map(&event, &mut Variables::default(), |why| failed.push(why));
    match (found.pop(), failed.pop()) {
        (Some(mapped), None) => Ok(mapped),
        (None, Some(why)) => Err(why),
        other => panic!("{event}: {other:?}"),
    }
}

#[test]
fn faults_are_where_they_are() {
    for (more, at, part) in [
        (json!({"when": "event.a =="}), "/0/when", "`when` is no CEL expression"),
        (json!({"when": "evnt.a == 1"}), "/0/when", "knows no variable `evnt`: there are event"),
        (json!({"valueFrom": "("}), "/0/valueFrom", "`valueFrom` is no CEL"),
        (json!({"instanceFrom": "("}), "/0/instanceFrom", "`instanceFrom` is no CEL"),
        (json!({"evidenceFrom": "("}), "/0/evidenceFrom", "`evidenceFrom` is no CEL"),
        (json!({"severityFrom": "("}), "/0/severityFrom", "`severityFrom` is no CEL"),
        (json!({"severityFrom": "1", "severity": 1}), "/0/severity", "keep one of them"),
        (json!({"tagFrom": "event.t"}), "/0", "either `tag` or `tagFrom`"),
        (json!({"tag": null}), "/0", "either `tag` or `tagFrom`"),
        (json!({"tag": null, "tagFrom": "("}), "/0/tagFrom", "`tagFrom` is no CEL"),
        (json!({"subject": {}}), "/0/subject", "exactly one of"),
        (json!({"subject": {"endpointFrom": "event.a", "macFrom": "event.b"}}), "/0/subject", "exactly one of"),
        (json!({"subject": {"endpointFrom": "("}}), "/0/subject/endpointFrom", "`endpointFrom` is no CEL"),
        (json!({"subject": {"labelValueFrom": "event.a"}}), "/0/subject", "needs `label`"),
        (json!({"subject": {"endpointFrom": "event.a", "label": "x"}}), "/0/subject", "goes with `labelValueFrom` only"),
    ] {
        let faults = Mappings::compile(&[mapping(more.clone())]).unwrap_err();
        assert!(faults.len() == 1 && faults[0].0 == at && faults[0].1.contains(part), "{more}: {faults:?}");
    }
    let twice = Mappings::compile(&[mapping(json!({})), mapping(json!({}))]).unwrap_err();
    assert_eq!(twice, [("/1/name".to_owned(), "mapping 1 has the name `m` already: choose another".to_owned())]);
}

#[test]
fn subjects_are_addresses_names_macs_or_labels() {
    let of = |subject: Value, event: Value| map(&compiled(json!({ "subject": subject })), event).map(|mapped| mapped.reference);
    let address = |event: Value| of(json!({"addressFrom": "event.a"}), event);
    assert_eq!(address(json!({"a": "10.0.0.1"})), Ok(Reference::Addresses(vec!["10.0.0.1".parse().unwrap()])));
    assert_eq!(
        address(json!({"a": ["10.0.0.1", "fd00::1"]})),
        Ok(Reference::Addresses(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]))
    );
    let full = "0000:0000:0000:0000:0000:0000:0000:0001";
    assert_eq!(address(json!({ "a": full })), Ok(Reference::Addresses(vec!["::1".parse().unwrap()])), "as Suricata writes them");
    for wrong in [json!("10.0.0.1/24"), json!(""), json!(7), json!(null), json!(["10.0.0.1", "x"])] {
        assert!(address(json!({ "a": wrong })).unwrap_err().contains("must be an address, or a list"), "{wrong}");
    }
    assert!(address(json!({"a": vec!["10.0.0.1"; 17]})).unwrap_err().contains("more than 16"));
    assert!(address(json!({})).unwrap_err().contains("mapping m: `event.a` cannot be evaluated: No such key: a"));
    let mac = |text: &str| of(json!({"macFrom": "event.m"}), json!({ "m": text }));
    assert_eq!(mac("52-54-00-AB-cd-01"), Ok(Reference::Mac([0x52, 0x54, 0, 0xab, 0xcd, 1])));
    assert!(mac("52:54").unwrap_err().contains("must be a MAC"));
    let label = of(json!({"labelValueFrom": "event.pod", "label": "k8s/pod"}), json!({"pod": "web"}));
    assert_eq!(label, Ok(Reference::Label("k8s/pod".into(), "web".into())));
    assert!(of(json!({"endpointFrom": "event.vm"}), json!({"vm": ""})).unwrap_err().contains("not empty"));
}

#[test]
fn values_are_bounded_and_brought_into_range() {
    let all = compiled(json!({
        "valueFrom": "event.v", "instanceFrom": "event.i", "severityFrom": "event.s", "evidenceFrom": "event.e",
        "ttlSeconds": 60, "onExpiry": "hold", "operation": "clear", "confidence": 70,
    }));
    let long = "ä".repeat(10_000);
    let mapped = map(&all, json!({"vm": "a", "v": long, "i": long, "s": 10.6, "e": long})).unwrap();
    assert!(mapped.value.len() <= 1024 && mapped.instance.len() <= 256 && mapped.evidence.len() <= 4096);
    assert!(mapped.value.ends_with('…') && mapped.evidence.ends_with('…'));
    assert_eq!((mapped.severity, mapped.confidence, mapped.ttl), (10, 70, Some(Duration::from_secs(60))));
    assert_eq!((mapped.operation, mapped.on_expiry), (Operation::Clear, OnExpiry::Hold));
    for (severity, expected) in [(json!(-3), 0), (json!(4.5), 5), (json!(1e300), 10), (json!(u64::MAX), 10), (json!(3), 3)] {
        assert_eq!(map(&all, json!({"vm": "a", "v": 1, "i": true, "s": severity, "e": null})).unwrap().severity, expected);
    }
    let mapped = map(&all, json!({"vm": "a", "v": {"b": [1, 2]}, "i": 17, "s": 1, "e": null})).unwrap();
    assert_eq!((mapped.value.as_str(), mapped.instance.as_str(), mapped.evidence.as_str()), (r#"{"b":[1,2]}"#, "17", ""));
    assert!(map(&all, json!({"vm": "a", "v": 1, "i": 1, "s": "high", "e": 1})).unwrap_err().contains("must be a number"));
    let named = compiled(json!({"tag": null, "tagFrom": "event.t"}));
    assert_eq!(map(&named, json!({"vm": "a", "t": "ids.x"})).unwrap().name, "ids.x");
    for wrong in ["", "a b", ".a", "a\u{1b}", &"a".repeat(64)] {
        assert!(map(&named, json!({"vm": "a", "t": wrong})).unwrap_err().contains("must be a tag's name"), "{wrong}");
    }
    assert_eq!(map(&compiled(json!({})), json!({"vm": "a"})).unwrap().severity, 5);
}

#[test]
fn records_of_suricata_are_alerts_unless_a_mapping_asks_for_others() {
    let map = |mappings: &Mappings, kind: &str| {
        mappings.map_eve(&json!({"event_type": kind, "vm": "a"}), &mut Variables::default(), |why| panic!("{why}")).len()
    };
    let any = compiled(json!({}));
    assert_eq!((map(&any, "alert"), map(&any, "flow")), (1, 0));
    let asking = compiled(json!({"when": "event.event_type in [\"alert\", \"anomaly\"]"}));
    assert_eq!((map(&asking, "alert"), map(&asking, "anomaly"), map(&asking, "flow")), (1, 1, 0));
}

#[test]
fn what_no_mapping_can_match_is_told_by_its_text() {
    for (name, yaml, events) in EXAMPLES {
        let mappings = Mappings::compile(&super::super::tests::tag_sources(yaml)[0].spec.mappings).unwrap();
        let (mut passed, mut all) = (0, 0);
        for line in events.lines() {
            let found = mappings.map(&serde_json::from_str(line).unwrap(), &mut Variables::default(), |why| panic!("{why}"));
            let may = mappings.may_match(line.as_bytes());
            assert!(may || found.is_empty(), "{name}: {line}");
            // The same, said with escapes.
            let escaped: String = line.replace("alert", "\\u0061lert").replace("login", "l\\u006fgin");
            assert!(escaped == line || mappings.may_match(escaped.as_bytes()));
            (passed, all) = (passed + usize::from(may), all + 1);
        }
        assert!(passed > 0 && (name != "suricata" || passed < all), "{name}: {passed} of {all}");
    }
}

/// Whatever an event looks like: no panic, and what comes out is within its bounds.
#[test]
fn mutated_events_are_mapped_or_fail() {
    let mut random = Random(7);
    let (mut mapped, mut failed) = (0, 0);
    for (_, yaml, events) in EXAMPLES {
        let mappings = Mappings::compile(&super::super::tests::tag_sources(yaml)[0].spec.mappings).unwrap();
        let mut variables = Variables::default();
        for line in events.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            for _ in 0..300 {
                let mut event = event.clone();
                for _ in 0..=random.below(3) {
                    mutate(&mut event, &mut random);
                }
                let found = mappings.map(&event, &mut variables, |_| failed += 1);
                mapped += found.len();
                for m in found {
                    assert!(resource::is_tag_name(&m.name) && m.severity <= 10 && m.value.len() <= VALUE, "{m:?}");
                    assert!(m.instance.len() <= INSTANCE && m.evidence.len() <= EVIDENCE, "{m:?}");
                }
            }
        }
    }
    assert!(mapped > 500 && failed > 500, "{mapped} {failed}");
}

/// Changes something somewhere in it.
fn mutate(value: &mut Value, random: &mut Random) {
    let strange = [
        json!(null),
        json!(-1),
        json!(1e308),
        json!(""),
        json!([]),
        json!({}),
        json!("x".repeat(9000)),
        json!([[{}]]),
        json!(true),
    ];
    let deeper = !random.one_in(4);
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let key = fields.keys().nth(random.index(fields.len())).unwrap().clone();
            match random.below(6) {
                0 => drop(fields.remove(&key)),
                1 => drop(fields.insert(format!("{key}\u{0}"), Value::Null)),
                _ => mutate(&mut fields[&key], random),
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let index = random.index(items.len());
            mutate(&mut items[index], random);
        }
        value => *value = strange[random.index(strange.len())].clone(),
    }
}
