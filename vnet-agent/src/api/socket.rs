//! The API's unix socket.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use nix::sys::socket::SockType;
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};

use super::connection::{Asked, Connection};
use crate::socket_file::SocketFile;

/// Connections of all users but root together: they cannot use up the agent's descriptors, or lock root out.
const CONNECTIONS: usize = 256;
/// Connections of one such user, who so cannot lock out the others.
const OF_ONE: usize = 16;
/// Until a client has sent the head of its first request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The group whose members may change things, unless another is named.
const GROUP: &str = "vnet";

/// The agent's socket, bound.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
    group: Arc<str>,
    places: Arc<Places>,
    /// See [`PATIENCE`].
    pub(super) patience: Duration,
    /// The last connection found no place: the next one like it is no news.
    full: bool,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    uid: u32,
    gid: u32,
    pid: Option<i32>,
    asked: Asked,
}

/// How many connections each user has, root aside.
type Places = Mutex<HashMap<u32, usize>>;

/// One of these, as long as it is there.
#[derive(Debug)]
pub struct Place {
    uid: u32,
    places: Arc<Places>,
}

impl Place {
    /// `None`: there is no other for this user.
    fn take(uid: u32, places: &Arc<Places>) -> Option<Self> {
        let mut taken = places.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, all) = (taken.get(&uid).copied().unwrap_or(0), taken.values().sum::<usize>());
        (own < OF_ONE && all < CONNECTIONS).then(|| {
            taken.insert(uid, own + 1);
            Self { uid, places: Arc::clone(places) }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.uid) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.uid)),
        }
    }
}

impl Socket {
    /// Makes the socket at `path`, and its directory if that is not there. What a dead agent left is replaced; where an agent
    /// answers, this fails. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        let bind = |draft: &Path| UnixListener::bind(draft).context("binding");
        let open = |draft: &Path| std::fs::set_permissions(draft, std::fs::Permissions::from_mode(0o666));
        let (listener, file) = SocketFile::place(path, SockType::Stream, bind, |draft| Ok(open(draft)?))
            .with_context(|| format!("making the API's socket {}", path.display()))?;
        Ok(Self { listener, file, group: GROUP.into(), places: Arc::default(), patience: PATIENCE, full: false })
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

    /// The connection, and who this is; `None` for one more ordinary user's than there may be.
    fn admit(&self, stream: UnixStream) -> std::io::Result<Option<(<Self as Listener>::Io, Peer)>> {
        let cred = stream.peer_cred()?;
        let place = match cred.uid() {
            0 => None,
            uid => match Place::take(uid, &self.places) {
                Some(place) => Some(place),
                None => return Ok(None),
            },
        };
        let peer = Peer { uid: cred.uid(), gid: cred.gid(), pid: cred.pid(), asked: Asked::default() };
        Ok(Some((Connection::new(stream, place, peer.asked.clone(), self.patience), peer)))
    }
}

impl Listener for Socket {
    type Io = Connection<UnixStream, Option<Place>>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        loop {
            let accepted = match self.listener.accept().await {
                Ok((stream, _)) => self.admit(stream),
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
                    log::warn!(
                        "API: closing connections of ordinary users: one has {OF_ONE} open, or all have {CONNECTIONS}, and may not have more"
                    );
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
        Ok(Peer {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            pid: None,
            asked: Asked::default(),
        })
    }
}

impl Peer {
    /// Its effective user when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// It has sent the head of a request.
    pub(super) fn has_asked(&self) {
        self.asked.set();
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
