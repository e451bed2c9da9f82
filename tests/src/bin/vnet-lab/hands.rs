//! What a person can do in the lab: small programs to run in another terminal.

use crate::traffic::{VIP_V4, VIP_V6};
use anyhow::{Context as _, Result};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use vnet_tests::{Agent, Routed, TempDir, bin_dir};

/// Writes the programs, says what to try, and gives the directory they are in.
pub fn print(net: &Routed, agent: &Agent<'_>) -> Result<TempDir> {
    let dir = TempDir::new()?;
    let ctl = bin_dir()?.join("vnet-ctl");
    let ctl = write(&dir, "ctl", &format!("exec '{}' --socket '{}' \"$@\"", ctl.display(), agent.socket().display()))?;
    let enter = format!("nsenter --net='{}' --", net.client.host.net_path().display());
    let client = write(&dir, "client", &format!("exec {enter} \"$@\""))?;
    let ask = format!("{enter} curl -s --max-time 1 -H 'Connection: close'{}", format!(" http://{VIP_V4}/").repeat(30));
    let watch = write(
        &dir,
        "watch",
        &format!("while :; do printf '%s ' \"$({ask} | cut -d' ' -f1 | sort | uniq -c | tr '\\n' ' ')\"; echo; sleep 1; done"),
    )?;
    let (ctl, client, watch) = (ctl.display(), client.display(), watch.display());
    println!(
        "
The lab stays up until Ctrl-C. In another terminal, watch who answers 30 requests a second:
  {watch}
and in a third:
  {ctl} lb drain web m1          # m1 gets no new connections
  {ctl} lb members web --watch
  {ctl} lb undrain web m1
  {ctl} lb weight web m2 3       # m2 gets three times as many
  {ctl} status
  {client} curl -g 'http://[{VIP_V6}]/'
  {client} dig @{VIP_V4} +short whoami.lab TXT
  {client} ping -c 3 {VIP_V4}
  kill -9 {pid}                  # the agent: traffic goes on without it",
        pid = agent.pid()?
    );
    Ok(dir)
}

fn write(dir: &TempDir, name: &str, command: &str) -> Result<PathBuf> {
    let root = "[ \"$(id -u)\" = 0 ] || exec sudo \"$0\" \"$@\"";
    let path = dir.write(name, &format!("#!/bin/sh\n{root}\n{command}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", path.display()))?;
    Ok(path)
}
