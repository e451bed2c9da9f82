//! HTTP and HTTPS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::uri::Authority;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::resource::HttpCheck;

/// Bytes of the status line and all headers.
const MOST_HEAD: usize = 64 << 10;
/// Bytes of the body that are read: servers log a client that goes before it has all of a short one.
const MOST_BODY: usize = 16 << 10;
/// Bytes of a file of CA certificates.
const MOST_FILE: u64 = 4 << 20;

/// Asks over an open connection.
pub(super) async fn ask(stream: TcpStream, check: &HttpCheck, target: SocketAddr, tls: &Tls) -> Result<()> {
    if !check.https {
        return exchange(stream, check, target).await;
    }
    let config = tls.config(Trust::of(check)).await?;
    let name = server_name(check, target)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.context("TLS")?;
    exchange(stream, check, target).await
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Send + Unpin, check: &HttpCheck, target: SocketAddr) -> Result<()> {
    let handshake = http1::Builder::new().max_buf_size(MOST_HEAD).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.context("HTTP")?;
    let request = Request::get(&check.path)
        .header(header::HOST, host(check, target))
        .header(header::USER_AGENT, concat!("vnet-health-check/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .context("making the request")?;
    let mut connection = pin!(connection);
    let mut asking = pin!(async {
        let mut response = sender.send_request(request).await.context("HTTP")?;
        let status = response.status();
        ensure!(check.status.iter().any(|range| range.contains(status.as_u16())), "the status is {status}");
        let mut read = 0;
        while read < MOST_BODY
            && let Some(frame) = response.frame().await
        {
            read += frame.context("the body breaks off")?.data_ref().map_or(0, Bytes::len);
        }
        Ok(())
    });
    tokio::select! {
        result = &mut asking => result,
        // The request learns how it ended.
        _ = &mut connection => asking.await,
    }
}

/// The `Host` header.
fn host(check: &HttpCheck, target: SocketAddr) -> String {
    let usual = if check.https { 443 } else { 80 };
    match &check.host {
        Some(host) => host.clone(),
        None if target.port() != usual => target.to_string(),
        None if target.is_ipv6() => format!("[{}]", target.ip()),
        None => target.ip().to_string(),
    }
}

/// What the certificate must be for.
fn server_name(check: &HttpCheck, target: SocketAddr) -> Result<ServerName<'static>> {
    let of_host = || {
        let host: Authority = check.host.as_ref()?.parse().ok()?;
        Some(host.host().trim_matches(['[', ']']).to_owned())
    };
    let name = check.server_name.clone().or_else(of_host).unwrap_or_else(|| target.ip().to_string());
    let parsed = ServerName::try_from(name.clone());
    parsed.with_context(|| format!("no certificate can be for {name}: give `serverName`"))
}

/// Which certificates are taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    /// Of whom this host trusts.
    Host,
    /// Of whom this file names.
    File(PathBuf),
    /// All.
    All,
}

impl Trust {
    fn of(check: &HttpCheck) -> Self {
        match &check.ca_file {
            _ if check.insecure_skip_verify => Self::All,
            Some(path) => Self::File(path.into()),
            None => Self::Host,
        }
    }
}

/// What TLS needs to know, kept from one check to the next.
#[derive(Debug, Default)]
pub(super) struct Tls(Mutex<HashMap<Trust, Kept>>);

/// What was made of a file as it was at that time.
type Kept = (Option<SystemTime>, Arc<ClientConfig>);

impl Tls {
    /// Files are read again when they change; what this host trusts is not.
    async fn config(&self, trust: Trust) -> Result<Arc<ClientConfig>> {
        let mut kept = self.0.lock().await;
        let changed = match &trust {
            Trust::File(path) => Some(changed(path).await?),
            Trust::Host | Trust::All => None,
        };
        if let Some((of, config)) = kept.get(&trust)
            && *of == changed
        {
            return Ok(Arc::clone(config));
        }
        let wanted = trust.clone();
        let config = spawn_blocking(move || make(&wanted)).await.context("reading certificates")??;
        let config = Arc::new(config);
        kept.insert(trust, (changed, Arc::clone(&config)));
        Ok(config)
    }
}

async fn changed(path: &Path) -> Result<SystemTime> {
    let found = tokio::fs::metadata(path).await.and_then(|found| found.modified());
    found.with_context(|| format!("looking at {}", path.display()))
}

fn make(trust: &Trust) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.context("setting up TLS")?;
    let builder = match trust {
        Trust::All => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        Trust::Host => {
            let found = rustls_native_certs::load_native_certs();
            let roots = roots(found.certs);
            ensure!(!roots.is_empty(), "this host trusts no CA: install its certificates (ca-certificates), or give `caFile`");
            builder.with_root_certificates(roots)
        }
        Trust::File(path) => builder.with_root_certificates(read(path)?),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // The handshake is part of what is checked.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn read(path: &Path) -> Result<RootCertStore> {
    let shown = path.display();
    let found = std::fs::metadata(path).with_context(|| format!("looking at {shown}"))?;
    ensure!(found.is_file() && found.len() <= MOST_FILE, "{shown} is no file of at most {} MiB", MOST_FILE >> 20);
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let roots = roots(certificates.with_context(|| format!("reading certificates from {shown}"))?);
    ensure!(!roots.is_empty(), "{shown} has no CA certificate that can be used");
    Ok(roots)
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    store
}

/// Takes any certificate, but not a handshake by somebody who lacks its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

impl Anybody {
    fn algorithms(&self) -> crypto::WebPkiSupportedAlgorithms {
        self.0.signature_verification_algorithms
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn check(yaml: &str) -> HttpCheck {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn target(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_and_names() {
        for (yaml, to, is_host, is_name) in [
            ("{}", "10.0.0.1:80", "10.0.0.1", "10.0.0.1"),
            ("{}", "10.0.0.1:8080", "10.0.0.1:8080", "10.0.0.1"),
            ("{}", "[fd00::1]:80", "[fd00::1]", "fd00::1"),
            ("{ https: true }", "[fd00::1]:80", "[fd00::1]:80", "fd00::1"),
            ("{ https: true }", "10.0.0.1:443", "10.0.0.1", "10.0.0.1"),
            ("{ host: 'a.example:99' }", "10.0.0.1:80", "a.example:99", "a.example"),
            ("{ host: '[fd00::2]:99' }", "10.0.0.1:80", "[fd00::2]:99", "fd00::2"),
            ("{ host: a.example, serverName: b.example }", "10.0.0.1:80", "a.example", "b.example"),
        ] {
            let check = check(yaml);
            assert_eq!(host(&check, target(to)), is_host, "{yaml}");
            assert_eq!(server_name(&check, target(to)).unwrap().to_str(), is_name, "{yaml}");
        }
        assert!(server_name(&check("{ host: 'a b' }"), target("1.2.3.4:1")).is_ok(), "the address");
    }

    /// What comes of a check whose server says this.
    async fn said(yaml: &str, answer: &'static [u8]) -> (String, Result<(), String>) {
        let (ours, mut theirs) = tokio::io::duplex(256);
        let server = tokio::spawn(async move {
            let mut request = vec![0; 4096];
            let length = theirs.read(&mut request).await.unwrap();
            // It may have gone before all was read.
            let _gone = theirs.write_all(answer).await;
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let result = exchange(ours, &check(yaml), target("10.0.0.1:80")).await.map_err(|e| format!("{e:#}"));
        (server.await.unwrap(), result)
    }

    #[tokio::test]
    async fn the_status_decides() {
        let (request, result) =
            said("{ path: '/up?x=1', host: a.example }", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(result, Ok(()));
        assert!(request.starts_with("GET /up?x=1 HTTP/1.1\r\n") && request.contains("host: a.example\r\n"), "{request}");
        for (yaml, answer, result) in [
            ("{}", &b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n"[..], Ok(())),
            ("{}", b"HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            ("{}", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", Ok(())),
            ("{}", b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Err("the status is 503 Service Unavailable")),
            ("{ status: [200-299, 404] }", b"HTTP/1.1 404 Not Found\r\n\r\n", Ok(())),
            ("{ status: [200-299, 404] }", b"HTTP/1.1 302 Found\r\n\r\n", Err("the status is 302 Found")),
            ("{}", b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf", Err("the body breaks off")),
            ("{}", b"220 mail.example ESMTP\r\n", Err("HTTP: ")),
            ("{}", b"", Err("HTTP: ")),
        ] {
            let (_, got) = said(yaml, answer).await;
            match (&got, result) {
                (Ok(()), Ok(())) => {}
                (Err(got), Err(start)) if got.starts_with(start) => {}
                _ => panic!("{yaml}, {}: {got:?}", answer.escape_ascii()),
            }
        }
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_bounded() {
        let endless: &'static [u8] = Vec::leak([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b'x'; 1 << 20]].concat());
        assert_eq!(said("{}", endless).await.1, Ok(()));
        let headers: &'static [u8] = Vec::leak([&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'x'; 1 << 20]].concat());
        let result = said("{}", headers).await.1.unwrap_err();
        assert!(result.contains("too large"), "{result}");
    }

    #[tokio::test]
    async fn files_of_certificates() {
        let dir = std::env::temp_dir().join(format!("vnet-ca-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let tls = Tls::default();
        let error = async |name: &str| format!("{:#}", tls.config(Trust::File(dir.join(name))).await.unwrap_err());
        assert!(error("absent").await.contains("looking at"));
        std::fs::write(dir.join("empty"), "no certificate").unwrap();
        assert!(error("empty").await.contains("has no CA certificate"));
        assert!(error("").await.contains("is no file"));
        tls.config(Trust::All).await.unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
