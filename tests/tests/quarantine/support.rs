//! A VM under suspicion, and whom it talks to.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Host, Routed, wait_for};

/// The groups of most scenes: `web`, whose VM a tag `malware` moves into `isolated`, and `odd` into `limited`, which lets it reach m1's
/// port 80 only.
pub const GROUPS: &str = r#"
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: web-1, labels: { app: web } }
spec: { device: client0, addresses: [10.0.0.10, "fd00::10"] }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  transfers:
    - { name: malware, priority: 1, to: isolated, when: 'tags.exists(t, t.name == "malware" && t.severity >= 7)' }
    - { name: odd, priority: 2, to: limited, when: 'tags.exists(t, t.name == "odd")' }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: isolated }
spec: { quarantine: {} }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: limited }
spec:
  quarantine: { keepAlive: [neighbors] }
  egress:
    - name: remediation
      peers: [{ cidr: 10.0.1.11 }, { cidr: "fd00:1::11" }]
      ports: [{ protocol: TCP, port: 80 }]
      action: allow
"#;

/// A connection between two hosts, both ends in hand.
pub struct Session {
    /// At the host that opened it.
    pub client: TcpStream,
    /// At the other.
    pub server: TcpStream,
}

impl Session {
    /// Opens one from `from` to a port of `to`.
    pub fn open(from: &Host, to: &Host, address: IpAddr, port: u16) -> Result<Self> {
        let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, port)))??;
        let client = from.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2)))?;
        let client = client.with_context(|| format!("connecting to {address} port {port}"))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nonblocking(true)?;
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    /// Sends both ways; gives the bytes that arrive at the server and at the client within this time.
    pub fn exchange(&mut self, time: Duration) -> Result<[usize; 2]> {
        let start = Instant::now();
        let mut arrived = [0; 2];
        while start.elapsed() < time {
            for end in [&mut self.client, &mut self.server] {
                match end.write(&[0x55; 100]) {
                    Err(e) if e.kind() != ErrorKind::WouldBlock => return Ok(arrived),
                    _ => {}
                }
            }
            arrived[0] += received(&mut self.server)?;
            arrived[1] += received(&mut self.client)?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(arrived)
    }

    /// Takes what is on its way.
    pub fn drain(&mut self) -> Result<()> {
        received(&mut self.client)?;
        received(&mut self.server)?;
        Ok(())
    }
}

fn received(end: &mut TcpStream) -> Result<usize> {
    let (mut all, mut buffer) = (0, [0; 4096]);
    loop {
        match end.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(n) => all += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(all),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(all),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Can `from` connect to this address and port?
pub fn connects(from: &Host, address: IpAddr, port: u16) -> Result<bool> {
    let to = SocketAddr::new(address, port);
    Ok(from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)))?.is_ok())
}

/// Waits until `from` can connect again.
pub fn reaches(from: &Host, address: IpAddr, port: u16) -> Result<()> {
    wait_for(&format!("a connection to {address} port {port}"), Duration::from_secs(5), || {
        connects(from, address, port).ok().filter(|done| *done).map(drop)
    })
}

/// A host that routes, with the groups in force and servers on m1 (port 80) and the bystander (port 80).
pub fn scene() -> Result<Routed> {
    let mut net = Routed::new(2)?;
    net.members[0].serve_http(80)?;
    net.bystander.serve_http(80)?;
    Ok(net)
}

/// What `vnet-ctl -o json` prints.
pub fn json(agent: &Agent<'_>, args: &[&str]) -> Result<Value> {
    let text = agent.ctl(&[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| text)
}

/// Waits until the endpoint is in this group, as `vnet-ctl group ls` says.
pub fn wait_for_group(agent: &Agent<'_>, name: &str, group: &str) -> Result<()> {
    wait_for(&format!("{name} to be in group {group}"), Duration::from_secs(5), || {
        let groups = json(agent, &["group", "ls"]).ok()?;
        let of = groups.as_array()?.iter().find(|g| g["name"] == group)?;
        of["endpoints"].as_array()?.iter().any(|e| e == name).then_some(())
    })
}

/// Both families' addresses of a pair.
pub fn both(v4: &str, v6: &str) -> Result<[IpAddr; 2]> {
    Ok([v4.parse()?, v6.parse()?])
}

/// Fails unless nothing arrived.
pub fn nothing(arrived: [usize; 2]) -> Result<()> {
    ensure!(arrived == [0, 0], "bytes got through: {arrived:?} (to the server, to the client)");
    Ok(())
}
