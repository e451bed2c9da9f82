//! Typed access to hash tables and arrays through bpf(2), many elements a call.

use std::io;
use std::marker::PhantomData;
use std::ops::ControlFlow;

use anyhow::{Context, Result};

use super::layout::Layout;
use super::sys::{Place, RawMap, bytes_of, bytes_of_mut, zeroed};

/// Elements read or written in one call.
pub const BATCH: usize = 4096;
/// More entries in one bucket of a hash table are not believed.
const LARGEST_BUCKET: usize = 1 << 20;

/// A map from `K` to `V`.
pub struct Table<K, V> {
    map: RawMap,
    name: &'static str,
    capacity: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: aya::Pod, V: aya::Pod> Table<K, V> {
    /// Takes a map whose layout was checked.
    pub fn new(map: RawMap, layout: &Layout) -> Result<Self> {
        anyhow::ensure!(
            map.key_size() == size_of::<K>() && map.value_size() == size_of::<V>(),
            "map {}: this agent reads keys of {} and values of {} bytes; the map has {layout}",
            layout.name,
            size_of::<K>(),
            size_of::<V>()
        );
        Ok(Self { map, name: layout.name, capacity: layout.max_entries, types: PhantomData })
    }

    /// The map itself.
    pub fn raw(&self) -> &RawMap {
        &self.map
    }

    /// A copy of the value of `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value: V = zeroed();
        let found = self.map.lookup(one(key), bytes_of_mut(std::slice::from_mut(&mut value)));
        Ok(found.with_context(|| format!("map {}: looking an entry up", self.name))?.then_some(value))
    }

    /// Sets the value of `key`.
    pub fn put(&self, key: &K, value: &V) -> Result<()> {
        self.map.update(one(key), one(value), 0).map_err(|e| self.write_error(e))
    }

    /// Sets the value of `key` unless it has one; says if it had none.
    pub fn insert(&self, key: &K, value: &V) -> Result<bool> {
        const NOEXIST: u64 = 1;
        match self.map.update(one(key), one(value), NOEXIST) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(self.write_error(e)),
        }
    }

    /// Removes `key`; says if there was one.
    pub fn remove(&self, key: &K) -> Result<bool> {
        self.map.delete(one(key)).with_context(|| format!("map {}: removing an entry", self.name))
    }

    /// Sets many entries.
    pub fn put_all(&self, keys: &[K], values: &[V]) -> Result<()> {
        for (k, v) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            self.map.update_batch(bytes_of(k), bytes_of(v), 0).map_err(|e| self.write_error(e))?;
        }
        Ok(())
    }

    /// Removes many entries; those that are not there are no fault.
    pub fn remove_all(&self, keys: &[K]) -> Result<()> {
        for keys in keys.chunks(BATCH) {
            let mut left = keys;
            while !left.is_empty() {
                let removed = self.map.delete_batch(bytes_of(left));
                let removed = removed.with_context(|| format!("map {}: removing entries", self.name))?;
                // It stops at the first that is not there.
                left = left.get(removed as usize + 1..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Removes all entries.
    pub fn clear(&self) -> Result<()> {
        let mut keys = Vec::new();
        self.for_each(|k, _| keys.push(k))?;
        self.remove_all(&keys)
    }

    /// Calls `f` on a copy of every entry. Those that come or go meanwhile may or may not be seen.
    pub fn for_each(&self, mut f: impl FnMut(K, V)) -> Result<()> {
        let mut cursor = Cursor::default();
        while !cursor.is_done() {
            self.scan(&mut cursor, BATCH, |k, v| {
                f(k, v);
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    }

    /// Calls `f` on copies of about `at_least` entries from `cursor` on, or on all that are left, or until it breaks. Gives
    /// how many were read.
    pub fn scan(&self, cursor: &mut Cursor, at_least: usize, mut f: impl FnMut(K, V) -> ControlFlow<()>) -> Result<usize> {
        let (mut k, mut v) = (zeroed::<K>(), zeroed::<V>());
        let seen = scan_raw(&self.map, cursor, at_least, |key, value| {
            bytes_of_mut(std::slice::from_mut(&mut k)).copy_from_slice(key);
            bytes_of_mut(std::slice::from_mut(&mut v)).copy_from_slice(value);
            f(k, v)
        });
        seen.with_context(|| format!("map {}: reading entries", self.name))
    }

    fn write_error(&self, e: io::Error) -> anyhow::Error {
        let what = match e.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => {
                format!("it is full ({} entries): start the agent with a larger one", self.capacity)
            }
            Some(libc::ENOMEM) => "the kernel has no memory for it: free some".to_owned(),
            _ => "the kernel refused it".to_owned(),
        };
        anyhow::Error::new(e).context(format!("map {}: writing an entry: {what}", self.name))
    }
}

/// How far a scan has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    at: Option<Place>,
    done: bool,
}

impl Cursor {
    /// Was everything seen?
    pub fn is_done(&self) -> bool {
        self.done
    }
}

/// [`Table::scan`] for a map of any types.
pub fn scan_raw(
    map: &RawMap,
    cursor: &mut Cursor,
    at_least: usize,
    mut f: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> io::Result<usize> {
    let (key_size, value_size) = (map.key_size(), map.value_size());
    let mut size = BATCH.min(at_least.max(1));
    let (mut keys, mut values) = (vec![0; size * key_size], vec![0; size * value_size]);
    let mut seen = 0;
    while seen < at_least && !cursor.done {
        let (n, next) = match map.lookup_batch(cursor.at, &mut keys, &mut values) {
            Ok(r) => r,
            // One bucket of the hash table holds more than that.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && size < LARGEST_BUCKET => {
                size *= 2;
                keys.resize(size * key_size, 0);
                values.resize(size * value_size, 0);
                continue;
            }
            Err(e) => return Err(e),
        };
        seen += n as usize;
        (cursor.at, cursor.done) = (next, next.is_none());
        for (k, v) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(n as usize) {
            if f(k, v).is_break() {
                return Ok(seen);
            }
        }
    }
    Ok(seen)
}

fn one<T: aya::Pod>(value: &T) -> &[u8] {
    bytes_of(std::slice::from_ref(value))
}
