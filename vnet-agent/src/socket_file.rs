//! The files of unix sockets: made so that they never stand in another agent's place, and gone when the agent ends.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};

/// Bytes of the longest path: what `sockaddr_un` has, less the NUL, and less what a draft's name has more (see [`draft`]).
pub(crate) const LONGEST: usize = 107 - ".4194304.new".len();

/// A socket's file, by instance: what someone else has put at the path since is not ours to remove. Removed with this value.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    instance: (u64, u64),
}

impl SocketFile {
    /// Has `bind` make a socket, `open` say who may use it, and puts it at `path`, whose directory is made if it is not there.
    /// What a dead agent left is replaced; where something answers, this fails.
    pub(crate) fn place<T>(
        path: &Path,
        kind: SockType,
        bind: impl FnOnce(&Path) -> Result<T>,
        open: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<(T, Self)> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .with_context(|| format!("making its directory {}", directory.display()))?;
        }
        refuse_if_taken(path, kind)?;
        // Under another name until it is complete: nobody finds a socket without its mode, or none while one is replaced.
        let draft = draft(path);
        remove_if_there(&draft)?;
        let placed = (|| {
            let socket = bind(&draft)?;
            open(&draft).context("setting its mode")?;
            let metadata = std::fs::symlink_metadata(&draft).context("reading its inode")?;
            std::fs::rename(&draft, path).context("putting it in place")?;
            Ok((socket, Self { path: path.to_owned(), instance: (metadata.dev(), metadata.ino()) }))
        })();
        if placed.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&draft);
        }
        placed
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its device and inode.
    pub(crate) fn instance(&self) -> (u64, u64) {
        self.instance
    }

    /// It is still there.
    pub(crate) fn is_there(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.instance)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("removing the socket {}: {error}", self.path.display());
        }
    }
}

/// No process has a number of more than seven digits.
fn draft(path: &Path) -> PathBuf {
    path.with_added_extension(format!("{}.new", std::process::id()))
}

fn refuse_if_taken(path: &Path, kind: SockType) -> Result<()> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("looking at {shown}, where it belongs")),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => bail!("{shown}, where it belongs, is something else: move it away, or choose another socket"),
    }
    // Non-blocking: an agent that hangs does not hang the next one.
    let probe =
        socket(AddressFamily::Unix, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None).context("making a socket")?;
    let address = UnixAddr::new(path).with_context(|| format!("using {shown} as a socket's path"))?;
    match connect(probe.as_raw_fd(), &address) {
        Ok(()) => {
            // Of datagram sockets the kernel does not say whose they are.
            let pid = getsockopt(&probe, PeerCredentials).map_or(0, |cred| cred.pid());
            let process = if pid > 0 { format!(" (process {pid})") } else { String::new() };
            bail!("another agent{process} serves {shown}: stop it first, or choose another socket")
        }
        Err(Errno::EAGAIN) => bail!("another agent has {shown} and does not answer: stop it first, or choose another socket"),
        Err(Errno::EPROTOTYPE) => bail!("{shown} is a socket of another type, and in use: choose another socket"),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("finding out if another agent serves {shown}")),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the left-over {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn the_longest_path_can_be_bound_whatever_the_process() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-socket-XXXXXX")).unwrap();
        let path = dir.join("x".repeat(LONGEST - dir.as_os_str().len() - 1));
        assert!(draft(&path).as_os_str().len() <= 107 && path.as_os_str().len() == LONGEST);
        let bind = |draft: &Path| UnixDatagram::bind(draft).context("binding");
        let (_socket, file) = SocketFile::place(&path, SockType::Datagram, bind, |_| Ok(())).unwrap();
        assert!(file.is_there());
        drop(file);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
