//! The kernel's ticks. Flow entries carry the low half of jiffies, which only a program can read.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::attach::Program;
use super::maps::Maps;
use super::sys;

/// The tick rates that kernels are built with.
const RATES: [u32; 6] = [100, 250, 300, 500, 1000, 1024];
/// Long enough to tell 250 from 300 ticks a second by whole ticks.
const MEASURED: Duration = Duration::from_millis(60);

/// Reads jiffies by running a program.
pub struct Clock {
    program: Program,
    rate: u32,
}

impl Clock {
    /// Measures how fast the kernel ticks: it tells nobody.
    pub(super) fn new(program: Program, maps: &Maps) -> Result<Self> {
        let mut clock = Self { program, rate: 0 };
        let (start, first) = clock.edge(maps)?;
        std::thread::sleep(MEASURED);
        let (end, last) = clock.edge(maps)?;
        let per_second = f64::from(last.wrapping_sub(first)) / (end - start).as_secs_f64();
        let nearest = RATES.into_iter().min_by_key(|r| (per_second - f64::from(*r)).abs() as u32);
        clock.rate =
            nearest.filter(|r| (per_second / f64::from(*r) - 1.0).abs() < 0.05).unwrap_or(per_second.round() as u32).max(1);
        Ok(clock)
    }

    /// The moment of the next tick, and its number.
    fn edge(&self, maps: &Maps) -> Result<(Instant, u32)> {
        let first = self.now(maps)?;
        loop {
            let now = self.now(maps)?;
            if now != first {
                return Ok((Instant::now(), now));
            }
        }
    }

    /// The low half of jiffies.
    pub(super) fn now(&self, maps: &Maps) -> Result<u32> {
        sys::run_once(self.program.fd.as_fd()).context("running the program that reads the kernel's clock")?;
        Ok(maps.clock.load(0).context("map CLOCK has no row")? as u32)
    }

    /// Ticks a second.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// A number of ticks as time.
    pub fn duration(&self, ticks: u32) -> Duration {
        Duration::from_millis(u64::from(ticks) * 1000 / u64::from(self.rate))
    }
}
