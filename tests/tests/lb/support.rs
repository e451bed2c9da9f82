//! What the scenes of the load balancer share.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use vnet_tests::{Agent, Host, Machine};

/// The VIP of most scenes.
pub const VIP: &str = "10.96.0.10";
/// Its IPv6 sister.
pub const VIP6: &str = "fd00:96::10";

/// A load balancer `web` for both VIPs, TCP port 80, over members by their names; `more` are further lines of its spec.
pub fn web(members: &[&Machine], port: u16, more: &str) -> String {
    load_balancer("web", "TCP", 80, members, port, more)
}

/// A load balancer for both VIPs.
pub fn load_balancer(name: &str, protocol: &str, vip_port: u16, members: &[&Machine], port: u16, more: &str) -> String {
    let mut yaml = format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: {name} }}\nspec:\n  vips: [\"{VIP}\", \"{VIP6}\"]\n  \
         protocol: {protocol}\n  ports: [{vip_port}]\n{more}  members:\n"
    );
    for m in members {
        for (suffix, address) in [("", IpAddr::V4(m.v4)), ("-v6", IpAddr::V6(m.v6))] {
            yaml += &format!("    - {{ name: {}{suffix}, address: \"{address}\", port: {port} }}\n", m.name);
        }
    }
    yaml
}

/// An `Endpoint` resource that says what a device does not tell.
pub fn endpoint(machine: &Machine, device: &str, mac: Option<&str>) -> String {
    let mac = mac.map(|m| format!("  mac: \"{m}\"\n")).unwrap_or_default();
    format!(
        "---\napiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: {{ name: {} }}\nspec:\n  device: {device}\n{mac}  \
         addresses: [\"{}\", \"{}\"]\n",
        machine.name, machine.v4, machine.v6
    )
}

/// The MAC of a device of a host.
pub fn mac(host: &Host, device: &str) -> Result<String> {
    let text = host.output("cat", &[format!("/sys/class/net/{device}/address")])?;
    Ok(text.trim().to_owned())
}

/// Asks a web server (`to` is an address, or for IPv4 one with a port) as many times, each time over a new connection: who answered how often.
pub fn ask(client: &Host, to: &str, times: usize) -> Result<BTreeMap<String, usize>> {
    let host = if to.parse::<Ipv6Addr>().is_ok() { format!("[{to}]") } else { to.to_owned() };
    let url = format!("http://{host}/");
    let mut args = vec!["--silent", "--globoff", "--max-time", "2", "--header", "Connection: close"];
    args.extend(std::iter::repeat_n(url.as_str(), times));
    let printed = client.printed("curl", &args)?;
    let mut answers = BTreeMap::new();
    for name in printed.lines().filter_map(|line| line.split(' ').next()) {
        *answers.entry(name.to_owned()).or_default() += 1;
    }
    Ok(answers)
}

/// All answers together.
pub fn total(answers: &BTreeMap<String, usize>) -> usize {
    answers.values().sum()
}

/// JSON that `vnet-ctl` printed.
pub fn json(text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(text).with_context(|| format!("vnet-ctl printed no JSON: {text}"))
}

/// What the agent measures, as Prometheus reads it.
pub fn metrics(agent: &Agent<'_>, host: &Host) -> Result<String> {
    let socket = agent.socket();
    host.output("curl", &["-s", "--unix-socket", &socket.to_string_lossy(), "http://agent/metrics"])
}
