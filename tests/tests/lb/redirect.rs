//! Members on the client's own host, reached past the stack.

use crate::support::{VIP, VIP6, ask, endpoint, json, load_balancer, mac, total, web};
use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::sockopt::{IpMtu, Ipv4Ttl, Ipv6Ttl};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, getsockopt, setsockopt, socket};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use vnet_tests::{Agent, Machine, Routed};

/// For what happens at once.
const PATIENCE: Duration = Duration::from_secs(3);

fn policy(net: &Routed) -> Result<String> {
    let members: Vec<_> = net.members.iter().collect();
    let mut yaml = web(&members, 8080, "  delivery: redirect\n");
    yaml += &endpoint(&net.client, "client0", Some(&mac(&net.client.host, "eth0")?));
    for m in &net.members {
        yaml += &endpoint(m, &m.name, Some(&mac(&m.host, "eth0")?));
    }
    Ok(yaml)
}

#[test]
fn both_directions_pass_by_the_hosts_stack() -> Result<()> {
    let mut net = Routed::new(2)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &[])?;
    agent.apply(&policy(&net)?)?;
    // What would go through the stack in either direction is dropped and counted.
    net.host.output(
        "nft",
        &["add table inet fw; add chain inet fw pass { type filter hook forward priority 0; }; \
        add rule inet fw pass tcp dport 8080 counter drop; add rule inet fw pass tcp sport 8080 counter drop"],
    )?;
    for vip in [VIP, VIP6] {
        let answers = ask(&net.client.host, vip, 40)?;
        ensure!(answers.len() == 2 && total(&answers) == 40, "{vip}: {answers:?}");
    }
    let rules = net.host.output("nft", &["list", "table", "inet", "fw"])?;
    ensure!(rules.matches("packets 0 bytes 0").count() == 2, "nothing went through the stack: {rules}");

    // The members' own ingress counters ran.
    let endpoints = json(&agent.ctl(&["get", "endpoints", "-o", "json"])?)?;
    let text = endpoints.to_string();
    ensure!(text.contains("m1") && text.contains("m2"), "{text}");
    Ok(())
}

sockopt_impl!(
    /// Whether IPv4 packets may be cut up on the way.
    MtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::c_int
);
sockopt_impl!(
    /// Whether IPv6 packets may be cut up by the sender.
    Ipv6MtuDiscover, SetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::c_int
);
sockopt_impl!(
    /// What the sender believes of the path.
    Ipv6Mtu, GetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU, libc::c_int
);

/// The member's UDP socket, bound, and the client's, connected to the VIP; what that sends must not be cut up.
fn udp_sockets(net: &Routed, vip: &str) -> Result<(UdpSocket, UdpSocket)> {
    let v6 = vip == VIP6;
    let bind = |machine: &Machine, port: u16| -> Result<UdpSocket> {
        let socket = machine.host.run(|| UdpSocket::bind((if v6 { "::" } else { "0.0.0.0" }, port)))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let (member, client) = (bind(&net.members[0], 7000)?, bind(&net.client, 0)?);
    net.client.host.run(|| client.connect((vip, 7001)))??;
    if v6 {
        setsockopt(&client, Ipv6MtuDiscover, &libc::IPV6_PMTUDISC_DO)?;
    } else {
        setsockopt(&client, MtuDiscover, &libc::IP_PMTUDISC_DO)?;
    }
    Ok((member, client))
}

/// Load balancers past the stack: TCP port 80 over all members' port 8080, UDP port 7001 over their port 7000.
fn with_udp(net: &Routed) -> Result<String> {
    let members: Vec<_> = net.members.iter().collect();
    Ok(policy(net)? + "---\n" + &load_balancer("udp", "UDP", 7001, &members, 7000, "  delivery: redirect\n"))
}

/// Waits for an ICMP error about a packet from this port; says who sent it and of which type it is.
fn icmp_error(raw: &UdpSocket, port: u16) -> Result<(IpAddr, u8)> {
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = raw.recv_from(&mut buffer).context("an ICMP error")?;
        // Before the message there is the IP header, only of IPv4.
        let (message, quoted) = if from.is_ipv4() { (&buffer[20..len], 28) } else { (&buffer[..len], 48) };
        if message.get(quoted..quoted + 2) == Some(&port.to_be_bytes()) {
            return Ok((from.ip(), message[0]));
        }
    }
}

#[test]
fn a_packet_whose_time_is_over_is_answered_by_the_host() -> Result<()> {
    let net = Routed::new(1)?;
    let agent = Agent::start(&net.host, &[])?;
    agent.apply(&with_udp(&net)?)?;
    let cases = [
        (VIP, AddressFamily::Inet, SockProtocol::Icmp, "10.0.0.1", 11),
        (VIP6, AddressFamily::Inet6, SockProtocol::IcmpV6, "fd00::1", 3),
    ];
    for (vip, family, protocol, host, time_exceeded) in cases {
        let (member, client) = udp_sockets(&net, vip)?;
        let raw = net.client.host.run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol))??;
        let raw = UdpSocket::from(raw);
        raw.set_read_timeout(Some(PATIENCE))?;
        let hops = |n: u8| {
            if vip == VIP6 { setsockopt(&client, Ipv6Ttl, &i32::from(n)) } else { setsockopt(&client, Ipv4Ttl, &i32::from(n)) }
        };
        let mut buffer = [0; 64];
        // The first packet of a flow, and one of a flow that is known.
        for round in 0..2 {
            hops(1)?;
            client.send(b"too late")?;
            let error = icmp_error(&raw, client.local_addr()?.port()).with_context(|| format!("{vip}, round {round}"))?;
            ensure!(error == (host.parse()?, time_exceeded), "{vip}, round {round}: {error:?}");
            hops(2)?;
            client.send(b"in time")?;
            let (len, from) = member.recv_from(&mut buffer)?;
            ensure!(buffer[..len] == *b"in time", "{vip}, round {round}: the member got what was to end at the host");
            member.send_to(b"answer", from)?;
            ensure!(client.recv(&mut buffer)? == 6, "{vip}, round {round}");
        }
    }
    Ok(())
}

/// 20 or 40 bytes of IP header, 8 of UDP.
fn datagram(vip: &str, packet: usize) -> Vec<u8> {
    vec![0x5a; packet - if vip == VIP6 { 48 } else { 28 }]
}

/// Sends through the VIP, gets all of it back, and compares.
fn there_and_back(net: &Routed, vip: &str) -> Result<()> {
    let data: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
    let listener = net.members[0].host.run(|| TcpListener::bind("[::]:8080"))??;
    let mut stream = net.client.host.run(|| TcpStream::connect((vip, 80)))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let member = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got).context("the member reads")?;
            stream.write_all(&got).context("the member writes")
        });
        stream.write_all(&data).context("the client writes")?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).context("the client reads")?;
        member.join().map_err(|_| anyhow!("the member panicked"))??;
        ensure!(back == data, "{} of {} bytes came back", back.len(), data.len());
        Ok(())
    })
    .with_context(|| vip.to_owned())
}

#[test]
fn a_small_mtu_at_the_member() -> Result<()> {
    let net = Routed::new(1)?;
    net.host.ip("link set dev m1 mtu 1300")?;
    let agent = Agent::start(&net.host, &[])?;
    agent.apply(&with_udp(&net)?)?;
    // The member's own packets fit, and it does not say how large a segment it takes.
    net.members[0]
        .host
        .ip("route change default via 10.0.1.1 mtu 1300 advmss 1400\nroute change default via fd00:1::1 mtu 1300 advmss 1400")?;
    for vip in [VIP, VIP6] {
        there_and_back(&net, vip)?;
    }
    // What TCP has learnt of the path is for UDP too.
    for family in ["-4", "-6"] {
        net.client.host.output("ip", &[family, "route", "flush", "cache"])?;
    }
    for vip in [VIP, VIP6] {
        let (member, client) = udp_sockets(&net, vip)?;
        let mtu = || if vip == VIP6 { getsockopt(&client, Ipv6Mtu) } else { getsockopt(&client, IpMtu) };
        ensure!(mtu()? == 1500, "{vip}: {}", mtu()?);
        client.send(&datagram(vip, 1400))?;
        let mut buffer = [0; 2048];
        let too_big = |result: std::io::Result<usize>| result.is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE));
        ensure!(too_big(client.recv(&mut buffer)), "{vip}: no answer that the packet is too big");
        ensure!(mtu()? == 1300, "{vip}: {}", mtu()?);
        ensure!(too_big(client.send(&datagram(vip, 1301))), "{vip}");
        client.send(&datagram(vip, 1300))?;
        let (len, from) = member.recv_from(&mut buffer)?;
        ensure!(len == datagram(vip, 1300).len(), "{vip}: what fits is the first to arrive, not {len} bytes");
        member.send_to(b"answer", from)?;
        ensure!(client.recv(&mut buffer)? == 6, "{vip}");
    }
    Ok(())
}

/// Replies that do not fit go by the stack, which says so to the member.
#[test]
fn a_small_mtu_at_the_client() -> Result<()> {
    let net = Routed::new(1)?;
    net.host.ip("link set dev client0 mtu 1300")?;
    let agent = Agent::start(&net.host, &[])?;
    agent.apply(&with_udp(&net)?)?;
    // The client's own packets fit, and it does not say how large a segment it takes.
    for vip in [VIP, VIP6] {
        net.client
            .host
            .ip(&format!("route add {vip} {} mtu 1300 advmss 1400", if vip == VIP6 { "via fd00::1" } else { "via 10.0.0.1" }))?;
        there_and_back(&net, vip)?;
    }
    Ok(())
}
