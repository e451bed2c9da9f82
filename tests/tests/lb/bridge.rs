//! VM and members on one bridge, the VIP in their own subnet: ARP and neighbour solicitations for it are answered in the
//! datapath, and the member's MAC is written into the packets.

use crate::support::{ask, endpoint, mac, total};
use anyhow::{Result, ensure};
use std::net::{Ipv4Addr, Ipv6Addr};
use vnet_tests::{Agent, Host, Machine, connect};

const VIP: &str = "10.0.5.200";
const VIP6: &str = "fd00:5::200";

fn scene() -> Result<(Host, Vec<Machine>)> {
    let host = Host::new("host")?;
    let mut machines = Vec::new();
    for (name, last) in [("client", 10), ("m1", 11), ("m2", 12)] {
        let m = Machine::new(name, Ipv4Addr::new(10, 0, 5, last), Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, u16::from(last)))?;
        connect((&host, &format!("{name}0"), &[]), (&m.host, "eth0", &[&format!("{}/24", m.v4), &format!("{}/64", m.v6)]))?;
        machines.push(m);
    }
    host.bridge("br0", &["client0", "m10", "m20"], &[])?;
    for m in &mut machines[1..] {
        m.serve_http(80)?;
    }
    Ok((host, machines))
}

fn policy(machines: &[Machine], with_macs: bool) -> Result<String> {
    let mut yaml = format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec:\n  vips: [\"{VIP}\", \"{VIP6}\"]\n  \
         protocol: TCP\n  ports: [80]\n  members:\n"
    );
    for m in &machines[1..] {
        let mac = if with_macs { format!(", mac: \"{}\"", mac(&m.host, "eth0")?) } else { String::new() };
        yaml += &format!("    - {{ address: \"{}\"{mac} }}\n    - {{ address: \"{}\"{mac} }}\n", m.v4, m.v6);
    }
    Ok(yaml)
}

fn balanced(client: &Machine) -> Result<()> {
    for vip in [VIP, VIP6] {
        let answers = ask(&client.host, vip, 40)?;
        ensure!(answers.len() == 2 && total(&answers) == 40, "{vip}: {answers:?}");
        let ping = client.host.output("ping", &["-c", "3", "-i", "0.05", "-W", "1", vip])?;
        ensure!(ping.contains(" 0% packet loss"), "{ping}");
    }
    Ok(())
}

#[test]
fn members_with_a_configured_mac() -> Result<()> {
    let (host, machines) = scene()?;
    let agent = Agent::start(&host, &["client0"])?;
    agent.apply(&policy(&machines, true)?)?;
    balanced(&machines[0])
}

#[test]
fn members_that_are_endpoints_of_this_host() -> Result<()> {
    let (host, machines) = scene()?;
    let agent = Agent::start(&host, &["client0"])?;
    let mut yaml = policy(&machines, false)?;
    for (m, device) in machines[1..].iter().zip(["m10", "m20"]) {
        yaml += &endpoint(m, device, Some(&mac(&m.host, "eth0")?));
    }
    agent.apply(&yaml)?;
    balanced(&machines[0])
}
