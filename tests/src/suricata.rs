//! The real Suricata, with the settings that are shipped, on a device of a host.

use crate::{Host, Process, TempDir, wait_for};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::time::Duration;

/// What the rules of [`Suricata`] look for: in files that come over HTTP, and in datagrams to port 9999. clamd's signature, too.
pub const MARK: &str = "VNET-TEST-MARK";

/// The settings that are shipped.
const SETTINGS: &str = include_str!("../../vnet-agent/dist/suricata-vnet.yaml");

/// What Suricata needs beside them: nothing of this machine.
const BASE: &str = "\
%YAML 1.1
---
vars:
  address-groups: { HOME_NET: any, EXTERNAL_NET: any }
  port-groups: { HTTP_PORTS: '80' }
default-log-dir: DIR
default-rule-path: DIR
rule-files: [local.rules]
classification-file: DIR/classification.config
reference-config-file: DIR/reference.config
stats: { enabled: no }
unix-command: { enabled: no }
logging: { default-log-level: notice, outputs: [{ console: { enabled: yes } }] }
app-layer: { protocols: { http: { enabled: yes, libhtp: { default-config: { personality: IDS } } } } }
host-os-policy: { linux: [0.0.0.0/0] }
max-pending-packets: 1024
";

const RULES: &str = "\
alert http any any -> any any (msg:\"vnet: marked file\"; flow:established,to_client; file_data; content:\"MARK\"; \
classtype:trojan-activity; metadata:vnet_tag malware; sid:9000001; rev:1;)
alert udp any any -> any 9999 (msg:\"vnet: marked datagram\"; content:\"MARK\"; classtype:trojan-activity; \
metadata:vnet_tag malware; sid:9000002; rev:1;)
";

/// Suricata, which runs and listens; killed with this value.
#[derive(Debug)]
pub struct Suricata {
    process: Process,
    _dir: TempDir,
}

impl Suricata {
    /// Starts it in `host`, listening on `device`, with alerts to the socket at `eve`, and waits until it listens.
    ///
    /// # Errors
    /// It is not installed, or does not start within a minute; the message has what it printed.
    pub fn start(host: &Host, device: &str, eve: &Path) -> Result<Self> {
        let dir = TempDir::new()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        dir.write("local.rules", &RULES.replace("MARK", MARK))?;
        dir.write("classification.config", "config classification: trojan-activity,A Network Trojan was detected,1\n")?;
        dir.write("reference.config", "")?;
        dir.write("suricata.yaml", &BASE.replace("DIR", &dir.path().display().to_string()))?;
        let settings = SETTINGS.replace("/run/vnet/suricata/eve.sock", &eve.display().to_string()).replace("tap0", device);
        dir.write("suricata-vnet.yaml", &settings)?;
        let (base, shipped, pid) = (path("suricata.yaml"), path("suricata-vnet.yaml"), path("pid"));
        let args = ["-c", &base, "--include", &shipped, "--af-packet", "--pidfile", &pid];
        let process = host.start("suricata", &args).context("starting Suricata (./setup installs it)")?;
        let started = || process.printed().contains("ngine started").then_some(());
        wait_for("Suricata to start", Duration::from_secs(60), started).with_context(|| process.printed())?;
        Ok(Self { process, _dir: dir })
    }

    /// What it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        self.process.printed()
    }
}
