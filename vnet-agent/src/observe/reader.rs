//! The thread that reads what the programs report.
//!
//! It looks by itself, every [`PERIOD`]: a program that had to wake it up would pay more for that than for the event.

use std::sync::{Arc, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vnet_common::event::{EventRow, WINDOW_JIFFIES, kind};

use super::events::now_ms;
use super::{Directory, Events, Observer};
use crate::datapath::Datapath;
use crate::datapath::events::EventReader;

/// Between two looks. The buffer has room for 13,000 events.
const PERIOD: Duration = Duration::from_millis(20);
/// Between two looks while nothing is reported.
const IDLE: Duration = Duration::from_millis(200);
/// Between two looks at how many were suppressed.
const BUDGET: Duration = Duration::from_secs(1);
/// Events that are handed on at once.
const BATCH: usize = 4096;

/// Which events the programs report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Kinds, as bits of [`kind`]; [`kind::FLOW`] only while somebody asks for it.
    pub kinds: u8,
    /// Each CPU reports so many a second at most.
    pub rate: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kinds: kind::DROP | kind::LOG | kind::STAGED, rate: 5000 }
    }
}

/// Reads events until it is dropped, or the datapath is.
#[derive(Debug)]
pub struct Reader {
    thread: Option<JoinHandle<()>>,
    /// The thread holds the other one.
    alive: Option<Arc<()>>,
}

impl Reader {
    /// Has the programs report, and starts to read.
    pub fn start(observer: &Observer, datapath: &Arc<Datapath>, settings: Settings) -> Result<Self> {
        let alive = Arc::new(());
        let mut work = Work {
            events: Arc::clone(&observer.events),
            names: Arc::clone(&observer.names),
            datapath: Arc::downgrade(datapath),
            reader: datapath.maps().event_reader()?,
            settings,
            wanted: None,
            suppressed: datapath.maps().event_budget()?.suppressed,
            looked: Instant::now(),
            rows: Vec::with_capacity(BATCH),
            alive: Arc::downgrade(&alive),
        };
        work.ask(datapath)?;
        let thread = std::thread::Builder::new().name("events".into()).spawn(move || work.run());
        Ok(Self { thread: Some(thread.context("starting the thread that reads events")?), alive: Some(alive) })
    }

    /// The thread, to be woken up before its time.
    pub fn thread(&self) -> Option<&Thread> {
        self.thread.as_ref().map(JoinHandle::thread)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("the thread that read events broke down");
            }
        }
    }
}

struct Work {
    events: Arc<Events>,
    names: Arc<Directory>,
    /// Weak: whoever takes the datapath off waits until nobody has it any more.
    datapath: Weak<Datapath>,
    reader: EventReader,
    settings: Settings,
    /// The kinds that were asked for.
    wanted: Option<u8>,
    suppressed: u64,
    looked: Instant,
    rows: Vec<EventRow>,
    alive: Weak<()>,
}

impl Work {
    fn run(mut self) {
        let mut failed = false;
        while self.alive.strong_count() != 0
            && let Some(datapath) = self.datapath.upgrade()
        {
            let more = match self.look(&datapath) {
                Ok(more) => {
                    failed = false;
                    more
                }
                Err(e) => {
                    if !failed {
                        log::error!("reading events: {e:#}; trying on");
                    }
                    failed = true;
                    false
                }
            };
            drop(datapath);
            if !more {
                std::thread::park_timeout(if self.wanted == Some(0) { IDLE } else { PERIOD });
            }
        }
    }

    /// Takes what there is; says if that was not all.
    fn look(&mut self, datapath: &Datapath) -> Result<bool> {
        self.ask(datapath)?;
        let Self { reader, rows, .. } = self;
        rows.clear();
        let seen = reader.drain(BATCH, |row| rows.push(*row));
        if !rows.is_empty() {
            let (now, ticks, rate) = (now_ms(), datapath.now()?, u64::from(datapath.ticks_per_second()));
            self.events.packets(rows, &self.names.get(), |row| {
                let ago = ticks.wrapping_sub(row.jiffies as u32);
                // A tick may have passed between the two.
                let ago = if ago > u32::MAX / 2 { 0 } else { ago };
                now - (u64::from(ago) * 1000 / rate).min(now)
            });
        }
        if self.looked.elapsed() >= BUDGET {
            self.looked = Instant::now();
            let suppressed = datapath.maps().event_budget()?.suppressed;
            match suppressed.saturating_sub(self.suppressed) {
                0 => {}
                n => self.events.suppressed(n),
            }
            self.suppressed = suppressed;
        }
        Ok(seen == BATCH)
    }

    /// Has the programs report what is wanted now.
    fn ask(&mut self, datapath: &Datapath) -> Result<()> {
        let flows = if self.events.wants_flows() { kind::FLOW } else { 0 };
        let wanted = self.settings.kinds & !kind::FLOW | flows;
        if self.wanted != Some(wanted) {
            let window = u64::from(self.settings.rate) * u64::from(WINDOW_JIFFIES) / u64::from(datapath.ticks_per_second());
            let window = if self.settings.rate == 0 { 0 } else { window.max(1) };
            datapath.maps().set_events(wanted, window as u32)?;
            self.wanted = Some(wanted);
        }
        Ok(())
    }
}
