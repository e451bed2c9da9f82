//! `store init`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vnet_common::etcd::{Access, ROOT_USER, RoleSet, Snapshot};
use vnet_common::fleet::Key;

use super::content::{Desired, what};
use super::{InitArgs, Report, backup};
use crate::failure::Misused;
use crate::fleet::{self, Etcd, Need, OPERATIONS, Plan};
use crate::host;
use crate::output::Session;

/// Runs it.
pub async fn run(session: &Session, args: InitArgs) -> Result<u8> {
    let backup = args.from.as_deref().map(backup::read).transpose()?.unwrap_or_default();
    let numbered = backup.filter(|key| matches!(key, Key::Registration(_)));
    let hosts = hosts(&numbered, &args.hosts);
    if let Some(both) = args.operators.iter().find(|name| hosts.contains(name)) {
        return Err(Misused(format!(
            "'{both}' cannot be an operator and a host: give each a name, and a certificate, of its own"
        ))
        .into());
    }
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let endpoint = etcd.client.endpoint().to_owned();
    let enabled = RoleSet::is_enabled(&etcd.access, &endpoint).await?;
    if !args.no_auth {
        certified(&etcd)?;
    }
    let mut report = Report::default();
    let users = people(&mut etcd, &args.operators, &hosts).await.map_err(|error| etcd.teach(error, Need::Roles))?;
    for (user, role) in args.operators.iter().map(|user| (user, "operator")).chain(hosts.iter().map(|user| (user, "host"))) {
        let word = if users.contains(user) { "there already" } else { "made" };
        report.done.push(format!("user/{user} {word} ({role})"));
    }
    let recalled = recall(&mut etcd, &numbered).await?;
    for name in &hosts {
        let (number, new) = host::register(&mut etcd, name).await?;
        let word = if new || recalled.contains(name) { "registered" } else { "registered already" };
        report.done.push(format!("host/{name} {word} (number {number})"));
    }
    // Also without hosts: until it is said, agents take it for one that lost everything.
    fleet::begin(&mut etcd, "store init").await?;
    report.done.push(match (enabled, args.no_auth) {
        (true, _) => {
            RoleSet(&mut etcd.client).remove_rescuers().await.map_err(|error| etcd.teach(error, Need::Roles))?;
            "the store checks its clients already".to_owned()
        }
        (false, true) => "the store does not check its clients: whoever reaches it may do everything".to_owned(),
        (false, false) => {
            let access = etcd.access.clone();
            let done = RoleSet(&mut etcd.client).enable_for(&access).await;
            done.map_err(|error| etcd.teach(error, Need::Roles))?;
            "the store checks its clients from now on".to_owned()
        }
    });
    report.next = next(&etcd.access, &args, &hosts);
    report.show(session)
}

/// The hosts of a backup, and those that are named besides.
fn hosts(numbered: &Desired, named: &[String]) -> Vec<String> {
    let mut hosts: Vec<String> = numbered.0.keys().filter_map(|key| host_of(key)).collect();
    for name in named {
        if !hosts.contains(name) {
            hosts.push(name.clone());
        }
    }
    hosts
}

fn host_of(key: &str) -> Option<String> {
    match Key::parse(key) {
        Some(Key::Registration(host)) => Some(host),
        _ => None,
    }
}

/// Makes roles and users; gives the users that were there before.
async fn people(etcd: &mut Etcd, operators: &[String], hosts: &[String]) -> Result<Vec<String>> {
    let mut roles = RoleSet(&mut etcd.client);
    let before = roles.users().await?;
    roles.operators(operators).await?;
    for host in hosts {
        roles.host(host).await?;
    }
    Ok(before)
}

/// Registers hosts as a backup has them; gives those that were not.
async fn recall(etcd: &mut Etcd, numbered: &Desired) -> Result<Vec<String>> {
    let all: Vec<(&String, &Value)> = numbered.0.iter().map(|(key, kept)| (key, &kept.value)).collect();
    let mut new = Vec::new();
    for part in all.chunks(OPERATIONS - 1) {
        let (_, missing) = fleet::edit(etcd, "store init", |snapshot| again(snapshot, part)).await?;
        new.extend(missing);
    }
    Ok(new)
}

fn again(snapshot: &Snapshot, hosts: &[(&String, &Value)]) -> Result<Plan<Vec<String>>> {
    let found = Desired::of_store(snapshot)?.filter(|key| matches!(key, Key::Registration(_)));
    let mut plan = Plan { writes: Vec::new(), about: Vec::new() };
    for (key, value) in hosts {
        let number = &value["number"];
        match found.0.get(*key) {
            Some(there) if there.value["number"] == *number => continue,
            Some(there) => bail!(
                "{} has the number {} in the store, and {number} in the backup: stop its agent, and `store restore` gives it that",
                what(key),
                there.value["number"]
            ),
            None => {}
        }
        if let Some((other, _)) = found.0.iter().find(|(_, kept)| kept.value["number"] == *number) {
            bail!(
                "{} has the number {number} in the backup, and {} has it in the store: remove that host first",
                what(key),
                what(other)
            );
        }
        plan.writes.push(fleet::put(key, value));
        plan.about.extend(host_of(key));
    }
    Ok(plan)
}

/// That we are root to the store when it begins to check: nobody else could ever let anybody in.
fn certified(etcd: &Etcd) -> Result<()> {
    ensure!(
        etcd.access.tls().is_some(),
        "the store {} is used without TLS, and knows its clients by their certificates: set it up with TLS (docs/FLEET.md), or let \
         whoever reaches it do everything (--no-auth)",
        etcd.access
    );
    let user = etcd.user().context("the certificate has no user")?;
    if user != ROOT_USER {
        bail!(
            "setting up the store takes a certificate with the common name {ROOT_USER}, and this one has {user}: give that with \
             --store-cert and --store-key"
        );
    }
    Ok(())
}

/// What to do next.
fn next(access: &Access, args: &InitArgs, hosts: &[String]) -> Vec<String> {
    let files = match access.tls() {
        Some(_) => " --store-ca /etc/vnet/ca.crt --store-cert /etc/vnet/HOST.crt --store-key /etc/vnet/HOST.key",
        None => "",
    };
    let names = if hosts.is_empty() { String::new() } else { format!(" ({})", hosts.join(", ")) };
    let mut next: Vec<String> = [
        &format!("on each HOST{names}: systemctl edit vnet-agent, and then systemctl restart vnet-agent, with"),
        "  [Service]",
        "  ExecStart=",
        &format!("  ExecStart=/usr/bin/vnet-agent --attach tap* --attach vnet* --store {access}{files} --host HOST"),
    ]
    .map(str::to_owned)
    .into();
    if access.tls().is_some() {
        next.push("for operators, put ca.crt, tls.crt and tls.key into ~/.config/vnet/operator".to_owned());
    }
    next.push(match &args.from {
        Some(file) => format!("then: vnet-ctl store restore {}", file.display()),
        None => "then: vnet-ctl host ls; vnet-ctl apply -f …".to_owned(),
    });
    next
}
