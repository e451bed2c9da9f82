//! Text that came from outside: bounded, and fit to be shown.

use serde_json::Value;

/// What stands for the rest.
const MARK: char = '…';

/// A JSON value as text: a string as it is, nothing for `null`, else JSON.
pub(super) fn of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// At most `most` bytes of it, with a mark where it was cut, and nothing in it that a terminal acts on.
pub(super) fn tidy(text: &str, most: usize) -> String {
    let mut tidy: String = text.chars().take(most + 1).map(printable).collect();
    if tidy.len() > most {
        tidy.truncate(tidy.floor_char_boundary(most - MARK.len_utf8()));
        tidy.push(MARK);
    }
    tidy
}

/// The same where different texts must stay different: the mark is followed by a hash of all of it.
pub(super) fn distinct(text: &str, most: usize) -> String {
    let whole = text.len() <= most && text.chars().all(|c| printable(c) == c);
    if whole { text.to_owned() } else { format!("{}{MARK}{:016x}", tidy(text, most - MARK.len_utf8() - 16), fnv1a(text)) }
}

/// FNV-1a (Fowler, Noll, Vo): the same in every version of the agent, as tags outlive it.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn printable(c: char) -> char {
    match c {
        '\n' | '\t' => ' ',
        '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(tidy("short", 8), "short");
        assert_eq!(tidy("12345678", 8), "12345678");
        assert_eq!(tidy("123456789", 8), "12345…");
        assert_eq!(tidy("ääääää", 8), "ää…");
        assert_eq!(tidy("a\nb\u{1b}[2J\u{202e}", 64), "a b\u{fffd}[2J\u{fffd}");
        for most in 8..40 {
            for text in ["\u{1}".repeat(200), "ä".repeat(200), "a".repeat(200), "😀".repeat(50)] {
                let cut = tidy(&text, most);
                assert!(cut.len() <= most && cut.ends_with('…'), "{most} {cut}");
            }
        }
    }

    #[test]
    fn cut_text_stays_different() {
        assert_eq!(distinct("alice", 64), "alice");
        let (one, other) = (distinct(&"a".repeat(300), 64), distinct(&"a".repeat(301), 64));
        assert!(one != other && one.len() <= 64 && other.len() <= 64, "{one} {other}");
        assert_ne!(distinct("a\u{1}", 64), distinct("a\u{2}", 64));
    }
}
