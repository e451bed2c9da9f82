//! A host in namespaces of its own: the calling thread gets a network namespace and a mount namespace with a BPF file
//! system; clients and members are further network namespaces behind veth pairs. All of it ends with the test.

#![allow(dead_code, missing_docs, reason = "each test file uses a part of it")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use vnet_agent::datapath::{Datapath, Foreign, OpenReport, Options, Order, PolicySizes, Sizes};
use vnet_common::addr::{Address, V4};
use vnet_common::endpoint::EndpointRow;
use vnet_common::hash;
use vnet_common::lb::{Filter, GroupRow, MemberRow, VipKey, VipRow, state};

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub const MEMBER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const PORT: u16 = 80;
pub const CLIENT_ID: u32 = 7;

pub mod policing;

const CHILD: &str = "VNET_TEST_CHILD";

/// The directory that is the test's own: `/run` of its mount namespace.
pub const RUN: &str = "/run/vnet-test";
pub const PINS: &str = "/run/vnet-test/bpf/vnet";

/// Small maps, so that a test takes little memory and time.
pub fn sizes() -> Sizes {
    Sizes {
        endpoints: 8,
        flows: [8192, 8192],
        half_open: [8192, 8192],
        cache: [1024, 1024],
        maglev: 1024,
        members: 256,
        groups: 64,
        policy: PolicySizes {
            sets: 64,
            rules: 1024,
            ports: 1024,
            bits: 4096,
            peers: 4096,
            addresses: 4096,
            networks: 1024,
            counters: 1024,
            events: 1 << 16,
        },
        ..Sizes::default()
    }
}

pub fn options() -> Options {
    Options {
        pins: PathBuf::from(PINS),
        lock: PathBuf::from(RUN).join("lock"),
        object: vnet_agent::object::object().into(),
        sizes: sizes(),
        order: Order::First,
        foreign: Foreign::Warn,
        trace: false,
        discard_newer: false,
    }
}

/// Whether this process is a child that a test has started to kill it: the same test, which does something else then.
pub fn is_child() -> bool {
    let child = std::env::var_os(CHILD).is_some();
    if child {
        set_pdeathsig(Signal::SIGKILL).expect("dying with the test");
    }
    child
}

/// The program that `command` starts ends with the test, whatever becomes of that.
pub fn dying_with_test(command: &mut Command) -> &mut Command {
    // SAFETY: prctl(2) may be called between fork and exec, and touches no memory.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) }
}

/// Starts this program again in the caller's namespaces, for the named test, as its child.
pub fn start_child(test: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test]).env(CHILD, "1").stdout(Stdio::null()).spawn().unwrap()
}

pub fn open() -> (Datapath, OpenReport) {
    Datapath::open(&options()).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Makes the calling thread a host.
pub fn become_host() {
    assert!(nix::unistd::geteuid().is_root(), "kernel tests need root: run them as root");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private mounts");
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs on /run");
    std::fs::create_dir_all("/run/vnet-test/bpf").unwrap();
    mount(Some("bpf"), "/run/vnet-test/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).expect("BPF file system");
    // It shows the devices of the namespace in which it was mounted.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).expect("sysfs");
    ip("link set lo up");
}

pub fn run(program: &str, args: &str) -> Output {
    let out = Command::new(program).args(args.split_whitespace()).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

pub fn ip(args: &str) {
    run("ip", args);
}

pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A network namespace behind a veth pair; the host's end has `.1` of its /24 network, the other `.2`.
pub struct Machine {
    ns: File,
    pub device: String,
}

impl Machine {
    /// On the network 10.0.`n`.0/24.
    pub fn new(n: u8, device: &str) -> Self {
        let ns = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("new namespace");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let m = Self { ns: ns.join().unwrap(), device: device.to_owned() };
        m.plug(n);
        m
    }

    /// Makes the veth pair (again).
    pub fn plug(&self, n: u8) {
        let (device, ns) = (&self.device, self.namespace());
        ip(&format!("link add {device} type veth peer name eth0 netns {ns}"));
        ip(&format!("addr add 10.0.{n}.1/24 dev {device}"));
        ip(&format!("link set {device} up"));
        self.inside(|| {
            ip("link set lo up");
            ip(&format!("addr add 10.0.{n}.2/24 dev eth0"));
            ip("link set eth0 up");
            ip(&format!("route add default via 10.0.{n}.1"));
        });
        let state = format!("/sys/class/net/{device}/operstate");
        wait_for("the link to come up", || std::fs::read_to_string(&state).is_ok_and(|s| s.trim() == "up"));
    }

    /// As `ip link` names it.
    pub fn namespace(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.ns.as_raw_fd())
    }

    pub fn ifindex(&self) -> u32 {
        ifindex(&self.device)
    }

    /// Runs `f` on a thread inside.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|s| {
            let t = s.spawn(|| {
                setns(&self.ns, CloneFlags::CLONE_NEWNET).expect("setns");
                f()
            });
            t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))
        })
    }
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    // Ten times what it takes, on a machine whose cores are busy with other tests.
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn forward() {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

/// The endpoint row of a machine's device.
pub fn row(ifindex: u32, id: u32, slot: u32) -> EndpointRow {
    EndpointRow { ifindex, id, slot, mtu: 1500, ..EndpointRow::default() }
}

/// One VIP with one TCP and one UDP group, each of one member.
pub fn balance(d: &Datapath, member: Ipv4Addr) {
    let maps = d.maps();
    maps.set_flow_quota(100_000).unwrap();
    for (group, protocol) in [(0u32, 6u8), (1, 17)] {
        let serial = 100 + group;
        let row = MemberRow {
            addr: V4::from(member).widen(),
            port: PORT.to_be_bytes(),
            serial,
            group,
            state: state::ACTIVE,
            ..MemberRow::default()
        };
        maps.put_maglev(group, &[[group; 16]]).unwrap();
        maps.put_member(group, &row).unwrap();
        maps.put_group(group, &GroupRow { table: u64::from(group) << 32 | 1, serial, flags: 0 }).unwrap();
        maps.put_vip(&vip_key(PORT, protocol), &VipRow { group, serial }).unwrap();
    }
    maps.put_vip(&vip_key(0, 0), &VipRow::default()).unwrap();
    for (kind, addr) in [(Filter::Vip, VIP), (Filter::Member, member)] {
        let (word, bit) = kind.place(hash::filter(0, &V4::from(addr)));
        maps.set_filter_word(word, 1 << bit).unwrap();
    }
    maps.bump_generation().unwrap();
}

pub fn vip_key(port: u16, protocol: u8) -> VipKey {
    VipKey { network: 0, addr: V4::from(VIP).widen(), port: port.to_be_bytes(), protocol, version: 4 }
}

/// An echo server on every connection.
pub fn serve_tcp(m: &Machine) {
    let listener = m.inside(|| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

pub fn connect(m: &Machine) -> TcpStream {
    m.inside(|| {
        let s =
            TcpStream::connect_timeout(&SocketAddr::from((VIP, PORT)), Duration::from_secs(5)).expect("connecting to the VIP");
        s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        s.set_nodelay(true).unwrap();
        s
    })
}

/// Sends something and expects it back.
pub fn echo(s: &mut TcpStream) {
    s.write_all(b"hello").expect("sending");
    let mut buffer = [0; 5];
    s.read_exact(&mut buffer).expect("the echo");
    assert_eq!(&buffer, b"hello");
}

/// Echoes over one connection as fast as it goes, on a thread, until it is dropped.
pub struct Load {
    stop: std::sync::Arc<(AtomicBool, AtomicU32)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    pub fn start(mut stream: TcpStream) -> Self {
        let stop = std::sync::Arc::new((AtomicBool::new(false), AtomicU32::new(0)));
        let theirs = stop.clone();
        let thread = std::thread::spawn(move || {
            while !theirs.0.load(Ordering::Relaxed) {
                echo(&mut stream);
                theirs.1.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, thread: Some(thread) }
    }

    pub fn echoes(&self) -> u32 {
        self.stop.1.load(Ordering::Relaxed)
    }

    /// Fails the test if an echo failed.
    pub fn end(mut self) -> u32 {
        self.stop.0.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the connection broke");
        self.echoes()
    }
}

/// Pings for a while; gives (sent, received).
pub fn ping(m: &Machine, to: Ipv4Addr, count: u32, interval: &str) -> (u32, u32) {
    let out = m.inside(|| {
        Command::new("ping")
            .args(["-q", "-n", "-c", &count.to_string(), "-i", interval, "-w", "60", &to.to_string()])
            .output()
            .unwrap()
    });
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text
        .lines()
        .find(|l| l.contains("transmitted"))
        .unwrap_or_else(|| panic!("ping: {text} {}", String::from_utf8_lossy(&out.stderr)));
    let numbers: Vec<u32> = line.split([' ', ',']).filter_map(|w| w.parse().ok()).collect();
    (numbers[0], numbers[1])
}

/// Everything under a directory; nothing if there is none.
pub fn files(dir: &str) -> Vec<String> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = file.path().display().to_string();
        all.append(&mut files(&path));
        all.push(path);
    }
    all
}
