//! Security groups, policies and tag sources: as resources, and as they are in force. What a change does.

use serde_json::{Value, json};

use crate::support::{Host, POLICY};

#[test]
fn the_kinds_are_applied_listed_and_deleted() {
    let host = Host::start();
    let ran = host.run_with_input(&["apply", "-f", "-"], POLICY);
    assert_eq!((ran.code, ran.out.as_str()), (0, "securitygroup/web created\npolicy/base created\ntagsource/suricata created\n"));
    for (kinds, name) in [(["sg", "securitygroups"], "web"), (["pol", "Policy"], "base"), (["ts", "tagsource"], "suricata")] {
        for kind in kinds {
            let table = host.run(&["get", kind, name]).out;
            assert!(table.starts_with("NAME") && table.contains(&format!("\n{name} ")), "{kind}:\n{table}");
            let resource: Value = serde_json::from_str(&host.run(&["get", kind, name, "-o", "json"]).out).unwrap();
            assert_eq!(resource["metadata"]["name"], name);
        }
    }
    let all = host.run(&["get", "all"]).out;
    for part in ["loadbalancer/web", "endpoint/tap0", "securitygroup/strict", "policy/base", "tagsource/falco"] {
        assert!(all.contains(&format!("\n{part} ")), "no {part} in:\n{all}");
    }
    let resources = host.run(&["get", "all", "-o", "yaml"]).out;
    assert!(host.run_with_input(&["apply", "-f", "-"], &resources).out.contains("policy/base unchanged\n"));
    assert_eq!(host.run(&["delete", "pol/base"]).out, "policy/base deleted\n");
    let ran = host.run(&["delete", "sg", "wbe"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no securitygroup/wbe; did you mean 'web'?\n"));
    assert_eq!(host.run(&["get", "pol"]).err, "there are no policies yet\n");
}

#[test]
fn tables_say_what_is_in_force() {
    let host = Host::start();
    host.run_with_input(&["apply", "-f", "-"], POLICY);
    let groups = "\
NAME      TYPE         ENDPOINTS   RULES   INGRESS   EGRESS   TRANSFERS
default   built-in             0       0   allow     allow    -
web       group                1       2   deny      allow    infected
strict    quarantine           0       0   deny      allow    -
";
    assert_eq!(host.run(&["get", "sg"]).out, groups);
    assert_eq!(host.run(&["group", "ls"]).out, groups);
    let policies = "\
NAME   TIER       PRIORITY   MODE      APPLIED TO      RULES   HITS   WOULD HIT   ENDPOINTS   PLACE
base   security         10   enforce   groups web,db       1      7           0           1   base.yaml:12
";
    assert_eq!(host.run(&["get", "pol", "-o", "wide"]).out, policies);
    assert_eq!(host.run(&["group", "ls", "wbe"]).err, "error: there is no security group 'wbe'; did you mean 'web'?\n");
}

#[test]
fn descriptions_say_everything() {
    let host = Host::start();
    host.run_with_input(&["apply", "-f", "-"], POLICY);
    let cases: [(&[&str], &[&str]); 4] = [
        (
            &["sg/web"],
            &[
                "Selector:            matchLabels app web",
                "Default ingress:     deny",
                "Brakes:              maxPercent 10",
                "  tap0       tap0     policed   10.0.0.1",
                "  egress      web-out   allow       0      0B           0   web.yaml:20",
                "  infected -> strict (require-approval)",
                "    when           tags.exists(t, t.severity >= 7)",
                "    held at least  60 s",
            ],
        ),
        (&["pol", "base"], &["Applied to:          groups web,db", "  egress      no-ssh   deny     ", "base.yaml:12"]),
        (
            &["ts", "suricata"],
            &[
                "Last error:          line 7 is no JSON",
                "  set and clear ids.*, severity up to 8",
                "  alerts: sets ids.malware when event",
            ],
        ),
        (&["sg", "default"], &["Type:                built-in", "Members:             none"]),
    ];
    for (args, parts) in cases {
        let text = host.run(&[&["describe"], args].concat()).out;
        for part in parts {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }
    let json: Value = serde_json::from_str(&host.run(&["describe", "sg", "web", "-o", "json"]).out).unwrap();
    assert_eq!((&json["members"][0]["name"], &json["resource"]["kind"]), (&json!("tap0"), &json!("SecurityGroup")));
    for (kind, error) in
        [("sg", "there is no security group 'wbe'; did you mean 'web'?"), ("pol", "there is no policy 'wbe'; there is: base")]
    {
        let ran = host.run(&["describe", kind, "wbe"]);
        assert_eq!((ran.code, ran.err), (1, format!("error: {error}\n")));
    }
}

#[test]
fn an_endpoint_tells_its_group_tags_and_drops() {
    let host = Host::start();
    host.run(&["tag", "add", "tap0", "malware", "--severity", "8"]);
    let text = host.run(&["describe", "ep", "tap0"]).out;
    let parts = [
        "Security group:      web",
        "Policy:              policed",
        "Identity:            17",
        "  malware          8   operator   never     -",
        "Dropped or refused:\n  DIRECTION   REASON       PACKETS\n  egress      flow-quota         2\n  egress      not-ip             6\n",
        "Packets:\n  DIRECTION   REASON        PACKETS\n  egress      lb-new-flow         4\n",
    ];
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn rules_are_listed_in_their_order_and_filtered() {
    let host = Host::start();
    let expected = "\
TIER       RESOURCE            RULE      DIRECTION   ACTION          HITS   BYTES   WOULD HIT   ENDPOINTS   PLACE
security   policy/base         no-ssh    egress      deny               7    420B           0           1   base.yaml:12
app        policy/trial        try       egress      deny (staged)      0      0B           5           1   trial.yaml:9
group      securitygroup/web   web-out   egress      allow              0      0B           0           1   web.yaml:20
";
    assert_eq!(host.run(&["policy", "ls"]).out, expected);
    let names = |args: &[&str]| -> Vec<String> {
        let json: Value = serde_json::from_str(&host.run(&[&["policy", "ls", "-o", "json"], args].concat()).out).unwrap();
        json.as_array().unwrap().iter().map(|status| status["rule"]["rule"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["--staged"]), ["try"]);
    assert_eq!(names(&["--unused"]), ["web-out"]);
    assert_eq!(names(&["web", "base"]), ["no-ssh", "web-out"]);
    assert_eq!(names(&["--tier", "Security"]), ["no-ssh"]);
    assert_eq!(names(&["--endpoint", "tap0"]), ["no-ssh", "web-out"], "the agent knows which rules an endpoint has");
    assert_eq!(host.run(&["policy", "ls", "web", "--staged"]).out, "there are no such rules\n");
    let ran = host.run(&["policy", "ls", "bse"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: no rule is of a policy or security group 'bse'; did you mean 'base'?\n")
    );
    let ran = host.run(&["policy", "ls", "--endpoint", "tapo"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no endpoint 'tapo'; did you mean 'tap0'?\n"));
}

#[test]
fn a_diff_says_which_flows_would_be_cut() {
    let host = Host::start();
    let ran = host.run_with_input(&["diff", "-f", "-"], POLICY);
    let expected = "
Rules:
      RULE                        DIRECTION   ACTION   PLACE
  -   securitygroup/web web-out   egress      allow    web.yaml:20
  +   policy/base no-ssh          egress      deny     base.yaml:12
Endpoints affected:
  ENDPOINT   WHAT
  tap0       other rules
3 live flows would be cut:
  ENDPOINT   FLOW                                 AGE    BYTES   BY
  tap0       TCP 10.0.0.1:40000 > 10.0.0.9:22   1m15s   3.0KiB   policy/base no-ssh (base.yaml:12)
  … and 2 more
1 live flow would be moved:
  ENDPOINT   FLOW                                   AGE    BYTES   TO
  tap0       TCP 10.0.0.1:40000 > 10.0.0.100:80   1m15s   3.0KiB   10.0.0.12:8080
";
    assert_eq!(ran.code, 1);
    assert!(ran.out.starts_with("--- /dev/null\n") && ran.out.ends_with(expected), "{}", ran.out);
    let json: Value = serde_json::from_str(&host.run_with_input(&["diff", "-f", "-", "-o", "json"], POLICY).out).unwrap();
    assert_eq!(json["effects"]["flows_total"], json!([3, 1]));
}

#[test]
fn an_apply_warns_of_flows_that_it_cuts() {
    let host = Host::start();
    let ran = host.run_with_input(&["apply", "-f", "-", "--dry-run"], POLICY);
    let by = "by policy/base no-ssh (base.yaml:12)";
    assert_eq!(
        ran.err,
        format!("warning: 3 live flows would be cut, {by}\nwarning: 1 live flow would be moved to another member, or reset\n")
    );
    let ran = host.run_with_input(&["apply", "-f", "-"], POLICY);
    assert_eq!(
        ran.err,
        format!("warning: 3 live flows are cut, {by}\nwarning: 1 live flow is moved to another member, or reset\n")
    );
    assert!(ran.code == 0 && ran.out.contains("policy/base created\n"), "{ran:?}");
}
