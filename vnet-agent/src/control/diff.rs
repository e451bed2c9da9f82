//! Unified diffs of YAML.

use similar::TextDiff;

/// What changed between two texts, with three lines around each change; empty if nothing did.
pub fn unified(old: &str, new: &str) -> String {
    TextDiff::from_lines(old, new).unified_diff().context_radius(3).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_changes_in_their_surroundings() {
        assert_eq!(unified("a\nb\n", "a\nb\n"), "");
        let old = (1..=20).map(|i| format!("{i}\n")).collect::<String>();
        let new = old.replace("10\n", "ten\n");
        assert_eq!(unified(&old, &new), "@@ -7,7 +7,7 @@\n 7\n 8\n 9\n-10\n+ten\n 11\n 12\n 13\n");
        assert_eq!(unified("", "a\n"), "@@ -0,0 +1 @@\n+a\n");
    }
}
