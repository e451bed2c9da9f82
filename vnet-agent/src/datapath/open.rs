//! Opening the datapath: what an agent before this one left is taken over, without a packet noticing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vnet_common::flow::ABI;

use super::attach::{self, Foreign, Tcx};
use super::layout::{Layout, Sizes, layouts};
use super::load::{Loaded, load};
use super::maps::Maps;
use super::migrate::{Migration, Moved};
use super::pins::{self, LINKS, Root};
use super::sys::{self, Order};
use super::{Datapath, clock, kernel};

/// How to open the datapath.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to pin: a directory of the agent's own, on a BPF file system. Made if need be.
    pub pins: PathBuf,
    /// A file to lock, so that no two agents use one directory.
    pub lock: PathBuf,
    /// The eBPF object.
    pub object: Cow<'static, [u8]>,
    /// How much the maps hold.
    pub sizes: Sizes,
    /// Where among other programs ours go on a device.
    pub order: Order,
    /// What becomes of devices on which programs of others run before ours.
    pub foreign: Foreign,
    /// Let the programs log each verdict.
    pub trace: bool,
    /// Start anew where a newer agent was at work; its flows are lost.
    pub discard_newer: bool,
}

/// Where the datapath came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There was none.
    Fresh,
    /// An agent of this layout left it.
    Adopted,
    /// It was moved from there.
    Migrated {
        /// The layout it had.
        abi: u32,
        /// What was moved.
        moved: Moved,
    },
}

/// What was found and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// Where the datapath came from.
    pub origin: Origin,
    /// The devices on which programs were replaced.
    pub devices: Vec<u32>,
    /// Things that an operator may want to know.
    pub notes: Vec<String>,
}

impl Datapath {
    /// Opens the datapath.
    ///
    /// # Errors
    /// Says what was being done and why it failed. What served packets before serves them still.
    pub fn open(options: &Options) -> Result<(Self, OpenReport)> {
        kernel::check(&options.pins)?;
        options.sizes.check()?;
        let root = Root::take(&options.pins, &options.lock)?;
        root.remove_retired()?;
        let mut notes = Vec::new();
        refuse_newer(&root, options, &mut notes)?;
        let wanted = layouts(&options.sizes)?;
        let (loaded, origin, devices) = match plan(&root, &wanted)? {
            Plan::Adopt => adopt(&root, options, &wanted)?,
            Plan::Fresh => fresh(&root, options, &wanted)?,
            Plan::Migrate { source, abi } => migrate(&root, options, wanted, (&source, abi), &mut notes)?,
        };
        remove_older(&root, &mut notes)?;
        let Loaded { maps, programs, clock, logger } = loaded;
        let tcx = Tcx::new(root.complete(ABI).join(LINKS), programs, options.order, options.foreign);
        let maps = Maps::new(&maps, options.sizes.cache)?;
        let clock = clock::Clock::new(clock)?;
        let (logger, object, sizes) = (std::sync::Mutex::new(logger), options.object.clone(), options.sizes.clone());
        Ok((Self { maps, tcx, clock, logger, root, object, sizes }, OpenReport { origin, devices, notes }))
    }
}

enum Plan {
    Adopt,
    Fresh,
    Migrate { source: PathBuf, abi: u32 },
}

fn refuse_newer(root: &Root, options: &Options, notes: &mut Vec<String>) -> Result<()> {
    let survey = root.survey()?;
    let newer = survey
        .complete
        .iter()
        .map(|abi| (*abi, root.complete(*abi)))
        .chain(survey.next.iter().map(|abi| (*abi, root.next(*abi))));
    for (abi, dir) in newer.filter(|(abi, _)| *abi > ABI) {
        if !options.discard_newer {
            bail!(
                "{} was left by a newer agent (map layout {abi}; this one has {ABI}): run that version, or let this one start anew \
                 with --discard-newer, which drops the flows that are in it",
                dir.display()
            );
        }
        let devices = remove_all(&dir)?;
        notes.push(format!("discarded {} with the programs on {} devices", dir.display(), devices.len()));
    }
    Ok(())
}

/// What is still there of older layouts after one of them was moved serves nobody.
fn remove_older(root: &Root, notes: &mut Vec<String>) -> Result<()> {
    let survey = root.survey()?;
    let older = survey
        .complete
        .iter()
        .map(|abi| (*abi, root.complete(*abi)))
        .chain(survey.next.iter().map(|abi| (*abi, root.next(*abi))));
    for (_, dir) in older.filter(|(abi, _)| *abi < ABI) {
        remove_all(&dir)?;
        notes.push(format!("removed {}, left by an older agent", dir.display()));
    }
    Ok(())
}

/// Takes the programs off and removes the maps of a directory; gives the devices.
pub(super) fn remove_all(dir: &Path) -> Result<Vec<u32>> {
    let devices = attach::detach_all(&dir.join(LINKS))?;
    pins::remove_maps(dir)?;
    Ok(devices)
}

fn plan(root: &Root, wanted: &[Layout]) -> Result<Plan> {
    let survey = root.survey()?;
    let own = survey.complete.contains(&ABI);
    let unfinished = survey.next.contains(&ABI);
    if own {
        let source = root.complete(ABI);
        check_compatible(&source, wanted)?;
        if !unfinished && same_sizes(&source, wanted)? {
            return Ok(Plan::Adopt);
        }
        return Ok(Plan::Migrate { source, abi: ABI });
    }
    match survey.complete.iter().rev().find(|abi| **abi < ABI) {
        Some(abi) if survey.next.contains(abi) => bail!(
            "an agent of map layout {abi} was stopped while it changed the sizes of its maps: start it once more, so that it ends that"
        ),
        Some(abi) => Ok(Plan::Migrate { source: root.complete(*abi), abi: *abi }),
        // The source was removed, and only the new name is missing.
        None if unfinished && wanted.iter().all(|l| root.next(ABI).join(l.name).exists()) => {
            root.finish(ABI)?;
            plan(root, wanted)
        }
        None => Ok(Plan::Fresh),
    }
}

/// Refuses maps that do not look as this layout says: copying them could only guess.
fn check_compatible(dir: &Path, wanted: &[Layout]) -> Result<()> {
    for layout in wanted {
        let path = dir.join(layout.name);
        if let Some(found) = Layout::pinned(layout.name, &path)?
            && !found.compatible(layout)
        {
            bail!(
                "the pinned map {} ({found}) is not what layout {ABI} says ({layout}): it was changed without a new layout number. \
                 Run the agent that made it, or take everything off with `vnet-agent detach` and start anew",
                path.display()
            );
        }
    }
    Ok(())
}

fn same_sizes(dir: &Path, wanted: &[Layout]) -> Result<bool> {
    for layout in wanted {
        if Layout::pinned(layout.name, &dir.join(layout.name))?.as_ref() != Some(layout) {
            return Ok(false);
        }
    }
    Ok(true)
}

type Opened = (Loaded, Origin, Vec<u32>);

fn adopt(root: &Root, options: &Options, wanted: &[Layout]) -> Result<Opened> {
    let dir = root.complete(ABI);
    let found = wanted.iter().map(|l| (l.name, dir.join(l.name))).collect();
    let loaded = load(&options.object, wanted, &found, &options.sizes, options.trace)?;
    let (loaded, devices) = with_links(loaded, &dir, options, Tcx::adopt)?;
    Ok((loaded, Origin::Adopted, devices))
}

/// Does something with the links that are pinned in a directory of maps, for the loaded programs.
fn with_links<T>(mut loaded: Loaded, dir: &Path, options: &Options, f: impl FnOnce(&Tcx) -> Result<T>) -> Result<(Loaded, T)> {
    let tcx = Tcx::new(dir.join(LINKS), loaded.programs, options.order, options.foreign);
    let done = f(&tcx)?;
    loaded.programs = tcx.into_programs();
    Ok((loaded, done))
}

fn fresh(root: &Root, options: &Options, wanted: &[Layout]) -> Result<Opened> {
    let next = root.next(ABI);
    if next.exists() {
        pins::remove_maps(&next)?;
    }
    let loaded = load(&options.object, wanted, &BTreeMap::new(), &options.sizes, options.trace)?;
    pin_maps(&loaded, &next)?;
    root.finish(ABI)?;
    Ok((loaded, Origin::Fresh, Vec::new()))
}

fn pin_maps(loaded: &Loaded, dir: &Path) -> Result<()> {
    let links = dir.join(LINKS);
    fs::create_dir_all(&links).with_context(|| format!("making {}", links.display()))?;
    for (name, map) in &loaded.maps {
        let path = dir.join(name);
        if !path.exists() {
            sys::obj_pin(map.fd.as_fd(), &path).with_context(|| format!("pinning map {}", path.display()))?;
        }
    }
    Ok(())
}

/// See [`migrate`](super::migrate) for what is moved, and in which order.
fn migrate(
    root: &Root,
    options: &Options,
    mut wanted: Vec<Layout>,
    source: (&Path, u32),
    notes: &mut Vec<String>,
) -> Result<Opened> {
    let (source, abi) = source;
    let next = root.next(ABI);
    let resumed = pins::has_links(&next);
    let mut sizes = options.sizes.clone();
    if resumed {
        notes.push(format!("going on with the move from {} that an agent before this one began", source.display()));
        sizes = adopt_sizes(&next, &mut wanted, sizes)?;
    } else if next.exists() {
        pins::remove_maps(&next)?;
    }
    let found = pins_to_use(if resumed { &next } else { source }, abi == ABI || resumed, &wanted)?;
    let loaded = load(&options.object, &wanted, &found, &sizes, options.trace)?;
    let mut migration = Migration::open(source, abi, &loaded)?;
    pin_maps(&loaded, &next)?;
    if !resumed && let Err(e) = migration.copy() {
        pins::remove_maps(&next)?;
        return Err(e.context(format!("moving {} to layout {ABI}; it serves on as it is", source.display())));
    }
    let old_links = source.join(LINKS);
    let (loaded, (devices, moved)) = with_links(loaded, &next, options, |tcx| {
        // Those that an agent before this one has moved already, then the others.
        let mut devices = tcx.adopt()?;
        devices.append(&mut tcx.begin_take_over(&old_links)?);
        sys::wait_for_programs();
        let moved = migration.finish()?;
        tcx.end_take_over(&old_links)?;
        devices.sort_unstable();
        devices.dedup();
        Ok((devices, moved))
    })?;
    root.retire(abi)?;
    root.finish(ABI)?;
    root.remove_retired()?;
    Ok((loaded, Origin::Migrated { abi, moved }, devices))
}

/// A move that was begun is finished with the sizes that it was begun with.
fn adopt_sizes(next: &Path, wanted: &mut [Layout], mut sizes: Sizes) -> Result<Sizes> {
    let cpus = super::layout::cpus()?;
    for layout in wanted {
        if let Some(found) = Layout::pinned(layout.name, &next.join(layout.name))? {
            layout.max_entries = found.max_entries;
            match layout.name {
                "CACHE4" if sizes.cache[0] != 0 => sizes.cache[0] = found.max_entries / cpus,
                "CACHE6" if sizes.cache[1] != 0 => sizes.cache[1] = found.max_entries / cpus,
                _ => {}
            }
        }
    }
    Ok(sizes)
}

/// The maps of `dir` that can be used as they are.
fn pins_to_use(dir: &Path, same_abi: bool, wanted: &[Layout]) -> Result<BTreeMap<&'static str, PathBuf>> {
    let mut pins = BTreeMap::new();
    for layout in wanted.iter().filter(|_| same_abi) {
        let path = dir.join(layout.name);
        if Layout::pinned(layout.name, &path)?.as_ref() == Some(layout) {
            pins.insert(layout.name, path);
        }
    }
    Ok(pins)
}
