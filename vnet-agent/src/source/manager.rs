//! All tag sources: listeners that follow the resources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use vnet_common::api::{IngestResponse, ScanReport, ScanRequest, SourceStatus, SourceTest};

use super::change::{Sink, SourceName};
use super::clamav;
use super::directory::Directory;
use super::json;
use super::mapping::Mappings;
use super::own::Own;
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
    own: Own,
    directory: Arc<dyn Directory>,
    sink: Arc<dyn Sink>,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
    /// Users are being looked up.
    looking_up: Arc<AtomicBool>,
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
    /// When it was looked whether it is well.
    looked: Instant,
    /// When its users were looked up.
    looked_up: Option<Instant>,
}

/// What listens.
enum Input {
    None,
    Suricata(Listener),
    Directory(Watcher),
}

impl Sources {
    /// None so far, and none will listen at what is the agent's own.
    #[must_use]
    pub fn new(own: Own, directory: Arc<dyn Directory>, sink: Arc<dyn Sink>) -> Self {
        Self { own, directory, sink, running: Mutex::default(), looking_up: Arc::default() }
    }

    /// From now on these are all. What stays the same goes on: another mapping or user does not close a socket. A listener that
    /// cannot be started is tried again by [`look_after`](Self::look_after); its status says why.
    ///
    /// It is called whenever a device comes, by who has to attach that: a source whose resource is the same costs next to nothing,
    /// and the system's user database is asked by another thread. Ends what is no longer wanted, and waits for that a second at
    /// most: whoever holds what the sink waits for is held that long.
    pub fn configure(&self, resources: &[&TagSource]) {
        let mut running = self.running();
        running.retain(|name, _| resources.iter().any(|resource| resource.metadata.name == *name));
        for resource in resources {
            let name = resource.metadata.name.clone();
            let known = running.get(&name).map(Arc::clone);
            if let Some(it) = known.as_ref().filter(|it| it.source.settings().spec == resource.spec) {
                it.follow(&self.own, true);
                continue;
            }
            let before = known.as_ref().map(|it| it.source.settings().senders.clone()).unwrap_or_default();
            match settings_of(&resource.spec, &before) {
                Ok(settings) => {
                    let it = match known {
                        Some(it) => {
                            it.source.set(settings);
                            it.users_changed();
                            it
                        }
                        None => {
                            let (directory, sink) = (Arc::clone(&self.directory), Arc::clone(&self.sink));
                            let source = Source::new(SourceName::of(resource), settings, directory, sink);
                            let it = Arc::new(Running::new(source));
                            running.insert(name, Arc::clone(&it));
                            it
                        }
                    };
                    let settings = it.source.settings();
                    settings.senders.faults.iter().for_each(|fault| it.source.complain(fault.clone()));
                    it.follow(&self.own, true);
                }
                // The resource was checked when it was applied: another version of the agent did.
                Err(error) => match known {
                    Some(it) => it.source.complain(format!("it goes on as before: {error:#}")),
                    None => log::error!("tag source {name} does not run: {error:#}"),
                },
            }
        }
        self.look_up(&running);
    }

    /// Looks for sources that are silent for too long, of which it tells the sink, and tries again what failed. To be called every
    /// second or so.
    pub fn look_after(&self, now: Instant) {
        let all: Vec<Arc<Running>> = self.running().values().map(Arc::clone).collect();
        for it in all {
            it.source.look(now);
            it.follow(&self.own, false);
        }
        self.look_up(&self.running());
    }

    /// Has users looked up where that is due, one thread at a time: names may have become others since.
    fn look_up(&self, running: &BTreeMap<String, Arc<Running>>) {
        let due: Vec<Arc<Running>> = running.values().filter(|it| it.is_look_up_due()).map(Arc::clone).collect();
        if due.is_empty() || self.looking_up.swap(true, Ordering::AcqRel) {
            return;
        }
        let (looking_up, own) = (Arc::clone(&self.looking_up), self.own.clone());
        let run = move || {
            due.iter().filter(|it| it.look_up()).for_each(|it| it.follow(&own, true));
            looking_up.store(false, Ordering::Release);
        };
        if let Err(error) = std::thread::Builder::new().name("tag-users".to_owned()).spawn(run) {
            log::error!("starting a thread that looks up who may send tags: {error}; trying again");
            self.looking_up.store(false, Ordering::Release);
        }
    }

    /// What is wrong with a resource on this host, and at which field.
    #[must_use]
    pub fn refuses(&self, spec: &TagSourceSpec) -> Option<(&'static str, String)> {
        self.own.refuses(spec)
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

fn settings_of(spec: &TagSourceSpec, before: &Senders) -> Result<Settings> {
    let mappings = Mappings::compile(&spec.mappings).map_err(|faults| {
        let all: Vec<String> = faults.into_iter().map(|(at, why)| format!("mappings{at}: {why}")).collect();
        anyhow!("{}", all.join("; "))
    })?;
    let senders = Senders::at_once(&spec.users, before);
    Ok(Settings { spec: spec.clone(), mappings: Arc::new(mappings), senders })
}

impl Running {
    fn new(source: Source) -> Self {
        let state = State { input: Input::None, failed: None, looked: Instant::now(), looked_up: None };
        Self { source: Arc::new(source), listener: Mutex::new(state), busy: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the listener after the settings; without `now`, only if the last time is long ago.
    fn follow(&self, own: &Own, now: bool) {
        let mut state = self.state();
        if !now && state.looked.elapsed() < AGAIN {
            return;
        }
        state.looked = Instant::now();
        let wanted = self.wanted(own);
        let same = match (&state.input, &wanted) {
            (Input::Suricata(listener), Some(path)) => listener.path() == path && listener.is_well(),
            (Input::Directory(watcher), Some(path)) => watcher.path() == path && watcher.is_well(),
            (Input::None, None) => true,
            _ => false,
        };
        if same {
            self.open(&mut state);
            state.failed = None;
            return;
        }
        // The old one first: it may be in the new one's place.
        state.input = Input::None;
        if wanted.is_some() && self.source.settings().senders.unknown {
            // What they have sent meanwhile would be refused.
            state.failed = Some("its users have not been looked up yet".to_owned());
            return;
        }
        let started = wanted.map_or(Ok(Input::None), |path| self.start(&path, own));
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

    /// Lets those send who may by now.
    fn open(&self, state: &mut State) {
        let settings = self.source.settings();
        match &mut state.input {
            Input::Suricata(listener) => listener.open(&settings.senders),
            Input::Directory(watcher) => watcher.open(&settings.senders),
            Input::None => {}
        }
    }

    /// The resource names others: they are looked up soon.
    fn users_changed(&self) {
        self.state().looked_up = None;
    }

    fn is_look_up_due(&self) -> bool {
        let due = self.state().looked_up.is_none_or(|at| at.elapsed() >= AGAIN);
        due && !self.source.settings().spec.users.is_empty()
    }

    /// Looks up who may send. True: there are others.
    fn look_up(&self) -> bool {
        self.state().looked_up = Some(Instant::now());
        let before = self.source.settings();
        let senders = Senders::resolve(&before.spec.users);
        let faults = senders.faults.clone();
        let others = self.source.set_senders(&before.spec.users, senders);
        if others && faults != before.senders.faults {
            faults.into_iter().for_each(|fault| self.source.complain(fault));
        }
        others
    }

    /// Where it is to listen, if anywhere.
    fn wanted(&self, own: &Own) -> Option<PathBuf> {
        let spec = &self.source.settings().spec;
        match spec.r#type {
            SourceType::Suricata => Some(spec.input.socket.as_ref().map_or_else(|| own.default_socket(), PathBuf::from)),
            SourceType::Json => spec.input.directory.as_ref().map(PathBuf::from),
            SourceType::Clamav | SourceType::Operator => None,
        }
    }

    fn start(&self, path: &Path, own: &Own) -> Result<Input> {
        let shown = path.display();
        // It may have been applied by an agent that had its own elsewhere.
        if let Some((_, why)) = own.refuses(&self.source.settings().spec) {
            bail!("{why}");
        }
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
                        bail!("it has no socket now: {}", state.failed.as_deref().unwrap_or("it is being made"));
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
            SourceType::Operator => bail!("there is nothing to measure: an operator sets tags by hand"),
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
        let Ok(it) = self.find(source) else { return false };
        if it.source.settings().senders.unknown && it.look_up() {
            it.follow(&self.own, true);
        }
        it.source.settings().senders.allow(uid)
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
        settings_of(&super::super::tests::tag_sources(yaml)[0].spec, &Senders::default()).unwrap()
    }

    #[test]
    fn a_resource_that_is_the_same_changes_nothing() {
        use super::super::tests::{PLAIN, Scene};
        let scene = Scene::new();
        let settings = || scene.sources.find("s").unwrap().source.settings();
        scene.configure(PLAIN);
        let before = settings();
        scene.configure(PLAIN);
        assert!(Arc::ptr_eq(&before, &settings()), "its mappings were compiled again");
        scene.configure(&PLAIN.replace("tagFrom: event.tag", "tag: other"));
        assert!(!Arc::ptr_eq(&before, &settings()));
    }

    #[test]
    fn users_are_looked_up_apart_and_known_ones_stay() {
        use super::super::tests::{PLAIN, Scene};
        use crate::api::Sources as _;
        let scene = Scene::new();
        let input = "  type: json\n  input: { directory: DIR/in }\n  users: [daemon, no-such-user]";
        let named = PLAIN.replace("  type: json", input);
        // As if the user database did not answer.
        scene.sources.looking_up.store(true, Ordering::Release);
        scene.configure(&named);
        assert!(scene.status().state.contains("not been looked up yet") && !scene.dir.join("in").exists());
        scene.sources.looking_up.store(false, Ordering::Release);
        scene.sources.look_after(Instant::now());
        scene.wait("the directory", || scene.dir.join("in").exists() && scene.status().state == "silent");
        assert!(scene.sources.may_send("s", 1) && !scene.sources.may_send("s", 2));
        scene.wait("the other", || scene.status().last_error.is_some_and(|why| why.contains("no user no-such-user")));
        scene.wait("the end of it", || !scene.sources.looking_up.load(Ordering::Acquire));
        scene.sources.looking_up.store(true, Ordering::Release);
        scene.configure(&named.replace("tagFrom: event.tag", "tag: other"));
        assert!(scene.sources.find("s").unwrap().source.settings().senders.allow(1), "it has been known");
        // Who asks whether somebody may send waits for the answer.
        scene.configure(&named.replace("[daemon", "[bin, daemon"));
        assert!(!scene.sources.find("s").unwrap().source.settings().senders.allow(2) && scene.sources.may_send("s", 2));
    }
}
