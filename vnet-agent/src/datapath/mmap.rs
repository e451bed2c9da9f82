//! Array maps in the agent's own memory: words are read and written whole, atomically with respect to the programs.
//!
//! All of the agent's `unsafe` about mapped memory is in this file.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::sys::{bytes_of, bytes_of_mut, zeroed};

/// The rows of an array map that was made with `BPF_F_MMAPABLE`, or a window of them.
///
/// Rows are copied word by word (8 bytes), each of which is whole. A row of several words can be read half old and half
/// new, by the agent and by a program: what must change at once has to be in one word.
pub struct Mapped<T> {
    base: NonNull<u8>,
    /// Bytes mapped.
    len: usize,
    /// Bytes from `base` to the first row.
    skip: usize,
    rows: u32,
    row: PhantomData<T>,
}

// SAFETY: all access is through atomics.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: aya::Pod> Mapped<T> {
    const STRIDE: usize = size_of::<T>();
    const WHOLE_WORDS: () = assert!(size_of::<T>() != 0 && size_of::<T>().is_multiple_of(8));

    /// Maps all `rows` rows of a map.
    pub fn new(map: BorrowedFd<'_>, rows: u32) -> io::Result<Self> {
        Self::window(map, 0, rows)
    }

    /// Maps `rows` rows from `first` on; they are then counted from 0. The kernel refuses what the map does not have.
    pub fn window(map: BorrowedFd<'_>, first: u32, rows: u32) -> io::Result<Self> {
        let () = Self::WHOLE_WORDS;
        let page =
            nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.and_then(|p| usize::try_from(p).ok()).unwrap_or(4096);
        let start = first as usize * Self::STRIDE;
        let offset = start / page * page;
        let len = (start - offset + rows as usize * Self::STRIDE).next_multiple_of(page);
        let offset_arg = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_raw_fd());
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, offset_arg) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, skip: start - offset, rows, row: PhantomData })
    }

    /// How many rows there are.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    fn word(&self, row: u32, word: usize) -> Option<&AtomicU64> {
        if row >= self.rows || word >= Self::STRIDE / 8 {
            return None;
        }
        let at = self.skip + row as usize * Self::STRIDE + word * 8;
        // SAFETY: within the mapping, by the check above and by how `len` was computed.
        let p = unsafe { self.base.add(at) };
        // SAFETY: aligned (`skip` and the stride are multiples of 8, the base is a page), alive as long as `self`, and only
        // ever accessed atomically from this process.
        Some(unsafe { AtomicU64::from_ptr(p.cast::<u64>().as_ptr()) })
    }

    /// A 64-bit word of a row.
    pub fn word64(&self, row: u32, word: usize) -> Option<&AtomicU64> {
        self.word(row, word)
    }

    /// A 32-bit word of a row.
    pub fn word32(&self, row: u32, word: usize) -> Option<&AtomicU32> {
        let p: *const AtomicU32 = std::ptr::from_ref(self.word(row, word / 2)?).cast();
        // SAFETY: the 64-bit word holds two aligned 32-bit words.
        let p = unsafe { p.add(word % 2) };
        // SAFETY: as in `word`; the two sizes of atomics alias each other, which the hardware (and the programs) allow.
        Some(unsafe { &*p })
    }

    /// Reads a row; `None` if there is none.
    pub fn load(&self, row: u32) -> Option<T> {
        let mut value: T = zeroed();
        for (i, bytes) in bytes_of_mut(std::slice::from_mut(&mut value)).chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.word(row, i)?.load(Ordering::Relaxed).to_ne_bytes());
        }
        Some(value)
    }

    /// Writes a row, its first word last: in every row type that word says whether the row counts. Says if there is one.
    pub fn store(&self, row: u32, value: &T) -> bool {
        self.store_words(row, value, (0..Self::STRIDE / 8).rev())
    }

    /// Writes these words of a row, one after the other. Says if there are such.
    pub fn store_words(&self, row: u32, value: &T, words: impl IntoIterator<Item = usize>) -> bool {
        let bytes = bytes_of(std::slice::from_ref(value)).as_chunks::<8>().0;
        for i in words {
            let (Some(word), Some(bytes)) = (self.word(row, i), bytes.get(i)) else { return false };
            fence(Ordering::Release);
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        true
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping; every reference into it borrowed `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
