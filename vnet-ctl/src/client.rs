//! HTTP over the agent's socket.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;
use vnet_common::api::ErrorResponse;

use crate::failure::Refused;
use crate::progress;

/// The agent, by its socket.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    patience: Duration,
}

impl Agent {
    /// The agent at `socket`, which has `patience` to answer each request.
    pub fn new(socket: PathBuf, patience: Duration) -> Self {
        Self { socket, patience }
    }

    /// Asks for what is at `path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, None).await
    }

    /// Asks for what is at `path`, without a word about waiting: for a screen that is being drawn on.
    pub async fn get_quietly<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        decode(&self.exchange(Method::GET, path, None).await?)
    }

    /// Sends `body` to `path`.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T> {
        let body = serde_json::to_vec(body).context("writing the request as JSON")?;
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Sends `body` to `path` as it is.
    pub async fn post_text<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// How long it has to answer.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The same agent, which has `patience` to answer.
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { socket: self.socket.clone(), patience }
    }

    /// Asks for what is at `path`, which comes as JSON objects, one a line, for as long as it takes.
    pub async fn stream(&self, path: &str) -> Result<Lines> {
        let begun = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
            let response = self.begin(stream, request(Method::GET, path, None)?).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(Lines { body: response.into_body(), buffer: Vec::new() });
            }
            let body = response.into_body().collect().await.with_context(|| self.broken())?.to_bytes();
            Err(refused(status, &body).into())
        };
        timeout(self.patience, begun).await.unwrap_or_else(|_| Err(self.silent()))
    }

    /// Sends nothing to `path`.
    pub async fn post_empty<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::POST, path, None).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<T> {
        decode(&progress::during(self.exchange(method, path, body)).await?)
    }

    /// One request on a connection of its own: the whole of it within the time there is.
    async fn exchange(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes> {
        let exchange = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
            self.converse(stream, request(method, path, body)?).await
        };
        timeout(self.patience, exchange).await.unwrap_or_else(|_| Err(self.silent()))
    }

    async fn converse(&self, stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Bytes> {
        let response = self.begin(stream, request).await?;
        let status = response.status();
        let body = response.into_body().collect().await.with_context(|| self.broken())?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(refused(status, &body).into()) }
    }

    /// Sends a request, and gives the answer's beginning.
    async fn begin(&self, stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(|| self.broken())?;
        // Its errors are also those of the request.
        tokio::spawn(connection);
        sender.send_request(request).await.with_context(|| self.broken())
    }

    fn broken(&self) -> String {
        format!(
            "the agent at {} closed the connection without a complete answer; its log may say why: journalctl -u vnet-agent",
            self.socket.display()
        )
    }

    fn silent(&self) -> anyhow::Error {
        anyhow!(
            "the agent at {} has not answered within {} s: it may be busy (--timeout waits longer) or hang (journalctl -u vnet-agent)",
            self.socket.display(),
            self.patience.as_secs_f64()
        )
    }

    fn unreachable(&self, error: &std::io::Error) -> anyhow::Error {
        let socket = self.socket.display();
        let why = match error.kind() {
            ErrorKind::NotFound => "there is no such socket".to_owned(),
            ErrorKind::ConnectionRefused if !is_socket(&self.socket) => "this is not a socket".to_owned(),
            ErrorKind::ConnectionRefused => "nobody listens there any more".to_owned(),
            ErrorKind::PermissionDenied => {
                return anyhow!(
                    "cannot reach the agent at {socket}: you may not open this socket. Use sudo, or ask for access to it"
                );
            }
            _ => error.to_string(),
        };
        anyhow!(
            "cannot reach the agent at {socket}: {why}. Is vnet-agent running? systemctl status vnet-agent; \
             another socket: --socket PATH or VNET_SOCKET"
        )
    }
}

/// A line of a stream at most: nothing that the agent sends is near it.
const LINE_LIMIT: usize = 1 << 20;

/// JSON objects that come one a line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next one; `None` when the agent has ended the stream, or the connection broke.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                // An empty line is a sign of life.
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return decode(&line).map(Some);
            }
            ensure!(self.buffer.len() <= LINE_LIMIT, "the agent sent a line of over 1 MiB: is it really vnet-agent?");
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                // What was begun and not ended is of no use to anyone.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn request(method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Request<Full<Bytes>>> {
    let mut request = Request::builder().method(method).uri(path).header(HOST, "vnet-agent");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    request.body(Full::from(body.unwrap_or_default())).with_context(|| format!("making a request for {path}"))
}

fn refused(status: StatusCode, body: &[u8]) -> Refused {
    let response = serde_json::from_slice(body).unwrap_or_else(|_| ErrorResponse {
        error: format!("the agent answered {status}, without saying why: is it really vnet-agent?"),
        faults: Vec::new(),
    });
    Refused { status: status.as_u16(), response }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .context("the agent's answer is not what this version understands; `vnet-ctl version` shows both versions")
}

/// One part of a path, whatever it contains.
pub fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    // A lone dot or two would be taken for a direction.
    if encoded.bytes().all(|byte| byte == b'.') { encoded.replace('.', "%2E") } else { encoded }
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn names_cannot_leave_their_segment() {
        for (text, path) in
            [("web", "web"), ("fd00::1", "fd00::1"), ("a/b?c%", "a%2Fb%3Fc%25"), ("..", "%2E%2E"), ("é", "%C3%A9")]
        {
            assert_eq!(segment(text), path);
        }
    }
}
