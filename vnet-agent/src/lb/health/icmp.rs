//! Pings.
//!
//! A ping socket (icmp(7)) where this host lets the agent have one (`net.ipv4.ping_group_range`), else a raw one, which sees the answers to
//! everybody's pings of that address, and knows its own by what is in them.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::net::UdpSocket;

use super::probe::mark;

const HEADER: usize = 8;
/// The largest answer that is looked at: an IPv4 header with options, and what was sent.
const LONGEST: usize = 60 + HEADER + 8;
/// Types of messages.
const ECHO: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// Sends an echo, and waits for its answer.
pub(super) async fn ask(target: IpAddr) -> Result<()> {
    let (socket, raw) = open(target)?;
    mark(&socket)?;
    // Answers of others are not seen.
    socket.connect(SocketAddr::new(target, 0)).await?;
    let token = token();
    socket.send(&echo(target.is_ipv6(), token)).await.context("sending")?;
    let mut answer = [0; LONGEST];
    loop {
        let length = socket.recv(&mut answer).await.context("waiting for the answer")?;
        let answer = answer.get(..length).unwrap_or_default();
        if answers(if raw && target.is_ipv4() { after_header(answer) } else { answer }, target.is_ipv6(), token) {
            return Ok(());
        }
    }
}

/// A socket for echoes, and whether it is a raw one.
fn open(target: IpAddr) -> Result<(UdpSocket, bool)> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (fd, raw) = match socket(family, SockType::Datagram, flags, protocol) {
        Ok(fd) => (fd, false),
        Err(Errno::EACCES) => {
            let hint = "a socket for pings: the agent needs CAP_NET_RAW, or its group a place in net.ipv4.ping_group_range";
            (socket(family, SockType::Raw, flags, protocol).context(hint)?, true)
        }
        Err(e) => return Err(e).context("making a socket for pings"),
    };
    // It is none, but sends and receives like one.
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(fd)).context("making a socket for pings")?;
    Ok((socket, raw))
}

/// Different each time, and not to be guessed.
fn token() -> u64 {
    static PINGS: AtomicU64 = AtomicU64::new(0);
    RandomState::new().hash_one(PINGS.fetch_add(1, Ordering::Relaxed))
}

/// The message. The kernel completes the checksum of ICMPv6, and puts an identifier of its own into those of ping sockets.
fn echo(v6: bool, token: u64) -> [u8; HEADER + 8] {
    let mut message = [0; HEADER + 8];
    let [id0, id1, ..] = token.to_be_bytes();
    message[0] = ECHO[usize::from(v6)];
    message[4..8].copy_from_slice(&[id0, id1, 0, 1]);
    message[HEADER..].copy_from_slice(&token.to_be_bytes());
    if !v6 {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
    }
    message
}

/// Is this the answer to the echo with this token?
fn answers(message: &[u8], v6: bool, token: u64) -> bool {
    let kind = message.first().copied();
    kind == Some(ECHO_REPLY[usize::from(v6)]) && message.get(HEADER..) == Some(&token.to_be_bytes())
}

/// What follows an IPv4 header.
fn after_header(packet: &[u8]) -> &[u8] {
    let length = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    packet.get(length..).unwrap_or_default()
}

/// RFC 1071.
fn checksum(message: &[u8]) -> [u8; 2] {
    let mut sum: u32 = message.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Slice, Icmpv4Type};

    use super::*;

    #[test]
    fn echoes_are_right_and_only_their_answers_are_taken() {
        let sent = echo(false, 0x0102_0304_0506_0708);
        let parsed = Icmpv4Slice::from_slice(&sent).unwrap();
        assert!(matches!(parsed.icmp_type(), Icmpv4Type::EchoRequest(echo) if (echo.id, echo.seq) == (0x0102, 1)));
        let zeroed = {
            let mut m = sent;
            m[2..4].fill(0);
            m
        };
        assert_eq!(checksum(&zeroed), parsed.checksum().to_be_bytes());
        assert_eq!(checksum(&sent), [0, 0]);
        let reply = |kind: u8, token: u64| {
            let mut m = echo(false, token);
            m[0] = kind;
            m
        };
        for (message, v6, taken) in [
            (reply(0, 7), false, true),
            (reply(129, 7), true, true),
            (reply(0, 8), false, false),
            (reply(8, 7), false, false),
            (reply(0, 7), true, false),
        ] {
            assert_eq!(answers(&message, v6, 7), taken, "{message:?}");
        }
        assert!(!answers(&[], false, 7) && !answers(&reply(0, 7)[..12], false, 7));
        let packet = [&[0x46_u8][..], &[0; 23], &reply(0, 7)].concat();
        assert!(answers(after_header(&packet), false, 7));
        assert!(after_header(&[0x4f]).is_empty());
        assert_ne!(token(), token());
    }
}
