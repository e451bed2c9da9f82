//! A real VM: QEMU with a distribution's kernel, and its virtio-net on a tap of a host.
//!
//! Its root is an initramfs of busybox and a few modules. The console goes to what QEMU prints; a second serial line has a
//! shell, to which [`Guest::run`] talks.

use crate::{Host, Process, TempDir, wait_for};
use anyhow::{Context as _, Result, bail, ensure};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// In the order in which they load. A kernel that has one built in brings no file of it.
const MODULES: [&str; 8] = [
    "failover",
    "net_failover",
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_net",
];

/// The kernel's first program. Looking for duplicates keeps an IPv6 address out of use for a second. A shell whose
/// input is a terminal would edit and echo: this one takes it for a script.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in MODULES; do [ ! -f /modules/$module.ko ] || insmod /modules/$module.ko; done
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1
echo READY
sh /dev/ttyS1
poweroff -f
";

/// The shell says so when it takes commands.
const READY: &str = "vnet-guest: ready";
/// After what a command printed; its exit code follows.
const END: &str = "vnet-guest: end ";

/// Software emulation takes 3 to 5 s to boot, on an idle machine.
const BOOT: Duration = Duration::from_secs(60);
/// For one command.
const LIMIT: Duration = Duration::from_secs(120);

/// A VM that runs; its plug is pulled with this value.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    shell: UnixStream,
    _dir: TempDir,
}

impl Guest {
    /// Why there can be none on this machine, if so.
    #[must_use]
    pub fn missing() -> Option<String> {
        let kernel = kernel_dir().join("vmlinuz");
        if !kernel.is_file() {
            return Some(format!("there is no kernel for a VM at {} (./setup test puts it there, on Debian)", kernel.display()));
        }
        let found = std::process::Command::new(QEMU).arg("--version").output();
        found.is_err().then(|| format!("{QEMU} cannot be run (./setup test installs it, on Debian)"))
    }

    /// Boots one whose `eth0` has this MAC and is at the other end of `tap`, a device of the host; gives it when its shell answers.
    ///
    /// # Errors
    /// QEMU or the kernel is not there, or does not come up within a minute; the message has its console.
    pub fn boot(host: &Host, tap: &str, mac: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let (kernel, initrd, socket) = (kernel_dir(), dir.path().join("initramfs"), dir.path().join("shell.sock"));
        std::fs::write(&initrd, initramfs(&kernel)?).with_context(|| format!("writing {}", initrd.display()))?;
        let netdev = format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off");
        let device = format!("virtio-net-pci,netdev=net,mac={mac},romfile=");
        let shell = format!("unix:{},server=on,wait=off", socket.display());
        let mut args: Vec<String> = ARGS.iter().map(|&arg| arg.to_owned()).collect();
        for (option, value) in [("-netdev", netdev), ("-device", device), ("-serial", shell)] {
            args.extend([option.to_owned(), value]);
        }
        for (option, path) in [("-kernel", kernel.join("vmlinuz")), ("-initrd", initrd)] {
            args.extend([option.to_owned(), path.display().to_string()]);
        }
        let mut process = host.start(QEMU, &args).context("starting QEMU (./setup test installs it)")?;
        let connect = || match process.ended() {
            Ok(None) => UnixStream::connect(&socket).ok().map(Ok),
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("QEMU has ended ({status})"))),
            Err(error) => Some(Err(error)),
        };
        let shell = wait_for("QEMU to start", BOOT, connect).and_then(|result| result);
        let shell = shell.with_context(|| process.printed())?;
        let mut guest = Self { process, shell, _dir: dir };
        guest.read_to(READY, BOOT).context("waiting for a VM to boot")?;
        guest.read_to("\n", BOOT)?;
        Ok(guest)
    }

    /// Runs a command of its shell and gives what it printed, both streams together.
    ///
    /// # Errors
    /// It fails, or is not done within two minutes; the message has what it printed.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let (printed, code) = self.printed(command)?;
        ensure!(code == 0, "the VM: {command}: exit code {code}\n{printed}");
        Ok(printed)
    }

    /// The same for one that may fail: with its exit code.
    ///
    /// # Errors
    /// It is not done within two minutes, or the VM is gone.
    pub fn printed(&mut self, command: &str) -> Result<(String, u32)> {
        let what = || format!("the VM: {command}");
        // In a subshell: `exit` and what it sets are its own.
        writeln!(self.shell, "( {command}\n) 2>&1; echo \"{END}$?\"").with_context(what)?;
        let printed = self.read_to(END, LIMIT).with_context(what)?;
        let code = self.read_to("\n", LIMIT).with_context(what)?;
        Ok((printed, code.trim().parse().with_context(|| format!("{}: exit code '{code}'", what()))?))
    }

    /// Its console.
    #[must_use]
    pub fn console(&self) -> String {
        self.process.printed()
    }

    /// What the shell's line says before `end`. Nothing is lost: no more is printed than what was asked for.
    fn read_to(&mut self, end: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let (mut text, mut byte) = (Vec::new(), [0; 1]);
        while !text.ends_with(end.as_bytes()) {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.shell.set_read_timeout(Some(left))?;
            match self.shell.read(&mut byte) {
                Ok(1) => text.push(byte[0]),
                result => {
                    let so_far = String::from_utf8_lossy(&text).into_owned();
                    bail!("no '{}' ({result:?}); printed: {so_far}\nconsole:\n{}", end.trim(), self.console());
                }
            }
        }
        text.truncate(text.len() - end.len());
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

const QEMU: &str = "qemu-system-x86_64";

/// Software emulation everywhere, so that the VM is the same on every machine. Without cmpxchg16b: QEMU 7.2 miscomputes around
/// it, and kernels panic.
const ARGS: [&str; 18] = [
    "-accel",
    "tcg",
    "-cpu",
    "max,-cx16",
    "-m",
    "512",
    "-smp",
    "1",
    "-nodefaults",
    "-no-reboot",
    "-display",
    "none",
    "-monitor",
    "none",
    "-serial",
    "stdio",
    "-append",
    "console=ttyS0 quiet panic=-1",
];

/// Where `./setup test` puts the kernel, its modules and busybox.
fn kernel_dir() -> PathBuf {
    let tools = std::env::var_os("VNET_TOOLS").map(PathBuf::from);
    tools.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(".tools")).join("guest")
}

/// A cpio archive (newc) of what the kernel starts with.
fn initramfs(kernel: &Path) -> Result<Vec<u8>> {
    let read = |name: &str| {
        let path = kernel.join(name);
        std::fs::read(&path).with_context(|| format!("reading {} (./setup test puts it there)", path.display()))
    };
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.add(dir, 0o40_755, &[])?;
    }
    archive.add("bin/busybox", 0o100_755, &read("busybox")?)?;
    for module in MODULES.map(|module| format!("modules/{module}.ko")) {
        if kernel.join(&module).is_file() {
            archive.add(&module, 0o100_644, &read(&module)?)?;
        }
    }
    let init = INIT.replace("MODULES", &MODULES.join(" ")).replace("READY", READY);
    archive.add("init", 0o100_755, init.as_bytes())?;
    archive.add("TRAILER!!!", 0, &[])?;
    Ok(archive.bytes)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.files += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        // Inode, mode, user, group, links, time, size, four numbers of devices, the name's size, no checksum.
        let header = [self.files, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, u32::try_from(name.len() + 1)?, 0];
        let mut text = "070701".to_owned();
        header.iter().try_for_each(|number| write!(text, "{number:08x}"))?;
        self.bytes.extend(format!("{text}{name}\0").bytes());
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
