//! The agent as systemd starts it.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;
use vnet_tests::{Host, Process, TempDir, bin_dir};

/// The unit that is installed.
const UNIT: &str = include_str!("../../../vnet-agent/dist/vnet-agent.service");

#[test]
fn it_is_ready_when_its_socket_answers_and_needs_no_more_rights_than_its_unit_gives() -> Result<()> {
    let (host, dir) = (Host::new("host")?, TempDir::new()?);
    let notify = UnixDatagram::bind(dir.path().join("notify"))?;
    notify.set_read_timeout(Some(Duration::from_secs(20)))?;

    let rights = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).context("the unit's capabilities")?;
    let rights: Vec<String> =
        rights.split(' ').map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    let mut agent = host.command("setpriv")?;
    agent.args([&format!("--bounding-set=-all,{}", rights.join(",")), "--no-new-privs", "--"]);
    agent.arg(bin_dir()?.join("vnet-agent")).arg("--state-dir").arg(dir.path().join("state"));
    agent.arg("--run-dir").arg(dir.path()).args(["--bpffs", "/sys/fs/bpf", "--attach", "vm*"]);
    agent.env("NOTIFY_SOCKET", dir.path().join("notify"));
    host.ip("link add name vm0 type veth peer name vm0-inside\nlink set vm0 up\nlink set vm0-inside up")?;
    let mut agent = Process::start(agent)?;

    let told = |agent: &Process| -> Result<String> {
        let mut buffer = [0; 256];
        let len = notify.recv(&mut buffer).with_context(|| agent.printed())?;
        Ok(String::from_utf8_lossy(&buffer[..len]).trim().to_owned())
    };
    // Not before: what connects then is answered.
    ensure!(told(&agent)? == "READY=1");
    let socket = dir.path().join("agent.sock");
    UnixStream::connect(&socket).with_context(|| agent.printed())?;
    let status = host.output(bin_dir()?.join("vnet-ctl"), &["--socket", &socket.to_string_lossy(), "status"])?;
    ensure!(!status.contains("could not"), "{status}");
    ensure!(host.output("ls", &["-R", "/sys/fs/bpf/vnet"])?.contains("links"), "{}", agent.printed());
    ensure!(!agent.printed().contains("ERROR"), "{}", agent.printed());

    ensure!(agent.stop(Signal::SIGTERM)?.success(), "{}", agent.printed());
    let mut last = told(&agent)?;
    while last == "WATCHDOG=1" {
        last = told(&agent)?;
    }
    ensure!(last == "STOPPING=1", "{last}");
    Ok(())
}
