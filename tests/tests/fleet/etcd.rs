//! The clusters of etcd that all other scenes here rely on.

use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use vnet_common::etcd::{Access, Tls};
use vnet_tests::{Etcd, Host, Identity, ROOT, wait_for};

/// A cluster of three in a host of its own.
fn cluster() -> Result<Etcd> {
    let begun = Instant::now();
    let etcd = Etcd::start(&Host::new("store")?, &[IpAddr::V4(Ipv4Addr::LOCALHOST)], 3)?;
    println!("three members serve after {} ms", begun.elapsed().as_millis());
    Ok(etcd)
}

/// Writes. What is on its way to a leader that dies is lost, and etcdctl does not ask again.
fn put(etcd: &Etcd, value: &str) -> Result<()> {
    let put = ["--command-timeout=1s", "put", "key", value];
    wait_for("a write", Duration::from_secs(10), || etcd.etcdctl(ROOT, &put).ok()).map(drop).with_context(|| etcd.logged())
}

fn value(etcd: &Etcd) -> Result<String> {
    etcd.etcdctl(ROOT, &["get", "key", "--print-value-only"]).map(|text| text.trim_end().to_owned())
}

/// What etcdctl says when it must not get what it wants; it waits for so long.
fn refused(etcd: &Etcd, client: &Identity, args: &[&str], patience: &str) -> Result<String> {
    let patience = [format!("--command-timeout={patience}"), format!("--dial-timeout={patience}")];
    let answer = etcd.etcdctl_with(client, &[&patience.each_ref().map(String::as_str), args].concat());
    Ok(format!("{:#}", answer.err().with_context(|| format!("{args:?} was done"))?))
}

/// The members say that they reject the client, for this reason.
fn rejected(etcd: &Etcd, client: &Identity, why: &str) -> Result<()> {
    let said = || etcd.logged().matches(why).count();
    let before = said();
    // Until then etcdctl tries again, and has nothing to say of it.
    let rejection = || match refused(etcd, client, &["get", "key"], "200ms") {
        Ok(_) => (said() > before).then_some(Ok(())),
        Err(error) => Some(Err(error)),
    };
    wait_for(why, Duration::from_secs(10), rejection).and_then(|result| result).with_context(|| etcd.logged())
}

#[test]
fn a_cluster_lives_as_long_as_most_of_its_members() -> Result<()> {
    let etcd = cluster()?;
    ensure!(etcd.endpoints() == "etcd://127.0.0.1:2379,127.0.0.1:2479,127.0.0.1:2579", "{}", etcd.endpoints());
    let root = etcd.pki.client(ROOT)?;
    put(&etcd, "three")?;
    etcd.kill(0)?;
    put(&etcd, "two")?;
    etcd.kill(2)?;
    refused(&etcd, &root, &["put", "other", "one"], "1s")?;
    ensure!(etcd.restart(1).is_err_and(|error| error.to_string().contains("runs already")));
    etcd.restart(2)?;
    ensure!(value(&etcd)? == "two");
    // One that takes no part, yet is there.
    etcd.pause(1)?;
    refused(&etcd, &root, &["put", "other", "one"], "1s")?;
    etcd.resume(1)?;
    put(&etcd, "two again")?;
    etcd.stop_all()?;
    refused(&etcd, &root, &["get", "key"], "1s")?;
    ensure!(etcd.kill(0).is_err_and(|error| error.to_string().contains("does not run")));
    // Alone it does not serve, and nobody waits for that.
    etcd.restart(0)?;
    etcd.start_all()?;
    ensure!(value(&etcd)? == "two again");
    Ok(())
}

#[test]
fn a_cluster_knows_whom_to_serve_and_forgets() -> Result<()> {
    let etcd = cluster()?;
    let get = ["get", "key"];
    rejected(&etcd, &etcd.pki.foreign("host-a")?, "certificate signed by unknown authority")?;
    rejected(&etcd, &etcd.pki.expired("host-a")?, "certificate has expired")?;
    let believes_others = Identity { ca: etcd.pki.foreign("host-a")?.certificate, ..etcd.pki.client("host-a")? };
    rejected(&etcd, &believes_others, "remote error: tls: bad certificate")?;
    // The same name twice is the same certificate; a new one is as good, in the same place.
    let client = etcd.pki.client("host-a")?;
    let read = || Ok::<_, std::io::Error>((std::fs::read(&client.certificate)?, std::fs::read(&client.key)?));
    let first = read()?;
    ensure!(etcd.pki.client("host-a")? == client && read()? == first);
    ensure!(etcd.pki.renew("host-a")? == client);
    let renewed = read()?;
    ensure!(renewed.0 != first.0 && renewed.1 != first.1, "certificate and key are new");
    etcd.etcdctl("host-a", &get)?;
    client.replace(&etcd.pki.expired("host-a")?)?;
    rejected(&etcd, &client, "certificate has expired")?;

    // Users are who their certificates say.
    for args in [["user", "add", ROOT, "--no-password"].as_slice(), &["user", "grant-role", ROOT, "root"], &["auth", "enable"]] {
        etcd.etcdctl(ROOT, args)?;
    }
    put(&etcd, "secret")?;
    let stranger = etcd.pki.client("stranger")?;
    ensure!(refused(&etcd, &stranger, &get, "5s")?.contains("denied"), "a stranger reads");
    let before = etcd.revision()?;
    put(&etcd, "later")?;
    ensure!(etcd.revision()? == before + 1);
    etcd.compact(before + 1)?;
    let root = etcd.pki.client(ROOT)?;
    let old = refused(&etcd, &root, &["get", "key", &format!("--rev={before}")], "5s")?;
    ensure!(old.contains("compacted"), "{old}");
    ensure!(value(&etcd)? == "later");
    // Members that start again ask nobody for access.
    etcd.stop_all()?;
    etcd.start_all()
}

#[test]
fn a_client_is_no_member() -> Result<()> {
    let etcd = cluster()?;
    ensure!(etcd.ask_as_peer(0, etcd.peer())?.contains("peerURLs"), "a member's certificate");
    for name in ["host-a", ROOT] {
        let said = || etcd.logged().matches("certificate signed by unknown authority").count();
        let before = said();
        ensure!(etcd.ask_as_peer(0, &etcd.pki.client(name)?).is_err(), "{name} was taken for a member");
        wait_for("the member to reject it", Duration::from_secs(10), || (said() > before).then_some(()))
            .with_context(|| etcd.logged())?;
    }
    Ok(())
}

#[test]
fn a_lease_that_has_ended_is_taken_anew() -> Result<()> {
    let host = Host::new("store")?;
    let etcd = Etcd::start(&host, &[IpAddr::V4(Ipv4Addr::LOCALHOST)], 1)?;
    let Identity { ca, certificate, key } = etcd.pki.client("host-a")?;
    let access = Access::new(&etcd.endpoints(), Some(Tls { ca, cert: certificate, key }))?;
    let leases = async {
        let mut client = access.connect(&access.endpoints()[0]).await?;
        let first = client.lease(None, 60).await?.id();
        let mut same = client.lease(Some(first), 60).await?;
        ensure!(same.id() == first && same.renew().await?, "it is there, and is another one");
        client.revoke(first).await?;
        ensure!(!same.renew().await?, "it has ended");
        let other = client.lease(Some(first), 60).await?.id();
        ensure!(other != first && client.lease(Some(other), 60).await?.id() == other);
        Ok(())
    };
    host.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(leases))?
}

#[test]
fn what_does_not_start_says_why() -> Result<()> {
    let host = Host::new("store")?;
    let _taken = host.run(|| std::net::TcpListener::bind("127.0.0.1:2480"))??;
    let error = format!("{:#}", Etcd::start(&host, &[IpAddr::V4(Ipv4Addr::LOCALHOST)], 3).err().context("a port was taken")?);
    ensure!(error.contains("member 1 of etcd has ended") && error.contains("address already in use"), "{error}");
    Ok(())
}
