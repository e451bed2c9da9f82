//! What goes over a device, seen with a packet socket.

use crate::Host;
use anyhow::{Context as _, Result};
use etherparse::{NetSlice, SlicedPacket};
use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Bytes of packets that may wait.
const BUFFER: usize = 32 << 20;

/// Every packet on the devices of a host from now on.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    /// Begins.
    ///
    /// # Errors
    /// It is not allowed: root is needed.
    pub fn start(host: &Host) -> Result<Self> {
        let open = || -> nix::Result<OwnedFd> {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)?;
            setsockopt(&socket, RcvBufForce, &BUFFER)?;
            Ok(socket)
        };
        Ok(Self(host.run(open)?.with_context(|| format!("{}: opening a packet socket", host.name()))?))
    }

    /// From where to where IP packets went since the last call.
    ///
    /// # Errors
    /// The socket fails.
    pub fn packets(&self) -> Result<BTreeSet<(IpAddr, IpAddr)>> {
        let (mut packets, mut buffer) = (BTreeSet::new(), vec![0; 1 << 16]);
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => packets.extend(addresses(&buffer[..length])),
                Err(Errno::EAGAIN) => return Ok(packets),
                Err(error) => return Err(error).context("reading a packet socket"),
            }
        }
    }
}

fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Ipv6(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Arp(_) => None,
    }
}
