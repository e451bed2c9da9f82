//! `cargo xtask test`: the checks, then every test in a process of its own.
//!
//! A process for each test gives each a duration, a time limit and its own output, and whatever a test started ends with it.

mod checks;
pub mod discover;
mod manifests;
mod runner;

use crate::system::{as_root, is_root, set_up};
use discover::Test;
use runner::{Counts, run_all};
use std::path::Path;

/// The hidden command by which the tests that need root are run: the file that lists them, the file for the counts.
pub const AS_ROOT: &str = "test-as-root";

/// Runs what `args` select.
pub fn run(args: &[String]) -> Result<(), String> {
    let long = args.iter().any(|arg| arg == "--long");
    let filters: Vec<&String> = args.iter().filter(|arg| *arg != "--long").collect();
    if let Some(unknown) = filters.iter().find(|arg| arg.starts_with('-')).or(filters.get(1)) {
        return Err(format!("test takes --long and one FILTER, not {unknown}"));
    }
    set_up("test")?;
    let mut counts = Counts::default();
    if filters.is_empty() {
        checks::run(&mut counts);
    }
    match discover::build_and_list(long, filters.first().map(|filter| filter.as_str())) {
        Ok(tests) => {
            let (rooted, plain): (Vec<Test>, Vec<Test>) = tests.into_iter().partition(|test| test.needs_root);
            counts.add(&run_all(&plain, long));
            counts.add(&run_rooted(&rooted, long)?);
        }
        Err(error) => counts.failed_step("building the tests", &error),
    }
    if counts.total() == 0 {
        return Err("no test has such a name".to_owned());
    }
    print!("{}", counts.failures());
    println!("{counts}");
    if counts.good() { Ok(()) } else { Err(String::new()) }
}

/// The tests that make network namespaces: here, or by a second xtask as root.
fn run_rooted(tests: &[Test], long: bool) -> Result<Counts, String> {
    if is_root() || tests.is_empty() {
        return Ok(run_all(tests, long));
    }
    let own = std::env::current_exe().map_err(|error| format!("finding the path of xtask itself: {error}"))?;
    let list = own.with_file_name("xtask-tests.txt");
    let result = own.with_file_name("xtask-counts.txt");
    let text: String = tests.iter().map(Test::to_line).collect();
    std::fs::write(&list, text).map_err(|error| format!("writing {}: {error}", list.display()))?;
    let _ = std::fs::remove_file(&result);
    let mut sudo = as_root(&own, "end-to-end tests make network namespaces and load eBPF programs")?;
    sudo.arg(AS_ROOT).arg(&list).arg(&result).args(long.then_some("--long"));
    let status = sudo.status().map_err(|error| format!("running {sudo:?}: {error}"))?;
    let counts = std::fs::read_to_string(&result).ok().and_then(|text| Counts::from_line(&text));
    counts.ok_or_else(|| format!("the tests that need root did not run to their end ({status})"))
}

/// The second xtask, as root: runs the listed tests and leaves the counts in a file.
pub fn run_as_root(args: &[String]) -> Result<(), String> {
    let [list, result, rest @ ..] = args else { return Err(format!("{AS_ROOT} is called by xtask test only")) };
    let text = std::fs::read_to_string(list).map_err(|error| format!("reading {list}: {error}"))?;
    let tests: Vec<Test> = text.lines().filter_map(Test::from_line).collect();
    let counts = run_all(&tests, rest.iter().any(|arg| arg == "--long"));
    print!("{}", counts.failures());
    std::fs::write(Path::new(result), counts.to_line()).map_err(|error| format!("writing {result}: {error}"))
}
