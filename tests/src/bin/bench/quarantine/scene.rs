//! A VM, the real agent, and what moves the VM.

use anyhow::{Context as _, Result, bail};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Pins, Routed, Suricata, wait_for_group};

/// How a VM is moved, and brought back.
const GROUPS: &str = r#"
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
    - { name: malware, to: isolated, when: 'tags.exists(t, t.name == "ids.malware" && t.severity >= 7)' }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: isolated }
spec: { quarantine: {} }
---
"#;
/// The mappings that are shipped, and one more: the alert with this signature says that it is over.
const MAPPING: &str = include_str!("../../../../../policies/sources/suricata.yaml");
const CLEAR: &str = "
    - name: over
      when: event.event_type == \"alert\" && event.alert.signature_id == 1
      subject: { addressFrom: event.dest_ip }
      operation: clear
      tag: ids.malware
";
/// An alert as Suricata writes it.
const RECORDS: &str = include_str!("../../../../vectors/sources/suricata.json");
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two packets of the flow that shows whether the VM is held.
const PACE: Duration = Duration::from_micros(100);

/// A VM web-1 that is not held.
pub struct Scene<'a> {
    /// Its network.
    pub net: &'a Routed,
    agent: &'a Agent<'a>,
    pins: Pins,
    device: u32,
    eve: UnixDatagram,
    alert: String,
    clear: String,
}

impl<'a> Scene<'a> {
    /// The network.
    pub fn network() -> Result<Routed> {
        Routed::new(0)
    }

    /// Applies the groups.
    pub fn new(net: &'a Routed, agent: &'a Agent<'a>) -> Result<Self> {
        agent.apply(&format!("{GROUPS}{}{CLEAR}", MAPPING.trim_end()))?;
        wait_for_group(agent, "web-1", "web")?;
        let device = net.host.output("cat", &["/sys/class/net/client0/ifindex"])?.trim().parse()?;
        let eve = UnixDatagram::unbound()?;
        let path = agent.dir().path().join("suricata/eve.sock");
        eve.connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
        let record = RECORDS.lines().next().context("no record")?.replace("\"10.0.0.2\"", "\"10.0.0.10\"");
        let clear = record.replace("\"signature_id\":9000001", "\"signature_id\":1").replace("\"vnet_tag\"", "\"over\"");
        Ok(Self { net, agent, pins: Pins::open(&net.host)?, device, eve, alert: record, clear })
    }

    /// Has Suricata watch it.
    pub fn suricata(&self) -> Result<Suricata> {
        Suricata::start(&self.net.host, "client0", &self.agent.dir().path().join("suricata/eve.sock"))
    }

    /// Sends an alert about it to the agent.
    pub fn alert(&self) -> Result<()> {
        self.eve.send(self.alert.as_bytes()).map(drop).context("sending an alert")
    }

    /// Tells the agent that it is over.
    pub fn clear(&self) -> Result<()> {
        self.eve.send(self.clear.as_bytes()).map(drop).context("sending the end of an alert")
    }

    /// The policy generation.
    pub fn generation(&self) -> Result<u32> {
        self.pins.generation()
    }

    /// Is it held, also for flows that were there when the generation was this?
    pub fn is_held(&self, before: u32) -> Result<bool> {
        Ok(self.pins.is_held(self.device)? && self.pins.generation()? != before)
    }

    /// Waits until it is, without sleeping; gives when it was seen.
    pub fn held(&self, before: u32) -> Result<Instant> {
        let start = Instant::now();
        while !self.is_held(before)? {
            if start.elapsed() > LIMIT {
                bail!("the VM is not held {} s after an alert\n{}", LIMIT.as_secs(), self.agent.logged());
            }
        }
        Ok(Instant::now())
    }

    /// A socket of the VM that is connected to an address.
    pub fn socket(&self, to: SocketAddr) -> Result<UdpSocket> {
        let open = || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            Ok(socket)
        };
        self.net.client.host.run(open)?.with_context(|| format!("a socket to {to}"))
    }

    /// A flow of datagrams from the VM.
    pub fn flow(&self) -> Result<Flow> {
        let to = SocketAddr::from((self.net.bystander.v4, 7000));
        let server = self.net.bystander.host.run(|| UdpSocket::bind(to))?.context("a socket that receives")?;
        server.set_nonblocking(true)?;
        Ok(Flow { client: self.socket(to)?, server })
    }
}

/// Datagrams at a steady pace, and whether they arrive.
pub struct Flow {
    client: UdpSocket,
    server: UdpSocket,
}

impl Flow {
    /// Sends until one arrives; gives when it did.
    pub fn passes(&self) -> Result<Instant> {
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if self.is_open()? {
                return Ok(Instant::now());
            }
            std::thread::sleep(PACE);
        }
        bail!("no packet passes within {} s", LIMIT.as_secs())
    }

    /// Does one arrive? What passes does so before the sending returns.
    pub fn is_open(&self) -> Result<bool> {
        self.client.send(b"are you there").context("sending")?;
        let mut buffer = [0; 32];
        let mut arrived = false;
        loop {
            match self.server.recv(&mut buffer) {
                Ok(_) => arrived = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(arrived),
                Err(error) => return Err(error).context("receiving"),
            }
        }
    }
}
