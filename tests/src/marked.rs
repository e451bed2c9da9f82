//! A web server with a marked file, which says when it sent it.

use crate::{Host, MARK};
use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Serves a file with [`MARK`] in it, one connection after the other.
#[derive(Debug)]
pub struct Marked {
    address: SocketAddr,
    sent: Receiver<Instant>,
}

impl Marked {
    /// Starts it in `host`. It ends with the process, or with the first request after this value is gone.
    ///
    /// # Errors
    /// The address is taken.
    pub fn serve(host: &Host, address: SocketAddr) -> Result<Self> {
        let listener = host.run(|| TcpListener::bind(address))?.with_context(|| format!("listening on {address}"))?;
        let (to, sent) = channel();
        std::thread::spawn(move || {
            // A connection that fails is the client's matter. Each stays open until the next one comes.
            let mut open: Option<TcpStream> = None;
            for mut stream in listener.incoming().flatten() {
                drop(open.take());
                if !answer(&mut stream, &to) {
                    return;
                }
                open = Some(stream);
            }
        });
        Ok(Self { address, sent })
    }

    /// Has `client` ask for the file; gives when its first bytes were sent. Both sides leave the connection
    /// open: what is reported of one at its end would come too late.
    ///
    /// # Errors
    /// The client cannot connect, or the server gets no request.
    pub fn fetch(&self, client: &Host) -> Result<(TcpStream, Instant)> {
        let address = self.address;
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(3));
        let mut stream = client.run(connect)?.with_context(|| format!("connecting to {address}"))?;
        stream.write_all(format!("GET /file HTTP/1.1\r\nHost: {}\r\n\r\n", address.ip()).as_bytes())?;
        match self.sent.recv_timeout(Duration::from_secs(3)) {
            Ok(at) => Ok((stream, at)),
            Err(error) => bail!("no request reached {address}: {error}"),
        }
    }
}

/// Does anybody still want to know?
fn answer(stream: &mut TcpStream, to: &Sender<Instant>) -> bool {
    let mut request = [0; 1024];
    let read = stream.read(&mut request).unwrap_or(0);
    if !request[..read].starts_with(b"GET") {
        return true;
    }
    let body = format!("here is the {MARK} of this file\n");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length:";
    let text = format!("{head} {}\r\n\r\n{body}", body.len());
    let at = Instant::now();
    // Whether it arrives is for the client to say.
    let _ = stream.write_all(text.as_bytes());
    to.send(at).is_ok()
}
