//! Numbers for people.

use std::time::Duration;

/// `1.5KiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count}B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        value /= 1024.0;
        unit = next;
        // What would be rounded to 1024 goes on.
        if value < 1023.95 {
            break;
        }
    }
    if value < 99.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
}

/// `2h5m`: the two largest units.
pub fn seconds(count: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = UNITS.iter().position(|(size, _)| count >= *size).unwrap_or(UNITS.len() - 1);
    let (size, unit) = UNITS[first];
    let mut text = format!("{}{unit}", count / size);
    if let Some((smaller, unit)) = UNITS.get(first + 1) {
        let rest = count % size / smaller;
        if rest > 0 {
            text += &format!("{rest}{unit}");
        }
    }
    text
}

/// `1.5s`, `250ms`.
pub fn milliseconds(count: u64) -> String {
    match count {
        0..1000 => format!("{count}ms"),
        1000..60_000 if !count.is_multiple_of(1000) => format!("{}s", count as f64 / 1000.0),
        _ => seconds(count / 1000),
    }
}

/// `215 µs`, `1.30 ms`.
pub fn microseconds(count: u64) -> String {
    if count < 1000 { format!("{count} µs") } else { format!("{:.2} ms", count as f64 / 1000.0) }
}

/// `3.5`, per second since it was seen before; nothing where it was not.
pub fn rate(now: u64, before: Option<u64>, time: Duration) -> String {
    let Some(before) = before else { return String::new() };
    format!("{:.1}", per_second(now, before, time))
}

/// How fast a number grew; one that went back (an agent restarted) stood still.
pub fn per_second(now: u64, before: u64, time: Duration) -> f64 {
    now.saturating_sub(before) as f64 / time.as_secs_f64().max(0.001)
}

/// Without control characters: what somebody else has written does not command the terminal, nor break a line.
pub fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// At most `length` characters; what is cut off is said to be.
pub fn short(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length.saturating_sub(2)).chain(" …".chars()).collect()
}

/// `80,443`.
pub fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `1 flow`, `2 flows`.
pub fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// `33%`; nothing of nothing has no share.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { String::new() } else { format!("{:.0}%", part as f64 * 100.0 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (1536, "1.5KiB"),
            (102_348, "99.9KiB"),
            (1_048_575, "1.0MiB"),
            (64 << 20, "64.0MiB"),
            (u64::MAX, "16.0EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn long_text_is_cut_at_characters() {
        assert_eq!((short("äöü", 3), short("äöüß", 3)), ("äöü".to_owned(), "ä …".to_owned()));
        assert_eq!((microseconds(999), microseconds(1302)), ("999 µs".to_owned(), "1.30 ms".to_owned()));
    }

    #[test]
    fn durations_have_two_units() {
        let cases = [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m1s"), (7500, "2h5m"), (86_400, "1d"), (273_600, "3d4h")];
        for (count, text) in cases {
            assert_eq!(seconds(count), text);
        }
        for (count, text) in [(250, "250ms"), (1000, "1s"), (1500, "1.5s"), (90_000, "1m30s")] {
            assert_eq!(milliseconds(count), text);
        }
    }
}
