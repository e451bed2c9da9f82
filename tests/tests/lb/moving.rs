//! A VM moves to another host, another agent, and its connections go on.

use crate::support::{VIP, VIP6, web};
use anyhow::{Context as _, Result, ensure};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;
use vnet_tests::{Agent, Host, Machine, Open, TempDir, connect, machine_behind, serve_name};

/// The VM's addresses, and those of its host's device.
const VM: [&str; 2] = ["10.0.0.10/24", "fd00::10/64"];
const GATEWAY: [&str; 2] = ["10.0.0.1/24", "fd00::1/64"];
const SERVED: u16 = 8080;

/// ```text
///  vm ─ tap0 ┐
///     (then) ├ a ─ 10.9.1.0/24 ┐          ┌ m1 10.0.1.11
///            └ b ─ 10.9.2.0/24 ┴ router ──┼ m2 10.0.1.12
///                                         └ by 10.0.1.50
/// ```
struct Net {
    router: Host,
    hosts: [Host; 2],
    vm: Machine,
    members: Vec<Machine>,
    bystander: Machine,
}

impl Net {
    fn new() -> Result<Self> {
        let router = Host::new("router")?;
        router.forward()?;
        let host = |name: &str, number: u8| -> Result<Host> {
            let host = Host::new(name)?;
            host.forward()?;
            let addresses = |end: u8| [format!("10.9.{number}.{end}/24"), format!("fd09:{number}::{end}/64")];
            let (there, here) = (addresses(1), addresses(2));
            let [there, here] = [&there, &here].map(|a| a.each_ref().map(String::as_str));
            connect((&router, name, &there), (&host, "up", &here))?;
            host.ip(&format!("route add default via 10.9.{number}.1\nroute add default via fd09:{number}::1"))?;
            Ok(host)
        };
        let hosts = [host("a", 1)?, host("b", 2)?];
        let vm = Machine::new("vm", Ipv4Addr::new(10, 0, 0, 10), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10))?;
        let members = [("m1", 11), ("m2", 12)].into_iter().map(|(name, last)| machine_behind(&router, name, name, last));
        let members = members.collect::<Result<_>>()?;
        let bystander = machine_behind(&router, "by", "bystander", 50)?;
        let net = Self { router, hosts, vm, members, bystander };
        net.plug(0, "tap0")?;
        Ok(net)
    }

    /// Puts the VM behind a device of a host, and leads what is for it there.
    fn plug(&self, host: usize, device: &str) -> Result<()> {
        connect((&self.hosts[host], device, &GATEWAY), (&self.vm.host, "eth0", &VM))?;
        self.vm.host.ip("route add default via 10.0.0.1\nroute add default via fd00::1")?;
        let number = host + 1;
        self.router.ip(&format!("route replace 10.0.0.0/24 via 10.9.{number}.2\nroute replace fd00::/64 via fd09:{number}::2"))
    }
}

fn policy(net: &Net, device: &str) -> String {
    web(&net.members.iter().collect::<Vec<_>>(), SERVED, "  algorithm: roundRobin\n")
        + &format!(
            "---\napiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: {{ name: vm, labels: {{ app: shop }} }}\nspec:\n  device: {device}\n  \
             addresses: [10.0.0.10, \"fd00::10\"]\n\
             ---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: shop }}\nspec:\n  \
             selector: {{ matchLabels: {{ app: shop }} }}\n  defaults: {{ ingress: deny, egress: allow }}\n  \
             ingress:\n    - {{ name: ssh, ports: [{{ protocol: TCP, port: 22 }}], action: allow }}\n"
        )
}

#[test]
fn connections_go_on_at_another_host() -> Result<()> {
    let net = Net::new()?;
    for member in &net.members {
        serve_name(member, member.v4.into(), SERVED)?;
        serve_name(member, member.v6.into(), SERVED)?;
    }
    serve_name(&net.vm, net.vm.v4.into(), 22)?;
    serve_name(&net.bystander, net.bystander.v4.into(), 9000)?;
    let (first, second) = (Agent::start(&net.hosts[0], &["tap*"])?, Agent::start(&net.hosts[1], &["tap*"])?);
    first.apply(&policy(&net, "tap0"))?;
    // Rows and numbers are each agent's own: here others come before.
    second.apply(
        &web(&net.members.iter().collect::<Vec<_>>(), SERVED, "").replace("name: web", "name: other").replace("[80]", "[81]"),
    )?;
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(Open::to(&net.vm.host, VIP.parse()?, 80)?);
        open.push(Open::to(&net.vm.host, VIP6.parse()?, 80)?);
    }
    let of = |name: &str| open.iter().filter(|c| c.who == name).count();
    ensure!((of("m1"), of("m2")) == (10, 10), "{} and {}", of("m1"), of("m2"));
    // One that the VM opened to no VIP, and one that it was called on.
    open.push(Open::to(&net.vm.host, net.bystander.v4.into(), 9000)?);
    open.push(Open::to(&net.bystander.host, net.vm.v4.into(), 22)?);

    let exported = first.ctl(&["endpoint", "export", "vm"])?;
    let dir = TempDir::new()?;
    let file = dir.write("vm.flows", &exported)?;
    let import = ["endpoint", "import", "-f", &file.to_string_lossy()];
    // Before the VM is there.
    let refused = format!("{:#}", second.ctl(&import).err().context("flows of an endpoint that is not here")?);
    ensure!(refused.contains("no endpoint 'vm'"), "{refused}");
    net.hosts[0].ip("link delete tap0")?;
    net.plug(1, "tap9")?;
    // Before its load balancer is there.
    let all = policy(&net, "tap9");
    second.apply(all.split_once("---\n").context("documents")?.1)?;
    second.ctl(&["endpoint", "attach", "tap9"])?;
    let refused = format!("{:#}", second.ctl(&import).err().context("flows of a VIP that is not here")?);
    ensure!(
        refused.contains("2 flows taken over") && refused.contains("no load balancer here has the VIP 10.96.0.10:80"),
        "{refused}"
    );
    second.apply(&all)?;
    // Who begins anew there comes to m2: what was with m1 can only be known from before.
    ["m1", "m1-v6"].iter().try_for_each(|member| second.ctl(&["lb", "drain", "web", member]).map(drop))?;
    let taken = second.ctl(&import)?;
    ensure!(taken.contains("20 flows taken over, 2 there already"), "{taken}");

    for connection in &mut open {
        let who = connection.who.clone();
        let answer = connection.ask().with_context(|| format!("a connection to {who} after the VM has moved"))?;
        ensure!(answer == who, "{who} answered before, {answer} now");
    }
    let flows = second.ctl(&["flows", "vm"])?;
    ensure!(flows.lines().filter(|line| line.contains("established")).count() == 22, "{flows}");
    // What was exported is all there is: nobody is let in who would not be, though somebody listens.
    serve_name(&net.vm, net.vm.v4.into(), 23)?;
    let to = SocketAddr::new(net.vm.v4.into(), 23);
    let refused = net.bystander.host.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)))?;
    ensure!(refused.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut), "{refused:?}");
    ensure!(Open::to(&net.bystander.host, net.vm.v4.into(), 22)?.who == "vm");
    Ok(())
}

/// No more flows than the endpoint may have; and what is there already needs no room.
#[test]
fn more_flows_than_there_is_room_for() -> Result<()> {
    let net = Net::new()?;
    serve_name(&net.bystander, net.bystander.v4.into(), 9000)?;
    let first = Agent::start(&net.hosts[0], &["tap*"])?;
    let second = Agent::start_with(&net.hosts[1], &["tap*"], &["--flows-per-endpoint", "5"])?;
    for (agent, device) in [(&first, "tap0"), (&second, "tap9")] {
        agent.apply(&policy(&net, device))?;
    }
    let mut open = (0..8).map(|_| Open::to(&net.vm.host, net.bystander.v4.into(), 9000)).collect::<Result<Vec<_>>>()?;
    // The device is gone before its flows are asked for.
    net.hosts[0].ip("link delete tap0")?;
    let file = TempDir::new()?;
    let path = file.write("vm.flows", &first.ctl(&["endpoint", "export", "vm"])?)?;
    net.plug(1, "tap9")?;
    second.ctl(&["endpoint", "attach", "tap9"])?;
    let import = ["endpoint", "import", "-f", &path.to_string_lossy()];
    for taken in ["5 flows taken over\n", "0 flows taken over, 5 there already"] {
        let refused = format!("{:#}", second.ctl(&import).err().context("eight flows where there is room for five")?);
        ensure!(refused.contains(taken) && refused.contains("3 flows could not be taken over"), "{refused}");
        ensure!(refused.contains("as many flows as it may"), "{refused}");
    }
    let answered = open.iter_mut().filter_map(|connection| connection.ask().ok()).count();
    ensure!(answered >= 5, "{answered} of those that were taken over go on");
    Ok(())
}
