//! What the verifier says of the programs.

use super::kernel;

/// The kernel's limit is 1,000,000 instructions; a change that comes near must be split before other compilers cross it.
const BUDGET: u32 = 850_000;

#[test]
fn programs_stay_in_the_verifiers_budget() {
    for (name, verified) in kernel::lock().verified_instructions() {
        println!("{name}: {verified} verified instructions");
        assert!(verified <= BUDGET, "{name}: {verified} verified instructions, more than {BUDGET}");
    }
}
