//! A store that is restored while it is in use, or while something goes wrong.

use serde_json::{Value, json};
use vnet_common::etcd::Write;
use vnet_common::fleet::{Key, SERIAL};

use crate::etcd::Etcd;
use crate::fleet::{lb, others};
use crate::proxy::{self, Lost};
use crate::support::{Host, Ran};

/// What `store backup` would write of these.
fn backup(values: &[(String, Value)]) -> String {
    let mut counts = std::collections::BTreeMap::<&str, u64>::new();
    for (key, _) in values {
        let sort = match Key::parse(key) {
            Some(Key::Resource(..)) => "resource",
            Some(Key::Registration(_)) => "host",
            Some(Key::Rollout(_)) => "rollout",
            _ => "unknown value",
        };
        *counts.entry(sort).or_default() += 1;
    }
    let values: Vec<_> = values.iter().map(|(key, value)| json!({"key": key, "revision": 5, "value": value})).collect();
    json!({"version": 1, "at_ms": 1, "store": "etcd://x:1", "revision": 9, "counts": counts, "values": values}).to_string()
}

fn resource(name: &str) -> (String, Value) {
    (lb(name).to_string(), json!({"resource": {"kind": "LoadBalancer", "metadata": {"name": name}}}))
}

/// More than a transaction has room for.
fn many() -> Vec<(String, Value)> {
    (0..300).map(|i| resource(&format!("lb{i}"))).collect()
}

fn restore(host: &Host, etcd: &Etcd, more: &[&str]) -> Ran {
    host.run(&[&["store", "restore", "fleet.json", "--store", &etcd.url()], more].concat())
}

#[test]
fn what_is_half_restored_is_not_in_force() {
    let etcd = Etcd::start();
    let host = Host::start();
    etcd.write(&others(&[(&lb("old"), json!({"resource": {}})), (&Key::Registration("h1".into()), json!({"number": 1}))]));
    // The last value is more than the store takes.
    let large = ("/vnet/v1/desired/aaa".to_owned(), json!("x".repeat(2 << 20)));
    host.file("fleet.json", &backup(&[many(), vec![large]].concat()));
    let ran = restore(&host, &etcd, &["--replace"]);
    let expected = "300 values were written before, and hosts keep what they have until all are there: do it again";
    assert!(ran.code == 1 && ran.err.contains(expected), "{ran:?}");
    assert_eq!(etcd.get_raw(SERIAL), None, "hosts would go by it");
    assert!(etcd.get(&lb("old")).is_some(), "what is to go goes last");
    // Nobody else says that it is all.
    for args in [["host", "drain", "h1"], ["host", "add", "h2"]] {
        let ran = host.run(&[&args[..], &["--store", &etcd.url()]].concat());
        assert!(ran.code == 1 && ran.err.contains("nothing was written: the store is being filled by"), "{ran:?}");
    }
    let ran = host.run(&["store", "init", "--operator", "alice", "--no-auth", "--store", &etcd.url()]);
    assert_eq!((ran.code, etcd.get_raw(SERIAL)), (0, None), "{ran:?}");

    host.file("fleet.json", &backup(&many()));
    let ran = restore(&host, &etcd, &["--replace"]);
    assert!(ran.code == 0 && ran.out.contains("had been written half by something that was interrupted"), "{ran:?}");
    assert!(etcd.get_raw(SERIAL).unwrap().0.as_str().unwrap().ends_with(": store restore"));
    let mut keys: Vec<String> = many().into_iter().map(|(key, _)| key).collect();
    keys.sort_unstable();
    assert_eq!(etcd.keys("/vnet/v1/desired/resources/"), keys);
    let ran = restore(&host, &etcd, &[]);
    assert!(ran.code == 0 && ran.out.contains("0 values were written") && !ran.out.contains("half"), "{ran:?}");
}

#[test]
fn nobody_says_of_a_store_that_it_is_set_up_while_another_fills_it() {
    for args in [&["host", "add", "h1"][..], &["store", "init", "--operator", "alice", "--no-auth"]] {
        let etcd = Etcd::start();
        let host = Host::start();
        let store = format!("etcd://127.0.0.1:{}", proxy::start(&etcd.access("root"), Lost::Filling));
        let ran = host.run(&[args, &["--store", &store]].concat());
        assert_eq!((ran.code, etcd.get_raw(SERIAL)), (i32::from(args[0] == "host"), None), "{ran:?}");
        assert!(ran.code == 0 || ran.err.contains("the store is being filled by"), "{ran:?}");
    }
}

#[test]
fn nothing_is_restored_over_what_somebody_else_writes() {
    for number in [1, 300] {
        let etcd = Etcd::start();
        let host = Host::start();
        etcd.write(&others(&[]));
        host.file("fleet.json", &backup(&many()[..number]));
        let store = format!("etcd://127.0.0.1:{}", proxy::start(&etcd.access("root"), Lost::Race));
        let ran = host.run(&["store", "restore", "fleet.json", "--store", &store]);
        assert!(ran.code == 1 && ran.err.contains("nothing was written: somebody else changes the store"), "{ran:?}");
        assert_eq!(etcd.keys("/vnet/"), [SERIAL]);
    }
}

#[test]
fn a_connection_that_breaks_does_not_hide_what_was_restored() {
    for (lost, code) in [(Lost::Answer, 0), (Lost::Request, 1)] {
        let etcd = Etcd::start();
        let host = Host::start();
        host.file("fleet.json", &backup(&many()[..3]));
        let store = format!("etcd://127.0.0.1:{}", proxy::start(&etcd.access("root"), lost));
        let ran = host.run(&["store", "restore", "fleet.json", "--store", &store]);
        assert_eq!((ran.code, etcd.keys("/vnet/").len()), (code, if code == 0 { 4 } else { 0 }), "{lost:?}: {ran:?}");
        assert!(code == 0 || ran.err.contains("as far as the store says, nothing was written"), "{ran:?}");
    }
}

#[test]
fn a_rollout_comes_with_the_resources_that_it_changes() {
    let etcd = Etcd::start();
    let host = Host::start();
    let put = resource("web").1;
    let rollout = json!({"hosts": ["h1"], "put": [put], "bases": [["LoadBalancer", "web", 5]]});
    host.file("fleet.json", &backup(&[resource("web"), (Key::Rollout("r".into()).to_string(), rollout)]));
    let ran = restore(&host, &etcd, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let (record, at) = etcd.get(&Key::Rollout("r".into())).unwrap();
    let web = etcd.get(&lb("web")).unwrap().1;
    assert_eq!((&record["bases"][0][2], etcd.created(SERIAL)), (&json!(web), at), "h1 would have had web without the rollout");
    // Somebody changed the resource since: the rollout can be promoted all the same, as it could when the backup was made.
    etcd.write(&others(&[(&lb("web"), json!({"resource": {}}))]));
    let ran = restore(&host, &etcd, &["--replace"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(etcd.get(&Key::Rollout("r".into())).unwrap().0["bases"][0][2], etcd.get(&lb("web")).unwrap().1);
}

#[test]
fn what_only_newer_programs_write_is_restored_and_replaced_like_the_rest() {
    let etcd = Etcd::start();
    let host = Host::start();
    let (ours, other) = ("/vnet/v1/desired/later/x".to_owned(), "/vnet/v1/desired/later/y");
    host.file("fleet.json", &backup(&[resource("web"), (ours.clone(), json!(1))]));
    etcd.write(&[&others(&[])[..], &[Write::Put(other.to_owned(), b"2".to_vec(), 0)]].concat());
    let ran = restore(&host, &etcd, &[]);
    assert!(ran.code == 1 && ran.err.contains("nothing was written") && ran.err.contains(other), "{ran:?}");
    let ran = restore(&host, &etcd, &["--replace"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(etcd.keys("/vnet/v1/desired/later/"), [ours]);
    assert_eq!(restore(&host, &etcd, &[]).code, 0);
}

#[test]
fn hosts_of_a_store_that_was_lost_get_the_numbers_that_they_had() {
    let etcd = Etcd::start();
    let host = Host::start();
    let registration = |name: &str| Key::Registration(name.to_owned());
    let had =
        [("a", json!({"number": 1})), ("c", json!({"number": 3, "later": 1})), ("d", json!({"number": 2, "drained": true}))];
    let mut values: Vec<_> = had.iter().map(|(name, value)| (registration(name).to_string(), value.clone())).collect();
    values.push(resource("web"));
    host.file("fleet.json", &backup(&values));
    let url = etcd.url();
    let init = |more: &[&str]| {
        let args = ["store", "init", "--operator", "alice", "--no-auth", "--store", &url];
        host.run(&[&args[..], more].concat())
    };
    let ran = init(&["--from", "fleet.json", "--host", "a", "--host", "e"]);
    for part in [
        "user/d made (host)",
        "host/c registered (number 3)",
        "host/e registered (number 4)",
        "vnet-ctl store restore fleet.json",
    ] {
        assert!(ran.code == 0 && ran.out.contains(part), "no {part}: {ran:?}");
    }
    for (name, value) in &had {
        assert_eq!(etcd.get(&registration(name)).unwrap().0, *value);
        etcd.put(&Key::Alive((*name).to_owned()), &json!({}));
    }
    let ran = init(&["--from", "fleet.json"]);
    assert!(ran.code == 0 && ran.out.contains("host/c registered already (number 3)"), "{ran:?}");
    let ran = restore(&host, &etcd, &[]);
    assert!(ran.code == 0 && ran.out.contains("not in the backup, and still there: host/e"), "{ran:?}");

    etcd.put(&registration("c"), &json!({"number": 7}));
    let ran = init(&["--from", "fleet.json"]);
    assert!(ran.code == 1 && ran.err.contains("host/c has the number 7 in the store, and 3 in the backup"), "{ran:?}");
    etcd.write(&[Write::Delete(registration("c").to_string()), others(&[(&registration("f"), json!({"number": 3}))]).remove(0)]);
    let ran = init(&["--from", "fleet.json"]);
    assert!(ran.code == 1 && ran.err.contains("host/c has the number 3 in the backup, and host/f has it"), "{ran:?}");
}
