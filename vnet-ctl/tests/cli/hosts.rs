//! The hosts of a fleet.

use serde_json::{Value, json};
use vnet_common::etcd::Write;
use vnet_common::fleet::{Key, SERIAL};

use crate::etcd::Etcd;
use crate::fleet::others;
use crate::proxy::{self, Lost};
use crate::shared::Fleet;
use crate::support::Host;

fn registration(name: &str) -> Key {
    Key::Registration(name.to_owned())
}

#[test]
fn hosts_are_listed() {
    let etcd = Etcd::start();
    let host = Host::start();
    let mut fleet = Fleet::of(etcd.access("root"), &["h1", "h2", "h3"]);
    for (each, applied) in fleet.hosts.iter_mut().zip([7, 6, 5]) {
        each.applied = applied;
    }
    (fleet.hosts[1].drained, fleet.hosts[1].refused) = (true, Some("no room".to_owned()));
    let h3 = &mut fleet.hosts[2];
    (h3.alive, h3.registered, h3.version, h3.zone) = (false, false, String::new(), None);
    fleet.conflicts = vec!["endpoint vm1 is on h1 and on h2".to_owned()];
    host.join(fleet);
    let ran = host.run(&["host", "ls"]);
    let expected = "\
NAME   STATE                    ZONE   VERSION   ENDPOINTS   APPLIED   REFUSED
h1     alive, elected           z1     1.2.3             4         7   -
h2     alive, drained           z1     1.2.3             4         6   no room
h3     silent, not registered   -      -                 4         5   -
";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{ran:?}");
    assert_eq!(ran.err, "warning: endpoint vm1 is on h1 and on h2\n");
    assert!(host.run(&["host", "ls", "-o", "wide"]).out.contains("ROOM   ADDRESSES"));
    let json: Value = serde_json::from_str(&host.run(&["host", "ls", "-o", "json"]).out).unwrap();
    assert_eq!((&json[0]["elected"], &json[1]["elected"], &json[1]["drained"]), (&json!(true), &json!(false), &json!(true)));
}

#[test]
fn draining_changes_nothing_else() {
    let etcd = Etcd::start();
    let host = Host::start();
    host.join(Fleet::of(etcd.access("root"), &["h1", "h2"]));
    etcd.put(&registration("h2"), &json!({"number": 7, "later": [1]}));
    let ran = host.run(&["host", "drain", "h2"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "host/h2 drained\nin force on 2 of 2 hosts\n"), "{ran:?}");
    let (value, revision) = etcd.get(&registration("h2")).unwrap();
    assert_eq!(value, json!({"number": 7, "later": [1], "drained": true}));
    let (serial, at) = etcd.get_raw(SERIAL).unwrap();
    assert!(serial.as_str().unwrap().ends_with(": drain host h2") && at == revision, "{serial}");
    assert_eq!(host.run(&["host", "drain", "h2"]).out, "host/h2 drained already\n");
    assert_eq!(etcd.get_raw(SERIAL).unwrap().1, at);
    assert!(host.run(&["host", "undrain", "h2", "--wait", "0"]).out.starts_with("host/h2 undrained\n"));
    assert_eq!(etcd.get(&registration("h2")).unwrap().0, json!({"number": 7, "later": [1], "drained": false}));
    let ran = host.run(&["host", "drain", "h3"]);
    assert!(ran.code == 1 && ran.err.contains("host 'h3' is not registered; did you mean 'h2'?"), "{ran:?}");
}

#[test]
fn a_connection_that_breaks_does_not_hide_that_a_host_was_drained() {
    for (lost, code) in [(Lost::Answer, 0), (Lost::Request, 1), (Lost::Race, 0)] {
        let etcd = Etcd::start();
        let host = Host::start();
        host.join(Fleet::of(etcd.access("root"), &["h1", "h2"]));
        etcd.put(&registration("h2"), &json!({"number": 7}));
        let store = format!("etcd://127.0.0.1:{}", proxy::start(&etcd.access("root"), lost));
        let ran = host.run(&["host", "drain", "h2", "--store", &store]);
        let drained = etcd.get(&registration("h2")).unwrap().0["drained"] == true;
        assert_eq!((ran.code, drained), (code, code == 0), "{lost:?}: {ran:?}");
        match code {
            0 => assert_eq!(ran.out, "host/h2 drained\nin force on 2 of 2 hosts\n", "{ran:?}"),
            _ => assert!(ran.err.contains("as far as the store says, nothing was written"), "{ran:?}"),
        }
    }
}

#[test]
fn no_two_hosts_get_the_same_number() {
    let etcd = Etcd::start();
    let host = Host::start();
    etcd.put(&registration("old"), &json!({"number": 2}));
    let names: Vec<String> = (0..6).map(|i| format!("new{i}")).collect();
    let url = etcd.url();
    std::thread::scope(|scope| {
        for name in &names {
            let (host, url) = (&host, &url);
            scope.spawn(move || {
                let ran = host.run(&["host", "add", name, "--store", url]);
                assert!(ran.code == 0 && ran.out.starts_with(&format!("host/{name} registered (number ")), "{ran:?}");
            });
        }
    });
    let mut numbers: Vec<u64> =
        names.iter().map(|name| etcd.get(&registration(name)).unwrap().0["number"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 3, 4, 5, 6, 7]);
    let ran = host.run(&["host", "add", "old", "--store", &url]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "host/old registered already (number 2)\n"), "{ran:?}");
    // No agent takes the last three.
    for name in ["root", "a/b", "", "a b", "Host", "a_b", "a-"] {
        assert_eq!(host.run(&["host", "add", name, "--store", &url]).code, 2, "{name}");
    }
}

#[test]
fn a_host_that_is_removed_leaves_nothing() {
    let etcd = Etcd::start();
    let host = Host::start();
    let url = etcd.url();
    let of = |name: &str| {
        let name = || name.to_owned();
        let endpoint = Key::Endpoint(name(), "vm".into());
        [
            Key::Alive(name()),
            Key::Applied(name()),
            Key::Global(name()),
            Key::Health(name()),
            Key::Load(name()),
            endpoint,
            Key::Identity(name(), 65_536),
            Key::Moving(name(), "vm".into(), 0),
        ]
    };
    for name in ["h1", "h10"] {
        etcd.put(&registration(name), &json!({"number": 1}));
        for key in of(name) {
            etcd.put(&key, &json!({}));
        }
    }
    etcd.put(&Key::Rollout("r".into()), &json!({"hosts": ["h1"], "put": [], "bases": []}));
    let vm = Key::Resource("Endpoint".into(), "vm".into());
    etcd.write(&others(&[(&vm, json!({"resource": {"spec": {"host": "h1"}}}))]));
    let remove = |more: &[&str]| host.run(&[&["host", "remove", "h1", "--store", &url], more].concat());
    let ran = remove(&[]);
    assert!(ran.code == 1 && ran.err.contains("host 'h1' is alive") && ran.err.contains("--force"), "{ran:?}");
    assert_eq!(etcd.keys("/vnet/").len(), 21);
    etcd.write(&[Write::Delete(Key::Alive("h1".into()).to_string())]);
    let ran = remove(&[]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "host/h1 removed\n"), "{ran:?}");
    assert!(ran.err.contains("rollout/r names this host") && ran.err.contains("endpoint/vm names this host"), "{ran:?}");
    let mut left: Vec<String> = of("h10").iter().chain([&registration("h10")]).map(ToString::to_string).collect();
    left.extend([Key::Rollout("r".into()), Key::Resource("Endpoint".into(), "vm".into())].map(|key| key.to_string()));
    left.push(SERIAL.to_owned());
    left.sort_unstable();
    assert_eq!(etcd.keys("/vnet/"), left);
    let ran = remove(&[]);
    assert!(ran.code == 1 && ran.err.contains("host 'h1' is not registered"), "{ran:?}");
    // One that is alive would write all of it again.
    let ran = host.run(&["host", "remove", "h10", "--force", "--no-auth", "--store", &url]);
    assert!(ran.code == 1 && ran.err.contains("its agent would write again what is deleted here"), "{ran:?}");
    let ran = host.run(&["host", "remove", "h10", "--force", "--store", &url]);
    assert!(ran.code == 0 && ran.err.contains("until it is stopped"), "{ran:?}");
    assert_eq!(etcd.keys("/vnet/v1/state/"), Vec::<String>::new());
}
