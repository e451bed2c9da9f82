//! Certificates, made with the openssl program.

use crate::TempDir;
use anyhow::{Context as _, Result, ensure};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The machine's own settings of openssl would add extensions.
const SETTINGS: &str = "[req]\ndistinguished_name = dn\n[dn]\n";
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
const DAYS: &str = "9";
/// What openssl has for such tests: the end is before the beginning.
const EXPIRED: &str = "-1";

/// Files in PEM: what one end of a connection shows to the other, and what it believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The CA that others' certificates are to be from.
    pub ca: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Identity {
    /// Puts a copy of another's certificate and key in place of these, each file at once.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn replace(&self, other: &Self) -> Result<()> {
        for (from, to) in [(&other.key, &self.key), (&other.certificate, &self.certificate)] {
            let new = to.with_extension("new");
            let replaced = std::fs::copy(from, &new).and_then(|_| std::fs::rename(&new, to));
            replaced.with_context(|| format!("putting {} in place of {}", from.display(), to.display()))?;
        }
        Ok(())
    }
}

/// A CA, and whom it has certificates for. All of it goes with this value.
#[derive(Debug)]
pub struct Pki {
    dir: TempDir,
}

impl Pki {
    /// Makes the CA, and one that nobody is to believe.
    ///
    /// # Errors
    /// There is no openssl, or it fails; the message has what it printed.
    pub fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        dir.write("openssl.cnf", SETTINGS)?;
        let pki = Self { dir };
        for name in ["ca", "foreign"] {
            let mut openssl = pki.openssl(&["req", "-x509", "-config", "openssl.cnf", "-days", DAYS]);
            openssl.args(KEY).args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
            openssl.args(["-subj", &format!("/O=vnet tests/CN={name}"), "-addext", "basicConstraints=critical,CA:TRUE"]);
            run(openssl.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]))?;
        }
        Ok(pki)
    }

    /// The certificate of a client, whose common name is this: the same each time, made at the first.
    ///
    /// # Errors
    /// openssl fails; the message has what it printed.
    pub fn client(&self, name: &str) -> Result<Identity> {
        let identity = self.identity(name);
        if identity.certificate.exists() { Ok(identity) } else { self.issue_client(name, name, "ca", DAYS) }
    }

    /// Puts a new certificate with a new key in place of the client's, as one does before the old one expires.
    ///
    /// # Errors
    /// See [`Pki::client`].
    pub fn renew(&self, name: &str) -> Result<Identity> {
        let identity = self.client(name)?;
        identity.replace(&self.issue_client("renewed", name, "ca", DAYS)?)?;
        Ok(identity)
    }

    /// A certificate for the same client that has expired, in other files.
    ///
    /// # Errors
    /// See [`Pki::client`].
    pub fn expired(&self, name: &str) -> Result<Identity> {
        self.issue_client(&format!("{name}-expired"), name, "ca", EXPIRED)
    }

    /// A certificate for the same client from the CA that nobody believes, in other files.
    ///
    /// # Errors
    /// See [`Pki::client`].
    pub fn foreign(&self, name: &str) -> Result<Identity> {
        self.issue_client(&format!("{name}-foreign"), name, "foreign", DAYS)
    }

    /// The certificate of a server at these addresses, which may be a client too, but one without a name.
    ///
    /// # Errors
    /// See [`Pki::client`].
    pub fn server(&self, addresses: &[IpAddr]) -> Result<Identity> {
        let names: Vec<String> = addresses.iter().map(|address| format!("IP:{address}")).collect();
        let names = format!("subjectAltName={}", names.join(","));
        self.issue("server", "/O=vnet tests", "ca", DAYS, &["extendedKeyUsage=serverAuth,clientAuth", &names])
    }

    fn issue_client(&self, files: &str, name: &str, ca: &str, days: &str) -> Result<Identity> {
        self.issue(files, &format!("/O=vnet tests/CN={name}"), ca, days, &["extendedKeyUsage=clientAuth"])
    }

    fn issue(&self, files: &str, subject: &str, ca: &str, days: &str, extensions: &[&str]) -> Result<Identity> {
        let identity = self.identity(files);
        let request = self.dir.path().join(format!("{files}.csr"));
        let mut openssl =
            self.openssl(&["req", "-config", "openssl.cnf", "-subj", subject, "-addext", "basicConstraints=CA:FALSE"]);
        openssl.args(extensions.iter().flat_map(|extension| ["-addext", extension]));
        run(openssl.args(KEY).arg("-keyout").arg(&identity.key).arg("-out").arg(&request))?;
        let mut openssl = self.openssl(&["x509", "-req", "-copy_extensions", "copy", "-days", days]);
        openssl.args(["-CA", &format!("{ca}.pem"), "-CAkey", &format!("{ca}.key")]);
        run(openssl.arg("-in").arg(&request).arg("-out").arg(&identity.certificate))?;
        Ok(identity)
    }

    fn identity(&self, files: &str) -> Identity {
        let file = |name: String| self.dir.path().join(name);
        Identity { ca: file("ca.pem".to_owned()), certificate: file(format!("{files}.pem")), key: file(format!("{files}.key")) }
    }

    fn openssl(&self, args: &[&str]) -> Command {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(self.dir.path()).args(args);
        openssl
    }
}

/// Runs openssl to its end.
fn run(openssl: &mut Command) -> Result<()> {
    let out = openssl.output().context("running openssl (./setup test installs it)")?;
    ensure!(out.status.success(), "{openssl:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// The words by which programs are told of files.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} has other characters than UTF-8's", path.display()))
}
