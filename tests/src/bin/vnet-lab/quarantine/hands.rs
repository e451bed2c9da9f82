//! What a person can do in the lab.

use super::estate::Estate;
use crate::scripts::Scripts;
use anyhow::Result;
use vnet_tests::{Agent, MARK, TempDir};

/// Writes the programs, says what to try, and gives the directory they are in.
pub fn print(estate: &Estate, agent: &Agent<'_>) -> Result<TempDir> {
    let scripts = Scripts::new()?;
    let (ctl, web, db) =
        (scripts.ctl(agent)?, scripts.inside("web-1", &estate.web.host)?, scripts.inside("db-1", &estate.db.host)?);
    let send = format!("bash -c 'printf {MARK} > /dev/udp/{}/9999'", estate.shop.v4);
    let infect = scripts.write("infect", &format!("exec {} {send}", crate::scripts::enter(&estate.web.host)))?;
    let (ctl, web, db, infect) = (ctl.display(), web.display(), db.display(), infect.display());
    let shop = estate.shop.v4;
    println!(
        "
The lab stays up until Ctrl-C. In another terminal, follow what happens:
  {ctl} events -f
and in a third:
  {infect}                                            # web-1 sends something that Suricata has a rule for
  {ctl} quarantine ls
  {ctl} explain --from web-1 --to {shop}:80/tcp       # and why
  {ctl} top
  {web} curl -m 2 http://{shop}/
  {ctl} tag source scan clamav web-1                  # clean: it is let go
  {ctl} tag source test suricata
  {ctl} tag add db-1 ids.malware --severity 9         # nobody takes a database off the network without being asked:
  {ctl} quarantine approve db-1
  {ctl} tag rm db-1 ids.malware
  {ctl} quarantine hold db-1 --group remediated --reason 'to see it'
  {db} curl -m 2 http://{shop}/                       # remediation answers, whoever it asks
  {ctl} quarantine release db-1 --reason 'seen' --yes
  kill -9 {pid}                                       # the agent: whoever is held stays held",
        pid = agent.pid()?
    );
    Ok(scripts.into())
}
