//! Resources beside each other, in the files and in force.

use super::fields::{BALANCER, ENDPOINT};
use super::policy_fields::{GROUP, POLICY, QUARANTINE};
use super::*;

/// Where the faults are and how they start; none more, none less.
fn assert_faults(found: &[Fault], expected: &[(u32, u32, &str)]) {
    let same = |(fault, (line, column, message)): (&Fault, &(u32, u32, &str))| {
        (fault.line, fault.column) == (*line, *column) && fault.message.starts_with(message)
    };
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(same), "{expected:#?}\n{}", show(found));
}

fn in_force(text: &str) -> Vec<Resource> {
    good(text).into_iter().map(|located| located.resource).collect()
}

#[test]
fn vips_belong_to_one_load_balancer() {
    let other = BALANCER.replace("name: web", "name: api");
    let expected = [(33, 10, "VIP 10.96.0.10 TCP port 80, 81 of LoadBalancer `api` belongs to LoadBalancer `web` (t.yaml:1)")];
    assert_faults(&bad(&format!("{BALANCER}---\n{other}")), &expected);

    let expected = [(7, 10, "VIP 10.96.0.10 TCP port 81 of LoadBalancer `api` belongs to LoadBalancer `web` (in force)")];
    assert_faults(
        &check(&good(&other.replace("[80, 81]", "[81, 82]")), &in_force(BALANCER).iter().collect::<Vec<_>>()),
        &expected,
    );

    good(&format!("{BALANCER}---\n{}", other.replace("[80, 81]", "[82]")));
    good(&format!("{BALANCER}---\n{}", other.replace("TCP", "UDP")));
}

#[test]
fn what_is_replaced_is_in_nobodys_way() {
    assert_faults(&check(&good(BALANCER), &in_force(BALANCER).iter().collect::<Vec<_>>()), &[]);
}

#[test]
fn names_are_unique_in_their_kind() {
    let expected = [(30, 9, "LoadBalancer `web` is at t.yaml:1 already")];
    assert_faults(&bad(&format!("{BALANCER}---\n{}", BALANCER.replace("TCP", "UDP"))), &expected);
    good(&format!("{BALANCER}---\n{}", ENDPOINT.replace("vm1", "web")));
}

#[test]
fn a_vip_is_no_hosts_address() {
    let endpoint = ENDPOINT.replace("10.0.0.1", "10.96.0.10");
    let expected = [(7, 15, "10.96.0.10 is a VIP of LoadBalancer `web` (in force)")];
    assert_faults(&check(&good(&endpoint), &in_force(BALANCER).iter().collect::<Vec<_>>()), &expected);
    let expected = [(7, 10, "the VIP 10.96.0.10 is a host's address in Endpoint `vm1` (in force)")];
    assert_faults(&check(&good(BALANCER), &in_force(&endpoint).iter().collect::<Vec<_>>()), &expected);
}

#[test]
fn endpoints_share_nothing() {
    let other = ENDPOINT.replace("vm1", "vm2").replace("52:54:00:00:00:01", "'52:54:00:00:00:01'");
    let expected = [
        (5, 11, "Endpoint `vm1` (in force) has device `tap0` already"),
        (6, 8, "Endpoint `vm1` (in force) has MAC 52:54:00:00:00:01 already"),
        (7, 15, "Endpoint `vm1` (in force) has address 10.0.0.1 already"),
        (7, 25, "Endpoint `vm1` (in force) has address fd00::1 already"),
    ];
    assert_faults(&check(&good(&other), &in_force(ENDPOINT).iter().collect::<Vec<_>>()), &expected);
}

#[test]
fn hosts_name_their_devices_alike() {
    let on = |name: &str, host: &str| {
        let device = if host.is_empty() { "device: tap0".to_owned() } else { format!("device: tap0\n  host: {host}") };
        let last = name.trim_start_matches("vm");
        let other = ENDPOINT.replace("vm1", name).replace("device: tap0", &device).replace("00:00:01", &format!("00:00:0{last}"));
        other.replace("10.0.0.1", &format!("10.0.0.{last}")).replace("fd00::1", &format!("fd00::{last}"))
    };
    good(&[on("vm1", "a"), on("vm2", "b"), on("vm3", "c")].join("---\n"));
    for (first, second) in [("a", "a"), ("a", ""), ("", "a"), ("", "")] {
        let text = on("vm2", second);
        let expected = [(5, 11, "Endpoint `vm1` (in force) has device `tap0` already")];
        assert_faults(&check(&good(&text), &in_force(&on("vm1", first)).iter().collect::<Vec<_>>()), &expected);
    }
}

#[test]
fn tag_sources_listen_in_places_of_their_own() {
    let suricata = include_str!("../../../../policies/sources/suricata.yaml");
    let other = |socket: &str| {
        let other = suricata.replace("name: suricata", "name: other");
        other.replace("  type: suricata", &format!("  type: suricata\n  input: {{ socket: {socket} }}"))
    };
    // Written out, it is still the one that is there without.
    for socket in ["/run/vnet/suricata/eve.sock", "/run/vnet//suricata/./eve.sock"] {
        let found = bad(&format!("{suricata}---\n{}", other(socket)));
        assert!(found.len() == 1 && found[0].message.contains("two cannot share it"), "{socket}: {}", show(&found));
    }
    let longest = format!("/run/{}", "x".repeat(crate::socket_file::LONGEST - 5));
    assert_faults(&check(&good(&format!("{suricata}---\n{}", other(&longest))), &[]), &[]);
    let found = bad(&other(&format!("{longest}x")));
    assert!(found.len() == 1 && found[0].message.contains("at most 95 bytes here, and this one 96"), "{}", show(&found));
}

#[test]
fn what_is_faulty_elsewhere_still_overlaps() {
    let other = BALANCER.replace("name: web", "name: api").replace("    - address: 10.0.1.12", "    - weight: 1");
    let expected = [(33, 10, "VIP 10.96.0.10 TCP port 80, 81"), (42, 7, "an entry of `members` lacks the field `address`")];
    assert_faults(&bad(&format!("{BALANCER}---\n{other}")), &expected);
}

/// What stands for a value that is not there is not held against anyone.
#[test]
fn what_nobody_wrote_is_no_fault() {
    let other = BALANCER.replace("name: web", "name: api").replace("TCP", "SCTP");
    assert_faults(&bad(&format!("{BALANCER}---\n{other}")), &[(34, 13, "`protocol` must be `TCP` or `UDP`, but is `SCTP`")]);
    let nameless = BALANCER.replace("name: web", "{}").replace("  labels: { tier: front }\n", "").replace("TCP", "UDP");
    let expected = [(3, 1, "`metadata` lacks the field `name`"), (28, 1, "`metadata` lacks the field `name`")];
    assert_faults(&bad(&format!("{nameless}---\n{nameless}")), &expected);
    let expected = [(7, 10, "an entry of `vips` must be an IP address")];
    assert_faults(&bad(&BALANCER.replace("10.96.0.10", "10.96")), &expected);
}

fn against(applied: &str, in_force: &[Resource]) -> Vec<Fault> {
    check(&good(applied), &in_force.iter().collect::<Vec<_>>())
}

#[test]
fn what_is_named_may_be_in_the_files_or_in_force() {
    let (web, held) = GROUP.split_once("---\n").unwrap();
    assert_faults(&against(web, &in_force(held)), &[]);
    let expected = [(27, 11, "there is no SecurityGroup `held`")];
    assert_faults(&against(web, &[]), &expected);
    // A resource in force is not told what is wrong with it, but what breaks it is.
    let plain = held.replace("  quarantine: {}\n", "  precedence: 1\n");
    let expected = [(
        4,
        1,
        "SecurityGroup `web` (in force) moves endpoints into it (transfer `malware`): SecurityGroup `held` is no quarantine",
    )];
    assert_faults(&against(&plain, &in_force(GROUP)), &expected);
    let quarantine = GROUP.split_once("---\n").unwrap().1.replace("held", "web");
    let policy = POLICY.replace("[default]", "[web]");
    let expected =
        [(5, 3, "Policy `base` (in force) is applied to it: SecurityGroup `web` is a quarantine group, which policies do not")];
    let mut there = in_force(GROUP);
    there.extend(in_force(&policy));
    assert_faults(&against(&quarantine, &there), &expected);
}

#[test]
fn what_others_need_cannot_be_deleted() {
    let all = in_force(&format!("{GROUP}---\n{}", POLICY.replace("[default]", "[web]")));
    let gone = |names: &[(&str, &str)]| {
        let deleted: Vec<(String, String)> = names.iter().map(|(k, n)| ((*k).to_owned(), (*n).to_owned())).collect();
        let stay = |r: &&Resource| !names.contains(&(r.kind(), r.name()));
        needed(&deleted, all.iter().filter(stay))
    };
    assert_eq!(
        gone(&[("SecurityGroup", "held")]),
        ["SecurityGroup `web` moves endpoints into SecurityGroup `held` (transfer `malware`)"]
    );
    assert_eq!(gone(&[("SecurityGroup", "web")]), ["Policy `base` is applied to SecurityGroup `web`"]);
    assert_eq!(gone(&[("SecurityGroup", "web"), ("SecurityGroup", "held"), ("Policy", "base")]), [""; 0]);
    assert_eq!(gone(&[("SecurityGroup", "default")]), [""; 0], "it is then the built-in one");
    let all = in_force(QUARANTINE);
    let deleted = [("LoadBalancer".to_owned(), "web".to_owned()), ("Endpoint".to_owned(), "vm1".to_owned())];
    let stay = all.iter().filter(|r| r.kind() == "SecurityGroup");
    let expected = ["SecurityGroup `held` redirects to LoadBalancer `web`", "SecurityGroup `held` mirrors to Endpoint `vm1`"];
    assert_eq!(needed(&deleted, stay), expected);
}
