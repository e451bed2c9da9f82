//! Datagrams from VMs of many hosts to one VM, and when each host let one out at last.

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket,
};
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use vnet_tests::Fleet;

const PORT: u16 = 7000;
/// Between two datagrams of a VM.
const PACE: Duration = Duration::from_micros(500);
/// A host lets nothing out when of so many datagrams none has come out of it.
const SILENCE: u64 = 200;
/// Bytes of packets that may wait.
const BUFFER: usize = 32 << 20;
/// Where IPv4 has its addresses, behind an Ethernet header.
const SOURCE: usize = 14 + 12;

/// The first VM of each host but the first sends to that of the first.
pub struct Streams {
    seen: Arc<Mutex<Seen>>,
    sent: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Nobody reads from it; without it the VM would answer that the port is closed.
    _target: UdpSocket,
}

/// What came out of hosts.
#[derive(Default)]
struct Seen {
    /// By sender: when the kernel saw its last datagram, and how many had been sent by then.
    last: Vec<(Ipv4Addr, Option<(SystemTime, u64)>)>,
    trouble: Option<String>,
}

impl Streams {
    /// Starts them; the fleet has so many hosts. Datagrams are seen between the hosts.
    pub fn start(fleet: &Fleet, hosts: usize) -> Result<Self> {
        let target = fleet.vm(0, 0).v4;
        let bound = fleet.vm(0, 0).host.run(|| UdpSocket::bind((target, PORT)))?.context("a socket that receives")?;
        let mut sockets = Vec::new();
        for k in 1..hosts {
            let open = || -> std::io::Result<UdpSocket> {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect((target, PORT))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            sockets.push(fleet.vm(k, 0).host.run(open)?.context("a socket that sends")?);
        }
        let capture = fleet.core.run(packet_socket)?.context("opening a packet socket")?;
        let last = (1..hosts).map(|k| (fleet.vm(k, 0).v4, None)).collect();
        let seen = Arc::new(Mutex::new(Seen { last, trouble: None }));
        let (sent, ending) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let threads = vec![
            std::thread::spawn({
                let (sent, ending) = (Arc::clone(&sent), Arc::clone(&ending));
                move || send(&sockets, &sent, &ending)
            }),
            std::thread::spawn({
                let (seen, sent, ending) = (Arc::clone(&seen), Arc::clone(&sent), Arc::clone(&ending));
                move || watch(&capture, target, &seen, &sent, &ending)
            }),
        ];
        Ok(Self { seen, sent, ending, threads, _target: bound })
    }

    /// When the last of the hosts let out its first datagram since then; `None`: not all have.
    pub fn passed(&self, since: SystemTime) -> Option<SystemTime> {
        let last = self.last()?;
        last.iter().map(|(at, _)| (*at >= since).then_some(*at)).collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// When the last datagram came out of any of the hosts, if none has for a while. It is at least `since`.
    pub fn silent(&self, since: SystemTime) -> Option<SystemTime> {
        let last = self.last()?;
        let sent = self.sent.load(Ordering::Relaxed);
        let silent = last.iter().all(|(_, at)| sent >= at + SILENCE);
        silent.then(|| last.iter().map(|(at, _)| *at).max().unwrap_or(since).max(since))
    }

    fn last(&self) -> Option<Vec<(SystemTime, u64)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last.iter().map(|(_, last)| *last).collect()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic has been printed.
            let _ = thread.join();
        }
        if let Some(trouble) = &self.seen.lock().unwrap_or_else(PoisonError::into_inner).trouble {
            eprintln!("watching packets: {trouble}");
        }
    }
}

fn packet_socket() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll)?;
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    // So that it sees when it is to end.
    setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 100_000))?;
    Ok(socket)
}

fn send(sockets: &[UdpSocket], sent: &AtomicU64, ending: &AtomicBool) {
    while !ending.load(Ordering::Relaxed) {
        for socket in sockets {
            // Rules that reject say so to the sender.
            let _ = socket.send(b"are you there");
        }
        sent.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PACE);
    }
}

fn watch(capture: &OwnedFd, target: Ipv4Addr, seen: &Mutex<Seen>, sent: &AtomicU64, ending: &AtomicBool) {
    while !ending.load(Ordering::Relaxed) {
        match next(capture, target) {
            Ok(None) => {}
            Ok(Some((source, at))) => {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                let number = sent.load(Ordering::Relaxed);
                seen.last.iter_mut().filter(|(s, _)| *s == source).for_each(|(_, last)| *last = Some((at, number)));
            }
            Err(e) => {
                seen.lock().unwrap_or_else(PoisonError::into_inner).trouble = Some(format!("{e:#}"));
                return;
            }
        }
    }
}

/// The sender of the next packet to the VM, and when the kernel saw it. `None`: it was another packet, or there is none.
fn next(capture: &OwnedFd, target: Ipv4Addr) -> Result<Option<(Ipv4Addr, SystemTime)>> {
    let (mut buffer, mut control) = ([0; SOURCE + 8], nix::cmsg_space!(nix::sys::time::TimeSpec));
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(capture.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
    let at = match message {
        Ok(message) => match message.cmsgs()?.next() {
            Some(ControlMessageOwned::ScmTimestampns(at)) => SystemTime::UNIX_EPOCH + Duration::from(at),
            other => bail!("a packet without its time: {other:?}"),
        },
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(e) => return Err(e).context("reading a packet socket"),
    };
    let address = |at: usize| -> Option<Ipv4Addr> { Some(<[u8; 4]>::try_from(buffer.get(at..at + 4)?).ok()?.into()) };
    let is_ipv4 = buffer[12..14] == [8, 0];
    Ok(address(SOURCE).filter(|_| is_ipv4 && address(SOURCE + 4) == Some(target)).map(|source| (source, at)))
}
