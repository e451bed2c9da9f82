//! A line on the terminal that says what takes so long, and is wiped away afterwards.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// The line. Nothing at all where standard error is not a terminal.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: false }
    }

    /// Shows `text` instead of what was shown.
    pub fn show(&mut self, text: &str) {
        self.shown = true;
        self.write(&format!("\r\x1b[K{text}"));
    }

    fn write(&self, text: &str) {
        if self.terminal {
            let mut err = std::io::stderr();
            // A progress line that cannot be shown is not missed.
            let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            self.write("\r\x1b[K");
        }
    }
}

/// Does `work`, and says so when it takes longer than a second.
pub async fn during<T>(work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut progress = Progress::new();
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waited = 0;
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                if waited > 0 {
                    progress.show(&format!("waiting for the agent ({waited} s)"));
                }
                waited += 1;
            }
        }
    }
}
