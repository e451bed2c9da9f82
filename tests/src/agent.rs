//! The real agent and the real CLI.

use crate::{Host, Process, TempDir, wait_for};
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vnet_common::api::GroupStatus;

/// The agent of a host. Killed with this value; what it pinned stays as long as the host.
#[derive(Debug)]
pub struct Agent<'host> {
    host: &'host Host,
    process: Option<Process>,
    program: PathBuf,
    attach: Vec<String>,
    more: Vec<String>,
    for_ctl: Vec<(&'static str, PathBuf)>,
    dir: TempDir,
}

impl<'host> Agent<'host> {
    /// Starts the agent in `host`, attached to the devices whose names match, and waits until it serves.
    ///
    /// # Errors
    /// It ends, or does not serve within 20 s; the message has what it logged.
    pub fn start(host: &'host Host, attach: &[&str]) -> Result<Self> {
        Self::start_program(host, &bin_dir()?.join("vnet-agent"), attach)
    }

    /// The same with further arguments.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn start_with(host: &'host Host, attach: &[&str], more: &[&str]) -> Result<Self> {
        Self::make(host, &bin_dir()?.join("vnet-agent"), attach, more)
    }

    /// The same with another build of the agent.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn start_program(host: &'host Host, program: &Path, attach: &[&str]) -> Result<Self> {
        Self::make(host, program, attach, &[])
    }

    /// The same with another build of the agent and further arguments.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn make(host: &'host Host, program: &Path, attach: &[&str], more: &[&str]) -> Result<Self> {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let (attach, more) = (owned(attach), owned(more));
        let mut agent =
            Self { host, process: None, program: program.to_owned(), attach, more, for_ctl: Vec::new(), dir: TempDir::new()? };
        agent.begin()?;
        Ok(agent)
    }

    /// Starts it again, after [`Agent::kill`] or [`Agent::stop`], with the state it left.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn begin(&mut self) -> Result<()> {
        let mut command = self.host.command(&self.program)?;
        command.arg("--state-dir").arg(self.state_dir()).arg("--run-dir").arg(self.dir.path());
        command.args(["--bpffs", "/sys/fs/bpf"]);
        command.args(self.attach.iter().flat_map(|glob| ["--attach", glob]));
        command.args(&self.more);
        // A socket that a killed agent left would answer nobody, yet be there.
        let socket = self.socket();
        let mut process = Process::start(command)?;
        let served = wait_for("the agent to serve", Duration::from_secs(20), || match process.ended() {
            Ok(None) => UnixStream::connect(&socket).is_ok().then_some(Ok(())),
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("the agent has ended ({status})"))),
            Err(error) => Some(Err(error)),
        });
        served.and_then(|result| result).with_context(|| process.printed())?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it again as another build: an upgrade, or the way back.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn begin_program(&mut self, program: &Path) -> Result<()> {
        self.program = program.to_owned();
        self.begin()
    }

    /// The running agent.
    ///
    /// # Errors
    /// It was stopped.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent was stopped")
    }

    /// Its process's number.
    ///
    /// # Errors
    /// It was stopped.
    pub fn pid(&self) -> Result<u32> {
        self.process.as_ref().map(Process::pid).context("the agent was stopped")
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// It had ended.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.stop(Signal::SIGKILL)?;
        self.process = None;
        Ok(())
    }

    /// Ends it as systemd would.
    ///
    /// # Errors
    /// It had ended, does not end, or ends with a failure.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process()?.stop(Signal::SIGTERM)?;
        let printed = self.logged();
        self.process = None;
        if status.success() { Ok(()) } else { bail!("the agent ended with {status}:\n{printed}") }
    }

    /// What it has logged.
    #[must_use]
    pub fn logged(&self) -> String {
        self.process.as_ref().map(Process::printed).unwrap_or_default()
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Its temporary directory, for files to apply.
    #[must_use]
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// What [`Agent::ctl`] is to have in its environment from now on.
    pub fn set_ctl_environment(&mut self, variables: Vec<(&'static str, PathBuf)>) {
        self.for_ctl = variables;
    }

    /// Runs `vnet-ctl` in the host and gives its standard output.
    ///
    /// # Errors
    /// It fails; the message has what it printed and what the agent logged.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        self.host
            .output_of(self.ctl_command(args)?)
            .with_context(|| format!("vnet-ctl {}; the agent's log:\n{}", args.join(" "), self.logged()))
    }

    /// The same, and kills it after so many seconds.
    ///
    /// # Errors
    /// It fails, or takes longer.
    pub fn ctl_within(&self, seconds: u32, args: &[&str]) -> Result<String> {
        let mut command = self.host.command("timeout")?;
        command.arg(seconds.to_string()).arg(bin_dir()?.join("vnet-ctl"));
        command.arg("--socket").arg(self.socket()).args(args).envs(self.for_ctl.iter().cloned());
        self.host.output_of(command).with_context(|| format!("vnet-ctl {} within {seconds} s", args.join(" ")))
    }

    /// The same for one whose exit code says something, as that of `explain`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ctl_printed(&self, args: &[&str]) -> Result<String> {
        self.host.printed_of(self.ctl_command(args)?)
    }

    fn ctl_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.host.command(bin_dir()?.join("vnet-ctl"))?;
        command.arg("--socket").arg(self.socket()).args(args).envs(self.for_ctl.iter().cloned());
        Ok(command)
    }

    /// Applies YAML with `vnet-ctl apply`.
    ///
    /// # Errors
    /// It is refused; the message says why.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.dir.write("apply.yaml", yaml)?;
        self.ctl(&["apply", "-f", file.to_str().context("a temporary directory of plain letters")?])
    }
}

/// Waits until the endpoint is in this group, as `vnet-ctl group ls` says.
///
/// # Errors
/// It is not within 10 s; the message has what the agent logged.
pub fn wait_for_group(agent: &Agent<'_>, name: &str, group: &str) -> Result<()> {
    let is_there = || {
        let groups: Vec<GroupStatus> = serde_json::from_str(&agent.ctl(&["group", "ls", "-o", "json"]).ok()?).ok()?;
        groups.iter().any(|g| g.name == group && g.endpoints.iter().any(|e| e == name)).then_some(())
    };
    wait_for(&format!("{name} to be in group {group}"), Duration::from_secs(10), is_there).with_context(|| agent.logged())
}

/// Where the agent and the CLI are: `VNET_BIN_DIR`, else where cargo built this program.
///
/// # Errors
/// This program is in no directory of cargo's, or they were not built.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("VNET_BIN_DIR") {
        return Ok(dir.into());
    }
    let own = std::env::current_exe().context("finding the path of this program")?;
    // Tests are in target/debug/deps, programs in target/debug.
    let built = own.ancestors().skip(1).take(2).find(|dir| dir.join("vnet-agent").is_file());
    built.map(Path::to_owned).with_context(|| {
        format!("no vnet-agent beside {}: run cargo build -p vnet-agent -p vnet-ctl, or set VNET_BIN_DIR", own.display())
    })
}
