//! `store backup`, and the file that it writes.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vnet_common::fleet::{DESIRED, Key, SERIAL};

use super::content::{Counts, Desired, Kept, counted};
use crate::output::{Session, json, print};
use crate::{fleet, time};

/// The version of the file.
const VERSION: u32 = 1;

/// What the file has.
#[derive(Debug, Serialize, Deserialize)]
struct Backup {
    /// [`VERSION`].
    version: u32,
    /// When it was made, in milliseconds since 1970.
    at_ms: u64,
    /// Of which store.
    store: String,
    /// Of which of its revisions.
    revision: i64,
    /// What is in it.
    counts: Counts,
    /// By key.
    values: Vec<Line>,
}

/// A key.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    /// The store's revision that had this value: what rollouts were compared with is told by these.
    revision: i64,
    value: Value,
}

/// Runs it.
pub async fn run(session: &Session, file: &Path) -> Result<u8> {
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let snapshot = etcd.read(DESIRED).await?;
    let all = Desired::of_store(&snapshot)?;
    let counts = all.counts();
    let values = all.0.into_iter().map(|(key, Kept { revision, value })| Line { key, revision, value }).collect();
    let backup = Backup { version: VERSION, at_ms: time::now_ms(), store, revision: snapshot.revision, counts, values };
    let text = json(&backup)?;
    let place = if file.as_os_str() == "-" {
        print(&text)?;
        "standard output".to_owned()
    } else {
        keep(file, &text).with_context(|| format!("writing {}", file.display()))?;
        file.display().to_string()
    };
    session.note(&format!("{} at revision {} of {} are in {place}", counted(&backup.counts), backup.revision, backup.store));
    Ok(0)
}

/// Writes the whole file, for its owner only, or leaves what is there. A link stays, and what is no file, as a pipe, is written to.
fn keep(file: &Path, text: &str) -> std::io::Result<()> {
    let there = std::fs::metadata(file);
    if there.as_ref().is_ok_and(|there| !there.is_file()) {
        return OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes());
    }
    let file = match there {
        Ok(_) => file.canonicalize()?,
        Err(_) => file.to_owned(),
    };
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let other = file.with_file_name(name);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&other).and_then(|mut opened| {
        opened.write_all(text.as_bytes())?;
        opened.sync_all()?;
        std::fs::rename(&other, &file)
    });
    if written.is_err() {
        // It may not be there at all.
        let _ = std::fs::remove_file(&other);
        return written;
    }
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// What a file has; `-`: standard input.
///
/// # Errors
/// It cannot be read, or is no whole backup of a version that this program knows.
pub fn read(file: &Path) -> Result<Desired> {
    let name = if file.as_os_str() == "-" { "stdin".to_owned() } else { file.display().to_string() };
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("reading {name}"))?
    };
    parse(&text).with_context(|| format!("{name} cannot be restored"))
}

fn parse(text: &str) -> Result<Desired> {
    // First the version: what another one has is of no matter.
    let version = serde_json::from_str::<Value>(text).ok().and_then(|value| value["version"].as_u64());
    if let Some(other) = version {
        ensure!(other == u64::from(VERSION), "it is a backup of version {other}; this vnet-ctl reads version {VERSION}");
    }
    let backup: Backup = serde_json::from_str(text).context("it is not what `vnet-ctl store backup` writes")?;
    let lines = backup.values.len();
    let all =
        Desired(backup.values.into_iter().map(|line| (line.key, Kept { revision: line.revision, value: line.value })).collect());
    for key in all.0.keys() {
        let known = Key::parse(key).is_none_or(|key| key.is_desired());
        ensure!(key.starts_with(DESIRED) && key != SERIAL && known, "it has the key {key}, which no backup has");
    }
    ensure!(
        all.counts() == backup.counts && all.0.len() == lines,
        "it says that it has {}, and it has {}: it is not whole",
        counted(&backup.counts),
        counted(&all.counts())
    );
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_that_are_no_whole_backup_are_refused() {
        let line = json!({"key": "/vnet/v1/desired/hosts/h1", "revision": 3, "value": {"number": 1, "later": true}});
        let backup = |counts: Value, values: Value| {
            json!({"version": 1, "at_ms": 1, "store": "etcd://x:1", "revision": 9, "counts": counts, "values": values})
                .to_string()
        };
        let good = parse(&backup(json!({"host": 1}), json!([line]))).unwrap();
        assert_eq!(good.0["/vnet/v1/desired/hosts/h1"], Kept { revision: 3, value: json!({"number": 1, "later": true}) });
        let state = json!({"key": "/vnet/v1/state/alive/h1", "revision": 3, "value": {}});
        for (text, why) in [
            (String::new(), "not what `vnet-ctl store backup` writes"),
            (r#"{"version": 2}"#.to_owned(), "version 2; this vnet-ctl reads version 1"),
            (backup(json!({"host": 2}), json!([line])), "it says that it has 2 hosts, and it has 1 host"),
            (backup(json!({"host": 1}), json!([line, line])), "it is not whole"),
            (backup(json!({"unknown value": 1}), json!([state])), "which no backup has"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
