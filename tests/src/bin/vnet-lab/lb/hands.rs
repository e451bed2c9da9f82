//! What a person can do in the lab: small programs to run in another terminal.

use super::traffic::{VIP_V4, VIP_V6};
use crate::scripts::{Scripts, enter};
use anyhow::Result;
use vnet_tests::{Agent, Routed, TempDir};

/// Writes the programs, says what to try, and gives the directory they are in.
pub fn print(net: &Routed, agent: &Agent<'_>) -> Result<TempDir> {
    let scripts = Scripts::new()?;
    let (ctl, client, enter) = (scripts.ctl(agent)?, scripts.inside("client", &net.client.host)?, enter(&net.client.host));
    let ask = format!("{enter} curl -s --max-time 1 -H 'Connection: close'{}", format!(" http://{VIP_V4}/").repeat(30));
    let watch = scripts.write(
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
    Ok(scripts.into())
}
