//! Every file below a path: no symbolic link is followed, no other file system entered, whatever somebody changes meanwhile.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

/// Files and directories of one walk.
const MOST: u64 = 2_000_000;
/// Directories that wait.
const WAITING: usize = 100_000;
/// Directories within each other.
const DEEPEST: usize = 200;
/// Why nothing more is given, when that is not the walk's doing.
const STOPPED: &str = "the scan was stopped";

/// A file to scan, or what could not be.
#[derive(Debug)]
pub(super) struct Item {
    /// Where.
    pub(super) path: PathBuf,
    /// The file; or why it cannot be scanned.
    pub(super) file: Result<File, String>,
}

/// A walk over one path.
#[derive(Debug)]
pub(super) struct Walk {
    root: PathBuf,
    most: u64,
}

impl Walk {
    /// Over `root`: a file, or a directory with all that is in it.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), most: MOST }
    }

    /// Gives each file, and each thing that may have something to scan but cannot be. Ends early once `stop` is set, and says so.
    pub(super) fn run(&self, stop: &AtomicBool, mut give: impl FnMut(Item)) {
        let fail = |path: PathBuf, why: String| Item { path, file: Err(why) };
        let stopped = || stop.load(Ordering::Relaxed);
        if stopped() {
            return give(fail(self.root.clone(), STOPPED.to_owned()));
        }
        let root = match self.open_root() {
            Ok(root) => root,
            Err(error) => return give(fail(self.root.clone(), format!("{error:#}"))),
        };
        match root.metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(metadata) if metadata.is_file() => return give(Item { path: self.root.clone(), file: Ok(root) }),
            Ok(_) => return give(fail(self.root.clone(), "it is neither a file nor a directory".to_owned())),
            Err(error) => return give(fail(self.root.clone(), format!("looking at it: {error}"))),
        }
        let root = OwnedFd::from(root);
        // Paths below the root, which is the empty one.
        let mut waiting = vec![PathBuf::new()];
        let mut seen = 0;
        while let Some(directory) = waiting.pop() {
            let listed = self.list(&root, &directory, &mut |path, is_directory| {
                seen += 1;
                if stopped() {
                    return Err(STOPPED.to_owned());
                }
                if seen > self.most || is_directory && waiting.len() >= WAITING {
                    return Err(format!("there are more than {} files and directories", self.most));
                }
                match is_directory {
                    true if path.components().count() > DEEPEST => {
                        give(fail(self.root.join(path), format!("it is more than {DEEPEST} directories deep")));
                    }
                    true => waiting.push(path),
                    false => match below(&root, &path, OFlag::O_NONBLOCK) {
                        // Gone since, or replaced by a link.
                        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => {}
                        Err(errno) => give(fail(self.root.join(path), why(errno))),
                        Ok(file) => {
                            if File::metadata(&file).is_ok_and(|m| m.is_file()) {
                                give(Item { path: self.root.join(path), file: Ok(file) });
                            }
                        }
                    },
                }
                Ok(())
            });
            match listed {
                Ok(()) => {}
                Err(Stop::Here(why)) => give(fail(self.root.join(directory), why)),
                Err(Stop::All(why)) => return give(fail(self.root.clone(), why)),
            }
        }
    }

    fn open_root(&self) -> Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let root = open(&self.root, flags, Mode::empty()).context("opening it")?;
        // What is in these is not anybody's disk, and some of it never ends.
        let kind: FsType = fstatfs(&root).context("looking at its file system")?.filesystem_type();
        anyhow::ensure!(kind != PROC_SUPER_MAGIC && kind != SYSFS_MAGIC, "it is part of the kernel's own file systems");
        Ok(root.into())
    }

    /// Lists a directory: files and directories, but nothing else that has a name.
    fn list(
        &self,
        root: &OwnedFd,
        directory: &Path,
        each: &mut impl FnMut(PathBuf, bool) -> Result<(), String>,
    ) -> Result<(), Stop> {
        let own = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let opened = match below(root, own, OFlag::O_DIRECTORY) {
            Ok(opened) => opened,
            // Gone since, or replaced by something else.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(Stop::Here(why(errno))),
        };
        let here = |error: std::io::Error| Stop::Here(format!("listing it: {error}"));
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(here)? {
            let entry = entry.map_err(here)?;
            let kind = entry.file_type().map_err(here)?;
            if kind.is_dir() || kind.is_file() {
                each(directory.join(entry.file_name()), kind.is_dir()).map_err(Stop::All)?;
            }
        }
        Ok(())
    }
}

/// Why a directory was not listed to its end.
enum Stop {
    /// It cannot be.
    Here(String),
    /// Nothing more is looked at.
    All(String),
}

/// Opens what is below `root`, on the same file system, without following any link on the way.
fn below(root: &OwnedFd, path: &Path, more: OFlag) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | more;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(root, path, OpenHow::new().flags(flags).resolve(resolve)).map(File::from)
}

fn why(errno: Errno) -> String {
    match errno {
        Errno::EXDEV => "another file system is mounted there: name it as a path of its own".to_owned(),
        errno => format!("opening it: {errno}"),
    }
}

#[cfg(test)]
mod tests;
