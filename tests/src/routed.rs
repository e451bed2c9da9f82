//! The network that most scenes take place in: a host that routes for the VMs behind its veth devices.

use crate::{Host, Machine, connect};
use anyhow::Result;
use std::net::{Ipv4Addr, Ipv6Addr};

/// ```text
///  client 10.0.0.10 ─ client0 ┐      ┌ m1 ─ 10.0.1.11 m1
///         fd00::10            ├ host ┤ …          fd00:1::11
///                             ┘      └ by ─ 10.0.1.50 bystander, no member of any group
///                                           fd00:1::50
/// ```
#[derive(Debug)]
pub struct Routed {
    /// The host; its devices are `client0`, `m1`, `m2`, …, `by`.
    pub host: Host,
    /// The VM whose packets are balanced.
    pub client: Machine,
    /// Members, of groups that the test makes.
    pub members: Vec<Machine>,
    /// Outside of all groups.
    pub bystander: Machine,
}

impl Routed {
    /// Makes it, with as many members; at most 30.
    ///
    /// # Errors
    /// Namespaces cannot be made, for want of root in most cases.
    pub fn new(members: u8) -> Result<Self> {
        let host = Host::new("host")?;
        host.forward()?;
        let client = Machine::new("client", Ipv4Addr::new(10, 0, 0, 10), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10))?;
        connect((&host, "client0", &["10.0.0.1/24", "fd00::1/64"]), (&client.host, "eth0", &["10.0.0.10/24", "fd00::10/64"]))?;
        client.host.ip("route add default via 10.0.0.1\nroute add default via fd00::1")?;
        let members =
            (1..=members).map(|number| machine_behind(&host, &format!("m{number}"), &format!("m{number}"), 10 + number));
        let members = members.collect::<Result<_>>()?;
        let bystander = machine_behind(&host, "by", "bystander", 50)?;
        Ok(Self { host, client, members, bystander })
    }
}

/// A machine at 10.0.1.`last`, alone behind a device of the host, which routes for it.
///
/// # Errors
/// Namespaces cannot be made, or the device's name is taken.
pub fn machine_behind(host: &Host, device: &str, name: &str, last: u8) -> Result<Machine> {
    // fd00:1::11 is to look like 10.0.1.11.
    let digits = u16::from(last / 10) << 4 | u16::from(last % 10);
    let machine = Machine::new(name, Ipv4Addr::new(10, 0, 1, last), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, digits))?;
    plug(&machine, host, device, (Ipv4Addr::new(10, 0, 1, 1), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1)))?;
    Ok(machine)
}

/// Connects a machine alone to a device of the host, which routes for it and is its gateway at these addresses.
///
/// # Errors
/// The device's name is taken.
pub fn plug(machine: &Machine, host: &Host, device: &str, (gateway4, gateway6): (Ipv4Addr, Ipv6Addr)) -> Result<()> {
    let (v4, v6) = (machine.v4, machine.v6);
    connect(
        (host, device, &[&format!("{gateway4}/32"), &format!("{gateway6}/128")]),
        (&machine.host, "eth0", &[&format!("{v4}/32"), &format!("{v6}/128")]),
    )?;
    host.ip(&format!("route add {v4} dev {device}\nroute add {v6} dev {device}"))?;
    machine.host.ip(&format!(
        "route add {gateway4} dev eth0\nroute add default via {gateway4}\n\
         route add {gateway6} dev eth0\nroute add default via {gateway6}"
    ))
}
