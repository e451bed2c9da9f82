//! The command line.

use std::path::PathBuf;

use clap::Parser;
use vnet_agent::control::glob::Pattern;
use vnet_agent::datapath::Sizes;

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
    /// A prebuilt eBPF object instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub object: Option<PathBuf>,
    /// Start anew where a newer agent was at work; the flows that it knew are lost.
    #[arg(long)]
    pub discard_newer: bool,
    #[command(flatten)]
    knobs: Knobs,
    /// Flows that one endpoint may have.
    #[arg(long, value_name = "N", default_value_t = 1 << 17, help_heading = "Sizes")]
    pub flows_per_endpoint: u32,
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
    /// IPv4 flow cache slots for each CPU: a power of two from 4 on, or 0 for no cache at all.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().cache[0])]
    cache_slots: u32,
    /// IPv6 flow cache slots for each CPU: a power of two from 4 on, or 0 for no cache at all.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().cache[1])]
    cache_slots6: u32,
}

impl Options {
    /// Which devices are endpoints without a resource.
    pub fn attach_patterns(&self) -> Vec<Pattern> {
        if self.attach.is_empty() && !self.attach_none {
            return ["tap*", "vnet*"].iter().filter_map(|p| p.parse().ok()).collect();
        }
        self.attach.clone()
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
            cache: [k.cache_slots, k.cache_slots6],
        }
    }
}
