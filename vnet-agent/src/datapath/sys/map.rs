//! Maps as bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{bpf, raw};

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;

/// `BPF_NOEXIST`: insert, but change nothing that is there.
pub const NO_EXIST: u64 = 1;

#[repr(C)]
struct ElemAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where in a map a scan is: only the kernel knows what it means.
pub type Place = [u64; 8];

/// A map whose element sizes are known; every access checks the buffers against them.
pub struct RawMap {
    fd: OwnedFd,
    key_size: usize,
    /// As the kernel copies values: rounded up to 8 bytes and one for each CPU in per-CPU maps.
    value_size: usize,
}

impl RawMap {
    /// Takes a map. The sizes must be the map's own: [`super::layout`] reads them from the kernel.
    pub fn new(fd: OwnedFd, key_size: usize, value_size: usize) -> Self {
        Self { fd, key_size, value_size }
    }

    /// The map's file descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.key_size
    }

    /// Bytes of a value, as the kernel copies it.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    fn elem(&self, command: u32, key: &[u8], value: Option<*mut u8>, flags: u64) -> io::Result<()> {
        assert!(key.len() == self.key_size, "the key has not the map's size");
        let value = value.map_or(0, |v| v as u64);
        let mut attr = ElemAttr { map: raw(self.fd()), pad: 0, key: key.as_ptr() as u64, value, flags };
        // SAFETY: the key has the map's key size, and the callers check the value's; both outlive the call.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    /// Copies the value of `key` out; says if there is one.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert!(value.len() == self.value_size, "the value has not the map's size");
        found(self.elem(MAP_LOOKUP_ELEM, key, Some(value.as_mut_ptr()), 0))
    }

    /// Sets the value of `key`; `flags` may be [`NO_EXIST`].
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        assert!(value.len() == self.value_size, "the value has not the map's size");
        self.elem(MAP_UPDATE_ELEM, key, Some(value.as_ptr().cast_mut()), flags)
    }

    /// Removes `key`; says if there was one.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        found(self.elem(MAP_DELETE_ELEM, key, None, 0))
    }

    fn count(&self, keys: &[u8], values: &[u8]) -> u32 {
        let n = keys.len() / self.key_size;
        assert!(keys.len() == n * self.key_size && values.len() == n * self.value_size, "not as many keys as values");
        n as u32
    }

    /// Copies as many elements as the buffers hold, from `cursor` (of the call before; `None` at first) on. Gives how many,
    /// and the next cursor unless that was all. `ENOSPC`: the buffers do not hold one bucket of the hash table.
    pub fn lookup_batch(&self, cursor: Option<Place>, keys: &mut [u8], values: &mut [u8]) -> io::Result<(u32, Option<Place>)> {
        let count = self.count(keys, values);
        assert!(self.key_size <= size_of::<Place>(), "a key is longer than a place in a map");
        let (cursor_in, mut next) = (cursor.unwrap_or_default(), Place::default());
        let next_at: *mut Place = &mut next;
        let mut attr = BatchAttr {
            in_batch: if cursor.is_some() { &raw const cursor_in as u64 } else { 0 },
            out_batch: next_at as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            map: raw(self.fd()),
            ..BatchAttr::default()
        };
        // SAFETY: the buffers hold `count` elements; a cursor of a hash table is a 32-bit word, others are a key, which is
        // not longer than a place; all outlive the call.
        match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => Ok((attr.count, Some(next))),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count, None)),
            Err(e) => Err(e),
        }
    }

    /// Removes elements, up to the first that is not there; gives how many.
    pub fn delete_batch(&self, keys: &[u8]) -> io::Result<u32> {
        let count = (keys.len() / self.key_size) as u32;
        assert!(keys.len() == count as usize * self.key_size, "a part of a key is left");
        let mut attr = BatchAttr { keys: keys.as_ptr() as u64, count, map: raw(self.fd()), ..BatchAttr::default() };
        // SAFETY: the buffer holds `count` keys and outlives the call.
        match unsafe { bpf(MAP_DELETE_BATCH, &mut attr) } {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
            _ => Ok(attr.count),
        }
    }

    /// Sets many elements.
    pub fn update_batch(&self, keys: &[u8], values: &[u8], flags: u64) -> io::Result<()> {
        let count = self.count(keys, values);
        let (keys, values) = (keys.as_ptr() as u64, values.as_ptr() as u64);
        let mut attr = BatchAttr { keys, values, count, map: raw(self.fd()), elem_flags: flags, ..BatchAttr::default() };
        // SAFETY: the buffers hold `count` elements and outlive the call.
        unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.map(drop)
    }
}

fn found(r: io::Result<()>) -> io::Result<bool> {
    match r {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}
