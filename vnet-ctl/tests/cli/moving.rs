//! `endpoint export` and `import`.

use crate::support::Host;

#[test]
fn flows_go_from_one_host_to_another() {
    let (from, to) = (Host::start(), Host::start());
    let exported = from.run(&["endpoint", "export", "web-1"]);
    let left = "2 flows not exported: being opened, over, or led elsewhere\n";
    assert_eq!((exported.code, exported.err.as_str()), (0, left), "{exported:?}");
    std::fs::write(to.directory.join("web-1.flows"), &exported.out).unwrap();
    let ran = to.run(&["endpoint", "import", "-f", "web-1.flows"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "endpoint web-1: 1 flow taken over\n"), "{ran:?}");
    let ran = to.run(&["endpoint", "import", "-f", "web-1.flows", "--endpoint", "db-1"]);
    assert_eq!(ran.out, "endpoint db-1: 1 flow taken over\n");
    std::fs::write(to.directory.join("other.flows"), exported.out.replace(":80\"", ":81\"")).unwrap();
    let ran = to.run(&["endpoint", "import", "-f", "other.flows"]);
    let expected = "\
endpoint web-1: 0 flows taken over
1 flow could not be taken over:
LOCAL             REMOTE          WHY
10.0.1.11:40000   10.96.0.10:81   no such load balancer
";
    assert_eq!((ran.code, ran.out.as_str()), (1, expected));
    let json: serde_json::Value =
        serde_json::from_str(&to.run(&["endpoint", "import", "-f", "other.flows", "-o", "json"]).out).unwrap();
    assert_eq!(json["refused"][0]["remote"], "10.96.0.10:81");
}

#[test]
fn what_is_no_export_is_refused() {
    let host = Host::start();
    let missing = host.run(&["endpoint", "export", "web-2"]);
    assert!(missing.code != 0 && missing.err.contains("there is no endpoint 'web-2'"), "{missing:?}");
    for (text, part) in [
        ("", "this is not what `vnet-ctl endpoint export` prints"),
        ("{\"version\": 1, \"endpoint\": \"web-1\",\n \"flows\": 3}", "line 2 column"),
        ("{\"version\": 7}", "flows exported in version 7; this vnet-ctl reads version 1"),
    ] {
        std::fs::write(host.directory.join("x.flows"), text).unwrap();
        let ran = host.run(&["endpoint", "import", "-f", "x.flows"]);
        assert!(ran.code != 0 && ran.err.contains("x.flows") && ran.err.contains(part), "{text}: {ran:?}");
    }
    let absent = host.run(&["endpoint", "import", "-f", "none.flows"]);
    assert!(absent.code != 0 && absent.err.contains("reading none.flows"), "{absent:?}");
}
