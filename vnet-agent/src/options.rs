//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use vnet_agent::control::glob::Pattern;
use vnet_agent::datapath::{Foreign, PolicySizes, Sizes};
use vnet_agent::fleet;
use vnet_agent::observe::{Settings, events};
use vnet_agent::resource::{Cidr, is_name};
use vnet_common::etcd::{Access, Tls};
use vnet_common::fleet::LINGER_SECONDS;

/// Keeps the vnet datapath of this host: load balancing in the egress path of its VMs and containers.
///
/// The agent puts programs onto the host-side devices of VMs and containers, and compiles what `vnet-ctl apply` gives it
/// into their tables. When it ends, however it ends, the datapath stays and works on; `vnet-ctl detach` takes it off.
/// RUST_LOG sets what is logged (error, warn, info, debug; trace also shows every verdict of the datapath).
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Options {
    /// Where desired state is kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/vnet")]
    pub state_dir: PathBuf,
    /// Where the API's socket (agent.sock) and the lock are.
    #[arg(long, value_name = "DIR", default_value = "/run/vnet")]
    pub run_dir: PathBuf,
    /// The group whose members may change things through the socket, like root.
    #[arg(long, value_name = "GROUP", default_value = "vnet")]
    pub socket_group: String,
    /// The BPF file system; programs and maps are pinned in its directory `vnet`.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Devices to attach to, beside those that Endpoint resources name; may be given several times [default: tap* vnet*]
    #[arg(long, value_name = "GLOB")]
    attach: Vec<Pattern>,
    /// Attach only to the devices that Endpoint resources name.
    #[arg(long, conflicts_with = "attach")]
    attach_none: bool,
    /// The zone that this host is in: load balancers may prefer members of the same one.
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// A prebuilt eBPF object instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub object: Option<PathBuf>,
    /// Start anew where a newer agent was at work; the flows that it knew are lost.
    #[arg(long)]
    pub discard_newer: bool,
    /// What becomes of an endpoint on whose device a program of somebody else runs before ours: an alarm only, or also no connection (what
    /// it sends or gets is dropped as far as our programs see it) until that program is gone.
    #[arg(long, value_enum, default_value_t = ForeignPrograms::Warn)]
    foreign_programs: ForeignPrograms,
    /// Networks that endpoints are in: their other addresses are peers `unknown` to rules, not `world`; may be given several times.
    #[arg(long = "endpoint-network", value_name = "CIDR", value_parser = Cidr::parse)]
    pub endpoint_networks: Vec<Cidr>,
    /// UDP ports that only tunnels use: endpoints may not send to them, unless their resource says so.
    #[arg(long, value_name = "PORT", value_delimiter = ',', default_values_t = [4789, 6081])]
    pub tunnel_ports: Vec<u16>,
    /// Events that the datapath reports: of drop, log and staged. (Flows, when somebody asks for them.)
    #[arg(long, value_name = "KIND", value_enum, value_delimiter = ',', num_args = 0.., default_values_t = [PacketEvent::Drop, PacketEvent::Log, PacketEvent::Staged])]
    events: Vec<PacketEvent>,
    /// Events that each CPU reports a second, at most; what is above is counted.
    #[arg(long, value_name = "N", default_value_t = Settings::default().rate)]
    event_rate: u32,
    /// Serve metrics for Prometheus at this TCP address too, to whoever can connect; else only on the socket.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    knobs: Knobs,
    /// Flows that one endpoint may have.
    #[arg(long, value_name = "N", default_value_t = 1 << 17, help_heading = "Sizes")]
    pub flows_per_endpoint: u32,
}

/// The store that the hosts of a fleet share.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Fleet")]
struct FleetOptions {
    /// The store that many hosts share, as etcd://HOST:PORT,HOST:PORT; else this host's own is used alone.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Who may have signed the store's certificates, as PEM.
    #[arg(long, value_name = "FILE", requires = "store")]
    store_ca: Option<PathBuf>,
    /// This host's certificate for the store, as PEM; its common name is the host's name. It is read anew when it changes.
    #[arg(long, value_name = "FILE", requires = "store")]
    store_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "store")]
    store_key: Option<PathBuf>,
    /// This host's name in the fleet [default: the system's host name]
    #[arg(long, value_name = "NAME", requires = "store")]
    host: Option<String>,
    /// For how long others know of this host's endpoints when it is not heard of any more, in seconds; at least 10. Whoever is in quarantine
    /// stays known as such.
    #[arg(long, value_name = "SECONDS", requires = "store", default_value_t = LINGER_SECONDS, value_parser = clap::value_parser!(u32).range(10..))]
    linger: u32,
}

impl FleetOptions {
    fn settings(&self) -> Result<Option<fleet::Settings>> {
        let Some(store) = &self.store else { return Ok(None) };
        let tls = match (&self.store_ca, &self.store_cert, &self.store_key) {
            (None, None, None) => None,
            (Some(ca), Some(cert), Some(key)) => Some(Tls { ca: ca.clone(), cert: cert.clone(), key: key.clone() }),
            _ => bail!("--store-ca, --store-cert and --store-key are given together, or none of them"),
        };
        let host = match &self.host {
            Some(host) => host.clone(),
            None => {
                let name = nix::unistd::gethostname().context("asking the system for its host name")?;
                name.into_string().ok().context("the system's host name is no text: give --host")?
            }
        };
        if !is_name(&host) {
            bail!(
                "`{host}` cannot be a host's name: it has lower-case letters, digits, `-` and `.`, begins and ends with a letter or digit, and has at most 253 characters; give another with --host"
            );
        }
        // A certificate that cannot be read now may be there later; one of somebody else is a mistake.
        if let Some(user) = tls.as_ref().and_then(|tls| tls.user().ok()).filter(|user| *user != host) {
            bail!(
                "the certificate for the store is that of `{user}`, and this host is `{host}`: give its own certificate, or --host {user}"
            );
        }
        Ok(Some(fleet::Settings { access: Access::new(store, tls)?, host, linger: self.linger }))
    }
}

/// See [`Options`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ForeignPrograms {
    Warn,
    Refuse,
}

/// See [`Options`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PacketEvent {
    Drop,
    Log,
    Staged,
}

impl PacketEvent {
    fn name(self) -> String {
        match self {
            Self::Drop => "drop",
            Self::Log => "log",
            Self::Staged => "staged",
        }
        .to_owned()
    }
}

/// How much the maps hold. Another size at the next start moves everything into new maps, flows included.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sizes")]
struct Knobs {
    /// Endpoints.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().endpoints)]
    max_endpoints: u32,
    /// IPv4 flows.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().flows[0] / 2)]
    max_flows: u32,
    /// IPv6 flows.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().flows[1] / 2)]
    max_flows6: u32,
    /// IPv4 connections that are being opened.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().half_open[0] / 2)]
    max_half_open: u32,
    /// IPv6 connections that are being opened.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().half_open[1] / 2)]
    max_half_open6: u32,
    /// VIP rows: one for each VIP, and one for each of its ports.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().vips)]
    max_vips: u32,
    /// Groups: one for each load balancer, address family and port.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().groups)]
    max_groups: u32,
    /// Members of groups.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().members)]
    max_members: u32,
    /// Blocks of 64 bytes for pick tables: a group of 10 equal members takes 64.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().maglev)]
    maglev_blocks: u32,
    /// Addresses of this host's endpoints.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().locals)]
    max_addresses: u32,
    /// Clients whose new flows stick to a member; the least recently used make room for others.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().affinity)]
    max_affinities: u32,
    /// IPv4 flow cache slots for each CPU: a power of two from 4 on, or 0 for no cache at all.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().cache[0])]
    cache_slots: u32,
    /// IPv6 flow cache slots for each CPU: a power of two from 4 on, or 0 for no cache at all.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().cache[1])]
    cache_slots6: u32,
    #[command(flatten)]
    policy: PolicyKnobs,
}

/// How much the maps of policy hold.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sizes")]
struct PolicyKnobs {
    /// Rules of policies and security groups, each counted once.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().counters)]
    max_rules: u32,
    /// Sets of rules: endpoints of this host to which the same ones apply share one.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().sets)]
    max_rule_sets: u32,
    /// Rules in all those sets together.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().rules)]
    max_set_rules: u32,
    /// Ranges of ports in all those sets together.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().ports)]
    max_set_ports: u32,
    /// Peers in all those sets together.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().peers)]
    max_set_peers: u32,
    /// Words of 64 bits that say which rules match a peer or a port.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().bits)]
    max_set_bits: u32,
    /// Addresses of endpoints and hosts, here and elsewhere.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().addresses)]
    max_known_addresses: u32,
    /// Networks that rules name.
    #[arg(long, value_name = "N", default_value_t = PolicySizes::default().networks)]
    max_networks: u32,
    /// The buffer for events of the datapath in bytes: a power of two from 65536 on.
    #[arg(long, value_name = "BYTES", default_value_t = PolicySizes::default().events)]
    event_buffer: u32,
}

impl PolicyKnobs {
    fn sizes(&self) -> PolicySizes {
        PolicySizes {
            sets: self.max_rule_sets,
            rules: self.max_set_rules,
            ports: self.max_set_ports,
            bits: self.max_set_bits,
            peers: self.max_set_peers,
            addresses: self.max_known_addresses,
            networks: self.max_networks,
            counters: self.max_rules,
            events: self.event_buffer,
        }
    }
}

impl Options {
    /// Which devices are endpoints without a resource.
    pub fn attach_patterns(&self) -> Vec<Pattern> {
        if self.attach.is_empty() && !self.attach_none {
            return ["tap*", "vnet*"].iter().filter_map(|p| p.parse().ok()).collect();
        }
        self.attach.clone()
    }

    /// The fleet that this host is of, if it is of one.
    ///
    /// # Errors
    /// What was given does not go together.
    pub fn fleet(&self) -> Result<Option<fleet::Settings>> {
        self.fleet.settings()
    }

    /// Which events the datapath reports.
    pub fn events(&self) -> Settings {
        let kinds: Vec<String> = self.events.iter().map(|kind| kind.name()).collect();
        Settings { kinds: events::packet_kinds(&kinds), rate: self.event_rate }
    }

    /// What becomes of endpoints with programs of others before ours.
    pub fn foreign(&self) -> Foreign {
        match self.foreign_programs {
            ForeignPrograms::Warn => Foreign::Warn,
            ForeignPrograms::Refuse => Foreign::Refuse,
        }
    }

    /// How much the maps hold. A flow has two entries.
    pub fn sizes(&self) -> Sizes {
        let k = &self.knobs;
        Sizes {
            endpoints: k.max_endpoints,
            flows: [k.max_flows, k.max_flows6].map(|n| n.saturating_mul(2)),
            half_open: [k.max_half_open, k.max_half_open6].map(|n| n.saturating_mul(2)),
            vips: k.max_vips,
            groups: k.max_groups,
            members: k.max_members,
            maglev: k.maglev_blocks,
            locals: k.max_addresses,
            affinity: k.max_affinities,
            cache: [k.cache_slots, k.cache_slots6],
            policy: k.policy.sizes(),
        }
    }
}
