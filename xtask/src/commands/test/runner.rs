//! Runs tests, each in a process of its own, as many at once as there are processors.

use super::discover::Test;
use std::fmt;
use std::fs::File;
use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this a test hangs.
const LIMIT: Duration = Duration::from_secs(420);
/// The same with `--long`.
const LONG_LIMIT: Duration = Duration::from_secs(900);
/// A test that cannot run on this machine prints this and why (`vnet_tests::skip`).
const SKIPPED: &str = "test skipped: ";

/// What became of the tests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// What failed, each with the end of its output.
    failures: String,
}

impl Counts {
    /// Adds what others counted.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures += &other.failures;
    }

    /// What failed, for the end.
    pub fn failures(&self) -> &str {
        &self.failures
    }

    /// How many ran, or should have.
    pub fn total(&self) -> usize {
        self.passed + self.failed + self.skipped
    }

    /// Nothing failed. In CI a test that cannot run has failed: nobody would notice otherwise.
    pub fn good(&self) -> bool {
        let strict = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty() && ci != "false");
        self.failed == 0 && !(strict && self.skipped > 0)
    }

    /// Counts a step that is no test.
    pub fn passed_step(&mut self, name: &str, time: Duration) {
        self.passed += 1;
        report("ok", time, name);
    }

    /// Counts and prints a step that failed.
    pub fn failed_step(&mut self, name: &str, error: &str) {
        self.failed += 1;
        self.failures += &format!("FAILED {name}\n{}", indented(last_lines(error)));
        println!("FAILED            {name}\n{}", indented(error));
    }

    /// To hand over to another process.
    pub fn to_line(&self) -> String {
        format!("{} {} {}", self.passed, self.failed, self.skipped)
    }

    /// The opposite of [`Counts::to_line`].
    pub fn from_line(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(|number| number.parse().ok());
        let failures = String::new();
        Some(Self { passed: numbers.next()??, failed: numbers.next()??, skipped: numbers.next()??, failures })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 { write!(f, ", {} skipped", self.skipped) } else { Ok(()) }
    }
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Of what failed, so many lines from the end of its output are printed once more at the end of all.
const LAST_LINES: usize = 12;

/// Runs these tests and reports each as it ends.
pub fn run_all(tests: &[Test], long: bool) -> Counts {
    let limit = if long { LONG_LIMIT } else { LIMIT };
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let (next, counts) = (AtomicUsize::new(0), Mutex::new(Counts::default()));
    std::thread::scope(|scope| {
        for _ in 0..workers.min(tests.len()) {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let outcome = run_one(test, limit).unwrap_or_else(|error| Outcome::Failed(format!("running it: {error}")));
                    let name = format!("{}::{}", test.suite, test.name);
                    counts.lock().unwrap_or_else(PoisonError::into_inner).note(&name, start.elapsed(), outcome);
                }
            });
        }
    });
    counts.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What is at the end of a test's output, before what libtest says of every test that failed.
fn last_lines(text: &str) -> &str {
    let own = text.split_once("\nfailures:\n").map_or(text, |(own, _)| own).trim_end();
    let start = own.rmatch_indices('\n').nth(LAST_LINES - 1).map_or(0, |(at, _)| at + 1);
    &own[start..]
}

impl Counts {
    fn note(&mut self, name: &str, time: Duration, outcome: Outcome) {
        match outcome {
            Outcome::Passed => {
                self.passed += 1;
                report("ok", time, name);
            }
            Outcome::Failed(output) => {
                self.failed += 1;
                self.failures += &format!("FAILED {name}\n{}", indented(last_lines(&output)));
                report("FAILED", time, &format!("{name}\n{}", indented(&output)));
            }
            Outcome::Skipped(why) => {
                self.skipped += 1;
                report("skipped", time, &format!("{name}: {why}"));
            }
        }
    }
}

/// One process; its output goes to a file, which, unlike a pipe, nothing that outlives the test can keep open.
fn run_one(test: &Test, limit: Duration) -> io::Result<Outcome> {
    let mut output = unnamed_file()?;
    let mut child = Command::new(&test.binary)
        .args(["--exact", &test.name, "--nocapture", "--include-ignored", "--test-threads=1"])
        .current_dir(&test.dir)
        // Of errors that a test returns; a backtrace of a panic says more.
        .env("RUST_LIB_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let end = Instant::now() + limit;
    let status: Option<ExitStatus> = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > end {
            // What it started dies with it: see `vnet_tests`.
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = read_all(&mut output)?;
    Ok(match status {
        Some(status) if status.success() => match text.lines().find_map(|line| line.strip_prefix(SKIPPED)) {
            Some(why) => Outcome::Skipped(why.to_owned()),
            None => Outcome::Passed,
        },
        Some(status) => Outcome::Failed(format!("{text}\n{status}")),
        None => Outcome::Failed(format!("{text}\nkilled: it ran for more than {} s", limit.as_secs())),
    })
}

/// A file that is gone with its last descriptor.
fn unnamed_file() -> io::Result<File> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("vnet-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let file = File::options().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn read_all(file: &mut File) -> io::Result<String> {
    use io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn report(word: &str, time: Duration, what: &str) {
    println!("{word:8}{:7.2} s  {what}", time.as_secs_f64());
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("    {line}\n")).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_names_skipped_tests_only_if_there_are_any() {
        let mut counts = Counts { passed: 3, failed: 1, ..Counts::default() };
        assert_eq!(counts.to_string(), "3 passed, 1 failed");
        counts.add(&Counts { skipped: 2, ..Counts::default() });
        assert_eq!(counts.to_string(), "3 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn the_last_lines_are_the_end_of_a_text() {
        assert_eq!(last_lines("a\nb"), "a\nb");
        assert_eq!(last_lines("Error: x\nt --- FAILED\n\nfailures:\n\nfailures:\n    t\n"), "Error: x\nt --- FAILED");
        let text = (0..LAST_LINES + 3).map(|i| i.to_string()).collect::<Vec<_>>().join("\n");
        assert_eq!((last_lines(&text).lines().next(), last_lines(&text).lines().count()), (Some("3"), LAST_LINES));
    }

    #[test]
    fn counts_go_through_a_line() {
        let counts = Counts { passed: 3, failed: 1, skipped: 2, ..Counts::default() };
        assert_eq!(Counts::from_line(&counts.to_line()), Some(counts));
        assert_eq!(Counts::from_line("x"), None);
    }
}
