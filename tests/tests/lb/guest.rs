//! A real VM: virtio-net on a tap, with everything that a guest leaves to the host: checksums, segmentation, coalescing.

use crate::support::{VIP, VIP6, endpoint, json, load_balancer, mac, total, web};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Guest, Host, Machine, machine_behind, skip};

/// MiB that go there and back.
const BULK: u64 = 64;
/// The same once more, for another way.
const SOME: u64 = 8;
const MAC: &str = "52:54:00:00:00:10";
/// A frame that no segmentation offload was at work on.
const FRAME: u64 = 1514;
/// Questions to three members: that one of them gets none has a chance of 1 in 60,000.
const TIMES: usize = 30;
/// For a bulk transfer in one direction.
const PATIENCE: Duration = Duration::from_secs(60);

/// The VM `vm` at 10.0.0.10 and fd00::10, behind a tap of a host that routes between it and three members. Through the VIPs:
/// TCP 80 and UDP 53 of all members, and a place for bulk on one of them: at port 7000 through the host's stack, at 7001 past it.
fn policy(members: &[Machine]) -> Result<String> {
    let all: Vec<_> = members.iter().collect();
    let mut yaml = web(&all, 8080, "") + "---\n" + &load_balancer("dns", "UDP", 53, &all, 5353, "");
    yaml += &format!("---\n{}", load_balancer("bulk", "TCP", 7000, &all[..1], 7000, ""));
    yaml += &format!("---\n{}", load_balancer("direct", "TCP", 7001, &all[..1], 7000, "  delivery: redirect\n"));
    yaml += &endpoint(&members[0], "m1", Some(&mac(&members[0].host, "eth0")?));
    yaml += &format!(
        "---\napiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: {{ name: vm }}\nspec:\n  device: tap-old\n  mac: \"{MAC}\"\n  \
         antiSpoofing: strict\n  addresses: [10.0.0.10, \"fd00::10\"]\n"
    );
    Ok(yaml)
}

/// Boots the VM on a new tap, as what starts VMs does: attached before it can send.
fn boot(host: &Host, agent: &Agent<'_>, tap: &str) -> Result<Guest> {
    host.ip(&format!("tuntap add dev {tap} mode tap"))?;
    let attached = agent.ctl(&["endpoint", "attach", tap, "--hold", "--endpoint", "vm"])?;
    ensure!(attached.contains("attached as endpoint/vm"), "{attached}");
    host.ip(&format!("address add 10.0.0.1/24 dev {tap}\naddress add fd00::1/64 dev {tap} nodad"))?;
    let mut guest = Guest::boot(host, tap, MAC)?;
    // Looking for duplicates keeps an IPv6 address out of use for a second or two; nothing here is duplicated.
    guest.run(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up; ip address add 10.0.0.10/24 dev eth0; ip address add fd00::10/64 dev eth0; \
        ip route add default via 10.0.0.1; ip route add default via fd00::1",
    )?;
    Ok(guest)
}

/// On port 7000: who sends a number gets as many MiB of `data`; whoever sends those back is told whether they are intact.
fn serve_bulk(member: &Machine, data: Vec<u8>) -> Result<()> {
    let listener = member.host.run(|| TcpListener::bind("[::]:7000"))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut got = Vec::new();
            let read = stream.read_to_end(&mut got);
            let wanted = std::str::from_utf8(&got).ok().and_then(|text| text.trim().parse::<usize>().ok());
            let answer = match (read, wanted) {
                (Ok(_), Some(mib)) => data.get(..mib << 20).unwrap_or(&data).to_vec(),
                (Ok(len), None) if data.starts_with(&got) => format!("{len} bytes intact").into_bytes(),
                (read, _) => {
                    let same = got.iter().zip(&data).take_while(|(a, b)| a == b).count();
                    format!("{read:?}, the first {same} as they were").into_bytes()
                }
            };
            // The VM says what it lacks.
            let _ = stream.write_all(&answer);
        }
    });
    Ok(())
}

/// Bytes of which no piece is like another.
fn data() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 32) as u32
    };
    (0..BULK << 18).flat_map(|_| next().to_le_bytes()).collect()
}

/// Fetches so many MiB from a port of a VIP, and sends them back; gives the mean size of a frame to the member, and from it.
fn bulk(guest: &mut Guest, agent: &Agent<'_>, (lb, port): (&str, u16), vip: &str, mib: u64) -> Result<[u64; 2]> {
    let start = Instant::now();
    let bytes = mib << 20;
    let there = format!("timeout {} nc {vip} {port}", PATIENCE.as_secs());
    let mut frames = [0; 2];
    for (way, command) in [(1, format!("echo {mib} | {there} > /tmp/data")), (0, format!("{there} < /tmp/data"))] {
        let before = carried(agent, lb)?;
        let answer = guest.run(&command)?;
        let intact = if way == 1 { String::new() } else { format!("{bytes} bytes intact") };
        ensure!(answer == intact, "{lb} at {vip}: what comes back is not what was sent: {answer}");
        let after = carried(agent, lb)?;
        let [packets, carried] = [0, 1].map(|what| after[what][way] - before[what][way]);
        frames[way] = carried / packets.max(1);
        ensure!(carried >= bytes, "{lb} at {vip}, way {way}: {carried} bytes in {packets} packets");
    }
    let took = start.elapsed().as_millis();
    println!("{mib} MiB from {lb} at {vip} and back in {took} ms; bytes a packet: {} from it, {} to it", frames[1], frames[0]);
    Ok(frames)
}

/// Packets and bytes that a load balancer has sent to its members, and got from them.
fn carried(agent: &Agent<'_>, lb: &str) -> Result<[[u64; 2]; 2]> {
    let status = json(&agent.ctl(&["lb", "members", lb, "-o", "json"])?)?;
    let sum = |what: &str, way: usize| -> u64 {
        status["members"].as_array().into_iter().flatten().filter_map(|m| m[what][way].as_u64()).sum()
    };
    Ok(["packets", "bytes"].map(|what| [0, 1].map(|way| sum(what, way))))
}

/// HTTP and DNS reach every member, and the VIPs answer for themselves.
fn small(guest: &mut Guest) -> Result<()> {
    for vip in [VIP, VIP6] {
        let http = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {vip} 80 | tail -n 1");
        let dns = format!("nslookup -type=txt whoami.lab {vip} | sed -n 's/.*text = //p'");
        for ask in [http, dns] {
            let answers = guest.run(&format!("for i in $(seq {TIMES}); do {ask}; done"))?;
            let mut names = BTreeMap::<String, usize>::new();
            for name in answers.lines().filter_map(|line| line.split(' ').next()) {
                *names.entry(name.trim_matches('"').to_owned()).or_default() += 1;
            }
            ensure!(names.keys().eq(["m1", "m2", "m3"]) && total(&names) == TIMES, "{ask}: {answers}");
        }
        let ping = guest.run(&format!("ping -c 3 -i 0.1 -W 2 {vip}"))?;
        ensure!(ping.contains(" 0% packet loss"), "{ping}");
        let (refused, code) = guest.printed(&format!("nc -w 3 {vip} 81 < /dev/null"))?;
        ensure!(code != 0 && refused.contains("refused"), "{vip}: a closed port refuses: {refused}");
    }
    Ok(())
}

#[test]
fn a_vm_keeps_working_when_it_reboots_onto_a_new_tap() -> Result<()> {
    if let Some(why) = Guest::missing() {
        skip(&why);
        return Ok(());
    }
    let host = Host::new("host")?;
    host.forward()?;
    let members = (1..=3).map(|n| machine_behind(&host, &format!("m{n}"), &format!("m{n}"), 10 + n));
    let mut members = members.collect::<Result<Vec<_>>>()?;
    for m in &mut members {
        m.serve_http(8080)?;
        m.serve_dns(5353)?;
    }
    serve_bulk(&members[0], data())?;
    let agent = Agent::start(&host, &[])?;
    agent.apply(&policy(&members)?)?;

    // How much is cut up and put together at a time depends on how busy the machine is.
    let (mut identity, mut largest) = (None, [0; 2]);
    for tap in ["tap-old", "tap-new"] {
        let start = Instant::now();
        let mut guest = boot(&host, &agent, tap).with_context(|| agent.logged())?;
        println!("the VM is up on {tap} after {} ms", start.elapsed().as_millis());
        let mut measured = Vec::new();
        (|| -> Result<()> {
            small(&mut guest)?;
            println!("small things took until {} ms", start.elapsed().as_millis());
            let (by_stack, direct) = (("bulk", 7000), ("direct", 7001));
            if tap == "tap-old" {
                measured.push(bulk(&mut guest, &agent, by_stack, VIP, BULK)?);
            } else {
                // What the devices at both ends cut up and complete is checked by the receivers.
                host.checksum_in_software("m1")?;
                host.checksum_in_software(tap)?;
            }
            for (lb, vip) in [(by_stack, VIP), (by_stack, VIP6), (direct, VIP), (direct, VIP6)] {
                measured.push(bulk(&mut guest, &agent, lb, vip, SOME)?);
            }
            Ok(())
        })()
        .with_context(|| format!("on {tap}; console:\n{}\nagent:\n{}", guest.console(), agent.logged()))?;

        for frames in measured {
            largest = [0, 1].map(|way| frames[way].max(largest[way]));
        }
        let endpoints = json(&agent.ctl(&["endpoint", "ls", "-o", "json"])?)?;
        let vm = endpoints.as_array().into_iter().flatten().find(|e| e["name"] == "vm");
        let vm = vm.ok_or_else(|| anyhow!("no endpoint vm: {endpoints}"))?;
        ensure!(vm["device"] == tap && vm["state"] == "attached", "{vm}");
        ensure!(*identity.get_or_insert_with(|| vm["identity"].clone()) == vm["identity"], "it is the endpoint it was: {vm}");
        drop(guest);
        host.ip(&format!("link delete dev {tap}"))?;
    }
    // Each way the datapath saw larger frames than fit the wire: segmentation and coalescing were left to the host.
    ensure!(largest.iter().all(|frame| *frame > FRAME), "the mean frame of the best transfer: {largest:?} bytes");
    Ok(())
}
