//! The hosts of the scene.

use anyhow::{Context as _, Result};
use vnet_tests::{Agent, Clamd, Host, MARK, Machine, Suricata, TempDir, machine_behind};

/// ```text
///  10.0.1.11 web-1    ─ tap-web-1    ┐      ┌ clean-1 ─ 10.0.1.21 remediation
///  10.0.1.12 db-1     ─ tap-db-1     ┤ host ┤ clean-2 ─ 10.0.1.22
///  10.0.1.14 recorder ─ tap-recorder ┘      └ shop    ─ 10.0.1.50 a server out there
/// ```
pub struct Estate {
    pub host: Host,
    pub web: Machine,
    pub db: Machine,
    pub recorder: Machine,
    pub clean: [Machine; 2],
    pub shop: Machine,
    /// web-1's disk.
    pub guest: TempDir,
    /// The index of web-1's device at the host.
    pub device: u32,
    clamd: Clamd,
}

impl Estate {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let host = Host::new("host")?;
        host.forward()?;
        let vm = |name: &str, last: u8| -> Result<Machine> {
            let vm = machine_behind(&host, &format!("tap-{name}"), name, last)?;
            // As policies/quarantine.yaml says; the last but one digit of the address is always 1.
            vm.host.ip(&format!("link set eth0 address 52:54:00:00:01:{:02x}", last - 10))?;
            Ok(vm)
        };
        let (mut web, mut db, recorder) = (vm("web-1", 11)?, vm("db-1", 12)?, vm("recorder", 14)?);
        let server = |name: &str, last: u8| machine_behind(&host, name, name, last);
        let (mut clean, mut shop) = ([server("clean-1", 21)?, server("clean-2", 22)?], server("shop", 50)?);
        web.serve_http(80)?;
        db.serve_http(5432)?;
        for machine in clean.iter_mut().chain([&mut shop]) {
            machine.serve_http(80)?;
        }
        let guest = TempDir::new()?;
        guest.write("letter.txt", "dear all")?;
        guest.write("invoice.exe", &format!("MZ {MARK}"))?;
        let device = host.output("cat", &["/sys/class/net/tap-web-1/ifindex"])?.trim().parse()?;
        let clamd = Clamd::start(&host)?;
        Ok(Self { host, web, db, recorder, clean, shop, guest, device, clamd })
    }

    /// Applies the example, with this lab's clamd and disk.
    pub fn apply(&self, agent: &Agent<'_>) -> Result<String> {
        let path = crate::policy("quarantine.yaml")?;
        println!("applying {}, with clamd's socket and the disk's directory of this lab", crate::shown(&path)?);
        let yaml = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let yaml = yaml.replace("/run/clamav/clamd.ctl", &self.clamd.socket().display().to_string());
        agent.apply(&yaml.replace("/srv/guests/web-1", &self.guest.path().display().to_string()))
    }

    /// Has Suricata watch web-1.
    pub fn suricata(&self, agent: &Agent<'_>) -> Result<Suricata> {
        Suricata::start(&self.host, "tap-web-1", &agent.dir().path().join("suricata/eve.sock"))
    }
}
