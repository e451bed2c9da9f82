//! Following devices and neighbours, against the kernel. Needs root.

mod support;

use std::time::Duration;

use support::{Machine, become_host, ifindex, ip};
use tokio::sync::mpsc::{Receiver, channel};
use vnet_agent::device::{Device, Snapshot, watch};

/// Runs `f` with what a watch of the host's namespace tells.
fn watching(f: impl AsyncFnOnce(&mut Receiver<Snapshot>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (to, mut from) = channel(1);
        let watch = tokio::spawn(watch(to));
        f(&mut from).await;
        watch.abort();
    });
}

/// The snapshots until one that `last` accepts.
async fn until(from: &mut Receiver<Snapshot>, mut last: impl FnMut(&Snapshot) -> bool) -> Vec<Snapshot> {
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(5), from.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("waited in vain; the last: {:#?}", seen.last())).expect("the watch ended");
        let is_last = last(&next);
        seen.push(next);
        if is_last {
            return seen;
        }
    }
}

fn has(s: &Snapshot, f: impl Fn(&Device) -> bool) -> bool {
    s.devices.iter().any(f)
}

#[test]
fn devices_come_change_and_go() {
    become_host();
    ip("link add before type veth peer name before-peer");
    watching(async |w| {
        until(w, |s| has(s, |d| d.name == "before" && !d.peer_elsewhere && d.mac != [0; 6] && d.mtu == 1500)).await;
        ip("link add br0 type bridge");
        ip("link set before master br0");
        let (device, bridge) = (ifindex("before"), ifindex("br0"));
        until(w, |s| has(s, |d| d.name == "before" && d.master == bridge) && has(s, |d| d.ifindex == bridge && d.is_bridge))
            .await;
        // To leave a bridge looks like a deletion in the bridge's own family of messages.
        ip("link set before nomaster");
        let seen = until(w, |s| has(s, |d| d.name == "before" && d.master == 0)).await;
        assert!(seen.iter().all(|s| s.gone.is_empty()), "{seen:#?}");
        ip("link set before name after");
        until(w, |s| has(s, |d| d.name == "after" && d.ifindex == device)).await;
        ip("link set after mtu 1400");
        until(w, |s| has(s, |d| d.name == "after" && d.mtu == 1400)).await;
        ip("link del after");
        until(w, |s| s.gone.contains(&device) && !has(s, |d| d.ifindex == device)).await;
    });
}

#[test]
fn a_device_made_again_under_its_index_went_away() {
    become_host();
    ip("link add d0 type veth peer name d1");
    let device = ifindex("d0");
    watching(async |w| {
        until(w, |s| has(s, |d| d.ifindex == device)).await;
        ip("link del d0");
        ip(&format!("link add d0 index {device} type veth peer name d1"));
        let mut gone = false;
        until(w, |s| {
            gone |= s.gone.contains(&device);
            gone && has(s, |d| d.ifindex == device)
        })
        .await;
    });
}

#[test]
fn a_peer_in_another_namespace_and_its_address_are_seen() {
    become_host();
    let client = Machine::new(1, "c0");
    let device = client.ifindex();
    watching(async |w| {
        until(w, |s| has(s, |d| d.name == "c0" && d.peer_elsewhere)).await;
        support::ping(&client, "10.0.1.1".parse().unwrap(), 1, "0.2");
        let there = |s: &Snapshot| {
            s.neighbors.iter().any(|n| n.ifindex == device && n.address.to_string() == "10.0.1.2" && n.mac != [0; 6])
        };
        until(w, there).await;
        ip("neigh del 10.0.1.2 dev c0");
        until(w, |s| !there(s)).await;
    });
}

#[test]
fn a_device_moved_to_another_namespace_is_gone() {
    become_host();
    let client = Machine::new(1, "c0");
    ip("link add d0 type veth peer name d1");
    let device = ifindex("d0");
    watching(async |w| {
        until(w, |s| has(s, |d| d.name == "d0" && !d.peer_elsewhere)).await;
        ip(&format!("link set d0 netns {}", client.namespace()));
        until(w, |s| s.gone.contains(&device) && !has(s, |d| d.name == "d0")).await;
    });
}

#[test]
fn too_many_changes_at_once_lose_nothing() {
    const CHANGES: usize = 30_000;
    become_host();
    ip("link add d0 type veth peer name d1");
    let device = ifindex("d0");
    watching(async |w| {
        until(w, |s| has(s, |d| d.name == "d0")).await;
        // The watch does not run meanwhile: this is a runtime of one thread, and its thread is here.
        let changes: String = (0..CHANGES).map(|i| format!("link set lo mtu {}\n", 30_000 + i)).collect();
        std::fs::write("/run/vnet-test/batch", changes + "link del d0\nlink add last type veth peer name peer\n").unwrap();
        support::run("ip", "-batch /run/vnet-test/batch");
        until(w, |s| has(s, |d| d.name == "last") && !has(s, |d| d.ifindex == device)).await;
    });
}
