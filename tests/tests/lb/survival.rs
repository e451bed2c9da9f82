//! The agent dies, restarts, is upgraded; traffic goes on.

use crate::support::{VIP, VIP6, ask, json, load_balancer, total, web};
use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Machine, Routed, bin_dir};

/// Answers each TCP connection and each datagram, IPv4 and IPv6, on port 7000 with what it got and the machine's name, until dropped.
struct Echo(Arc<AtomicBool>);

impl Echo {
    fn start(machine: &Machine) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) =
            machine.host.run(|| -> Result<_> { Ok((TcpListener::bind("[::]:7000")?, UdpSocket::bind("[::]:7000")?)) })??;
        let name = machine.name.clone();
        {
            let name = name.clone();
            std::thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let name = name.clone();
                    std::thread::spawn(move || echo_stream(stream, &name));
                }
            });
        }
        udp.set_read_timeout(Some(Duration::from_millis(100)))?;
        let done = stop.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !done.load(Ordering::Relaxed) {
                if let Ok((n, from)) = udp.recv_from(&mut buffer) {
                    let mut answer = buffer[..n].to_vec();
                    answer.extend(name.as_bytes());
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        Ok(Self(stop))
    }
}
impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn echo_stream(mut stream: TcpStream, name: &str) {
    let mut buffer = [0; 8];
    while stream.read_exact(&mut buffer).is_ok() {
        let mut answer = buffer.to_vec();
        answer.extend(format!("{name:8}").as_bytes());
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// Connections and UDP flows through both VIPs in turn that ask again and again, each always of the same member.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    workers: Vec<std::thread::JoinHandle<Result<u64>>>,
}

impl Load {
    fn start(client: &Machine, flows: usize) -> Result<Self> {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut workers = Vec::new();
        for vip in [VIP, VIP6].into_iter().cycle().take(flows) {
            let stream = client.host.run(|| TcpStream::connect((vip, 7000)))??;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.set_nodelay(true)?;
            let udp = client.host.run(|| -> Result<_> {
                let s = UdpSocket::bind(if vip == VIP6 { "[::]:0" } else { "0.0.0.0:0" })?;
                s.connect((vip, 7001))?;
                Ok(s)
            })??;
            udp.set_read_timeout(Some(Duration::from_secs(5)))?;
            let (stop, asked) = (stop.clone(), asked.clone());
            workers.push(std::thread::spawn(move || work(stream, &udp, &stop, &asked)));
        }
        Ok(Self { stop, asked, workers })
    }

    /// Gives how many questions were answered. An unanswered one, or one answered by another member, is an error.
    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for w in self.workers {
            total += w.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok(total)
    }

    fn answered(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

fn work(mut stream: TcpStream, udp: &UdpSocket, stop: &AtomicBool, asked: &AtomicU64) -> Result<u64> {
    let (mut tcp_member, mut udp_member) = (None, None);
    let mut n = 0u64;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        stream.write_all(&n.to_be_bytes())?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).with_context(|| format!("TCP question {n}"))?;
        ensure!(answer[..8] == n.to_be_bytes());
        ensure!(*tcp_member.get_or_insert(answer[8..].to_vec()) == answer[8..], "the connection changed its member");

        udp.send(&n.to_be_bytes())?;
        let mut answer = [0; 64];
        let got = udp.recv(&mut answer).with_context(|| format!("UDP question {n} was lost"))?;
        ensure!(answer[..8] == n.to_be_bytes(), "a datagram was answered late");
        ensure!(*udp_member.get_or_insert(answer[8..got].to_vec()) == answer[8..got], "the UDP flow changed its member");
        asked.fetch_add(2, Ordering::Relaxed);
        // Often enough to meet every step of an agent that starts, seldom enough to leave it the processor.
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(2 * n)
}

fn scene(net: &Routed) -> Result<(Vec<Echo>, String)> {
    let echoes = net.members.iter().map(Echo::start).collect::<Result<_>>()?;
    let members: Vec<_> = net.members.iter().collect();
    let policy =
        load_balancer("tcp", "TCP", 7000, &members, 7000, "") + "---\n" + &load_balancer("udp", "UDP", 7001, &members, 7000, "");
    Ok((echoes, policy))
}

/// The load has asked some more questions: it is not stuck.
fn goes_on(load: &Load) -> Result<()> {
    let before = load.answered();
    let end = Instant::now() + Duration::from_secs(5);
    while load.answered() < before + 50 {
        ensure!(Instant::now() < end, "traffic stands still");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn kill_and_restart_under_load() -> Result<()> {
    let net = Routed::new(3)?;
    let (_echoes, policy) = scene(&net)?;
    let mut agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&policy)?;
    let load = Load::start(&net.client, 8)?;
    for _ in 0..5 {
        goes_on(&load)?;
        agent.kill()?;
        goes_on(&load)?;
        agent.begin()?;
    }
    goes_on(&load)?;
    let answered = load.end()?;
    println!("{answered} questions answered over 5 kills and restarts, 0 lost, 0 flows moved");
    Ok(())
}

/// Each start of the agent replaces both programs of the device.
#[test]
fn program_replacements_under_load() -> Result<()> {
    let starts = if std::env::var_os("VNET_LONG").is_some() { 50 } else { 15 };
    let net = Routed::new(2)?;
    let (_echoes, policy) = scene(&net)?;
    let mut agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&policy)?;
    let load = Load::start(&net.client, 4)?;
    for _ in 0..starts {
        agent.kill()?;
        agent.begin()?;
    }
    goes_on(&load)?;
    let answered = load.end()?;
    println!("{answered} questions answered over {} program replacements, 0 lost, 0 flows moved", 2 * starts);
    Ok(())
}

#[test]
fn member_changes_move_no_flow() -> Result<()> {
    let net = Routed::new(3)?;
    let (_echoes, policy) = scene(&net)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&policy)?;
    let load = Load::start(&net.client, 8)?;
    for weight in ["5", "1", "9", "reset"] {
        for lb in ["tcp", "udp"] {
            agent.ctl(&["lb", "weight", lb, "m1", weight])?;
            agent.ctl(&["lb", "drain", lb, "m2"])?;
            agent.ctl(&["lb", "undrain", lb, "m2"])?;
        }
        goes_on(&load)?;
    }
    load.end()?;
    Ok(())
}

#[test]
fn desired_state_is_there_after_a_restart() -> Result<()> {
    let mut net = Routed::new(2)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let mut agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, ""))?;
    agent.ctl(&["lb", "drain", "web", "m1"])?;
    agent.stop()?;
    ensure!(total(&ask(&net.client.host, VIP, 5)?) == 5, "a stopped agent leaves the datapath at work");
    agent.begin()?;
    let answers = ask(&net.client.host, VIP, 20)?;
    ensure!(answers.get("m2") == Some(&20), "the drain outlives the restart: {answers:?}");
    Ok(())
}

/// From the agent with the map layout before this one, and its programs, to this one. Flows are copied from the old tables
/// to the new while the old programs go on.
#[test]
fn a_backup_can_be_applied_and_makes_no_resources_of_discovered_endpoints() -> Result<()> {
    let net = Routed::new(1)?;
    let agent = Agent::start(&net.host, &["client0"])?;
    agent.apply(&web(&[&net.members[0]], 8080, ""))?;
    for format in ["yaml", "json"] {
        let backup = agent.ctl(&["get", "all", "-o", format])?;
        ensure!(backup.contains("client0") && backup.contains("discovered"), "{backup}");
        agent.ctl(&["delete", "lb", "web"])?;
        let applied = agent.apply(&backup)?;
        ensure!(applied == "loadbalancer/web created\n", "{applied}");
        let endpoints = json(&agent.ctl(&["get", "ep", "-o", "json"])?)?;
        ensure!(endpoints[0]["discovered"] == true && endpoints.as_array().is_some_and(|all| all.len() == 1), "{endpoints}");
    }
    Ok(())
}

#[test]
fn an_upgrade_with_another_map_layout_under_load() -> Result<()> {
    let net = Routed::new(3)?;
    let (_echoes, policy) = scene(&net)?;
    let previous = bin_dir()?.join("vnet-agent-previous-abi");
    let mut agent = Agent::start_program(&net.host, &previous, &["client0"])?;
    agent.apply(&policy)?;
    let pins = |agent: &Agent| net.host.output("ls", &["/sys/fs/bpf/vnet"]).with_context(|| agent.logged());
    let before = pins(&agent)?;
    let load = Load::start(&net.client, 8)?;
    goes_on(&load)?;
    agent.kill()?;
    goes_on(&load)?;
    agent.begin_program(&bin_dir()?.join("vnet-agent"))?;
    goes_on(&load)?;
    let after = pins(&agent)?;
    ensure!(before != after, "the layouts have directories of their own: {before} {after}");
    for lb in ["tcp", "udp"] {
        let flows = json(&agent.ctl(&["lb", "flows", lb, "-o", "json"])?)?.to_string();
        for member in ["10.0.1.", "[fd00:1::"] {
            ensure!(flows.matches(&format!("\"member\":\"{member}")).count() == 4, "the new agent knows the flows: {flows}");
        }
    }
    let answered = load.end()?;
    println!("{answered} questions answered over an upgrade, 0 lost, 0 flows moved");
    Ok(())
}

/// The maps outlive the state directory; what they say that nobody desires goes when the agent is back.
#[test]
fn a_restart_without_the_state_directory_takes_back_what_is_not_desired() -> Result<()> {
    let mut net = Routed::new(1)?;
    net.members[0].serve_http(8080)?;
    let mut agent = Agent::start(&net.host, &["client0"])?;
    let policy = web(&[&net.members[0]], 8080, "");
    agent.apply(&policy)?;
    agent.stop()?;
    std::fs::remove_dir_all(agent.state_dir())?;
    ensure!(total(&ask(&net.client.host, VIP, 5)?) == 5, "until then it goes on");
    agent.begin()?;
    ensure!(total(&ask(&net.client.host, VIP, 1)?) == 0, "nobody desires this VIP");
    agent.apply(&policy)?;
    ensure!(total(&ask(&net.client.host, VIP, 5)?) == 5, "applied again, it serves");
    Ok(())
}
