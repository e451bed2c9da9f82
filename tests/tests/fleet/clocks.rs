//! Hosts whose clocks differ by much.

use crate::scene::{HOSTS, SERVED, Trio, allow, everywhere, go_on, host_is, no_alarm, passes, policy, web};
use anyhow::{Context as _, Result, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use vnet_tests::{Agent, TempDir, bin_dir};

/// Answers for the kernel who asks for the time of day. Other clocks are the machine's.
const AHEAD: &str = r#"
#define _GNU_SOURCE
#include <time.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += atol(getenv("VNET_TEST_AHEAD"));
    return failed;
}
"#;

/// The agent, as a program whose clock is ahead by so many seconds.
fn ahead(dir: &TempDir, seconds: u32) -> Result<PathBuf> {
    let (source, shim) = (dir.write("ahead.c", AHEAD)?, dir.path().join("ahead.so"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&source).output().context("running cc")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let agent = bin_dir()?.join("vnet-agent");
    let text = format!("#!/bin/sh\nVNET_TEST_AHEAD={seconds} LD_PRELOAD={} exec {} \"$@\"\n", shim.display(), agent.display());
    let script = dir.write(&format!("agent-{seconds}"), &text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// By how many seconds an agent is ahead, as it says itself of what happened last.
fn is_ahead(agent: &Agent<'_>) -> Result<i64> {
    let events = agent.ctl(&["events", "--limit", "1", "-o", "json"])?;
    let event: serde_json::Value = serde_json::from_str(events.trim()).with_context(|| events.clone())?;
    let at = event["at_ms"].as_i64().with_context(|| events.clone())?;
    Ok(at / 1000 - i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

#[test]
fn hosts_need_not_agree_on_the_time() -> Result<()> {
    let trio = Trio::new()?;
    let mut agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let dir = TempDir::new()?;
    for (host, seconds) in [(1, 900), (2, 7200)] {
        let program = ahead(&dir, seconds)?;
        agents[host].stop()?;
        agents[host].begin_program(&program)?;
        no_alarm(&agents[host])?;
        let is = is_ahead(&agents[host])?;
        ensure!((i64::from(seconds) - 120..=i64::from(seconds)).contains(&is), "its clock is {is} s ahead");
    }
    for agent in &agents {
        HOSTS.iter().try_for_each(|host| host_is(agent, host, "alive"))?;
    }
    everywhere(&agents[2], &web(&allow("second", SERVED + 1)))?;
    everywhere(&agents[0], &policy(""))?;
    trio.in_force()?;
    // A hold that ends by itself: by the clock of the host that holds, and that is none of the day.
    agents[1].ctl(&["tag", "add", "b0", "malware", "--severity", "9", "--ttl", "8s"])?;
    for through in [false, true] {
        passes(&agents[0], "10.1.0.10", "a1:8080/tcp", through)?;
        passes(&agents[2], "10.1.0.10", "c1:8080/tcp", through)?;
    }
    go_on(&mut open)
}
