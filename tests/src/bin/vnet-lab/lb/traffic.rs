//! Real programs that send real packets from the client.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use vnet_tests::{Host, Routed, TempDir};

/// Requests to each VIP. Of so many, a third varies by ±4.5 (one standard deviation).
pub const REQUESTS: usize = 90;

/// Requests to the bystander.
pub const DIRECT_REQUESTS: usize = 10;

/// The VIPs of policies/lb.yaml.
pub const VIP_V4: &str = "10.0.100.1";
/// See [`VIP_V4`].
pub const VIP_V6: &str = "fd00:100::1";

/// What became of one kind of request.
#[derive(Debug)]
pub struct Row {
    /// What was sent where.
    pub what: String,
    /// How many.
    pub sent: usize,
    /// To a VIP, so that only members may answer; else only the bystander may.
    pub balanced: bool,
    /// Answers by who gave them.
    pub answers: BTreeMap<String, usize>,
    /// Answers in which the server saw another client, or another destination, than it should.
    pub mistaken: usize,
}

impl Row {
    /// Answers of this machine.
    pub fn by(&self, name: &str) -> usize {
        self.answers.get(name).copied().unwrap_or(0)
    }

    /// Requests without an answer.
    pub fn lost(&self) -> usize {
        self.sent.saturating_sub(self.answers.values().sum())
    }
}

/// Sends everything, one kind after the other.
pub fn send_all(net: &Routed) -> Result<Vec<Row>> {
    let bystander = net.bystander.v4;
    Ok(vec![
        http(net, VIP_V4, true, REQUESTS)?,
        http(net, VIP_V6, true, REQUESTS)?,
        dns(&net.client.host, VIP_V4)?,
        http(net, bystander, false, DIRECT_REQUESTS)?,
    ])
}

/// A connection for each request: a balancer of connections has nothing to do with those that stay open.
fn http(net: &Routed, to: impl Display, balanced: bool, sent: usize) -> Result<Row> {
    let to = to.to_string();
    let host = if to.contains(':') { format!("[{to}]") } else { to };
    let url = format!("http://{host}/");
    let mut args = vec!["--silent", "--globoff", "--max-time", "2", "--header", "Connection: close"];
    args.extend(std::iter::repeat_n(url.as_str(), sent));
    let printed = net.client.host.printed("curl", &args)?;
    let mut row = Row { what: format!("HTTP to {host}:80"), sent, balanced, answers: BTreeMap::new(), mistaken: 0 };
    for line in printed.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        *row.answers.entry(name.to_owned()).or_default() += 1;
        row.mistaken += usize::from(!as_it_should_be(net, name, words.next(), words.next()));
    }
    Ok(row)
}

/// A server must see its own address as the destination and the client's as the source: no proxy, no source translation.
fn as_it_should_be(net: &Routed, name: &str, server: Option<&str>, client: Option<&str>) -> bool {
    let machine = net.members.iter().chain([&net.bystander]).find(|machine| machine.name == name);
    let (Some(machine), Some(Ok(server)), Some(Ok(client))) =
        (machine, server.map(str::parse::<IpAddr>), client.map(str::parse::<IpAddr>))
    else {
        return false;
    };
    server == machine.address(server) && client == net.client.address(server)
}

/// Each query from a port of its own, as dig does it.
fn dns(client: &Host, vip: &str) -> Result<Row> {
    let dir = TempDir::new()?;
    let queries = dir.write("queries", &"whoami.lab TXT\n".repeat(REQUESTS))?;
    let queries = queries.to_str().context("a temporary directory of plain letters")?;
    let printed = client.printed("dig", &[&format!("@{vip}"), "+short", "+timeout=2", "+tries=1", "-f", queries])?;
    let mut row = Row { what: format!("DNS to {vip}:53"), sent: REQUESTS, balanced: true, answers: BTreeMap::new(), mistaken: 0 };
    for name in printed.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"')) {
        *row.answers.entry(name.to_owned()).or_default() += 1;
    }
    Ok(row)
}
