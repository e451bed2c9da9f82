//! Suricata's socket under load, and users who may not send.

use super::support::Scene;
use anyhow::{Context as _, Result, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use vnet_tests::{Process, TempDir, skip, wait_for};

const RECORDS: &str = include_str!("../../vectors/sources/suricata.json");
/// One tag for each address and signature: its value is the number of the alert.
const MAPPING: &str = "\
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: suricata }
spec:
  type: suricata
  allow: [{ tag: ids.* }]
  mappings:
    - name: all
      when: event.event_type == \"alert\"
      subject: { addressFrom: event.dest_ip }
      tag: ids.alert
      instanceFrom: event.alert.signature_id
      valueFrom: event.flow_id
";

fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("suricata/eve.sock")
}

/// The recorded alert, about the `n`th endpoint and signature, with the number `value`.
fn alert(n: usize, value: usize) -> String {
    let record = RECORDS.lines().next().unwrap_or_default();
    record
        .replacen("\"dest_ip\":\"10.0.0.2\"", &format!("\"dest_ip\":\"10.0.0.{}\"", n % 100 + 1), 1)
        .replacen("\"signature_id\":9000001", &format!("\"signature_id\":{}", n / 100), 1)
        .replacen("\"flow_id\":50663776423579", &format!("\"flow_id\":{value}"), 1)
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_flood_of_alerts_is_survived_with_the_newest_state() -> Result<()> {
    const ALERTS: usize = 100_000;
    const TAGS: usize = 1_000;
    let dir = TempDir::new()?;
    let addresses: Vec<(String, String)> = (1..=100).map(|n| (format!("vm{n}"), format!("10.0.0.{n}"))).collect();
    let endpoints: Vec<(&str, &str)> = addresses.iter().map(|(name, address)| (name.as_str(), address.as_str())).collect();
    let scene = Scene::new(dir.path(), &endpoints)?;
    // As slow as a sink that writes each change to a disk.
    scene.taken.take(Duration::from_micros(500));
    scene.configure(MAPPING)?;
    let client = UnixDatagram::unbound()?;
    client.connect(socket(&dir))?;
    for n in 0..TAGS {
        client.send(alert(n, 0).as_bytes())?;
    }
    wait_for("the first alerts", Duration::from_secs(30), || (scene.taken.count() >= TAGS).then_some(()))?;
    let before = resident_kib()?;
    let begun = Instant::now();
    for n in 0..ALERTS {
        client.send(alert(n % TAGS, n).as_bytes())?;
    }
    let sent = begun.elapsed();
    wait_for("all alerts", Duration::from_secs(60), || {
        let status = scene.status().ok()?;
        (status.events == (ALERTS + TAGS) as u64 && status.tags + status.dropped == status.events).then_some(())
    })?;
    let (took, grown, status) = (begun.elapsed(), resident_kib()?.saturating_sub(before), scene.status()?);
    println!(
        "{ALERTS} alerts: sent in {sent:?}, done after {took:?}, {} overtaken by newer ones, {} KiB more memory (the test keeps {} changes)",
        status.dropped,
        grown,
        scene.taken.count()
    );
    ensure!(grown < 64 << 10, "memory grew by {grown} KiB");
    ensure!(status.malformed == 0 && status.refused == 0 && status.dropped > 0, "{status:?}");
    let mut newest = std::collections::HashMap::new();
    for (change, _) in scene.taken.all() {
        newest.insert((change.subject, change.instance), change.value);
    }
    ensure!(newest.len() == TAGS);
    for n in 0..TAGS {
        let key = (format!("vm{}", n % 100 + 1), (n / 100).to_string());
        let expected = (ALERTS - TAGS + n).to_string();
        ensure!(newest.get(&key) == Some(&expected), "{key:?}: {:?}, not {expected}", newest.get(&key));
    }
    Ok(())
}

/// The socket to send to, for the process that is another user.
const SENDER: &str = "VNET_TEST_SENDER";

#[test]
fn a_process_of_a_user_who_may_not_is_refused() -> Result<()> {
    if let Some(path) = std::env::var_os(SENDER) {
        let sent = UnixDatagram::unbound()?.send_to(alert(1, 1).as_bytes(), path);
        println!("\nsent: {:?}", sent.map_err(|error| error.kind()));
        return Ok(());
    }
    let dir = TempDir::new()?;
    let scene = Scene::new(dir.path(), &[("vm", "10.0.0.2")])?;
    scene.configure(MAPPING)?;
    // A copy where everybody may run it.
    let program = dir.path().join("test");
    std::fs::copy(std::env::current_exe()?, &program)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let send_as = |user: &str| -> Result<String> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]).arg(&program).current_dir("/");
        command.args(["--exact", "socket::a_process_of_a_user_who_may_not_is_refused", "--nocapture"]).env(SENDER, socket(&dir));
        let mut process = Process::start(command)?;
        process.wait(Duration::from_secs(20))?;
        let printed = process.printed();
        printed.lines().find_map(|line| line.strip_prefix("sent: ")).map(str::to_owned).context(printed)
    };
    if !nix::unistd::geteuid().is_root() {
        skip("needs root, to become someone else");
        return Ok(());
    }
    ensure!(send_as("65534")? == "Err(PermissionDenied)", "the socket lets everybody send");
    // Whoever opens it to everybody opens it to nobody.
    std::fs::set_permissions(socket(&dir), std::fs::Permissions::from_mode(0o666))?;
    ensure!(send_as("65534")?.starts_with("Ok"));
    wait_for("the refusal", Duration::from_secs(5), || scene.status().is_ok_and(|status| status.refused == 1).then_some(()))?;
    ensure!(scene.status()?.last_error.is_some_and(|why| why.contains("user 65534 may not send")));
    ensure!(send_as("0")?.starts_with("Ok"));
    wait_for("root's alert", Duration::from_secs(5), || (scene.taken.count() == 1).then_some(()))?;
    Ok(())
}
