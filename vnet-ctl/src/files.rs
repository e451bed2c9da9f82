//! Reading what `-f` names.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vnet_common::api::File;

use crate::failure::Misused;

/// Reads all of `paths`: files, the resource files in directories (in order of their names), and `-` for standard input.
pub fn read(paths: &[PathBuf]) -> Result<Vec<File>> {
    if paths.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Misused("-f - can be given once: standard input can be read once".to_owned()).into());
    }
    let mut files = Vec::new();
    for path in paths {
        if is_stdin(path) {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
            files.extend(documents("stdin", text));
        } else if path.is_dir() {
            for file in directory(path)? {
                files.extend(read_one(&file)?);
            }
        } else {
            files.extend(read_one(path)?);
        }
    }
    Ok(files)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn read_one(path: &Path) -> Result<Vec<File>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(documents(&path.display().to_string(), text))
}

fn directory(path: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading the directory {}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let known = entry.path().extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known));
        if known && !hidden && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    if files.is_empty() {
        bail!("there are no resources in {}: no file is called *.yaml, *.yml or *.json", path.display());
    }
    files.sort();
    Ok(files)
}

/// A JSON list, as `get -o json` gives it, is taken apart: a YAML document is one resource.
fn documents(name: &str, text: String) -> Vec<File> {
    if text.trim_start().starts_with('[')
        && let Ok(list) = serde_json::from_str::<Vec<Value>>(&text)
    {
        let item = |(i, value): (usize, &Value)| File { name: format!("{name}[{i}]"), text: format!("{value:#}\n") };
        return list.iter().enumerate().map(item).collect();
    }
    vec![File { name: name.to_owned(), text }]
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn a_json_list_is_taken_apart_and_other_text_is_left_alone() {
        let files = documents("x.json", r#" [{"kind": "A"}, {"kind": "B"}]"#.to_owned());
        assert_eq!(files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["x.json[0]", "x.json[1]"]);
        assert!(files[1].text.contains("\"B\""));
        for text in ["kind: A\n", "[broken", "{\"kind\": \"A\"}", ""] {
            assert_eq!(documents("x", text.to_owned())[0].text, text);
        }
    }
}
