//! The store itself: set up, looked at, backed up, moved.

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use serde_json::{Value, json};
use vnet_common::etcd::{Condition, Failure, RoleSet, Write};
use vnet_common::fleet::{Key, SERIAL};

use crate::etcd::Etcd;
use crate::fleet::{lb, others};
use crate::proxy;
use crate::shared::Fleet;
use crate::support::{Host, Ran, WEB, load_balancer};

/// Runs the program as whoever has this name.
fn run_as(host: &Host, etcd: &Etcd, who: &str, args: &[&str]) -> Ran {
    let url = etcd.url();
    let options = etcd.options(who);
    let options = options.iter().map(String::as_str).chain(["--store", &url]);
    host.run(&args.iter().copied().chain(options).collect::<Vec<_>>())
}

/// What the store answers when `who` writes this key.
fn write_as(etcd: &Etcd, who: &str, key: &str) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = etcd.access(who).connect(&etcd.endpoint()).await.map_err(|e| Failure::in_error(&e))?;
        let put = Write::Put(key.to_owned(), b"{}".to_vec(), 0);
        let any: [Condition; 0] = [];
        client.commit(&any, &[put]).await.map(drop).map_err(|e| Failure::in_error(&e))
    })
}

/// The users of the store that nobody asked for.
fn rescuers(etcd: &Etcd) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let users = runtime.block_on(async {
        let mut client = etcd.access("root").connect(&etcd.endpoint()).await.unwrap();
        RoleSet(&mut client).users().await.unwrap()
    });
    users.into_iter().filter(|user| user.starts_with("vnet-rescue-")).collect()
}

fn checks(etcd: &Etcd) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(RoleSet::is_enabled(&etcd.access("root"), &etcd.endpoint())).unwrap()
}

#[test]
fn a_store_is_set_up_and_lets_everybody_do_their_own() {
    let etcd = Etcd::start_tls();
    let host = Host::start();
    let init = ["store", "init", "--operator", "alice", "--host", "h1", "--host", "h2"];
    let ran = run_as(&host, &etcd, "alice", &init);
    assert!(
        ran.code == 1 && ran.err.contains("takes a certificate with the common name root, and this one has alice"),
        "{ran:?}"
    );
    assert!(!checks(&etcd));
    let ran = run_as(&host, &etcd, "root", &init);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let expected = "\
user/alice made (operator)
user/h1 made (host)
user/h2 made (host)
host/h1 registered (number 1)
host/h2 registered (number 2)
the store checks its clients from now on

Next:
";
    assert!(ran.out.starts_with(expected), "{}", ran.out);
    let files = "--store-ca /etc/vnet/ca.crt --store-cert /etc/vnet/HOST.crt --store-key /etc/vnet/HOST.key";
    let start =
        format!("ExecStart=/usr/bin/vnet-agent --attach tap* --attach vnet* --store {} {files} --host HOST\n", etcd.url());
    assert!(ran.out.contains("on each HOST (h1, h2): systemctl edit vnet-agent") && ran.out.contains(&start), "{}", ran.out);
    assert!(checks(&etcd));
    let ran = run_as(&host, &etcd, "root", &[&init[..], &["--host", "h3"]].concat());
    for part in
        ["user/alice there already", "user/h3 made", "host/h2 registered already (number 2)", "checks its clients already"]
    {
        assert!(ran.code == 0 && ran.out.contains(part), "no {part}: {ran:?}");
    }
    assert!(!ran.out.contains("rescue"), "{}", ran.out);

    let (own, other) = (Key::Endpoint("h1".into(), "vm".into()).to_string(), Key::Endpoint("h2".into(), "vm".into()).to_string());
    assert_eq!(write_as(&etcd, "h1", &own), Ok(()));
    assert_eq!(write_as(&etcd, "h1", &other), Err(Failure::Denied));
    assert_eq!(write_as(&etcd, "h1", &lb("web").to_string()), Err(Failure::Denied));
    assert_eq!(write_as(&etcd, "alice", &lb("web").to_string()), Ok(()));
    assert_eq!(write_as(&etcd, "mallory", &own), Err(Failure::Denied));

    // A host's certificate is no operator's, and an operator's is not root's.
    let policy = "the certificate's user h1 may not write policy: use an operator's";
    let ran = run_as(&host, &etcd, "h1", &["host", "drain", "h1"]);
    assert!(ran.code == 1 && ran.err.contains(policy), "{ran:?}");
    host.join(Fleet::of(etcd.access("h1"), &["h1"]));
    host.file("dns.yaml", &load_balancer("dns"));
    let ran = run_as(&host, &etcd, "h1", &["apply", "-f", "dns.yaml"]);
    assert!(ran.code == 1 && ran.err.contains(policy), "{ran:?}");
    let ran = run_as(&host, &etcd, "alice", &["apply", "-f", "dns.yaml"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "loadbalancer/dns created\nin force on 1 of 1 host\n"), "{ran:?}");
    let ran = run_as(&host, &etcd, "mallory", &["apply", "-f", "dns.yaml"]);
    assert!(ran.code == 0, "there is nothing to write: {ran:?}");
    let ran = run_as(&host, &etcd, "mallory", &["delete", "-f", "dns.yaml"]);
    assert!(ran.code == 1 && ran.err.contains("the certificate's user mallory may not read what vnet keeps"), "{ran:?}");

    let ran = run_as(&host, &etcd, "alice", &["host", "add", "h4"]);
    let roles = "the certificate's user alice may not change the store's users and roles: use root's";
    assert!(ran.code == 1 && ran.err.contains(roles) && ran.err.contains("--no-auth"), "{ran:?}");
    assert_eq!(etcd.get(&Key::Registration("h4".into())), None);
    assert_eq!(write_as(&etcd, "h4", &Key::Alive("h4".into()).to_string()), Err(Failure::Denied));
    assert_eq!(run_as(&host, &etcd, "root", &["host", "add", "h4"]).out, "host/h4 registered (number 4)\n");
    assert_eq!(write_as(&etcd, "h4", &Key::Alive("h4".into()).to_string()), Ok(()));
    assert_eq!(run_as(&host, &etcd, "alice", &["host", "remove", "h4", "--force"]).code, 1);
    assert!(etcd.get(&Key::Registration("h4".into())).is_some());
    let ran = run_as(&host, &etcd, "root", &["host", "remove", "h4", "--force"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("host/h4 removed\n", ""));
    assert_eq!(write_as(&etcd, "h4", &Key::Alive("h4".into()).to_string()), Err(Failure::Denied));

    let out = run_as(&host, &etcd, "alice", &["store", "status"]).out;
    assert!(out.contains("checked, by their certificates") && out.contains("alice"), "{out}");
}

#[test]
fn a_connection_that_breaks_while_a_store_is_set_up_locks_nobody_out() {
    let etcd = Etcd::start_tls();
    let host = Host::start();
    let store = format!("etcd://127.0.0.1:{}", proxy::deaf_when_checked(&etcd.access("root")));
    let options = etcd.options("root");
    let init = ["store", "init", "--operator", "alice", "--store", &store];
    let ran = host.run(&init.into_iter().chain(options.iter().map(String::as_str)).collect::<Vec<_>>());
    assert!(ran.code == 0 && ran.out.contains("the store checks its clients from now on"), "{ran:?}");
    assert!(checks(&etcd));
    assert_eq!(rescuers(&etcd), Vec::<String>::new());
}

#[test]
fn nobody_is_an_operator_and_a_host() {
    let etcd = Etcd::start_tls();
    let host = Host::start();
    let run = |args: &[&str]| run_as(&host, &etcd, "root", args);
    let ran = run(&["store", "init", "--operator", "alice", "--operator", "x", "--host", "h1", "--host", "x"]);
    assert!(ran.code == 2 && ran.err.contains("'x' cannot be an operator and a host"), "{ran:?}");
    assert_eq!(run(&["store", "init", "--operator", "alice", "--host", "h1"]).code, 0);
    for (args, part) in [
        (&["host", "add", "alice"][..], "the store's user alice has the role vnet-operators already"),
        (&["store", "init", "--operator", "h1"], "the store's user h1 has the role vnet-host-h1 already"),
        (
            &["store", "init", "--operator", "bob", "--host", "alice"],
            "the store's user alice has the role vnet-operators already",
        ),
    ] {
        let ran = run(args);
        assert!(ran.code == 1 && ran.err.contains(part), "{args:?}: {ran:?}");
    }
    assert_eq!(etcd.get(&Key::Registration("alice".into())), None);
    // One that was registered before this was looked at.
    etcd.put(&Key::Registration("alice".into()), &json!({"number": 2}));
    assert_eq!(run(&["host", "remove", "alice"]).out, "host/alice removed\n");
    assert_eq!(write_as(&etcd, "alice", &lb("web").to_string()), Ok(()), "the operator is gone");
    assert_eq!(run(&["host", "remove", "h1"]).code, 0);
    assert_eq!(write_as(&etcd, "h1", &Key::Alive("h1".into()).to_string()), Err(Failure::Denied));
}

#[test]
fn a_store_that_does_not_look_at_names_is_left_as_it_was() {
    let etcd = Etcd::start_tls_nameless();
    let host = Host::start();
    let ran = run_as(&host, &etcd, "root", &["store", "init", "--operator", "alice"]);
    for part in ["did not take this certificate for root's, and checks nobody, as before", "--client-cert-auth"] {
        assert!(ran.code == 1 && ran.err.contains(part), "{ran:?}");
    }
    assert!(!checks(&etcd));
    assert_eq!(rescuers(&etcd), Vec::<String>::new());
    let ran = run_as(&host, &etcd, "root", &["store", "init", "--operator", "alice", "--no-auth"]);
    assert!(ran.code == 0 && ran.out.contains("whoever reaches it may do everything"), "{ran:?}");
    assert!(etcd.get_raw(SERIAL).is_some(), "agents would say that it was never set up");
    let ran = host.run(&["store", "init", "--operator", "alice", "--store", "etcd://127.0.0.1:1"]);
    assert!(ran.code == 1 && ran.err.contains("no member of the store can be used"), "{ran:?}");
    let plain = Etcd::start();
    let ran = host.run(&["store", "init", "--operator", "alice", "--store", &plain.url()]);
    assert!(ran.code == 1 && ran.err.contains("is used without TLS") && ran.err.contains("--no-auth"), "{ran:?}");
    assert_eq!(host.run(&["store", "init", "--store", &plain.url()]).code, 2);
}

#[test]
fn the_stores_status_counts_what_it_holds() {
    let etcd = Etcd::start();
    let host = Host::start();
    etcd.put(&lb("web"), &json!({}));
    etcd.put(&Key::Endpoint("h1".into(), "vm".into()), &json!({}));
    etcd.write(&[Write::Put("/vnet/v1/desired/later/x".into(), b"{}".to_vec(), 0)]);
    let store = format!("{},127.0.0.1:1", etcd.url());
    let ran = host.run(&["store", "status", "--store", &store]);
    for part in [
        "127.0.0.1:1 ",
        "silent",
        "answers, leads",
        "\nresource LoadBalancer          1     45B\n",
        "\nendpoint                       1     ",
        "\nnot known to this version      1     ",
        "not checked: whoever reaches the store",
        "nobody: there is no certificate",
    ] {
        assert!(ran.code == 0 && ran.out.contains(part), "no {part} in:\n{}{}", ran.out, ran.err);
    }
    let json: Value = serde_json::from_str(&host.run(&["store", "status", "--store", &store, "-o", "json"]).out).unwrap();
    assert_eq!((&json["checksClients"], &json["members"][1]["answers"]), (&json!(false), &json!(false)));
    assert!(json["members"][0]["version"].as_str().unwrap().starts_with("3."), "{json}");
    let ran = host.run(&["store", "status", "--store", "etcd://127.0.0.1:1"]);
    assert!(ran.code == 1 && ran.err.contains("no member of the store can be used"), "{ran:?}");
}

/// What a restored store must have again.
fn fill(etcd: &Etcd) {
    let value = json!({"resource": {"kind": "Policy", "metadata": {"name": "p"}}, "newer": [1]});
    let base = etcd.write(&others(&[
        (&Key::Resource("Policy".into(), "p".into()), value.clone()),
        (&lb("web"), json!({"resource": {"kind": "LoadBalancer", "metadata": {"name": "web"}, "spec": {"a": 1}}})),
        (&Key::Override("web".into(), "a".into()), json!({"drained": true, "weight": null, "newer": 2})),
        (&Key::Registration("h1".into()), json!({"number": 5, "newer": 3})),
    ]));
    etcd.put(&Key::Rollout("r".into()), &json!({"hosts": ["h1"], "put": [value], "bases": [["Policy", "p", base]], "newer": 4}));
    etcd.write(&[Write::Put("/vnet/v1/desired/later/x".into(), b"{\"y\":1}".to_vec(), 0)]);
    etcd.put(&Key::Alive("h1".into()), &json!({"version": "1"}));
}

/// All that is desired but rollouts' revisions.
fn content(etcd: &Etcd) -> Vec<(String, Value)> {
    let keys = etcd.keys("/vnet/v1/desired/");
    let value = |key: String| {
        let mut value = etcd.get_raw(&key).unwrap().0;
        value.as_object_mut().map(|object| object.remove("bases"));
        (key, value)
    };
    keys.into_iter().filter(|key| key != SERIAL).map(value).collect()
}

#[test]
fn what_is_backed_up_is_restored_to_the_last_field() {
    let (from, to) = (Etcd::start(), Etcd::start());
    let host = Host::start();
    fill(&from);
    host.file("fleet.json", "old, and readable for all");
    let ran = host.run(&["store", "backup", "fleet.json", "--store", &from.url()]);
    let counts = "1 host, 1 member change, 2 resources, 1 rollout, 1 unknown value";
    assert!(ran.code == 0 && ran.err.starts_with(counts), "{ran:?}");
    let file = host.directory.join("fleet.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("state/alive"), "{text}");
    assert_eq!(std::fs::read_dir(&host.directory).unwrap().flatten().filter(|e| e.file_name() != "fleet.json").count(), 2);
    let piped = host.run(&["store", "backup", "-", "--store", &from.url()]);
    let values = |text: &str| serde_json::from_str::<Value>(text).unwrap()["values"].clone();
    assert_eq!(values(&piped.out), values(&text));

    let restore = |more: &[&str]| host.run(&[&["store", "restore", "fleet.json", "--store", &to.url()], more].concat());
    to.put(&Key::Registration("h9".into()), &json!({"number": 9}));
    let ran = restore(&[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains(&format!("{counts} are in {}, read back and compared; 6 values were written", to.url())), "{ran:?}");
    assert!(ran.out.contains("not in the backup, and still there: host/h9"), "{ran:?}");
    let mut all = content(&from);
    all.push((Key::Registration("h9".into()).to_string(), json!({"number": 9})));
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(content(&to), all);
    // The rollout can be promoted there: it goes by what it was compared with.
    let (record, _) = to.get(&Key::Rollout("r".into())).unwrap();
    assert_eq!(record["bases"][0][2], to.get(&Key::Resource("Policy".into(), "p".into())).unwrap().1);
    let serial = to.get_raw(SERIAL).unwrap();
    assert!(restore(&[]).out.contains("0 values were written"));
    assert_eq!(to.get_raw(SERIAL).unwrap(), serial);

    to.put(&lb("more"), &json!({"resource": {}}));
    to.put(&lb("web"), &json!({"resource": {}}));
    let before = content(&to);
    let ran = restore(&[]);
    assert!(ran.code == 1 && ran.err.contains("(loadbalancer/more, loadbalancer/web); --replace"), "{ran:?}");
    assert_eq!(content(&to), before);
    assert_eq!(restore(&["--replace"]).code, 0);
    assert_eq!(content(&to), all);
}

#[test]
fn a_backup_goes_into_what_is_there_if_that_is_no_file() {
    let etcd = Etcd::start();
    let host = Host::start();
    fill(&etcd);
    let backup = |file: &str| host.run(&["store", "backup", file, "--store", &etcd.url()]);
    let pipe = host.directory.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // One end that reads nothing yet: neither waits for the other.
    let reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    assert_eq!(backup("pipe").code, 0);
    assert!(std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let mut text = vec![0; 64];
    (&reader).read_exact(&mut text).unwrap();
    assert!(text.starts_with(b"{\n  \"version\": 1,"), "{text:?}");

    let (link, file) = (host.directory.join("last.json"), host.directory.join("monday.json"));
    host.file("monday.json", "old");
    std::os::unix::fs::symlink("monday.json", &link).unwrap();
    assert_eq!(backup("last.json").code, 0);
    assert_eq!(std::fs::read_link(&link).unwrap(), std::path::Path::new("monday.json"));
    assert!(std::fs::read_to_string(&file).unwrap().starts_with('{'));
}

#[test]
fn numbers_of_hosts_are_not_given_twice_by_a_restore() {
    let (from, to) = (Etcd::start(), Etcd::start());
    let host = Host::start();
    fill(&from);
    host.run(&["store", "backup", "fleet.json", "--store", &from.url()]);
    let restore = || host.run(&["store", "restore", "fleet.json", "--replace", "--store", &to.url()]);
    to.put(&Key::Registration("other".into()), &json!({"number": 5}));
    let ran = restore();
    assert!(ran.code == 1 && ran.err.contains("host/h1 has the number 5 in the backup, and host/other has it"), "{ran:?}");
    to.put(&Key::Registration("other".into()), &json!({"number": 6}));
    to.put(&Key::Registration("h1".into()), &json!({"number": 7}));
    to.put(&Key::Alive("h1".into()), &json!({}));
    let ran = restore();
    assert!(ran.code == 1 && ran.err.contains("host 'h1' is alive with another number"), "{ran:?}");
    assert_eq!(to.get(&lb("web")), None);
    to.write(&[Write::Delete(Key::Alive("h1".into()).to_string())]);
    assert_eq!(restore().code, 0);
    assert_eq!(to.get(&Key::Registration("h1".into())).unwrap().0["number"], 5);
}

#[test]
fn much_is_restored_in_several_transactions() {
    let (from, to) = (Etcd::start(), Etcd::start());
    let host = Host::start();
    let many: Vec<_> = (0..300).map(|i| (lb(&format!("lb{i}")), json!({"resource": {"i": i}}))).collect();
    for part in many.chunks(100) {
        from.write(&others(&part.iter().map(|(key, value)| (key, value.clone())).collect::<Vec<_>>()));
    }
    host.run(&["store", "backup", "fleet.json", "--store", &from.url()]);
    let ran = host.run(&["store", "restore", "fleet.json", "--store", &to.url()]);
    assert!(ran.code == 0 && ran.out.contains("300 resources are in"), "{ran:?}");
    assert_eq!(content(&to), content(&from));
}

#[test]
fn an_agents_own_store_moves_into_an_etcd_and_back() {
    let etcd = Etcd::start();
    let host = Host::start();
    let url = etcd.url();
    host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns"));
    host.run(&["lb", "drain", "web", "a"]);
    host.run(&["lb", "weight", "web", "b", "7"]);
    etcd.put(&Key::Registration("h1".into()), &json!({"number": 1}));
    let ran = host.run(&["store", "migrate", "--to", &url]);
    assert!(ran.code == 0 && ran.out.contains("2 member changes, 2 resources are in") && ran.out.contains("--store"), "{ran:?}");
    let web: Value = serde_saphyr::from_str(WEB).unwrap();
    let (stored, _) = etcd.get(&lb("web")).unwrap();
    assert_eq!(stored, json!({"resource": web, "origin": {"file": "own.yaml", "line": 3}, "newer": true}));
    assert_eq!(etcd.get(&Key::Override("web".into(), "b".into())).unwrap().0, json!({"drained": false, "weight": 7}));
    assert!(host.run(&["store", "migrate", "--to", &url]).out.contains("read back and compared"), "a second time is the same");
    host.run_with_input(&["apply", "-f", "-"], &load_balancer("dns").replace("53", "54"));
    let ran = host.run(&["store", "migrate", "--to", &url]);
    assert!(ran.code == 1 && ran.err.contains("has resources already (member web/a, member web/b, loadbalancer/dns"), "{ran:?}");
    assert_eq!(etcd.get(&lb("dns")).unwrap().0["resource"]["spec"]["ports"], json!([53]));
    assert_eq!(host.run(&["store", "migrate", "--to", &url, "--replace"]).code, 0);
    assert_eq!(etcd.get(&lb("dns")).unwrap().0["resource"]["spec"]["ports"], json!([54]));

    // The way back, into another agent.
    let other = Host::start();
    other.memory.forget_resources();
    etcd.put(&Key::Override("web".into(), "c".into()), &json!({"drained": false, "weight": null}));
    etcd.put(&Key::Rollout("r".into()), &json!({"hosts": [], "put": [], "bases": []}));
    let ran = other.run(&["store", "migrate", "--from", &url]);
    assert!(ran.code == 0 && ran.out.starts_with("2 member changes, 2 resources of"), "{ran:?}");
    assert!(ran.err.contains("rollout/r stays in the store"), "{ran:?}");
    assert_eq!(other.run(&["get", "all", "-o", "json"]).out, other_order(&host.run(&["get", "all", "-o", "json"]).out));
    let members: Value = serde_json::from_str(&other.run(&["lb", "members", "web", "-o", "json"]).out).unwrap();
    assert_eq!((&members["members"][0]["state"], &members["members"][1]["weight"]), (&json!("draining"), &json!(7)));

    other.run_with_input(&["apply", "-f", "-"], &load_balancer("more"));
    other.run(&["lb", "weight", "web", "c", "3"]);
    let ran = other.run(&["store", "migrate", "--from", &url]);
    assert!(ran.code == 1 && ran.err.contains("only this agent has member web/c, loadbalancer/more; --replace"), "{ran:?}");
    let ran = other.run(&["store", "migrate", "--from", &url, "--replace"]);
    assert_eq!((ran.code, other.run(&["get", "lb", "more"]).code), (0, 1), "{ran:?}");
    // What an agent does not take is said.
    etcd.put(&lb("dns"), &json!({"resource": {"kind": "LoadBalancer", "metadata": {"name": "dns"}, "prots": 1}}));
    let ran = other.run(&["store", "migrate", "--from", &url]);
    assert!(ran.code == 1 && ran.err.contains("store:loadbalancer/dns:") && ran.err.contains("did you mean `ports`?"), "{ran:?}");
    etcd.put(&lb("dns"), &other_value());
    etcd.put(&Key::Override("web".into(), "gone".into()), &json!({"drained": true, "weight": null}));
    let ran = other.run(&["store", "migrate", "--from", &url]);
    for part in ["member web/gone could not be changed", "the agent does not have what", "member web/gone is missing"] {
        assert!(ran.code == 1 && ran.err.contains(part), "no {part}: {ran:?}");
    }
    other.join(Fleet::of(etcd.access("root"), &["h1"]));
    for direction in ["--to", "--from"] {
        let ran = other.run(&["store", "migrate", direction, &url]);
        assert!(ran.code == 1 && ran.err.contains("in a fleet"), "{ran:?}");
    }
    assert_eq!(other.run(&["store", "migrate"]).code, 2);
    assert_eq!(other.run(&["store", "migrate", "--to", &url, "--from", &url]).code, 2);
}

fn other_value() -> Value {
    json!({"resource": serde_saphyr::from_str::<Value>(&load_balancer("dns")).unwrap()})
}

/// The same list of resources, by name: an agent that got them from a store has them in that order.
fn other_order(json: &str) -> String {
    let mut list: Vec<Value> = serde_json::from_str(json).unwrap();
    let discovered = list.pop();
    list.sort_by_key(|resource| resource["metadata"]["name"].as_str().unwrap().to_owned());
    serde_json::to_string_pretty(&list.into_iter().chain(discovered).collect::<Vec<_>>()).unwrap() + "\n"
}
