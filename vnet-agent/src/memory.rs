//! The agent's own memory.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

/// Between two times.
const PERIOD: Duration = Duration::from_secs(10);

/// Gives the system what was freed, for ever. To load the programs, or to read what other hosts say, takes several times what stays, in many
/// small pieces; glibc keeps those until it is asked.
pub async fn give_back() {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if spawn_blocking(trim).await.is_err() {
            return;
        }
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it has no preconditions; memory that is in use stays where it is.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
