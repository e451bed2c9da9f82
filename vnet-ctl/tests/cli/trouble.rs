//! When things are not as they should be.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::{Host, ran};

#[test]
fn what_does_not_exist_is_answered_with_what_does() {
    let host = Host::start();
    let cases: [(&[&str], &str); 9] = [
        (&["get", "lb", "wbe"], "there is no load balancer 'wbe'; did you mean 'web'?"),
        (&["get", "lb", "wbe", "-o", "yaml"], "there is no load balancer 'wbe'; did you mean 'web'?"),
        (&["get", "ep", "eth7", "-o", "json"], "there is no endpoint 'eth7'; there is: tap0"),
        (&["describe", "lb", "wbe"], "there is no load balancer 'wbe'; did you mean 'web'?"),
        (&["describe", "ep", "eth7"], "there is no endpoint 'eth7'; there is: tap0"),
        (&["delete", "lb", "wbe"], "there is no loadbalancer/wbe; did you mean 'web'?"),
        (&["lb", "members", "wbe"], "there is no load balancer 'wbe'; did you mean 'web'?"),
        (&["lb", "drain", "web", "zzz"], "load balancer 'web' has no member 'zzz'; there is: a, b, c"),
        (&["lb", "flows", "nothing"], "there is no load balancer 'nothing'; there is: web"),
    ];
    for (args, expected) in cases {
        let ran = host.run(args);
        assert!(ran.code == 1 && ran.out.is_empty() && ran.err.contains(expected), "{args:?}: {ran:?}");
    }
    let ran = host.run(&["get", "cats"]);
    assert!(ran.code == 2 && ran.err.contains("possible values: lb, ep, sg, pol, ts, all"), "{ran:?}");
}

#[test]
fn an_agent_that_is_not_there_is_explained() {
    let host = Host::start();
    let ran = host.run(&["status", "--socket", "/nowhere/agent.sock"]);
    assert_eq!(ran.code, 1);
    let expected = "error: cannot reach the agent at /nowhere/agent.sock: there is no such socket. Is vnet-agent running? systemctl status \
                    vnet-agent; another socket: --socket PATH or VNET_SOCKET\n";
    assert_eq!(ran.err, expected);
    let ran = host.run(&["version", "--socket", "/nowhere/agent.sock"]);
    assert!(ran.code == 0 && ran.out.contains("not known") && ran.err.contains("no such socket"), "{ran:?}");
    assert!(host.run(&["version"]).out.ends_with("vnet-agent  1.2.3\n"));
    let dead = host.directory.join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    assert!(host.run(&["status", "--socket", "dead.sock"]).err.contains("nobody listens there any more"));
}

#[test]
fn an_agent_that_hangs_or_lies_is_an_error() {
    let host = Host::start();
    let _silent = UnixListener::bind(host.directory.join("silent.sock")).unwrap();
    let begun = Instant::now();
    let ran = host.run(&["status", "--socket", "silent.sock", "--timeout", "1"]);
    assert!(ran.code == 1 && ran.err.contains("has not answered within 1 s") && begun.elapsed().as_secs() < 5, "{ran:?}");
    let ran = host.run_with_input(&["apply", "-f", "-", "--timeout", "1"], "slow: true");
    assert!(ran.code == 1 && ran.err.contains("has not answered within 1 s"), "{ran:?}");

    let liar = UnixListener::bind(host.directory.join("liar.sock")).unwrap();
    std::thread::spawn(move || {
        for (stream, answer) in liar.incoming().zip(["", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "SSH-2.0\r\n"]) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    for expected in ["without a complete answer", "not what this version understands", "without a complete answer"] {
        let ran = host.run(&["status", "--socket", "liar.sock"]);
        assert!(ran.code == 1 && ran.err.contains(expected), "{expected}: {ran:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let host = Host::start();
    let mut child =
        host.command(&["lb", "flows", "--limit", "200"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn an_agent_that_goes_away_is_one() {
    let host = Host::start();
    let listener = UnixListener::bind(host.directory.join("closing.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // It ends in the middle of a request that is more than the socket has room for.
            let _ = stream.unwrap().read(&mut [0; 16]);
        }
    });
    let large = format!("# {}\n", "x".repeat(8 << 20));
    let ran = host.run_with_input(&["apply", "-f", "-", "--socket", "closing.sock"], &large);
    assert!(ran.code == 1 && ran.err.contains("closed the connection without a complete answer"), "{ran:?}");
}

#[test]
fn ordinary_users_look_but_do_not_change() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED ordinary_users_look_but_do_not_change: needs root, to become someone else");
        return;
    }
    let host = Host::start();
    // Where everybody can run it.
    let program = host.directory.join("vnet-ctl");
    std::fs::copy(env!("CARGO_BIN_EXE_vnet-ctl"), &program).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).env("VNET_SOCKET", &host.agent).current_dir("/").uid(65534).gid(65534);
        ran(command.output().unwrap())
    };
    assert_eq!(run(&["lb", "ls"]).code, 0);
    let refused = run(&["lb", "drain", "web", "a"]);
    assert!(refused.code == 1 && refused.err.contains("members of group 'vnet'"), "{refused:?}");
    std::fs::set_permissions(&host.agent, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let refused = run(&["lb", "ls"]);
    assert!(refused.code == 1 && refused.err.contains("you may not open this socket"), "{refused:?}");
}

#[test]
fn files_without_resources_are_an_error() {
    let host = Host::start();
    for (verb, code) in [("apply", 1), ("diff", 2), ("delete", 1)] {
        let ran = host.run_with_input(&[verb, "-f", "-"], "# nothing\n");
        assert!(ran.code == code && ran.err.contains("there are no resources in what was given"), "{verb}: {ran:?}");
    }
}
