//! The kernel's ticks. Flow entries carry the low half of jiffies, which only a program can read.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_getres, clock_gettime};

use super::attach::Program;
use super::maps::Maps;
use super::sys;

/// [`vnet_common::lb::LbMaps::seconds`], as programs read them. Zero where the kernel has no such clock: it always has.
pub fn seconds() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u32)
}

/// Reads jiffies by running a program.
pub struct Clock {
    program: Program,
    rate: u32,
}

impl Clock {
    /// Finds out how fast the kernel ticks.
    pub(super) fn new(program: Program) -> Result<Self> {
        // Coarse clocks go on with every tick, and say so.
        let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("asking the kernel how fast it ticks")?;
        let nanoseconds = Duration::from(tick).as_nanos();
        ensure!(
            (100_000..=100_000_000).contains(&nanoseconds),
            "the kernel says that it ticks every {nanoseconds} ns: that cannot be"
        );
        let rate = (1_000_000_000 + nanoseconds / 2) / nanoseconds;
        Ok(Self { program, rate: rate as u32 })
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
