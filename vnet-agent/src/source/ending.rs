//! The end of a source's threads.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Until a thread is left to itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for threads that were told to end. One that does not, since the sink holds it, is left behind: it ends by itself then. The
/// sink may be waiting for whoever waits here.
pub(super) fn wait(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    let end = Instant::now() + PATIENCE;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        } else {
            log::warn!("a tag source has ended while one of its changes is still being made");
        }
    }
}
