//! Datagrams that are larger than the MTU, both ways, through a VIP.

use crate::support::{VIP, VIP6, load_balancer};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vnet_tests::{Agent, Machine, Routed};

/// The VIP's port, and the members'.
const PORTS: (u16, u16) = (7000, 7001);

/// Sends back what comes, with the member's number in the place of the first byte, until this value is gone.
struct Echo(Arc<AtomicBool>);

impl Echo {
    fn serve(member: &Machine, number: u8) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        for address in ["0.0.0.0", "::"] {
            // One that takes both families would have the port of the other.
            let bind = || -> std::io::Result<UdpSocket> {
                let socket = bind_one_family(address)?;
                socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                Ok(socket)
            };
            let socket = member.host.run(bind)?.with_context(|| format!("{}: binding {address}", member.name))?;
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                while !ended.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                        bytes[0] = number;
                        let _ = socket.send_to(&bytes[..length], from);
                    }
                }
            });
        }
        Ok(Self(ended))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn bind_one_family(address: &str) -> std::io::Result<UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt::Ipv6V6Only};
    use std::os::fd::AsRawFd as _;
    let address = SocketAddr::new(address.parse().map_err(std::io::Error::other)?, PORTS.1);
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

/// Asks from so many sockets with datagrams of this size: the members that answered, all of it. As clients of UDP do, it asks again: a datagram in
/// pieces is lost if rules change while it is under way.
fn ask(client: &Machine, vip: &str, size: usize, sockets: usize) -> Result<BTreeSet<u8>> {
    let to = SocketAddr::new(vip.parse()?, PORTS.0);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let mut answered = BTreeSet::new();
    for number in 0..sockets {
        let socket = client.host.run(|| UdpSocket::bind(any))??;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        for turn in 0..3 {
            let sent: Vec<u8> = (0..size).map(|i| (i ^ number ^ turn) as u8).collect();
            let mut got = vec![0; 1 << 16];
            let mut ask = || socket.send(&sent).and_then(|_| socket.recv(&mut got));
            let length = ask().or_else(|_| ask()).or_else(|_| ask());
            let length = length.with_context(|| format!("{vip}: {size} bytes, socket {number}"))?;
            ensure!(got[1..length] == sent[1..], "{vip}: {size} bytes: {length} others came back");
            answered.insert(got[0]);
        }
    }
    Ok(answered)
}

fn policy(net: &Routed, more: &str) -> String {
    load_balancer("echo", "UDP", PORTS.0, &net.members.iter().collect::<Vec<_>>(), PORTS.1, more)
}

#[test]
fn large_datagrams_are_balanced() -> Result<()> {
    let net = Routed::new(3)?;
    let _servers = (1..).zip(&net.members).map(|(n, member)| Echo::serve(member, n)).collect::<Result<Vec<_>>>()?;
    let agent = Agent::start(&net.host, &["client0", "m*"])?;
    for delivery in ["stack", "redirect"] {
        agent.apply(&policy(&net, &format!("  delivery: {delivery}\n  algorithm: roundRobin\n")))?;
        for vip in [VIP, VIP6] {
            for size in [100, 3000, 20_000] {
                let answered = ask(&net.client, vip, size, 20)?;
                ensure!(answered == BTreeSet::from([1, 2, 3]), "{delivery}, {vip}, {size} bytes: {answered:?}");
            }
        }
    }
    Ok(())
}

/// A rule with a port is enough for a datagram in pieces, and for a large ping; and without one nothing gets through.
#[test]
fn large_datagrams_follow_their_flow() -> Result<()> {
    let net = Routed::new(1)?;
    let _server = Echo::serve(&net.members[0], 1)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&policy(&net, ""))?;
    let group = |port: u16| {
        format!(
            "apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: default }}\nspec:\n  defaults: {{ ingress: deny, egress: deny }}\n  \
             egress:\n    - {{ name: echo, ports: [{{ protocol: UDP, port: {port} }}], action: allow }}\n    \
             - {{ name: member, ports: [{{ protocol: UDP, port: {} }}], action: allow }}\n    \
             - {{ name: ping, ports: [{{ protocol: ICMP, type: 8 }}, {{ protocol: ICMPv6, type: 128 }}], action: allow }}\n",
            PORTS.1
        )
    };
    agent.apply(&group(PORTS.0))?;
    for vip in [VIP, VIP6] {
        ensure!(ask(&net.client, vip, 5000, 3)? == BTreeSet::from([1]));
    }
    for member in ["10.0.1.11", "fd00:1::11"] {
        net.client.host.output("ping", &["-c", "3", "-i", "0.2", "-W", "5", "-s", "4000", member])?;
    }
    agent.apply(&group(PORTS.0).replace("action: allow", "action: deny"))?;
    let Err(error) = ask(&net.client, VIP, 5000, 1) else { bail!("an answer, though it is denied") };
    ensure!(format!("{error:#}").contains("5000 bytes"), "{error:#}");
    Ok(())
}
