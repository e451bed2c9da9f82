//! A VM under suspicion, and whom it talks to.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;
pub use vnet_tests::wait_for_group;
use vnet_tests::{Agent, Clamd, Host, MARK, Pins, Routed, Suricata, TempDir, wait_for};

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

/// How a VM is held and let go by what the IDS and the virus scanner say; GROUP, CLAMD and GUEST are put in.
const EVIDENCE: &str = r#"
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: web-1, labels: { app: web } }
spec: { device: client0, addresses: [10.0.0.10, "fd00::10"] }
---
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: recorder }
spec: { device: m2, addresses: [10.0.1.12, "fd00:1::12"] }
---
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata: { name: remediation }
spec:
  vips: [10.0.100.9]
  protocol: TCP
  ports: [80]
  members: [{ name: clean-1, address: 10.0.1.11 }]
---
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata: { name: remediation-udp }
spec:
  vips: [10.0.100.9]
  protocol: UDP
  ports: [53]
  members: [{ name: clean-1, address: 10.0.1.11 }]
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  transfers:
    - name: malware
      to: GROUP
      when: 'tags.exists(t, t.name == "ids.malware" && t.severity >= 7)'
      # A scan that is newer than the alert.
      releaseWhen: >-
        tags.all(t, t.name != "av.malware") &&
        tags.exists(c, c.name == "av.clean" && tags.all(m, m.name != "ids.malware" || c.age < m.age))
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: limited }
spec:
  quarantine: { keepAlive: [neighbors], mirrorTo: recorder }
  egress:
    - name: remediation
      peers: [{ cidr: 10.0.1.11 }, { cidr: "fd00:1::11" }]
      ports: [{ protocol: TCP, port: 80 }]
      action: allow
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: remediated }
spec:
  quarantine: { keepAlive: [neighbors], redirectTo: [remediation, remediation-udp] }
---
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: clamav }
spec:
  type: clamav
  allow: [{ tag: av.* }]
  input: { socket: CLAMD, guests: { web-1: GUEST } }
---
# It may say one thing, and says what it is told.
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: guest }
spec:
  type: json
  allow: [{ tag: host.* }]
  mappings:
    - { name: any, when: has(event.tag), subject: { endpointFrom: event.vm }, tagFrom: event.tag, severity: 9 }
---
"#;
/// The mapping of Suricata's alerts that is shipped.
const MAPPING: &str = include_str!("../../../policies/sources/suricata.yaml");

/// A VM web-1 that is watched by an IDS, whose disk (a directory here) has a marked file on it, and which is not held yet. m1 is the remediation
/// server, m2 the recorder, and the bystander has the marked file at `/marked`.
pub struct Suspect {
    /// Its network.
    pub net: Routed,
    /// Its disk.
    pub guest: TempDir,
    /// The index of its device at the host.
    pub device: u32,
    group: &'static str,
    clamd: Clamd,
}

impl Suspect {
    /// Makes it; alerts will move it into this group.
    pub fn new(group: &'static str) -> Result<Self> {
        let mut net = Routed::new(2)?;
        net.members[0].serve_http(80)?;
        net.members[0].serve_http(8080)?;
        net.members[0].serve_dns(53)?;
        net.client.serve_http(22)?;
        let files = net.bystander.serve_http(80)?;
        std::fs::write(files.join("marked"), format!("here is the {MARK} of this file\n"))?;
        let guest = TempDir::new()?;
        guest.write("letter.txt", "dear all")?;
        guest.write("invoice.exe", &format!("MZ {MARK}"))?;
        let device = net.host.output("cat", &["/sys/class/net/client0/ifindex"])?.trim().parse()?;
        let clamd = Clamd::start(&net.host)?;
        Ok(Self { net, guest, device, group, clamd })
    }

    /// The VM itself.
    pub fn vm(&self) -> &Host {
        &self.net.client.host
    }

    /// Starts the agent with all that is to be applied.
    pub fn agent(&self) -> Result<Agent<'_>> {
        let agent = Agent::start(&self.net.host, &["client0", "m2"])?;
        let (clamd, guest) = (self.clamd.socket(), self.guest.path());
        let yaml = EVIDENCE.replace("GROUP", self.group).replace("CLAMD", &clamd.display().to_string());
        agent.apply(&(yaml.replace("GUEST", &guest.display().to_string()) + MAPPING))?;
        wait_for_group(&agent, "web-1", "web")?;
        Ok(agent)
    }

    /// Has Suricata watch it.
    pub fn suricata(&self, agent: &Agent<'_>) -> Result<Suricata> {
        Suricata::start(&self.net.host, "client0", &agent.dir().path().join("suricata/eve.sock"))
    }

    /// What the agent pinned.
    pub fn pins(&self) -> Result<Pins> {
        Pins::open(&self.net.host)
    }
}

/// Runs `act` in `host` as a user without any rights.
pub fn as_stranger<T: Send>(host: &Host, act: impl FnOnce() -> T + Send) -> Result<T> {
    const NOBODY: libc::uid_t = 65534;
    // Called like this, the kernel changes this one thread, which ends with `act`; libc would change all.
    host.run(|| {
        // SAFETY: an empty list is passed, which nothing is read of.
        let groups = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
        // SAFETY: only numbers are passed.
        let group = unsafe { libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) };
        // SAFETY: only numbers are passed.
        let user = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        ensure!(groups | group | user == 0, "becoming another user: {}", std::io::Error::last_os_error());
        Ok(act())
    })?
}

/// Can `from` connect to this address and port?
pub fn connects(from: &Host, address: IpAddr, port: u16) -> Result<bool> {
    let to = SocketAddr::new(address, port);
    Ok(from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(1500)))?.is_ok())
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

/// Posts to the agent's API, without a program in between; gives the status of the answer.
pub fn post(agent: &Agent<'_>, path: &str, body: &str) -> Result<u16> {
    let mut stream = UnixStream::connect(agent.socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let head = "Host: vnet\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length:";
    stream.write_all(format!("POST {path} HTTP/1.1\r\n{head} {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no answer")?;
    status.parse().with_context(|| answer.clone())
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
