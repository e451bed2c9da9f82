//! The fuzz targets of `tests/fuzz`, over their named corpora and for a moment over damaged copies of these; with `VNET_LONG=1` for a
//! minute. What a long run with cargo-fuzz finds becomes a file of the corpus, named after what it shows.

#[path = "../fuzz/targets/eve.rs"]
mod eve;
#[path = "../fuzz/targets/parser.rs"]
mod parser;
#[path = "../fuzz/targets/resource.rs"]
mod resource;

use parser::Random;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

/// For damaged copies; how many come into it depends on the machine, the same ones in the same order.
fn moment() -> Duration {
    Duration::from_secs(if std::env::var_os("VNET_LONG").is_some() { 60 } else { 3 })
}

#[test]
fn eve() {
    replay("eve", eve::run);
}

#[test]
fn parser() {
    replay("parser", parser::run);
}

#[test]
fn resource() {
    replay("resource", resource::run);
}

fn replay(name: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).map(|f| f.unwrap().path()).collect();
    files.sort();
    let inputs: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(inputs.len() >= 10, "{}: {} files", dir.display(), inputs.len());
    for (file, input) in files.iter().zip(&inputs) {
        assert!(catch_unwind(|| run(input)).is_ok(), "see above: {}", file.display());
    }
    let (mut r, end, mut number) = (Random::new(0), Instant::now() + moment(), 0);
    while Instant::now() < end {
        let input = damaged(&mut r, &inputs);
        assert!(catch_unwind(|| run(&input)).is_ok(), "see above: damaged copy {number}: {:?}", input.escape_ascii().to_string());
        number += 1;
    }
    println!("{name}: {} files, {number} damaged copies", files.len());
}

/// A copy of one of them, changed in one to four places.
fn damaged(r: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    let any = |r: &mut Random| &inputs[r.below(inputs.len() as u64) as usize];
    let mut input = any(r).clone();
    for _ in 0..=r.below(4) {
        let place = |r: &mut Random, of: &[u8]| r.below(of.len() as u64 + 1) as usize;
        let (one, other) = (place(r, &input), place(r, &input));
        let (from, to) = (one.min(other), one.max(other));
        match r.below(6) {
            0 => input.truncate(to),
            1 => drop(input.drain(from..to.min(from + 8))),
            2 => drop(input.splice(from..from, input[from..to].to_vec())),
            3 => {
                let more = any(r);
                let start = place(r, more);
                input.splice(from..to, more[start..].iter().take(64).copied());
            }
            _ if from < input.len() => {
                let flipped = input[from] ^ 1 << r.below(8);
                input[from] = r.of(&[0, 1, 0x7f, 0x80, 0xff, b' ', b':', b'9', flipped, flipped]);
            }
            _ => {}
        }
    }
    input
}
