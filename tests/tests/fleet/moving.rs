//! A VM that moves to another host takes its connections along, without anybody saying so.

use crate::scene::{alarms, connects, explained, go_on, host_is, logs, passes};
use crate::support::Scene;
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Machine, Open, connect, machine_behind, plug, serve_name, wait_for};

const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

fn policy(members: &[Machine]) -> String {
    let mut yaml = format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec:\n  vips: [\"{}\", \"{}\"]\n  protocol: TCP\n  \
         ports: [80]\n  algorithm: roundRobin\n  members:\n",
        VIPS[0], VIPS[1]
    );
    for m in members {
        for (suffix, address) in [("", IpAddr::V4(m.v4)), ("-v6", IpAddr::V6(m.v6))] {
            yaml += &format!("    - {{ name: {}{suffix}, address: \"{address}\", port: 8080 }}\n", m.name);
        }
    }
    yaml + "---\napiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: { name: vm, labels: { app: shop } }\nspec:\n  device: tapvm\n  \
            addresses: [10.0.0.77, \"fd00:0::77\"]\n\
            ---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: { name: shop }\nspec:\n  \
            selector: { matchLabels: { app: shop } }\n  defaults: { ingress: deny, egress: allow }\n"
}

/// Puts the VM behind a device of a host, and leads what is for it there.
fn put(scene: &Scene, vm: &Machine, host: usize) -> Result<()> {
    let gateway = (Ipv4Addr::new(10, 0, 0, 254), "fd00::fe".parse::<Ipv6Addr>()?);
    plug(vm, scene.fleet.host(host), "tapvm", gateway)?;
    scene.fleet.core.ip(&format!("route replace 10.0.0.77/32 via 10.98.{host}.2\nroute replace fd00::77/128 via fd98:{host}::2"))
}

/// Two hosts, members that serve, and the VM at the first host.
fn balanced() -> Result<(Scene, Vec<Machine>, Machine)> {
    let scene = Scene::new(&["host-a", "host-b"], 1)?;
    let members: Vec<Machine> = [("m1", 11), ("m2", 12)]
        .into_iter()
        .map(|(name, last)| machine_behind(&scene.fleet.core, name, name, last))
        .collect::<Result<_>>()?;
    for member in &members {
        serve_name(member, member.v4.into(), 8080)?;
        serve_name(member, member.v6.into(), 8080)?;
    }
    let vm = Machine::new("vm", Ipv4Addr::new(10, 0, 0, 77), "fd00::77".parse()?)?;
    put(&scene, &vm, 0)?;
    Ok((scene, members, vm))
}

#[test]
fn a_vm_that_moves_takes_its_connections_along() -> Result<()> {
    let (scene, members, vm) = balanced()?;
    let (a, b) = (scene.fleet.agent(0, &[])?, scene.fleet.agent(1, &[])?);
    scene.alive(&a, 2)?;
    a.apply(&policy(&members))?;
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(Open::to(&vm.host, VIPS[0].parse()?, 80)?);
        open.push(Open::to(&vm.host, VIPS[1].parse()?, 80)?);
    }
    // Who begins anew comes to m2: what was with m1 can only be known from before.
    for member in ["m1", "m1-v6"] {
        a.ctl(&["lb", "drain", "web", member])?;
    }
    ensure!(open.iter().any(|c| c.who == "m1"), "somebody is with m1");
    // There and back: the second time both agents know the VM.
    for (round, to) in [1, 0].into_iter().enumerate() {
        let from = 1 - to;
        scene.fleet.host(from).ip("link delete tapvm")?;
        put(&scene, &vm, to)?;
        let begun = Instant::now();
        for connection in &mut open {
            let who = connection.who.clone();
            let answer = connection.ask();
            let answer =
                answer.with_context(|| format!("move {round}: a connection to {who}\nA: {}\nB: {}", a.logged(), b.logged()))?;
            ensure!(answer == who, "move {round}: {who} answered before, {answer} now\nA: {}\nB: {}", a.logged(), b.logged());
        }
        println!("move {round}: all {} connections answered within {} ms", open.len(), begun.elapsed().as_millis());
        let new = Open::to(&vm.host, VIPS[0].parse()?, 80)?;
        ensure!(new.who == "m2", "a new connection goes to {}", new.who);
    }
    let log = b.logged();
    ensure!(log.contains("it waits for its flows") && log.contains("took over 20 flows"), "{log}");
    Ok(())
}

/// What it opens while it is copied is known at the other host, too, whatever becomes of the first one's agent.
#[test]
fn a_vm_that_migrates_live_takes_along_what_it_opens_meanwhile() -> Result<()> {
    let (scene, members, vm) = balanced()?;
    let (mut a, b) = (scene.fleet.agent(0, &[])?, scene.fleet.agent(1, &[])?);
    scene.alive(&a, 2)?;
    a.apply(&policy(&members))?;
    let vip = VIPS[0].parse()?;
    let mut open = vec![Open::to(&vm.host, vip, 80)?];
    // Its device on the other host, as long as it runs on the first.
    connect((scene.fleet.host(1), "tapvm", &["10.0.0.254/32"]), (&vm.host, "later", &[]))?;
    logs(&b, "endpoint vm: took over 1 flows")?;
    for _ in 0..10 {
        open.push(Open::to(&vm.host, vip, 80)?);
    }
    a.ctl(&["lb", "drain", "web", "m1"])?;
    ensure!(open[1..].iter().any(|c| c.who == "m1"), "somebody is with m1");
    // It need not live to see the end.
    std::thread::sleep(Duration::from_secs(3));
    a.kill()?;
    scene.fleet.host(0).ip("link delete tapvm")?;
    scene.fleet.host(1).ip("route add 10.0.0.77 dev tapvm")?;
    vm.host.ip("address add 10.0.0.77/32 dev later\nroute add 10.0.0.254 dev later\nroute add default via 10.0.0.254")?;
    scene.fleet.core.ip("route replace 10.0.0.77/32 via 10.98.1.2")?;
    go_on(&mut open).with_context(|| format!("{}\n{}", a.logged(), b.logged()))
}

/// A host that nobody tells anything lets it go on all the same, and in time.
#[test]
fn a_vm_that_comes_while_the_store_is_away_waits_no_longer() -> Result<()> {
    let scene = Scene::new(&["host-a", "host-b"], 1)?;
    let vm = Machine::new("vm", Ipv4Addr::new(10, 0, 0, 77), "fd00::77".parse()?)?;
    put(&scene, &vm, 0)?;
    serve_name(&vm, vm.v4.into(), 22)?;
    let (a, b) = (scene.fleet.agent(0, &[])?, scene.fleet.agent(1, &[])?);
    scene.alive(&a, 2)?;
    a.apply(HELD)?;
    let from = &scene.fleet.vm(1, 0).host;
    wait_for("the VM to be reached", Duration::from_secs(10), || connects(from, vm.v4.into(), 22).ok().filter(|c| *c))?;
    // A claim comes within milliseconds.
    std::thread::sleep(Duration::from_secs(2));
    scene.fleet.etcd.stop_all()?;
    // Whenever agents look after what should be right.
    for _ in 0..3 {
        for host in [1, 0] {
            scene.fleet.host(1 - host).ip("link delete tapvm")?;
            put(&scene, &vm, host)?;
            let begun = Instant::now();
            // Until its agent has seen it nobody shuts it.
            std::thread::sleep(Duration::from_millis(300));
            wait_for("the VM to be reached", Duration::from_secs(10), || connects(from, vm.v4.into(), 22).ok().filter(|c| *c))?;
            println!("reached after {} ms", begun.elapsed().as_millis());
            ensure!(begun.elapsed() < Duration::from_secs(4), "after {} ms", begun.elapsed().as_millis());
        }
    }
    ensure!(b.logged().contains("it goes on without"), "{}", b.logged());
    Ok(())
}

/// By command, before the VM is there, while the other host has its device already: it keeps its rules where it still is.
#[test]
fn a_vm_that_is_to_move_keeps_its_rules_until_it_does() -> Result<()> {
    let scene = Scene::new(&["host-a", "host-b"], 1)?;
    let vm = Machine::new("vm", Ipv4Addr::new(10, 0, 0, 77), "fd00::77".parse()?)?;
    put(&scene, &vm, 0)?;
    serve_name(&vm, vm.v4.into(), 22)?;
    let (a, b) = (scene.fleet.agent(0, &[])?, scene.fleet.agent(1, &[])?);
    scene.alive(&a, 2)?;
    a.apply(policy(&[]).split_once("---\n").context("documents")?.1)?;
    let to = SocketAddr::new(vm.v4.into(), 22);
    let from = &scene.fleet.vm(1, 0).host;
    let refused = |what: &str| -> Result<()> {
        let answer = from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)))?;
        ensure!(answer.is_err(), "{what}: the VM lets nobody in, and did");
        Ok(())
    };
    refused("on its first host")?;
    // As a live migration begins.
    scene.fleet.host(1).ip("link add tapvm type veth peer name coming\nlink set tapvm up")?;
    let claimed = || alarms(&a).ok().filter(|all| all.contains("endpoint vm is claimed by host host-a and by host-b"));
    wait_for("host-b to claim it, too", Duration::from_secs(10), claimed).with_context(|| b.logged())?;
    a.ctl(&["endpoint", "move", "vm", "--to", "host-b"])?;
    refused("it is to move, and is still there")?;
    scene.fleet.host(0).ip("link delete tapvm")?;
    scene.fleet.host(1).ip("link delete tapvm")?;
    put(&scene, &vm, 1)?;
    wait_for("the VM to be host-b's", Duration::from_secs(10), || {
        b.ctl(&["get", "endpoints"]).ok().filter(|text| text.lines().any(|l| l.starts_with("vm ") && l.contains("attached")))
    })?;
    refused("on its second host")
}

const HELD: &str = "apiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: { name: vm, labels: { app: shop } }\nspec:\n  device: tapvm\n  \
                    addresses: [10.0.0.77, \"fd00:0::77\"]\n\
                    ---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: { name: isolated }\nspec: { quarantine: {} }\n";

/// Who holds it is not left behind, and whoever lets it go does so for all.
#[test]
fn a_vm_that_moves_stays_held_until_it_is_released_where_it_is() -> Result<()> {
    let scene = Scene::new(&["host-a", "host-b", "host-c"], 1)?;
    let vm = Machine::new("vm", Ipv4Addr::new(10, 0, 0, 77), "fd00::77".parse()?)?;
    put(&scene, &vm, 0)?;
    serve_name(&vm, vm.v4.into(), 22)?;
    let (a, b, c) = (scene.fleet.agent(0, &[])?, scene.fleet.agent(1, &[])?, scene.fleet.agent(2, &[])?);
    scene.alive(&a, 3)?;
    a.apply(HELD)?;
    let (client, peer) = (&scene.fleet.vm(2, 0).host, scene.fleet.vm(2, 0).v4.to_string());
    let reaches = || connects(client, vm.v4.into(), 22);
    let free = |what: &str| wait_for(what, Duration::from_secs(20), || reaches().ok().filter(|c| *c)).map(drop);
    free("the VM to be reached")?;
    a.ctl(&["quarantine", "hold", "vm", "--group", "isolated", "--reason", "a test"])?;
    passes(&c, "10.0.0.77", &peer, false)?;
    ensure!(!reaches()?, "it is held at host-a");
    let held_at = |agent: &Agent<'_>| agent.ctl(&["quarantine", "ls"]).is_ok_and(|text| text.contains("isolated"));

    scene.fleet.host(0).ip("link delete tapvm")?;
    let off = Instant::now();
    while off.elapsed() < Duration::from_secs(3) {
        let (through, story) = explained(&c, "10.0.0.77", &peer)?;
        ensure!(!through && story.contains("which holds the peer"), "it is nowhere, and held: {story}");
    }
    put(&scene, &vm, 1)?;
    wait_for("the VM to be held at host-b", Duration::from_secs(10), || held_at(&b).then_some(())).with_context(|| b.logged())?;
    let begun = Instant::now();
    wait_for("host-a to have handed it over", Duration::from_secs(40), || {
        let (through, _) = explained(&c, "10.0.0.77", &peer).ok()?;
        assert!(!through && !reaches().unwrap_or(false), "it is held all the time");
        (!held_at(&a)).then_some(())
    })
    .with_context(|| format!("{}\n{}", a.logged(), b.logged()))?;
    println!("handed over after {} ms", begun.elapsed().as_millis());
    let (_, story) = explained(&c, "10.0.0.77", &peer)?;
    ensure!(story.contains("which holds the peer"), "{story}");

    b.ctl(&["quarantine", "release", "vm", "--reason", "it was a test", "--yes"])?;
    passes(&c, "10.0.0.77", &peer, true)?;
    free("the VM to be reached at host-b")?;
    // Nor is it held where it was.
    scene.fleet.host(1).ip("link delete tapvm")?;
    put(&scene, &vm, 0)?;
    free("the VM to be reached at host-a again")?;
    ensure!(!held_at(&a) && !held_at(&b), "{}", a.logged());
    Ok(())
}

/// A host that dies with whom it holds does not set it free, and does not hold it for ever either.
#[test]
fn a_vm_whose_host_died_stays_held_where_it_is_started_again() -> Result<()> {
    let scene = Scene::new(&["host-a", "host-b", "host-c"], 1)?;
    let vm = Machine::new("vm", Ipv4Addr::new(10, 0, 0, 77), "fd00::77".parse()?)?;
    put(&scene, &vm, 0)?;
    serve_name(&vm, vm.v4.into(), 22)?;
    let (mut a, b, c) = (scene.fleet.agent(0, &[])?, scene.fleet.agent(1, &[])?, scene.fleet.agent(2, &[])?);
    scene.alive(&b, 3)?;
    a.apply(HELD)?;
    let (client, peer) = (&scene.fleet.vm(2, 0).host, scene.fleet.vm(2, 0).v4.to_string());
    let reached =
        || wait_for("the VM to be reached", Duration::from_secs(20), || connects(client, vm.v4.into(), 22).ok().filter(|c| *c));
    reached()?;
    a.ctl(&["quarantine", "hold", "vm", "--group", "isolated", "--reason", "a test"])?;
    passes(&c, "10.0.0.77", &peer, false)?;
    a.kill()?;
    scene.fleet.host(0).ip("link delete tapvm")?;
    host_is(&b, "host-a", "silent")?;
    put(&scene, &vm, 1)?;
    let held_at = |agent: &Agent<'_>| {
        let held = || agent.ctl(&["quarantine", "ls"]).ok().filter(|text| text.contains("isolated"));
        wait_for("the VM to be held where it is", Duration::from_secs(10), held).with_context(|| agent.logged())
    };
    let release = |agent: &Agent<'_>| agent.ctl(&["quarantine", "release", "vm", "--reason", "it was a test", "--yes"]);
    held_at(&b)?;
    ensure!(!connects(client, vm.v4.into(), 22)?, "it is held at host-b");
    let (_, story) = explained(&c, "10.0.0.77", &peer)?;
    ensure!(story.contains("which holds the peer"), "{story}");
    release(&b)?;
    passes(&c, "10.0.0.77", &peer, true)?;
    // A host on which it never was finds the dead one's hold, and nobody who may say that it is over.
    scene.fleet.host(1).ip("link delete tapvm")?;
    std::thread::sleep(Duration::from_secs(1));
    put(&scene, &vm, 2)?;
    held_at(&c)?;
    release(&c)?;
    let reached = || connects(&scene.fleet.vm(1, 0).host, vm.v4.into(), 22).ok().filter(|c| *c);
    wait_for("the VM to be reached at host-c", Duration::from_secs(10), reached).with_context(|| c.logged())?;
    // That stays so when the dead host is back.
    a.begin()?;
    host_is(&b, "host-a", "alive")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(connects(&scene.fleet.vm(1, 0).host, vm.v4.into(), 22)?, "{}\n{}", a.logged(), c.logged());
    Ok(())
}
