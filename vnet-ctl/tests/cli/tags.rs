//! `tag` and `tag source`.

use serde_json::{Value, json};

use crate::support::Host;

#[test]
fn tags_are_put_on_listed_and_taken_off() {
    let host = Host::start();
    assert_eq!(host.run(&["tag", "ls"]).err, "there are no tags\n");
    let ran = host.run(&[
        "tag",
        "add",
        "tap0",
        "malware=emotet",
        "--severity",
        "9",
        "--ttl",
        "1h30m",
        "--hold-on-expiry",
        "--evidence",
        "ticket 4711",
    ]);
    assert_eq!(ran.out, "endpoint/tap0 tagged malware=emotet (severity 9, expires in 1h30m, and holds on)\n", "{ran:?}");
    let expected = json!({
        "subject": "tap0", "name": "malware", "value": "emotet", "instance": "", "severity": 9, "confidence": 100,
        "evidence": "ticket 4711", "ttl_seconds": 5400, "hold_on_expiry": true,
    });
    assert_eq!(host.asked("tags"), expected);
    let ran = host.run(&["tag", "add", "tap0", "session", "--instance", "alice", "--confidence", "50"]);
    assert_eq!(ran.out, "endpoint/tap0 tagged session[alice] (severity 0, never expires)\n");
    let expected = "\
ENDPOINT   TAG              SEVERITY   SOURCE     EXPIRES     EVIDENCE
tap0       malware=emotet          9   operator   in 1h30m    ticket 4711
tap0       session[alice]          0   operator   never       -
";
    assert_eq!(
        host.run(&["tag", "ls"])
            .out
            .replace("in 1h30m ", "in 1h30m  ")
            .replace("EXPIRES  ", "EXPIRES   ")
            .replace("never   ", "never    "),
        expected
    );
    let wide = host.run(&["tag", "list", "tap0", "-o", "wide"]).out;
    assert!(wide.contains("CONFIDENCE") && wide.contains("50%") && wide.contains("hold"), "{wide}");
    let json: Value = serde_json::from_str(&host.run(&["tag", "ls", "-o", "json"]).out).unwrap();
    assert_eq!(json[1]["instance"], "alice");
    assert_eq!(host.run(&["tag", "rm", "tap0", "malware"]).out, "endpoint/tap0 tag malware=emotet of operator removed\n");
    let ran = host.run(&["tag", "rm", "tap0", "session"]);
    let expected = "error: endpoint 'tap0' has no tag 'session' of source 'operator'; there is: operator/session[alice] (--source, --instance)\n";
    assert_eq!((ran.code, ran.err.as_str()), (1, expected));
    assert_eq!(host.run(&["tag", "rm", "tap0", "session", "--instance", "alice"]).code, 0);
}

#[test]
fn impossible_tags_are_wrong_usage() {
    let host = Host::start();
    let cases: [(&[&str], &str); 8] = [
        (&["tap0"], "NAME[=VALUE]"),
        (&["tap0", "=x"], "needs a name"),
        (&["tap0", "x", "--severity", "11"], "11 is not in 0..=10"),
        (&["tap0", "x", "--confidence", "101"], "101 is not in 0..=100"),
        (&["tap0", "x", "--ttl", "soon"], "write 90s, 15m, 1h30m or 2d"),
        (&["tap0", "x", "--ttl", "0"], "at least 1s"),
        (&["tap0", "x", "--ttl", "366d"], "at most 365d"),
        (&["tap0", "x", "--hold-on-expiry"], "--ttl"),
    ];
    for (args, part) in cases {
        let ran = host.run(&[&["tag", "add"], args].concat());
        assert!(ran.code == 2 && ran.out.is_empty() && ran.err.contains(part), "{args:?}: {ran:?}");
    }
    for verb in [&["add", "tapo", "x"][..], &["rm", "tapo", "x"], &["ls", "tapo"]] {
        let ran = host.run(&[&["tag"], verb].concat());
        assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n"), "{verb:?}");
    }
}

#[test]
fn sources_are_listed_with_what_went_wrong() {
    let host = Host::start();
    let expected = "\
NAME       TYPE       STATE    EVENTS   TAGS   MALFORMED   REFUSED   DROPPED    LAST
suricata   suricata   ok           12      3           1         0         0    2h5m
clamav     clamav     silent        0      0           0         0         0   never
falco      json       lost          0      0           0         0         0   never
";
    assert_eq!(host.run(&["tag", "source", "ls"]).out, expected);
    let coloured = host.run(&["tag", "source", "ls", "--color", "always"]).out;
    assert!(coloured.contains("\x1b[32mok") && coloured.contains("\x1b[31mlost"), "{coloured:?}");
    let wide = host.run(&["tag", "source", "ls", "suricata", "-o", "wide"]).out;
    assert!(wide.contains("0   /run/vnet/suricata   line 7 is no JSON\n") && !wide.contains("falco"), "{wide}");
    let ran = host.run(&["tag", "source", "ls", "surikata"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no tag source 'surikata'; did you mean 'suricata'?\n"));
}

#[test]
fn a_source_is_measured() {
    let host = Host::start();
    let ran = host.run(&["tag", "source", "test", "suricata"]);
    let expected = "\
suricata: 5 trials, event to tag: min 215 µs, p50 300 µs, p99 900 µs, max 1.30 ms, 1 without a tag
  ! suricata.yaml: threaded is off: alerts wait for others
";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected));
    let ran = host.run(&["tag", "source", "test", "suricata", "--config", "/etc/s uricata.yaml"]);
    assert!(ran.out.contains("! /etc/s uricata.yaml: threaded"), "{ran:?}");
    let ran = host.run(&["tag", "source", "test", "falco"]);
    assert!(
        ran.code == 1 && ran.out.contains("nobody sends") && ran.err.contains("no event of source 'falco' became a tag"),
        "{ran:?}"
    );
    assert_eq!(host.run(&["tag", "source", "test", "falco", "-o", "json"]).code, 1);
    let ran = host.run(&["tag", "source", "test", "sury"]);
    assert!(ran.code == 1 && ran.err.contains("there is no tag source 'sury'; there is: suricata, clamav, falco"), "{ran:?}");
}

#[test]
fn a_scan_tells_by_its_exit_code() {
    let host = Host::start();
    let ran = host.run(&["tag", "source", "scan", "clamav", "tap0"]);
    let clean = "3 files scanned (2.0KiB), clean\nendpoint/tap0 tagged av.clean\nendpoint/tap0 tag av.malware cleared\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, clean));
    let ran = host.run(&["tag", "source", "scan", "clamav", "tap0", "eicar", "/srv/secret"]);
    let eicar = host.directory.canonicalize().unwrap().join("eicar");
    let expected = format!(
        "{}: infected: Eicar-Signature\n/srv/secret: not scanned: permission denied\n3 files scanned (2.0KiB)\n",
        eicar.display()
    );
    assert_eq!((ran.code, ran.out), (1, expected));
    let ran = host.run(&["tag", "source", "scan", "clamav", "tapo"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n"));
}

#[test]
fn events_are_sent_from_files_and_pipes() {
    let host = Host::start();
    host.file("alerts.json", "{\"a\": 1}\n{\"a\": 2}\n");
    let ran = host.run(&["tag", "source", "send", "falco", "-f", "alerts.json"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "2 events read, 1 tag set or cleared\n", ""));
    let ran = host.run_with_input(&["tag", "source", "send", "falco"], "{\"a\": 1}\n\x1b[31mrubbish\n");
    assert_eq!((ran.code, ran.out.as_str()), (1, "1 event read, 1 tag set or cleared\n"));
    assert_eq!(ran.err, "warning: event 2 is no JSON:  [31mrubbish\n", "what a sender wrote does not command the terminal");
    let ran = host.run(&["tag", "source", "send", "falco"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there are no events in what was given\n"));
    let ran = host.run(&["tag", "source", "send", "falco", "-f", "nowhere.json"]);
    assert!(ran.code == 1 && ran.err.contains("reading nowhere.json"), "{ran:?}");
    let ran = host.run_with_input(&["tag", "source", "send", "falko"], "{}");
    assert!(ran.code == 1 && ran.err.contains("did you mean 'falco'?"), "{ran:?}");
}
