//! Every member takes its lints and its dependencies' versions from the workspace.

use std::path::Path;

/// Checks the manifest of every member of the workspace at `root`.
pub fn check(root: &Path) -> Result<(), String> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| format!("reading {}: {error}", path.display()));
    let workspace = read(&root.join("Cargo.toml"))?;
    let members = members(&workspace).ok_or("Cargo.toml: no `members = […]` on a line of its own")?;
    let mut faults = String::new();
    for member in members {
        let text = read(&root.join(&member).join("Cargo.toml"))?;
        faults.extend(faults_of(&text).iter().map(|fault| format!("{member}/Cargo.toml: {fault}\n")));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn members(workspace: &str) -> Option<Vec<String>> {
    let list = workspace.lines().find_map(|line| line.strip_prefix("members = [")?.strip_suffix(']'))?;
    Some(list.split(',').map(|member| member.trim().trim_matches('"').to_owned()).collect())
}

fn faults_of(manifest: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut section, mut inherits_lints) = ("", false);
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if section == "lints" {
            inherits_lints |= line == "workspace = true";
        } else if section.ends_with("dependencies") && !line.contains("workspace = true") {
            faults.push(format!("`{line}` does not come from the workspace's dependencies"));
        }
    }
    if !inherits_lints {
        faults.push("does not inherit the workspace's lints".to_owned());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_inherits_is_fine() {
        let manifest = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n[dependencies]\nlibc.workspace = true\n";
        assert_eq!(faults_of(manifest), Vec::<String>::new());
    }

    #[test]
    fn own_versions_and_own_lints_are_faults() {
        let manifest = "[dependencies]\nlibc = \"0.2\"\nnix = { workspace = true, features = [] }\n[lints.rust]\n";
        assert_eq!(faults_of(manifest).len(), 2);
    }

    #[test]
    fn members_are_read() {
        assert_eq!(members("[workspace]\nmembers = [\"a\", \"b\"]\n"), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(members("[workspace]\n"), None);
    }
}
