//! The unix socket: made so that it never stands in another agent's place, and gone when the agent ends.

use std::fmt;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of all users but root together: none of them can use up the agent's descriptors, or lock root out.
const CONNECTIONS: usize = 64;

/// The group whose members may change things, unless another is named.
const GROUP: &str = "vnet";

/// The agent's socket, bound.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
    group: Arc<str>,
    free: Arc<Semaphore>,
    /// The last connection found no place: the next one like it is no news.
    full: bool,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    uid: u32,
    gid: u32,
    pid: Option<i32>,
    /// Held as long as the connection is there.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

/// A socket's file, by instance: what someone else has put at the path since is not ours to remove.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    instance: (u64, u64),
}

impl Socket {
    /// Makes the socket at `path`, and its directory if that is not there. What a dead agent left is replaced; where an agent
    /// answers, this fails. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        let shown = path.display();
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .with_context(|| format!("making the directory of the API's socket, {}", directory.display()))?;
        }
        refuse_if_taken(path)?;
        // Under another name until it is complete: nobody finds a socket without its mode, or none while one is replaced.
        let draft = path.with_added_extension(format!("{}.new", std::process::id()));
        remove_if_there(&draft)?;
        let bound = bind_at(&draft, path).with_context(|| format!("making the API's socket {shown}"));
        let (listener, instance) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                // The first error is the one to report.
                let _ = std::fs::remove_file(&draft);
                return Err(error);
            }
        };
        let file = SocketFile { path: path.to_owned(), instance };
        Ok(Self { listener, file, group: GROUP.into(), free: Arc::new(Semaphore::new(CONNECTIONS)), full: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Lets the members of the group of this name change things, instead of those of `vnet`. Warns if there is no such group:
    /// then it is root alone, until there is one.
    pub fn for_group(mut self, name: &str) -> Self {
        match Group::from_name(name) {
            Ok(Some(_)) => {}
            Ok(None) => {
                log::warn!("there is no group '{name}': only root can change things; make it with groupadd --system {name}")
            }
            Err(error) => log::warn!("looking up group '{name}', whose members may change things: {error}"),
        }
        self.group = name.into();
        self
    }

    /// The group whose members may change things.
    pub(super) fn group(&self) -> Arc<str> {
        Arc::clone(&self.group)
    }

    /// Who this is; `None` for one more ordinary user's connection than there may be.
    fn admit(&self, stream: &UnixStream) -> std::io::Result<Option<Peer>> {
        let cred = stream.peer_cred()?;
        let place = if cred.uid() == 0 {
            None
        } else {
            match Arc::clone(&self.free).try_acquire_owned() {
                Ok(place) => Some(Arc::new(place)),
                Err(_) => return Ok(None),
            }
        };
        Ok(Some(Peer { uid: cred.uid(), gid: cred.gid(), pid: cred.pid(), _place: place }))
    }
}

fn bind_at(draft: &Path, path: &Path) -> Result<(UnixListener, (u64, u64))> {
    let listener = UnixListener::bind(draft).context("binding")?;
    std::fs::set_permissions(draft, std::fs::Permissions::from_mode(0o666)).context("setting its mode")?;
    let metadata = std::fs::metadata(draft).context("reading its inode")?;
    std::fs::rename(draft, path).context("putting it in place")?;
    Ok((listener, (metadata.dev(), metadata.ino())))
}

fn refuse_if_taken(path: &Path) -> Result<()> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("looking at {shown}, where the API's socket belongs")),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => bail!("{shown}, where the API's socket belongs, is something else: move it away, or choose another socket"),
    }
    // Non-blocking: an agent that hangs does not hang the next one.
    let probe = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
        .context("making a socket")?;
    let address = UnixAddr::new(path).with_context(|| format!("using {shown} as a socket's path"))?;
    match connect(probe.as_raw_fd(), &address) {
        Ok(()) => {
            let pid =
                getsockopt(&probe, PeerCredentials).map_or_else(|_| String::new(), |cred| format!(" (process {})", cred.pid()));
            bail!("another agent{pid} serves {shown}: stop it first, or choose another socket")
        }
        Err(Errno::EAGAIN) => bail!("another agent has {shown} and does not answer: stop it first, or choose another socket"),
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

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.instance);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("removing the API's socket {}: {error}", self.path.display());
        }
    }
}

impl Listener for Socket {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        loop {
            let accepted = match self.listener.accept().await {
                Ok((stream, _)) => self.admit(&stream).map(|peer| peer.map(|peer| (stream, peer))),
                Err(error) => Err(error),
            };
            match accepted {
                Ok(Some(connection)) => {
                    self.full = false;
                    return connection;
                }
                Ok(None) if self.full => {}
                Ok(None) => {
                    self.full = true;
                    log::warn!("API: closing connections of ordinary users: they have {CONNECTIONS} open, and may not have more");
                }
                Err(error) => {
                    // Mostly out of descriptors: an immediate retry would spin.
                    log::warn!("API: accepting a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Peer> {
        Ok(Peer { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw(), pid: None, _place: None })
    }
}

impl Peer {
    /// Its effective user when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its effective group when it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "uid {} (process {pid})", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

impl Connected<IncomingStream<'_, Socket>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Socket>) -> Self {
        stream.remote_addr().clone()
    }
}
