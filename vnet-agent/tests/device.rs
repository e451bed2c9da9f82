//! Following devices and neighbours, against the kernel. Needs root.

mod support;

use std::time::Duration;

use support::{Machine, become_host, ifindex, ip};
use vnet_agent::device::{Device, Event, Monitor};

/// Runs `f` with a monitor in a host's namespace.
fn with_monitor(f: impl AsyncFnOnce(&mut Monitor)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut monitor = Monitor::start().await.unwrap();
        f(&mut monitor).await;
    });
}

/// The events until the one that `last` accepts.
async fn until(m: &mut Monitor, mut last: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(5), m.next()).await;
        let event = event.unwrap_or_else(|_| panic!("waited in vain; seen: {seen:#?}")).unwrap();
        let is_last = last(&event);
        seen.push(event);
        if is_last {
            return seen;
        }
    }
}

fn is_device(event: &Event, f: impl Fn(&Device) -> bool) -> bool {
    matches!(event, Event::Device(d) if f(d))
}

#[test]
fn devices_come_change_and_go() {
    become_host();
    ip("link add before type veth peer name before-peer");
    with_monitor(async |m| {
        until(m, |e| is_device(e, |d| d.name == "before" && d.kind == "veth" && !d.peer_elsewhere && !d.up && d.mac.is_some()))
            .await;
        ip("link add br0 type bridge");
        ip("link set before master br0");
        let bridge = ifindex("br0");
        until(m, |e| is_device(e, |d| d.name == "before" && d.master == Some(bridge))).await;
        let device = ifindex("before");
        // To leave a bridge looks like a deletion in the bridge's own family of messages.
        ip("link set before nomaster");
        let seen = until(m, |e| is_device(e, |d| d.name == "before" && d.master.is_none())).await;
        assert!(!seen.contains(&Event::DeviceGone(device)), "{seen:#?}");
        ip("link set before name after");
        until(m, |e| is_device(e, |d| d.name == "after" && d.ifindex == device)).await;
        ip("link set after mtu 1400");
        until(m, |e| is_device(e, |d| d.name == "after" && d.mtu == 1400)).await;
        ip("link set after up");
        ip("link set before-peer up");
        until(m, |e| is_device(e, |d| d.name == "after" && d.up)).await;
        ip("link del after");
        until(m, |e| *e == Event::DeviceGone(device)).await;
        assert!(m.devices().all(|d| d.ifindex != device));
    });
}

#[test]
fn a_device_made_again_under_its_index_is_gone_first() {
    become_host();
    ip("link add d0 type veth peer name d1");
    let device = ifindex("d0");
    with_monitor(async |m| {
        until(m, |e| is_device(e, |d| d.ifindex == device)).await;
        ip("link del d0");
        ip(&format!("link add d0 index {device} type veth peer name d1"));
        let mut gone = false;
        until(m, |e| {
            gone |= *e == Event::DeviceGone(device);
            gone && is_device(e, |d| d.ifindex == device)
        })
        .await;
    });
}

#[test]
fn a_peer_in_another_namespace_and_its_address_are_seen() {
    become_host();
    let client = Machine::new(1, "c0");
    let device = client.ifindex();
    with_monitor(async |m| {
        until(m, |e| is_device(e, |d| d.name == "c0" && d.peer_elsewhere && d.up)).await;
        support::ping(&client, "10.0.1.1".parse().unwrap(), 1, "0.2");
        let address = Some("10.0.1.2".parse().unwrap());
        let seen = until(m, |e| matches!(e, Event::Neighbor(n) if n.ifindex == device && n.address == address)).await;
        let Some(Event::Neighbor(n)) = seen.last() else { unreachable!() };
        assert_ne!(n.mac, [0; 6]);
        ip("neigh del 10.0.1.2 dev c0");
        until(m, |e| matches!(e, Event::NeighborGone(g) if g == n)).await;
    });
}

#[test]
fn a_bridge_tells_what_it_learned() {
    become_host();
    ip("link add br0 type bridge");
    ip("link set br0 up");
    let client = Machine::new(1, "c0");
    ip("addr flush dev c0");
    ip("link set c0 master br0");
    ip("addr add 10.0.1.1/24 dev br0");
    let device = client.ifindex();
    with_monitor(async |m| {
        support::wait_for("a ping over the bridge", || support::ping(&client, "10.0.1.1".parse().unwrap(), 1, "0.2").1 == 1);
        until(m, |e| matches!(e, Event::Neighbor(n) if n.ifindex == device && n.address.is_none())).await;
    });
}

#[test]
fn too_many_events_at_once_lose_nothing() {
    const CHANGES: usize = 30_000;
    become_host();
    ip("link add d0 type veth peer name d1");
    let device = ifindex("d0");
    with_monitor(async |m| {
        until(m, |e| is_device(e, |d| d.name == "d0")).await;
        // The monitor does not run meanwhile: this is a runtime of one thread, and its thread is here.
        let changes: String = (0..CHANGES).map(|i| format!("link set lo mtu {}\n", 40_000 + i)).collect();
        std::fs::write("/run/vnet-test/batch", changes + "link del d0\nlink add last type veth peer name peer\n").unwrap();
        support::run("ip", "-batch /run/vnet-test/batch");
        let seen = until(m, |e| is_device(e, |d| d.name == "last")).await;
        assert!(seen.len() < CHANGES, "the socket held all events: nothing was tested");
        assert!(seen.contains(&Event::DeviceGone(device)));
    });
}
