//! One case per rule.

use super::fixtures::{Input, compile, health_check, ip, lb, member};
use super::*;
use crate::resource::MemberSelector;

fn local(name: &str, addresses: &[&str], ifindex: u32, segment: u32) -> Local {
    let labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
    let addresses = addresses.iter().map(|a| ip(a)).collect();
    Local { name: name.into(), labels, addresses, ifindex, segment, mac: [ifindex as u8; 6] }
}

fn input(lb: LoadBalancer) -> Input {
    Input { load_balancers: vec![lb], ..Input::default() }
}

#[test]
fn one_group_for_each_family_and_port() {
    let mut x = lb("x", &["10.0.0.2", "10.0.0.1", "fd00::1"], vec![member("10.9.0.1"), member("fd00::9")]);
    x.spec.ports = vec![443, 80];
    x.spec.members[0].port = Some(8080);
    let out = compile(&input(x));
    let shape: Vec<_> =
        out.groups().iter().map(|g| (g.vips.len(), g.port, g.members[0].address.is_ipv4(), g.members[0].port)).collect();
    assert_eq!(shape, [(2, 80, true, 8080), (2, 443, true, 8080), (1, 80, false, 80), (1, 443, false, 443)]);
    assert!(out.groups().iter().all(|g| g.members.len() == 1 && g.vips.is_sorted()));
    assert!(out.warnings().is_empty());
}

#[test]
fn a_family_without_members_is_an_empty_group_and_a_warning() {
    let out = compile(&input(lb("x", &["fd00::1"], vec![member("10.9.0.1")])));
    assert!(out.groups()[0].members.is_empty());
    assert_eq!(out.warnings(), ["load balancer x: no member has an IPv6 address, but a VIP does"]);
}

#[test]
fn options_become_flags() {
    let mut x = lb("x", &["10.0.0.1"], vec![]);
    assert_eq!(compile(&input(x.clone())).groups()[0].flags, 0);
    x.spec.on_no_member = OnNoMember::Drop;
    x.spec.on_member_removed = OnMemberRemoved::Repick;
    x.spec.delivery = Delivery::Redirect;
    assert_eq!(compile(&input(x)).groups()[0].flags, flags::EMPTY_DROP | flags::REMOVED_REPICK | flags::REDIRECT);
}

#[test]
fn weight_drain_and_health_make_the_state() {
    let mut x = lb("x", &["10.0.0.1"], vec![member("10.9.0.1"), member("10.9.0.2"), member("10.9.0.3"), member("10.9.0.4")]);
    x.spec.members[0].weight = 0;
    x.spec.members[3].name = Some("four".into());
    x.spec.health_check = Some(health_check("{ port: 99, intervalMs: 500, timeoutMs: 100, rise: 1, fall: 2 }"));
    let mut input = input(x);
    let key = |m: &str| ("x".to_string(), m.to_string());
    input.overrides.insert(key("10.9.0.2"), MemberOverride { drained: true, weight: None });
    input.overrides.insert(key("four"), MemberOverride { drained: false, weight: Some(7) });
    let checks: Vec<Check> = members(compile(&input).groups()).filter_map(|(_, m)| m.check.clone()).collect();
    assert_eq!(checks.len(), 4);
    assert!(checks.iter().all(|c| c.target.port() == 99 && c.interval == Duration::from_millis(500) && c.fall == 2));
    input.down = checks.into_iter().filter(|c| c.target.ip() != ip("10.9.0.4")).collect();
    let got: Vec<_> = compile(&input).groups()[0].members.iter().map(|m| (m.state, m.weight)).collect();
    assert_eq!(got, [(state::DRAINING, 0), (state::DRAINING, 1), (state::DOWN, 1), (state::ACTIVE, 7)]);
    let out = |port| {
        let place = (port, SocketAddr::new(ip("10.9.0.4"), 80));
        HashMap::from([("x".to_owned(), HashMap::from([(place, "why".to_owned())]))])
    };
    for (port, now) in [(81, state::ACTIVE), (80, state::DOWN)] {
        input.ejected = out(port);
        assert_eq!(compile(&input).groups()[0].members[3].state, now);
    }
}

#[test]
fn checks_go_to_the_members_port_by_default() {
    let mut x = lb("x", &["10.0.0.1"], vec![member("10.9.0.1")]);
    x.spec.ports = vec![80, 81];
    x.spec.health_check = Some(health_check("{ intervalMs: 500, timeoutMs: 100, rise: 1, fall: 2 }"));
    let checks = |x: &LoadBalancer| -> BTreeSet<(u16, String)> {
        let compiled = compile(&input(x.clone()));
        members(compiled.groups()).filter_map(|(_, m)| m.check.as_ref()).map(|c| (c.target.port(), c.what())).collect()
    };
    assert_eq!(checks(&x), BTreeSet::from([80, 81].map(|port| (port, format!("connect to 10.9.0.1:{port}")))));
    x.spec.health_check = Some(health_check("{ http: { path: /up, https: true }, port: 99 }"));
    assert_eq!(checks(&x), BTreeSet::from([(99, "GET https://10.9.0.1:99/up".to_owned())]));
    x.spec.health_check = Some(health_check("{ udp: { send: x } }"));
    assert_eq!(checks(&x), BTreeSet::from([80, 81].map(|port| (port, format!("UDP to 10.9.0.1:{port}")))));
    // One ping is enough.
    x.spec.health_check = Some(health_check("{ icmp: {} }"));
    assert_eq!(checks(&x), BTreeSet::from([(0, "ping of 10.9.0.1".to_owned())]));
}

#[test]
fn selectors_take_endpoints_with_all_the_labels() {
    let mut x = lb("x", &["10.0.0.1"], vec![]);
    let match_labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
    x.spec.member_selector = Some(MemberSelector { match_labels, port: Some(8080) });
    let mut input = input(x);
    input.endpoints = vec![local("vm1", &["10.9.0.1", "10.9.0.5"], 4, 0), local("vm2", &["10.9.0.2"], 5, 0)];
    input.endpoints[1].labels.clear();
    input.overrides.insert(("x".into(), "vm1".into()), MemberOverride { drained: true, weight: None });
    let members = compile(&input).groups()[0].members.clone();
    let got: Vec<_> = members.iter().map(|m| (m.name.as_str(), m.address, m.port, m.state)).collect();
    let want = |a| ("vm1", ip(a), 8080, state::DRAINING);
    assert_eq!(got, [want("10.9.0.1"), want("10.9.0.5")]);
}

#[test]
fn endpoints_of_other_hosts_are_members_like_those_of_this_one() {
    use crate::elsewhere::fixtures::{elsewhere, endpoint};
    use crate::elsewhere::{RemoteEndpoint, RemoteHost};
    let mut x = lb("x", &["10.0.0.1"], vec![member("10.9.0.9")]);
    let match_labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
    x.spec.member_selector = Some(MemberSelector { match_labels, port: None });
    let mut input = input(x);
    input.endpoints = vec![local("vm1", &["10.9.0.1"], 4, 77)];
    let remote = |host: &str, address: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        RemoteEndpoint { labels: std::sync::Arc::new(labels), ..endpoint(host, "default", &[address]) }
    };
    input.elsewhere = elsewhere(vec![
        ("b/tap0", remote("b", "10.9.0.2", &[("app", "web")])),
        ("vm1", remote("b", "10.9.0.3", &[("app", "web")])),
        ("vm4", remote("c", "10.9.0.4", &[("app", "web"), ("zone", "own")])),
        ("vm5", remote("c", "10.9.0.5", &[("app", "db")])),
        ("vm9", remote("c", "10.9.0.9", &[])),
    ]);
    let in_zone = |zone: &str| RemoteHost { zone: Some(zone.into()), ..RemoteHost::default() };
    input.elsewhere.hosts = BTreeMap::from([("b".into(), in_zone("zb")), ("c".into(), in_zone("zc"))]);
    input.neighbours = HashMap::from([(ip("10.9.0.4"), Neighbour { segment: 77, mac: [9; 6] })]);
    let got = |input: &Input| -> Vec<(String, Option<String>, u8, u32, u32)> {
        let members = compile(input).groups()[0].members.clone();
        members.into_iter().map(|m| (m.name, m.zone, m.state, m.place.ifindex, m.place.segment)).collect()
    };
    let is = |name: &str, zone: Option<&str>, ifindex, segment| {
        (name.to_owned(), zone.map(str::to_owned), state::ACTIVE, ifindex, segment)
    };
    let all = [is("vm1", None, 4, 77), is("b/tap0", Some("zb"), 0, 0), is("vm4", Some("own"), 0, 77), is("10.9.0.9", None, 0, 0)];
    assert_eq!(got(&input), all, "the vm1 of host b is not the one that is meant");
    let states = |input: &Input| got(input).into_iter().map(|m| m.2).collect::<Vec<_>>();
    input.elsewhere.hosts.get_mut("c").unwrap().drained = true;
    let (on, off) = (state::ACTIVE, state::DRAINING);
    assert_eq!(states(&input), [on, on, off, off], "also one whose address is written in the load balancer");
    input.elsewhere.drained = true;
    assert_eq!(states(&input), [off, on, off, off]);
}

#[test]
fn places_come_from_endpoints_then_neighbours_then_the_resource() {
    let mut x = lb("x", &["10.0.0.1"], ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5"].map(member).into());
    x.spec.delivery = Delivery::Redirect;
    x.spec.members[2].mac = Some("02:00:00:00:00:03".into());
    x.spec.members[4].mac = Some("02:00:00:00:00:05".into());
    let mut input = input(x);
    input.endpoints = vec![local("vm1", &["10.9.0.1"], 4, 77)];
    let neighbour = Neighbour { segment: 77, mac: [9; 6] };
    input.neighbours = HashMap::from([(ip("10.9.0.2"), neighbour), (ip("10.9.0.3"), neighbour), (ip("10.9.0.1"), neighbour)]);
    let place = |mac, ifindex, segment| Place { mac, ifindex, segment };
    let out = compile(&input);
    let places: Vec<Place> = out.groups()[0].members.iter().map(|m| m.place).collect();
    assert_eq!(
        places,
        [
            place([4; 6], 4, 77),
            place([9; 6], 0, 77),
            place([2, 0, 0, 0, 0, 3], 0, 77),
            Place::default(),
            place([2, 0, 0, 0, 0, 5], 0, 77)
        ]
    );
    assert_eq!(out.redirect_members(), HashSet::from([4]));
    input.endpoints.push(local("vm2", &[], 5, 78));
    assert_eq!(compile(&input).groups()[0].members[4].place.segment, 0, "on which of two bridges?");
}

#[test]
fn members_of_members_are_drained_where_they_come_from_and_where_they_are() {
    use crate::resource::MemberGroup;
    let inner = lb("inner", &["10.0.0.1"], vec![member("10.9.0.1"), member("10.9.0.2"), member("10.9.0.3")]);
    let mut outer = lb("outer", &["10.0.0.2"], vec![]);
    outer.spec.member_groups = vec![MemberGroup { load_balancer: "inner".into(), backup: false }];
    let mut input = Input { load_balancers: vec![inner, outer], ..Input::default() };
    let mut change = |lb: &str, m: &str, drained, weight| {
        input.overrides.insert((lb.into(), m.into()), MemberOverride { drained, weight });
    };
    change("inner", "10.9.0.1", true, None);
    change("outer", "inner/10.9.0.1", false, Some(5));
    change("outer", "inner/10.9.0.2", true, None);
    change("outer", "inner/10.9.0.3", false, Some(7));
    let compiled = compile(&input);
    let got = |lb: &str| compiled.of(lb)[0].members.iter().map(|m| (m.state, m.weight)).collect::<Vec<_>>();
    assert_eq!(got("inner"), [(state::DRAINING, 1), (state::ACTIVE, 1), (state::ACTIVE, 1)]);
    assert_eq!(got("outer"), [(state::DRAINING, 5), (state::DRAINING, 1), (state::ACTIVE, 7)]);
}

#[test]
fn load_feedback_multiplies_weights_where_it_is_on() {
    let mut x = lb("x", &["10.0.0.1"], vec![member("10.9.0.1"), member("10.9.0.2"), member("10.9.0.3"), member("10.9.0.4")]);
    (x.spec.members[1].weight, x.spec.members[3].weight) = (10, 0);
    let mut input = input(x);
    let hint = |m: &str, percent, elsewhere| ((80, SocketAddr::new(ip(m), 80)), Hint { percent, elsewhere });
    let hints = [hint("10.9.0.1", 151, 0), hint("10.9.0.2", 30, 7), hint("10.9.0.4", 200, 0)];
    input.feedback = HashMap::from([("x".to_owned(), HashMap::from(hints))]);
    let mut got = |feedback: Option<&str>| -> Vec<(u32, u32)> {
        input.load_balancers[0].spec.feedback = feedback.map(|yaml| serde_saphyr::from_str(yaml).unwrap());
        compile(&input).groups()[0].members.iter().map(|m| (m.share, m.hint.elsewhere)).collect()
    };
    assert_eq!(got(Some("{ mode: leastLoad }")), [(150, 0), (300, 7), (100, 0), (0, 0)]);
    for off in [None, Some("{}"), Some("{ mode: off }")] {
        assert_eq!(got(off), [(100, 0), (1000, 0), (100, 0), (0, 0)], "{off:?}");
    }
    input.feedback = HashMap::from([("x".to_owned(), HashMap::from([hint("10.9.0.1", 0, 0)]))]);
    input.load_balancers[0].spec.feedback = Some(serde_saphyr::from_str("{ mode: leastLoad }").unwrap());
    assert_eq!(compile(&input).groups()[0].members[0].share, 1, "never nothing");
}
