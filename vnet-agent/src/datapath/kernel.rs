//! What the kernel must have. Everything is tried: distributions take features back to older version numbers, and out of
//! newer ones.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::sys::{Hook, programs_of};

/// The loopback device has this index in every network namespace.
const LOOPBACK: u32 = 1;
/// A capability, by its bit in `/proc/self/status`.
const CAP_NET_ADMIN: u32 = 12;
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
const CAP_SYS_ADMIN: u32 = 21;

/// Checks everything, and names all that is missing. `bpffs` is the directory (or the one above it) where maps are pinned.
pub fn check(bpffs: &Path) -> Result<()> {
    let missing: Vec<String> = [capabilities(), jit(), programs(), tcx(), filesystem(bpffs)]
        .into_iter()
        .filter_map(Result::err)
        .map(|e| format!("{e:#}"))
        .collect();
    match missing.as_slice() {
        [] => Ok(()),
        [one] => bail!("this host cannot run the datapath: {one}"),
        many => bail!("this host cannot run the datapath:\n  - {}", many.join("\n  - ")),
    }
}

fn capabilities() -> Result<()> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("reading this process's capabilities from /proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).context("/proc/self/status has no line CapEff")?;
    let bits = u64::from_str_radix(line.trim(), 16).context("/proc/self/status: CapEff is no number")?;
    let has = |bit: u32| bits >> bit & 1 != 0;
    // CAP_SYS_ADMIN stands for the two of BPF, as it did before there were those; not for that of the network.
    let given = |bit: u32| has(bit) || (bit != CAP_NET_ADMIN && has(CAP_SYS_ADMIN));
    let missing: Vec<&str> = CAPABILITIES.iter().filter(|(_, bit)| !given(*bit)).map(|c| c.0).collect();
    if !missing.is_empty() {
        bail!("this process lacks {}: run it as root, or give it these capabilities", missing.join(", "));
    }
    Ok(())
}

fn jit() -> Result<()> {
    const SWITCH: &str = "/proc/sys/net/core/bpf_jit_enable";
    // No such file: a kernel whose compiler cannot be turned off.
    if std::fs::read_to_string(SWITCH).is_ok_and(|s| s.trim() == "0") {
        bail!("the kernel interprets BPF programs instead of compiling them: sysctl -w net.core.bpf_jit_enable=1");
    }
    Ok(())
}

fn programs() -> Result<()> {
    for kind in [MapType::Hash, MapType::PerCpuArray] {
        if !is_map_supported(kind).with_context(|| format!("trying to make a BPF map ({kind:?})"))? {
            bail!("the kernel has no BPF maps of type {kind:?}: it needs CONFIG_BPF_SYSCALL, in a kernel from 6.6 on");
        }
    }
    if !is_program_supported(ProgramType::SchedClassifier).context("trying to load a BPF program for traffic control")? {
        bail!("the kernel has no BPF programs for traffic control: it needs CONFIG_NET_CLS_ACT, in a kernel from 6.6 on");
    }
    Ok(())
}

fn tcx() -> Result<()> {
    match programs_of(LOOPBACK, Hook::Ingress) {
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            bail!("the kernel has no TCX hooks: use a kernel from 6.6 on, with CONFIG_NET_XGRESS")
        }
        Err(e) => Err(e).context("asking the kernel for TCX programs on the loopback device"),
    }
}

fn filesystem(dir: &Path) -> Result<()> {
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    let kind =
        statfs(existing).with_context(|| format!("looking at the file system of {}", existing.display()))?.filesystem_type();
    if kind != BPF_FS_MAGIC {
        bail!("{} lies on no BPF file system: mount -t bpf bpf /sys/fs/bpf, or name a directory on one", dir.display());
    }
    Ok(())
}
