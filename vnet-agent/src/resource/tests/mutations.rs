//! Random damage to good files.

use std::time::{Duration, Instant};

use super::fields::{BALANCER, ENDPOINT, SELECTOR};
use super::policy_fields::{GROUP, POLICY, QUARANTINE, SCANNER, SOURCE};
use super::*;
use crate::random::Random;

const BITS: &[&str] = &[
    "",
    ":",
    ": ",
    "- ",
    "\n",
    "  ",
    "\t",
    "[",
    "]",
    "{",
    "}",
    "'",
    "\"",
    "#",
    "&a ",
    "*a",
    "!!str ",
    "|\n",
    ">-\n",
    "? ",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "0",
    "-1",
    "99999999999999999999",
    "1e9",
    "null",
    "~",
    "true",
    "10.0.0.1",
    "::",
    "é",
    "\u{1f600}",
    "\u{0}",
    "\u{feff}",
    "\r",
    "\u{2028}",
    "<<: ",
    "kind: Endpoint\n",
    "members:\n",
    "fd00::1/64",
    "10.0.0.0/8",
    "quarantine: {}\n",
    "tags.exists(t, true)",
    "(",
    "event.",
    "*",
];

fn damage(text: &str, random: &mut Random) -> String {
    let mut text = text.to_owned();
    for _ in 0..=random.index(4) {
        let from = text.floor_char_boundary(random.index(text.len() + 1));
        let until = text.floor_char_boundary((from + random.index(12)).min(text.len())).max(from);
        match random.index(3) {
            0 => text.replace_range(from..until, BITS[random.index(BITS.len())]),
            1 => text.insert_str(from, BITS[random.index(BITS.len())]),
            _ => {
                let line: String = text.lines().nth(random.index(text.lines().count())).unwrap_or_default().to_owned();
                text.insert_str(from, &line);
            }
        }
    }
    text
}

/// Whatever comes is read or refused, never a panic or a hang; a fault is in the text; what is read can be written.
#[test]
fn damaged_files() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut counts = [0; 2];
    for round in 0..4500 {
        let bases = [EXAMPLE, BALANCER, SELECTOR, ENDPOINT, GROUP, QUARANTINE, POLICY, SOURCE, SCANNER];
        let base = bases[round % bases.len()];
        let text = damage(base, &mut random);
        let start = Instant::now();
        match parse(&file(&text)) {
            Ok(found) => {
                counts[0] += 1;
                for located in found {
                    let yaml = to_yaml(&located.resource);
                    assert_eq!(good(&yaml)[0].resource, located.resource, "{yaml}");
                }
            }
            Err(faults) => {
                counts[1] += 1;
                let lines = u32::try_from(text.split(['\n', '\r']).count()).unwrap();
                let inside =
                    |f: &Fault| (1..=lines).contains(&f.line) && f.column > 0 && !f.message.is_empty() && !f.snippet.is_empty();
                assert!(!faults.is_empty() && faults.iter().all(inside), "{text}\n{}", show(&faults));
                assert!(!faults.iter().any(|f| f.message.contains("cannot be read")), "{text}\n{}", show(&faults));
            }
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{text}");
    }
    assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
}
