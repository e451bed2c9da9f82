//! How many connections members have open, for a person to see.

use anyhow::Result;
use std::time::{Duration, Instant};
use vnet_tests::{Farm, imbalance};

/// A bar of so many connections is one character long.
const EACH: u64 = 5;

/// Prints it every second, for so many seconds.
pub fn watch(farm: &Farm, seconds: u64) {
    for second in 1..=seconds {
        look(farm, second);
    }
}

/// Prints it every second until the busiest member is at most so far above the mean for three seconds, or much longer than `limit`
/// has passed; gives whether it was.
pub fn watch_until(farm: &Farm, level: f64, limit: Duration) -> Result<bool> {
    let (begun, mut last) = (Instant::now(), Vec::new());
    while begun.elapsed() < limit * 4 {
        last.push(look(farm, last.len() as u64 + 1));
        if last.len() >= 8 && last.iter().rev().take(3).all(|value| *value <= level) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn look(farm: &Farm, second: u64) -> f64 {
    std::thread::sleep(Duration::from_secs(1));
    let open = farm.open();
    print!("{second:>4} s");
    for (number, open) in (1..).zip(&open) {
        let bar = "█".repeat(usize::try_from(open / EACH).unwrap_or(0));
        print!("  m{number} {open:>3} {bar:<20}");
    }
    println!("  busiest / mean {:.2}", imbalance(&open));
    imbalance(&open)
}
