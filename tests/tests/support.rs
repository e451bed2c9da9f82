//! The hosts, cables and programs that all other tests rely on.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use vnet_tests::{Host, Machine, Process, Routed, TempDir, connect, wait_for};

/// Two hosts on one cable.
fn pair() -> Result<(Host, Host)> {
    let (one, other) = (Host::new("one")?, Host::new("other")?);
    connect((&one, "right", &["10.0.0.1/24", "fd00::1/64"]), (&other, "left", &["10.0.0.2/24", "fd00::2/64"]))?;
    Ok((one, other))
}

#[test]
fn the_first_packet_arrives_each_time() -> Result<()> {
    for _ in 0..30 {
        let (one, _other) = pair()?;
        one.output("ping", &["-c", "1", "-W", "3", "10.0.0.2"])?;
        one.output("ping", &["-c", "1", "-W", "3", "fd00::2"])?;
    }
    Ok(())
}

#[test]
fn a_host_routes() -> Result<()> {
    let (left, router, right) = (Host::new("left")?, Host::new("router")?, Host::new("right")?);
    connect((&router, "left", &["10.0.0.1/24", "fd00:0::1/64"]), (&left, "eth0", &["10.0.0.2/24", "fd00:0::2/64"]))?;
    connect((&router, "right", &["10.0.1.1/24", "fd00:1::1/64"]), (&right, "eth0", &["10.0.1.2/24", "fd00:1::2/64"]))?;
    left.ip("route add default via 10.0.0.1\nroute add default via fd00:0::1")?;
    right.ip("route add default via 10.0.1.1\nroute add default via fd00:1::1")?;
    ensure!(left.output("ping", &["-c", "1", "-W", "0.3", "10.0.1.2"]).is_err(), "routed before it was told to");
    router.forward()?;
    left.output("ping", &["-c", "1", "-W", "0.9", "10.0.1.2"])?;
    left.output("ping", &["-c", "1", "-W", "0.9", "fd00:1::2"])?;
    Ok(())
}

#[test]
fn a_bridge_joins_its_devices() -> Result<()> {
    let (switch, one, two) = (Host::new("switch")?, Host::new("one")?, Host::new("two")?);
    connect((&switch, "one", &[]), (&one, "eth0", &["10.0.0.11/24", "fd00::11/64"]))?;
    connect((&switch, "two", &[]), (&two, "eth0", &["10.0.0.12/24", "fd00::12/64"]))?;
    switch.bridge("br0", &["one", "two"], &["10.0.0.1/24", "fd00::1/64"])?;
    for address in ["10.0.0.12", "fd00::12", "10.0.0.1", "fd00::1"] {
        one.output("ping", &["-c", "1", "-W", "0.9", address])?;
    }
    Ok(())
}

#[test]
fn checksums_are_completed_in_software() -> Result<()> {
    let (one, other) = pair()?;
    one.checksum_in_software("right")?;
    let features = one.output("ethtool", &["-k", "right"])?;
    ensure!(features.contains("tx-checksumming: off"), "{features}");
    ensure!(other.output("ethtool", &["-k", "left"])?.contains("tx-checksumming: on"), "the other end changed too");
    Ok(())
}

#[test]
fn a_host_has_its_own_sys_and_bpffs_which_its_programs_share() -> Result<()> {
    let (one, other) = (Host::new("one")?, Host::new("other")?);
    one.output("mkdir", &["/sys/fs/bpf/pins"])?;
    ensure!(one.run(|| Path::new("/sys/fs/bpf/pins").is_dir())?, "a second program does not see the first one's pins");
    ensure!(!other.run(|| Path::new("/sys/fs/bpf/pins").exists())?, "another host sees them");
    ensure!(!Path::new("/sys/fs/bpf/pins").exists(), "this machine sees them");
    one.ip("link add name dummy7 type bridge")?;
    ensure!(one.run(|| Path::new("/sys/class/net/dummy7").exists())?, "/sys is not the host's");
    ensure!(!Path::new("/sys/class/net/dummy7").exists(), "/sys is this machine's");
    Ok(())
}

#[test]
fn programs_run_in_the_callers_directory_and_fail_aloud() -> Result<()> {
    let host = Host::new("host")?;
    let own = std::env::current_dir()?;
    ensure!(Path::new(host.output::<&str>("pwd", &[])?.trim_end()) == own);
    let error = host.output("sh", &["-c", "echo why >&2; exit 3"]).expect_err("exit code 3").to_string();
    ensure!(error.contains("why") && error.contains('3') && error.starts_with("host: "), "{error}");
    let error = format!("{:#}", host.ip("link set dev absent up").expect_err("no such device"));
    ensure!(error.contains("absent"), "{error}");
    Ok(())
}

#[test]
fn a_process_ends_with_its_guard_and_its_output_is_kept() -> Result<()> {
    let host = Host::new("host")?;
    let mut process = host.start("sh", &["-c", "echo one; echo two >&2; exec sleep 1000"])?;
    wait_for("both lines", Duration::from_secs(5), || (process.printed() == "one\ntwo\n").then_some(()))?;
    let pid = process.pid();
    ensure!(process.ended()?.is_none());
    ensure!(process.wait(Duration::from_millis(20)).is_err(), "it did not end");
    drop(process);
    ensure!(!Path::new(&format!("/proc/{pid}")).exists());
    let mut process = host.start("sleep", &["1000"])?;
    ensure!(!process.stop(Signal::SIGTERM)?.success());
    ensure!(process.signal(Signal::SIGTERM).is_err(), "it has ended");
    Ok(())
}

#[test]
fn a_process_outlives_the_thread_that_started_it() -> Result<()> {
    let host = Host::new("host")?;
    let mut process = std::thread::scope(|scope| scope.spawn(|| host.start("sleep", &["1000"])).join()).expect("no panic")?;
    std::thread::sleep(Duration::from_millis(50));
    ensure!(process.ended()?.is_none());
    Ok(())
}

#[test]
fn temporary_directories_are_removed_even_those_of_the_dead() -> Result<()> {
    let mut short = Command::new("true").spawn()?;
    let stale = [std::env::temp_dir(), "/dev/shm".into()].map(|parent| parent.join(format!("vnet-{}-0", short.id())));
    short.wait()?;
    stale.iter().try_for_each(|stale| std::fs::create_dir_all(stale.join("state")))?;
    for dir in [TempDir::new()?, TempDir::in_memory()?] {
        dir.write("file", "text")?;
        let path = dir.path().to_owned();
        ensure!(path.is_dir());
        drop(dir);
        ensure!(!path.exists());
    }
    ensure!(!stale.iter().any(|stale| stale.exists()));
    Ok(())
}

/// The network to connect to, for the process that will be killed.
const DOOMED: &str = "VNET_TEST_DOOMED";

#[test]
fn nothing_outlives_a_process_that_is_killed() -> Result<()> {
    if let Some(net) = std::env::var_os(DOOMED) {
        return be_doomed(&net.to_string_lossy());
    }
    let survivor = Host::new("survivor")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "nothing_outlives_a_process_that_is_killed", "--nocapture"]);
    command.env(DOOMED, survivor.net_path());
    let mut doomed = Process::start(command)?;
    let line = wait_for("the lab", Duration::from_secs(10), || {
        doomed.printed().lines().find_map(|line| line.strip_prefix("programs: ")).map(str::to_owned)
    })
    .with_context(|| doomed.printed())?;
    // Of one that has ended, yet was not waited for, no command line is left.
    let here = |pid: &str| std::fs::read(Path::new("/proc").join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty());
    let device = || survivor.run(|| Path::new("/sys/class/net/doomed0").exists());
    ensure!(line.split(' ').all(here), "{line}");
    ensure!(device()?, "the cable is not there");
    doomed.stop(Signal::SIGKILL)?;
    wait_for("its programs to die", Duration::from_secs(5), || (!line.split(' ').any(here)).then_some(()))?;
    // A cable goes with either end's namespace: if this end is gone, so is the namespace.
    wait_for("its namespace to go", Duration::from_secs(10), || device().is_ok_and(|there| !there).then_some(()))?;
    Ok(())
}

/// Makes a lab with every kind of program, says so, and waits to be killed.
fn be_doomed(net: &str) -> Result<()> {
    let mut machine = Machine::new("doomed", Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)?;
    machine.host.ip(&format!("link add name eth0 type veth peer name doomed0 netns {net}"))?;
    machine.serve_http(80)?;
    machine.serve_dns(53)?;
    let sleeper = machine.host.start("sleep", &["1000"])?;
    let pids: Vec<String> = machine.servers().iter().chain([&sleeper]).map(|process| process.pid().to_string()).collect();
    println!("\nprograms: {}", pids.join(" "));
    std::thread::sleep(Duration::from_secs(1000));
    Ok(())
}

#[test]
fn a_routed_network_serves() -> Result<()> {
    let mut net = Routed::new(2)?;
    net.members[0].serve_http(80)?;
    net.members[1].serve_dns(53)?;
    net.bystander.serve_http(8080)?;
    let client = &net.client.host;
    ensure!(client.output("curl", &["-sS", "http://10.0.1.11/"])? == "m1 10.0.1.11 10.0.0.10\n");
    ensure!(client.output("curl", &["-sSg", "http://[fd00:1::11]/"])? == "m1 fd00:1::11 fd00::10\n");
    ensure!(client.output("curl", &["-sS", "http://10.0.1.50:8080/"])? == "bystander 10.0.1.50 10.0.0.10\n");
    for server in ["@10.0.1.12", "@fd00:1::12"] {
        ensure!(client.output("dig", &[server, "+short", "+timeout=1", "+tries=1", "whoami.lab", "TXT"])? == "\"m2\"\n");
    }
    net.members[0].end_servers();
    ensure!(net.client.host.output("curl", &["-sS", "http://10.0.1.11/"]).is_err());
    Ok(())
}
