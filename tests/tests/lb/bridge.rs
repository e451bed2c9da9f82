//! VM and members on one bridge, the VIP in their own subnet: ARP and neighbour solicitations for it are answered in the
//! datapath, and the member's MAC is written into the packets.

use crate::support::{ask, endpoint, mac, total};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use vnet_tests::{Agent, Host, Machine, connect, skip};

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
    load_balancer("web", "TCP", 80, machines, with_macs)
}

fn load_balancer(name: &str, protocol: &str, port: u16, machines: &[Machine], with_macs: bool) -> Result<String> {
    let mut yaml = format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: {name} }}\nspec:\n  vips: [\"{VIP}\", \"{VIP6}\"]\n  \
         protocol: {protocol}\n  ports: [{port}]\n  members:\n"
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

/// Bridged packets pass the host's netfilter hooks (Proxmox and Docker turn this on), where conntrack sees the client talk to
/// the member, and the member answer it: whole connections, whose checksums are right.
const FIREWALL: &str = "add table inet fw; \
    add chain inet fw pre { type filter hook prerouting priority 0; }; \
    add rule inet fw pre ct state invalid counter drop comment \"invalid\"; \
    add chain inet fw pass { type filter hook forward priority 0; policy drop; }; \
    add rule inet fw pass ct state invalid counter drop comment \"invalid\"; \
    add rule inet fw pass meta l4proto ipv6-icmp accept; \
    add rule inet fw pass iifname br0 ct state new tcp dport 80 counter accept comment \"seen\"; \
    add rule inet fw pass iifname br0 ct state new udp dport 53 counter accept comment \"seen\"; \
    add rule inet fw pass ct direction original ct state established counter accept comment \"seen\"; \
    add rule inet fw pass ct direction reply ct state established counter accept comment \"seen\"";

#[test]
fn a_firewall_that_sees_bridged_packets_sees_whole_connections() -> Result<()> {
    let (host, mut machines) = scene()?;
    if !host.run(|| Path::new("/proc/sys/net/bridge").exists())? {
        skip("this kernel has no br_netfilter, or it is not loaded (modprobe br_netfilter)");
        return Ok(());
    }
    for family in ["ip", "ip6"] {
        host.sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), 1)?;
    }
    for m in &mut machines[1..] {
        m.serve_dns(53)?;
    }
    let agent = Agent::start(&host, &["client0"])?;
    agent.apply(&(policy(&machines, true)? + "---\n" + &load_balancer("dns", "UDP", 53, &machines, true)?))?;
    host.output("nft", &[FIREWALL])?;
    let checked = |name: &str| -> Result<Vec<String>> {
        let rules = host.output("nft", &["list", "table", "inet", "fw"])?;
        Ok(rules.lines().filter(|line| line.contains(&format!("comment \"{name}\""))).map(str::to_owned).collect())
    };
    // Once as local sockets send, whose checksums the device completes, once complete, which conntrack verifies.
    for complete in [false, true] {
        if complete {
            machines.iter().try_for_each(|m| m.host.checksum_in_software("eth0"))?;
        }
        balanced(&machines[0])?;
        for vip in [VIP, VIP6] {
            let mut names = BTreeSet::new();
            for _ in 0..20 {
                let at = format!("@{vip}");
                names.insert(machines[0].host.output("dig", &[&at, "+short", "+timeout=2", "+tries=1", "whoami.lab", "TXT"])?);
            }
            ensure!(names.len() == 2 && names.iter().all(|n| n.starts_with("\"m")), "{vip}: {names:?}");
        }
    }
    let nothing = |line: &String| line.contains("packets 0 bytes 0");
    let (invalid, seen) = (checked("invalid")?, checked("seen")?);
    ensure!(invalid.len() == 2 && invalid.iter().all(nothing), "{invalid:?}");
    ensure!(seen.len() == 4 && !seen.iter().any(nothing), "all of it passed the firewall: {seen:?}");
    Ok(())
}
