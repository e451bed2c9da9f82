//! `store init`.

use anyhow::{Context, Result, bail, ensure};
use vnet_common::etcd::{Access, ROOT_USER, RoleSet};

use super::{InitArgs, Report};
use crate::fleet::{self, Etcd, Need};
use crate::host;
use crate::output::Session;

/// Runs it.
pub async fn run(session: &Session, args: InitArgs) -> Result<u8> {
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let endpoint = etcd.client.endpoint().to_owned();
    let enabled = RoleSet::is_enabled(&etcd.access, &endpoint).await?;
    if !args.no_auth {
        certified(&etcd)?;
    }
    let mut report = Report::default();
    let users = people(&mut etcd, &args).await.map_err(|error| etcd.teach(error, Need::Roles))?;
    for (user, role) in args.operators.iter().map(|user| (user, "operator")).chain(args.hosts.iter().map(|user| (user, "host"))) {
        let word = if users.contains(user) { "there already" } else { "made" };
        report.done.push(format!("user/{user} {word} ({role})"));
    }
    for name in &args.hosts {
        let (number, new) = host::register(&mut etcd, name).await?;
        let word = if new { "registered" } else { "registered already" };
        report.done.push(format!("host/{name} {word} (number {number})"));
    }
    // Also without hosts: until it is said, agents take it for one that lost everything.
    fleet::begin(&mut etcd, "store init").await?;
    report.done.push(match (enabled, args.no_auth) {
        (true, _) => "the store checks its clients already".to_owned(),
        (false, true) => "the store does not check its clients: whoever reaches it may do everything".to_owned(),
        (false, false) => {
            let access = etcd.access.clone();
            let done = RoleSet(&mut etcd.client).enable_for(&access).await;
            done.map_err(|error| etcd.teach(error, Need::Roles))?;
            "the store checks its clients from now on".to_owned()
        }
    });
    report.next = next(&etcd.access, &args);
    report.show(session)
}

/// Makes roles and users; gives the users that were there before.
async fn people(etcd: &mut Etcd, args: &InitArgs) -> Result<Vec<String>> {
    let mut roles = RoleSet(&mut etcd.client);
    let before = roles.users().await?;
    roles.operators(&args.operators).await?;
    for host in &args.hosts {
        roles.host(host).await?;
    }
    Ok(before)
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
fn next(access: &Access, args: &InitArgs) -> Vec<String> {
    let files = match access.tls() {
        Some(_) => " --store-ca CA.crt --store-cert HOST.crt --store-key HOST.key",
        None => "",
    };
    let mut next = vec!["on each host, start its agent (a certificate's common name is the host's name):".to_owned()];
    let names = if args.hosts.is_empty() { &["HOST".to_owned()][..] } else { &args.hosts };
    next.extend(names.iter().map(|name| format!("  vnet-agent --store {access}{files} --host {name}")));
    if access.tls().is_some() {
        next.push("for operators, put ca.crt, tls.crt and tls.key into ~/.config/vnet/operator".to_owned());
    }
    next.push("then: vnet-ctl host ls; vnet-ctl apply -f …".to_owned());
    next
}
