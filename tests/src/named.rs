//! Connections whose other end says who it is: so a test sees when a connection comes to somebody else, or ends.

use crate::{Host, Machine};
use anyhow::{Context as _, Result};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long [`Open`] waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers every byte with two letters of the machine's name, on each connection, until the process ends.
///
/// # Errors
/// The port is taken.
pub fn serve_name(machine: &Machine, address: IpAddr, port: u16) -> Result<()> {
    let listener = machine.host.run(|| TcpListener::bind(SocketAddr::new(address, port)))??;
    let name = machine.name.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(
                move || {
                    while stream.read_exact(&mut [0]).is_ok() && stream.write_all(&name.as_bytes()[..2]).is_ok() {}
                },
            );
        }
    });
    Ok(())
}

/// A connection to what [`serve_name`] started.
#[derive(Debug)]
pub struct Open {
    stream: TcpStream,
    /// Who answered first.
    pub who: String,
}

impl Open {
    /// Opens one from a host.
    ///
    /// # Errors
    /// Nobody accepts it, or answers.
    pub fn to(from: &Host, address: IpAddr, port: u16) -> Result<Self> {
        let to = SocketAddr::new(address, port);
        let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
        let stream = stream.with_context(|| format!("connecting to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut open = Self { stream, who: String::new() };
        open.who = open.ask()?;
        Ok(open)
    }

    /// Asks who is there.
    ///
    /// # Errors
    /// The connection has ended, or nobody answers.
    pub fn ask(&mut self) -> Result<String> {
        self.stream.write_all(&[1])?;
        let mut answer = [0; 2];
        self.stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// It gets no answer, as whom somebody in between keeps from it.
    ///
    /// # Errors
    /// The socket is none.
    pub fn is_cut(&mut self) -> Result<bool> {
        self.stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        let cut = self.ask().is_err();
        self.stream.set_read_timeout(Some(PATIENCE))?;
        Ok(cut)
    }
}
