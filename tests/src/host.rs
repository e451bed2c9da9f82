//! Hosts: a network namespace each, with a mount namespace that has its own `/sys` and bpffs.

use crate::process::{Process, described, spawn};
use crate::wait_for;
use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A host of its own, as far as the network, `/sys` and bpffs go. It lives as long as this value, or a program in it.
#[derive(Debug)]
pub struct Host {
    name: String,
    net: File,
    mounts: File,
}

impl Host {
    /// Makes one, with only `lo`, which is up.
    ///
    /// # Errors
    /// Namespaces cannot be made, for want of root in most cases.
    pub fn new(name: &str) -> Result<Self> {
        let (net, mounts) = on_a_thread(make_namespaces).with_context(|| format!("making host {name} (needs root)"))?;
        let host = Self { name: name.to_owned(), net, mounts };
        // Looking for duplicates keeps an IPv6 address out of use for a second; nothing here is duplicated.
        for name in ["all", "default"] {
            host.sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), 0)?;
            host.sysctl(&format!("net/ipv6/conf/{name}/router_solicitations"), 0)?;
        }
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// A second handle of the same host, which lives as long as either.
    ///
    /// # Errors
    /// This process has no descriptors left.
    pub fn try_clone(&self) -> Result<Self> {
        let (net, mounts) = (self.net.try_clone()?, self.mounts.try_clone()?);
        Ok(Self { name: self.name.clone(), net, mounts })
    }

    /// Its name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other programs reach its network namespace, while this process lives.
    #[must_use]
    pub fn net_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd()).into()
    }

    /// A path by which other programs reach its mount namespace, while this process lives.
    #[must_use]
    pub fn mounts_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.mounts.as_raw_fd()).into()
    }

    /// Runs `act` on a thread that is in this host: sockets it makes, and what it opens below `/sys` and `/proc/sys/net`, are
    /// the host's. A panic in it is the caller's.
    ///
    /// # Errors
    /// The thread cannot enter the host.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            // The threads of a process share root and working directory, and a mount namespace brings its own.
            unshare(CloneFlags::CLONE_FS).context("leaving the process's working directory")?;
            setns(&self.net, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering the network of {}", self.name))?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).with_context(|| format!("entering the mounts of {}", self.name))?;
            Ok(act())
        })
    }

    /// A command that will run in this host, in the caller's working directory.
    ///
    /// # Errors
    /// This process has no descriptors left, or no working directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let (net, mounts) = (self.net.try_clone()?, self.mounts.try_clone()?);
        let dir = std::env::current_dir().context("finding the working directory")?;
        let mut command = Command::new(program);
        command.env("PATH", path_with_sbin());
        // SAFETY: between fork and exec only system calls are made; the descriptors were opened before.
        unsafe {
            command.pre_exec(move || {
                setns(&net, CloneFlags::CLONE_NEWNET)?;
                setns(&mounts, CloneFlags::CLONE_NEWNS)?;
                Ok(nix::unistd::chdir(&dir)?)
            });
        }
        Ok(command)
    }

    /// Starts a program in this host, to run beside the test.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, args: &[A]) -> Result<Process> {
        let mut command = self.command(program)?;
        command.args(args);
        Process::start(command)
    }

    /// Runs a program in this host to its end and gives its standard output.
    ///
    /// # Errors
    /// It cannot be started or fails; the message has what it printed.
    pub fn output<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, args: &[A]) -> Result<String> {
        let mut command = self.command(program)?;
        command.args(args);
        self.output_of(command)
    }

    /// The same for a command made by [`Host::command`].
    ///
    /// # Errors
    /// See [`Host::output`].
    pub fn output_of(&self, command: Command) -> Result<String> {
        self.run_to_end(command, "")
    }

    /// The same for a program that may fail: gives its standard output all the same.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn printed<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, args: &[A]) -> Result<String> {
        let mut command = self.command(program)?;
        command.args(args);
        self.printed_of(command)
    }

    /// The same for a command made by [`Host::command`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn printed_of(&self, command: Command) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.finish(command, "")?.stdout).into_owned())
    }

    /// Runs commands of `ip` in this host, one a line: `link add …`.
    ///
    /// # Errors
    /// One of them fails; the message says which.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut ip = self.command("ip")?;
        ip.args(["-batch", "-"]);
        self.run_to_end(ip, commands).map(drop).with_context(|| format!("ip commands:\n{commands}"))
    }

    fn run_to_end(&self, command: Command, input: &str) -> Result<String> {
        let what = described(&command);
        let out = self.finish(command, input)?;
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        if !out.status.success() {
            bail!("{}: {what}: {}\n{stdout}{}", self.name, out.status, String::from_utf8_lossy(&out.stderr));
        }
        Ok(stdout)
    }

    fn finish(&self, mut command: Command, input: &str) -> Result<Output> {
        let what = format!("{}: {}", self.name, described(&command));
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command).with_context(|| format!("starting {what}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).with_context(|| format!("writing to {what}"))?;
        }
        child.wait_with_output().with_context(|| format!("waiting for {what}"))
    }

    /// Sets a kernel setting of this host: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// There is no such setting, or the value is refused.
    pub fn sysctl(&self, name: &str, value: impl Display) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        let text = value.to_string();
        // In one write: the kernel takes each as a value.
        self.run(|| std::fs::write(&path, &text))?.with_context(|| format!("{}: writing {text} to {}", self.name, path.display()))
    }

    /// Lets this host route, IPv4 and IPv6, with paths that differ by direction.
    ///
    /// # Errors
    /// See [`Host::sysctl`].
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", 1)?;
        self.sysctl("net/ipv6/conf/all/forwarding", 1)?;
        // The larger of `all` and the device's counts; devices that come later have it from `default`.
        self.sysctl("net/ipv4/conf/all/rp_filter", 0)?;
        self.sysctl("net/ipv4/conf/default/rp_filter", 0)
    }

    /// Makes a bridge of these devices of this host, with addresses of its own.
    ///
    /// # Errors
    /// The name is taken, a device does not exist, or the bridge does not come up.
    pub fn bridge(&self, name: &str, devices: &[&str], addresses: &[&str]) -> Result<()> {
        let mut commands = format!("link add name {name} type bridge forward_delay 0\n");
        for device in devices {
            commands += &format!("link set dev {device} master {name}\n");
        }
        for address in addresses {
            commands += &format!("address add {address} dev {name}{}\n", nodad(address));
        }
        self.ip(&format!("{commands}link set dev {name} up\n"))?;
        self.wait_up(name)
    }

    /// Makes a device transmit only packets with a complete checksum, as those that leave a machine have.
    ///
    /// # Errors
    /// There is no such device.
    pub fn checksum_in_software(&self, device: &str) -> Result<()> {
        self.output("ethtool", &["-K", device, "tx", "off"]).map(drop)
    }

    /// Waits until a device carries packets, which is some time after it was set up: what is sent before is lost.
    ///
    /// # Errors
    /// It does not within 10 s.
    pub fn wait_up(&self, device: &str) -> Result<()> {
        let path = format!("/sys/class/net/{device}/operstate");
        let up = || std::fs::read_to_string(&path).is_ok_and(|state| state.trim_end() == "up").then_some(());
        self.run(|| wait_for(&format!("{}: {device} to be up", self.name), Duration::from_secs(10), up))?
    }
}

/// What `ip address add` needs for an address that is to be of use at once.
pub(crate) fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// Programs of administrators are not on everybody's PATH.
fn path_with_sbin() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned()))
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(act).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn make_namespaces() -> Result<(File, File)> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("leaving the namespaces of the process")?;
    // Else what is mounted here appears outside.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mounting /sys")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("mounting /sys/fs/bpf")?;
    // Of this thread: /proc/self is the main thread's.
    let open = |name| File::open(Path::new("/proc/thread-self/ns").join(name)).with_context(|| format!("opening ns/{name}"));
    Ok((open("net")?, open("mnt")?))
}
