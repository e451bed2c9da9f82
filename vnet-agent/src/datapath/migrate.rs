//! Moving everything to other maps: of another layout after an upgrade, or of other sizes.
//!
//! 1. The new programs are loaded with new maps (those that need no change are shared), and everything is copied: the old
//!    programs serve meanwhile.
//! 2. On each device a second link lets the new program see what reaches the endpoint, before the old one does: a reply
//!    finds its flow in the new maps or in the old ones.
//! 3. The link for what the endpoint sends gets the new program, between two packets. New flows are made in the new maps.
//! 4. When the last run of an old program has ended, flows that they made after the first copy are copied too, unless the
//!    new programs know them already. Then the old links go.
//!
//! Between 3 and 4 a packet of a flow that was made after 1 finds no entry. It is judged as the first packet was a moment
//! ago, by the same tables, and gets the same member. What is lost are counts: those of packets between 1 and 3, and
//! those that flow caches held. An agent that dies in between leaves all of it working; the next one goes on.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::{MapInfo, MapType};
#[cfg(not(feature = "previous-abi"))]
use vnet_common::addr::{Address, V4, V6};
use vnet_common::endpoint::FlowCount;
#[cfg(not(feature = "previous-abi"))]
use vnet_common::endpoint::{EndpointRow, ROW_1};
use vnet_common::flow::ABI;
#[cfg(not(feature = "previous-abi"))]
use vnet_common::flow::{FlowEntry, Rewrite};
#[cfg(not(feature = "previous-abi"))]
use vnet_common::map::{CONFIG_1, Config};

use super::batch::{BATCH, Cursor, scan_raw};
use super::layout::Layout;
use super::load::{Loaded, LoadedMap};
use super::mmap::Mapped;
use super::sys::{self, NO_EXIST, RawMap};

/// What was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Flow entries, two for each flow.
    pub entries: u64,
    /// Of those, entries that were made while the others were copied.
    pub late: u64,
}

/// What starts empty in the new layout.
const NOT_COPIED: [&str; 4] = ["CLOCK", "CACHE4", "CACHE6", "EVENTS"];
const FLOW_TABLES: [&str; 4] = ["FLOWS4", "FLOWS6", "HALF_OPEN4", "HALF_OPEN6"];

/// Appends the value of the new layout.
type Convert = fn(&[u8], &mut Vec<u8>);

/// One map to copy.
struct Step {
    from: RawMap,
    from_layout: Layout,
    to: RawMap,
    to_layout: Layout,
    convert: Option<Convert>,
}

/// A move, before and after the programs are replaced.
pub struct Migration {
    steps: Vec<Step>,
    /// `FLOW_COUNTS` before and after, and what was copied.
    counts: Option<(Mapped<FlowCount>, Mapped<FlowCount>, Vec<FlowCount>)>,
    moved: Moved,
}

impl Migration {
    /// Prepares the move of what is in `source`, of layout `abi`. Refuses what it could not do, before anything is changed.
    pub fn open(source: &Path, abi: u32, loaded: &Loaded) -> Result<Self> {
        let mut steps = Vec::new();
        for (name, map) in loaded.maps.iter().filter(|(name, _)| !NOT_COPIED.contains(name)) {
            let path = source.join(name);
            if path.exists() {
                steps.extend(Step::open(&path, name, abi, map)?);
            }
        }
        let mut counts = None;
        if let Some(s) = steps.iter().find(|s| s.to_layout.name == "FLOW_COUNTS") {
            let rows = s.from_layout.max_entries.min(s.to_layout.max_entries);
            let map = |m: &RawMap| Mapped::<FlowCount>::new(m.fd(), rows).context("mapping FLOW_COUNTS");
            counts = Some((map(&s.from)?, map(&s.to)?, Vec::new()));
        }
        Ok(Self { steps, counts, moved: Moved::default() })
    }

    /// Copies everything.
    pub fn copy(&mut self) -> Result<()> {
        if let Some((from, _, copied)) = &mut self.counts {
            *copied = (0..from.rows()).filter_map(|row| from.load(row)).collect();
        }
        for step in &self.steps {
            let n = step.copy()?;
            if FLOW_TABLES.contains(&step.to_layout.name) {
                self.moved.entries += n;
            }
        }
        Ok(())
    }

    /// Copies what the old programs did after [`Migration::copy`]. They must have ended.
    pub fn finish(mut self) -> Result<Moved> {
        for step in self.steps.iter().filter(|s| FLOW_TABLES.contains(&s.to_layout.name)) {
            self.moved.late += step.copy_new()?;
        }
        self.moved.entries += self.moved.late;
        if let Some((from, to, copied)) = &self.counts {
            for (row, old) in (0..).zip(copied) {
                let now = from.load(row).unwrap_or_default();
                for (word, delta) in
                    [now.created.wrapping_sub(old.created), now.removed.wrapping_sub(old.removed)].into_iter().enumerate()
                {
                    if let Some(w) = to.word32(row, word) {
                        w.fetch_add(delta, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(self.moved)
    }
}

impl Step {
    /// `None` if the map is used as it is.
    fn open(path: &Path, name: &'static str, abi: u32, map: &LoadedMap) -> Result<Option<Self>> {
        let what = || format!("opening the pinned map {}", path.display());
        let info = MapInfo::from_pin(path).with_context(what)?;
        if info.id() == map.id {
            return Ok(None);
        }
        let from_layout = Layout::of(name, &info)?;
        let (expected, convert) = conversion(&map.layout, abi)?;
        if !from_layout.compatible(&expected) {
            bail!(
                "the pinned map {} ({from_layout}) is not what layout {abi} says ({expected}): this agent cannot read it",
                path.display()
            );
        }
        let from =
            RawMap::new(sys::obj_get(path).with_context(what)?, from_layout.key_size as usize, from_layout.copied_value_size()?);
        Ok(Some(Self { from, from_layout, to: map.raw()?, to_layout: map.layout, convert }))
    }

    /// Copies every entry into the empty map; gives how many.
    fn copy(&self) -> Result<u64> {
        let (mut keys, mut values, mut n) = (Vec::new(), Vec::new(), 0);
        let mut cursor = Cursor::default();
        let name = self.to_layout.name;
        while !cursor.is_done() {
            self.scan(&mut cursor, |key, value| {
                keys.extend_from_slice(key);
                self.put_converted(value, &mut values);
            })?;
            self.refuse_beyond_end(&keys)?;
            if !keys.is_empty() {
                n += (keys.len() / self.to.key_size()) as u64;
                self.to
                    .update_batch(&keys, &values, 0)
                    .with_context(|| format!("map {name}: copying into the new one ({})", self.to_layout))?;
            }
            keys.clear();
            values.clear();
        }
        Ok(n)
    }

    /// Copies the entries whose keys the new map does not have; gives how many.
    fn copy_new(&self) -> Result<u64> {
        let (mut n, mut failed) = (0, None);
        let mut cursor = Cursor::default();
        while !cursor.is_done() {
            self.scan(&mut cursor, |key, value| {
                let mut converted = Vec::new();
                self.put_converted(value, &mut converted);
                match self.to.update(key, &converted, NO_EXIST) {
                    Ok(()) => n += 1,
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(e) => failed = Some(e),
                }
            })?;
        }
        if let Some(e) = failed {
            // The programs are replaced already: a flow that does not fit is one to log, no reason to stop serving.
            log::warn!("map {}: some flows of the last moment could not be moved: {e}", self.to_layout.name);
        }
        Ok(n)
    }

    /// Calls `f` on about a batch of entries; rows of arrays that are all zero are as good as not there.
    fn scan(&self, cursor: &mut Cursor, mut f: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let is_array = matches!(self.from_layout.kind, MapType::Array | MapType::PerCpuArray);
        let size = BATCH.min(self.from_layout.max_entries as usize);
        let seen = scan_raw(&self.from, cursor, size, |key, value| {
            if !is_array || value.iter().any(|b| *b != 0) {
                f(key, value);
            }
            ControlFlow::Continue(())
        });
        seen.with_context(|| format!("map {}: reading the old one", self.from_layout.name)).map(drop)
    }

    fn put_converted(&self, value: &[u8], out: &mut Vec<u8>) {
        match self.convert {
            Some(convert) => convert(value, out),
            None => out.extend_from_slice(value),
        }
    }

    fn refuse_beyond_end(&self, keys: &[u8]) -> Result<()> {
        if !matches!(self.to_layout.kind, MapType::Array | MapType::PerCpuArray) {
            return Ok(());
        }
        let rows = keys.as_chunks::<4>().0.iter().map(|k| u32::from_ne_bytes(*k));
        if let Some(row) = rows.filter(|row| *row >= self.to_layout.max_entries).max() {
            let (name, size) = (self.to_layout.name, self.to_layout.max_entries);
            bail!(
                "map {name}: row {row} is in use, and the new size is {size}; start the agent with a size of at least {}",
                row + 1
            );
        }
        Ok(())
    }
}

/// What a map looked like in layout `abi`, and how its values become those of today.
#[cfg(not(feature = "previous-abi"))]
fn conversion(now: &Layout, abi: u32) -> Result<(Layout, Option<Convert>)> {
    match (abi, now.name) {
        (ABI, _) => Ok((*now, None)),
        (1, "FLOWS4" | "HALF_OPEN4") => {
            Ok((Layout { value_size: size_of::<Entry1<V4, 0>>() as u32, ..*now }, Some(entry_from_1::<V4, 0>)))
        }
        (1, "FLOWS6" | "HALF_OPEN6") => {
            Ok((Layout { value_size: size_of::<Entry1<V6, 4>>() as u32, ..*now }, Some(entry_from_1::<V6, 4>)))
        }
        (1, "ENDPOINTS" | "ENDPOINTS_MORE") => {
            Ok((Layout { value_size: ROW_1 as u32, ..*now }, Some(lengthened::<{ size_of::<EndpointRow>() - ROW_1 }>)))
        }
        (1, "CONFIG") => {
            Ok((Layout { value_size: CONFIG_1 as u32, ..*now }, Some(lengthened::<{ size_of::<Config>() - CONFIG_1 }>)))
        }
        (1, _) => Ok((*now, None)),
        _ => bail!("this agent (map layout {ABI}) cannot read layout {abi}: upgrade by way of a version with layout {}", ABI - 1),
    }
}

/// There is no layout before the first.
#[cfg(feature = "previous-abi")]
fn conversion(now: &Layout, abi: u32) -> Result<(Layout, Option<Convert>)> {
    if abi != ABI {
        bail!("this agent (map layout {ABI}) cannot read layout {abi}");
    }
    Ok((*now, None))
}

/// What was added at the end of a row is 0.
#[cfg(not(feature = "previous-abi"))]
fn lengthened<const MORE: usize>(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(value);
    out.extend_from_slice(&[0; MORE]);
}

/// [`FlowEntry`] in layout 1: it had no `created` and no `rule`. `PAD` bytes fill it up to a multiple of eight.
#[cfg(not(feature = "previous-abi"))]
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry1<A, const PAD: usize> {
    packets: u64,
    bytes: u64,
    rewrite: Rewrite<A>,
    generation: u32,
    member: u32,
    serial: u32,
    group: u32,
    last_seen: u32,
    flags: u16,
    tcp: u8,
    pad: u8,
    entry_pad: [u8; PAD],
}

#[cfg(not(feature = "previous-abi"))]
const _: () = assert!(size_of::<Entry1<V4, 0>>() == 48 && size_of::<Entry1<V6, 4>>() == 64);
// SAFETY: repr(C) over integers and bytes, without padding (sizes asserted above), every bit pattern valid.
#[cfg(not(feature = "previous-abi"))]
unsafe impl<A: Address, const PAD: usize> aya::Pod for Entry1<A, PAD> {}

#[cfg(not(feature = "previous-abi"))]
fn entry_from_1<A: Address, const PAD: usize>(value: &[u8], out: &mut Vec<u8>) {
    let mut old: Entry1<A, PAD> = sys::zeroed();
    sys::bytes_of_mut(std::slice::from_mut(&mut old)).copy_from_slice(value);
    let new = FlowEntry::<A> {
        packets: old.packets,
        bytes: old.bytes,
        rewrite: old.rewrite,
        generation: old.generation,
        member: old.member,
        serial: old.serial,
        group: old.group,
        last_seen: old.last_seen,
        // The first moment that is known of.
        created: old.last_seen,
        rule: 0,
        flags: old.flags,
        tcp: old.tcp,
        pad: 0,
        entry_pad: A::EntryPad::default(),
    };
    out.extend_from_slice(sys::bytes_of(std::slice::from_ref(&new)));
}
