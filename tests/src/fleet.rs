//! Many hosts, which share an etcd.

use crate::agent::bin_dir;
use crate::pki::text;
use crate::{Agent, Etcd, Host, Identity, Machine, ROOT, connect, plug};
use anyhow::{Context as _, Result, ensure};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The user that [`Fleet::ctl`] and the agents' [`Agent::ctl`] are.
pub const OPERATOR: &str = "operator";

/// Where etcd is.
const STORE: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 99, 0, 1), Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1));

/// ```text
///  a0 10.0.0.10 ─ tap0 ┐
///     fd00:0::10       ├ host 0 up ─ 10.98.0.0/24 ─ host0 ┐
///  a1 10.0.0.11 ─ tap1 ┘             fd98:0::/64          │
///                                                         ├ core 10.99.0.1, with etcd
///  b0 10.1.0.10 ─ tap0 ┐                                  │      fd99::1
///     fd00:1::10       ├ host 1 up ─ 10.98.1.0/24 ─ host1 ┘
///  b1 10.1.0.11 ─ tap1 ┘             fd98:1::/64
/// ```
///
/// Hosts and their VMs are counted from 0: VM `j` of host `k` is at 10.`k`.0.1`j`, alone behind `tap`, and its gateway
/// 10.`k`.0.1 is its host. All reach each other. In links the core has the first address, the host the second. IPv6 addresses
/// look like IPv4's.
#[derive(Debug)]
pub struct Fleet {
    /// The router between the hosts.
    pub core: Host,
    /// What they share.
    pub etcd: Etcd,
    hosts: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    host: Host,
    vms: Vec<Machine>,
    /// Of the last agent.
    socket: Mutex<Option<PathBuf>>,
}

impl Fleet {
    /// Makes hosts with these names, at most 26, with as many VMs each, at most 90, and an etcd of three members.
    ///
    /// # Errors
    /// Namespaces cannot be made, for want of root in most cases; or see [`Etcd::start`].
    pub fn new(names: &[&str], vms: u8) -> Result<Self> {
        ensure!(names.len() <= 26 && vms <= 90, "{} hosts with {vms} VMs each: there are no addresses for them", names.len());
        let core = Host::new("core")?;
        core.forward()?;
        // What is configured is to be there again when a link is.
        core.sysctl("net/ipv6/conf/all/keep_addr_on_down", 1)?;
        core.ip(&format!("address add {}/32 dev lo\naddress add {}/128 dev lo nodad", STORE.0, STORE.1))?;
        // Its members have to find each other, which takes longer than to make the hosts.
        let (etcd, hosts) = std::thread::scope(|scope| {
            let etcd = scope.spawn(|| Etcd::start(&core, &[STORE.0.into(), STORE.1.into()], 3));
            let hosts = (0..).zip(names).map(|(k, name)| Member::new(&core, k, name, vms)).collect::<Result<_>>();
            (etcd.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), hosts)
        });
        Ok(Self { etcd: etcd?, hosts: hosts?, core })
    }

    /// Sets the store up: it checks from now on who its clients are, and knows the hosts and [`OPERATOR`]. Gives what
    /// `vnet-ctl` printed.
    ///
    /// # Errors
    /// It fails; the message has what it printed.
    pub fn init_store(&self) -> Result<String> {
        let store = self.etcd.endpoints();
        let mut args = vec!["store", "init", "--store", &store, "--operator", OPERATOR];
        args.extend(self.hosts.iter().flat_map(|member| ["--host", member.host.name()]));
        self.ctl_as(&self.etcd.pki.client(ROOT)?, 0, &args)
    }

    /// A host.
    ///
    /// # Panics
    /// There are not as many.
    #[must_use]
    pub fn host(&self, host: usize) -> &Host {
        &self.hosts[host].host
    }

    /// A VM.
    ///
    /// # Panics
    /// There are not as many.
    #[must_use]
    pub fn vm(&self, host: usize, vm: usize) -> &Machine {
        &self.hosts[host].vms[vm]
    }

    /// The same to start servers on.
    ///
    /// # Panics
    /// There are not as many.
    pub fn vm_mut(&mut self, host: usize, vm: usize) -> &mut Machine {
        &mut self.hosts[host].vms[vm]
    }

    /// Loses all packets between a host and etcd, both ways, without a word to either. All others go on.
    ///
    /// # Errors
    /// There is no nft, or it fails; the message has what it printed.
    pub fn cut(&self, host: usize) -> Result<()> {
        // Where they arrive: what is dropped on its way out, its sender is told of.
        let (v4, v6) = STORE;
        for (at, device, direction) in [(&self.core, format!("host{host}"), "daddr"), (self.host(host), "up".to_owned(), "saddr")]
        {
            let table = table(host);
            let chain = format!("{table} arriving");
            at.output(
                "nft",
                &[
                    format!("add table {table};"),
                    format!("add chain {chain} {{ type filter hook prerouting priority raw; }};"),
                    format!("add rule {chain} iifname {device} ip {direction} {v4} drop;"),
                    format!("add rule {chain} iifname {device} ip6 {direction} {v6} drop"),
                ],
            )?;
        }
        Ok(())
    }

    /// Takes a host's link down, with all that goes over it.
    ///
    /// # Errors
    /// See [`Host::ip`].
    pub fn cut_dead(&self, host: usize) -> Result<()> {
        self.core.ip(&format!("link set host{host} down"))
    }

    /// Undoes both, in whatever state the link is.
    ///
    /// # Errors
    /// See [`Fleet::cut`] and [`Host::ip`].
    pub fn mend(&self, host: usize) -> Result<()> {
        for at in [&self.core, self.host(host)] {
            // One that is not there cannot be deleted.
            let table = table(host);
            at.output("nft", &[format!("add table {table}; delete table {table}")])?;
        }
        self.core.ip(&format!("link set host{host} up"))?;
        self.core.wait_up(&format!("host{host}"))?;
        self.host(host).wait_up("up")?;
        self.core.ip(&routes(host))
    }

    /// Starts the agent of a host, attached to its VMs' devices, with the host's certificate and these further arguments. Its
    /// [`Agent::ctl`] is the operator.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn agent(&self, host: usize, more: &[&str]) -> Result<Agent<'_>> {
        self.agent_program(host, &bin_dir()?.join("vnet-agent"), more)
    }

    /// The same with another build of the agent.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn agent_program(&self, host: usize, program: &Path, more: &[&str]) -> Result<Agent<'_>> {
        let Member { host, socket, .. } = &self.hosts[host];
        let (endpoints, identity) = (self.etcd.endpoints(), self.etcd.pki.client(host.name())?);
        let args = [
            ["--store", &endpoints],
            ["--store-ca", text(&identity.ca)?],
            ["--store-cert", text(&identity.certificate)?],
            ["--store-key", text(&identity.key)?],
            ["--host", host.name()],
        ];
        let mut agent = Agent::make(host, program, &["tap*"], &[args.as_flattened(), more].concat())?;
        agent.set_ctl_environment(environment(&self.etcd.pki.client(OPERATOR)?).to_vec());
        *socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(agent.socket());
        Ok(agent)
    }

    /// The host that is elected, as an agent sees it.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn elected(&self, agent: &Agent<'_>) -> Result<Option<usize>> {
        let list = agent.ctl(&["host", "ls"])?;
        let name = list.lines().find(|line| line.contains("elected")).and_then(|line| line.split_whitespace().next());
        Ok(self.hosts.iter().position(|member| Some(member.host.name()) == name))
    }

    /// Runs `vnet-ctl` in a host as the operator, and gives its standard output. It asks the last agent that was started there.
    ///
    /// # Errors
    /// It fails; the message has what it printed.
    pub fn ctl(&self, host: usize, args: &[&str]) -> Result<String> {
        self.ctl_as(&self.etcd.pki.client(OPERATOR)?, host, args)
    }

    /// The same as somebody else.
    ///
    /// # Errors
    /// It fails; the message has what it printed.
    pub fn ctl_as(&self, who: &Identity, host: usize, args: &[&str]) -> Result<String> {
        let Member { host, socket, .. } = &self.hosts[host];
        let mut command = host.command(bin_dir()?.join("vnet-ctl"))?;
        command.args(args).envs(environment(who));
        if let Some(socket) = &*socket.lock().unwrap_or_else(PoisonError::into_inner) {
            command.env("VNET_SOCKET", socket);
        }
        host.output_of(command).with_context(|| format!("vnet-ctl {}", args.join(" ")))
    }
}

impl Member {
    fn new(core: &Host, number: u8, name: &str, vms: u8) -> Result<Self> {
        let host = Host::new(name)?;
        host.forward()?;
        let addresses = |end: u8| [format!("10.98.{number}.{end}/24"), format!("fd98:{number}::{end}/64")];
        let (there, here) = (addresses(1), addresses(2));
        let [there, here] = [&there, &here].map(|addresses| addresses.each_ref().map(String::as_str));
        connect((core, &format!("host{number}"), &there), (&host, "up", &here))?;
        host.ip(&format!("route add default via 10.98.{number}.1\nroute add default via fd98:{number}::1"))?;
        core.ip(&routes(number.into()))?;
        let vms = (0..vms).map(|j| machine(&host, number, j)).collect::<Result<_>>()?;
        Ok(Self { host, vms, socket: Mutex::default() })
    }
}

/// The VM `j` of host `k`, behind its device.
fn machine(host: &Host, k: u8, j: u8) -> Result<Machine> {
    let address = |last: u8| -> Result<(Ipv4Addr, Ipv6Addr)> {
        Ok((Ipv4Addr::new(10, k, 0, last), format!("fd00:{k}::{last}").parse().context("an IPv6 address of decimal digits")?))
    };
    let (v4, v6) = address(10 + j)?;
    let vm = Machine::new(&format!("{}{j}", char::from(b'a' + k)), v4, v6)?;
    plug(&vm, host, &format!("tap{j}"), address(1)?)?;
    Ok(vm)
}

/// What the core has to know of a host's VMs.
fn routes(host: usize) -> String {
    format!("route replace 10.{host}.0.0/24 via 10.98.{host}.2\nroute replace fd00:{host}::/64 via fd98:{host}::2")
}

/// The name of the nft table that cuts a host off.
fn table(host: usize) -> String {
    format!("inet cut{host}")
}

/// Where `vnet-ctl` looks for certificates.
fn environment(who: &Identity) -> [(&'static str, PathBuf); 3] {
    let Identity { ca, certificate, key } = who.clone();
    [("VNET_STORE_CA", ca), ("VNET_STORE_CERT", certificate), ("VNET_STORE_KEY", key)]
}
