//! "Did you mean": the names that exist, for one that does not.

/// Names in a list of all.
const LISTED: usize = 10;

/// What to say after "there is no …": the nearest name, or those there are. `things` are what is listed, in plural.
pub fn hint<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>, things: &str) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let allowed = 1 + wanted.chars().count() / 4;
    let nearest = names.iter().map(|name| (distance(wanted, name), *name)).min();
    match nearest {
        None => format!("there are no {things}"),
        Some((distance, name)) if distance <= allowed => format!("did you mean '{name}'?"),
        Some(_) if names.len() > LISTED => format!("there are {} {things}, such as {}", names.len(), names[..LISTED].join(", ")),
        Some(_) => format!("there is: {}", names.join(", ")),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_others_listed() {
        assert_eq!(hint("wbe", ["api", "web"], "load balancers"), "did you mean 'web'?");
        assert_eq!(hint("zzz", ["api", "web"], "load balancers"), "there is: api, web");
        assert_eq!(hint("zzz", [], "load balancers"), "there are no load balancers");
        assert_eq!(hint("10.0.0.12", ["10.0.0.11", "10.0.1.11"], "members"), "did you mean '10.0.0.11'?");
    }
}
