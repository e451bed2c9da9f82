//! Changes in a fleet: what is written to the store, and what is not.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vnet_common::etcd::Write;
use vnet_common::fleet::{Key, LoadReport, MemberKey, MemberLoad, SERIAL};

use crate::etcd::Etcd;
use crate::proxy::{self, Lost};
use crate::shared::Fleet;
use crate::support::{Host, WEB, load_balancer, ran};

/// A host in a fleet of two.
fn fleet_of_two(etcd: &Etcd) -> Host {
    let host = Host::start();
    host.join(Fleet::of(etcd.access("root"), &["h1", "h2"]));
    host
}

pub fn lb(name: &str) -> Key {
    Key::Resource("LoadBalancer".to_owned(), name.to_owned())
}

/// As the store has a load balancer.
fn stored(name: &str, port: u16) -> Value {
    let text = load_balancer(name).replace("53", &port.to_string());
    json!({"resource": serde_saphyr::from_str::<Value>(&text).unwrap()})
}

/// What another operator writes.
pub fn others(writes: &[(&Key, Value)]) -> Vec<Write> {
    let put = |key: String, value: &Value| Write::Put(key, value.to_string().into_bytes(), 0);
    let puts = writes.iter().map(|(key, value)| put(key.to_string(), value));
    puts.chain([put(SERIAL.to_owned(), &json!("bob@h2: apply"))]).collect()
}

#[test]
fn what_the_agent_proposes_is_written_and_waited_for() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    let expected = "loadbalancer/dns created\nin force on 2 of 2 hosts\n";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, expected, ""));
    let (value, revision) = etcd.get(&lb("dns")).unwrap();
    assert_eq!((&value["resource"]["spec"]["ports"], &value["origin"]["file"]), (&json!([53]), &json!("web.yaml")));
    let (serial, at) = etcd.get_raw(SERIAL).unwrap();
    assert!(serial.as_str().unwrap().ends_with(": apply") && serial.as_str().unwrap().contains('@'), "{serial}");
    assert_eq!(at, revision, "not in the same transaction");
    let again = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    assert_eq!((again.out.as_str(), again.err.as_str()), ("loadbalancer/dns unchanged\n", ""));
    assert_eq!(etcd.get_raw(SERIAL).unwrap().1, at);
    let json = host.run_with_input(&["apply", "-f", "-", "-o", "json"], &load_balancer("dns").replace("53", "54"));
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["changes"][0]["action"], &json["inForce"]["hosts"]), (&json!("configured"), &json!(["h1", "h2"])));
    // On this host, nothing was applied without the store.
    assert_eq!(host.run(&["get", "lb", "dns"]).code, 1);
}

#[test]
fn a_difference_is_one_to_what_the_fleet_has() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    // This host does not know it: it is the proposal that tells.
    assert_eq!(host.run_with_input(&["diff", "-f", "-"], &load_balancer("dns")).code, 0);
    assert_eq!(host.run_with_input(&["diff", "-f", "-"], &load_balancer("dns").replace("53", "54")).code, 1);
    assert_eq!(host.run_with_input(&["diff", "-f", "-"], "prots: 1\n").code, 2);
}

#[test]
fn a_dry_run_writes_nothing() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    let ran = host.run_with_input(&["apply", "-f", "-", "--dry-run"], &load_balancer("dns"));
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "loadbalancer/dns created (dry run)\n", ""));
    assert_eq!(etcd.keys("/vnet/"), Vec::<String>::new());
    let faults = host.run_with_input(&["apply", "-f", "-"], "prots: 1\n");
    assert!(faults.code == 1 && faults.err.contains("did you mean `ports`?"), "{faults:?}");
    assert_eq!(etcd.keys("/vnet/"), Vec::<String>::new());
}

#[test]
fn what_only_newer_programs_know_stays() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    let mut value = stored("dns", 53);
    value["newer"] = json!({"since": 2});
    etcd.put(&lb("dns"), &value);
    host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns").replace("53", "54"));
    let (now, _) = etcd.get(&lb("dns")).unwrap();
    assert_eq!((&now["newer"], &now["resource"]["spec"]["ports"]), (&json!({"since": 2}), &json!([54])));
}

#[test]
fn two_who_change_the_same_are_shown_the_difference() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    etcd.put(&lb("dns"), &stored("dns", 53));
    let theirs = others(&[(&lb("dns"), stored("dns", 5353))]);
    host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), theirs]]);
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns").replace("53", "54"));
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    for part in [
        "loadbalancer/dns was changed meanwhile:\n--- proposed-from/loadbalancer/dns\n+++ now/loadbalancer/dns\n@@",
        "-  - 53\n+  - 5353\n",
        "and this would make of it:\n--- now/loadbalancer/dns\n+++ new/loadbalancer/dns\n@@",
        "-  - 5353\n+  - 54\n",
        "error: nothing was written: somebody else changed loadbalancer/dns meanwhile (the last change: bob@h2: apply). If yours",
    ] {
        assert!(ran.err.contains(part), "no {part} in:\n{}", ran.err);
    }
    assert_eq!(etcd.get(&lb("dns")).unwrap().0, stored("dns", 5353));
    // Somebody who does not say so, with etcdctl.
    let mute = others(&[(&lb("dns"), stored("dns", 5454))]).remove(0);
    host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), vec![mute]]]);
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns").replace("53", "54"));
    assert!(ran.code == 1 && ran.err.contains("-  - 5353\n+  - 5454\n"), "{ran:?}");
    // One that was deleted, or made, meanwhile.
    let gone = vec![Write::Delete(lb("dns").to_string()), others(&[]).remove(0)];
    let made = others(&[(&lb("new"), stored("new", 1))]);
    for (name, theirs, part) in [("dns", gone, "+++ /dev/null\n"), ("new", made, "--- /dev/null\n+++ now/loadbalancer/new\n")] {
        host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), theirs]]);
        let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer(name).replace("53", "54"));
        assert!(ran.code == 1 && ran.err.contains(part), "{ran:?}");
    }
}

#[test]
fn what_others_change_besides_is_no_conflict() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    // The agent goes on proposing from what it knew, twice.
    let theirs = others(&[(&lb("other"), stored("other", 1))]);
    host.change_fleet(|fleet| (fleet.others, fleet.stale) = (vec![[Vec::new(), theirs]], 3));
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let asked = host.memory.asked.lock().unwrap().iter().filter(|(path, _)| path == "propose").count();
    assert_eq!((asked, etcd.keys("/vnet/v1/desired/resources/").len()), (4, 2));
}

#[test]
fn an_agent_that_takes_over_a_change_is_asked_again() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    // At first, and after somebody else was faster.
    host.change_fleet(|fleet| {
        (fleet.busy, fleet.others) = (vec![true, true, false, true], vec![[Vec::new(), others(&[])]]);
    });
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    host.change_fleet(|fleet| fleet.busy = vec![true; 20]);
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("two"));
    assert!(ran.code == 1 && ran.err.contains("this host is just taking over a change: try again"), "{ran:?}");
}

#[test]
fn a_change_that_the_agent_hears_of_while_it_is_asked_again_is_one() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    etcd.put(&lb("dns"), &stored("dns", 53));
    let theirs = others(&[(&lb("dns"), stored("dns", 5353))]);
    host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), others(&[])], [theirs, Vec::new()]]);
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns").replace("53", "54"));
    assert!(ran.code == 1 && ran.err.contains("-  - 53\n+  - 5353\n") && ran.err.contains("+  - 54\n"), "{ran:?}");
    assert_eq!(etcd.get(&lb("dns")).unwrap().0, stored("dns", 5353));
    // Or the same that we want: then there is nothing left to do.
    let same = json!({"resource": stored("dns", 54)["resource"], "origin": {"file": "web.yaml", "line": 1}});
    let theirs = others(&[(&lb("dns"), same)]);
    host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), others(&[])], [theirs, Vec::new()]]);
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns").replace("53", "54"));
    assert_eq!((ran.code, ran.out.as_str()), (0, "loadbalancer/dns unchanged\n"), "{ran:?}");
}

#[test]
fn who_changes_all_the_time_is_told_so() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), others(&[])]; 20]);
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    assert!(ran.code == 1 && ran.err.contains("nothing was written: others change the store"), "{ran:?}");
    assert_eq!(etcd.get(&lb("dns")), None);
}

#[test]
fn what_is_too_much_for_one_change_is_not_halved() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    let many = |n: usize| (0..n).map(|i| load_balancer(&format!("lb{i}"))).collect::<Vec<_>>().join("---\n");
    let ran = host.run_with_input(&["apply", "-f", "-"], &many(120));
    let expected = "error: nothing was written: this changes 120 resources, and the store takes 119 in one change.";
    assert!(ran.code == 1 && ran.err.starts_with(expected), "{ran:?}");
    assert_eq!(etcd.keys("/vnet/"), Vec::<String>::new());
    let ran = host.run_with_input(&["apply", "-f", "-"], &many(119));
    assert_eq!((ran.code, etcd.keys("/vnet/").len()), (0, 120), "{ran:?}");
    let large = format!("{}\n# {}", load_balancer("large"), "x");
    let large = large.replace("TCP", &"T".repeat(1 << 20));
    let ran = host.run_with_input(&["apply", "-f", "-"], &large);
    assert!(ran.code == 1 && ran.err.contains("and the store takes 1.0MiB in one"), "{}", ran.err);
}

#[test]
fn hosts_that_do_not_have_it_are_named() {
    let etcd = Etcd::start();
    let host = Host::start();
    let mut fleet = Fleet::of(etcd.access("root"), &["h1", "h2", "h3", "h4"]);
    (fleet.hosts[1].applied, fleet.hosts[1].refused) = (0, Some("the flow table is too small".to_owned()));
    fleet.hosts[2].applied = 0;
    fleet.hosts[3].alive = false;
    host.join(fleet);
    let ran = host.run_with_input(&["apply", "-f", "-", "--wait", "1s"], &load_balancer("dns"));
    assert_eq!((ran.code, ran.out.as_str()), (0, "loadbalancer/dns created\nin force on 1 of 3 hosts\n"), "{ran:?}");
    for part in [
        "warning: host h2 refuses it, and goes on with what it has: the flow table is too small\n",
        "warning: host h3 does not have it in force yet: it has revision 0 of ",
        "not alive, and without it until they are back: h4\n",
    ] {
        assert!(ran.err.contains(part), "no {part} in:\n{}", ran.err);
    }
    let ran = host.run_with_input(&["apply", "-f", "-", "--wait", "0"], &load_balancer("two"));
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("loadbalancer/two created\n", ""));
    // All that lack it refuse it: there is nothing to wait for.
    host.change_fleet(|fleet| fleet.hosts[2].refused = Some("busy".to_owned()));
    let begun = Instant::now();
    let ran = host.run_with_input(&["apply", "-f", "-", "--wait", "10m"], &load_balancer("three"));
    assert!(ran.err.contains("host h3 refuses it") && begun.elapsed() < Duration::from_secs(300), "{ran:?}");
}

#[test]
fn what_is_written_is_said_before_anybody_waits() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    etcd.put(&Key::Registration("h2".into()), &json!({"number": 2}));
    host.change_fleet(|fleet| fleet.hosts[1].applied = 0);
    host.file("dns.yaml", &load_balancer("dns"));
    for (args, said) in [
        (&["apply", "-f", "dns.yaml"][..], "loadbalancer/dns created\n"),
        (&["host", "drain", "h2"], "host/h2 drained\n"),
        (&["delete", "lb", "dns"], "loadbalancer/dns deleted\n"),
        (&["apply", "-f", "dns.yaml", "-o", "json"], ""),
    ] {
        let before = etcd.get_raw(SERIAL);
        let mut command = host.command(&[args, &["--wait", "10m"]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while etcd.get_raw(SERIAL) == before {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(child.try_wait().unwrap(), None);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!((String::from_utf8_lossy(&out.stdout).as_ref(), out.status.code()), (said, Some(130)), "{args:?}");
        let revision = etcd.get_raw(SERIAL).unwrap().1;
        let expected = format!("interrupted: it is written all the same (revision {revision} of the store)");
        assert!(String::from_utf8_lossy(&out.stderr).contains(&expected), "{out:?}");
    }
}

#[test]
fn a_connection_that_breaks_does_not_hide_what_was_done() {
    for (lost, code) in [(Lost::Answer, 0), (Lost::Request, 1)] {
        let etcd = Etcd::start();
        let host = fleet_of_two(&etcd);
        let port = proxy::start(&etcd.access("root"), lost);
        let store = format!("etcd://127.0.0.1:{port}");
        let ran = host.run_with_input(&["apply", "-f", "-", "--store", &store], &load_balancer("dns"));
        assert_eq!((ran.code, etcd.get(&lb("dns")).is_some()), (code, lost == Lost::Answer), "{lost:?}: {ran:?}");
        match lost {
            Lost::Answer => assert_eq!(ran.out, "loadbalancer/dns created\nin force on 2 of 2 hosts\n", "{ran:?}"),
            _ => assert!(ran.err.contains("as far as the store says, nothing was written"), "{ran:?}"),
        }
    }
}

#[test]
fn what_is_deleted_is_deleted_for_all() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    host.run_with_input(&["apply", "-f", "-"], &format!("{}---\n{}", load_balancer("dns"), load_balancer("two")));
    let ran = host.run(&["delete", "lb", "dns", "nothing"]);
    assert!(ran.code == 1 && ran.err.contains("there is no loadbalancer/nothing; there is: web"), "{ran:?}");
    let ran = host.run(&["delete", "lb/dns", "--wait", "30s"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "loadbalancer/dns deleted\nin force on 2 of 2 hosts\n"), "{ran:?}");
    assert_eq!(etcd.keys("/vnet/v1/desired/resources/"), [lb("two").to_string()]);
    let ran = host.run(&["delete", "lb/dns", "--ignore-not-found"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    // Somebody changed it while it was to be deleted.
    let theirs = others(&[(&lb("two"), stored("two", 1))]);
    host.change_fleet(|fleet| fleet.others = vec![[Vec::new(), theirs]]);
    let ran = host.run(&["delete", "lb/two"]);
    assert!(ran.code == 1 && ran.err.contains("--- now/loadbalancer/two\n+++ /dev/null\n"), "{ran:?}");
}

#[test]
fn members_are_changed_for_all() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    let key = Key::Override("web".to_owned(), "a".to_owned());
    let value = || etcd.get(&key).unwrap().0;
    let ran = host.run(&["lb", "drain", "web", "a"]);
    assert_eq!(ran.out, "member web/a draining (0 flows left)\nin force on 2 of 2 hosts\n", "{ran:?}");
    assert_eq!(value(), json!({"drained": true, "weight": null}));
    let ran = host.run(&["lb", "weight", "web", "a", "5", "--wait", "0"]);
    assert_eq!((ran.out.as_str(), value()), ("member web/a weight 5\n", json!({"drained": true, "weight": 5})), "{ran:?}");
    let ran = host.run(&["lb", "undrain", "web", "a"]);
    assert_eq!(ran.out, "member web/a active (weight 5)\nin force on 2 of 2 hosts\n", "{ran:?}");
    assert_eq!(value(), json!({"drained": false, "weight": 5}));
    let ran = host.run(&["lb", "drain", "web", "zzz"]);
    assert!(ran.code == 1 && ran.err.contains("load balancer 'web' has no member 'zzz'; there is: a, b, c"), "{ran:?}");
}

#[test]
fn a_drain_waits_for_the_flows_of_all_hosts() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    let report = |host: &str, serial: u64, active: u64| {
        let member = MemberKey { lb: "web".to_owned(), port: 80, at: "10.0.0.11:8080".parse().unwrap() };
        let report =
            LoadReport { serial, window_ms: 1000, members: vec![(member, MemberLoad { active, ..MemberLoad::default() })] };
        etcd.put(&Key::Load(host.to_owned()), &serde_json::to_value(report).unwrap());
    };
    // From before it was drained: it says nothing of what came until then.
    report("h2", 1, 0);
    let mut command = host.command(&["lb", "drain", "web", "a", "--wait"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let key = Key::Override("web".to_owned(), "a".to_owned());
    while etcd.get(&key).is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(1));
    report("h1", 1, 0);
    report("h2", 2, 2);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(child.try_wait().unwrap(), None, "it did not wait for the flows of h2");
    // As often as it takes: it may not have begun to count before the one above.
    for serial in 3.. {
        report("h1", serial, 0);
        report("h2", serial, 0);
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.starts_with("member web/a draining (0 flows left)\n"), "{ran:?}");
}

#[test]
fn without_a_certificate_it_is_said_how_to_come_by_one() {
    let etcd = Etcd::start_tls();
    let host = Host::start();
    let far = vnet_common::etcd::Access::new("etcd://192.0.2.1:2379", Some(etcd.tls("root"))).unwrap();
    let apply = |more: &[&str]| host.run_with_input(&[&["apply", "-f", "-"], more].concat(), WEB);
    host.join(Fleet::of(etcd.access("root"), &["h1"]));
    let ran = apply(&["--store", &far.to_string()]);
    for part in ["it has no certificate for it", "--store-cert", "VNET_STORE_KEY", "~/.config/vnet/operator"] {
        assert!(ran.code == 1 && ran.err.contains(part), "no {part}: {ran:?}");
    }
    // Asked without TLS, the store on this machine does not say what is missing.
    let ran = apply(&[]);
    assert!(ran.code == 1 && ran.err.contains("if the store wants a certificate, give"), "{ran:?}");
    let ran = apply(&["--store-ca", "x"]);
    assert!(ran.code == 1 && ran.err.contains("there is no --store-cert and no --store-key"), "{ran:?}");
    let ran = apply(&["--store-ca", "x", "--store-cert", "nowhere.crt", "--store-key", "z"]);
    assert!(ran.code == 1 && ran.err.contains("reading the certificate for the store nowhere.crt: No such file"), "{ran:?}");
    host.file("secret.crt", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
    let ran = apply(&["--store-ca", "x", "--store-cert", "secret.crt", "--store-key", "z"]);
    assert!(ran.err.contains("secret.crt is no certificate") && !ran.err.contains("c2V"), "{ran:?}");
    let nobody = apply(&["--store", "etcd://127.0.0.1:1"]);
    assert!(nobody.code == 1 && nobody.err.contains("no member of the store can be used"), "{nobody:?}");
    // Where they are looked for.
    let tls = etcd.tls("root");
    let options = [("VNET_STORE_CA", &tls.ca), ("VNET_STORE_CERT", &tls.cert), ("VNET_STORE_KEY", &tls.key)];
    host.file("web.yaml", &load_balancer("dns"));
    let mut command = host.command(&["apply", "-f", "web.yaml"]);
    let with = crate::support::ran(command.envs(options).output().unwrap());
    assert_eq!((with.code, with.err.as_str()), (0, ""), "{with:?}");
    for (name, file) in [("ca.crt", &tls.ca), ("tls.crt", &tls.cert), ("tls.key", &tls.key)] {
        host.file_of(&format!(".config/vnet/operator/{name}"), &std::fs::read(file).unwrap());
    }
    let usual = host.run(&["delete", "-f", "web.yaml"]);
    assert_eq!((usual.code, usual.err.as_str()), (0, ""), "{usual:?}");
}

#[test]
fn an_endpoint_is_moved_by_its_resource() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    let endpoint = "apiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: {name: vm1}\nspec: {device: tap1}\n";
    host.run_with_input(&["apply", "-f", "-"], endpoint);
    let key = Key::Resource("Endpoint".to_owned(), "vm1".to_owned());
    assert_eq!(etcd.get(&key).unwrap().0["resource"]["spec"], json!({"device": "tap1"}));
    // The agent has it in force.
    host.memory.put_resource(&etcd.get(&key).unwrap().0["resource"]);
    let ran = host.run(&["endpoint", "move", "vm1", "--to", "h2"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "endpoint/vm1 configured\nin force on 2 of 2 hosts\n"), "{ran:?}");
    assert_eq!(etcd.get(&key).unwrap().0["resource"]["spec"], json!({"device": "tap1", "host": "h2"}));
    let ran = host.run(&["endpoint", "move", "vm1", "--to", "h3"]);
    assert!(ran.code == 1 && ran.err.contains("the fleet has no host 'h3'; did you mean"), "{ran:?}");
    let ran = host.run(&["endpoint", "move", "tap0", "--to", "h2"]);
    assert!(ran.code == 1 && ran.err.contains("no resource names the endpoint 'tap0'") && ran.err.contains("vm1"), "{ran:?}");
    host.change_fleet(|fleet| (fleet.hosts[1].alive, fleet.hosts[1].drained) = (false, true));
    let ran = host.run(&["endpoint", "move", "vm1", "--to", "h2"]);
    assert!(ran.code == 0 && ran.err.contains("h2 is not alive") && ran.err.contains("h2 is drained"), "{ran:?}");
}

#[test]
fn the_agents_status_has_the_fleet() {
    let etcd = Etcd::start();
    let host = fleet_of_two(&etcd);
    host.change_fleet(|fleet| fleet.hosts[1].alive = false);
    let out = host.run(&["status"]).out;
    let expected = format!(
        "  Fleet              this host is h1, 1 of 2 hosts alive\n  Store              {}, connected to {}\n",
        etcd.url(),
        etcd.endpoint()
    );
    assert!(out.contains(&expected), "{out}");
    let status: Value = serde_json::from_str(&host.run(&["status", "-o", "json"]).out).unwrap();
    assert_eq!(status["fleet"]["alive"], 1);
}

#[test]
fn verbs_of_a_fleet_say_that_there_is_none() {
    let host = Host::start();
    for args in [&["host", "ls"][..], &["rollout", "ls"], &["endpoint", "move", "vm1", "--to", "h2"]] {
        let ran = host.run(args);
        assert!(ran.code == 1 && ran.err.contains("this host is in no fleet"), "{args:?}: {ran:?}");
    }
    for args in [&["host", "drain", "h1"][..], &["store", "status"], &["rollout", "promote", "x"]] {
        let ran = host.run(args);
        assert!(ran.code == 2 && ran.err.contains("which store? Say it with --store"), "{args:?}: {ran:?}");
    }
    let ran = host.run_with_input(&["apply", "-f", "-", "--canary", "h1"], WEB);
    assert!(ran.code == 2 && ran.err.contains("this host is in none"), "{ran:?}");
}
