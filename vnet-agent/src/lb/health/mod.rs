//! Health checks: asking members from this host.
//!
//! This file says when they are made and what follows from their results; [`probe`] what they are.
//!
//! Equal checks are made once, however many groups ask for them. A member counts as up until its check has failed
//! [`Check::fall`] times in a row. No new flow goes to a dead member later than interval × fall + timeout after its
//! death, plus what it takes to write the maps: checks *start* at every interval, whatever the one before is doing.

mod http;
mod icmp;
pub mod probe;
mod udp;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

pub use probe::{Kind, Network, Probe};

/// Checks that may be made at one time. It takes twice as many dead members as this, at default settings, for
/// checks to come late.
const MOST_AT_ONCE: usize = 4096;

/// What is checked, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// Who is asked. The port of a ping is 0.
    pub target: SocketAddr,
    /// What.
    pub kind: Kind,
    /// Between the starts of two checks.
    pub interval: Duration,
    /// Until a check has failed.
    pub timeout: Duration,
    /// Successes in a row after which it is up.
    pub rise: u8,
    /// Failures in a row after which it is down.
    pub fall: u8,
}

/// What is known of a check's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Health {
    /// Neither enough successes nor enough failures so far: counts as up.
    #[default]
    Unknown,
    /// It serves.
    Up,
    /// It does not.
    Down,
}

/// A target's health changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose.
    pub check: Check,
    /// To what.
    pub health: Health,
    /// The last failure, if it is down.
    pub error: Option<String>,
}

/// Runs checks, each as a task of its own, and reports changes.
#[derive(Debug)]
pub struct Checker<P: Probe = Network> {
    probe: P,
    tasks: HashMap<Check, JoinHandle<()>>,
    events: mpsc::UnboundedSender<Event>,
    permits: Arc<Semaphore>,
    late: Arc<AtomicU64>,
}

impl<P: Probe> Checker<P> {
    /// A checker without checks. Changes go to `events`.
    pub fn new(probe: P, events: mpsc::UnboundedSender<Event>) -> Self {
        let permits = Arc::new(Semaphore::new(MOST_AT_ONCE));
        Self { probe, tasks: HashMap::new(), events, permits, late: Arc::default() }
    }

    /// Begins a check, unless it is being made: what is down as far as is known stays so until it succeeds. Call it from
    /// within a tokio runtime.
    pub fn start(&mut self, check: Check, known: Health) {
        if !self.tasks.contains_key(&check) {
            let tally = Tally { health: known, against: 0 };
            let (permits, late) = (Arc::clone(&self.permits), Arc::clone(&self.late));
            let run = run(check.clone(), tally, self.probe.clone(), self.events.clone(), permits, late);
            self.tasks.insert(check, tokio::spawn(run));
        }
    }

    /// Ends a check, if it is being made.
    pub fn stop(&mut self, check: &Check) {
        if let Some(task) = self.tasks.remove(check) {
            task.abort();
        }
    }

    /// Whether `check` is being made: events of one that was stopped may still arrive.
    pub fn has(&self, check: &Check) -> bool {
        self.tasks.contains_key(check)
    }

    /// How many checks had to wait for others to end: above 0, the time limit above may not hold.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }
}

impl<P: Probe> Drop for Checker<P> {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

async fn run<P: Probe>(
    check: Check,
    mut tally: Tally,
    probe: P,
    events: mpsc::UnboundedSender<Event>,
    permits: Arc<Semaphore>,
    late: Arc<AtomicU64>,
) {
    let mut ticks = interval_at(Instant::now() + spread(&check), check.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if permits.available_permits() == 0 {
            late.fetch_add(1, Ordering::Relaxed);
        }
        let Ok(_permit) = permits.acquire().await else { return };
        let result = match timeout(check.timeout, probe.ask(&check)).await {
            Ok(result) => result.map_err(|e| format!("{}: {e:#}", check.what())),
            Err(_) => Err(format!("{}: no answer within {} ms", check.what(), check.timeout.as_millis())),
        };
        if let Some(health) = tally.add(result.is_ok(), &check)
            && events.send(Event { check: check.clone(), health, error: result.err() }).is_err()
        {
            return;
        }
    }
}

/// When within its interval a check starts: the same for equal checks, spread for different ones.
fn spread(check: &Check) -> Duration {
    let mut h = DefaultHasher::new();
    check.hash(&mut h);
    check.interval.mul_f64(h.finish() as u32 as f64 / f64::from(u32::MAX) * 0.999)
}

/// Counts results in a row.
#[derive(Debug, Default)]
struct Tally {
    health: Health,
    /// Results in a row that speak against `health`.
    against: u8,
}

impl Tally {
    /// Adds a result; gives the new health if it changes it.
    fn add(&mut self, success: bool, check: &Check) -> Option<Health> {
        let (to, needed) = match (self.health, success) {
            // It takes flows already: one success confirms it.
            (Health::Unknown, true) => (Health::Up, 1),
            (Health::Down, true) => (Health::Up, check.rise),
            (Health::Unknown | Health::Up, false) => (Health::Down, check.fall),
            (Health::Up, true) | (Health::Down, false) => {
                self.against = 0;
                return None;
            }
        };
        self.against += 1;
        if self.against < needed {
            return None;
        }
        *self = Self { health: to, against: 0 };
        Some(to)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use anyhow::{Result, bail};

    use super::*;

    fn check(port: u16) -> Check {
        Check {
            target: SocketAddr::from(([127, 0, 0, 1], port)),
            kind: Kind::Tcp,
            interval: Duration::from_millis(2000),
            timeout: Duration::from_millis(1000),
            rise: 2,
            fall: 3,
        }
    }

    #[test]
    fn tally_changes_after_enough_in_a_row() {
        let results = |bits: &str| {
            let mut t = Tally::default();
            bits.chars().filter_map(|c| t.add(c == '+', &check(1))).collect::<Vec<_>>()
        };
        use Health::{Down, Up};
        assert_eq!(results("--"), []);
        assert_eq!(results("---"), [Down]);
        assert_eq!(results("+"), [Up]);
        assert_eq!(results("--+--"), [Up], "a success starts the count again");
        assert_eq!(results("+--+---"), [Up, Down]);
        assert_eq!(results("---+-+"), [Down]);
        assert_eq!(results("---+-++---"), [Down, Up, Down]);
    }

    /// Says at any time what every target does.
    #[derive(Clone, Default)]
    struct Script(Arc<Mutex<ScriptState>>);

    #[derive(Default)]
    struct ScriptState {
        dead: HashSet<u16>,
        refusing: HashSet<u16>,
        tries: HashMap<u16, Vec<Instant>>,
    }

    impl Probe for Script {
        async fn ask(&self, Check { target, .. }: &Check) -> Result<()> {
            let dead = {
                let mut s = self.0.lock().unwrap();
                s.tries.entry(target.port()).or_default().push(Instant::now());
                if s.refusing.contains(&target.port()) {
                    bail!("refused");
                }
                s.dead.contains(&target.port())
            };
            if dead {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    }

    fn start(ports: std::ops::Range<u16>) -> (Script, Checker<Script>, mpsc::UnboundedReceiver<Event>) {
        let (tx, rx) = mpsc::unbounded_channel();
        let script = Script::default();
        let mut checker = Checker::new(script.clone(), tx);
        ports.for_each(|port| checker.start(check(port), Health::Unknown));
        (script, checker, rx)
    }

    #[tokio::test(start_paused = true)]
    async fn dead_members_are_down_within_the_bound_whenever_they_die() {
        for die_after in (0..4000).step_by(137) {
            let (script, _checker, mut rx) = start(1..20);
            tokio::time::sleep(Duration::from_millis(4000 + die_after)).await;
            let died = Instant::now();
            script.0.lock().unwrap().dead.extend(1..20);
            let mut down = 0;
            while down < 19 {
                let e = rx.recv().await.unwrap();
                if e.health == Health::Down {
                    assert!(died.elapsed() <= Duration::from_millis(2000 * 3 + 1000 + 1), "{:?}", died.elapsed());
                    assert_eq!(e.error.unwrap(), format!("connect to {}: no answer within 1000 ms", e.check.target));
                    down += 1;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn members_come_back_after_rise_successes() {
        let (script, _checker, mut rx) = start(1..2);
        script.0.lock().unwrap().refusing.insert(1);
        let e = rx.recv().await.unwrap();
        assert_eq!((e.health, e.error.is_some()), (Health::Down, true));
        script.0.lock().unwrap().refusing.clear();
        let back = Instant::now();
        let e = rx.recv().await.unwrap();
        assert_eq!((e.health, e.error), (Health::Up, None));
        assert_eq!(back.elapsed().as_millis(), 4000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_down_before_the_agent_started_stays_so_until_it_succeeds() {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let mut checker = Checker::new(Script::default(), tx);
        checker.start(check(1), Health::Down);
        let start = Instant::now();
        assert_eq!(rx.recv().await.unwrap().health, Health::Up);
        assert!(start.elapsed() >= Duration::from_millis(2000), "two successes, not one: {:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn starts_are_spread_and_regular() {
        let (script, checker, _rx) = start(1..101);
        tokio::time::sleep(Duration::from_millis(10_000)).await;
        let s = script.0.lock().unwrap();
        let start = Instant::now() - Duration::from_millis(10_000);
        let firsts: Vec<u128> = s.tries.values().map(|t| (t[0] - start).as_millis()).collect();
        for quarter in 0..4 {
            let n = firsts.iter().filter(|ms| **ms / 500 == quarter).count();
            assert!((10..50).contains(&n), "{n} of 100 start in quarter {quarter}");
        }
        for tries in s.tries.values() {
            assert_eq!(tries.len(), 5);
            assert!(tries.windows(2).all(|w| (w[1] - w[0]).as_millis() == 2000));
        }
        assert_eq!(checker.late(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_that_are_no_longer_wanted_stop_and_the_rest_goes_on() {
        let (script, mut checker, _rx) = start(1..3);
        tokio::time::sleep(Duration::from_millis(3999)).await;
        checker.stop(&check(1));
        [2, 3].into_iter().for_each(|port| checker.start(check(port), Health::Unknown));
        assert!(!checker.has(&check(1)) && checker.has(&check(2)) && checker.has(&check(3)));
        tokio::time::sleep(Duration::from_millis(4000)).await;
        let s = script.0.lock().unwrap();
        assert_eq!((s.tries[&1].len(), s.tries[&2].len(), s.tries[&3].len()), (2, 4, 2));
        assert!(s.tries[&2].windows(2).all(|w| (w[1] - w[0]).as_millis() == 2000), "undisturbed");
    }

    fn quick(target: SocketAddr, kind: Kind) -> Check {
        Check { target, kind, interval: Duration::from_millis(100), timeout: Duration::from_millis(50), rise: 1, fall: 2 }
    }

    #[tokio::test]
    async fn a_real_listener_is_up_and_down_when_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tx, mut rx) = mpsc::unbounded_channel();
        let mut checker = Checker::new(Network::default(), tx);
        checker.start(quick(listener.local_addr().unwrap(), Kind::Tcp), Health::Unknown);
        assert_eq!(rx.recv().await.unwrap().health, Health::Up);
        drop(listener);
        let closed = Instant::now();
        let event = rx.recv().await.unwrap();
        assert_eq!(event.health, Health::Down);
        assert!(event.error.unwrap().contains("refused"));
        // The bound itself is tested with a clock of its own, above.
        assert!(closed.elapsed() <= Duration::from_secs(10), "{:?}", closed.elapsed());
    }

    /// A server that takes connections and says nothing: the whole exchange has to be done in time.
    #[tokio::test]
    async fn a_silent_server_is_down_but_for_a_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        for yaml in ["{}", "{ https: true, insecureSkipVerify: true }"] {
            let http: crate::resource::HttpCheck = serde_saphyr::from_str(yaml).unwrap();
            let (tx, mut rx) = mpsc::unbounded_channel();
            let mut checker = Checker::new(Network::default(), tx);
            checker.start(quick(target, Kind::Http(Arc::new(http.clone()))), Health::Unknown);
            let event = rx.recv().await.unwrap();
            let scheme = if http.https { "https" } else { "http" };
            assert_eq!(event.error.unwrap(), format!("GET {scheme}://{target}/: no answer within 50 ms"));
        }
    }

    #[tokio::test]
    async fn datagrams_and_pings_of_this_host() {
        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            let mut data = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut data).await {
                server.send_to(&[&data[..length], b" too"].concat(), from).await.unwrap();
            }
        });
        let udp =
            |expect: &str| Kind::Udp(Arc::new(serde_saphyr::from_str(&format!("{{ send: me, expect: {expect} }}")).unwrap()));
        let ask = async |target: &str, kind| {
            let check = quick(target.parse().unwrap(), kind);
            Network::default().ask(&check).await.map_err(|e| format!("{e:#}"))
        };
        let target = target.to_string();
        assert_eq!(ask(&target, udp("me too")).await, Ok(()));
        assert_eq!(ask(&target, udp("you")).await, Err("the answer \"me too\" does not contain \"you\"".to_owned()));
        answering.abort();
        let _aborted = answering.await;
        assert!(ask(&target, udp("me")).await.unwrap_err().contains("refused"));
        assert_eq!(ask("127.0.0.1:0", Kind::Icmp).await, Ok(()));
        assert_eq!(ask("[::1]:0", Kind::Icmp).await, Ok(()));
    }
}
