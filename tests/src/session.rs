//! Connections that stay open.

use crate::Host;
use anyhow::{Context as _, Result};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A connection between two hosts, both ends in hand.
#[derive(Debug)]
pub struct Session {
    /// At the host that opened it.
    pub client: TcpStream,
    /// At the other.
    pub server: TcpStream,
}

impl Session {
    /// Opens one from `from` to a port of `to`.
    ///
    /// # Errors
    /// The port is taken, or nothing answers within 2 s.
    pub fn open(from: &Host, to: &Host, address: IpAddr, port: u16) -> Result<Self> {
        let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, port)))??;
        let client = from.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2)))?;
        let client = client.with_context(|| format!("connecting to {address} port {port}"))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nonblocking(true)?;
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    /// Sends some bytes each way, if there is room for them; `false`: an end is closed.
    pub fn send(&mut self) -> bool {
        let closed = |end: &mut TcpStream| end.write(&[0x55; 100]).is_err_and(|e| e.kind() != ErrorKind::WouldBlock);
        ![&mut self.client, &mut self.server].into_iter().any(closed)
    }

    /// Sends both ways; gives the bytes that arrive at the server and at the client within this time.
    ///
    /// # Errors
    /// An end fails, other than by a reset.
    pub fn exchange(&mut self, time: Duration) -> Result<[usize; 2]> {
        let start = Instant::now();
        let mut arrived = [0; 2];
        while start.elapsed() < time {
            if !self.send() {
                return Ok(arrived);
            }
            arrived[0] += received(&mut self.server)?;
            arrived[1] += received(&mut self.client)?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(arrived)
    }

    /// Takes what is on its way.
    ///
    /// # Errors
    /// See [`Session::exchange`].
    pub fn drain(&mut self) -> Result<()> {
        received(&mut self.client)?;
        received(&mut self.server)?;
        Ok(())
    }
}

fn received(end: &mut TcpStream) -> Result<usize> {
    let (mut all, mut buffer) = (0, [0; 4096]);
    loop {
        match end.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(n) => all += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(all),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(all),
            Err(e) => return Err(e.into()),
        }
    }
}
