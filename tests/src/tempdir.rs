//! Temporary directories.

use anyhow::{Context as _, Result};
use nix::sys::statvfs::statvfs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Followed by the process and a number.
const PREFIX: &str = "vnet-";

/// What is here is in memory.
const MEMORY: &str = "/dev/shm";

/// A directory that is removed with this value.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one, and removes those of processes that were killed before they could.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        Self::make(&std::env::temp_dir())
    }

    /// The same in memory, for a program that waits for the disk each time it writes; on disk if there is no such room.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn in_memory() -> Result<Self> {
        // What programs reserve for their logs counts. Containers have 64 MiB, unless they were told otherwise.
        const ROOM: u64 = 2 << 30;
        let has_room = statvfs(MEMORY).is_ok_and(|fs| fs.blocks_available() * fs.fragment_size() >= ROOM);
        if has_room { Self::make(Path::new(MEMORY)) } else { Self::new() }
    }

    fn make(parent: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_of(|process| !Path::new(&format!("/proc/{process}")).exists());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    /// Removes all of this process, for one that has been told to end at once.
    pub fn remove_all() {
        remove_of(|process| process == std::process::id());
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it and gives its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

/// Removes those of the processes that are meant.
fn remove_of(meant: impl Fn(u32) -> bool) {
    let entries = [std::env::temp_dir(), MEMORY.into()].into_iter().filter_map(|parent| std::fs::read_dir(parent).ok());
    for entry in entries.flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok());
        if process.is_some_and(&meant) {
            // Another process may be removing it too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
