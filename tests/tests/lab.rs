//! `cargo xtask lab`, as a person sees it.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use vnet_tests::{Process, TempDir, wait_for};

const LAB: &str = env!("CARGO_BIN_EXE_vnet-lab");

fn lab(args: &[&str]) -> Result<Process> {
    let mut command = Command::new(LAB);
    command.args(args);
    Process::start(command)
}

/// The directories that a lab made and has not removed.
fn directories_of(process: u32) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(std::env::temp_dir())?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    Ok(names.into_iter().filter(|name| name.starts_with(&format!("vnet-{process}-"))).collect())
}

#[test]
fn once_it_ends_by_itself_and_all_is_as_expected() -> Result<()> {
    let mut lab = lab(&["--once"])?;
    let status = lab.wait(Duration::from_secs(60))?;
    ensure!(status.success(), "{}", lab.printed());
    ensure!(lab.printed().contains("all as expected"), "{}", lab.printed());
    ensure!(directories_of(lab.pid())?.is_empty());
    Ok(())
}

#[test]
fn the_scene_of_quarantine_is_as_expected() -> Result<()> {
    let mut lab = lab(&["quarantine", "--once"])?;
    let status = lab.wait(Duration::from_secs(120))?;
    let printed = lab.printed();
    ensure!(status.success() && printed.contains("all as expected"), "{printed}");
    ensure!(printed.contains("held") && printed.contains("after the server sent it"), "{printed}");
    ensure!(directories_of(lab.pid())?.is_empty());
    Ok(())
}

#[test]
fn the_scene_of_a_fleet_is_as_expected() -> Result<()> {
    let mut lab = lab(&["fleet", "--once"])?;
    let status = lab.wait(Duration::from_secs(60))?;
    let printed = lab.printed();
    ensure!(status.success() && printed.contains("all as expected"), "{printed}");
    ensure!(printed.contains("in force on 3 of 3 hosts") && printed.contains("with load feedback"), "{printed}");
    ensure!(directories_of(lab.pid())?.is_empty());
    Ok(())
}

#[test]
fn it_stays_until_it_is_told_to_end_and_leaves_nothing() -> Result<()> {
    let mut lab = lab(&[])?;
    wait_for("what to try", Duration::from_secs(60), || {
        let ended = lab.ended().map_or(true, |status| status.is_some());
        (ended || lab.printed().contains("stays up until")).then_some(())
    })?;
    ensure!(lab.ended()?.is_none(), "{}", lab.printed());
    let directories = directories_of(lab.pid())?;
    ensure!(!directories.is_empty());
    let printed = lab.printed();
    let script = |name: &str| {
        let found = printed.split_whitespace().find(|word| word.ends_with(&format!("/{name}")));
        found.map(str::to_owned).with_context(|| format!("no {name} in {printed}"))
    };
    // What it says works.
    let drained = Command::new(script("ctl")?).args(["lb", "drain", "web", "m1"]).output()?;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    let requests = ["http://10.0.100.1/"; 30];
    let answers = Command::new(script("client")?).args(["curl", "-s", "-H", "Connection: close"]).args(requests).output()?;
    let answers = String::from_utf8_lossy(&answers.stdout).into_owned();
    ensure!(answers.lines().count() == 30, "{answers}");
    ensure!(answers.contains("m2 ") && answers.contains("m3 ") && !answers.contains("m1 "), "m1 is drained: {answers}");

    ensure!(lab.stop(Signal::SIGINT)?.success(), "{}", lab.printed());
    ensure!(directories_of(lab.pid())?.is_empty());
    ensure!(!Path::new(&script("ctl")?).exists());
    Ok(())
}

#[test]
fn who_may_not_become_root_is_told_so_at_once() -> Result<()> {
    const NOBODY: u32 = 65534;
    let xtask = Path::new(LAB).with_file_name("xtask");
    let dir = TempDir::new()?;
    // The workspace may lie where others must not look.
    let copy = dir.path().join("xtask");
    std::fs::copy(&xtask, &copy).with_context(|| format!("copying {} (cargo xtask test builds it)", xtask.display()))?;
    // On this PATH there is no sudo.
    let out = Command::new(&copy).arg("lab").env("PATH", dir.path()).current_dir("/").uid(NOBODY).gid(NOBODY).output()?;
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1), "{}: {told}", out.status);
    ensure!(told.contains("the lab makes network namespaces") && told.contains("run this command as root"), "{told}");
    Ok(())
}
