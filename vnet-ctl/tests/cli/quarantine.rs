//! `quarantine`.

use serde_json::{Value, json};
use vnet_common::api::Pending;

use crate::support::{Host, now_ms};

const HOLD: [&str; 7] = ["quarantine", "hold", "tap0", "--group", "strict", "--reason", "ticket 4711"];

fn waiting(endpoint: &str) -> Pending {
    Pending {
        endpoint: endpoint.to_owned(),
        to: "strict".to_owned(),
        transfer: "infected".to_owned(),
        since_ms: now_ms() - 7_530_000,
        because: "brake".to_owned(),
        reason: "ids.malware".to_owned(),
    }
}

#[test]
fn who_is_held_is_listed_with_what_the_release_waits_for() {
    let host = Host::start();
    assert_eq!(host.run(&["quarantine", "ls"]).out, "Held: nobody\n");
    assert_eq!(host.run(&HOLD).out, "endpoint/tap0 held in strict (from web), enforced\n");
    assert_eq!(host.asked("quarantine/tap0/hold"), json!({"group": "strict", "reason": "ticket 4711"}));
    {
        let mut status = host.memory.quarantine.lock().unwrap();
        status.pending.push(waiting("tap0"));
        status.never.push("dns-1".to_owned());
        status.alarms.push("source 'falco' is lost".to_owned());
    }
    let expected = "\
! source 'falco' is lost

Held
ENDPOINT   GROUP    FROM   BY         SINCE   STATE      RELEASE                    REASON
tap0       strict   web    operator    2h5m   enforced   in 3h30m at the earliest   ticket 4711

Waiting for approval
ENDPOINT   TO       TRANSFER   SINCE   BECAUSE OF   REASON
tap0       strict   infected    2h5m   brake        ids.malware

Never
dns-1
";
    assert_eq!(host.run(&["quarantine", "ls"]).out, expected);
    assert!(host.run(&["quarantine", "ls", "-o", "wide"]).out.contains("suricata/ids.malware=x"));
    let json: Value = serde_json::from_str(&host.run(&["quarantine", "ls", "-o", "json"]).out).unwrap();
    assert_eq!((&json["held"][0]["endpoint"], &json["never"][0]), (&json!("tap0"), &json!("dns-1")));
    let described = host.run(&["describe", "ep", "tap0"]).out;
    for part in [
        "strict, from web, by operator 2h5m ago",
        "reason: ticket 4711",
        "release: in 3h30m at the earliest",
        "would be moved to strict by infected",
    ] {
        assert!(described.contains(part), "no {part} in:\n{described}");
    }
}

#[test]
fn a_release_needs_a_reason_and_a_yes() {
    let host = Host::start();
    host.run(&HOLD);
    let release = ["quarantine", "release", "tap0"];
    let ran = host.run(&release);
    assert!(ran.code == 2 && ran.err.contains("--reason <TEXT>"), "{ran:?}");
    let ran = host.run(&[&release[..], &["--reason", "  ", "--yes"]].concat());
    assert!(ran.code == 2 && ran.err.contains("it goes into the audit log"), "{ran:?}");
    let ran = host.run(&[&release[..], &["--reason", "false alarm"]].concat());
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (2, "error: releasing an endpoint breaks the glass: without a terminal to ask on, it needs --yes\n")
    );
    assert_eq!(host.asked("quarantine/tap0/release"), Value::Null, "it was done without being asked");
    let ran = host.run(&[&release[..], &["--reason", "false alarm", "--yes"]].concat());
    assert_eq!((ran.code, ran.out.as_str()), (0, "endpoint/tap0 released to web\n"));
    assert_eq!(host.asked("quarantine/tap0/release"), json!({"reason": "false alarm"}));
    let ran = host.run(&[&release[..], &["--reason", "false alarm", "--yes"]].concat());
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: endpoint 'tap0' is not in quarantine; there are no endpoints in quarantine\n")
    );
}

#[test]
fn on_a_terminal_a_release_asks() {
    use std::io::{Read, Write};
    let host = Host::start();
    host.run(&HOLD);
    for (answer, code) in [("n\n", 1), ("yes\n", 0)] {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let mut command = host.command(&["quarantine", "release", "tap0", "--reason", "x"]);
        command.stdin(terminal.slave).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::fs::File::from(terminal.master.try_clone().unwrap()).write_all(answer.as_bytes()).unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{err}");
        let question = "This releases tap0 from strict to web, held by suricata/ids.malware=x: ticket 4711. Go on? [y/N]";
        assert!(err.starts_with(question), "{err}");
        assert_eq!(host.asked("quarantine/tap0/release").is_null(), code == 1);
    }
}

#[test]
fn holding_needs_a_quarantine_group_and_an_endpoint() {
    let host = Host::start();
    let ran = host.run(&["quarantine", "hold", "tap0", "--group", "web", "--reason", "x"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: group 'web' is no quarantine group\n"));
    let ran = host.run(&["quarantine", "hold", "tapo", "--group", "strict", "--reason", "x"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n"));
    assert!(host.run(&["quarantine", "hold", "tap0", "--reason", "x"]).err.contains("--group <GROUP>"));
}

#[test]
fn moves_that_wait_are_approved_or_dismissed() {
    let host = Host::start();
    let ran = host.run(&["quarantine", "approve", "tap0"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: no move of endpoint 'tap0' waits for approval; there are no moves that wait\n")
    );
    host.memory.quarantine.lock().unwrap().pending.push(waiting("tap0"));
    let ran = host.run(&["quarantine", "dismiss", "tap1"]);
    assert!(ran.code == 1 && ran.err.contains("did you mean 'tap0'?"), "{ran:?}");
    assert_eq!(host.run(&["quarantine", "dismiss", "tap0", "--reason", "scanner"]).out, "endpoint/tap0 stays where it is\n");
    assert_eq!(host.asked("quarantine/tap0/dismiss"), json!({"reason": "scanner"}));
    host.memory.quarantine.lock().unwrap().pending.push(waiting("tap0"));
    assert_eq!(host.run(&["quarantine", "approve", "tap0"]).out, "endpoint/tap0 held in strict (from web), enforced\n");
}

#[test]
fn the_never_list_is_kept() {
    let host = Host::start();
    assert_eq!(host.run(&["quarantine", "never", "ls"]).err, "nobody is on the never-quarantine list\n");
    let never = |verb| ["quarantine", "never", verb, "tap0", "--reason", "dns"];
    assert_eq!(host.run(&never("add")).out, "endpoint/tap0 is never quarantined from now on\n");
    assert_eq!(host.run(&["quarantine", "never", "ls"]).out, "tap0\n");
    assert!(host.run(&["describe", "ep", "tap0"]).out.contains("never-quarantine list"));
    assert_eq!(host.run(&never("rm")).out, "endpoint/tap0 can be quarantined again\n");
    host.run(&HOLD);
    let ran = host.run(&never("add"));
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: tap0 is held: release it first\n"));
    assert_eq!(host.run(&["quarantine", "never", "add", "tap0"]).code, 2);
}

#[test]
fn the_audit_log_says_who_and_why() {
    let host = Host::start();
    let expected = "\
TIME                      ENDPOINT   ACTION        FROM   TO       WHO                 REASON
2023-11-14 22:13:20.000   tap0       move          web    strict   transfer            malware
2023-11-14 22:13:20.000   tap0       break-glass   web    strict   user alice (1000)   malware
";
    assert_eq!(host.run(&["quarantine", "log"]).out, expected);
    let wide = host.run(&["quarantine", "log", "tap0", "--limit", "1", "-o", "wide"]).out;
    assert!(wide.contains("     2   2023") && wide.contains("sid 2027865") && !wide.contains("transfer  "), "{wide}");
    let ran = host.run(&["quarantine", "log", "tapo"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n"));
    assert_eq!(host.run(&["quarantine", "log", "--limit", "0"]).code, 2);
}
