//! The real Suricata, with the settings that are shipped, on the device of a VM.

use super::support::{Scene, summary};
use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use vnet_tests::{Host, MARK, Suricata, TempDir, connect, wait_for};

/// The mapping that is shipped.
const MAPPING: &str = include_str!("../../../policies/sources/suricata.yaml");

/// A VM behind the device `vm0` of a host where Suricata listens, and a server.
struct Lab {
    host: Host,
    vm: Host,
    server: Host,
    dir: TempDir,
}

impl Lab {
    fn new() -> Result<Self> {
        let (host, vm, server) = (Host::new("host")?, Host::new("vm")?, Host::new("server")?);
        connect((&host, "vm0", &["10.0.0.1/24"]), (&vm, "eth0", &["10.0.0.2/24"]))?;
        connect((&host, "up0", &["10.0.1.1/24"]), (&server, "eth0", &["10.0.1.2/24"]))?;
        vm.ip("route add default via 10.0.0.1")?;
        server.ip("route add default via 10.0.1.1")?;
        host.forward()?;
        Ok(Self { host, vm, server, dir: TempDir::new()? })
    }

    fn start_suricata(&self) -> Result<Suricata> {
        Suricata::start(&self.host, "vm0", &self.dir.path().join("suricata/eve.sock"))
    }

    /// Serves a marked file, one connection after the other, until `times` are served: when its bytes were sent, each.
    fn serve(&self, times: usize) -> Result<std::thread::JoinHandle<Result<Vec<Instant>>>> {
        let listener = self.server.run(|| TcpListener::bind("10.0.1.2:80"))??;
        Ok(std::thread::spawn(move || {
            let mut sent = Vec::new();
            for stream in listener.incoming().take(times) {
                let mut stream = stream?;
                let mut request = [0; 1024];
                let read = stream.read(&mut request).context("waiting for a request")?;
                ensure!(request[..read].starts_with(b"GET"), "no request");
                let body = format!("here is the {MARK} of this file\n");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}", body.len());
                let answer = format!("{head}\r\n\r\n{body}");
                sent.push(Instant::now());
                stream.write_all(answer.as_bytes())?;
                // The connection stays open: what is reported at its end would come too late.
                let _ = stream.read(&mut request);
            }
            Ok(sent)
        }))
    }
}

#[test]
fn a_marked_file_that_a_vm_fetches_is_a_tag_at_once() -> Result<()> {
    const TIMES: usize = 50;
    let lab = Lab::new()?;
    let scene = Scene::new(lab.dir.path(), &[("vm", "10.0.0.2")])?;
    scene.configure(MAPPING)?;
    let suricata = lab.start_suricata()?;
    let server = lab.serve(TIMES)?;
    let mut arrived = Vec::new();
    for _ in 0..TIMES {
        let before = scene.taken.count();
        let mut stream = lab.vm.run(|| TcpStream::connect("10.0.1.2:80"))?.with_context(|| format!("after {before}"))?;
        stream.write_all(b"GET /file HTTP/1.1\r\nHost: 10.0.1.2\r\n\r\n")?;
        let (change, at) = scene.taken.wait("ids.malware", before).with_context(|| suricata.printed())?;
        ensure!((change.subject.as_str(), change.severity, change.source.as_str()) == ("vm", 9, "suricata"), "{change:?}");
        ensure!(change.value == "vnet: marked file" && change.evidence.contains("10.0.1.2 to 10.0.0.2"), "{change:?}");
        arrived.push(at);
        drop(stream);
    }
    let sent = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let times: Vec<Duration> = arrived.iter().zip(&sent).map(|(at, sent)| at.saturating_duration_since(*sent)).collect();
    println!("from the sending of a marked file to its tag, through Suricata: {}", summary(times.clone()));
    let mut sorted = times;
    sorted.sort_unstable();
    ensure!(sorted[TIMES / 2] < Duration::from_millis(20), "alerts come late: {sorted:?}");
    let status = scene.status()?;
    ensure!(status.state == "ok" && status.malformed == 0 && status.refused == 0, "{status:?}");
    Ok(())
}

#[test]
fn suricata_finds_the_socket_again_when_the_agent_restarts() -> Result<()> {
    let lab = Lab::new()?;
    let scene = Scene::new(lab.dir.path(), &[("vm", "10.0.0.2")])?;
    scene.configure(MAPPING)?;
    let suricata = lab.start_suricata()?;
    let send = || lab.vm.run(|| std::net::UdpSocket::bind("0.0.0.0:0")?.send_to(MARK.as_bytes(), "10.0.1.2:9999"));
    send()??;
    scene.taken.wait("ids.malware", 0).with_context(|| suricata.printed())?;
    drop(scene);
    // Alerts while there is no agent go nowhere.
    send()??;
    let scene = Scene::new(lab.dir.path(), &[("vm", "10.0.0.2")])?;
    scene.configure(MAPPING)?;
    let begun = Instant::now();
    wait_for("an alert to come again", Duration::from_secs(10), || {
        let sent = send().is_ok_and(|sent| sent.is_ok());
        std::thread::sleep(Duration::from_millis(20));
        (sent && scene.taken.count() > 0).then_some(())
    })
    .with_context(|| suricata.printed())?;
    println!("after a restart of the agent, alerts come again after {:?}", begun.elapsed());
    Ok(())
}
