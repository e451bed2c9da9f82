//! `events`, `flows`, `top` and `endpoint ls`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Host, ran};

const DROP: &str =
    "drop       tap0  egress  denied  TCP 10.0.0.1:40000 > [fd00::9]:22 S  74B  (peer world)  by policy/base no-ssh: deny";

#[test]
fn events_that_are_kept_come_one_a_line() {
    let host = Host::start();
    let ran = host.run(&["events"]);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((ran.code, lines.len()), (0, 5), "{ran:?}");
    assert_eq!(lines[0], format!("2023-11-14 22:13:20.001 {DROP}"));
    assert_eq!(lines[1], "2023-11-14 22:13:20.002 suppressed tap0  egress  42 events not reported");
    assert!(lines[3].contains("move       tap0") && lines[3].ends_with("web ->  [31mstrict"), "{}", lines[3]);
    assert_eq!(ran.err, "1 event after number 3 cannot be shown: more came than the agent keeps\n");
    let wide = host.run(&["events", "-o", "wide", "--limit", "1"]).out;
    assert!(wide.starts_with("6        2023") && wide.ends_with("by policy/base no-ssh (base.yaml:12): deny\n"), "{wide}");
}

#[test]
fn events_are_filtered() {
    let host = Host::start();
    let numbers = |args: &[&str]| -> Vec<u64> {
        let ran = host.run(&[&["events", "-o", "json"], args].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&["--kind", "move"]), [5]);
    assert_eq!(numbers(&["--kind", "move,suppressed"]), [2, 5]);
    assert_eq!(numbers(&["--since", "3"]), [5, 6]);
    assert_eq!(numbers(&["--since", "10m"]), [5], "all others are years old");
    assert_eq!(numbers(&["--limit", "2", "--endpoint", "tap0"]), [5, 6]);
    let ran = host.run(&["events", "--since", "6"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, "the agent has no such events\n"));
    let ran = host.run(&["events", "--endpoint", "tapo", "--kind", "move"]);
    assert!(ran.code == 0 && ran.err.contains("there is no endpoint 'tapo'; did you mean 'tap0'?"), "{ran:?}");
    for (args, part) in [
        (["--kind", "drops"], "'drop'"),
        (["--since", "soon"], "neither the number of an event nor a time"),
        (["--limit", "0"], "0 is not in"),
    ] {
        let ran = host.run(&[&["events"], &args[..]].concat());
        assert!(ran.code == 2 && ran.err.contains(part), "{ran:?}");
    }
}

#[test]
fn following_ends_with_ctrl_c_the_limit_or_the_agent() {
    let host = Host::start();
    let mut child =
        host.command(&["events", "-f", "--kind", "drop"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.by_ref().take(3).filter(|line| line.contains(" drop       tap0  egress  denied  TCP ")).count(), 3);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(lines.next(), None);
    let ended = ran(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));

    let ended = host.run(&["events", "--follow", "--limit", "2", "-o", "yaml"]);
    assert!(ended.code == 0 && ended.out.matches("---\nnumber:").count() == 2, "{ended:?}");
    let ended = host.run(&["events", "--follow", "--reason", "end"]);
    assert!(ended.code == 1 && ended.out.lines().count() == 5, "{ended:?}");
    assert!(ended.err.contains("the agent has ended the stream after event 6: it ends or restarts"), "{ended:?}");
}

#[test]
fn a_reader_of_events_that_goes_away_is_no_error() {
    let host = Host::start();
    let mut child = host.command(&["events", "--follow"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn flows_say_who_lets_them() {
    let host = Host::start();
    let expected = "\
ENDPOINT   OPENED   PROTOCOL   LOCAL            REMOTE          PEER    MEMBER           VERDICT      RULE                        STATE         PACKETS     SENT   RECEIVED     AGE
tap0       out      TCP        10.0.0.1:40000   10.0.0.9:443    world   -                allowed      securitygroup/web web-out   established        18   1.0KiB     2.0KiB   1m15s
tap0       out      TCP        10.0.0.1:40000   10.0.0.100:80   world   10.0.0.11:8080   redirected   securitygroup/web web-out   established        18   1.0KiB     2.0KiB   1m15s
";
    assert_eq!(host.run(&["flows"]).out, expected);
    let one = host.run(&["flows", "tap0", "--limit", "1", "-o", "wide"]).out;
    assert!(one.contains("web.yaml:20\n") && one.ends_with("1 of 2 flows; --limit shows more\n"), "{one}");
    let json: Value = serde_json::from_str(&host.run(&["flows", "-o", "json"]).out).unwrap();
    assert_eq!((&json["total"], &json["flows"][1]["lb"]), (&2.into(), &"web".into()));
    let ran = host.run(&["flows", "tapo"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n"));
}

#[test]
fn top_compares_two_looks() {
    let host = Host::start();
    for name in ["vm1", "vm2"] {
        let resource = serde_json::json!({
            "apiVersion": "vnet/v1alpha1", "kind": "Endpoint", "metadata": {"name": name}, "spec": {"device": name},
        });
        host.run_with_input(&["apply", "-f", "-"], &resource.to_string());
    }
    let top: Value = serde_json::from_str(&host.run(&["top", "--once", "-n", "2", "-o", "json"]).out).unwrap();
    assert_eq!((top["endpoints"].as_array().unwrap().len(), &top["flows_total"]), (2, &2.into()));
    let busy = &top["endpoints"][0];
    // The counters grow with each look: by two between two looks of `top`, which looks at two things each time.
    let seconds = top["seconds"].as_f64().unwrap();
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() * seconds / expected - 1.0).abs() < 0.01;
    assert!(near(&busy["bytes_per_second"][0], f64::from(2 << 20)), "{top}");
    assert!(near(&busy["packets_per_second"], 1500.0) && near(&busy["drops_per_second"], 100.0), "{top}");
    assert_eq!(top["flows"].as_array().unwrap().len(), 1, "the other flow had no packet: {top}");
    assert_eq!(top["flows"][0]["remote"], "10.0.0.9:443");
    let text = host.run(&["top", "--once", "--sort", "name"]).out;
    let names: Vec<&str> = text.lines().skip(1).take(3).map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["tap0", "vm1", "vm2"], "{text}");
    assert!(text.contains("DROPS/S") && text.contains("\n\nENDPOINT   PROTOCOL"), "{text}");
    assert_eq!(host.run(&["top", "--once", "--watch"]).code, 2);
}

#[test]
fn top_goes_on_until_interrupted() {
    let host = Host::start();
    let mut child = host.command(&["top"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.by_ref().filter(|line| line.starts_with("ENDPOINT   GROUP")).take(2).count(), 2);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(lines.all(|line| !line.contains('\x1b')));
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn endpoints_are_listed() {
    let host = Host::start();
    let expected = "\
NAME   DEVICE   ORIGIN       STATE      GROUP   POLICY    ADDRESSES     SENT   RECEIVED
tap0   tap0     discovered   attached   web     policed   10.0.0.1    2.0KiB        10B
";
    assert_eq!(host.run(&["endpoint", "ls"]).out, expected);
    assert!(host.run(&["endpoint", "ls", "tap0", "-o", "wide"]).out.contains("IDENTITY"));
    assert_eq!(host.run(&["endpoint", "ls", "tapo"]).err, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n");
}
