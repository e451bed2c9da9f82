//! What a person can do in the lab.

use super::estate::{Estate, HOSTS, VIP};
use crate::scripts::Scripts;
use anyhow::Result;
use vnet_tests::{Agent, OPERATOR, ROOT, TempDir, bin_dir};

/// Writes the programs, says what to try, and gives the directory they are in.
pub fn print(estate: &Estate, agents: &[Agent<'_>]) -> Result<TempDir> {
    let scripts = Scripts::new()?;
    let program = bin_dir()?.join("vnet-ctl");
    let who = estate.fleet.etcd.pki.client(OPERATOR)?;
    let files = [("ca", &who.ca), ("cert", &who.certificate), ("key", &who.key)]
        .map(|(what, file)| format!("--store-{what} '{}'", file.display()))
        .join(" ");
    // The store is where only the hosts are.
    let ctl = |host: usize| -> Result<String> {
        let (enter, socket) = (crate::scripts::enter(estate.fleet.host(host)), agents[host].socket());
        let command = format!("exec {enter} '{}' --socket '{}' {files} \"$@\"", program.display(), socket.display());
        Ok(scripts.write(&format!("ctl-{}", HOSTS[host]), &command)?.display().to_string())
    };
    let (a, b, c) = (ctl(0)?, ctl(1)?, ctl(2)?);
    let root = estate.fleet.etcd.pki.client(ROOT)?;
    let endpoints = estate.fleet.etcd.endpoints().replace("etcd://", "https://").replace(',', ",https://");
    let files = [("cacert", &root.ca), ("cert", &root.certificate), ("key", &root.key)]
        .map(|(what, file)| format!("--{what} '{}'", file.display()))
        .join(" ");
    let enter = crate::scripts::enter(estate.fleet.host(0));
    let etcdctl = scripts.write("etcdctl", &format!("exec {enter} etcdctl --endpoints '{endpoints}' {files} \"$@\""))?;
    let desk = scripts.inside("desk-1", &estate.fleet.vm(2, 0).host)?;
    println!(
        "
The lab stays up until Ctrl-C; its clients go on. In another terminal, follow what host-c does with the load:
  {c} lb members web --watch
and in a third:
  {a} host ls
  {a} lb weight web m1 3                          # in force on all hosts
  {b} quarantine hold shop-2 --group isolated --reason 'to see it'
  {c} explain --from desk-1 --to 10.1.0.10:80/tcp  # what another host makes of it
  {desk} curl -m 2 http://10.1.0.10/
  {b} quarantine release shop-2 --reason 'seen' --yes
  {a} host drain host-b                           # its endpoints get no new flows as members
  {a} host undrain host-b
  {c} explain --from tap1 --to {VIP}:80/tcp
  {etcdctl} get --prefix /vnet/v1/ --keys-only
  kill -9 {pid}                                    # host-a's agent: its packets go on, another host is elected",
        desk = desk.display(),
        etcdctl = etcdctl.display(),
        pid = agents[0].pid()?,
    );
    Ok(scripts.into())
}
