//! All tag sources: listeners that follow the resources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use vnet_common::api::{IngestResponse, ScanReport, ScanRequest, SourceStatus, SourceTest};

use super::change::{Sink, SourceName};
use super::clamav;
use super::directory::Directory;
use super::json;
use super::mapping::Mappings;
use super::senders::Senders;
use super::state::{Settings, Source};
use super::suricata::{Listener, notes};
use super::trial;
use super::watch::Watcher;
use crate::api::{self, Refusal};
use crate::expression::Variables;
use crate::resource::{SourceType, TagSource, TagSourceSpec};

/// Trials of a measurement.
const TRIALS: u32 = 100;
/// Of one that has clamd scan.
const SCANS: u32 = 20;
/// Between two looks at the user database, and at listeners that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// The tag sources of this host.
pub struct Sources {
    run_dir: PathBuf,
    directory: Arc<dyn Directory>,
    sink: Arc<dyn Sink>,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
}

/// One source with its listener.
struct Running {
    source: Arc<Source>,
    listener: Mutex<State>,
    /// One request or scan of it at a time: what these take is bounded.
    busy: Mutex<Variables>,
}

struct State {
    input: Input,
    /// Why there is none.
    failed: Option<String>,
    looked: Instant,
}

/// What listens.
enum Input {
    None,
    Suricata(Listener),
    Directory(Watcher),
}

impl Sources {
    /// None so far. Sockets without a path of their own are made in `run_dir`.
    #[must_use]
    pub fn new(run_dir: &Path, directory: Arc<dyn Directory>, sink: Arc<dyn Sink>) -> Self {
        Self { run_dir: run_dir.to_owned(), directory, sink, running: Mutex::default() }
    }

    /// From now on these are all. What stays the same goes on: another mapping or user does not close a socket. A listener that
    /// cannot be started is tried again by [`look_after`](Self::look_after); its status says why.
    ///
    /// Ends what is no longer wanted, and waits for that a second at most: whoever holds what the sink waits for is held that long.
    pub fn configure(&self, resources: &[&TagSource]) {
        let mut running = self.running();
        running.retain(|name, _| resources.iter().any(|resource| resource.metadata.name == *name));
        for resource in resources {
            let name = resource.metadata.name.clone();
            match settings_of(&resource.spec) {
                Ok(settings) => {
                    let it = running.entry(name);
                    let it = match it {
                        std::collections::btree_map::Entry::Occupied(known) => {
                            known.get().source.set(settings);
                            Arc::clone(known.get())
                        }
                        std::collections::btree_map::Entry::Vacant(new) => {
                            let (directory, sink) = (Arc::clone(&self.directory), Arc::clone(&self.sink));
                            let source = Source::new(SourceName::of(resource), settings, directory, sink);
                            Arc::clone(new.insert(Arc::new(Running::new(source))))
                        }
                    };
                    it.follow(&self.run_dir, true);
                }
                // The resource was checked when it was applied: another version of the agent did.
                Err(error) => match running.get(&name) {
                    Some(it) => it.source.complain(format!("it goes on as before: {error:#}")),
                    None => log::error!("tag source {name} does not run: {error:#}"),
                },
            }
        }
    }

    /// Looks for sources that are silent for too long, of which it tells the sink, and tries again what failed. To be called every
    /// second or so.
    pub fn look_after(&self, now: Instant) {
        let all: Vec<Arc<Running>> = self.running().values().map(Arc::clone).collect();
        for it in all {
            it.source.look(now);
            it.follow(&self.run_dir, false);
        }
    }

    /// Every source.
    #[must_use]
    pub fn status(&self) -> Vec<SourceStatus> {
        let all: Vec<Arc<Running>> = self.running().values().map(Arc::clone).collect();
        all.iter().map(|it| it.status()).collect()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<Arc<Running>, Refusal> {
        let running = self.running();
        running.get(name).map(Arc::clone).ok_or_else(|| {
            let known: Vec<&str> = running.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Refusal::not_found(format!("there is no tag source '{name}'; there are: {known}"))
        })
    }
}

fn settings_of(spec: &TagSourceSpec) -> Result<Settings> {
    let mappings = Mappings::compile(&spec.mappings).map_err(|faults| {
        let all: Vec<String> = faults.into_iter().map(|(at, why)| format!("mappings{at}: {why}")).collect();
        anyhow!("{}", all.join("; "))
    })?;
    Ok(Settings { spec: spec.clone(), mappings, senders: Senders::resolve(&spec.users) })
}

impl Running {
    fn new(source: Source) -> Self {
        let state = State { input: Input::None, failed: None, looked: Instant::now() };
        Self { source: Arc::new(source), listener: Mutex::new(state), busy: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the listener after the settings; without `now`, only if the last time is long ago.
    fn follow(&self, run_dir: &Path, now: bool) {
        let mut state = self.state();
        if !now && state.looked.elapsed() < AGAIN {
            return;
        }
        state.looked = Instant::now();
        let senders = self.look_up(now);
        let wanted = self.wanted(run_dir);
        let same = match (&state.input, &wanted) {
            (Input::Suricata(listener), Some(path)) => listener.path() == path && listener.is_well(),
            (Input::Directory(watcher), Some(path)) => watcher.path() == path && watcher.is_well(),
            (Input::None, None) => true,
            _ => false,
        };
        if same {
            match (&mut state.input, senders) {
                (Input::Suricata(listener), Some(senders)) => listener.open(&senders),
                (Input::Directory(watcher), Some(senders)) => watcher.open(&senders),
                _ => {}
            }
            state.failed = None;
            return;
        }
        // The old one first: it may be in the new one's place.
        state.input = Input::None;
        let started = wanted.map_or(Ok(Input::None), |path| self.start(&path));
        match started {
            Ok(input) => (state.input, state.failed) = (input, None),
            Err(error) => {
                let why = format!("{error:#}");
                if state.failed.as_ref() != Some(&why) {
                    self.source.complain(why.clone());
                }
                state.failed = Some(why);
            }
        }
    }

    /// Who may send, if that is not what it was: names may have become others since.
    fn look_up(&self, changed: bool) -> Option<Senders> {
        let settings = self.source.settings();
        if changed {
            settings.senders.faults.iter().for_each(|fault| self.source.complain(fault.clone()));
            return Some(settings.senders.clone());
        }
        if settings.spec.users.is_empty() {
            return None;
        }
        let senders = Senders::resolve(&settings.spec.users);
        if senders == settings.senders {
            return None;
        }
        let mappings = Mappings::compile(&settings.spec.mappings).ok()?;
        self.source.set(Settings { spec: settings.spec.clone(), mappings, senders: senders.clone() });
        Some(senders)
    }

    /// Where it is to listen, if anywhere.
    fn wanted(&self, run_dir: &Path) -> Option<PathBuf> {
        let spec = &self.source.settings().spec;
        match spec.r#type {
            SourceType::Suricata => {
                Some(spec.input.socket.as_ref().map_or_else(|| run_dir.join("suricata").join("eve.sock"), PathBuf::from))
            }
            SourceType::Json => spec.input.directory.as_ref().map(PathBuf::from),
            SourceType::Clamav | SourceType::Operator => None,
        }
    }

    fn start(&self, path: &Path) -> Result<Input> {
        let shown = path.display();
        let source = Arc::clone(&self.source);
        match self.source.settings().spec.r#type {
            SourceType::Suricata => {
                Listener::start(path, source).map(Input::Suricata).with_context(|| format!("making the socket {shown}"))
            }
            _ => Watcher::start(path, source).map(Input::Directory).with_context(|| format!("watching {shown}")),
        }
    }

    fn status(&self) -> SourceStatus {
        let settings = self.source.settings();
        let state = self.state();
        let post = format!("POST /v1/sources/{}/events", self.source.name);
        let input = match (&state.input, settings.spec.r#type) {
            (Input::Suricata(listener), _) => listener.path().display().to_string(),
            (Input::Directory(watcher), _) => format!("{post}, {}", watcher.path().display()),
            (Input::None, SourceType::Suricata) => String::new(),
            (Input::None, SourceType::Clamav) => clamav::socket(&settings.spec.input).display().to_string(),
            (Input::None, SourceType::Json) => post,
            (Input::None, SourceType::Operator) => "vnet-ctl tag".to_owned(),
        };
        self.source.status(input, state.failed.clone())
    }

    fn is(&self, kind: SourceType, to: &str) -> Result<(), Refusal> {
        let (name, is) = (&self.source.name, self.source.settings().spec.r#type);
        if is == kind {
            return Ok(());
        }
        Err(Refusal::conflict(format!("tag source {name} is of type {}, and {to}", format!("{is:?}").to_lowercase())))
    }

    fn measure(&self, config: Option<&Path>) -> Result<SourceTest> {
        let settings = self.source.settings();
        let (times, notes) = match settings.spec.r#type {
            SourceType::Suricata => {
                // What looks after the listener, with the agent's own lock perhaps, does not wait for a measurement, or for a file.
                let (measure, path) = {
                    let state = self.state();
                    let Input::Suricata(listener) = &state.input else {
                        anyhow::bail!("it has no socket now: {}", state.failed.as_deref().unwrap_or("it is being made"));
                    };
                    (listener.measurement(), listener.path().to_owned())
                };
                (measure(TRIALS)?, notes(&path, config))
            }
            SourceType::Clamav => {
                let (times, version) = clamav::measure(&self.source, SCANS)?;
                (times, vec![format!("{version}: each trial is a scan of 1 KiB")])
            }
            SourceType::Json => {
                let times = (0..TRIALS).map(|_| self.measure_event()).collect::<Result<_>>()?;
                (times, vec!["from the text of an event to its tag: HTTP, or the reading of a file, comes on top".to_owned()])
            }
            SourceType::Operator => anyhow::bail!("there is nothing to measure: an operator sets tags by hand"),
        };
        let latencies_us: Vec<u64> = times.iter().map(|time: &Duration| time.as_micros() as u64).collect();
        Ok(SourceTest { trials: latencies_us.len() as u32, latencies_us, notes })
    }

    /// What an event takes that no mapping has anything from.
    fn measure_event(&self) -> Result<Duration> {
        let mut variables = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = trial::mark();
        let text = serde_json::json!({ trial::FIELD: mark, "time": "2026-01-01T00:00:00Z", "rule": "vnet trial" }).to_string();
        let begun = Instant::now();
        let event = serde_json::from_str(&text).context("reading an event")?;
        drop(self.source.settings().mappings.map(&event, &mut variables, drop));
        self.source.deliver(trial::change(&self.source.name, &mark, begun)).map_err(|why| anyhow!(why))?;
        Ok(begun.elapsed())
    }
}

impl api::Sources for Sources {
    fn sources(&self) -> Result<Vec<SourceStatus>, Refusal> {
        Ok(self.status())
    }

    fn may_send(&self, source: &str, uid: u32) -> bool {
        self.find(source).is_ok_and(|it| it.source.settings().senders.allow(uid))
    }

    fn ingest(&self, source: &str, text: &[u8]) -> Result<IngestResponse, Refusal> {
        let it = self.find(source)?;
        it.is(SourceType::Json, "takes no events by HTTP: only a source of type json does")?;
        let mut variables = it.busy.lock().unwrap_or_else(PoisonError::into_inner);
        json::ingest(&it.source, text, &mut variables).map_err(|why| Refusal::invalid(format!("the request {why}")))
    }

    fn scan(&self, source: &str, request: &ScanRequest, stop: &AtomicBool) -> Result<ScanReport, Refusal> {
        let it = self.find(source)?;
        it.is(SourceType::Clamav, "cannot scan: only a source of type clamav can")?;
        let Ok(_alone) = it.busy.try_lock() else {
            return Err(Refusal::conflict(format!("tag source {source} is scanning: try again when it is done")));
        };
        clamav::scan(&it.source, request, stop)
    }

    fn test(&self, source: &str, config: Option<&Path>) -> Result<SourceTest, Refusal> {
        let it = self.find(source)?;
        it.measure(config).with_context(|| format!("measuring tag source {source}")).map_err(Refusal::from)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The settings of the only source of this YAML.
    pub(in super::super) fn settings(yaml: &str) -> Settings {
        settings_of(&super::super::tests::tag_sources(yaml)[0].spec).unwrap()
    }
}
