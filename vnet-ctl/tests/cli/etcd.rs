//! A real etcd of one member on this machine, and certificates for it.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;
use vnet_common::etcd::{Access, Client, Tls, Write};
use vnet_common::fleet::Key;

/// The store; ended with this value, or with the test's thread.
pub struct Etcd {
    child: Child,
    directory: PathBuf,
    port: u16,
    certificates: Option<Certificates>,
    runtime: Runtime,
}

/// A certificate authority in a directory.
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    fn new(directory: PathBuf) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let own = Self { directory };
        let args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let names = ["-subj", "/CN=fleet authority", "-keyout", "ca.key", "-out", "ca.crt"];
        own.openssl(&[&args[..], &names].concat());
        own.issue("server", "subjectAltName=IP:127.0.0.1");
        own
    }

    fn openssl(&self, args: &[&str]) {
        let ran = Command::new("openssl").args(args).current_dir(&self.directory).output().unwrap();
        assert!(ran.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    /// Makes a certificate for this name.
    fn issue(&self, name: &str, extension: &str) {
        let file = |end: &str| format!("{name}.{end}");
        std::fs::write(self.directory.join(file("ext")), extension).unwrap();
        let request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        self.openssl(
            &[&request[..], &["-subj", &format!("/O=vnet/CN={name}"), "-keyout", &file("key"), "-out", &file("csr")]].concat(),
        );
        let sign = ["x509", "-req", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
        self.openssl(&[&sign[..], &["-in", &file("csr"), "-extfile", &file("ext"), "-out", &file("crt")]].concat());
    }

    /// The files of whoever has this name; made when first asked for.
    pub fn of(&self, name: &str) -> Tls {
        if !self.directory.join(format!("{name}.crt")).exists() {
            self.issue(name, "extendedKeyUsage=clientAuth");
        }
        let file = |name: String| self.directory.join(name);
        Tls { ca: file("ca.crt".into()), cert: file(format!("{name}.crt")), key: file(format!("{name}.key")) }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// Without TLS.
    pub fn start() -> Self {
        Self::start_with(None, &[])
    }

    /// With TLS; clients are known by their certificates once that is enabled.
    pub fn start_tls() -> Self {
        Self::start_with(Some(()), &["--client-cert-auth"])
    }

    /// With TLS, but clients' names are not looked at.
    pub fn start_tls_nameless() -> Self {
        Self::start_with(Some(()), &[])
    }

    fn start_with(tls: Option<()>, more: &[&str]) -> Self {
        let place = Path::new("/dev/shm");
        let place = if place.is_dir() { place.to_owned() } else { std::env::temp_dir() };
        let directory = nix::unistd::mkdtemp(&place.join("vnet-etcd-XXXXXX")).unwrap();
        let certificates = tls.map(|()| Certificates::new(directory.join("certificates")));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (child, port) = Self::spawn(&directory, certificates.as_ref(), more);
        let mut own = Self { child, directory, port, certificates, runtime };
        let begun = Instant::now();
        while let Err(error) = own.runtime.block_on(own.access("root").connect(&own.endpoint())) {
            if let Some(status) = own.child.try_wait().unwrap() {
                // Somebody else may have taken the port.
                assert!(begun.elapsed() < Duration::from_secs(30), "etcd ended: {status}");
                let _ = std::fs::remove_dir_all(own.directory.join("data"));
                (own.child, own.port) = Self::spawn(&own.directory, own.certificates.as_ref(), more);
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "etcd does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        own
    }

    fn spawn(directory: &Path, certificates: Option<&Certificates>, more: &[&str]) -> (Child, u16) {
        let (port, peers) = (free_port(), free_port());
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let (clients, peers) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(directory.join("data"));
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}"), "--log-level", "error"]);
        if let Some(certificates) = certificates {
            let Tls { ca, cert, key } = certificates.of("server");
            command.arg("--trusted-ca-file").arg(ca).arg("--cert-file").arg(cert).arg("--key-file").arg(key);
            command.args(more);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec one system call is made, and nothing is allocated.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?));
        }
        (command.spawn().unwrap(), port)
    }

    /// As `127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// As `etcd://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.endpoint())
    }

    /// The files of whoever has this name.
    pub fn tls(&self, name: &str) -> Tls {
        self.certificates.as_ref().unwrap().of(name)
    }

    /// As whoever has this name.
    pub fn access(&self, name: &str) -> Access {
        Access::new(&self.url(), self.certificates.as_ref().map(|all| all.of(name))).unwrap()
    }

    /// Options with which the program comes as whoever has this name.
    pub fn options(&self, name: &str) -> Vec<String> {
        let Tls { ca, cert, key } = self.tls(name);
        let option = |name: &str, file: PathBuf| [name.to_owned(), file.display().to_string()];
        [option("--store-ca", ca), option("--store-cert", cert), option("--store-key", key)].concat()
    }

    fn client(&self) -> Client {
        self.runtime.block_on(self.access("root").connect(&self.endpoint())).unwrap()
    }

    /// What a key has, with its revision.
    pub fn get(&self, key: &Key) -> Option<(Value, i64)> {
        self.get_raw(&key.to_string())
    }

    /// The same of any key.
    pub fn get_raw(&self, key: &str) -> Option<(Value, i64)> {
        let mut client = self.client();
        let entry = self.runtime.block_on(client.get(key)).unwrap()?;
        Some((serde_json::from_slice(&entry.value).unwrap(), entry.modified))
    }

    /// The revision in which a key came.
    pub fn created(&self, key: &str) -> i64 {
        let mut client = self.client();
        self.runtime.block_on(client.get(key)).unwrap().unwrap().created
    }

    /// The keys that begin with this.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let mut client = self.client();
        self.runtime.block_on(client.read(prefix)).unwrap().entries.into_keys().collect()
    }

    /// Writes as somebody else would: the key alone.
    pub fn put(&self, key: &Key, value: &Value) -> i64 {
        self.write(&[Write::Put(key.to_string(), value.to_string().into_bytes(), 0)])
    }

    /// Writes.
    pub fn write(&self, writes: &[Write]) -> i64 {
        let mut client = self.client();
        self.runtime.block_on(client.write(writes)).unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
