//! Many connections: servers that keep each for a time of their own, and clients that open them at a steady rate.

use crate::{Host, Machine, machine_behind};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at what was opened and closed.
const MOMENT: Duration = Duration::from_millis(5);
/// A client that nobody answers goes on after this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that a client has open at most: a mistake is to end in few connections, rather than in no memory.
const MOST: usize = 4000;

/// A TCP server in a host. Dropped, it ends, with its connections.
#[derive(Debug)]
pub struct Server {
    counts: Arc<Counts>,
    work: Worker,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    accepted: Mutex<BTreeMap<IpAddr, u64>>,
}

impl Server {
    /// Starts it. It says nothing, and closes each connection after this time; without one, when the client does.
    ///
    /// # Errors
    /// The address is taken.
    pub fn start(host: &Host, address: SocketAddr, stay: Option<Duration>) -> Result<Self> {
        let listener = host.run(|| TcpListener::bind(address))?.with_context(|| format!("listening on {address}"))?;
        listener.set_nonblocking(true)?;
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        let work = Worker::start(move |go_on| serve(&listener, stay, &counting, go_on));
        Ok(Self { counts, work })
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// How many connections it has accepted, by who opened them.
    #[must_use]
    pub fn accepted(&self) -> BTreeMap<IpAddr, u64> {
        self.counts.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, with its connections.
    pub fn end(&mut self) {
        self.work.end();
    }
}

fn serve(listener: &TcpListener, stay: Option<Duration>, counts: &Counts, go_on: &AtomicBool) {
    let mut open: VecDeque<(Instant, TcpStream)> = VecDeque::new();
    while go_on.load(Ordering::Relaxed) {
        // A client that is gone already is none.
        while let Ok((stream, from)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                *counts.accepted.lock().unwrap_or_else(PoisonError::into_inner).entry(from.ip()).or_default() += 1;
                open.push_back((Instant::now(), stream));
            }
        }
        match stay {
            Some(stay) => drop(open.drain(..open.partition_point(|(since, _)| since.elapsed() >= stay))),
            None => open.retain_mut(|(_, stream)| is_open(stream)),
        }
        counts.open.store(open.len() as u64, Ordering::Relaxed);
        std::thread::sleep(MOMENT);
    }
}

/// Members of a load balancer, which keep connections for different times: `m1` at 10.0.1.11, `m2` at 10.0.1.12 …, port 8080.
#[derive(Debug)]
pub struct Farm {
    /// Their servers, in this order.
    pub servers: Vec<Server>,
    machines: Vec<Machine>,
}

impl Farm {
    /// Makes one machine behind `router` for each of these times.
    ///
    /// # Errors
    /// See [`machine_behind`] and [`Server::start`].
    pub fn new(router: &Host, stays: &[Option<Duration>]) -> Result<Self> {
        let (mut servers, mut machines) = (Vec::new(), Vec::new());
        for (number, stay) in (1..).zip(stays) {
            let machine = machine_behind(router, &format!("m{number}"), &format!("m{number}"), 10 + number)?;
            servers.push(Server::start(&machine.host, (machine.v4, 8080).into(), *stay)?);
            machines.push(machine);
        }
        Ok(Self { servers, machines })
    }

    /// Connections that each has open now.
    #[must_use]
    pub fn open(&self) -> Vec<u64> {
        self.servers.iter().map(Server::open).collect()
    }

    /// Ends the server of a member, counted from 0: connections to it are refused.
    ///
    /// # Panics
    /// There are not as many.
    pub fn end(&mut self, member: usize) {
        self.servers[member].end();
    }

    /// Starts it again.
    ///
    /// # Errors
    /// See [`Server::start`].
    ///
    /// # Panics
    /// There are not as many.
    pub fn start(&mut self, member: usize, stay: Option<Duration>) -> Result<()> {
        self.end(member);
        let machine = &self.machines[member];
        self.servers[member] = Server::start(&machine.host, (machine.v4, 8080).into(), stay)?;
        Ok(())
    }

    /// A load balancer `web` of these members at this VIP, port 80, with these further lines in its `spec`.
    #[must_use]
    pub fn balancer(&self, vip: IpAddr, more: &str) -> String {
        let members: String = self
            .machines
            .iter()
            .map(|machine| format!("    - {{ name: {}, address: {}, port: 8080 }}\n", machine.name, machine.v4))
            .collect();
        format!(
            "apiVersion: vnet/v1alpha1\nkind: LoadBalancer\nmetadata: {{ name: web }}\nspec:\n  vips: [{vip}]\n  protocol: TCP\n  ports: \
             [80]\n{more}  members:\n{members}"
        )
    }
}

/// Clients in hosts, which open connections and close them when the server has. Dropped, they end, with their connections.
#[derive(Debug)]
pub struct Clients {
    failed: Arc<AtomicU64>,
    _work: Vec<Worker>,
}

impl Clients {
    /// Has each of these hosts open so many connections a second to `to`, 4,000 at a time at most.
    ///
    /// # Errors
    /// This process has no descriptors left.
    pub fn start<'a>(hosts: impl IntoIterator<Item = &'a Host>, to: SocketAddr, per_second: u32) -> Result<Self> {
        let failed = Arc::new(AtomicU64::new(0));
        let start = |host: &Host| {
            let (host, failed) = (host.try_clone()?, Arc::clone(&failed));
            let every = Duration::from_secs(1) / per_second;
            // A host that cannot be entered is one whose connections all fail.
            let work = move |go_on: &AtomicBool| host.run(|| connect(to, every, &failed, go_on)).unwrap_or(());
            Ok(Worker::start(work))
        };
        let work = hosts.into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { failed, _work: work })
    }

    /// Connections that were refused or not answered.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

fn connect(to: SocketAddr, every: Duration, failed: &AtomicU64, go_on: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    let (mut next, mut looked) = (Instant::now(), Instant::now());
    while go_on.load(Ordering::Relaxed) {
        while Instant::now() >= next && open.len() < MOST && go_on.load(Ordering::Relaxed) {
            match TcpStream::connect_timeout(&to, PATIENCE).and_then(|stream| stream.set_nonblocking(true).map(|()| stream)) {
                Ok(stream) => open.push(stream),
                Err(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
            }
            // What a busy machine did not get done is not made up for all at once.
            next = (next + every).max(Instant::now() - PATIENCE / 10);
        }
        if looked.elapsed() >= MOMENT * 4 {
            open.retain_mut(is_open);
            looked = Instant::now();
        }
        std::thread::sleep(MOMENT / 2);
    }
}

/// Nobody sends anything: what can be read is the end.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// How far the busiest is above the mean: 1 if all have the same, or nothing.
#[must_use]
pub fn imbalance(open: &[u64]) -> f64 {
    let (sum, most) = (open.iter().sum::<u64>(), open.iter().max().copied().unwrap_or(0));
    if sum == 0 { 1.0 } else { (most * open.len() as u64) as f64 / sum as f64 }
}

/// A thread that ends with this value.
#[derive(Debug)]
struct Worker {
    go_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&go_on);
        Self { go_on, thread: Some(std::thread::spawn(move || work(&asked))) }
    }

    fn end(&mut self) {
        self.go_on.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}
