//! What goes over a device, seen with a packet socket.

use crate::Host;
use anyhow::{Context as _, Result};
use etherparse::{NetSlice, SlicedPacket};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Every packet on the devices of a host from now on.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    /// Begins.
    ///
    /// # Errors
    /// It is not allowed: root is needed.
    pub fn start(host: &Host) -> Result<Self> {
        let open = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll);
        Ok(Self(host.run(open)?.with_context(|| format!("{}: opening a packet socket", host.name()))?))
    }

    /// The IP packets since the last call: from where, to where.
    ///
    /// # Errors
    /// The socket fails.
    pub fn packets(&self) -> Result<Vec<(IpAddr, IpAddr)>> {
        let (mut packets, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
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
