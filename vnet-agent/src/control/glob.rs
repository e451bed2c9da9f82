//! Patterns of device names: `*` for any characters, `?` for one, everything else for itself.

use std::fmt;
use std::str::FromStr;

/// A pattern of device names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Does the whole name match?
    pub fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains(['/', '[', ']', '{', '}']) || text.contains(char::is_whitespace) {
            return Err("a pattern of device names has `*` and `?` and characters of names, such as `tap*`".into());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Goes back to the last `*` only, which is enough: an earlier one could take nothing that the last one cannot.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("tap*", "tap0", true),
            ("tap*", "tap", true),
            ("tap*", "xtap0", false),
            ("tap?", "tap", false),
            ("tap?", "tap10", false),
            ("*-p*1", "vm-p1-p21", true),
            ("*-p*1", "vm-p1-p2", false),
            ("*", "", true),
            ("a*b*c", "aXbXbc", true),
            ("eth0", "eth0", true),
        ] {
            assert_eq!(pattern.parse::<Pattern>().unwrap().matches(name), expected, "{pattern} {name}");
        }
        assert!("".parse::<Pattern>().is_err() && "a b".parse::<Pattern>().is_err() && "tap[0-9]".parse::<Pattern>().is_err());
    }
}
