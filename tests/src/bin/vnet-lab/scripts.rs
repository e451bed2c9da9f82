//! Small programs for a person to run in another terminal.

use anyhow::{Context as _, Result};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use vnet_tests::{Agent, Host, TempDir, bin_dir};

/// A directory of them.
pub struct Scripts(TempDir);

impl Scripts {
    /// None yet.
    pub fn new() -> Result<Self> {
        Ok(Self(TempDir::new()?))
    }

    /// `ctl`: vnet-ctl for this agent.
    pub fn ctl(&self, agent: &Agent<'_>) -> Result<PathBuf> {
        let program = bin_dir()?.join("vnet-ctl");
        self.write("ctl", &format!("exec '{}' --socket '{}' \"$@\"", program.display(), agent.socket().display()))
    }

    /// One that runs a command in this host.
    pub fn inside(&self, name: &str, host: &Host) -> Result<PathBuf> {
        self.write(name, &format!("exec {} \"$@\"", enter(host)))
    }

    /// One that does this, as root.
    pub fn write(&self, name: &str, command: &str) -> Result<PathBuf> {
        let root = "[ \"$(id -u)\" = 0 ] || exec sudo \"$0\" \"$@\"";
        let path = self.0.write(name, &format!("#!/bin/sh\n{root}\n{command}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", path.display()))?;
        Ok(path)
    }
}

impl From<Scripts> for TempDir {
    fn from(scripts: Scripts) -> Self {
        scripts.0
    }
}

/// What a command is to begin with to run in this host.
pub fn enter(host: &Host) -> String {
    format!("nsenter --net='{}' --", host.net_path().display())
}
