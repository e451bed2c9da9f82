//! Every verb: what it prints where, and its exit code.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Host, WEB, load_balancer, ran};

#[test]
fn apply_creates_configures_and_leaves_alone() {
    let host = Host::start();
    host.file("dns.yaml", &load_balancer("dns"));
    let ran = host.run(&["apply", "-f", "dns.yaml"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "loadbalancer/dns created\n", ""));
    assert_eq!(host.run(&["apply", "-f", "dns.yaml"]).out, "loadbalancer/dns unchanged\n");
    let changed = load_balancer("dns").replace("53", "54");
    let ran = host.run_with_input(&["apply", "-f", "-", "--dry-run"], &changed);
    assert_eq!(ran.out, "loadbalancer/dns configured (dry run)\n");
    assert_eq!(host.run_with_input(&["apply", "-f", "-"], &changed).out, "loadbalancer/dns configured\n");
}

#[test]
fn apply_takes_directories_and_what_get_gives() {
    let host = Host::start();
    host.file("all/2.yml", &load_balancer("two"));
    host.file("all/1.yaml", &load_balancer("one"));
    host.file("all/.hidden.yaml", "prots");
    host.file("all/README.md", "prots");
    assert_eq!(host.run(&["apply", "-f", "all"]).out, "loadbalancer/one created\nloadbalancer/two created\n");
    for format in ["json", "yaml"] {
        let resources = host.run(&["get", "all", "-o", format]).out;
        let again = host.run_with_input(&["apply", "-f", "-"], &resources);
        assert_eq!(again.out, "loadbalancer/web unchanged\nloadbalancer/one unchanged\nloadbalancer/two unchanged\n", "{format}");
    }
    std::fs::create_dir(host.directory.join("empty")).unwrap();
    let ran = host.run(&["apply", "-f", "empty"]);
    assert!(ran.code == 1 && ran.err.contains("there are no resources in empty"), "{ran:?}");
}

#[test]
fn warnings_are_beside_the_output() {
    let host = Host::start();
    let ran = host.run_with_input(&["apply", "-f", "-"], &load_balancer("odd"));
    assert_eq!((ran.code, ran.out.as_str()), (0, "loadbalancer/odd created\n"));
    assert_eq!(ran.err, "warning: loadbalancer/odd has no members\n");
}

#[test]
fn every_fault_is_told_with_its_place() {
    let host = Host::start();
    host.file("a.yaml", "spec:\n  prots: [80]\n");
    host.file("b.yaml", "prots: 1\n");
    let ran = host.run(&["apply", "-f", "a.yaml", "-f", "b.yaml"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(
        ran.err,
        "a.yaml:2:3: unknown field `prots`, did you mean `ports`?\n  |\n2 |   prots: [80]\n  |   ^^^^^\n\n\
         b.yaml:1:3: unknown field `prots`, did you mean `ports`?\n  |\n1 | prots: 1\n  |   ^^^^^\n\n\
         error: nothing was applied: 2 faults in 2 files\n"
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let host = Host::start();
    let ran = host.run(&["apply", "-f", "nowhere.yaml"]);
    assert_eq!(ran.err, "error: reading nowhere.yaml: No such file or directory (os error 2)\n");
    let ran = host.run(&["apply", "-f", "-", "-f", "-"]);
    assert!(ran.code == 2 && ran.err.contains("standard input can be read once"), "{ran:?}");
    assert_eq!(host.run(&["apply"]).code, 2);
}

#[test]
fn diff_tells_by_its_exit_code() {
    let host = Host::start();
    let ran = host.run_with_input(&["diff", "-f", "-"], WEB);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    let ran = host.run_with_input(&["diff", "-f", "-"], &WEB.replace("443", "444"));
    let expected = "--- live/loadbalancer/web\n+++ new/loadbalancer/web\n@@ -1 +1 @@\n-old: true\n+new: true\n";
    assert_eq!((ran.code, ran.out.as_str()), (1, expected));
    let ran = host.run_with_input(&["diff", "-f", "-", "--color=always"], &load_balancer("dns"));
    let expected = "\x1b[1m--- /dev/null\x1b[0m\n\x1b[1m+++ new/loadbalancer/dns\x1b[0m\n\x1b[36m@@ -0,0 +1 @@\x1b[0m\n\x1b[32m+new: true\x1b[0m\n";
    assert_eq!((ran.code, ran.out.as_str()), (1, expected));
    assert_eq!(host.run_with_input(&["diff", "-f", "-"], "prots").code, 2);
    assert_eq!(host.run(&["diff", "-f", "nowhere.yaml"]).code, 2);
    assert_eq!(host.run(&["get", "lb", "dns"]).code, 1, "diff changed something");
}

#[test]
fn get_lists_what_is() {
    let host = Host::start();
    let expected = "\
NAME   VIPS                   PROTOCOL   PORTS    READY   DELIVERY
web    10.0.0.100,fd00::100   TCP        80,443   2/3     stack
";
    for kind in ["lb", "lbs", "loadbalancer", "LoadBalancers", "lb/web"] {
        assert_eq!(host.run(&["get", kind]).out, expected, "{kind}");
    }
    let endpoints = "\
NAME   DEVICE   ORIGIN       STATE      GROUP   POLICY    ADDRESSES     SENT   RECEIVED
tap0   tap0     discovered   attached   web     policed   10.0.0.1    2.0KiB        10B
";
    assert_eq!(host.run(&["get", "ep", "tap0"]).out, endpoints);
    let all = host.run(&["get", "all"]).out;
    assert!(all.contains("\nloadbalancer/web ") && all.contains("\n\nNAME") && all.contains("\nendpoint/tap0 "), "{all}");
    assert!(host.run(&["get", "lb", "-o", "wide"]).out.contains("a,b,c"));
}

#[test]
fn get_gives_resources_to_programs() {
    let host = Host::start();
    let one: Value = serde_json::from_str(&host.run(&["get", "lb", "web", "-o", "json"]).out).unwrap();
    assert_eq!(one["spec"]["ports"], serde_json::json!([80, 443]));
    let list: Value = serde_json::from_str(&host.run(&["get", "lb", "-o", "json"]).out).unwrap();
    assert_eq!(list, serde_json::json!([one]));
    let yaml: Value = serde_saphyr::from_str(&host.run(&["get", "lb", "-o", "yaml"]).out).unwrap();
    assert_eq!(yaml, one);
}

#[test]
fn programs_get_the_endpoints_that_people_see() {
    let host = Host::start();
    let applied = serde_json::json!({
        "apiVersion": "vnet/v1alpha1", "kind": "Endpoint", "metadata": {"name": "vm1"}, "spec": {"device": "tap1"},
    });
    let found = serde_json::json!({
        "apiVersion": "vnet/v1alpha1", "kind": "Endpoint", "metadata": {"name": "tap0"}, "discovered": true,
        "spec": {"device": "tap0", "mac": "52:54:00:00:00:01", "addresses": ["10.0.0.1"]},
    });
    host.run_with_input(&["apply", "-f", "-"], &applied.to_string());
    let get = |what: &[&str]| -> Value { serde_json::from_str(&host.run(&[&["get", "-o", "json"], what].concat()).out).unwrap() };
    assert_eq!(get(&["ep"]), serde_json::json!([applied, found]));
    assert_eq!((get(&["ep", "tap0"]), get(&["ep/vm1"])), (found.clone(), applied));
    assert_eq!(get(&["all"])[2], found, "after web and vm1");
    let yaml = host.run(&["get", "ep", "tap0", "-o", "yaml"]).out;
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), found);
    let table = host.run(&["get", "ep"]).out;
    assert!(table.contains("ORIGIN") && table.contains("discovered") && table.contains("applied"), "{table}");
    let ran = host.run_with_input(&["delete", "-f", "-"], &host.run(&["get", "ep", "-o", "yaml"]).out);
    assert_eq!((ran.code, ran.out.as_str()), (0, "endpoint/vm1 deleted\n"), "{ran:?}");
}

#[test]
fn describe_says_everything() {
    let host = Host::start();
    let lb = host.run(&["describe", "lb", "web"]).out;
    for part in ["app shop", "10.0.0.100, fd00::100", "interval 500ms, timeout 1.5s", "[fd00::13]:8080", "connection refused"] {
        assert!(lb.contains(part), "no {part} in:\n{lb}");
    }
    let ep = host.run(&["describe", "endpoint/tap0"]).out;
    for part in ["tap0 (index 7)", "discovered", "52:54:00:00:00:01", "egress      lb-new-flow         4"] {
        assert!(ep.contains(part), "no {part} in:\n{ep}");
    }
    let live: Value = serde_json::from_str(&host.run(&["describe", "ep", "tap0", "-o", "json"]).out).unwrap();
    assert_eq!(live["bytes"], serde_json::json!([2048, 10]));
    assert_eq!(host.run(&["describe", "lb"]).code, 2);
}

#[test]
fn delete_deletes_what_is_there() {
    let host = Host::start();
    assert_eq!(host.run(&["delete", "lb", "web"]).out, "loadbalancer/web deleted\n");
    assert_eq!(host.run(&["delete", "lb/web", "--ignore-not-found"]).code, 0);
    host.file("two.yaml", &format!("{}---\n{WEB}", load_balancer("dns")));
    host.run(&["apply", "-f", "two.yaml"]);
    host.run(&["delete", "lb", "dns"]);
    let ran = host.run(&["delete", "-f", "two.yaml"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(ran.err, "error: there is no loadbalancer/dns; there is: web\n");
    assert_eq!(host.run(&["delete", "-f", "two.yaml", "--ignore-not-found"]).out, "loadbalancer/web deleted\n");
    host.file("odd.yaml", "kind: LoadBalancer\n");
    let ran = host.run(&["delete", "-f", "odd.yaml"]);
    assert!(ran.code == 1 && ran.err.contains("odd.yaml") && ran.err.contains("metadata"), "{ran:?}");
    for args in [&["delete"][..], &["delete", "lb", "web", "-f", "two.yaml"]] {
        assert_eq!(host.run(args).code, 2, "{args:?}");
    }
}

#[test]
fn status_has_numbers_for_people_and_for_programs() {
    let host = Host::start();
    let expected = "\
vnet-agent 1.2.3: running for 2h5m, process 42, map layout 0
  Policy generation  0
  Endpoints          2
  Load balancers     1
  Memory             agent 12.0MiB, maps 0B
  1 alarm:
    ! the flow table is 91% full: raise --flows

MAP      USED   CAPACITY   FULL    MEMORY   HOLDS
flows     910       1000    91%   64.0MiB   flows
config      -          1      -   64.0MiB   flows
";
    assert_eq!(host.run(&["status"]).out, expected);
    let status: Value = serde_json::from_str(&host.run(&["status", "-o", "json"]).out).unwrap();
    assert_eq!(status["rss_bytes"], 12 << 20);
}

#[test]
fn members_are_listed_and_changed() {
    let host = Host::start();
    let expected = "\
MEMBER   ADDRESS           WEIGHT   STATE    FLOWS   NEW   SHARE   CONNECT   RESETS       TO     FROM   HEALTH
a        10.0.0.11:8080         1   active       3    30     75%    215 µs        0   4.4KiB   439KiB   -
b        10.0.0.12:8080         1   active       1    10     25%    215 µs        0   1.5KiB   146KiB   -
c        [fd00::13]:8080        1   down         0     0      0%         -        0       0B       0B   connection refused
";
    assert_eq!(host.run(&["lb", "members", "web"]).out, expected);
    let wide = host.run(&["lb", "members", "web", "-o", "wide"]).out;
    assert!(wide.contains("<256 µs") && wide.contains("BY MEMBER"), "{wide}");
    assert_eq!(host.run(&["lb", "drain", "web", "a"]).out, "member web/a draining (0 flows left)\n");
    assert_eq!(host.run(&["lb", "drain", "web", "b", "--wait"]).out, "member web/b draining (0 flows left)\n");
    assert_eq!(host.run(&["lb", "undrain", "web", "a"]).out, "member web/a active (weight 1)\n");
    assert_eq!(host.run(&["lb", "weight", "web", "a", "5"]).out, "member web/a weight 5\n");
    assert_eq!(host.run(&["lb", "weight", "web", "a", "reset"]).out, "member web/a weight 1, as its resource has it\n");
    for weight in ["1001", "-2", "x"] {
        assert_eq!(host.run(&["lb", "weight", "web", "a", weight]).code, 2, "{weight}");
    }
    let ls = host.run(&["lb", "ls"]).out;
    assert!(ls.starts_with("NAME") && ls.contains("80,443/TCP"), "{ls}");
}

#[test]
fn flows_say_how_many_there_are() {
    let host = Host::start();
    let ran = host.run(&["lb", "flows", "web", "--limit", "1"]);
    let expected = "\
PROTOCOL   CLIENT           VIP             MEMBER           STATE           SENT   RECEIVED     AGE   IDLE
TCP        10.0.0.1:40000   10.0.0.100:80   10.0.0.11:8080   established   1.0KiB     2.0KiB   1m15s     3s
";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, expected, "1 of 200 flows; --limit shows more\n"));
    assert_eq!(host.run(&["lb", "flows", "--limit", "65537"]).code, 2);
}

#[test]
fn watching_goes_on_until_interrupted() {
    let host = Host::start();
    let mut command = host.command(&["lb", "members", "web", "--watch"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let tables: Vec<String> = lines.by_ref().filter(|line| line.starts_with("MEMBER")).take(3).collect();
    assert!(!tables[0].contains("NEW/S") && tables[1].contains("NEW/S") && tables[1] == tables[2], "{tables:?}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert!(lines.all(|line| !line.contains('\x1b')));
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn detach_asks_first() {
    let host = Host::start();
    let ran = host.run(&["detach"]);
    assert!(ran.code == 2 && ran.out.is_empty() && ran.err.contains("--yes"), "{ran:?}");
    let ran = host.run(&["detach", "--yes"]);
    assert_eq!(ran.out, "device/tap0 detached\ndevice/tap1 detached\n2 devices, 200 flows forgotten; the agent has ended\n");
}
