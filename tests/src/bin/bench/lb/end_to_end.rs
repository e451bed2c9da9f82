//! Traffic over namespaces: a client, the host that routes for it, and members behind veths of the same host.

use super::traffic::{self, PORT, Server};
use crate::Options;
use crate::packets::{Family, Kernel};
use crate::report::{Better, Row, median};
use anyhow::{Context as _, Result, ensure};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use vnet_common::endpoint::{EndpointRow, flags as endpoint_flags};
use vnet_common::lb::{LocalKey, MemberRow, VipKey, flags as group_flags, state};
use vnet_common::parse::protocol;
use vnet_tests::{Host, Machine, Routed};

const SUITE: &str = "lb end to end";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 100, 1);
const MEMBERS: u8 = 3;
/// Room for the flows of all rounds: no agent collects those that have ended.
const ENTRIES: u32 = 1 << 22;

/// By which way packets reach a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    /// The same with programs that do nothing on the hooks.
    Empty,
    /// Straight into the member's veth, with nothing else done.
    Peer,
    Nftables,
    Stack,
    Redirect,
}

impl Way {
    const ALL: [Self; 6] = [Self::Plain, Self::Empty, Self::Peer, Self::Nftables, Self::Stack, Self::Redirect];

    fn is_balanced(self) -> bool {
        matches!(self, Self::Nftables | Self::Stack | Self::Redirect)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain forwarding, no balancing",
            Self::Empty => "the same, empty programs",
            Self::Peer => "bpf_redirect_peer, no balancing",
            Self::Nftables => "nftables DNAT, jhash map",
            Self::Stack => "vnet, delivery: stack",
            Self::Redirect => "vnet, delivery: redirect",
        }
    }
}

#[derive(Default)]
struct Results {
    packets: Vec<f64>,
    cpu: Vec<f64>,
    bulk: Vec<f64>,
    connections: Vec<f64>,
}

/// Measures all ways in turn, in every round.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    if !Way::ALL.iter().any(|way| options.wants(SUITE, way.name())) {
        return Ok(Vec::new());
    }
    let net = Routed::new(MEMBERS)?;
    let _servers: Vec<Server> = net.members.iter().map(|m| Server::start(&m.host)).collect::<Result<_>>()?;
    let mut kernel = Kernel::load_empty(&options.object()?, Some(ENTRIES), true)?;
    fill(&mut kernel, &net)?;
    let (rounds, time) = if options.quick { (3, Duration::from_millis(300)) } else { (10, Duration::from_secs(1)) };
    let mut all: [Results; Way::ALL.len()] = Default::default();
    for round in 1..=rounds {
        eprintln!("{SUITE}: round {round} of {rounds}");
        for (way, results) in Way::ALL.into_iter().zip(&mut all) {
            enter(way, &net, &mut kernel)?;
            measure(way, &net, time, results).with_context(|| format!("measuring {}", way.name()))?;
            leave(way, &net, &mut kernel)?;
        }
    }
    Ok(rows(&all))
}

fn measure(way: Way, net: &Routed, time: Duration, results: &mut Results) -> Result<()> {
    let to = SocketAddrV4::new(if way.is_balanced() { VIP } else { net.members[0].v4 }, PORT);
    let client = &net.client.host;
    traffic::datagrams(client, to, time / 10)?; // neighbours are found, caches are warm
    let received = || net.members.iter().map(|m| traffic::datagrams_received(&m.host)).sum::<Result<u64>>();
    let before = received()?;
    let (rate, cpu) = traffic::datagrams(client, to, time)?;
    let (sent, got) = (rate * time.as_secs_f64(), received()? - before);
    ensure!(got as f64 > 0.98 * sent, "{got} of {sent:.0} datagrams reached the members");
    results.packets.push(rate);
    results.cpu.push(cpu);
    results.bulk.push(traffic::bulk(client, to, time)?);
    results.connections.push(traffic::connections(client, to, time)?);
    Ok(())
}

fn rows(all: &[Results]) -> Vec<Row> {
    type Values = fn(&Results) -> &[f64];
    let metrics: [(&str, Values); 4] = [
        ("small UDP packets/s", |r| &r.packets),
        ("CPU ns/packet", |r| &r.cpu),
        ("TCP Gbit/s, one connection", |r| &r.bulk),
        ("connections/s", |r| &r.connections),
    ];
    let mut rows = Vec::new();
    for (index, (unit, values)) in metrics.into_iter().enumerate() {
        let of = |way: Way| median(values(&all[way as usize]));
        let (plain, nftables) = (of(Way::Plain), of(Way::Nftables));
        for (way, results) in Way::ALL.into_iter().zip(all) {
            let row = Row::new(SUITE, way.name(), unit, values(results));
            rows.push(match way {
                Way::Stack if index == 0 => row.with_goal(plain, plain.max(nftables), Better::More),
                Way::Redirect if index == 0 => row.with_goal(plain, (1.2 * plain).max(nftables), Better::More),
                _ => row,
            });
        }
    }
    rows
}

fn enter(way: Way, net: &Routed, kernel: &mut Kernel) -> Result<()> {
    match way {
        Way::Plain => Ok(()),
        Way::Nftables => {
            let picks = (0..MEMBERS).map(|n| format!("{n} : {}", net.members[usize::from(n)].v4)).collect::<Vec<_>>().join(", ");
            let rule = |proto: &str| {
                format!(
                    "ip daddr {VIP} {proto} dport {PORT} dnat to jhash ip saddr . {proto} sport mod {MEMBERS} map {{ {picks} }};"
                )
            };
            let chain = "type nat hook prerouting priority -100;";
            let table = format!("table ip bench {{ chain pre {{ {chain} {} {} }}; }}", rule("udp"), rule("tcp"));
            net.host.output("nft", &[table.as_str()]).map(drop)
        }
        Way::Empty => attach(net, kernel, ["bench_null"; 2]),
        Way::Peer => {
            kernel.put("BENCH_PEER", 0, ifindex(&net.host, "m1")?)?;
            net.host.run(|| kernel.attach("client0", ["bench_peer", "bench_null"]))?
        }
        Way::Stack => vnet(net, kernel, 0),
        Way::Redirect => vnet(net, kernel, group_flags::REDIRECT),
    }
}

fn vnet(net: &Routed, kernel: &mut Kernel, flags: u32) -> Result<()> {
    kernel.set_group(1, 16, u32::from(MEMBERS), flags)?;
    attach(net, kernel, ["vm_egress", "vm_ingress"])
}

fn attach(net: &Routed, kernel: &mut Kernel, programs: [&'static str; 2]) -> Result<()> {
    net.host.run(|| devices(net).try_for_each(|(device, ..)| kernel.attach(&device, programs)))?
}

fn leave(way: Way, net: &Routed, kernel: &mut Kernel) -> Result<()> {
    match way {
        Way::Plain => Ok(()),
        Way::Nftables => net.host.output("nft", &["delete", "table", "ip", "bench"]).map(drop),
        Way::Empty | Way::Peer | Way::Stack | Way::Redirect => kernel.detach(),
    }
}

/// The host's devices, each with the machine behind it and whether that is a member.
fn devices(net: &Routed) -> impl Iterator<Item = (String, &Machine, bool)> {
    let members = net.members.iter().enumerate().map(|(n, m)| (format!("m{}", n + 1), m, true));
    std::iter::once(("client0".to_owned(), &net.client, false)).chain(members)
}

/// Writes all rows, as the agent would.
fn fill(kernel: &mut Kernel, net: &Routed) -> Result<()> {
    kernel.set_up_config()?;
    for (n, (device, machine, is_member)) in devices(net).enumerate() {
        let (n, ifindex) = (n as u32, ifindex(&net.host, &device)?);
        let flags = endpoint_flags::PEER | if is_member { endpoint_flags::REDIRECT_BACK } else { 0 };
        let (mac, host_mac) = (mac(&machine.host, "eth0")?, mac(&net.host, &device)?);
        let row = EndpointRow { ifindex, id: 1 + n, slot: n, mtu: 1500, mac, host_mac, flags, ..EndpointRow::default() };
        kernel.put("ENDPOINTS", ifindex, row)?;
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&machine.v4.octets());
        kernel.insert("LOCALS", LocalKey { network: 0, version: 4, addr }, ifindex)?;
        if is_member {
            let row = MemberRow {
                addr,
                mac,
                port: PORT.to_be_bytes(),
                serial: 1,
                group: 1,
                ifindex,
                state: state::ACTIVE,
                ..MemberRow::default()
            };
            kernel.put_member(15 + n, row)?;
        }
    }
    let mut addr = [0; 16];
    addr[..4].copy_from_slice(&VIP.octets());
    for protocol in [protocol::UDP, protocol::TCP] {
        kernel.put_vip(Family::V4, VipKey { network: 0, addr, port: PORT.to_be_bytes(), protocol, version: 4 }, 1)?;
    }
    Ok(())
}

fn sysfs(host: &Host, device: &str, name: &str) -> Result<String> {
    let path = format!("/sys/class/net/{device}/{name}");
    host.run(|| std::fs::read_to_string(&path))?.with_context(|| format!("reading {path} of {}", host.name()))
}

fn ifindex(host: &Host, device: &str) -> Result<u32> {
    Ok(sysfs(host, device, "ifindex")?.trim().parse()?)
}

fn mac(host: &Host, device: &str) -> Result<[u8; 6]> {
    let text = sysfs(host, device, "address")?;
    let bytes = text.trim().split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text} is no MAC"))
}
