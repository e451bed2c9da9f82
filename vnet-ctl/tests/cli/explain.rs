//! `explain`: what it asks the agent, and how the answer is told.

use serde_json::{Value, json};

use crate::support::{Host, load_balancer};

#[test]
fn an_explanation_is_told_stage_by_stage() {
    let host = Host::start();
    let ran = host.run(&["explain", "--from", "web-1", "--to", "10.0.0.9:443/tcp"]);
    let expected = "\
1. web-1 (tap0), egress
   packet          TCP 10.0.0.1:40000 > 10.0.0.9:443 S
   endpoint        web-1 in group web, policed
   policy          2 of 9 rules match
   decided by      securitygroup/web web-out (web.yaml:20): allow
   shadows         securitygroup/strict default: deny
   rewritten       TCP 10.0.0.1:40000 > 10.0.0.11:8443 S
   verdict         next (allowed)

! a flow of these addresses is alive
allowed, by securitygroup/web web-out (web.yaml:20)
";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, expected, ""));
    assert_eq!(host.asked("explain"), json!({"from": "web-1", "to": "10.0.0.9:443/tcp", "live": false}));
    let ran = host.run(&["explain", "--from", "web-1", "--to", "10.0.0.9:22/tcp", "--sport", "5", "--flags", "sa"]);
    assert!(ran.code == 1 && ran.out.ends_with("\ndropped: denied, by policy/base no-ssh (base.yaml:12)\n"), "{ran:?}");
    assert_eq!((&host.asked("explain")["sport"], &host.asked("explain")["flags"]), (&json!(5), &json!("SA")));
    let json: Value = serde_json::from_str(&host.run(&["explain", "--from", "a", "--to", "b:1", "-o", "json"]).out).unwrap();
    assert_eq!(json["hops"][0]["shadowed"][0]["rule"], "default");
}

#[test]
fn files_that_are_not_applied_are_sent_along() {
    let host = Host::start();
    host.file("new/dns.yaml", &load_balancer("dns"));
    assert_eq!(host.run(&["explain", "--from", "a", "--to", "b:1", "-f", "new"]).code, 0);
    assert_eq!(host.asked("explain")["files"][0]["name"], "new/dns.yaml");
    assert_eq!(host.run(&["explain", "--from", "a", "--to", "b:1", "-f", "nowhere"]).code, 2);
}

#[test]
fn the_kernel_is_compared_with() {
    let host = Host::start();
    let ran = host.run(&["explain", "--from", "a", "--to", "b:443/tcp", "--live"]);
    assert!(ran.code == 0 && ran.out.contains("live: the kernel's program does the same\n"), "{ran:?}");
    let ran = host.run(&["explain", "--from", "a", "--to", "b:443/tcp", "--live", "--sport", "1"]);
    assert!(
        ran.code == 2 && ran.out.contains("live: DIFFERENT: verdict: drop\n") && ran.err.contains("a bug in vnet"),
        "{ran:?}"
    );
}

#[test]
fn an_event_is_explained() {
    let host = Host::start();
    let ran = host.run(&["explain", "--event", "3"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "event 3 of tap0, egress: TCP 10.0.0.1:40000 > [fd00::9]:22 S\n"));
    let expected = json!({"from": "10.0.0.1", "to": "[fd00::9]:22/tcp", "flags": "S", "sport": 40000, "live": false});
    assert_eq!(host.asked("explain"), expected);
    let ran = host.run(&["explain", "--event", "6"]);
    assert!(
        ran.code == 1 && ran.err.ends_with("10.0.0.66 is no address of tap0: what is explained is the same from its own\n"),
        "{ran:?}"
    );
    assert_eq!(host.asked("explain")["from"], "tap0");
    for (number, part) in [
        ("2", "of kind suppressed, and about no packet"),
        ("4", "is not kept any more"),
        ("21", "to explain it (spoofed-address), and another may be judged otherwise"),
        ("21", "--pcap FILE --at tap0\n"),
        ("22", "to explain it (ICMPv6 of type 1, code 3), and"),
        ("22", "--pcap FILE --at tap0 --direction ingress\n"),
        ("9", "there is no event 9 yet"),
    ] {
        let ran = host.run(&["explain", "--event", number]);
        assert!(ran.code == 2 && ran.err.contains(part), "{ran:?}");
    }
}

#[test]
fn what_is_asked_must_make_sense() {
    let host = Host::start();
    let cases: [(&[&str], &str); 7] = [
        (&[], "--to <TO>|--pcap <FILE>|--event <NUMBER>"),
        (&["--to", "b:1"], "--from <FROM>"),
        (&["--from", "a"], "--to <TO>"),
        (&["--from", "a", "--to", "b:1", "--event", "1"], "cannot be used with"),
        (&["--from", "a", "--to", "b:1", "--flags", "X"], "letters of FSRPAU,"),
        (&["--pcap", "x"], "--at <ENDPOINT>"),
        (&["--event", "0"], "0 is not in"),
    ];
    for (args, part) in cases {
        let ran = host.run(&[&["explain"], args].concat());
        assert!(ran.code == 2 && ran.err.contains(part), "{args:?}: {ran:?}");
    }
    let ran = host.run(&["explain", "--from", "tapo", "--to", "nowhere:1"]);
    assert_eq!((ran.code, ran.err.as_str()), (2, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n"));
}

/// A capture in the older format: header, and packets of these bytes, of which `cut` bytes were not captured.
fn pcap(link: u32, packets: &[&[u8]], cut: u32) -> Vec<u8> {
    let mut file: Vec<u8> = Vec::new();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, link] {
        file.extend(u32::to_le_bytes(word));
    }
    for packet in packets {
        let length = u32::try_from(packet.len()).unwrap();
        for word in [1_700_000_000, 0, length, length + cut] {
            file.extend(u32::to_le_bytes(word));
        }
        file.extend(*packet);
    }
    file
}

/// A capture in the newer format, big-endian: one interface, one packet.
fn pcapng(packet: &[u8]) -> Vec<u8> {
    let mut file: Vec<u8> = Vec::new();
    let mut block = |kind: u32, body: &[u8]| {
        let length = u32::try_from(12 + body.len().next_multiple_of(4)).unwrap();
        file.extend(kind.to_be_bytes());
        file.extend(length.to_be_bytes());
        file.extend(body);
        file.resize(file.len().next_multiple_of(4), 0);
        file.extend(length.to_be_bytes());
    };
    block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_be_bytes()[..], &[0, 1, 0, 0], &[0xff; 8]].concat());
    block(1, &[0, 1, 0, 0, 0, 0, 0, 0]);
    let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
    block(6, &[&[0; 12][..], &length, &length, packet].concat());
    file
}

#[test]
fn packets_of_captures_are_asked_about() {
    let host = Host::start();
    let (first, second) = ([1; 60], [2; 61]);
    host.file_of("old.pcap", &pcap(1, &[&first, &second], 0));
    host.file_of("new.pcapng", &pcapng(&second));
    let explain = |file: &str, args: &[&str]| host.run(&[&["explain", "--pcap", file, "--at", "tap0"], args].concat());
    assert_eq!(explain("old.pcap", &[]).code, 0);
    let expected = json!({"from": "tap0", "to": "", "frame": "01".repeat(60), "direction": "egress", "live": false});
    assert_eq!(host.asked("explain"), expected);
    assert_eq!(explain("old.pcap", &["--packet", "2", "--direction", "ingress"]).code, 0);
    assert_eq!(
        (&host.asked("explain")["frame"], &host.asked("explain")["direction"]),
        (&json!("02".repeat(61)), &json!("ingress"))
    );
    assert_eq!(explain("new.pcapng", &[]).code, 0);
    assert_eq!(host.asked("explain")["frame"], "02".repeat(61), "without what fills up the block");
}

#[test]
fn captures_that_cannot_be_used_are_refused() {
    let host = Host::start();
    let whole = pcap(1, &[&[1; 60], &[1; 60]], 0);
    let large = pcap(1, &[&vec![7; 300_000]], 0);
    let mut absurd = pcap(1, &[&[1; 60]], 0);
    absurd[32..36].copy_from_slice(&[0xff; 4]);
    let cases = [
        (Vec::new(), "x is empty"),
        (b"hello, this is text and no capture at all".to_vec(), "x is neither a pcap nor a pcapng file"),
        (pcap(1, &[&[1; 60]], 0), "the capture x has 1 packet; there is no packet 2"),
        (whole[..whole.len() - 10].to_vec(), "the capture x is damaged after packet 1: it ends too early"),
        (pcap(101, &[&[1; 60], &[1; 60]], 0), "packet 2 of x: it is not an Ethernet frame, but of link type 101"),
        (pcap(1, &[&[1; 60], &[1; 60]], 9), "packet 2 of x: only 60 of its 69 bytes were captured"),
        (pcap(1, &[&[1; 60], &[1; 9]], 0), "packet 2 of x: its 9 bytes are no Ethernet frame"),
        (absurd, "the capture x is damaged after packet 0"),
    ];
    for (bytes, part) in cases {
        host.file_of("x", &bytes);
        let ran = host.run(&["explain", "--pcap", "x", "--packet", "2", "--at", "tap0"]);
        assert!(ran.code == 2 && ran.err.contains(part), "{part}: {ran:?}");
    }
    host.file_of("x", &large);
    assert_eq!(host.run(&["explain", "--pcap", "x", "--at", "tap0"]).code, 0);
    assert_eq!(host.asked("explain")["frame"].as_str().map(str::len), Some(600_000));
    let ran = host.run(&["explain", "--pcap", "nowhere", "--at", "tap0"]);
    assert!(ran.code == 2 && ran.err.contains("opening the capture nowhere"), "{ran:?}");
}
