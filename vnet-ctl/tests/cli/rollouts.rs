//! Changes that only some hosts have.

use serde_json::{Value, json};
use vnet_common::etcd::Write;
use vnet_common::fleet::{Key, SERIAL};

use crate::etcd::Etcd;
use crate::fleet::{lb, others};
use crate::proxy::{self, Lost};
use crate::shared::Fleet;
use crate::support::{Host, Ran, load_balancer};

fn key(name: &str) -> Key {
    Key::Rollout(name.to_owned())
}

/// A host in a fleet of two that has the load balancer `dns`, and both hosts say in the store that they are alive.
fn fleet(etcd: &Etcd) -> Host {
    let host = Host::start();
    host.join(Fleet::of(etcd.access("root"), &["h1", "h2"]));
    host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    for name in ["h1", "h2"] {
        etcd.put(&Key::Alive(name.to_owned()), &json!({}));
        says(etcd, name, i64::MAX, None);
    }
    host
}

/// What a host says of how far it is.
fn says(etcd: &Etcd, host: &str, revision: i64, trouble: Option<&str>) {
    etcd.put(&Key::Applied(host.to_owned()), &json!({"revision": revision, "trouble": trouble}));
}

fn begin(host: &Host, more: &[&str]) -> Ran {
    let files = format!("{}---\n{}", load_balancer("dns").replace("53", "54"), load_balancer("new"));
    host.run_with_input(&[&["apply", "-f", "-"], more].concat(), &files)
}

#[test]
fn a_change_goes_to_some_hosts_and_then_to_all() {
    let etcd = Etcd::start();
    let host = fleet(&etcd);
    let (_, base) = etcd.get(&lb("dns")).unwrap();
    let ran = begin(&host, &["--canary", "h2", "--name", "faster"]);
    let expected = "\
loadbalancer/dns configured on h2
loadbalancer/new created on h2
rollout/faster begun
in force on 1 of 1 host
";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{ran:?}");
    assert!(ran.err.contains("vnet-ctl rollout promote faster"), "{ran:?}");
    let (record, revision) = etcd.get(&key("faster")).unwrap();
    assert_eq!((&record["hosts"], &record["delete"]), (&json!(["h2"]), &json!([])));
    assert_eq!(record["bases"], json!([["LoadBalancer", "dns", base], ["LoadBalancer", "new", 0]]));
    assert_eq!(record["put"][0]["origin"], json!({"file": "web.yaml", "line": 1}));
    assert_eq!(etcd.get_raw(SERIAL).unwrap().1, revision);
    assert_eq!((etcd.get(&lb("dns")).unwrap().1, etcd.get(&lb("new"))), (base, None), "the resources are as they were");

    let ls = host.run(&["rollout", "ls"]).out;
    let expected = "\
NAME     HOSTS   CHANGES
faster   h2      loadbalancer/dns,loadbalancer/new
";
    assert_eq!(ls, expected);
    let status = host.run(&["rollout", "status", "faster"]).out;
    let expected = "\
HOST   STATE      WHY
h2     in force   -

CHANGE             ACTION   FITS
loadbalancer/dns   put      yes
loadbalancer/new   put      yes
";
    assert_eq!(status, expected);

    let ran = host.run(&["rollout", "promote", "faster"]);
    let expected = "\
loadbalancer/dns promoted
loadbalancer/new promoted
rollout/faster promoted
in force on 2 of 2 hosts
";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{ran:?}");
    let (now, at) = etcd.get(&lb("dns")).unwrap();
    assert_eq!(now, record["put"][0], "not as it came from the agent");
    assert_eq!((at, etcd.get_raw(SERIAL).unwrap().1, etcd.get(&key("faster"))), (etcd.get(&lb("new")).unwrap().1, at, None));
    let ran = host.run(&["rollout", "promote", "fastr"]);
    assert!(ran.code == 1 && ran.err.contains("there is no rollout 'fastr'; there are no rollouts"), "{ran:?}");
    let ran = host.run(&["rollout", "ls"]);
    assert!(ran.code == 0 && ran.out.is_empty() && ran.err.contains("there are no rollouts"), "{ran:?}");
}

#[test]
fn a_change_is_taken_back() {
    let etcd = Etcd::start();
    let host = fleet(&etcd);
    let before = etcd.get(&lb("dns"));
    assert!(begin(&host, &["--canary", "h1"]).out.contains("rollout/loadbalancer-dns begun"));
    let ran = host.run(&["rollout", "rollback", "loadbalancer-dns", "-o", "json"]);
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&json["action"], &json["inForce"]["hosts"]), (&json!("rolled back"), &json!(["h1"])), "{ran:?}");
    assert_eq!((etcd.get(&key("loadbalancer-dns")), etcd.get(&lb("dns"))), (None, before));
}

#[test]
fn what_others_made_of_a_resource_meanwhile_is_not_overwritten() {
    let etcd = Etcd::start();
    let host = fleet(&etcd);
    begin(&host, &["--canary", "h1", "--name", "r"]);
    let theirs = json!({"resource": {"kind": "LoadBalancer", "spec": {"ports": [5353]}}});
    etcd.write(&others(&[(&lb("dns"), theirs.clone())]));
    let status = host.run(&["rollout", "status", "r"]).out;
    assert!(
        status.contains("loadbalancer/dns   put      no\n") && status.contains("loadbalancer/new   put      yes\n"),
        "{status}"
    );
    let ran = host.run(&["rollout", "promote", "r"]);
    for part in
        ["--- now/loadbalancer/dns\n+++ new/loadbalancer/dns\n", "-  - 5353\n", "+  - 54\n", "the last change: bob@h2: apply"]
    {
        assert!(ran.code == 1 && ran.err.contains(part), "no {part}: {ran:?}");
    }
    assert_eq!((etcd.get(&lb("dns")).unwrap().0, etcd.get(&lb("new"))), (theirs, None));
    assert!(etcd.get(&key("r")).is_some());
    // The very same, by somebody else, is none.
    let wanted = etcd.get(&key("r")).unwrap().0["put"][0].clone();
    etcd.write(&others(&[(&lb("dns"), wanted)]));
    assert_eq!(host.run(&["rollout", "promote", "r"]).code, 0);
}

#[test]
fn hosts_that_do_not_have_it_in_force_stop_a_promotion() {
    let etcd = Etcd::start();
    let host = fleet(&etcd);
    begin(&host, &["--canary", "h1,h2", "--name", "r"]);
    for (trouble, why) in [(Some("no room"), "no room"), (None, "it has revision 1")] {
        says(&etcd, "h2", 1, trouble);
        let ran = host.run(&["rollout", "promote", "r"]);
        assert!(ran.code == 1 && ran.err.contains(why) && ran.err.contains("--force"), "{ran:?}");
    }
    let status: Value = serde_json::from_str(&host.run(&["rollout", "status", "r", "-o", "json"]).out).unwrap();
    let states: Vec<_> = status["hosts"].as_array().unwrap().iter().map(|host| host["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["in force", "not yet"]);
    etcd.write(&[Write::Delete(Key::Alive("h2".into()).to_string())]);
    let ran = host.run(&["rollout", "promote", "r"]);
    assert!(ran.code == 1 && ran.err.contains("it is not alive"), "{ran:?}");
    assert!(etcd.get(&key("r")).is_some());
    let ran = host.run(&["rollout", "promote", "r", "--force"]);
    assert!(ran.code == 0 && ran.err.contains("host h2 does not have it in force: it is not alive"), "{ran:?}");
}

#[test]
fn of_two_who_begin_at_the_same_time_one_comes_too_late() {
    let etcd = Etcd::start();
    let host = fleet(&etcd);
    let theirs = json!({"hosts": ["h1"], "put": [etcd.get(&lb("dns")).unwrap().0], "bases": [["LoadBalancer", "dns", 1]]});
    let theirs = others(&[(&key("theirs"), theirs)]);
    host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), theirs]]);
    let ran = begin(&host, &["--canary", "h1", "--name", "ours"]);
    let expected = "the rollout 'theirs' changes the same on the same hosts";
    assert!(ran.code == 1 && ran.err.contains(expected), "{ran:?}");
    assert_eq!(etcd.get(&key("ours")), None);
    // While it is written.
    for (name, code) in [("more", 0), ("theirs", 1)] {
        let store = format!("etcd://127.0.0.1:{}", proxy::start(&etcd.access("root"), Lost::Race));
        let ran = begin(&host, &["--canary", "h2", "--name", name, "--store", &store]);
        assert_eq!(ran.code, code, "{ran:?}");
    }
}

#[test]
fn rollouts_that_make_no_sense_are_refused() {
    let etcd = Etcd::start();
    let host = fleet(&etcd);
    let ran = begin(&host, &["--canary", "h1,h3"]);
    assert!(ran.code == 1 && ran.err.contains("the fleet has no host 'h3'; did you mean 'h1'?"), "{ran:?}");
    let ran = host.run_with_input(&["apply", "-f", "-", "--canary", "h1"], &load_balancer("dns"));
    assert!(ran.code == 1 && ran.err.contains("nothing to roll out"), "{ran:?}");
    assert_eq!(etcd.keys("/vnet/v1/desired/rollouts/"), Vec::<String>::new());
    begin(&host, &["--canary", "h1", "--name", "r"]);
    let ran = begin(&host, &["--canary", "h2", "--name", "r"]);
    assert!(ran.code == 1 && ran.err.contains("there is a rollout 'r' already"), "{ran:?}");
    let ran = begin(&host, &["--canary", "h2,h1", "--name", "s"]);
    assert!(ran.code == 1 && ran.err.contains("the rollout 'r' changes the same on the same hosts"), "{ran:?}");
    assert_eq!(begin(&host, &["--canary", "h2", "--name", "s"]).code, 0);
    for wrong in [&["--name", "a/b"][..], &["--dry-run"]] {
        assert_eq!(host.run(&[&["apply", "-f", "x.yaml", "--canary", "h2"], wrong].concat()).code, 2, "{wrong:?}");
    }
}
