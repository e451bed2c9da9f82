//! The network that all other scenes here take place in.

use anyhow::{Context as _, Result, bail, ensure};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use vnet_tests::{Fleet, Host};

/// Where etcd's members are.
const STORES: [&str; 2] = ["10.99.0.1:2379", "[fd99::1]:2579"];

fn ping(from: &Host, to: &str) -> Result<()> {
    from.output("ping", &["-c", "1", "-W", "3", to]).map(drop)
}

/// How many of etcd's ports a host can connect to.
fn stores(from: &Host) -> Result<usize> {
    let mut connected = 0;
    for store in STORES {
        let to: SocketAddr = store.parse()?;
        match from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))? {
            Ok(_) => connected += 1,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
            Err(error) => bail!("{store} is refused, rather than out of reach: {error}"),
        }
    }
    Ok(connected)
}

fn vms_reach_all(fleet: &Fleet) -> Result<()> {
    // Two on one host, and two on others; the core.
    for to in [fleet.vm(0, 1), fleet.vm(1, 0), fleet.vm(2, 1)] {
        ping(&fleet.vm(0, 0).host, &to.v4.to_string())?;
        ping(&fleet.vm(0, 0).host, &to.v6.to_string())?;
    }
    ping(&fleet.vm(0, 0).host, "10.98.0.1")
}

#[test]
fn vms_reach_each_other_and_hosts_etcd() -> Result<()> {
    let begun = Instant::now();
    let mut fleet = Fleet::new(&["host-a", "host-b", "host-c"], 2)?;
    println!("three hosts and their etcd after {} ms", begun.elapsed().as_millis());
    ensure!(fleet.etcd.endpoints() == "etcd://10.99.0.1:2379,10.99.0.1:2479,10.99.0.1:2579", "{}", fleet.etcd.endpoints());
    fleet.vm_mut(1, 1).serve_http(80)?;
    let vm = fleet.vm(1, 1);
    ensure!((vm.v4.to_string(), vm.v6.to_string()) == ("10.1.0.11".to_owned(), "fd00:1::11".to_owned()), "{vm:?}");
    let answer = fleet.vm(0, 0).host.output("curl", &["-sS", "http://10.1.0.11/"])?;
    ensure!(answer == "b1 10.1.0.11 10.0.0.10\n", "{answer}");
    ensure!(fleet.host(2).name() == "host-c");
    vms_reach_all(&fleet)?;
    ensure!(stores(fleet.host(0))? == STORES.len());

    // A connection of the host that is cut off: it stalls and goes on, it does not end.
    let listener = fleet.core.run(|| TcpListener::bind("10.99.0.1:9000"))??;
    let open = fleet.host(0).run(|| TcpStream::connect("10.99.0.1:9000"))??;
    let accepted = listener.accept()?.0;
    for _ in 0..2 {
        fleet.cut(0)?;
        ensure!(stores(fleet.host(0))? == 0, "host-a is cut off");
        ensure!(stores(fleet.host(1))? == STORES.len(), "host-b is not");
        vms_reach_all(&fleet)?;
        for (mut from, mut to) in [(&open, &accepted), (&accepted, &open)] {
            from.write_all(&[1])?;
            to.set_read_timeout(Some(Duration::from_millis(300)))?;
            ensure!(to.read(&mut [0]).is_err(), "a byte came through");
            to.set_read_timeout(Some(Duration::from_secs(30)))?;
        }
        fleet.mend(0)?;
        ensure!(stores(fleet.host(0))? == STORES.len(), "host-a is back");
        for mut end in [&open, &accepted] {
            end.read_exact(&mut [0]).context("what was sent while it was cut off")?;
        }
    }

    fleet.cut_dead(0)?;
    fleet.cut(0)?;
    let over = fleet.vm(1, 0).host.output("ping", &["-c", "1", "-W", "0.3", "10.0.0.10"]);
    ensure!(over.is_err(), "a VM is reached over a dead link");
    ping(&fleet.vm(0, 0).host, "10.0.0.11").context("VMs of one host need no link")?;
    fleet.mend(0)?;
    vms_reach_all(&fleet)?;
    ensure!(stores(fleet.host(0))? == STORES.len(), "host-a is back");
    // What is whole is mended without harm.
    fleet.mend(0)?;
    vms_reach_all(&fleet)
}
