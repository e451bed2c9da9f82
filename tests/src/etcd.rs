//! Real clusters of etcd, which all fail as one would like them to.

use crate::pki::{Identity, Pki, text};
use crate::{Host, Process, TempDir, wait_for};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The user who may everything once access is controlled.
pub const ROOT: &str = "root";
/// How long a member that has what it needs takes to be up, at most.
const UP: Duration = Duration::from_secs(20);

/// A cluster whose members are processes of one host; killed with this value. Who talks to it needs a certificate of its
/// [`Pki`], whose common name is the user's. Access is not controlled until somebody says so.
///
/// Its functions take it shared, since those who use it while it fails hold it too.
#[derive(Debug)]
pub struct Etcd {
    /// Who may be its clients.
    pub pki: Pki,
    host: Host,
    addresses: Vec<IpAddr>,
    server: Identity,
    /// Of a CA of their own: who may be a client may be no member.
    peer: Identity,
    members: Vec<Mutex<Member>>,
    dir: TempDir,
    _peers: Pki,
}

#[derive(Debug, Default)]
struct Member {
    process: Option<Process>,
    paused: bool,
}

impl Etcd {
    /// Starts as many members in `host`, and waits until they serve. Member `i` serves clients at these addresses of the host,
    /// port 2379 + 100 × `i`.
    ///
    /// # Errors
    /// It is not installed, or does not serve within 20 s; the message has what the members logged.
    pub fn start(host: &Host, addresses: &[IpAddr], members: usize) -> Result<Self> {
        let (pki, peers) = (Pki::new()?, Pki::new()?);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let etcd = Self {
            server: pki.server(&[addresses, &[loopback]].concat())?,
            peer: peers.server(&[loopback])?,
            pki,
            host: host.try_clone()?,
            addresses: addresses.to_vec(),
            members: (0..members).map(|_| Mutex::default()).collect(),
            dir: TempDir::in_memory()?,
            _peers: peers,
        };
        etcd.start_all()?;
        Ok(etcd)
    }

    /// Where its clients find it, as they are told: `etcd://10.99.0.1:2379,10.99.0.1:2479`. Its first address only.
    #[must_use]
    pub fn endpoints(&self) -> String {
        format!("etcd://{}", self.at_first_address().join(","))
    }

    fn at_first_address(&self) -> Vec<String> {
        let of = |member| self.addresses.first().map(|&address| SocketAddr::new(address, port(member)).to_string());
        (0..self.members.len()).filter_map(of).collect()
    }

    /// Kills a member, as a crash would. What it has stored stays.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self, member: usize) -> Result<()> {
        let mut it = self.member(member);
        it.running(member)?.stop(Signal::SIGKILL)?;
        *it = Member::default();
        Ok(())
    }

    /// Starts a member again, with what it had stored; waits until it serves, if more than half of the members run.
    ///
    /// # Errors
    /// It runs already, or does not serve within 20 s; the message has what the members logged.
    pub fn restart(&self, member: usize) -> Result<()> {
        self.begin(member)?;
        let running = (0..self.members.len()).filter(|&i| self.member(i).takes_part()).count();
        if running * 2 > self.members.len() { self.wait_for_member(member) } else { Ok(()) }
    }

    /// Kills all members that run.
    ///
    /// # Errors
    /// One does not end.
    pub fn stop_all(&self) -> Result<()> {
        (0..self.members.len()).filter(|&i| self.member(i).process.is_some()).try_for_each(|i| self.kill(i))
    }

    /// Kills all members that run, and throws away what all had stored: those that start then are a new cluster.
    ///
    /// # Errors
    /// One does not end, or its files cannot be removed.
    pub fn lose_all(&self) -> Result<()> {
        self.stop_all()?;
        (0..self.members.len()).try_for_each(|i| {
            let data = self.dir.path().join(name(i));
            std::fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))
        })
    }

    /// Starts all members that do not run, with what they had stored, and waits until all serve.
    ///
    /// # Errors
    /// One does not serve within 20 s; the message has what the members logged.
    pub fn start_all(&self) -> Result<()> {
        (0..self.members.len()).filter(|&i| self.member(i).process.is_none()).try_for_each(|i| self.begin(i))?;
        (0..self.members.len()).try_for_each(|i| self.wait_for_member(i))
    }

    /// Stops a member where it is: it keeps its connections, and answers nobody.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self, member: usize) -> Result<()> {
        let mut it = self.member(member);
        it.running(member)?.signal(Signal::SIGSTOP)?;
        it.paused = true;
        Ok(())
    }

    /// Lets a member go on that was paused.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self, member: usize) -> Result<()> {
        let mut it = self.member(member);
        it.running(member)?.signal(Signal::SIGCONT)?;
        it.paused = false;
        Ok(())
    }

    /// The number of the last change.
    ///
    /// # Errors
    /// See [`Etcd::etcdctl`].
    pub fn revision(&self) -> Result<i64> {
        let answer = self.etcdctl(ROOT, &["get", "any", "--keys-only", "--write-out=json"])?;
        let answer: serde_json::Value = serde_json::from_str(&answer).with_context(|| format!("etcdctl printed {answer}"))?;
        answer["header"]["revision"].as_i64().with_context(|| format!("etcdctl printed {answer}"))
    }

    /// Forgets what was before this revision: who wants to follow the changes from there on cannot any more.
    ///
    /// # Errors
    /// See [`Etcd::etcdctl`]; there is no such revision, or it was forgotten itself.
    pub fn compact(&self, revision: i64) -> Result<()> {
        self.etcdctl(ROOT, &["compact", "--physical", &revision.to_string()]).map(drop)
    }

    /// Runs etcdctl in the cluster's host as this user, and gives what it prints.
    ///
    /// # Errors
    /// It fails, for one when it has no answer within 5 s (`--command-timeout`); the message has what it printed.
    pub fn etcdctl(&self, user: &str, args: &[&str]) -> Result<String> {
        self.etcdctl_with(&self.pki.client(user)?, args)
    }

    /// The same with any certificate.
    ///
    /// # Errors
    /// See [`Etcd::etcdctl`].
    pub fn etcdctl_with(&self, client: &Identity, args: &[&str]) -> Result<String> {
        let endpoints = format!("--endpoints={}", self.at_first_address().join(","));
        let (ca, certificate, key) = (text(&client.ca)?, text(&client.certificate)?, text(&client.key)?);
        let options = [&endpoints, "--cacert", ca, "--cert", certificate, "--key", key];
        self.host.output("etcdctl", &[&options, args].concat())
    }

    /// What a member says to its peers of who belongs to the cluster, asked with this certificate.
    ///
    /// # Errors
    /// It does not take the certificate; the message has what curl says of that.
    pub fn ask_as_peer(&self, member: usize, who: &Identity) -> Result<String> {
        let url = format!("{}/members", peer_url(member));
        let (certificate, key) = (text(&who.certificate)?, text(&who.key)?);
        self.host
            .output("curl", &["-sS", "--http1.1", "--max-time", "5", "--insecure", "--cert", certificate, "--key", key, &url])
    }

    /// With what members talk to each other.
    #[must_use]
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// What the members that run have logged.
    #[must_use]
    pub fn logged(&self) -> String {
        let of = |i: usize| {
            let printed = self.member(i).process.as_ref().map(Process::printed);
            format!("member {i} of etcd: {}\n", printed.as_deref().unwrap_or("does not run"))
        };
        (0..self.members.len()).map(of).collect()
    }

    fn member(&self, member: usize) -> MutexGuard<'_, Member> {
        self.members[member].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, member: usize) -> Result<()> {
        let mut it = self.member(member);
        ensure!(it.process.is_none(), "member {member} of etcd runs already");
        let urls: Vec<String> =
            self.addresses.iter().map(|&address| format!("https://{}", SocketAddr::new(address, port(member)))).collect();
        let urls = urls.join(",");
        let peers: Vec<String> = (0..self.members.len()).map(|i| format!("{}={}", name(i), peer_url(i))).collect();
        let peers = peers.join(",");
        let data = self.dir.path().join(name(member));
        let (name, url, metrics) = (name(member), peer_url(member), format!("http://{}", metrics_address(member)));
        let args = [
            ["--name", &name],
            ["--data-dir", text(&data)?],
            ["--listen-client-urls", &urls],
            ["--advertise-client-urls", &urls],
            ["--listen-peer-urls", &url],
            ["--initial-advertise-peer-urls", &url],
            ["--initial-cluster", &peers],
            ["--initial-cluster-state", "new"],
            ["--trusted-ca-file", text(&self.server.ca)?],
            ["--cert-file", text(&self.server.certificate)?],
            ["--key-file", text(&self.server.key)?],
            ["--peer-trusted-ca-file", text(&self.peer.ca)?],
            ["--peer-cert-file", text(&self.peer.certificate)?],
            ["--peer-key-file", text(&self.peer.key)?],
            ["--listen-metrics-urls", &metrics],
            // In ms. The more heartbeats an election has, the less likely two members try at once.
            ["--heartbeat-interval", "50"],
            ["--election-timeout", "1000"],
            ["--logger", "zap"],
            ["--log-level", "warn"],
            ["--log-outputs", "stderr"],
        ];
        let args = [args.as_flattened(), &["--client-cert-auth", "--peer-client-cert-auth"]].concat();
        let process = self.host.start("etcd", &args).context("starting etcd (./setup test installs it)")?;
        *it = Member { process: Some(process), paused: false };
        drop(it);
        // A member of a new cluster asks each of the others whether it was there before, and waits a second for one that already
        // listens, yet does not answer. So they come one after the other, until each answers: it measures itself from then on.
        let connected = || TcpStream::connect(metrics_address(member)).is_ok();
        self.wait_until("listen", member, || self.host.run(connected).unwrap_or(false))
    }

    fn wait_for_member(&self, member: usize) -> Result<()> {
        self.wait_until("serve", member, || self.is_healthy(member))
    }

    fn wait_until(&self, what: &str, member: usize, is_so: impl Fn() -> bool) -> Result<()> {
        let ended = || self.member(member).running(member).and_then(Process::ended).transpose();
        let waited = wait_for(&format!("member {member} of etcd to {what}"), UP, || match ended() {
            Some(Ok(status)) => Some(Err(anyhow::anyhow!("member {member} of etcd has ended ({status})"))),
            Some(Err(error)) => Some(Err(error)),
            None => is_so().then_some(Ok(())),
        });
        waited.and_then(|result| result).with_context(|| self.logged())
    }

    /// What a member measures of itself, as Prometheus reads it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self, member: usize) -> Result<String> {
        self.get(member, "/metrics", Duration::from_secs(5))
            .with_context(|| format!("asking member {member} of etcd for its metrics"))
    }

    /// As a member says itself: it has a leader, and reads through it.
    fn is_healthy(&self, member: usize) -> bool {
        let answer = self.get(member, "/health", Duration::from_millis(200));
        answer.is_ok_and(|answer| answer.contains("\"health\":\"true\""))
    }

    fn get(&self, member: usize, path: &str, patience: Duration) -> Result<String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(metrics_address(member))?;
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        Ok(self.host.run(ask)??)
    }
}

impl Member {
    fn running(&mut self, member: usize) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("member {member} of etcd does not run"))
    }

    fn takes_part(&self) -> bool {
        self.process.is_some() && !self.paused
    }
}

fn name(member: usize) -> String {
    format!("m{member}")
}

/// Where clients find it; peers and measurements are at the next two.
fn port(member: usize) -> u16 {
    2379 + 100 * u16::try_from(member).expect("a cluster has few members")
}

fn peer_url(member: usize) -> String {
    format!("https://127.0.0.1:{}", port(member) + 1)
}

fn metrics_address(member: usize) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port(member) + 2).into()
}
