//! What the scenes of tag sources share.

use anyhow::{Context as _, Result};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vnet_agent::resource::{Resource, TagSource, parse};
use vnet_agent::source::{Applied, Current, Known, Own, Refused, Sink, SourceName, Sources, TagChange};
use vnet_common::api::{File, SourceStatus};
use vnet_tests::wait_for;

/// Takes every change, and keeps it with the time.
#[derive(Default)]
pub struct Taken {
    all: Mutex<Vec<(TagChange, Instant)>>,
    /// How long it takes for each, in microseconds.
    takes: AtomicU64,
}

impl Sink for Taken {
    fn change(&self, change: TagChange) -> Result<Applied, Refused> {
        if !change.is_trial() {
            self.all.lock().unwrap_or_else(PoisonError::into_inner).push((change, Instant::now()));
        }
        match self.takes.load(Ordering::Relaxed) {
            0 => {}
            takes => std::thread::sleep(Duration::from_micros(takes)),
        }
        Ok(Applied::Made)
    }

    fn without_room(&self, _source: &SourceName) -> u64 {
        0
    }

    fn lost(&self, _source: &SourceName, _lost: bool) {}
}

impl Taken {
    /// From now on it takes so long for each.
    pub fn take(&self, takes: Duration) {
        self.takes.store(takes.as_micros() as u64, Ordering::Relaxed);
    }

    /// All so far, oldest first.
    pub fn all(&self) -> Vec<(TagChange, Instant)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many so far.
    pub fn count(&self) -> usize {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits for the first change of a tag of this name after the first `after` changes.
    pub fn wait(&self, name: &str, after: usize) -> Result<(TagChange, Instant)> {
        wait_for(&format!("a change of {name}"), Duration::from_secs(10), || {
            self.all().into_iter().skip(after).find(|(change, _)| change.name == name)
        })
    }
}

/// The tag sources of an agent, without the rest of it.
pub struct Scene {
    pub sources: Sources,
    pub taken: Arc<Taken>,
}

impl Scene {
    /// Sources that find these endpoints, by name and address, and make their sockets in `run_dir`.
    pub fn new(run_dir: &Path, endpoints: &[(&str, &str)]) -> Result<Self> {
        let (directory, taken) = (Arc::new(Current::default()), Arc::new(Taken::default()));
        let known = |(name, address): &(&str, &str)| -> Result<Known> {
            Ok(Known { name: (*name).to_owned(), addresses: vec![address.parse()?], ..Known::default() })
        };
        directory.replace(endpoints.iter().map(known).collect::<Result<Vec<_>>>()?.into_iter().collect());
        let sink: Arc<dyn Sink> = Arc::clone(&taken) as Arc<dyn Sink>;
        let own = Own { run_dir: run_dir.to_owned(), state_dir: run_dir.join("state") };
        Ok(Self { sources: Sources::new(own, directory, sink), taken })
    }

    /// Runs the sources of this YAML.
    pub fn configure(&self, yaml: &str) -> Result<()> {
        let all = sources(yaml)?;
        self.sources.configure(&all.iter().collect::<Vec<_>>());
        Ok(())
    }

    /// The only source.
    pub fn status(&self) -> Result<SourceStatus> {
        self.sources.status().into_iter().next().context("there is no source")
    }
}

/// The tag sources of a file.
pub fn sources(yaml: &str) -> Result<Vec<TagSource>> {
    let files = [File { name: "sources.yaml".to_owned(), text: yaml.to_owned() }];
    let found = parse(&files).map_err(|faults| anyhow::anyhow!("{faults:#?}"))?;
    let only = |resource| match resource {
        Resource::TagSource(source) => Some(source),
        _ => None,
    };
    Ok(found.into_iter().filter_map(|located| only(located.resource)).collect())
}

/// Shows durations as one line: the fastest, the median, the slowest.
pub fn summary(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: f64| times.get(((times.len() as f64 - 1.0) * part).round() as usize).copied().unwrap_or_default();
    format!("least {:?}, median {:?}, p99 {:?}, most {:?} of {}", at(0.0), at(0.5), at(0.99), at(1.0), times.len())
}
