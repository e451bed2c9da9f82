//! Time, as holds and expiries are counted.
//!
//! The rule: **only time in which the host ran counts.** Everything that is due is kept in milliseconds of one count that
//! never goes back ([`Now::at`]). While a host is up, the count follows the kernel's boot clock, which nobody sets and which
//! goes on while the host sleeps and while no agent runs. Over a reboot the count stands still: how long the host was off is
//! known only from the wall clock, which may be hours off in either direction then. So a jump of the wall clock, however
//! far, releases nobody early and loses no expiry; what a reboot costs is that holds last as much longer as it took. The
//! wall clock is only for what people read.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970, as the host believes; jumps when somebody sets it.
    fn wall_ms(&self) -> u64;
    /// Milliseconds since the host was started; never goes back, never jumps.
    fn running_ms(&self) -> u64;
    /// Differs for each start of the host.
    fn boot(&self) -> String;
}

/// The host's clocks.
#[derive(Debug)]
pub struct SystemClock {
    boot: String,
}

impl SystemClock {
    /// # Errors
    /// The kernel does not say which start of the host this is.
    pub fn new() -> Result<Self> {
        let file = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        Ok(Self { boot: boot.trim().to_owned() })
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn running_ms(&self) -> u64 {
        // It fails for clocks that the kernel does not have only.
        clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map_or(0, |t| t.tv_sec().unsigned_abs() * 1000 + t.tv_nsec().unsigned_abs() / 1_000_000)
    }

    fn boot(&self) -> String {
        self.boot.clone()
    }
}

/// A moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that count; see the module.
    pub at: u64,
    /// Milliseconds since 1970, for people.
    pub wall: u64,
}

impl Now {
    /// When `at` is, or was, by the wall clock as it goes now.
    #[must_use]
    pub fn wall_at(&self, at: u64) -> u64 {
        (self.wall + at).saturating_sub(self.at)
    }
}

/// A moment, as it is stored: from it the count goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// [`Clock::boot`].
    pub boot: String,
    /// [`Clock::running_ms`].
    pub running: u64,
    /// [`Now::at`].
    pub at: u64,
}

/// The count of time.
pub struct Timeline {
    clock: Arc<dyn Clock>,
    /// Where the count started: at this time of the boot clock it was …
    running: u64,
    /// … this.
    at: u64,
}

impl Timeline {
    /// Goes on from what was stored last.
    #[must_use]
    pub fn resume(clock: Arc<dyn Clock>, last: Option<&Mark>) -> Self {
        let running = clock.running_ms();
        let at = match last {
            // A machine that was set back to a snapshot has the same boot, but an earlier time.
            Some(mark) if mark.boot == clock.boot() => mark.at + running.saturating_sub(mark.running),
            Some(mark) => mark.at,
            None => 0,
        };
        Self { clock, running, at }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Now {
        let passed = self.clock.running_ms().saturating_sub(self.running);
        Now { at: self.at + passed, wall: self.clock.wall_ms() }
    }

    /// A moment as it is stored.
    #[must_use]
    pub fn mark(&self, now: Now) -> Mark {
        Mark { boot: self.clock.boot(), running: now.at.saturating_sub(self.at) + self.running, at: now.at }
    }
}

/// A clock that is set by hand.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct ManualClock(std::sync::Mutex<(u64, u64, u32)>);

#[cfg(test)]
impl ManualClock {
    /// It is an arbitrary time.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(std::sync::Mutex::new((1_700_000_000_000, 50_000, 1))))
    }

    /// Time passes.
    pub fn pass(&self, ms: u64) {
        let mut t = self.0.lock().unwrap();
        t.0 = t.0.saturating_add(ms);
        t.1 += ms;
    }

    /// Somebody sets the wall clock.
    pub fn jump(&self, ms: i64) {
        let mut t = self.0.lock().unwrap();
        t.0 = t.0.saturating_add_signed(ms);
    }

    /// The host is off for a while, and started again.
    pub fn reboot(&self, off_ms: u64) {
        let mut t = self.0.lock().unwrap();
        *t = (t.0 + off_ms, 9_000, t.2 + 1);
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.0.lock().unwrap().0
    }
    fn running_ms(&self) -> u64 {
        self.0.lock().unwrap().1
    }
    fn boot(&self) -> String {
        self.0.lock().unwrap().2.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_the_host_ran_counts() {
        let clock = ManualClock::new();
        let line = Timeline::resume(clock.clone(), None);
        clock.pass(1000);
        clock.jump(-7_200_000);
        clock.pass(500);
        clock.jump(86_400_000);
        assert_eq!(line.now().at, 1500);
        let mark = line.mark(line.now());

        // The agent was dead for a while.
        clock.pass(10_000);
        clock.jump(3_600_000);
        let again = Timeline::resume(clock.clone(), Some(&mark));
        assert_eq!(again.now().at, 11_500);

        let mark = again.mark(again.now());
        clock.reboot(3_600_000);
        let booted = Timeline::resume(clock.clone(), Some(&mark));
        clock.pass(7);
        assert_eq!(booted.now().at, 11_507);
    }

    #[test]
    fn the_wall_clock_says_when_something_is() {
        let now = Now { at: 5_000, wall: 100_000 };
        assert_eq!((now.wall_at(6_000), now.wall_at(1_000), Now { at: 9, wall: 1 }.wall_at(0)), (101_000, 96_000, 0));
    }

    #[test]
    fn the_hosts_clocks_go() {
        let clock = SystemClock::new().unwrap();
        let before = (clock.running_ms(), clock.wall_ms());
        std::thread::sleep(std::time::Duration::from_millis(15));
        assert!(clock.running_ms() >= before.0 + 10 && before.1 > 1_600_000_000_000);
        assert_eq!(clock.boot().len(), 36);
    }
}
