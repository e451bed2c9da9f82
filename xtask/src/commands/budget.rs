//! `cargo xtask budget`

use super::test::discover;
use crate::system::{as_root, run_to_end, set_up};

/// The test that asks the kernel, and fails when a program comes near the kernel's limit.
const TEST: &str = "programs_stay_in_the_verifiers_budget";

/// Says how many instructions the verifier walks for each program.
pub fn run(args: &[String]) -> Result<(), String> {
    if !args.is_empty() {
        return Err(format!("budget takes nothing, not {}", args.join(" ")));
    }
    set_up("build")?;
    let tests = discover::list(false, Some(TEST))?;
    let test = tests.first().ok_or_else(|| format!("there is no test {TEST} any more"))?;
    let mut budget = as_root(&test.binary, "it loads the eBPF programs")?;
    run_to_end(budget.args(["--exact", &test.name, "--nocapture"]))
}
