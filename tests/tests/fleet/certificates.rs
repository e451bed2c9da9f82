//! Who may do what, and what is said to those who may not.

use crate::scene::{SERVED, Trio, alarm, allow, connected, everywhere, go_on, logs, no_alarm, policy, refused, web};
use anyhow::{Context as _, Result, ensure};
use vnet_tests::{Agent, Fleet, Identity, OPERATOR, ROOT};

/// Nothing of a key is in what an agent logged.
fn no_secret(agent: &Agent<'_>, identity: &Identity) -> Result<()> {
    let key = std::fs::read_to_string(&identity.key)?;
    let logged = agent.logged();
    for line in key.lines().filter(|line| !line.starts_with('-')) {
        ensure!(!logged.contains(line), "the key is in the log");
    }
    Ok(())
}

#[test]
fn wrong_certificates_are_refused_and_said() -> Result<()> {
    let fleet = Fleet::new(&["host-a", "host-b"], 1)?;
    let (pki, store) = (&fleet.etcd.pki, fleet.etcd.endpoints());
    let root = pki.client(ROOT)?;
    fleet.ctl_as(&root, 0, &["store", "init", "--store", &store, "--operator", OPERATOR, "--host", "host-a"])?;

    // Another host's: it does not start at all.
    let own = pki.client("host-a")?;
    let good = Identity {
        certificate: own.certificate.with_extension("good.pem"),
        key: own.key.with_extension("good.key"),
        ..own.clone()
    };
    good.replace(&own)?;
    own.replace(&pki.client("host-b")?)?;
    let error = refused(fleet.agent(0, &[]), "a start with another host's certificate")?;
    ensure!(error.contains("is that of") || error.contains("certificate for the store is that of `host-b`"), "{error}");

    // Those that no member takes: it starts, and says why it is alone.
    own.replace(&pki.foreign("host-a")?)?;
    let agent = fleet.agent(0, &[])?;
    alarm(&agent, "the store has not been heard of for ")?;
    println!("a foreign authority's: {}", crate::scene::alarms(&agent)?);
    no_secret(&agent, &own)?;
    own.replace(&pki.expired("host-a")?)?;
    alarm(&agent, "does not take the certificate")?;
    println!("an expired one: {}", crate::scene::alarms(&agent)?);
    no_secret(&agent, &own)?;
    own.replace(&good)?;
    no_alarm(&agent)?;

    // One whom nobody registered.
    let stranger = fleet.agent(1, &[])?;
    alarm(&stranger, "vnet-ctl host add")?;
    println!("one that is not registered: {}", crate::scene::alarms(&stranger)?);
    no_secret(&stranger, &pki.client("host-b")?)?;
    fleet.ctl_as(&root, 1, &["host", "add", "host-b"])?;
    no_alarm(&stranger)?;

    // A host says what it is, and nothing else.
    let etcdctl = |args: &[&str]| fleet.etcd.etcdctl("host-a", args);
    let resource = "/vnet/v1/desired/resources/SecurityGroup/web";
    for args in [
        ["put", "/vnet/v1/state/applied/host-b", "{}"].as_slice(),
        &["put", "/vnet/v1/state/endpoints/host-b/x", "{}"],
        &["put", "/vnet/v1/state/endpoints/host-a0/x", "{}"],
        &["put", resource, "{}"],
        &["put", "/vnet/v1/desired/serial", "1"],
        &["put", "/vnet/v1/desired/hosts/host-c", "{\"number\":9}"],
        &["put", "/vnet/load/v1/host-b", "{}"],
        &["del", "/vnet/v1/state/alive/host-b"],
        &["del", "--prefix", "/vnet/v1/"],
        &["user", "add", "mallory", "--no-password"],
        &["auth", "disable"],
    ] {
        let error = refused(etcdctl(args), &args.join(" "))?;
        ensure!(error.contains("permission denied"), "{args:?}: {error}");
    }
    etcdctl(&["get", "--prefix", "/vnet/v1/"])?;
    etcdctl(&["put", "/vnet/v1/state/endpoints/host-a/own", "{\"group\":\"default\",\"identity\":0}"])?;
    let error = refused(fleet.etcd.etcdctl_with(&pki.client("mallory")?, &["get", resource]), "a stranger's read")?;
    ensure!(error.contains("permission denied") || error.contains("authentication"), "{error}");

    // vnet-ctl, as others than an operator.
    let file = agent.dir().write("all.yaml", &policy(""))?;
    let apply = ["apply", "-f", file.to_str().context("a path of plain letters")?];
    let error = refused(fleet.ctl_as(&good, 0, &apply), "an apply as host-a")?;
    ensure!(error.contains("the certificate's user host-a may not write policy"), "{error}");
    let error = refused(fleet.ctl_as(&pki.client("mallory")?, 0, &apply), "an apply as nobody known")?;
    ensure!(error.contains("the certificate's user mallory may not"), "{error}");
    for bad in [pki.foreign(OPERATOR)?, pki.expired(OPERATOR)?] {
        let error = refused(fleet.ctl_as(&bad, 0, &apply), "an apply with a certificate that no member takes")?;
        println!("{error}");
        ensure!(error.contains("certificate"), "{error}");
    }
    let error = refused(fleet.ctl(0, &["host", "add", "host-c"]), "a host let in by an operator")?;
    ensure!(error.contains("the certificate's user operator may not"), "{error}");
    fleet.ctl(0, &apply).map(drop)
}

#[test]
fn certificates_are_replaced_without_a_restart() -> Result<()> {
    let trio = Trio::new()?;
    let agents = trio.agents(&[])?;
    let mut open = trio.open()?;
    let pki = &trio.fleet.etcd.pki;
    pki.renew("host-a")?;
    logs(&agents[0], "the certificates for the store were replaced")?;
    no_alarm(&agents[0])?;
    everywhere(&agents[1], &web(&allow("second", SERVED + 1)))?;
    go_on(&mut open)?;
    // One that has run out, and a good one again: what is open goes on, who connects anew needs a good one.
    pki.client("host-a")?.replace(&pki.expired("host-a")?)?;
    alarm(&agents[0], "does not take the certificate")?;
    ensure!(connected(&agents[0])?.is_none());
    trio.in_force()?;
    go_on(&mut open)?;
    pki.renew("host-a")?;
    no_alarm(&agents[0])?;
    everywhere(&agents[0], &web(""))?;
    go_on(&mut open)
}
