//! The API's unix socket.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use nix::sys::socket::SockType;
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::socket_file::SocketFile;

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

impl Socket {
    /// Makes the socket at `path`, and its directory if that is not there. What a dead agent left is replaced; where an agent
    /// answers, this fails. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        let bind = |draft: &Path| UnixListener::bind(draft).context("binding");
        let open = |draft: &Path| std::fs::set_permissions(draft, std::fs::Permissions::from_mode(0o666));
        let (listener, file) = SocketFile::place(path, SockType::Stream, bind, |draft| Ok(open(draft)?))
            .with_context(|| format!("making the API's socket {}", path.display()))?;
        Ok(Self { listener, file, group: GROUP.into(), free: Arc::new(Semaphore::new(CONNECTIONS)), full: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
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
