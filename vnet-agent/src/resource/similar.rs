//! "Did you mean …?"

/// The longest word that is looked at.
const LONGEST: usize = 64;

/// The one of `known` that `word` was probably meant to be.
pub(super) fn similar<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word: Vec<char> = simple(word.chars().take(LONGEST));
    let distance = |name: &str| edits(&word, &simple(name.chars()));
    let best = known.iter().copied().min_by_key(|name| distance(name))?;
    (distance(best) <= best.len() / 3).then_some(best)
}

/// Case and separators are what people get wrong most.
fn simple(word: impl Iterator<Item = char>) -> Vec<char> {
    word.filter(|c| !matches!(c, '-' | '_' | ' ')).map(|c| c.to_ascii_lowercase()).collect()
}

/// How many characters must be added, removed, replaced or swapped with their neighbour.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
