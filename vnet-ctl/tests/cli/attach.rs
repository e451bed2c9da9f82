//! `endpoint attach`: the device is down until its state is in force.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Host, Ran, ran};

/// Says that a test cannot run, where it cannot.
pub fn no_namespaces(test: &str) -> bool {
    let missing = !nix::unistd::geteuid().is_root();
    if missing {
        eprintln!("SKIPPED {test}: needs root, to make a network namespace");
    }
    missing
}

/// Runs a script in a network namespace of its own, where `vnet-ctl` is the program.
pub fn in_namespace(host: &Host, script: &str) -> Ran {
    let program = host.command(&[]);
    let mut command = Command::new("unshare");
    let directory = std::path::Path::new(program.get_program()).parent().unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    command.args(["--net", "sh", "-euc", script]).env("PATH", path).env("VNET_SOCKET", &host.socket).current_dir(&host.directory);
    ran(command.output().unwrap())
}

#[test]
fn a_held_device_is_up_only_when_it_is_attached() {
    if no_namespaces("a_held_device_is_up_only_when_it_is_attached") {
        return;
    }
    let host = Host::start();
    let script = "\
        ip tuntap add tap9 mode tap; ip link set tap9 up
        ip monitor link > log & monitor=$!; sleep 0.3
        vnet-ctl endpoint attach tap9 --hold --endpoint web-1
        sleep 0.3; kill $monitor
        awk '/ tap9:/ { print ($3 ~ /,UP/) ? \"up\" : \"down\" }' log | uniq";
    let ran = in_namespace(&host, script);
    let expected = "device/tap9 attached as endpoint/web-1 (group strict, quarantined), and up\ndown\nup\n";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, expected, ""));
    assert_eq!(host.asked("attach"), json!({"device": "tap9", "endpoint": "web-1"}));
}

#[test]
fn a_device_that_is_not_attached_stays_down() {
    if no_namespaces("a_device_that_is_not_attached_stays_down") {
        return;
    }
    let host = Host::start();
    let cases = [
        ("tap7", "--timeout 5", "is not attached, and stays down: device 'tap7' is that of endpoint 'db-1'"),
        ("tap6", "--timeout 5", "is not attached, and stays down: the agent could not attach it: failed: another"),
        ("tap5", "--socket /nowhere --timeout 1", "is not attached, and stays down: given up after 1s: cannot reach the agent"),
    ];
    for (device, args, part) in cases {
        let script = format!(
            "ip tuntap add {device} mode tap; ip link set {device} up
             code=0; vnet-ctl endpoint attach {device} --hold {args} || code=$?
             ip -o link show {device}; exit $code"
        );
        let begun = Instant::now();
        let ran = in_namespace(&host, &script);
        assert!(ran.code == 1 && ran.err.contains(part) && !ran.out.contains(",UP"), "{device}: {ran:?}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{device}: it went on trying for {:?}", begun.elapsed());
    }
}

#[test]
fn an_agent_that_starts_is_waited_for() {
    if no_namespaces("an_agent_that_starts_is_waited_for") {
        return;
    }
    let host = Host::start();
    let ran = in_namespace(&host, "ip tuntap add tap8 mode tap; vnet-ctl endpoint attach tap8 --hold; ip -o link show tap8");
    assert!(ran.code == 0 && ran.out.contains(",UP"), "{ran:?}");
    let tries = host.memory.asked.lock().unwrap().iter().filter(|(what, _)| what == "attach").count();
    assert_eq!(tries, 3);
}

#[test]
fn another_device_of_the_name_is_not_set_up() {
    if no_namespaces("another_device_of_the_name_is_not_set_up") {
        return;
    }
    let host = Host::start();
    // The agent tells of the device with index 2.
    let script = "ip tuntap add other mode tap; ip tuntap add tap9 mode tap
        code=0; vnet-ctl endpoint attach tap9 --hold || code=$?; ip -o link show tap9; exit $code";
    let ran = in_namespace(&host, script);
    assert!(ran.code == 1 && ran.err.contains("replaced by another device of its name") && !ran.out.contains(",UP"), "{ran:?}");
}

#[test]
fn the_endpoint_is_found_by_its_mac() {
    let host = Host::start();
    let resource = json!({
        "apiVersion": "vnet/v1alpha1", "kind": "Endpoint", "metadata": {"name": "vm1"},
        "spec": {"device": "tap1", "mac": "52:54:00:00:00:0a"},
    });
    host.run_with_input(&["apply", "-f", "-"], &resource.to_string());
    let ran = host.run(&["endpoint", "attach", "vnet7", "--mac", "52:54:00:00:00:0A"]);
    assert_eq!(ran.out, "device/vnet7 attached as endpoint/vm1 (group strict, quarantined)\n", "{ran:?}");
    assert_eq!(host.asked("attach"), json!({"device": "vnet7", "endpoint": "vm1"}));
    // What was only discovered has had another device: which one it is, is for the agent to say.
    host.run(&["endpoint", "attach", "vnet8", "--mac", "52:54:00:00:00:01"]);
    assert_eq!(host.asked("attach"), json!({"device": "vnet8"}));
    host.run_with_input(&["apply", "-f", "-"], &resource.to_string().replace("vm1", "vm2"));
    let ran = host.run(&["endpoint", "attach", "vnet7", "--mac", "52:54:00:00:00:0a", "--timeout", "1"]);
    assert!(ran.code == 1 && ran.err.contains("is of several endpoints (vm1, vm2): name one with --endpoint"), "{ran:?}");
}

#[test]
fn what_cannot_be_attached_is_wrong_usage() {
    let host = Host::start();
    let cases: [(&[&str], &str); 5] = [
        (&[], "<DEVICE>"),
        (&["a/b"], "1 to 15 characters"),
        (&["sixteen-letters-"], "1 to 15 characters"),
        (&["tap0", "--mac", "52:54"], "written as 52:54:00:12:34:56"),
        (&["tap0", "--mac", "52:54:00:12:34:56", "--endpoint", "x"], "cannot be used with"),
    ];
    for (args, part) in cases {
        let ran = host.run(&[&["endpoint", "attach"], args].concat());
        assert!(ran.code == 2 && ran.err.contains(part), "{args:?}: {ran:?}");
    }
    let ran = host.run(&["endpoint", "attach", "nosuchdevice", "--hold"]);
    assert!(ran.code == 1 && ran.err.contains("there is no device 'nosuchdevice' on this host"), "{ran:?}");
    let ran = host.run(&["endpoint", "attach", "tap7"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: device 'tap7' is not attached: device 'tap7' is that of endpoint 'db-1'\n")
    );
}
