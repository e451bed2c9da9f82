//! Suricata: EVE records on a unix datagram socket, one a datagram.
//!
//! Two threads take turns. One waits for a datagram; once it has a change and nobody is delivering, it leaves the socket to the
//! other and delivers. So an alert goes from the socket to the sink without a change of threads, and while the sink is busy the
//! socket is still read: Suricata is never held up by what its alerts cause.

mod settings;
#[cfg(test)]
mod tests;

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{PassCred, RcvBuf, RcvBufForce};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, recvmsg, setsockopt, shutdown,
    socket,
};
use serde_json::Value;

use super::acl::Held;
use super::change::TagChange;
use super::ending;
use super::pending::Pending;
use super::senders::Senders;
use super::state::Source;
use super::trial::Trials;
use crate::expression::Variables;
use crate::socket_file::SocketFile;

pub(super) use settings::notes;

/// Bytes of one record: Suricata's longest lines, with the payload of a packet in them, are far shorter.
const RECORD: usize = 256 << 10;
/// Bytes that the socket may hold, where the kernel allows it.
const BUFFER: usize = 8 << 20;
/// Until the socket is read again after a fault of the kernel.
const RETRY: Duration = Duration::from_millis(200);
/// Bytes of a record that is no JSON that are quoted.
const QUOTED: usize = 80;

/// The socket of one source, and the threads that read it. Ends with this value.
pub(super) struct Listener {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    file: SocketFile,
    /// Who may send as far as the file says.
    users: Vec<u32>,
}

struct Shared {
    socket: OwnedFd,
    source: Arc<Source>,
    /// Held by the thread that reads the socket.
    turn: Mutex<()>,
    pending: Pending,
    trials: Trials,
    stopping: AtomicBool,
}

impl Listener {
    /// Binds the socket at `path`, for root and the source's users, and begins to read it.
    ///
    /// # Errors
    /// It cannot be made there: someone else serves it, or the directory is not ours.
    pub(super) fn start(path: &Path, source: Arc<Source>) -> Result<Self> {
        let senders = source.settings().senders.clone();
        let (socket, file) = SocketFile::place(path, SockType::Datagram, bound, |draft| {
            open_for(draft, None, &senders);
            Ok(())
        })?;
        let shared = Arc::new(Shared {
            socket,
            source,
            turn: Mutex::default(),
            pending: Pending::default(),
            trials: Trials::default(),
            stopping: AtomicBool::new(false),
        });
        let mut listener = Self { shared, threads: Vec::new(), file, users: senders.uids };
        for _ in 0..2 {
            let shared = Arc::clone(&listener.shared);
            let thread = std::thread::Builder::new().name("suricata".to_owned()).spawn(move || shared.run());
            listener.threads.push(thread.context("starting a thread that reads it")?);
        }
        Ok(listener)
    }

    /// The users who may send are others now.
    pub(super) fn open(&mut self, senders: &Senders) {
        if self.users != senders.uids {
            open_for(self.file.path(), Some(self.file.instance()), senders);
            self.users.clone_from(&senders.uids);
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its file is where it was made, and its threads run.
    pub(super) fn is_well(&self) -> bool {
        self.file.is_there() && !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// See [`Trials::measure`]: through the socket, as Suricata would. It takes a while, for which nobody has to hold this.
    pub(super) fn measurement(&self) -> impl FnOnce(u32) -> Result<Vec<Duration>> + use<> {
        let (shared, path) = (Arc::clone(&self.shared), self.path().to_owned());
        move |trials| {
            let client = UnixDatagram::unbound().context("making a socket to send from")?;
            client.connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
            client.set_write_timeout(Some(Duration::from_secs(1))).context("setting a limit for sending")?;
            shared.trials.measure(trials, |mark| {
                let event = alert(mark).to_string();
                client.send(event.as_bytes()).map(drop).context("sending an alert to it")
            })
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.pending.stop();
        // Whoever waits for a datagram is woken. It cannot fail on a socket that is open.
        let _ = shutdown(self.shared.socket.as_raw_fd(), Shutdown::Both);
        ending::wait(self.threads.drain(..));
    }
}

fn bound(path: &Path) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("making a socket")?;
    // Before anybody can send: of each datagram the kernel says whose it is.
    setsockopt(&socket, PassCred, &true).context("asking for the senders' users")?;
    if setsockopt(&socket, RcvBufForce, &BUFFER).is_err() {
        // Without the right to exceed the system's limit, up to that limit.
        setsockopt(&socket, RcvBuf, &BUFFER).context("asking for a large buffer")?;
    }
    let address = UnixAddr::new(path).context("using it as a socket's path")?;
    bind(socket.as_raw_fd(), &address).context("binding")?;
    Ok(socket)
}

/// Lets only these users send. Whoever else sends all the same is refused, by what the kernel says of each datagram.
fn open_for(path: &Path, instance: Option<(u64, u64)>, senders: &Senders) {
    let (shown, uids) = (path.display(), &senders.uids);
    let held = match Held::socket(path, instance) {
        Ok(held) => held,
        Err(error) => return log::warn!("letting only users {uids:?} send to {shown}: {error}"),
    };
    if let Err(error) = held.allow(0o6, uids) {
        log::warn!("letting only users {uids:?} send to {shown}: {error}; everybody can send now, but only theirs is taken");
        if let Err(error) = held.set_mode(0o666) {
            log::warn!("setting the mode of {shown}: {error}");
        }
    }
}

/// What one look at the socket gave.
enum Received {
    /// A datagram of so many bytes; `None`: longer than any record.
    Datagram(Option<usize>, Option<u32>),
    /// Nothing: it is to end, or to look again.
    Nothing,
}

impl Shared {
    fn run(&self) {
        let (mut buffer, mut variables) = (vec![0; RECORD], Variables::default());
        while !self.stopping() {
            let lead = {
                let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                self.read_until_lead(&mut buffer, &mut variables)
            };
            if lead {
                self.pending.deliver(|change| self.deliver(change));
            }
        }
    }

    /// Reads until there is something to deliver, and nobody who does.
    fn read_until_lead(&self, buffer: &mut [u8], variables: &mut Variables) -> bool {
        while !self.stopping() {
            let Received::Datagram(len, uid) = self.receive(buffer) else { continue };
            let changes = self.take(len.map(|len| &buffer[..len]), uid, variables, Instant::now());
            if changes.is_empty() {
                continue;
            }
            let added = self.pending.add(changes);
            self.source.counters.dropped.fetch_add(added.overtaken, Ordering::Relaxed);
            if added.lead {
                return true;
            }
        }
        false
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn receive(&self, buffer: &mut [u8]) -> Received {
        // Room for the sender's user alone, which the kernel puts first: file descriptors that somebody sends along find none, so the
        // kernel closes them and says that something was cut off, and whose the datagram is is not looked at.
        let mut control = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => message,
            Err(Errno::EINTR) => return Received::Nothing,
            Err(error) => {
                self.source.complain(format!("reading its socket: {error}"));
                std::thread::sleep(RETRY);
                return Received::Nothing;
            }
        };
        if self.stopping() {
            return Received::Nothing;
        }
        let uid = message.cmsgs().ok().into_iter().flatten().find_map(|control| match control {
            ControlMessageOwned::ScmCredentials(sender) => Some(sender.uid()),
            _ => None,
        });
        Received::Datagram((!message.flags.contains(MsgFlags::MSG_TRUNC)).then_some(message.bytes), uid)
    }

    /// The changes that a datagram means.
    fn take(&self, record: Option<&[u8]>, uid: Option<u32>, variables: &mut Variables, now: Instant) -> Vec<TagChange> {
        let source = &self.source;
        let settings = source.settings();
        match uid {
            Some(uid) if settings.senders.allow(uid) => {}
            Some(uid) => {
                let why = "may not send to it: only root and the `users` of its resource may";
                source.refused(format!("user {uid} {why}"));
                return Vec::new();
            }
            None => {
                source.refused("a datagram with more than a record in it, as file descriptors".to_owned());
                return Vec::new();
            }
        }
        let Some(record) = record else {
            source.count_event(now);
            source.malformed(format!("a record of more than {RECORD} bytes"));
            return Vec::new();
        };
        let trial = self.trials.is_open();
        if !trial && !settings.mappings.may_match(record) {
            if !looks_whole(record) {
                return self.unusable(record, "it is no JSON object, or not all of one", now);
            }
            source.count_event(now);
            return Vec::new();
        }
        let event: Value = match serde_json::from_slice(record) {
            Ok(event @ Value::Object(_)) => event,
            Ok(_) => return self.unusable(record, "it is no JSON object", now),
            Err(error) => return self.unusable(record, &error.to_string(), now),
        };
        if trial && let Some(change) = self.trials.change(&event, &source.name, now) {
            // What it takes to map an alert is part of the measurement.
            drop(settings.mappings.map_eve(&event, variables, drop));
            return vec![change];
        }
        source.count_event(now);
        source.changes(&event, true, variables, now, drop)
    }

    fn unusable(&self, record: &[u8], why: &str, now: Instant) -> Vec<TagChange> {
        self.source.count_event(now);
        let quoted = String::from_utf8_lossy(&record[..record.len().min(QUOTED)]).into_owned();
        self.source.malformed(format!("a record that cannot be read: {why}: {quoted}"));
        Vec::new()
    }

    fn deliver(&self, change: TagChange) {
        let trial = change.is_trial().then(|| change.instance.clone());
        // Why it was refused has been counted and said.
        let taken = self.source.deliver(change).is_ok();
        if let Some(mark) = trial {
            self.trials.done(&mark, taken, Instant::now());
        }
    }
}

/// As far as can be told without parsing it.
fn looks_whole(record: &[u8]) -> bool {
    let record = record.trim_ascii();
    record.starts_with(b"{") && record.ends_with(b"}") && std::str::from_utf8(record).is_ok()
}

/// An alert as Suricata writes it, about addresses of documentation, with the mark of a trial.
fn alert(mark: &str) -> Value {
    serde_json::json!({
        "timestamp": "2026-01-01T00:00:00.000000+0000", "flow_id": 1, "in_iface": "vnet", "event_type": "alert",
        "src_ip": "192.0.2.1", "src_port": 40000, "dest_ip": "198.51.100.1", "dest_port": 80, "proto": "TCP",
        "pkt_src": "wire/pcap", "community_id": "1:trial", "tx_id": 0,
        "alert": {
            "action": "allowed", "gid": 1, "signature_id": 9_000_001, "rev": 1, "severity": 1,
            "signature": "vnet trial", "category": "Trial", "metadata": {"vnet": ["trial"]}
        },
        "http": {"hostname": "192.0.2.1", "url": "/", "http_method": "GET", "protocol": "HTTP/1.1", "status": 200, "length": 64},
        "app_proto": "http", "direction": "to_client",
        "flow": {"pkts_toserver": 4, "pkts_toclient": 3, "bytes_toserver": 400, "bytes_toclient": 500, "start": "2026-01-01T00:00:00.000000+0000"},
        super::trial::FIELD: mark
    })
}
