//! A directory whose files are read once they are complete, and then removed.
//!
//! A file is complete when it was closed after writing, or moved here. Before it is read it gets a name of its own, so that what
//! somebody puts in its place meanwhile is another file, with its own turn; those that a dead agent left under such names come
//! first. What is wrong is kept in the folder `rejected`, with the reason beside it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::acl::Held;
use super::ending;
use super::json::{self, MOST};
use super::senders::Senders;
use super::state::Source;
use super::trial;
use crate::expression::Variables;

/// How the name of the file that is being read begins. The rest is its own, and nobody can guess it to have something there before.
const TAKEN: &str = ".vnet-taken";
/// The file by which a directory is known as one whose files are the agent's to read and remove. Hidden, like the one above.
const MARKER: &str = ".vnet-source";
/// The folder of those that were of no use.
const REJECTED: &str = "rejected";
/// Files in it, with their reasons.
const KEPT: usize = 1000;
/// A file that was there before the agent may still be written: not before it has been left alone for so long.
const QUIET: Duration = Duration::from_secs(2);

/// A directory that is watched. Ends with this value.
pub(super) struct Watcher {
    path: PathBuf,
    /// Device and inode: what somebody has put at the path since is another.
    instance: (u64, u64),
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    users: Vec<u32>,
}

struct Stop {
    wake: EventFd,
    stopping: AtomicBool,
}

impl Watcher {
    /// Begins to watch the directory at `path`. It is made, for root and the source's users, if it is not there.
    ///
    /// # Errors
    /// It cannot be made or watched, or has somebody else's files in it.
    pub(super) fn start(path: &Path, source: Arc<Source>) -> Result<Self> {
        let users = source.settings().senders.uids.clone();
        make(path, &users)?;
        let directory = Directory::open(path, source)?;
        directory.adopt()?;
        let instance = instance(&itself(&directory.own)).context("looking at it")?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("making an event to end it by")?;
        let stop = Arc::new(Stop { wake, stopping: AtomicBool::new(false) });
        let seen = Arc::clone(&stop);
        let run = move || {
            if let Err(error) = directory.run(&seen) {
                directory.source.complain(format!("watching {}: {error:#}", directory.path.display()));
            }
        };
        let thread = std::thread::Builder::new().name("tag-directory".to_owned()).spawn(run).context("starting its thread")?;
        Ok(Self { path: path.to_owned(), instance, stop, thread: Some(thread), users })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The users who may put files there are others now.
    pub(super) fn open(&mut self, senders: &Senders) {
        if self.users != senders.uids {
            allow(&self.path, Some(self.instance), &senders.uids);
            self.users.clone_from(&senders.uids);
        }
    }

    /// What is at its path is being watched.
    pub(super) fn is_well(&self) -> bool {
        let runs = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        runs && instance(&self.path).is_ok_and(|at| at == self.instance)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.stopping.store(true, Ordering::Release);
        // It fails only if it was written to 2^64 times.
        let _ = self.stop.wake.write(1);
        ending::wait(self.thread.take());
    }
}

fn make(path: &Path, users: &[u32]) -> Result<()> {
    let shown = path.display();
    if std::fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).with_context(|| format!("making {shown}"))?;
    }
    std::fs::DirBuilder::new().mode(0o700).create(path).with_context(|| format!("making {shown}"))?;
    allow(path, None, users);
    Ok(())
}

fn allow(path: &Path, instance: Option<(u64, u64)>, users: &[u32]) {
    if let Err(error) = Held::directory(path, instance).and_then(|held| held.allow(0o7, users)) {
        log::warn!("letting users {users:?} put files into {}: {error}; only its owner can", path.display());
    }
}

struct Directory {
    path: PathBuf,
    own: OwnedFd,
    inotify: Inotify,
    source: Arc<Source>,
}

impl Directory {
    fn open(path: &Path, source: Arc<Source>) -> Result<Self> {
        let shown = path.display();
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let own = open(path, flags, Mode::empty()).with_context(|| format!("opening the directory {shown}"))?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("asking for inotify")?;
        let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        // What was opened, not what is at the path by now.
        inotify.add_watch(&itself(&own), events).with_context(|| format!("watching the directory {shown}"))?;
        Ok(Self { path: path.to_owned(), own, inotify, source })
    }

    /// Makes it one of ours, if it is not: only while there is nothing in it that somebody may want to keep.
    fn adopt(&self) -> Result<()> {
        if self.is_ours(MARKER) || self.is_ours(REJECTED) {
            return Ok(());
        }
        for entry in std::fs::read_dir(itself(&self.own)).context("listing it")? {
            let name = entry.context("listing it")?.file_name();
            ensure!(
                name.as_bytes().starts_with(TAKEN.as_bytes()),
                "{} is in it, and all files of a source's directory are read and removed: empty it, or name one that is not there",
                name.display()
            );
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.own, MARKER, flags, Mode::S_IRUSR).with_context(|| format!("marking it with {MARKER}"))?;
        Ok(())
    }

    /// It is there, and made by the agent.
    fn is_ours(&self, name: &str) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let owner = openat(&self.own, name, flags, Mode::empty())
            .map(File::from)
            .and_then(|file| file.metadata().map(|metadata| metadata.uid()).map_err(|_| Errno::EIO));
        owner == Ok(nix::unistd::geteuid().as_raw())
    }

    fn run(&self, stop: &Stop) -> Result<()> {
        let mut variables = Variables::default();
        self.read_left(&mut variables)?;
        let mut waiting = self.read_all(stop, &mut variables)?;
        while !stop.stopping.load(Ordering::Acquire) {
            let mut both =
                [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN), PollFd::new(stop.wake.as_fd(), PollFlags::POLLIN)];
            let limit = if waiting { PollTimeout::from(QUIET.as_millis() as u16) } else { PollTimeout::NONE };
            match poll(&mut both, limit) {
                Ok(0) => waiting = self.read_all(stop, &mut variables)?,
                Ok(_) => waiting |= self.follow(stop, &mut variables)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for files"),
            }
        }
        Ok(())
    }

    /// Reads what a dead agent had begun to.
    fn read_left(&self, variables: &mut Variables) -> Result<()> {
        let listed: std::io::Result<Vec<_>> = std::fs::read_dir(itself(&self.own)).and_then(Iterator::collect);
        let names = listed.context("listing it")?.into_iter().map(|entry| entry.file_name());
        for taken in names.filter(|name| name.as_bytes().starts_with(TAKEN.as_bytes())) {
            self.read_taken(&taken, OsStr::new("left-over.json"), variables);
        }
        Ok(())
    }

    /// Reads the files that inotify tells of. True: others may be waiting.
    fn follow(&self, stop: &Stop, variables: &mut Variables) -> Result<bool> {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error).context("reading what happened"),
        };
        let mut waiting = false;
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                waiting |= self.read_all(stop, variables)?;
            }
            if let Some(name) = event.name.filter(|name| is_ours(name)) {
                self.read(&name, variables);
            }
        }
        Ok(waiting)
    }

    /// Reads all files that are there. True: some may still be written.
    fn read_all(&self, stop: &Stop, variables: &mut Variables) -> Result<bool> {
        let mut waiting = false;
        for entry in std::fs::read_dir(itself(&self.own)).context("listing it")? {
            if stop.stopping.load(Ordering::Acquire) {
                return Ok(false);
            }
            let name = entry.context("listing it")?.file_name();
            if !is_ours(&name) {
                continue;
            }
            // It may have been taken since; then there is nothing to wait for.
            let Ok(file) = self.file(&name) else {
                self.read(&name, variables);
                continue;
            };
            let quiet = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            match quiet {
                Some(quiet) if quiet < QUIET => waiting = true,
                // What claims to be of the future is not waited for.
                _ => self.read(&name, variables),
            }
        }
        Ok(waiting)
    }

    fn read(&self, name: &OsStr, variables: &mut Variables) {
        let taken = OsString::from(format!("{TAKEN}.{}", trial::mark()));
        match renameat(&self.own, name, &self.own, taken.as_os_str()) {
            Ok(()) => self.read_taken(&taken, name, variables),
            // Read already, by another event of it.
            Err(Errno::ENOENT) => {}
            Err(error) => self.source.complain(format!("{}: taking it: {error}", self.path.join(name).display())),
        }
    }

    /// Reads the file that was taken as `taken`, once `name`; afterwards it is gone, or among those that were rejected.
    fn read_taken(&self, taken: &OsStr, name: &OsStr, variables: &mut Variables) {
        let shown = self.path.join(name);
        let faults = match self.text(taken, &shown) {
            Ok(text) => match json::ingest(&self.source, &text, variables) {
                Ok(response) if response.faults.is_empty() => None,
                Ok(response) => Some(response.faults.join("\n")),
                Err(why) => Some(format!("it {why}")),
            },
            Err(why) => Some(why),
        };
        let done = match &faults {
            None => unlinkat(&self.own, taken, UnlinkatFlags::NoRemoveDir).context("removing it"),
            Some(why) => self.reject(taken, name, why),
        };
        if let Err(error) = done {
            self.source.complain(format!("{}: {error:#}", shown.display()));
        }
    }

    /// What is in the file that was taken; else why it is not read.
    fn text(&self, taken: &OsStr, shown: &Path) -> Result<Vec<u8>, String> {
        let refuse = |why: String| {
            self.source.refused(format!("{}: {why}", shown.display()));
            why
        };
        let malformed = |why: String| {
            self.source.malformed(format!("{}: {why}", shown.display()));
            why
        };
        let file = self.file(taken).map_err(|error| match error {
            Errno::ELOOP => refuse("it is a symbolic link, and these are not followed".to_owned()),
            error => malformed(format!("it cannot be opened: {error}")),
        })?;
        let metadata = file.metadata().map_err(|error| malformed(format!("it cannot be looked at: {error}")))?;
        if !metadata.is_file() {
            return Err(refuse("it is no regular file".to_owned()));
        }
        if !self.source.settings().senders.allow(metadata.uid()) {
            let why = "only root and the `users` of the source's resource may send";
            return Err(refuse(format!("it belongs to user {}: {why}", metadata.uid())));
        }
        let mut text = Vec::new();
        let read = file.take(MOST as u64 + 1).read_to_end(&mut text);
        read.map_err(|error| malformed(format!("it cannot be read: {error}")))?;
        match text.len() > MOST {
            true => Err(malformed(format!("it is larger than {} MiB: split it", MOST >> 20))),
            false => Ok(text),
        }
    }

    /// Opens a file here, if it is one; what would block is not waited for.
    fn file(&self, name: &OsStr) -> nix::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        openat(&self.own, name, flags, Mode::empty()).map(File::from)
    }

    /// Moves the file that was taken to the others of its kind, and says why.
    fn reject(&self, taken: &OsStr, name: &OsStr, why: &str) -> Result<()> {
        let rejected = self.rejected().with_context(|| format!("opening the folder {REJECTED}"))?;
        let count = std::fs::read_dir(itself(&rejected)).map_or(usize::MAX, Iterator::count);
        if count >= 2 * KEPT {
            unlinkat(&self.own, taken, UnlinkatFlags::NoRemoveDir).context("removing it")?;
            bail!("rejected and removed, since {REJECTED} is full of {KEPT} others: {why}");
        }
        let name = free_name(&rejected, name);
        let moved = renameat(&self.own, taken, &rejected, name.as_os_str());
        moved.with_context(|| format!("moving it there ({why}); it stays, as {}: remove it", taken.display()))?;
        let mut reason = name;
        reason.push(".why");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&rejected, reason.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).context("writing why")?;
        writeln!(File::from(file), "{why}").context("writing why")
    }

    fn rejected(&self) -> Result<OwnedFd> {
        match mkdirat(&self.own, REJECTED, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).context("making it"),
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let folder = File::from(openat(&self.own, REJECTED, flags, Mode::empty())?);
        let owner = folder.metadata()?.uid();
        ensure!(nix::unistd::geteuid().as_raw() == owner, "it belongs to user {owner}: remove it");
        Ok(folder.into())
    }
}

fn instance(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// By which the directory that was opened is found, wherever it has gone.
fn itself(directory: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", directory.as_raw_fd()).into()
}

/// `*.json` and `*.ndjson`, but not hidden ones.
fn is_ours(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".") && (name.ends_with(b".json") || name.ends_with(b".ndjson"))
}

/// The name, or one like it that nobody has yet.
fn free_name(folder: &OwnedFd, name: &OsStr) -> OsString {
    let numbered = |n: usize| {
        let mut other = name.to_owned();
        if n > 0 {
            other.push(format!(".{n}"));
        }
        other
    };
    let taken = |name: &OsString| std::fs::symlink_metadata(itself(folder).join(name)).is_ok();
    (0..2 * KEPT).map(numbered).find(|name| !taken(name)).unwrap_or_else(|| numbered(2 * KEPT))
}

#[cfg(test)]
mod tests;
