//! Three hosts that share a store, with a load balancer and groups in force; what their VMs do, and how one sees that it goes on.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use vnet_tests::{Agent, Fleet, Host, bin_dir, wait_for};
pub use vnet_tests::{Open, serve_name};

/// The hosts.
pub const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];
/// The VIPs of load balancer `web`, port 80.
pub const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Where its members serve.
pub const SERVED: u16 = 8080;
/// Where they listen, and nobody is let in.
pub const CLOSED: u16 = 9999;
/// How long something may take that needs no more than a few messages.
pub const SOON: Duration = Duration::from_secs(10);

/// Hosts, whose VMs 0 (a0, b0, c0) are clients in group `shop`, and VMs 1 (a1, b1, c1) serve in group `web`, which lets in
/// group `shop` to [`SERVED`] only.
pub struct Trio {
    /// The hosts and their store.
    pub fleet: Fleet,
}

impl Trio {
    /// Makes them, with a store that is set up, and their servers.
    pub fn new() -> Result<Self> {
        let fleet = Fleet::new(&HOSTS, 2)?;
        fleet.init_store()?;
        for host in 0..HOSTS.len() {
            let vm = fleet.vm(host, 1);
            for port in [SERVED, SERVED + 1, CLOSED] {
                serve_name(vm, vm.v4.into(), port)?;
                serve_name(vm, vm.v6.into(), port)?;
            }
        }
        Ok(Self { fleet })
    }

    /// Starts the agents of all hosts, and has the policy in force on all.
    pub fn agents(&self, more: &[&str]) -> Result<Vec<Agent<'_>>> {
        self.agents_program(&bin_dir()?.join("vnet-agent"), more)
    }

    /// The same with another build of the agent.
    pub fn agents_program(&self, program: &Path, more: &[&str]) -> Result<Vec<Agent<'_>>> {
        let agents = (0..HOSTS.len()).map(|host| self.fleet.agent_program(host, program, more)).collect::<Result<Vec<_>>>()?;
        everywhere(&agents[0], &policy(""))?;
        self.peers_known(&agents)?;
        Ok(agents)
    }

    /// Waits until clients and members of all hosts know each other: a rule by group says so.
    pub fn peers_known(&self, agents: &[Agent<'_>]) -> Result<()> {
        for host in 0..HOSTS.len() {
            for (other, agent) in agents.iter().enumerate() {
                wait_for("a client to be known where a member is", SOON, || {
                    self.connects(host, other, SERVED).ok().filter(|c| *c)
                })
                .with_context(|| agent.logged())?;
            }
        }
        Ok(())
    }

    /// Can the client of a host connect to the member of another?
    pub fn connects(&self, from: usize, to: usize, port: u16) -> Result<bool> {
        connects(&self.fleet.vm(from, 0).host, self.fleet.vm(to, 1).v4.into(), port)
    }

    /// Opens connections from each host's client to members by the VIPs, and to each member directly.
    pub fn open(&self) -> Result<Vec<Open>> {
        let mut all = Vec::new();
        for host in 0..HOSTS.len() {
            let client = &self.fleet.vm(host, 0).host;
            for vip in VIPS {
                for _ in 0..HOSTS.len() {
                    all.push(Open::to(client, vip.parse()?, 80)?);
                }
            }
            for other in 0..HOSTS.len() {
                all.push(Open::to(client, self.fleet.vm(other, 1).v4.into(), SERVED)?);
            }
        }
        let of = |name: &str| all.iter().filter(|open| open.who == name).count();
        ensure!(["a1", "b1", "c1"].iter().all(|name| of(name) > 3), "members of all hosts serve: {all:?}");
        Ok(all)
    }

    /// What is not allowed stays so, and what is, too: at each host's member.
    pub fn in_force(&self) -> Result<()> {
        for (host, name) in HOSTS.iter().enumerate() {
            let other = (host + 1) % HOSTS.len();
            ensure!(!self.connects(other, host, CLOSED)?, "{name}'s member is open");
            ensure!(self.connects(other, host, SERVED)?, "{name}'s member lets nobody in");
        }
        Ok(())
    }
}

/// The policy; these lines are further rules of what group `web` lets in.
pub fn policy(more: &str) -> String {
    let mut yaml = format!(
        "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec:\n  vips: [\"{}\", \"{}\"]\n  \
         protocol: TCP\n  ports: [80]\n  algorithm: roundRobin\n  members:\n",
        VIPS[0], VIPS[1]
    );
    for (k, letter) in ["a", "b", "c"].iter().enumerate() {
        yaml += &format!("    - {{ name: {letter}1, address: 10.{k}.0.11, port: {SERVED} }}\n");
        yaml += &format!("    - {{ name: {letter}1-v6, address: \"fd00:{k}::11\", port: {SERVED} }}\n");
    }
    for (k, letter) in ["a", "b", "c"].iter().enumerate() {
        for (j, app) in ["shop", "web"].iter().enumerate() {
            yaml += &format!(
                "---\napiVersion: vnet/v1alpha1\nkind: Endpoint\nmetadata: {{ name: {letter}{j}, labels: {{ app: {app} }} }}\nspec:\n  \
                 host: host-{letter}\n  device: tap{j}\n  addresses: [10.{k}.0.1{j}, \"fd00:{k}::1{j}\"]\n"
            );
        }
    }
    yaml += &group(
        "shop",
        "{ ingress: allow, egress: allow }",
        "  transfers:\n    - { name: malware, to: isolated, when: 'tags.exists(t, t.name == \"malware\")' }\n",
    );
    yaml += "---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: { name: isolated }\nspec: { quarantine: {} }\n";
    yaml + &web(more)
}

/// The group of those that serve, with these lines as further rules of what it lets in.
pub fn web(more: &str) -> String {
    let rule = allow("shop", SERVED);
    group("web", "{ ingress: deny, egress: allow }", &format!("  ingress:\n{rule}{more}"))
}

/// A line of [`web`]: lets group `shop` in to this port.
pub fn allow(name: &str, port: u16) -> String {
    format!("    - {{ name: {name}, peers: [{{ group: shop }}], ports: [{{ protocol: TCP, port: {port} }}], action: allow }}\n")
}

fn group(name: &str, defaults: &str, more: &str) -> String {
    format!(
        "---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: {name} }}\nspec:\n  \
         selector: {{ matchLabels: {{ app: {name} }} }}\n  defaults: {defaults}\n{more}"
    )
}

/// Applies, and sees that it is in force on all three.
pub fn everywhere(agent: &Agent<'_>, yaml: &str) -> Result<()> {
    let printed = agent.apply(yaml)?;
    ensure!(printed.contains("in force on 3 of 3 hosts"), "{printed}\n{}", agent.logged());
    Ok(())
}

/// All go on, with whom they were with.
pub fn go_on(open: &mut [Open]) -> Result<()> {
    for connection in open {
        let who = connection.who.clone();
        let answer = connection.ask().with_context(|| format!("a connection to {who}"))?;
        ensure!(answer == who, "{who} answered before, {answer} now");
    }
    Ok(())
}

/// Can `from` connect to this address and port?
pub fn connects(from: &Host, address: IpAddr, port: u16) -> Result<bool> {
    let to = SocketAddr::new(address, port);
    Ok(from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(700)))?.is_ok())
}

/// What `vnet-ctl -o json` prints.
pub fn json(agent: &Agent<'_>, args: &[&str]) -> Result<Value> {
    let text = agent.ctl(&[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("vnet-ctl printed no JSON: {text}"))
}

/// The member of the store that an agent follows, if it does.
pub fn connected(agent: &Agent<'_>) -> Result<Option<String>> {
    Ok(json(agent, &["status"])?["fleet"]["connected"].as_str().map(str::to_owned))
}

/// The alarms of an agent, as one text.
pub fn alarms(agent: &Agent<'_>) -> Result<String> {
    Ok(json(agent, &["status"])?["alarms"].to_string())
}

/// Waits until an alarm says this.
pub fn alarm(agent: &Agent<'_>, what: &str) -> Result<()> {
    wait_for(&format!("an alarm: {what}"), SOON * 2, || alarms(agent).ok().filter(|all| all.contains(what)))
        .map(drop)
        .with_context(|| format!("{}\n{}", alarms(agent).unwrap_or_default(), agent.logged()))
}

/// Waits until an agent follows the store, and has no alarm.
pub fn no_alarm(agent: &Agent<'_>) -> Result<()> {
    let is_well = || (connected(agent).ok()?.is_some() && alarms(agent).ok()? == "[]").then_some(());
    wait_for("no alarm", SOON * 2, is_well).with_context(|| format!("{}\n{}", alarms(agent).unwrap_or_default(), agent.logged()))
}

/// Waits until an agent says this of a host (`alive`, `silent` …).
pub fn host_is(agent: &Agent<'_>, host: &str, state: &str) -> Result<()> {
    let says = || agent.ctl(&["host", "ls"]).ok()?.lines().find(|line| line.starts_with(host) && line.contains(state)).map(drop);
    wait_for(&format!("{host} to be {state}"), SOON * 2, says)
        .with_context(|| format!("{}\n{}", agent.ctl(&["host", "ls"]).unwrap_or_default(), agent.logged()))
}

/// A value that the agent measures, as Prometheus reads it.
pub fn metric(agent: &Agent<'_>, host: &Host, name: &str) -> Result<f64> {
    let text = host.output("curl", &["-s", "--unix-socket", &agent.socket().to_string_lossy(), "http://agent/metrics"])?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name} in {text}"))?;
    line.rsplit(' ').next().context("a value")?.parse().with_context(|| line.to_owned())
}

/// What an agent says would become of a packet: does it get through, and the story. An agent that does not answer says neither.
pub fn explained(agent: &Agent<'_>, from: &str, to: &str) -> Result<(bool, String)> {
    let story = agent.ctl_printed(&["explain", "--from", from, "--to", to, "-o", "json"])?;
    let parsed: Value = serde_json::from_str(&story).with_context(|| format!("explain printed no JSON: {story}"))?;
    let through = match parsed["outcome"].as_str() {
        Some("allowed" | "answered" | "redirected") => true,
        Some("dropped" | "refused") => false,
        other => bail!("explain says {other:?}: {story}"),
    };
    Ok((through, story))
}

/// Waits until an agent says that such a packet gets through, or does not.
pub fn passes(agent: &Agent<'_>, from: &str, to: &str, through: bool) -> Result<()> {
    let says = || explained(agent, from, to).ok().filter(|(is, _)| *is == through);
    wait_for(&format!("{from} to {to}: {through}"), SOON, says)
        .map(drop)
        .with_context(|| format!("{}\n{}", explained(agent, from, to).map(|e| e.1).unwrap_or_default(), agent.logged()))
}

/// Waits until `from` can connect.
pub fn reaches(from: &Host, address: IpAddr, port: u16) -> Result<()> {
    wait_for(&format!("a connection to {address} port {port}"), SOON, || connects(from, address, port).ok().filter(|c| *c))
        .map(drop)
}

/// Waits until the agent has logged this.
pub fn logs(agent: &Agent<'_>, what: &str) -> Result<()> {
    wait_for(&format!("`{what}` in the log"), SOON * 2, || agent.logged().contains(what).then_some(()))
        .with_context(|| agent.logged())
}

/// What it fails with.
pub fn refused<T>(result: Result<T>, what: &str) -> Result<String> {
    Ok(format!("{:#}", result.err().with_context(|| format!("{what} was done"))?))
}

/// All resources as an agent has them in force, but for the revisions that the store gave them.
pub fn content(agent: &Agent<'_>) -> Result<String> {
    let text = agent.ctl(&["get", "all", "-o", "yaml"])?;
    Ok(text.lines().filter(|line| !line.contains("resourceVersion:")).collect::<Vec<_>>().join("\n"))
}
