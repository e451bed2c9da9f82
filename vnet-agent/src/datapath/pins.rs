//! The directory in which everything is pinned.
//!
//! `<root>/v<ABI>/` holds the maps of one layout by their names, and `links/`. It is made under the name `v<ABI>-next`
//! and renamed when it is complete: a directory without `-next` is whole. One that was moved from is renamed to `v<ABI>-old`
//! and removed. An agent that dies in between leaves some of them; the next one goes on where it stopped.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// The directory of the links in a directory of maps.
pub const LINKS: &str = "links";

/// The root directory, held by this agent alone.
pub struct Root {
    dir: PathBuf,
    /// Held as long as this lives. It is not in the root directory: that goes when everything is detached.
    _lock: Flock<File>,
}

/// What the root directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The layouts whose directory is complete.
    pub complete: Vec<u32>,
    /// The layouts whose directory is being made.
    pub next: Vec<u32>,
    /// The layouts whose directory was retired.
    pub old: Vec<u32>,
}

impl Root {
    /// Takes the root directory; makes it if need be.
    pub fn take(dir: &Path, lock: &Path) -> Result<Self> {
        let lock = take_lock(lock)?;
        fs::create_dir_all(dir).with_context(|| format!("making the directory for pins {}", dir.display()))?;
        // What is pinned gives whoever may open it the power to change the policy.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir, private).with_context(|| format!("closing {} to other users", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// The directory of a layout's maps.
    pub fn complete(&self, abi: u32) -> PathBuf {
        self.dir.join(format!("v{abi}"))
    }

    /// The same, while it is being made.
    pub fn next(&self, abi: u32) -> PathBuf {
        self.dir.join(format!("v{abi}-next"))
    }

    /// Looks what is there.
    pub fn survey(&self) -> Result<Survey> {
        let mut found = Survey::default();
        for file in fs::read_dir(&self.dir).with_context(|| format!("reading {}", self.dir.display()))? {
            let name = file.with_context(|| format!("reading {}", self.dir.display()))?.file_name();
            let Some(name) = name.to_str().and_then(|n| n.strip_prefix('v')) else { continue };
            let (abi, list) = match name.split_once('-') {
                None => (name, &mut found.complete),
                Some((abi, "next")) => (abi, &mut found.next),
                Some((abi, "old")) => (abi, &mut found.old),
                Some(_) => continue,
            };
            list.extend(abi.parse::<u32>());
        }
        found.complete.sort_unstable();
        found.next.sort_unstable();
        Ok(found)
    }

    fn old(&self, abi: u32) -> PathBuf {
        self.dir.join(format!("v{abi}-old"))
    }

    /// Declares that the directory of a layout serves nobody any more.
    pub fn retire(&self, abi: u32) -> Result<()> {
        let (complete, old) = (self.complete(abi), self.old(abi));
        fs::rename(&complete, &old).with_context(|| format!("renaming {} to {}", complete.display(), old.display()))
    }

    /// Removes what was retired.
    pub fn remove_retired(&self) -> Result<()> {
        self.survey()?.old.into_iter().try_for_each(|abi| remove_maps(&self.old(abi)))
    }

    /// Declares the directory of a layout complete.
    pub fn finish(&self, abi: u32) -> Result<()> {
        let (next, complete) = (self.next(abi), self.complete(abi));
        fs::rename(&next, &complete).with_context(|| format!("renaming {} to {}", next.display(), complete.display()))
    }

    /// Removes the root directory, which must be empty.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }
}

fn take_lock(path: &Path) -> Result<Flock<File>> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making the directory {}", dir.display()))?;
    }
    let file = File::options().create(true).truncate(false).write(true).read(true).open(path);
    let file = file.with_context(|| format!("opening the lock file {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // For people who wonder whose lock it is.
            let written = lock.set_len(0).and_then(|()| writeln!(&mut *lock, "{}", std::process::id()));
            written.with_context(|| format!("writing the lock file {}", path.display()))?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let holder = fs::read_to_string(path).unwrap_or_default();
            bail!("another agent is running (process {}): it holds {}; stop it first", holder.trim(), path.display())
        }
        Err((_, e)) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}

/// Removes a directory of maps, once its links are gone. What is mapped or in use by a program lives on.
pub fn remove_maps(dir: &Path) -> Result<()> {
    let links = dir.join(LINKS);
    if links.exists() {
        fs::remove_dir(&links).with_context(|| format!("removing {}", links.display()))?;
    }
    for file in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = file.with_context(|| format!("reading {}", dir.display()))?.path();
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    fs::remove_dir(dir).with_context(|| format!("removing {}", dir.display()))
}

/// Does a directory of maps have links?
pub fn has_links(dir: &Path) -> bool {
    fs::read_dir(dir.join(LINKS)).is_ok_and(|mut d| d.next().is_some())
}
