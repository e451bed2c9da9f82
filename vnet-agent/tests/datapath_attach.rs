//! Programs on devices, in the kernel: they outlive their agent, are replaced between two packets, and go when told to.
//! Needs root.

mod support;

use std::time::Duration;

use support::{
    CLIENT_ID, MEMBER, Machine, balance, become_host, connect, echo, files, forward, ip, open, options, ping, row, serve_tcp,
};
use vnet_agent::datapath::{Datapath, Foreign, Hook, Options, Order, Origin};
use vnet_common::verdict::Reason;

/// A client and a member behind the host, which balances.
fn routed() -> (Machine, Machine) {
    become_host();
    forward();
    let (client, member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    serve_tcp(&member);
    (client, member)
}

fn set_up(d: &Datapath, client: &Machine) {
    d.maps().set_endpoint(&row(client.ifindex(), CLIENT_ID, 0)).unwrap();
    balance(d, MEMBER);
    d.attach(client.ifindex()).unwrap();
}

fn count(d: &Datapath, reason: Reason) -> u64 {
    d.maps().endpoint_counters(0).unwrap().packets[0][reason as usize]
}

/// The agent that gets killed, in a child of the test below. It says that it is ready by making a file.
fn be_an_agent() {
    let (d, _) = open();
    let device = support::ifindex("c0");
    d.maps().set_endpoint(&row(device, CLIENT_ID, 0)).unwrap();
    balance(&d, MEMBER);
    d.attach(device).unwrap();
    std::fs::write("/run/vnet-test/ready", "").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_agent_leaves_traffic_as_it_was_and_the_next_takes_over() {
    if support::is_child() {
        return be_an_agent();
    }
    let (client, _member) = routed();
    let mut helper = support::start_child("a_killed_agent_leaves_traffic_as_it_was_and_the_next_takes_over");
    support::wait_for("the helper", || std::path::Path::new("/run/vnet-test/ready").exists());
    let second = Datapath::open(&options()).err().expect("two agents at once");
    assert!(format!("{second:#}").contains("another agent is running"), "{second:#}");

    let mut stream = connect(&client);
    echo(&mut stream);
    let load = support::Load::start(stream);
    helper.kill().unwrap();
    helper.wait().unwrap();
    let before = load.echoes();
    support::wait_for("echoes without an agent", || load.echoes() > before + 100);

    let (d, report) = open();
    assert_eq!((report.origin, report.devices), (Origin::Adopted, vec![client.ifindex()]));
    assert!(d.attach(client.ifindex()).unwrap().adopted);
    let (flows, total) = d.flows(10, |_| true).unwrap();
    assert_eq!((flows.len(), total), (1, 1));
    let before = load.echoes();
    support::wait_for("echoes with the new agent", || load.echoes() > before + 100);
    let sent = u64::from(load.end());
    assert!(count(&d, Reason::Established) >= sent, "packets went past the programs");
    assert_eq!(count(&d, Reason::NewFlow), 1);
}

#[test]
fn a_hundred_replacements_lose_no_packet() {
    let (client, _member) = routed();
    let (d, _) = open();
    set_up(&d, &client);
    // Two agents, which only a test can have: each puts its own programs into the links that the other one left.
    let (other, report) = Datapath::open(&Options { lock: "/run/vnet-test/other-lock".into(), ..options() }).unwrap();
    assert_eq!((report.origin, report.devices), (Origin::Adopted, vec![client.ifindex()]));
    let mut stream = connect(&client);
    echo(&mut stream);
    let load = support::Load::start(stream);
    let (sent, received) = std::thread::scope(|s| {
        let pings = s.spawn(|| ping(&client, MEMBER, 1000, "0.002"));
        for _ in 0..50 {
            for d in [&d, &other] {
                assert!(d.attach(client.ifindex()).unwrap().adopted);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        pings.join().unwrap()
    });
    assert_eq!(sent, received);
    load.end();
    assert!(count(&d, Reason::NotOurs) >= u64::from(sent), "pings went past the programs");
    assert_eq!(count(&d, Reason::NewFlow), 1, "the connection was picked again");
}

#[test]
fn a_device_that_was_deleted_and_made_again_is_attached_anew() {
    let (client, _member) = routed();
    let old = client.ifindex();
    let (d, _) = open();
    set_up(&d, &client);
    ip("link del c0");
    assert_eq!(d.devices().unwrap(), Vec::<u32>::new(), "the link of a deleted device counts as live");
    // The same index again: what is pinned under that number belongs to the device that is gone.
    ip(&format!("link add c0 index {old} type veth peer name c0p"));
    ip("link set c0 up");
    let attached = d.attach(old).unwrap();
    assert!(!attached.adopted);
    assert_eq!(d.devices().unwrap(), [old]);
    drop(d);
    ip("link del c0");
    let (d, report) = open();
    assert_eq!(report.devices, Vec::<u32>::new());
    assert!(d.attach(old).is_err(), "there is no such device");
    assert!(!files(support::PINS).iter().any(|f| f.contains("links/")), "dead links are left: {:?}", files(support::PINS));
}

#[test]
fn a_foreign_program_before_ours_is_reported() {
    become_host();
    let _client = Machine::new(1, "c0");
    let device = support::ifindex("c0");
    let (d, _) = open();
    d.maps().set_endpoint(&row(device, CLIENT_ID, 0)).unwrap();
    assert_eq!(d.attach(device).unwrap().foreign, []);
    let mut other = aya::Ebpf::load(vnet_agent::object::object()).unwrap();
    let program: &mut aya::programs::SchedClassifier = other.program_mut("clock").unwrap().try_into().unwrap();
    program.load().unwrap();
    let first = aya::programs::tc::TcAttachOptions::TcxOrder(aya::programs::LinkOrder::first());
    program.attach_with_options("c0", aya::programs::TcAttachType::Ingress, first).unwrap();
    let id = program.info().unwrap().id();
    let foreign = d.attach(device).unwrap().foreign;
    assert_eq!(foreign.len(), 1);
    assert_eq!((foreign[0].id, foreign[0].name.as_str(), foreign[0].hook), (id, "clock", Hook::Ingress));
}

#[test]
fn a_foreign_program_before_ours_is_refused_if_so_configured() {
    become_host();
    let _client = Machine::new(1, "c0");
    let device = support::ifindex("c0");
    let refusing = |order| Options { foreign: Foreign::Refuse, order, ..options() };
    let (d, _) = Datapath::open(&refusing(Order::Last)).unwrap();
    d.maps().set_endpoint(&row(device, CLIENT_ID, 0)).unwrap();
    let mut other = aya::Ebpf::load(vnet_agent::object::object()).unwrap();
    let program: &mut aya::programs::SchedClassifier = other.program_mut("clock").unwrap().try_into().unwrap();
    program.load().unwrap();
    let first = aya::programs::tc::TcAttachOptions::TcxOrder(aya::programs::LinkOrder::first());
    let link = program.attach_with_options("c0", aya::programs::TcAttachType::Ingress, first).unwrap();
    let error = format!("{:#}", d.attach(device).unwrap_err());
    assert!(error.contains("clock (id ") && error.contains("--foreign-programs warn"), "{error}");
    assert_eq!(d.devices().unwrap(), Vec::<u32>::new(), "half of it is attached");
    drop(d);

    // Before all others it is none of our business.
    let (d, _) = Datapath::open(&refusing(Order::First)).unwrap();
    assert_eq!(d.attach(device).unwrap().foreign, []);
    // One that comes later, and goes before ours: ours stay where they are.
    program.detach(link).unwrap();
    let first = aya::programs::tc::TcAttachOptions::TcxOrder(aya::programs::LinkOrder::first());
    program.attach_with_options("c0", aya::programs::TcAttachType::Egress, first).unwrap();
    let error = format!("{:#}", d.attach(device).unwrap_err());
    assert!(error.contains(", egress)"), "{error}");
    assert_eq!(d.devices().unwrap(), [device]);
}

#[test]
fn detaching_leaves_nothing() {
    let (client, _member) = routed();
    let (d, _) = open();
    set_up(&d, &client);
    let mut stream = connect(&client);
    echo(&mut stream);
    assert_eq!(d.detach_all().unwrap(), [client.ifindex()]);
    assert!(!std::path::Path::new(support::PINS).exists(), "left: {:?}", files(support::PINS));
    for hook in [aya::programs::TcAttachType::Ingress, aya::programs::TcAttachType::Egress] {
        let programs = aya::programs::SchedClassifier::query_tcx("c0", hook).map(|(_, p)| p.len()).unwrap_or(0);
        assert_eq!(programs, 0);
    }
    let (_, report) = open();
    assert_eq!(report.origin, Origin::Fresh);
}

#[test]
fn one_device_is_detached_alone() {
    become_host();
    let (_a, _b) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    let (d, _) = open();
    let (a, b) = (support::ifindex("c0"), support::ifindex("m0"));
    for (device, slot) in [(a, 0), (b, 1)] {
        d.maps().set_endpoint(&row(device, 10 + slot, slot)).unwrap();
        d.attach(device).unwrap();
    }
    d.detach(a).unwrap();
    assert_eq!(d.devices().unwrap(), [b]);
    d.detach(a).unwrap();
}

#[test]
fn a_device_that_moves_to_another_namespace_counts_as_gone() {
    become_host();
    let client = Machine::new(1, "c0");
    let device = client.ifindex();
    let (d, _) = open();
    d.maps().set_endpoint(&row(device, CLIENT_ID, 0)).unwrap();
    d.attach(device).unwrap();
    let elsewhere = Machine::new(2, "m0");
    ip(&format!("link set c0 netns {}", elsewhere.namespace()));
    assert_eq!(d.devices().unwrap(), Vec::<u32>::new());
    let programs = elsewhere.inside(|| {
        aya::programs::SchedClassifier::query_tcx("c0", aya::programs::TcAttachType::Ingress).map_or(0, |(_, p)| p.len())
    });
    assert_eq!(programs, 0);
}
