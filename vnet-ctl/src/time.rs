//! Times and durations, as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;
use jiff::{SpanRelativeTo, Timestamp};

use crate::human;

/// A century: longer is a mistake.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `2026-11-26 03:40:47.123`, in this machine's time zone.
pub fn stamp(ms: u64) -> String {
    match i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()) {
        Some(at) => at.to_zoned(TimeZone::system()).strftime("%F %T%.3f").to_string(),
        None => format!("{ms}ms"),
    }
}

/// `5m`, for how long ago something was; nothing for the time 0, which is none.
pub fn ago(ms: u64) -> String {
    if ms == 0 { String::new() } else { human::seconds(now_ms().saturating_sub(ms) / 1000) }
}

/// `in 5m`, or `now` for what is past.
pub fn until(ms: u64) -> String {
    match ms.saturating_sub(now_ms()) {
        0 => "now".to_owned(),
        left => format!("in {}", human::seconds(left.div_ceil(1000))),
    }
}

/// Parses `90s`, `1h30m`, `2 days`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a duration; write 90s, 15m, 1h30m or 2d");
    let duration = match text.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let span: jiff::Span = text.trim().parse().map_err(|_| wrong())?;
            let exact = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
            Duration::try_from(exact).map_err(|_| wrong())?
        }
    };
    if duration > LONGEST { Err(format!("{text} is too long: at most 100 years")) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let cases = [("90", 90), ("90s", 90), ("1h30m", 5400), ("2d", 172_800), ("2 days", 172_800), ("1w", 604_800), ("0s", 0)];
        for (text, seconds) in cases {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "x", "-1", "-5m", "1 fortnight", "5000y", "99999999999999"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_that_no_calendar_has_are_shown_all_the_same() {
        assert_eq!(stamp(u64::MAX), format!("{}ms", u64::MAX));
        assert_eq!((ago(0), until(0)), (String::new(), "now".to_owned()));
    }
}
