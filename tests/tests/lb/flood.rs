//! A VM that floods, and one that scans: nobody else's flows suffer, nor its own, and every packet is counted.

use crate::support::{VIP, endpoint, mac, metrics, web};
use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, send, socket};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Host, Routed, serve_name, wait_for};

/// Between two questions of a session while others flood.
const PAUSE: Duration = Duration::from_millis(20);
const SESSIONS: usize = 8;

fn sessions(from: &Host) -> Result<Vec<TcpStream>> {
    let to = SocketAddr::new(VIP.parse()?, 80);
    let connect = || -> Result<TcpStream> {
        let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    (0..SESSIONS).map(|_| connect()).collect()
}

/// Runs `attack` while all sessions are at work; gives how many questions were answered meanwhile.
fn while_at_work(sessions: &mut [TcpStream], attack: impl FnOnce() -> Result<()>) -> Result<usize> {
    /// Ends the sessions also where the attack panics.
    struct Ending<'a>(&'a AtomicBool);
    impl Drop for Ending<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ending = Ending(&over);
        let working: Vec<_> = sessions
            .iter_mut()
            .map(|stream| {
                scope.spawn(|| -> Result<usize> {
                    let mut answered = 0;
                    while !over.load(Ordering::Relaxed) || answered == 0 {
                        stream.write_all(&[1])?;
                        let mut answer = [0; 2];
                        stream.read_exact(&mut answer)?;
                        ensure!(answer[0] == b'm', "{answer:?}");
                        answered += 1;
                        std::thread::sleep(PAUSE);
                    }
                    Ok(answered)
                })
            })
            .collect();
        let done = attack();
        drop(ending);
        let mut answered = 0;
        for (number, session) in working.into_iter().enumerate() {
            let ended = session.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            answered += ended.with_context(|| format!("session {number}"))?;
        }
        done.map(|()| answered)
    })
}

/// Sends as many SYNs from a VM, as raw frames; with the tag of a VLAN, if one is given.
struct Sender<'a> {
    vm: &'a Host,
    /// Of the host's device, and of the VM's.
    macs: [[u8; 6]; 2],
    vlan: Option<u16>,
}

/// Between the VM and its host.
fn macs(net: &Routed) -> Result<[[u8; 6]; 2]> {
    let parse = |mac: String| -> Result<[u8; 6]> {
        let bytes = mac.split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect::<Result<Vec<_>>>()?;
        bytes.try_into().map_err(|_| anyhow::anyhow!("{mac} is no MAC"))
    };
    Ok([parse(mac(&net.host, "client0")?)?, parse(mac(&net.client.host, "eth0")?)?])
}

impl Sender<'_> {
    /// `of` gives source and destination of each.
    fn send(&self, packets: u32, of: impl Fn(u32) -> [(Ipv4Addr, u16); 2] + Sync) -> Result<()> {
        let run = || -> Result<()> {
            // Not for any protocol: it is to send only.
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
            let device = nix::net::if_::if_nametoindex("eth0")?;
            bind(socket.as_raw_fd(), &link(device))?;
            let mut frame = Vec::new();
            for n in 0..packets {
                let [(src, sport), (dst, dport)] = of(n);
                frame.clear();
                let builder = PacketBuilder::ethernet2(self.macs[1], self.macs[0]);
                let builder = match self.vlan {
                    Some(vlan) => builder.single_vlan(vlan.try_into()?).ipv4(src.octets(), dst.octets(), 64),
                    None => builder.ipv4(src.octets(), dst.octets(), 64),
                };
                builder.tcp(sport, dport, n, 1024).syn().write(&mut frame, &[])?;
                loop {
                    match send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
                        Ok(_) => break,
                        Err(Errno::ENOBUFS) => std::thread::yield_now(),
                        Err(e) => return Err(e).context("sending a frame"),
                    }
                }
            }
            Ok(())
        };
        self.vm.run(run)?
    }
}

fn link(device: u32) -> nix::sys::socket::LinkAddr {
    use nix::sys::socket::SockaddrLike as _;
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: device as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: a whole address of this family.
    unsafe { nix::sys::socket::LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) }
        .expect("the address of a device")
}

/// What an endpoint has sent, by reason.
fn counted(agent: &Agent<'_>, host: &Host, endpoint: &str) -> Result<BTreeMap<String, u64>> {
    let metrics = metrics(agent, host)?;
    let mut counts = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("vnet_endpoint_packets_total{")) {
        if line.contains(&format!("endpoint=\"{endpoint}\"")) && line.contains("direction=\"egress\"") {
            let reason = line.split_once("reason=\"").and_then(|(_, rest)| rest.split_once('"')).context("no reason")?.0;
            let count = line.rsplit_once(' ').context("no count")?.1.parse()?;
            counts.insert(reason.to_owned(), count);
        }
    }
    Ok(counts)
}

fn floods_and_scans(packets: u32) -> Result<()> {
    let net = Routed::new(2)?;
    net.members.iter().try_for_each(|member| serve_name(member, member.v4.into(), 8080))?;
    let agent = Agent::start(&net.host, &["client0", "by"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    let mut open = sessions(&net.client.host)?;
    open.extend(sessions(&net.bystander.host)?);
    let sender = Sender { vm: &net.client.host, macs: macs(&net)?, vlan: None };
    let (vip, own, member): (Ipv4Addr, _, _) = (VIP.parse()?, net.client.v4, net.members[0].v4);
    // From so many addresses and ports that no two are the same.
    let spoofed = |n: u32| (Ipv4Addr::from_bits(0x0B00_0000 | n >> 8), 1024 + (n & 0xff) as u16);
    let scanned = |n: u32| ((n & 0xffff) as u16, 20_000 + (n >> 16) as u16);
    let mut attack = |name: &str, mostly: &str, of: &(dyn Fn(u32) -> [(Ipv4Addr, u16); 2] + Sync)| -> Result<()> {
        let (before, begun) = (counted(&agent, &net.host, "client0")?, Instant::now());
        let answered = while_at_work(&mut open, || sender.send(packets, of))?;
        let took = begun.elapsed();
        // What was handed over last may still wait.
        std::thread::sleep(Duration::from_millis(200));
        let after = counted(&agent, &net.host, "client0")?;
        let grown: BTreeMap<_, _> =
            after.iter().map(|(reason, n)| (reason, n - before.get(reason).unwrap_or(&0))).filter(|(_, n)| *n > 0).collect();
        println!("{name}: {packets} packets in {took:.1?}, {answered} answers to {} sessions; {grown:?}", open.len());
        // But for some of a scan that went to the port that is served.
        let most = grown.get(&mostly.to_owned()).copied().unwrap_or(0);
        let served = packets.div_ceil(1 << 16);
        ensure!(most + u64::from(served) >= u64::from(packets), "{name}: of {packets} packets were counted: {grown:?}");
        Ok(())
    };
    attack("SYN flood of a VIP from spoofed addresses", "new-flow", &|n| [spoofed(n), (vip, 80)])?;
    attack("scan of a VIP's ports", "vip-port-closed", &|n| [(own, scanned(n).1), (vip, scanned(n).0)])?;
    let everything = "---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: { name: default }\nspec:\n  \
                      defaults: { ingress: allow, egress: allow }\n";
    agent.apply(&(endpoint(&net.client, "client0", None).replace("name: client", "name: client0") + everything))?;
    attack("the flood, where addresses are checked", "spoofed-address", &|n| [spoofed(n), (vip, 80)])?;
    attack("scan of a host's ports, where there are rules", "allowed", &|n| [(own, scanned(n).1), (member, scanned(n).0)])?;
    // The agent is as it was, and so is everybody who comes anew.
    let fresh = sessions(&net.bystander.host)?;
    ensure!(fresh.len() == SESSIONS);
    Ok(())
}

#[test]
fn floods_and_scans_end_no_flow() -> Result<()> {
    floods_and_scans(100_000)
}

#[test]
#[ignore = "minutes: cargo xtask test --long"]
fn floods_and_scans_of_a_million_end_no_flow() -> Result<()> {
    floods_and_scans(1_000_000)
}

/// A tag with the number 0 is a priority, not a VLAN: what has it is balanced.
#[test]
fn priority_tags_are_no_vlan() -> Result<()> {
    let net = Routed::new(1)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    let (own, vip): (_, Ipv4Addr) = (net.client.v4, VIP.parse()?);
    for (vlan, reason) in [(0, "new-flow"), (5, "vlan"), (4095, "vlan")] {
        let before = counted(&agent, &net.host, "client0")?.get(reason).copied().unwrap_or(0);
        let sender = Sender { vm: &net.client.host, macs: macs(&net)?, vlan: Some(vlan) };
        sender.send(50, |n| [(own, 30_000 + vlan + n as u16), (vip, 80)])?;
        let now = || Some(counted(&agent, &net.host, "client0").ok()?.get(reason).copied().unwrap_or(0) - before);
        wait_for(&format!("50 packets of VLAN {vlan} to be {reason}"), Duration::from_secs(5), || now().filter(|n| *n >= 50))?;
        ensure!(now() == Some(50), "VLAN {vlan}: {:?} packets were {reason}", now());
    }
    Ok(())
}
