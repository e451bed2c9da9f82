//! The hosts of the scene.

use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use vnet_tests::{Farm, Fleet, Machine, plug};

/// What the hosts are called.
pub const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];
/// The VIP of policies/fleet.yaml.
pub const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// How long each member keeps a connection, in ms.
const STAYS: [u64; 3] = [500, 1000, 2000];

/// ```text
///  shop-1 10.0.0.10 ─ tap0 ┐ host-a ┐       ┌ m1 10.0.1.11
///  client 10.0.0.11 ─ tap1 ┘        │       │
///  shop-2 10.1.0.10 ─ tap0 ┐ host-b ┼ core ─┼ m2 10.0.1.12
///  client 10.1.0.11 ─ tap1 ┘        │ etcd  │
///  desk-1 10.2.0.10 ─ tap0 ┐ host-c ┘       └ m3 10.0.1.13
///  client 10.2.0.11 ─ tap1 ┘
/// ```
pub struct Estate {
    pub fleet: Fleet,
    pub farm: Farm,
}

impl Estate {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let mut fleet = Fleet::new(&HOSTS, 2)?;
        for shop in [0, 1] {
            fleet.vm_mut(shop, 0).serve_http(80)?;
        }
        let farm = Farm::new(&fleet.core, &STAYS.map(|ms| Some(Duration::from_millis(ms))))?;
        Ok(Self { fleet, farm })
    }

    /// Where roamer is while it is on this host.
    pub fn roamer(&self, host: usize) -> Ipv4Addr {
        let [a, b, c, _] = self.fleet.vm(host, 0).v4.octets();
        Ipv4Addr::new(a, b, c, 99)
    }

    /// A VM comes up behind a device `tap9` of a host. It is gone with the value.
    pub fn roam(&self, host: usize) -> Result<Machine> {
        let v4 = self.roamer(host);
        let [a, b, c, _] = v4.octets();
        let v6 = |last| Ipv6Addr::new(0xfd00, b.into(), 0, 0, 0, 0, 0, last);
        let vm = Machine::new("roamer", v4, v6(0x99))?;
        plug(&vm, self.fleet.host(host), "tap9", (Ipv4Addr::new(a, b, c, 1), v6(1)))?;
        // Its host knows its address once it has said something.
        let gateway = SocketAddr::from((Ipv4Addr::new(a, b, c, 1), 9));
        vm.host.run(|| UdpSocket::bind((v4, 0))?.send_to(&[0], gateway))??;
        Ok(vm)
    }
}
