//! The real clamd, with a signature of our own.

use crate::suricata::MARK;
use crate::{Host, Process, TempDir, wait_for};
use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SETTINGS: &str = "\
LocalSocket DIR/clamd.ctl
LocalSocketMode 600
DatabaseDirectory DIR/db
TemporaryDirectory DIR
LogFile DIR/clamd.log
Foreground yes
User root
StreamMaxLength 1M
AlertExceedsMax yes
";

/// clamd, which takes files of at most 1 MiB and finds those with [`MARK`] in them; killed with this value.
#[derive(Debug)]
pub struct Clamd {
    process: Process,
    dir: TempDir,
}

impl Clamd {
    /// What it calls a file that has [`MARK`] in it.
    pub const FOUND: &str = "Vnet.Test.Mark.UNOFFICIAL";

    /// Starts it in `host`, and waits until it serves.
    ///
    /// # Errors
    /// It is not installed, or does not serve within a minute; the message has what it printed.
    pub fn start(host: &Host) -> Result<Self> {
        let dir = TempDir::new()?;
        std::fs::create_dir(dir.path().join("db"))?;
        let hex: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
        dir.write("db/vnet.ndb", &format!("Vnet.Test.Mark:0:*:{hex}\n"))?;
        let settings = dir.write("clamd.conf", &SETTINGS.replace("DIR", &dir.path().display().to_string()))?;
        // A copy: where a machine confines clamd to its own directories, it does so by the path of the program.
        let program = dir.path().join("clamd");
        let found = ["/usr/sbin/clamd", "/usr/local/sbin/clamd", "/usr/bin/clamd"].into_iter().find(|p| Path::new(p).exists());
        std::fs::copy(found.context("there is no clamd: ./setup installs it")?, &program).context("copying clamd")?;
        let process = host.start(&program, &["--config-file".as_ref(), settings.as_os_str()])?;
        let clamd = Self { process, dir };
        let up = || std::os::unix::net::UnixStream::connect(clamd.socket()).is_ok().then_some(());
        wait_for("clamd to start", Duration::from_secs(60), up).with_context(|| clamd.process.printed())?;
        Ok(clamd)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("clamd.ctl")
    }

    /// Kills it.
    ///
    /// # Errors
    /// It had ended.
    pub fn kill(&mut self) -> Result<()> {
        self.process.stop(Signal::SIGKILL).map(drop)
    }
}
