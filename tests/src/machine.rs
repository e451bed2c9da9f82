//! Machines that serve: a host with an address of each family, and real servers on it.

use crate::{Host, Process, TempDir, wait_for};
use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// A host at the edge of a network.
#[derive(Debug)]
pub struct Machine {
    /// Its name; what its servers answer with.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The host itself.
    pub host: Host,
    servers: Vec<Process>,
    dir: TempDir,
}

impl Machine {
    /// Makes one that is connected to nothing yet; its device is to have these addresses.
    ///
    /// # Errors
    /// See [`Host::new`].
    pub fn new(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Self> {
        Ok(Self { name: name.to_owned(), v4, v6, host: Host::new(name)?, servers: Vec::new(), dir: TempDir::new()? })
    }

    /// Its address of the family of `like`.
    #[must_use]
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    /// Starts nginx. It answers `NAME SERVER-ADDRESS CLIENT-ADDRESS` as it sees them, and serves files that are put into the
    /// directory which this gives. Who asks for the host `checked.lab` gets those of its folder `checked` instead.
    ///
    /// # Errors
    /// It does not serve within 10 s.
    pub fn serve_http(&mut self, port: u16) -> Result<&Path> {
        self.serve_web(port, None)
    }

    /// The same over TLS, with a certificate and its key.
    ///
    /// # Errors
    /// It does not serve within 10 s.
    pub fn serve_https(&mut self, port: u16, certificate: &Path, key: &Path) -> Result<&Path> {
        self.serve_web(port, Some((certificate, key)))
    }

    fn serve_web(&mut self, port: u16, tls: Option<(&Path, &Path)>) -> Result<&Path> {
        let dir = self.dir.path();
        std::fs::create_dir_all(dir.join("checked")).with_context(|| format!("making a folder in {}", dir.display()))?;
        let conf = self.dir.write(&format!("nginx-{port}.conf"), &nginx_conf(&self.name, port, dir, tls))?;
        let conf = conf.to_string_lossy();
        // One process: those that a master forks would outlive it when it is killed.
        let directives = "daemon off; master_process off;";
        let server = self.host.start("nginx", &["-p", &dir.to_string_lossy(), "-c", &conf, "-e", "stderr", "-g", directives])?;
        self.served(server, port)?;
        Ok(self.dir.path())
    }

    /// Starts dnsmasq. The TXT record of `whoami.lab` is the machine's name.
    ///
    /// # Errors
    /// It does not serve within 10 s.
    pub fn serve_dns(&mut self, port: u16) -> Result<()> {
        let pid_file = self.dir.path().join(format!("dnsmasq-{port}.pid"));
        let server = self.host.start(
            "dnsmasq",
            &[
                "--keep-in-foreground".to_owned(),
                "--conf-file=/dev/null".to_owned(),
                "--no-resolv".to_owned(),
                "--no-hosts".to_owned(),
                // The kernel kills with this process only those that keep their user and group.
                "--user=root".to_owned(),
                "--group=root".to_owned(),
                "--log-facility=-".to_owned(),
                format!("--pid-file={}", pid_file.display()),
                format!("--port={port}"),
                format!("--txt-record=whoami.lab,{}", self.name),
            ],
        )?;
        self.served(server, port)
    }

    /// Its servers, in the order they were started.
    #[must_use]
    pub fn servers(&self) -> &[Process] {
        &self.servers
    }

    /// Ends all its servers; what was sent to them is refused from now on.
    pub fn end_servers(&mut self) {
        self.servers.clear();
    }

    /// Both kinds of server listen on TCP too.
    fn served(&mut self, mut server: Process, port: u16) -> Result<()> {
        let ready = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok().then_some(());
        let what = format!("port {port} of {} to be served", self.name);
        let served = self.host.run(|| wait_for(&what, Duration::from_secs(10), ready))?;
        served.with_context(|| format!("{}\n{:?}", server.printed(), server.ended()))?;
        self.servers.push(server);
        Ok(())
    }
}

fn nginx_conf(name: &str, port: u16, dir: &Path, tls: Option<(&Path, &Path)>) -> String {
    let dir = dir.display();
    let certificate = tls.map(|(certificate, key)| {
        format!("ssl_certificate {};\n    ssl_certificate_key {};", certificate.display(), key.display())
    });
    let (certificate, ssl) = (certificate.unwrap_or_default(), if tls.is_some() { " ssl" } else { "" });
    format!(
        "pid {dir}/nginx-{port}.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    {certificate}
    server {{
        listen {port}{ssl};
        listen [::]:{port}{ssl};
        root {dir};
        location = / {{ return 200 \"{name} $server_addr $remote_addr\\n\"; }}
    }}
    server {{
        listen {port}{ssl};
        listen [::]:{port}{ssl};
        server_name checked.lab;
        root {dir}/checked;
    }}
}}
"
    )
}
