//! Programs that run beside a test.

use crate::wait_for;
use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// A program that runs; killed with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: File,
}

impl Process {
    /// Starts it. What it prints is kept, both streams together.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let name = described(&command);
        let output = unnamed_file().context("making a file for a program's output")?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        let child = spawn(command).with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name, output })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        let len = self.output.metadata().map_or(0, |metadata| metadata.len());
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        // Read at a place: the position is shared with the program.
        let read = self.output.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("looking after {}", self.name))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            return Err(anyhow!("sending {signal} to {}: it has ended ({status}): {}", self.name, self.printed()));
        }
        let pid = i32::try_from(self.pid()).map(Pid::from_raw).context("a process number")?;
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let child = &mut self.child;
        wait_for(&what, limit, || child.try_wait().transpose()).with_context(|| self.printed())?.context("waiting for a program")
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Errors
    /// It had ended before, or does not end within 10 s.
    pub fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(Duration::from_secs(10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program and its arguments; the environment is of no interest to anybody.
pub(crate) fn described(command: &Command) -> String {
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// A child of this process that the kernel kills when this process dies.
///
/// The kernel means the *thread* that made the child, and threads of tests come and go: so one thread, which stays, makes
/// all of them.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = channel::<Order>();
        std::thread::spawn(move || {
            while let Ok((mut command, reply)) = receiver.recv() {
                // The one who asked may be gone; then nobody holds the child and it must not stay.
                if let Err(unsent) = reply.send(command.spawn())
                    && let Ok(mut child) = unsent.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        Mutex::new(sender)
    });
    let parent = Pid::this();
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // Those that this process waits for itself, as the lab does, are not for the child.
            SigSet::empty().thread_set_mask()?;
            // It may have died before.
            if Pid::parent() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let (reply, answer) = channel();
    let gone = || io::Error::other("the thread that starts programs is gone");
    orders.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// A file that is gone with its last descriptor. Unlike a pipe, it never fills and never blocks its writer.
fn unnamed_file() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().read(true).append(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(std::env::temp_dir())
}
