//! `targets/parser.rs` under cargo-fuzz; `cargo test` runs the same over the corpus, see `tests/tests/fuzz.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "targets/parser.rs"]
mod target;

fuzz_target!(|data: &[u8]| target::run(data));
