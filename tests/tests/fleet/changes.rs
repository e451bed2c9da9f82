//! Changes by operators: two at once, newer versions' fields, canaries, hosts that go.

use crate::scene::{
    HOSTS, Open, SERVED, SOON, Trio, VIPS, alarm, alarms, allow, content, everywhere, go_on, host_is, no_alarm, passes, policy,
    refused, web,
};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use vnet_tests::{Agent, Fleet, OPERATOR, ROOT, bin_dir, wait_for};

/// The key of group `web`.
const WEB: &str = "/vnet/v1/desired/resources/SecurityGroup/web";

fn value(fleet: &Fleet, key: &str) -> Result<String> {
    fleet.etcd.etcdctl(ROOT, &["get", key, "--print-value-only"]).map(|text| text.trim_end().to_owned())
}

#[test]
fn of_two_who_change_the_same_one_is_shown_the_others() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    // Her agent does not hear of his change, while she reaches the store.
    trio.fleet.cut(0)?;
    let his = web(&allow("bob-was-here", SERVED + 1));
    agents[1].apply(&his)?;
    let file = agents[0].dir().write("hers.yaml", &web(&allow("eve-was-here", SERVED + 2)))?;
    let mut command = trio.fleet.core.command(bin_dir()?.join("vnet-ctl"))?;
    let operator = trio.fleet.etcd.pki.client(OPERATOR)?;
    command.arg("--socket").arg(agents[0].socket()).args(["apply", "-f"]).arg(&file);
    for (option, path) in [("--store-ca", operator.ca), ("--store-cert", operator.certificate), ("--store-key", operator.key)] {
        command.arg(option).arg(path);
    }
    let error = refused(trio.fleet.core.output_of(command), "a change of what somebody else has changed")?;
    println!("{error}");
    let has_line = |sign: char, what: &str| error.lines().any(|line| line.starts_with(sign) && line.contains(what));
    ensure!(error.contains("nothing was written") && error.contains("--- proposed-from/securitygroup/web"), "{error}");
    ensure!(has_line('+', "bob-was-here") && has_line('-', "bob-was-here") && has_line('+', "eve-was-here"), "{error}");
    let now = value(&trio.fleet, WEB)?;
    ensure!(now.contains("bob-was-here") && !now.contains("eve-was-here"), "{now}");
    trio.fleet.mend(0)?;
    no_alarm(&agents[0])?;
    let has = || trio.connects(1, 0, SERVED + 1).ok().filter(|c| *c);
    wait_for("his change at host-a", SOON, has)?;
    // Both at once, again and again: in the end every host has what the store has, and nothing was lost unsaid.
    let (mut won, mut lost) = (0, 0);
    for round in 0..4 {
        let done: Vec<(u16, bool)> = std::thread::scope(|scope| {
            let of = |n: u16| {
                let agent = &agents[usize::from(n)];
                scope.spawn(move || (n, agent.apply(&web(&allow(&format!("r{round}-{n}"), 9000 + n))).is_ok()))
            };
            [of(1), of(2)].map(|thread| thread.join().unwrap_or((0, false))).to_vec()
        });
        won += done.iter().filter(|(_, done)| *done).count();
        lost += done.iter().filter(|(_, done)| !*done).count();
        ensure!(done.iter().any(|(_, done)| *done), "neither of two has won");
        let now = value(&trio.fleet, WEB)?;
        ensure!(done.iter().any(|(n, done)| *done && now.contains(&format!("r{round}-{n}"))), "{done:?}: {now}");
    }
    println!("two at once: {won} written, {lost} refused");
    agents.iter().try_for_each(no_alarm)?;
    // Not before its agent has heard of the last one.
    wait_for("a last change", SOON, || everywhere(&agents[0], &web("")).ok())
}

/// An agent of a newer version writes what this one does not know.
#[test]
fn what_only_newer_versions_know_is_left_alone() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let put = |user: &str, key: &str, value: &str| trio.fleet.etcd.etcdctl(user, &["put", key, value]);
    let mut newer: serde_json::Value = serde_json::from_str(&value(&trio.fleet, WEB)?)?;
    newer["resource"]["spec"]["later"] = serde_json::json!({ "depth": 5 });
    newer["since"] = serde_json::json!(2);
    put(OPERATOR, WEB, &newer.to_string())?;
    put(
        OPERATOR,
        "/vnet/v1/desired/resources/Tunnel/t",
        r#"{"resource":{"apiVersion":"vnet/v1alpha1","kind":"Tunnel","metadata":{"name":"t"},"spec":{}}}"#,
    )?;
    put(OPERATOR, "/vnet/v1/desired/later/x", "{")?;
    for host in HOSTS {
        for key in ["later", "alive/later", "endpoints/later/x/y"] {
            put(ROOT, &format!("/vnet/v1/state/{key}/{host}"), "not even JSON")?;
        }
    }
    // Records of hosts, with more than this version knows, and one that it cannot read at all.
    put(
        ROOT,
        "/vnet/v1/state/endpoints/host-d/far",
        r#"{"group":"shop","labels":{"app":"shop"},"identity":0,"addresses":["10.9.9.9"],"later":[1]}"#,
    )?;
    put(ROOT, "/vnet/v1/state/endpoints/host-d/torn", "{")?;
    for (agent, member) in agents.iter().zip(["a1:8080/tcp", "b1:8080/tcp", "c1:8080/tcp"]) {
        alarm(agent, "does not know `spec.later`")?;
        alarm(agent, "Tunnel t: this agent does not know resources of this kind")?;
        passes(agent, "10.9.9.9", member, true)?;
    }
    trio.in_force()?;
    go_on(&mut open)?;
    everywhere(&agents[0], &web(&allow("second", SERVED + 1)))?;
    let written = value(&trio.fleet, WEB)?;
    let now: serde_json::Value = serde_json::from_str(&written)?;
    ensure!(now["resource"]["spec"]["later"]["depth"] == 5 && now["since"] == 2, "{now}");
    ensure!(now.to_string().contains("second"), "{now}");
    ensure!(trio.connects(0, 1, SERVED + 1)?, "what it knows of the resource is in force");

    // What is desired and cannot be read at all is not taken for the wish that it be gone.
    put(OPERATOR, WEB, "{\"torn")?;
    agents.iter().try_for_each(|agent| alarm(agent, "that this agent cannot read"))?;
    trio.in_force()?;
    let error = refused(agents[1].ctl(&["delete", "lb", "web"]), "a change of a store that is not in force")?;
    println!("{error}");
    put(OPERATOR, WEB, &written)?;
    for agent in &agents {
        let is_over = || alarms(agent).ok().filter(|all| !all.contains("cannot read"));
        wait_for("it to be mended", SOON, is_over)?;
    }
    trio.in_force()?;
    go_on(&mut open)
}

#[test]
fn a_canary_is_alone_with_its_change_until_all_have_it() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let begin = |port: u16, name: &str| -> Result<String> {
        let file = agents[1].dir().write("canary.yaml", &web(&allow(name, port)))?;
        agents[1].ctl(&["apply", "-f", file.to_str().context("a path of plain letters")?, "--canary", "host-a", "--name", name])
    };
    let ports = [SERVED + 1, super::scene::CLOSED];
    for (port, promoted) in [(ports[0], true), (ports[1], false)] {
        let name = if promoted { "good" } else { "bad" };
        let printed = begin(port, name)?;
        ensure!(printed.contains("in force on 1 of 1 host"), "{printed}");
        ensure!(trio.connects(2, 0, port)?, "host-a has it");
        ensure!(!trio.connects(0, 1, port)? && !trio.connects(0, 2, port)?, "the others have not");
        let rollouts = agents[2].ctl(&["rollout", "status", name])?;
        ensure!(rollouts.contains("host-a"), "{rollouts}");
        // Who changes something at the host that tries it changes what all have.
        let shared = agents[0].ctl(&["get", "securitygroup", "web", "-o", "yaml"])?;
        ensure!(!shared.contains(&format!("name: {name}")), "{shared}");
        let other = format!(
            "apiVersion: vnet/v1alpha1\nkind: Policy\nmetadata: {{ name: other-{name} }}\n\
             spec: {{ ingress: [{{ name: r, peers: [{{ cidr: 172.16.0.0/12 }}], ports: [{{ protocol: TCP, port: {port} }}], action: deny }}] }}\n"
        );
        everywhere(&agents[0], &other)?;
        ensure!(!value(&trio.fleet, WEB)?.contains(&format!("\"{name}\"")), "only host-a has it");
        agents[2].ctl(&["rollout", if promoted { "promote" } else { "rollback" }, name])?;
        for host in 0..3 {
            let as_said = || trio.connects((host + 1) % 3, host, port).ok().filter(|c| *c == promoted);
            wait_for(&format!("{name} at {}", HOSTS[host]), SOON, as_said).with_context(|| agents[host].logged())?;
        }
        go_on(&mut open)?;
    }
    Ok(())
}

#[test]
fn a_canary_that_does_not_fit_what_all_have_by_now_stays_one() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let balancer = |name: &str| {
        format!(
            "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: {name} }}\nspec:\n  vips: [10.96.0.30]\n  protocol: TCP\n  \
             ports: [80]\n  members: [{{ address: 10.1.0.11, port: {SERVED} }}]\n"
        )
    };
    let file = agents[1].dir().write("canary.yaml", &balancer("one"))?;
    let file = file.to_str().context("a path of plain letters")?;
    agents[1].ctl(&["apply", "-f", file, "--canary", "host-a", "--name", "clash"])?;
    // Two of one VIP: each is right by itself, and host-a cannot have both.
    let error = refused(agents[0].apply(&balancer("one").replace("10.96.0.30", "10.96.0.10")), "a VIP that all have")?;
    ensure!(error.contains("10.96.0.10"), "{error}");
    let printed = agents[2].apply(&balancer("two"))?;
    ensure!(printed.contains("in force on 2 of 3 hosts"), "{printed}");
    alarm(&agents[0], "10.96.0.30")?;
    let error = refused(agents[2].ctl(&["rollout", "promote", "clash", "--force"]), "a promotion that no host could follow")?;
    ensure!(error.contains("10.96.0.30") && error.contains("two"), "{error}");
    agents[2].ctl(&["rollout", "rollback", "clash"])?;
    no_alarm(&agents[0])?;
    let balancers = agents[0].ctl(&["lb", "ls"])?;
    ensure!(balancers.contains("two") && !balancers.contains("one"), "{balancers}");
    trio.in_force()
}

/// Who serves those that connect to the VIP now.
fn served_by(trio: &Trio, host: usize) -> Result<BTreeSet<String>> {
    (0..9).map(|_| Ok(Open::to(&trio.fleet.vm(host, 0).host, VIPS[0].parse()?, 80)?.who)).collect()
}

#[test]
fn a_host_is_drained_and_taken_out() -> Result<()> {
    let trio = Trio::new()?;
    let mut agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let names = |text: &str| text.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    let serve = |host: usize, who: &str, agents: &[Agent<'_>]| {
        let is_so = || served_by(&trio, host).ok().filter(|by| *by == names(who));
        wait_for(&format!("{who} to serve {}", HOSTS[host]), SOON, is_so).with_context(|| agents[host].logged())
    };
    trio.fleet.ctl(0, &["host", "drain", "host-b"])?;
    for host in 0..3 {
        serve(host, "a1 c1", &agents)?;
    }
    go_on(&mut open)?;
    host_is(&agents[2], "host-b", "drained")?;
    trio.fleet.ctl(2, &["host", "undrain", "host-b"])?;
    serve(0, "a1 b1 c1", &agents)?;
    trio.fleet.ctl(0, &["host", "drain", "host-b"])?;
    serve(0, "a1 c1", &agents)?;

    let root = trio.fleet.etcd.pki.client(ROOT)?;
    let error = refused(trio.fleet.ctl_as(&root, 0, &["host", "remove", "host-b"]), "a living host removed")?;
    ensure!(error.contains("host 'host-b' is alive"), "{error}");
    agents[1].stop()?;
    host_is(&agents[0], "host-b", "silent")?;
    println!("{}", trio.fleet.ctl_as(&root, 0, &["host", "remove", "host-b"])?);
    let gone = || agents[2].ctl(&["host", "ls"]).ok().filter(|text| !text.contains("host-b"));
    wait_for("host-b to be gone", SOON, gone)?;
    let left = trio.fleet.etcd.etcdctl(ROOT, &["get", "--prefix", "/vnet/", "--keys-only"])?;
    ensure!(left.contains("host-c") && !left.contains("host-b"), "{left}");
    let error = refused(trio.fleet.etcd.etcdctl("host-b", &["get", "--prefix", "/vnet/v1/"]), "a read by a host that is gone")?;
    println!("{error}");
    agents[1].begin()?;
    alarm(&agents[1], "vnet-ctl host add")?;
    Ok(())
}

#[test]
fn one_hosts_resources_move_into_a_fleet_and_back() -> Result<()> {
    let fleet = Fleet::new(&["host-a", "host-b"], 2)?;
    let store = fleet.etcd.endpoints();
    let root = fleet.etcd.pki.client(ROOT)?;
    let hosts = ["--host", "host-a", "--host", "host-b"];
    fleet.ctl_as(&root, 0, &[["store", "init", "--store", &store, "--operator", OPERATOR].as_slice(), &hosts].concat())?;
    // In a fleet this is checked against each host: here only host-a has it.
    let alone = policy("").split("---\n").filter(|text| !text.contains("kind: Endpoint")).collect::<Vec<_>>().join("---\n");
    let identity = fleet.etcd.pki.client(OPERATOR)?;
    let environment = vec![
        ("VNET_STORE_CA", identity.ca.clone()),
        ("VNET_STORE_CERT", identity.certificate.clone()),
        ("VNET_STORE_KEY", identity.key.clone()),
    ];
    let mut first = Agent::start(fleet.host(0), &["tap*"])?;
    first.set_ctl_environment(environment.clone());
    first.apply(&alone)?;
    first.ctl(&["lb", "drain", "web", "b1"])?;
    let before = content(&first)?;
    println!("{}", first.ctl(&["store", "migrate", "--to", &store])?);
    first.stop()?;
    let shared = (0..2).map(|host| fleet.agent(host, &[])).collect::<Result<Vec<_>>>()?;
    for agent in &shared {
        let same = || content(agent).ok().filter(|now| *now == before);
        wait_for("what the host alone had", SOON, same)
            .with_context(|| format!("{before}\n{:?}\n{}", content(agent), agent.logged()))?;
        let members = agent.ctl(&["lb", "members", "web"])?;
        ensure!(members.lines().any(|l| l.contains("b1 ") && l.contains("drain")), "{members}");
    }
    drop(shared);
    let mut back = Agent::start(fleet.host(1), &["tap*"])?;
    back.set_ctl_environment(environment);
    println!("{}", back.ctl(&["store", "migrate", "--from", &store])?);
    ensure!(content(&back)? == before, "{before}\n{}", content(&back)?);
    let members = back.ctl(&["lb", "members", "web"])?;
    ensure!(members.lines().any(|l| l.contains("b1 ") && l.contains("drain")), "{members}");
    // And what is there already is not touched.
    back.ctl(&["delete", "lb", "web"])?;
    back.apply(&web(&allow("more", 22)))?;
    let error = refused(back.ctl(&["store", "migrate", "--to", &store]), "a store with other resources overwritten")?;
    println!("{error}");
    // What is there instead has a VIP of what is to come: both go and come as one change.
    back.apply(&alone.split("---\n").next().unwrap_or_default().replace("name: web", "name: other"))?;
    back.ctl(&["store", "migrate", "--from", &store, "--replace"])?;
    ensure!(content(&back)? == before, "{before}\n{}", content(&back)?);
    Ok(())
}
