//! Loading the object: maps that are found pinned are used, others are made; programs are verified. Nothing is pinned or
//! attached here, so that a failure leaves no trace.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use aya::maps::Map;
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;

use super::attach::{Program, Programs};
use super::layout::{Layout, Sizes};
use super::sys::RawMap;

/// Writes what the programs log to the agent's log, when asked to ([`EbpfLogger::flush`]). Its file descriptor says when there
/// is something.
pub type Logger = EbpfLogger<&'static dyn log::Log>;

/// A map and what it looks like.
pub struct LoadedMap {
    /// The map.
    pub fd: OwnedFd,
    /// Its number in the kernel.
    pub id: u32,
    /// Its layout according to the kernel.
    pub layout: Layout,
}

impl LoadedMap {
    /// A handle of its own for access.
    pub fn raw(&self) -> Result<RawMap> {
        let fd = self.fd.try_clone().with_context(|| format!("map {}: duplicating its handle", self.layout.name))?;
        Ok(RawMap::new(fd, self.layout.key_size as usize, self.layout.copied_value_size()?))
    }
}

/// The object in the kernel.
pub struct Loaded {
    /// Every map of [`super::layout::layouts`].
    pub maps: BTreeMap<&'static str, LoadedMap>,
    /// The programs to attach.
    pub programs: Programs,
    /// The program that reads the kernel's ticks.
    pub clock: Program,
    /// Gives what the programs log; only if that was asked for.
    pub logger: Option<Logger>,
}

/// Loads `object`; maps in `pins` are taken from there.
pub fn load(
    object: &[u8],
    wanted: &[Layout],
    pins: &BTreeMap<&'static str, PathBuf>,
    sizes: &Sizes,
    trace: bool,
) -> Result<Loaded> {
    let (on, masks, trace_on) =
        (u32::from(sizes.cache[0] != 0), sizes.cache.map(|slots| slots.saturating_sub(1)), u32::from(trace));
    let mut loader = EbpfLoader::new();
    loader
        .override_global("CACHE_ON", &on, true)
        .override_global("CACHE_MASK", &masks[0], true)
        .override_global("CACHE_MASK6", &masks[1], true)
        .override_global("TRACE", &trace_on, true);
    for layout in wanted {
        loader.map_max_entries(layout.name, layout.max_entries);
        if let Some(path) = pins.get(layout.name) {
            loader.map_pin_path(layout.name, path.as_path());
        }
    }
    let mut ebpf = loader.load(object).context("loading the eBPF object into the kernel")?;
    let maps = wanted.iter().map(|l| Ok((l.name, map(&ebpf, l)?))).collect::<Result<_>>()?;
    let programs = Programs { from_endpoint: program(&mut ebpf, "vm_egress")?, to_endpoint: program(&mut ebpf, "vm_ingress")? };
    let clock = program(&mut ebpf, "clock")?;
    let logger = trace.then(|| EbpfLogger::init(&mut ebpf)).transpose().context("preparing the programs' log")?;
    Ok(Loaded { maps, programs, clock, logger })
}

fn map(ebpf: &Ebpf, wanted: &Layout) -> Result<LoadedMap> {
    let name = wanted.name;
    let data = match ebpf.map(name) {
        Some(Map::Array(m) | Map::HashMap(m) | Map::LruHashMap(m) | Map::PerCpuArray(m) | Map::LpmTrie(m) | Map::RingBuf(m)) => m,
        Some(_) => {
            bail!("map {name} of the eBPF object is of another type than this agent expects: they were not built together")
        }
        None => bail!("the eBPF object has no map {name}: it and this agent were not built together"),
    };
    let info = data.info().with_context(|| format!("map {name}: asking the kernel about it"))?;
    let layout = Layout::of(name, &info)?;
    if layout != *wanted {
        bail!("map {name} of the eBPF object ({layout}) is not what this agent expects ({wanted}): they were not built together");
    }
    let fd = data.fd().as_fd().try_clone_to_owned().with_context(|| format!("map {name}: duplicating its handle"))?;
    Ok(LoadedMap { fd, id: info.id(), layout })
}

fn program(ebpf: &mut Ebpf, name: &str) -> Result<Program> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the eBPF object has no program {name}: it and this agent were not built together"))?;
    let program: &mut SchedClassifier = program.try_into().with_context(|| format!("program {name} is of another type"))?;
    program.load().with_context(|| format!("loading program {name}: the kernel refused it"))?;
    let id = program.info().with_context(|| format!("program {name}: asking the kernel about it"))?.id();
    let fd = program.fd().with_context(|| format!("program {name}: its handle"))?;
    let fd = fd.as_fd().try_clone_to_owned().with_context(|| format!("program {name}: duplicating its handle"))?;
    Ok(Program { fd, id })
}
