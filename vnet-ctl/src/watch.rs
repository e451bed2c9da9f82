//! Showing something again and again, until interrupted.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Format;
use crate::failure::Refused;
use crate::output::{Session, print};

/// Options of verbs that can be watched.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct WatchArgs {
    /// Show it again and again, with rates, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// What was seen before, and how long before.
pub type Before<'a, T> = Option<(&'a T, Duration)>;

/// Shows what `fetch` gives as `draw` makes it: once, or until interrupted.
pub async fn run<T>(
    session: &Session,
    args: WatchArgs,
    fetch: impl AsyncFn() -> Result<T>,
    draw: impl Fn(&T, Before<'_, T>) -> Result<String>,
) -> Result<u8> {
    if !args.watch {
        print(&draw(&fetch().await?, None)?)?;
        return Ok(0);
    }
    follow(session, Duration::from_secs(args.interval), fetch, draw).await
}

/// Shows what `fetch` gives as `draw` makes it, every `interval`, until interrupted.
pub async fn follow<T>(
    session: &Session,
    interval: Duration,
    fetch: impl AsyncFn() -> Result<T>,
    draw: impl Fn(&T, Before<'_, T>) -> Result<String>,
) -> Result<u8> {
    let mut seen = (fetch().await?, Instant::now());
    let mut text = draw(&seen.0, None)?;
    let mut interrupted = Interrupts::new()?;
    let mut view = View::new(session.format)?;
    view.show(&text)?;
    while !interrupted.within(interval).await {
        let next = tokio::select! {
            next = fetch() => next,
            () = interrupted.any() => break,
        };
        match next {
            Ok(next) => {
                let now = Instant::now();
                text = draw(&next, Some((&seen.0, now - seen.1)))?;
                seen = (next, now);
                view.show(&text)?;
            }
            // It was answered: there is nothing to wait for.
            Err(error) if error.is::<Refused>() => return Err(error),
            // An agent that restarts is back in a moment.
            Err(error) => view.trouble(session, &text, &error)?,
        }
    }
    view.end(&text)?;
    Ok(0)
}

/// Ctrl-C, and being told to end.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// From now on they do not end the program.
    pub fn new() -> Result<Self> {
        let handler = |kind| signal(kind).context("listening for signals");
        Ok(Self { interrupt: handler(SignalKind::interrupt())?, terminate: handler(SignalKind::terminate())? })
    }

    /// Waits for one.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Whether one comes within this time.
    async fn within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.any()).await.is_ok()
    }
}

/// Where it is shown: on a screen of its own of the terminal, or one after the other in a pipe.
struct View {
    screen: Option<Screen>,
    separator: &'static str,
    shown: bool,
}

impl View {
    fn new(format: Format) -> Result<Self> {
        let separator = match format {
            Format::Table | Format::Wide => "\n",
            Format::Json => "",
            Format::Yaml => "---\n",
        };
        let screen = if std::io::stdout().is_terminal() { Some(Screen::enter()?) } else { None };
        Ok(Self { screen, separator, shown: false })
    }

    fn show(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let separator = if std::mem::replace(&mut self.shown, true) { self.separator } else { "" };
        match &self.screen {
            Some(screen) => screen.draw(text),
            None => print(&format!("{separator}{text}")),
        }
    }

    fn trouble(&self, session: &Session, text: &str, error: &anyhow::Error) -> Result<()> {
        match &self.screen {
            Some(screen) => screen.draw(&format!("{text}\n{error:#}\nTrying again.\n")),
            None => {
                session.warn(&format!("{error:#}; trying again"));
                Ok(())
            }
        }
    }

    /// Leaves the last look where people find it after the screen is gone.
    fn end(&mut self, text: &str) -> Result<()> {
        if self.screen.take().is_some() { print(text) } else { Ok(()) }
    }
}

/// The terminal's other screen. Left when dropped, however that comes about.
struct Screen;

impl Screen {
    /// Long lines are cut off by the terminal on it, and the cursor is hidden.
    fn enter() -> Result<Self> {
        let screen = Self;
        print("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        Ok(screen)
    }

    /// Every line at its place: those that do not fit stay outside instead of scrolling the others away.
    fn draw(&self, text: &str) -> Result<()> {
        let line = |(i, line): (usize, &str)| format!("\x1b[{};1H\x1b[2K{line}", i + 1);
        print(&(text.lines().enumerate().map(line).collect::<String>() + "\x1b[J"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no cleaning.
        let _ = print("\x1b[?7h\x1b[?25h\x1b[?1049l");
    }
}
