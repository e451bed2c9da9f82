//! An upgrade with another map layout, and other sizes of maps: every flow goes on, to the same member. Needs root, and for
//! the upgrade the agent of the layout before, which `cargo xtask test` builds.

mod support;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{
    CLIENT_ID, Load, MEMBER, Machine, PORT, VIP, balance, become_host, connect, dying_with_test, echo, forward, open, options,
    row, serve_tcp, wait_for,
};
use vnet_agent::datapath::flows::{Flow, FlowState};
use vnet_agent::datapath::{Datapath, Options, Origin, Sizes};
use vnet_common::flow::ABI;
use vnet_common::verdict::Reason;

const CONNECTIONS: usize = 20;

fn routed() -> (Machine, Machine) {
    become_host();
    forward();
    let (client, member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    serve_tcp(&member);
    (client, member)
}

/// A program that was built beside this test.
fn built(name: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let path = me.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask test` once, which builds it", path.display());
    path
}

fn previous_agent() -> Child {
    let mut agent = Command::new(built("vnet-agent-previous-abi"));
    agent.args([
        "--attach",
        "c0",
        "--bpffs",
        "/run/vnet-test/bpf",
        "--state-dir",
        "/run/vnet-test/state",
        "--run-dir",
        "/run/vnet-test/agent",
    ]);
    let agent = dying_with_test(&mut agent).spawn().unwrap();
    wait_for("the agent to serve", || Path::new("/run/vnet-test/agent/agent.sock").exists());
    let policy = format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec:\n  vips: [{VIP}]\n  protocol: TCP\n  ports: [{PORT}]\n  \
         members: [{{ name: m, address: {MEMBER} }}]\n"
    );
    std::fs::write("/run/vnet-test/lb.yaml", policy).unwrap();
    let out = Command::new(built("vnet-ctl"))
        .args(["--socket", "/run/vnet-test/agent/agent.sock", "apply", "-f", "/run/vnet-test/lb.yaml"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    agent
}

fn connections(client: &Machine) -> Vec<TcpStream> {
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| connect(client)).collect();
    streams.iter_mut().for_each(echo);
    streams
}

fn established(d: &Datapath) -> Vec<Flow> {
    d.flows(100_000, |_| true).unwrap().0.into_iter().filter(|f| f.state == FlowState::Established).collect()
}

/// Every connection goes on, known as the flow that it was.
fn go_on(d: &Datapath, streams: &mut [TcpStream]) {
    streams.iter_mut().for_each(echo);
    let flows = established(d);
    for s in streams {
        let flow = flows.iter().find(|f| f.client == s.local_addr().unwrap()).expect("a flow was lost");
        assert_eq!(flow.member, (MEMBER, PORT).into());
        assert!(flow.traffic[0].packets >= 3, "its counts were lost: {flow:?}");
    }
}

/// Opens connections one after the other, each for some echoes, while `f` runs; gives how many.
fn while_connecting<T>(client: &Machine, f: impl FnOnce() -> T) -> (u32, T) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let come_and_go = || {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut stream = connect(client);
            for _ in 0..5 {
                echo(&mut stream);
                // The tables have room for so many, and the client for so many ports.
                std::thread::sleep(Duration::from_micros(400));
            }
            n += 1;
        }
        n
    };
    std::thread::scope(|s| {
        let threads = [(); 3].map(|()| s.spawn(come_and_go));
        let stop = Stop(&stop);
        let value = f();
        drop(stop);
        (threads.into_iter().map(|t| t.join().expect("a connection failed")).sum(), value)
    })
}

#[test]
fn an_upgrade_from_the_layout_before_keeps_every_flow() {
    let (client, _member) = routed();
    let mut agent = previous_agent();
    let mut streams = connections(&client);
    let load = Load::start(connect(&client));
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(Path::new(support::PINS).join("v1").exists());
    let (made, (d, report)) = while_connecting(&client, || Datapath::open(&roomy()).unwrap());
    println!("{made} connections were made during the upgrade");
    assert!(made > 0);
    let Origin::Migrated { abi: 1, moved } = report.origin else { panic!("{report:?}") };
    assert!(moved.entries >= 2 * (CONNECTIONS as u64 + 1), "{moved:?}");
    assert_eq!(report.devices, [client.ifindex()]);
    assert!(!Path::new(support::PINS).join("v1").exists());
    assert_eq!(d.devices().unwrap(), [client.ifindex()]);
    // What the layout before did not know is 0.
    let row = d.maps().endpoint(client.ifindex()).unwrap().unwrap();
    assert_eq!((row.ifindex, row.group, row.moves, row.mirror), (client.ifindex(), 0, 0, 0));
    assert!(row.mtu == 1500 && row.id != 0, "{row:?}");
    assert_eq!((d.maps().events().unwrap(), d.maps().tunnel_ports().unwrap()), (0, vec![]));
    go_on(&d, &mut streams);
    load.end();
    // One connection was made: it was picked; those that were moved were not picked again.
    let slot = d.maps().endpoint(client.ifindex()).unwrap().unwrap().slot;
    let picked = |d: &Datapath| d.maps().endpoint_counters(slot).unwrap().packets[0][Reason::NewFlow as usize];
    let before = picked(&d);
    streams.iter_mut().for_each(echo);
    assert_eq!(picked(&d), before);
    drop(d);
    assert_eq!(Datapath::open(&roomy()).unwrap().1.origin, Origin::Adopted);
}

fn serve(client: &Machine) {
    let (d, _) = open();
    d.maps().set_endpoint(&row(client.ifindex(), CLIENT_ID, 0)).unwrap();
    balance(&d, MEMBER);
    d.attach(client.ifindex()).unwrap();
}

/// Other sizes of everything.
fn larger() -> Options {
    let s = support::sizes();
    let sizes = Sizes {
        endpoints: 16,
        flows: s.flows.map(|n| 2 * n),
        half_open: s.half_open.map(|n| 2 * n),
        cache: [2048, 512],
        members: 512,
        groups: 128,
        ..s
    };
    Options { sizes, ..options() }
}

/// Room for all the connections that a test makes.
fn roomy() -> Options {
    Options { sizes: Sizes { flows: [1 << 17, 1 << 13], ..support::sizes() }, ..options() }
}

#[test]
fn other_sizes_keep_every_flow() {
    let (client, _member) = routed();
    serve(&client);
    let mut streams = connections(&client);
    let load = Load::start(connect(&client));
    for options in [larger(), options()] {
        let (d, report) = Datapath::open(&options).unwrap();
        assert!(
            matches!(report.origin, Origin::Migrated { abi: ABI, moved } if moved.entries >= 2 * CONNECTIONS as u64),
            "{report:?}"
        );
        assert_eq!(d.maps().capacity("FLOWS4"), Some(options.sizes.flows[0]));
        assert_eq!(d.maps().flow_count(0), Some(CONNECTIONS as u32 + 1));
        go_on(&d, &mut streams);
        assert_eq!(d.maps().endpoint_counters(0).unwrap().packets[0][Reason::NewFlow as usize], CONNECTIONS as u64 + 1);
    }
    load.end();
}

#[test]
fn connections_made_while_everything_moves_are_served() {
    let (client, _member) = routed();
    serve(&client);
    drop(Datapath::open(&roomy()).unwrap());
    let other = Options { sizes: Sizes { flows: [1 << 18, 1 << 14], endpoints: 16, ..roomy().sizes }, ..roomy() };
    let (made, ()) = while_connecting(&client, || {
        for options in [&other, &roomy()].iter().cycle().take(6) {
            let (_, report) = Datapath::open(options).unwrap();
            assert!(matches!(report.origin, Origin::Migrated { .. }));
        }
    });
    println!("{made} connections while everything was moved 6 times");
}

#[test]
fn a_size_that_is_too_small_is_refused_and_all_goes_on() {
    let (client, _member) = routed();
    serve(&client);
    let mut streams = connections(&client);
    let small = Options { sizes: Sizes { flows: [16, 16], ..support::sizes() }, ..options() };
    let error = Datapath::open(&small).err().expect("20 flows in 16 places");
    assert!(format!("{error:#}").contains("FLOWS4"), "{error:#}");
    streams.iter_mut().for_each(echo);
    let (d, report) = open();
    assert_eq!(report.origin, Origin::Adopted);
    go_on(&d, &mut streams);
}

#[test]
fn a_newer_layout_is_left_alone_unless_told_otherwise() {
    let (client, _member) = routed();
    serve(&client);
    std::fs::rename(format!("{}/v{ABI}", support::PINS), format!("{}/v{}", support::PINS, ABI + 1)).unwrap();
    let mut streams = connections(&client);
    let error = Datapath::open(&options()).err().expect("a downgrade");
    assert!(format!("{error:#}").contains("newer agent"), "{error:#}");
    streams.iter_mut().for_each(echo);
    let (d, report) = Datapath::open(&Options { discard_newer: true, ..options() }).unwrap();
    assert_eq!((report.origin, d.devices().unwrap()), (Origin::Fresh, vec![]));
}

#[test]
fn a_map_changed_without_a_new_layout_number_is_refused() {
    become_host();
    drop(open());
    let path = format!("{}/v{ABI}/VIPS", support::PINS);
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(format!("{}/v{ABI}/LOCALS", support::PINS), &path).unwrap();
    let error = Datapath::open(&options()).err().expect("LOCALS in the place of VIPS");
    assert!(format!("{error:#}").contains("VIPS") && format!("{error:#}").contains("layout number"), "{error:#}");
}

/// Changes sizes to and fro, in a child of the test below, until it is killed.
fn resize_without_end() {
    for options in [larger(), options()].iter().cycle() {
        drop(Datapath::open(options).unwrap());
    }
}

fn pinned(dir: &str) -> Vec<String> {
    support::files(&format!("{}/{dir}", support::PINS))
}

/// Has the helper just come so far?
type Moment = fn() -> bool;

const MOMENTS: [Moment; 4] = [
    || pinned(&format!("v{ABI}-next")).len() > 3,
    || !pinned(&format!("v{ABI}-next/links")).is_empty(),
    || pinned(&format!("v{ABI}-next/links")).len() > 1,
    || Path::new(support::PINS).join(format!("v{ABI}-old")).exists(),
];

#[test]
fn an_agent_killed_while_it_moves_everything_is_no_loss() {
    if support::is_child() {
        return resize_without_end();
    }
    let (client, _member) = routed();
    serve(&client);
    let mut streams = connections(&client);
    let load = Load::start(connect(&client));
    let mut half_moved = 0;
    for moment in MOMENTS.iter().cycle().take(8) {
        let mut helper = support::start_child("an_agent_killed_while_it_moves_everything_is_no_loss");
        while !moment() {
            assert!(helper.try_wait().unwrap().is_none(), "the helper ended");
        }
        helper.kill().unwrap();
        helper.wait().unwrap();
        half_moved += u32::from(!pinned(&format!("v{ABI}-next/links")).is_empty());
        streams.iter_mut().for_each(echo);
    }
    let (d, report) = open();
    println!("killed {half_moved} times between two links; at last: {report:?}");
    assert!(half_moved > 0, "it was never killed when it mattered");
    go_on(&d, &mut streams);
    assert_eq!(d.devices().unwrap(), [client.ifindex()]);
    load.end();
    let left: Vec<_> = std::fs::read_dir(support::PINS).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, [format!("v{ABI}").as_str()]);
}
