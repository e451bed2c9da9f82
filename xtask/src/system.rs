//! Running other programs.

use std::env;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The workspace's root.
pub fn root() -> Result<PathBuf, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(Path::to_owned).ok_or_else(|| format!("{} lies in no workspace", manifest.display()))
}

/// Where cargo builds: this program is in `debug/` of it.
pub fn target_dir() -> Result<PathBuf, String> {
    let exe = env::current_exe().map_err(|error| format!("finding the path of xtask itself: {error}"))?;
    exe.parent().and_then(Path::parent).map(Path::to_owned).ok_or_else(|| format!("{} is in no target directory", exe.display()))
}

/// The cargo that started this, at the workspace's root, building where this was built.
pub fn cargo() -> Result<Command, String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()?).env("CARGO_TARGET_DIR", target_dir()?);
    Ok(cargo)
}

/// Runs it with this terminal.
pub fn run_to_end(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("running {command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

/// Lets `./setup` install what is missing for `purpose`; silent when nothing is.
pub fn set_up(purpose: &str) -> Result<(), String> {
    let setup = root()?.join("setup");
    let check = Command::new(&setup).args(["--check", purpose]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if check.map_err(|error| format!("running {}: {error}", setup.display()))?.success() {
        return Ok(());
    }
    run_to_end(Command::new(&setup).arg(purpose))
}

/// Whether this process may make network namespaces.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// `program` as root, through sudo if need be; `why` is what a person is told.
pub fn as_root(program: &Path, why: &str) -> Result<Command, String> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|dir| dir.join("sudo").is_file()) {
        return Err(format!("root is needed, since {why}; there is no sudo: run this command as root"));
    }
    eprintln!("root is needed, since {why}: using sudo");
    let mut sudo = Command::new("sudo");
    sudo.arg("--").arg(program);
    Ok(sudo)
}
