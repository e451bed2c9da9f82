//! Counters: arrays with a row for each CPU.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail, ensure};

use super::batch::{BATCH, Cursor, scan_raw};
use super::layout::{Layout, cpus};
use super::sys::{RawMap, bytes_of, bytes_of_mut, zeroed};

/// A per-CPU array.
pub struct PerCpu<T> {
    map: RawMap,
    name: &'static str,
    cpus: usize,
    row: PhantomData<fn() -> T>,
}

impl<T: aya::Pod> PerCpu<T> {
    /// Takes a map whose layout was checked.
    pub fn new(map: RawMap, layout: &Layout) -> Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let (name, cpus) = (layout.name, cpus()? as usize);
        ensure!(
            map.value_size() == cpus * size_of::<T>(),
            "map {name}: this agent reads {} bytes a CPU; the map has {layout}",
            size_of::<T>()
        );
        Ok(Self { map, name, cpus, row: PhantomData })
    }

    /// The row of each CPU. They are read while programs write them: each word is as it was at some moment.
    pub fn get(&self, row: u32) -> Result<Vec<T>> {
        let mut rows = vec![zeroed::<T>(); self.cpus];
        let found = self.map.lookup(&row.to_ne_bytes(), bytes_of_mut(&mut rows));
        if !found.with_context(|| format!("map {}: reading row {row}", self.name))? {
            bail!("map {} has no row {row}", self.name);
        }
        Ok(rows)
    }

    /// Calls `f` on the first `count` rows, in their order, each with one value for each CPU.
    pub fn for_each(&self, count: u32, mut f: impl FnMut(&[T])) -> Result<()> {
        let (mut rows, mut left) = (vec![zeroed::<T>(); self.cpus], count);
        let mut cursor = Cursor::default();
        while left > 0 && !cursor.is_done() {
            let read = scan_raw(&self.map, &mut cursor, BATCH.min(left as usize), |_, value| {
                bytes_of_mut(&mut rows).copy_from_slice(value);
                f(&rows);
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            read.with_context(|| format!("map {}: reading {count} rows", self.name))?;
        }
        ensure!(left == 0, "map {} has no {count} rows", self.name);
        Ok(())
    }

    /// Sets a row to 0 on every CPU.
    pub fn reset(&self, row: u32) -> Result<()> {
        let zeros = vec![zeroed::<T>(); self.cpus];
        self.map.update(&row.to_ne_bytes(), bytes_of(&zeros), 0).with_context(|| format!("map {}: clearing row {row}", self.name))
    }
}
