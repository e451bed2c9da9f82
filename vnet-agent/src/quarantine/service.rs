//! The engine with threads, clocks, the datapath and the journal around it.
//!
//! One lock guards the engine, and it is short: a tag is taken in, judged and enforced under it; nothing is written there,
//! and resources are made ready before it is taken. What is to be stored is written by one thread, many changes at once;
//! releases are done when they were written.

mod api;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{broadcast, watch};
use vnet_common::api::AuditRecord;

use super::clock::{Clock, Now, Timeline};
use super::engine::{self, Assignment, Engine, Refused, SourceCounts, TagApplied, TagChange, Then};
use super::model::{Inputs, Model};
use super::state::{Enforce, Journal};

/// Endpoints that are looked at before others get the lock.
const CHUNK: usize = 4;
/// Between two writes of the journal, so that many changes go together.
const GATHER: Duration = Duration::from_millis(5);
/// After a failed write.
const RETRY: Duration = Duration::from_secs(1);
/// Records that a slow reader may be behind.
const READERS: usize = 1024;
/// Without other changes, the time is stored this often.
const HEARTBEAT: Duration = Duration::from_millis(engine::HEARTBEAT);

/// Tags, transfers, holds and their records. All methods may be called from any thread.
pub struct Service {
    engine: Mutex<Engine>,
    /// Threads that wait for the engine and do not want to wait for a long list.
    urgent: AtomicUsize,
    /// What is being made ready: one at a time.
    preparing: Mutex<()>,
    /// What is being written: one at a time.
    writing: Mutex<()>,
    enforce: Arc<dyn Enforce>,
    journal: Arc<dyn Journal>,
    timeline: Timeline,
    numbers: Mutex<HashMap<String, u32>>,
    timer: Signal,
    writer: Signal,
    changes: watch::Sender<u64>,
    records: broadcast::Sender<AuditRecord>,
    ending: AtomicBool,
}

/// Wakes a thread, also one that is not asleep yet.
#[derive(Default)]
struct Signal {
    set: Mutex<bool>,
    woken: Condvar,
}

impl Signal {
    fn notify(&self) {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_one();
    }

    fn wait(&self, longest: Duration) {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut set, _) = self.woken.wait_timeout_while(set, longest, |set| !*set).unwrap_or_else(PoisonError::into_inner);
        *set = false;
    }
}

/// The threads of a [`Service`]; dropped, they end.
pub struct Running {
    service: Arc<Service>,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    /// Reads what was stored, compares it with the datapath, and enforces the stricter of both. Afterwards call
    /// [`Service::set_inputs`], then [`Service::start`].
    ///
    /// # Errors
    /// The store or the datapath cannot be read, or the store not be written.
    pub fn open(journal: Arc<dyn Journal>, enforce: Arc<dyn Enforce>, clock: Arc<dyn Clock>) -> Result<Self> {
        let saved = journal.load().context("reading tags and holds from the store")?;
        let timeline = Timeline::resume(clock, saved.mark.as_ref());
        let now = timeline.now();
        let mut engine = Engine::new(saved, now);
        engine.recover(enforce.pinned().context("asking the datapath who is held")?, now);
        let service = Self {
            engine: Mutex::new(engine),
            urgent: AtomicUsize::new(0),
            preparing: Mutex::new(()),
            writing: Mutex::new(()),
            enforce,
            journal,
            timeline,
            numbers: Mutex::default(),
            timer: Signal::default(),
            writer: Signal::default(),
            changes: watch::Sender::new(0),
            records: broadcast::Sender::new(READERS),
            ending: AtomicBool::new(false),
        };
        service.urgently(|_, _| ());
        service.flush().context("storing what the datapath and the store did not agree about")?;
        Ok(service)
    }

    /// Starts the threads that keep time and write.
    ///
    /// # Errors
    /// The system has no threads to give.
    pub fn start(self: &Arc<Self>) -> Result<Running> {
        let spawn = |name: &str, run: fn(&Self)| {
            let service = Arc::clone(self);
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&service));
            thread.with_context(|| format!("starting the thread {name}"))
        };
        let mut running = Running { service: Arc::clone(self), threads: Vec::new() };
        running.threads.push(spawn("quarantine-time", Self::keep_time)?);
        running.threads.push(spawn("quarantine-log", Self::write)?);
        Ok(running)
    }

    /// A source sets or clears a tag: what follows is enforced when this returns, and stored soon after.
    ///
    /// # Errors
    /// The source may not, or the change is malformed. It was counted.
    pub fn apply_event(&self, change: &TagChange) -> Result<TagApplied, Refused> {
        let who = format!("source {}", change.source);
        self.urgently(|engine, now| engine.apply(change, &who, now))
    }

    /// Something came from a source, though no tag: it is not lost.
    pub fn heard(&self, source: &str) {
        self.urgently(|engine, now| engine.heard(source, now));
    }

    /// Groups, sources or endpoints changed. What follows for endpoints is done when this returns.
    pub fn set_inputs(&self, inputs: &Inputs<'_>) {
        let _one = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        let model = Arc::new(self.model_of(inputs));
        self.urgently(|engine, now| engine.set_model(model, now));
        self.work();
    }

    /// The groups that endpoints would belong to if there were these groups, sources and endpoints, and nobody held them. Nothing
    /// changes by asking.
    #[must_use]
    pub fn bases(&self, inputs: &Inputs<'_>) -> HashMap<String, String> {
        let model = self.model_of(inputs);
        let base = |name: &String| {
            self.give_way();
            let base = self.lock().would_be_in(&model, name, self.timeline.now())?;
            Some((name.clone(), base))
        };
        model.endpoints.keys().filter_map(base).collect()
    }

    /// Made without the lock: it takes a while.
    fn model_of(&self, inputs: &Inputs<'_>) -> Model {
        let (old, criteria) = {
            let engine = self.lock();
            (Arc::clone(engine.model()), Arc::clone(engine.criteria()))
        };
        Model::build(&old, &criteria, inputs)
    }

    /// Time has passed: does what is due. [`Service::start`]'s thread calls it.
    pub fn tick(&self) {
        loop {
            self.urgently(|engine, now| engine.tick(now));
            self.work();
            if !self.is_due() {
                return;
            }
        }
    }

    fn is_due(&self) -> bool {
        self.next_deadline().is_some_and(|wait| wait.is_zero())
    }

    /// How long until [`Service::tick`] has something to do; `None`: until something happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let due = self.lock().next_deadline()?;
        Some(Duration::from_millis(due.saturating_sub(self.timeline.now().at)))
    }

    /// Looks at the endpoints that something changed about. Whoever brings a tag meanwhile goes first.
    fn work(&self) {
        while self.with(|engine, now| engine.work(CHUNK, now)) {
            self.give_way();
        }
    }

    fn give_way(&self) {
        while self.urgent.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
    }

    /// Which groups endpoints are to have the rules of; those that are not known (yet) are not in it.
    #[must_use]
    pub fn assignments(&self) -> HashMap<String, Assignment> {
        self.lock().assignments().map(|(name, assignment)| (name.to_owned(), assignment)).collect()
    }

    /// Who is held, and in which group: endpoints that are gone, too.
    #[must_use]
    pub fn holds(&self) -> BTreeMap<String, String> {
        self.lock().holds().map(|(name, group)| (name.to_owned(), group.to_owned())).collect()
    }

    /// Does as another host of the fleet: holds an endpoint in this group, or (`None`) lets it go. It is stored when this returns, if it can be.
    pub fn follow(&self, endpoint: &str, group: Option<&str>, host: &str) {
        self.urgently(|engine, now| engine.follow(endpoint, group, host, now));
        self.flush().unwrap_or_else(|e| log::error!("{e:#}; trying again"));
    }

    /// Another host of the fleet has an endpoint that was here, and holds it: here that is over when this returns, if it can be stored.
    pub fn hand_over(&self, endpoint: &str, host: &str) {
        self.urgently(|engine, now| engine.hand_over(endpoint, host, now));
        self.flush().unwrap_or_else(|e| log::error!("{e:#}; trying again"));
    }

    /// Was this endpoint ever moved, as far as that is known?
    #[must_use]
    pub fn remembers(&self, endpoint: &str) -> bool {
        self.lock().remembers(endpoint)
    }

    /// A device of an endpoint got its row: what came while that was made is enforced on it.
    pub fn attached(&self, endpoint: &str) {
        self.urgently(|engine, _| engine.reattach(endpoint));
    }

    /// Goes up whenever the group, or base group, of an endpoint changed: see [`Service::take_changed`].
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Those endpoints, since this was asked last.
    #[must_use]
    pub fn take_changed(&self) -> BTreeSet<String> {
        self.lock().take_changed()
    }

    /// Records of the audit log, as they are stored.
    #[must_use]
    pub fn records(&self) -> broadcast::Receiver<AuditRecord> {
        self.records.subscribe()
    }

    /// Things an operator should look at.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        self.with(|engine, now| engine.alarms(now))
    }

    /// Tags, endpoints held, moves that wait for approval.
    #[must_use]
    pub fn numbers(&self) -> (usize, usize, usize) {
        self.lock().numbers()
    }

    /// What came from a source.
    #[must_use]
    pub fn source_counts(&self, source: &str) -> SourceCounts {
        self.lock().source_counts(source)
    }

    /// The stable number of a security group.
    ///
    /// # Errors
    /// It is a new one that cannot be stored.
    pub fn group_number(&self, name: &str) -> Result<u32> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = numbers.get(name) {
            return Ok(*number);
        }
        let number =
            self.journal.group_number(name).with_context(|| format!("asking the store for the number of group {name}"))?;
        numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Stores everything that is to be stored, and does the releases among it.
    ///
    /// # Errors
    /// The journal takes nothing: nobody was let go; it will be tried again.
    pub fn flush(&self) -> Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = self.timeline.now();
            let Some(batch) = self.lock().take_batch(self.timeline.mark(now)) else { return Ok(()) };
            if let Err(e) = self.journal.commit(&batch) {
                self.lock().give_back(batch, format!("{e:#}"));
                return Err(e);
            }
            self.lock().stored(&batch);
            for record in &batch.audit {
                publish(record);
                // Nobody may be listening.
                let _ = self.records.send(record.clone());
            }
            for (endpoint, moves) in &batch.then {
                self.carry_on(endpoint, *moves);
            }
        }
    }

    /// What was stored is done, if nothing came in between.
    fn carry_on(&self, endpoint: &str, moves: u32) {
        self.urgently(|engine, now| {
            let result = match engine.then(endpoint, moves) {
                Some(Then::Release) => self.enforce.release(endpoint, moves),
                Some(Then::Hold(group)) => self.enforce.hold(endpoint, &group, moves),
                None => return,
            };
            engine.done(endpoint, result.map_err(|e| format!("{e:#}")), now);
        });
    }

    /// Runs `f` ahead of [`Service::work`].
    fn urgently<T>(&self, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        self.urgent.fetch_add(1, Ordering::Relaxed);
        let engine = self.lock();
        self.urgent.fetch_sub(1, Ordering::Relaxed);
        self.run(engine, f)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        self.run(self.lock(), f)
    }

    fn run<T>(&self, mut engine: MutexGuard<'_, Engine>, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        let now = self.timeline.now();
        let deadline = engine.next_deadline();
        let value = f(&mut engine, now);
        loop {
            while let Some(action) = engine.next_action() {
                let result = self.enforce.hold(&action.endpoint, &action.group, action.moves).map_err(|e| format!("{e:#}"));
                engine.enforced(&action, result, now);
            }
            if !engine.go_on(now) {
                break;
            }
        }
        let earlier = engine.next_deadline().is_some_and(|due| deadline.is_none_or(|before| due < before));
        let (changed, store) = (engine.is_changed(), engine.has_batch(now));
        drop(engine);
        if earlier {
            self.timer.notify();
        }
        if store {
            self.writer.notify();
        }
        if changed {
            self.changes.send_modify(|version| *version += 1);
        }
        value
    }

    fn lock(&self) -> MutexGuard<'_, Engine> {
        // Whoever panicked left whole values: an endpoint is changed in one go.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_time(&self) {
        while !self.ending.load(Ordering::Relaxed) {
            self.timer.wait(self.next_deadline().unwrap_or(HEARTBEAT).min(HEARTBEAT));
            if self.is_due() {
                self.tick();
            }
            // Also if nothing happens, the store has to know how late it is.
            if self.lock().has_batch(self.timeline.now()) {
                self.writer.notify();
            }
        }
    }

    fn write(&self) {
        let mut failed = false;
        while !self.ending.load(Ordering::Relaxed) {
            // A failed write left everything to be written: nobody has to wake this for another try.
            self.writer.wait(if failed { Duration::ZERO } else { HEARTBEAT });
            if let Err(e) = self.flush() {
                if !failed {
                    log::error!("{e:#}; trying again every second");
                }
                failed = true;
                std::thread::sleep(RETRY);
                continue;
            }
            failed = false;
            std::thread::sleep(GATHER);
        }
        if let Err(e) = self.flush() {
            log::error!("at the end: {e:#}");
        }
    }
}

/// Every record is a line of JSON in the agent's log, too: from there it can be shipped.
fn publish(record: &AuditRecord) {
    match serde_json::to_string(record) {
        Ok(line) => log::info!(target: "audit", "{line}"),
        Err(e) => log::error!("record {} of the audit log cannot be shown: {e}", record.number),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.service.ending.store(true, Ordering::Relaxed);
        self.service.timer.notify();
        self.service.writer.notify();
        for thread in self.threads.drain(..) {
            // It has said so itself if it panicked.
            let _ = thread.join();
        }
    }
}
