use vnet_common::api::{Held, MapStatus, MemberStatus, Pending, RuleRef};

use super::*;

fn endpoint(name: &str, policy: &str, reasons: &[(&str, u64)]) -> EndpointStatus {
    let reasons = reasons.iter().map(|(r, n)| ((*r).to_owned(), *n)).collect();
    EndpointStatus {
        name: name.into(),
        state: "attached".into(),
        policy: policy.into(),
        bytes: [100, 200],
        packets: [("egress".to_owned(), reasons)].into(),
        ..EndpointStatus::default()
    }
}

fn rule(name: &str, staged: bool, hits: u64) -> RuleStatus {
    let rule = RuleRef {
        kind: "Policy".into(),
        resource: "web".into(),
        rule: name.into(),
        direction: "egress".into(),
        action: "deny".into(),
        staged,
        ..RuleRef::default()
    };
    RuleStatus { rule, tier: "app".into(), hits, bytes: 10 * hits, would_hit: 7, endpoints: 1 }
}

fn lines(snapshot: Snapshot) -> Vec<String> {
    text(snapshot, &Timings::default()).unwrap().lines().map(str::to_owned).collect()
}

fn has(lines: &[String], line: &str) {
    assert!(lines.iter().any(|l| l == line), "no line {line} in\n{}", lines.join("\n"));
}

#[test]
fn endpoints_have_packets_by_reason_and_drops_are_added_up() {
    let endpoints = vec![
        endpoint("vm-1", "policed", &[("denied", 3), ("not-ip", 2), ("allowed", 50)]),
        endpoint("vm-2", "allowed", &[("denied", 1), ("not-ip", 40)]),
    ];
    let text = lines(Snapshot { endpoints, endpoint_flows: [("vm-1".to_owned(), 5)].into(), ..Snapshot::default() });
    has(&text, "# TYPE vnet_endpoint_packets_total counter");
    has(&text, r#"vnet_endpoint_packets_total{endpoint="vm-1",direction="egress",reason="allowed"} 50"#);
    has(&text, r#"vnet_endpoint_bytes_total{endpoint="vm-2",direction="ingress"} 200"#);
    has(&text, r#"vnet_endpoint_flows{endpoint="vm-1"} 5"#);
    has(&text, r#"vnet_drops_total{direction="egress",reason="denied"} 4"#);
    has(&text, r#"vnet_drops_total{direction="egress",reason="not-ip"} 2"#);
    assert!(!text.iter().any(|l| l.starts_with("vnet_drops_total") && l.contains("allowed")));
    has(&text, r#"vnet_endpoints{state="attached",policy="policed"} 1"#);
}

#[test]
fn rules_members_quarantine_and_sources_are_counted() {
    let member =
        MemberStatus { name: "m1".into(), state: "down".into(), active_flows: 4, bytes: [1, 2], ..MemberStatus::default() };
    let held = Held { group: "q".into(), state: "enforced".into(), ..Held::default() };
    let failed = |why: &str| Held { state: format!("failed: {why}"), ..held.clone() };
    let snapshot = Snapshot {
        lbs: vec![LbStatus { name: "web".into(), members: vec![member], ..LbStatus::default() }],
        rules: vec![rule("a", false, 9), rule("b", true, 0)],
        quarantine: QuarantineStatus {
            held: vec![held.clone(), held.clone(), failed("no room for its set"), failed("no such device")],
            pending: vec![Pending { because: "brake".into(), ..Pending::default() }],
            ..QuarantineStatus::default()
        },
        sources: vec![SourceStatus {
            name: "ids".into(),
            kind: "suricata".into(),
            state: "lost".into(),
            malformed: 3,
            last_event_ms: Some(5500),
            ..SourceStatus::default()
        }],
        events: EventCounts { reported: 11, suppressed: 12, followers: 1 },
        status: Status {
            generation: 77,
            alarms: vec!["a".into()],
            maps: vec![MapStatus {
                name: "FLOWS4".into(),
                used: Some(8),
                capacity: 16,
                memory_bytes: 99,
                ..MapStatus::default()
            }],
            ..Status::default()
        },
        ..Snapshot::default()
    };
    let text = lines(snapshot);
    let labels = r#"kind="Policy",resource="web",rule="a",direction="egress",action="deny",tier="app""#;
    has(&text, &format!("vnet_rule_hits_total{{{labels}}} 9"));
    has(&text, &format!("vnet_rule_would_hits_total{{{}}} 7", labels.replace("\"a\"", "\"b\"")));
    assert_eq!(text.iter().filter(|l| l.starts_with("vnet_rule_would_hits_total{")).count(), 1);
    has(&text, r#"vnet_member_up{lb="web",member="m1"} 0"#);
    has(&text, r#"vnet_member_bytes_total{lb="web",member="m1",direction="from"} 2"#);
    has(&text, r#"vnet_quarantine_held_endpoints{group="q",state="enforced"} 2"#);
    has(&text, r#"vnet_quarantine_held_endpoints{group="q",state="failed"} 2"#);
    has(&text, r#"vnet_quarantine_pending_moves{because="brake"} 1"#);
    has(&text, r#"vnet_tag_source_malformed_total{source="ids",kind="suricata"} 3"#);
    has(&text, r#"vnet_tag_source_up{source="ids",kind="suricata"} 0"#);
    has(&text, r#"vnet_tag_source_last_event_timestamp_seconds{source="ids",kind="suricata"} 5"#);
    has(&text, "vnet_events_suppressed_total 12");
    has(&text, "vnet_policy_generation 77");
    has(&text, "vnet_alarms 1");
    has(&text, r#"vnet_flows{family="ipv4",state="open"} 4"#);
    has(&text, r#"vnet_map_capacity_entries{map="FLOWS4"} 16"#);
}

#[test]
fn names_cannot_break_the_format_and_no_series_comes_twice() {
    let endpoints = vec![endpoint("a\"b\n{c}\\", "allowed", &[("reply", 1)]), endpoint("d", "", &[]), endpoint("d", "", &[])];
    let text = lines(Snapshot { endpoints, ..Snapshot::default() });
    has(&text, r#"vnet_endpoint_packets_total{endpoint="a\"b\n{c}\\",direction="egress",reason="reply"} 1"#);
    has(&text, r#"vnet_endpoint_bytes_total{endpoint="d",direction="egress"} 200"#);
    let mut series: Vec<&str> =
        text.iter().filter(|l| !l.starts_with('#')).filter_map(|l| l.rsplit_once(' ')).map(|l| l.0).collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all);
}

#[test]
fn the_busiest_have_series_and_the_others_are_counted() {
    let rules = (0..MOST as u64 + 5).map(|n| rule(&format!("r{n}"), false, n)).collect();
    let text = lines(Snapshot { rules, ..Snapshot::default() });
    assert_eq!(text.iter().filter(|l| l.starts_with("vnet_rule_hits_total{")).count(), MOST);
    assert!(!text.iter().any(|l| l.contains(r#"rule="r4""#)) && text.iter().any(|l| l.contains(r#"rule="r5""#)));
    has(&text, r#"vnet_metrics_left_out{of="rules"} 5"#);
    has(&text, r#"vnet_metrics_left_out{of="members"} 0"#);
}

#[test]
fn durations_are_histograms() {
    let timings = Timings::default();
    timings.compiled(Duration::from_millis(3));
    timings.enforced(Duration::from_micros(150));
    let text: Vec<String> = text(Snapshot::default(), &timings).unwrap().lines().map(str::to_owned).collect();
    has(&text, "vnet_policy_compile_duration_seconds_count 1");
    has(&text, r#"vnet_quarantine_enforce_duration_seconds_bucket{le="0.0001"} 0"#);
    has(&text, r#"vnet_quarantine_enforce_duration_seconds_bucket{le="0.0002"} 1"#);
}

/// Words that look like metrics.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|w| w.starts_with("vnet_") && !w.contains(':'))
}

#[test]
fn what_is_documented_is_given_and_the_other_way_round() {
    let text = text(Snapshot::default(), &Timings::default()).unwrap();
    let given: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let documents = [include_str!("../../../../docs/OPERATIONS.md"), include_str!("../../../dist/prometheus-rules.yaml")];
    for document in documents {
        for name in named(document) {
            let base = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(given.contains(&base), "{name} is no metric");
        }
    }
    for name in given {
        // Of a family of names only the first is written out.
        let shortened = name.strip_prefix("vnet_tag_source").is_some_and(|rest| documents[0].contains(&format!("`…{rest}`")));
        assert!(shortened || named(documents[0]).any(|n| n == name), "{name} is not in docs/OPERATIONS.md");
    }
}

#[test]
fn the_recorded_rules_are_well_formed() {
    let rules: serde_json::Value = serde_saphyr::from_str(include_str!("../../../dist/prometheus-rules.yaml")).unwrap();
    let all = rules["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap());
    let (mut recorded, mut alerts) = (0, 0);
    for rule in all {
        assert!(rule["expr"].as_str().is_some_and(|e| !e.is_empty()), "{rule}");
        recorded += u32::from(rule["record"].is_string());
        alerts += u32::from(rule["alert"].is_string() && rule["annotations"]["summary"].is_string());
    }
    assert!(recorded >= 5 && alerts >= 8, "{recorded} {alerts}");
}
