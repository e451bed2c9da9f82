//! Builds the tests and lists them.

use crate::system::{cargo, target_dir};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package whose tests make network namespaces. Integration tests of others load programs, at least.
const ROOTED: &str = "tests";

/// One test function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// The test binary.
    pub binary: PathBuf,
    /// Where cargo would run it.
    pub dir: PathBuf,
    /// Its package's folder and its target, for people.
    pub suite: String,
    /// As libtest calls it.
    pub name: String,
    /// It makes network namespaces.
    pub needs_root: bool,
}

impl Test {
    /// One line, to hand over to another process.
    pub fn to_line(&self) -> String {
        format!("{}\t{}\t{}\t{}\n", self.binary.display(), self.dir.display(), self.suite, self.name)
    }

    /// The opposite of [`Test::to_line`].
    pub fn from_line(line: &str) -> Option<Self> {
        let mut parts = line.split('\t');
        let (binary, dir) = (parts.next()?.into(), parts.next()?.into());
        Some(Self { binary, dir, suite: parts.next()?.into(), name: parts.next()?.into(), needs_root: true })
    }
}

/// Builds everything that tests run, and lists the tests whose name contains `filter`; with `long` those marked `#[ignore]` too.
pub fn build_and_list(long: bool, filter: Option<&str>) -> Result<Vec<Test>, String> {
    build_programs()?;
    list(long, filter)
}

/// The same without the programs that end-to-end tests start.
pub fn list(long: bool, filter: Option<&str>) -> Result<Vec<Test>, String> {
    let mut tests = Vec::new();
    for Built { binary, dir, integration } in build_tests()? {
        let suite = suite(&binary, &dir);
        let all = names(&binary, &dir, &[])?;
        let ignored = if long { Vec::new() } else { names(&binary, &dir, &["--ignored"])? };
        tests.extend(all.into_iter().filter(|name| !ignored.contains(name)).map(|name| Test {
            binary: binary.clone(),
            needs_root: integration || dir.file_name().is_some_and(|folder| folder == ROOTED),
            dir: dir.clone(),
            suite: suite.clone(),
            name,
        }));
    }
    tests.retain(|test| filter.is_none_or(|filter| format!("{}::{}", test.suite, test.name).contains(filter)));
    Ok(tests)
}

/// The agent and the CLI that end-to-end tests start, and the agent with the previous map layout that upgrades start from.
fn build_programs() -> Result<(), String> {
    // The same packages each time: what they ask of dependencies is then the same as well.
    let programs = ["build", "--quiet", "--package=vnet-agent", "--package=vnet-ctl", "--package=vnet-tests"];
    let debug = target_dir()?.join("debug");
    let (agent, previous) = (debug.join("vnet-agent"), debug.join("vnet-agent-previous-abi"));
    build(cargo()?.args(programs).args(["--bin=vnet-agent", "--features=vnet-agent/previous-abi"]))?;
    std::fs::copy(&agent, &previous)
        .map_err(|error| format!("copying {} to {}: {error}", agent.display(), previous.display()))?;
    build(cargo()?.args(programs).arg("--bins"))
}

fn build(cargo: &mut Command) -> Result<(), String> {
    let status = cargo.status().map_err(|error| format!("running {cargo:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{cargo:?}: {status}")) }
}

/// A test binary.
#[derive(Debug, PartialEq, Eq)]
struct Built {
    binary: PathBuf,
    /// Of its package.
    dir: PathBuf,
    /// It is one of those below `tests/`.
    integration: bool,
}

/// Every test binary of the workspace.
fn build_tests() -> Result<Vec<Built>, String> {
    let mut cargo = cargo()?;
    cargo.args(["test", "--quiet", "--workspace", "--exclude=vnet-ebpf", "--no-run", "--message-format=json-render-diagnostics"]);
    let out = cargo.stderr(Stdio::inherit()).output().map_err(|error| format!("running {cargo:?}: {error}"))?;
    if !out.status.success() {
        return Err(format!("{cargo:?}: {}", out.status));
    }
    let messages = String::from_utf8_lossy(&out.stdout);
    Ok(messages.lines().filter_map(test_binary).collect())
}

/// The test that this message of cargo is about, if it is about one.
fn test_binary(message: &str) -> Option<Built> {
    // The target has a field `test` too: whether it can have tests.
    let profile = message.split_once("\"profile\":{")?.1.split_once('}')?.0;
    if !profile.contains("\"test\":true") {
        return None;
    }
    let binary = field(message, "executable")?.into();
    let dir = Path::new(field(message, "manifest_path")?).parent()?.to_owned();
    Some(Built { binary, dir, integration: message.contains("\"kind\":[\"test\"]") })
}

/// The text of a field of a message. Paths that JSON has to escape are not expected here.
fn field<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let start = format!("\"{name}\":\"");
    let text = &message[message.find(&start)? + start.len()..];
    Some(&text[..text.find('"')?])
}

/// `vnet-common` for its own unit tests, `tests/lb` for others: the folder, and the target unless it is the same.
fn suite(binary: &Path, dir: &Path) -> String {
    let folder = dir.file_name().unwrap_or_default().to_string_lossy();
    let file = binary.file_name().unwrap_or_default().to_string_lossy();
    let target = file.rsplit_once('-').map_or(&*file, |(target, _hash)| target);
    if target == folder.replace('-', "_") { folder.into_owned() } else { format!("{folder}/{target}") }
}

fn names(binary: &Path, dir: &Path, more: &[&str]) -> Result<Vec<String>, String> {
    let mut list = Command::new(binary);
    list.current_dir(dir).args(["--list", "--format=terse"]).args(more);
    let out = list.output().map_err(|error| format!("running {list:?}: {error}"))?;
    if !out.status.success() {
        return Err(format!("{list:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_about_tests_are_taken() {
        let test = r#"{"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","target":{"test":true},"profile":{"opt_level":"0","test":true},"executable":"/w/t/a-1f","fresh":true}"#;
        let built = |integration| Some(Built { binary: "/w/t/a-1f".into(), dir: "/w/a".into(), integration });
        assert_eq!(test_binary(test), built(false));
        assert_eq!(test_binary(&test.replace("\"target\":{", "\"target\":{\"kind\":[\"test\"],")), built(true));
        let program = test.replace("\"opt_level\":\"0\",\"test\":true", "\"opt_level\":\"0\",\"test\":false");
        assert_eq!(test_binary(&program), None);
        assert_eq!(test_binary(r#"{"reason":"build-finished","success":true}"#), None);
    }

    #[test]
    fn a_test_goes_through_a_line() {
        let test = Test {
            binary: "/t/lb-1f".into(),
            dir: "/w/tests".into(),
            suite: "tests/lb".into(),
            name: "a::b".into(),
            needs_root: true,
        };
        assert_eq!(Test::from_line(test.to_line().trim_end()), Some(test));
    }

    #[test]
    fn suites_are_named_after_folder_and_target() {
        assert_eq!(suite(Path::new("/t/vnet_common-1f"), Path::new("/w/vnet-common")), "vnet-common");
        assert_eq!(suite(Path::new("/t/lb-1f"), Path::new("/w/tests")), "tests/lb");
    }
}
