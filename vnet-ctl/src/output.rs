//! What a verb talks to: the agent on one side, the person or program that called it on the other.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cli::{Format, Global};
use crate::client::Agent;
use crate::diff;
use crate::failure::ReaderGone;
use crate::fleet::StoreOptions;
use crate::human;
use crate::style::{Look, Paint};

/// One run of the program.
#[derive(Debug)]
pub struct Session {
    /// The agent.
    pub agent: Agent,
    /// How to print.
    pub format: Format,
    /// For what goes to standard output.
    pub paint: Paint,
    /// Where the fleet's store is, and who we are to it.
    pub store: StoreOptions,
    errors: Paint,
    patience: Option<Duration>,
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the answer to something may take that scans or measures.
const LONG_PATIENCE: Duration = Duration::from_secs(3600);

impl Session {
    /// As the options say.
    pub fn new(global: &Global) -> Self {
        let patience = global.timeout;
        Self {
            agent: Agent::new(global.socket(), patience.unwrap_or(PATIENCE)),
            format: global.output,
            paint: global.color.on_stdout(),
            store: global.store(),
            errors: global.color.on_stderr(),
            patience,
        }
    }

    /// The agent, for what takes it long.
    pub fn patient_agent(&self) -> Agent {
        self.agent.with_patience(self.patience.unwrap_or(LONG_PATIENCE))
    }

    /// Whether tables have all their columns.
    pub fn wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// Whether the output is for people to read.
    pub fn for_people(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Prints `value` for programs if that is asked for, else what `human` makes of it for people.
    pub fn show<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        print(&self.render(value, human)?)
    }

    /// What [`show`](Self::show) prints.
    pub fn render<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> Result<String> {
        match self.format {
            Format::Table | Format::Wide => Ok(human(value)),
            Format::Json => json(value),
            Format::Yaml => yaml(value),
        }
    }

    /// Something worth knowing, on standard error.
    pub fn warn(&self, text: &str) {
        // What cannot be told to nobody is not worth failing for.
        let _ = writeln!(std::io::stderr(), "{} {}", self.errors.paint(Look::Yellow, "warning:"), human::clean(text));
    }

    /// A line of an explanation, on standard error.
    pub fn beside(&self, text: &str) {
        // As in `warn`.
        let _ = writeln!(std::io::stderr(), "{}", human::clean(text));
    }

    /// A unified diff, on standard error.
    pub fn beside_diff(&self, text: &str) {
        let text: String = text.lines().map(|line| human::clean(line) + "\n").collect();
        // As in `warn`.
        let _ = std::io::stderr().write_all(diff::paint(&text, self.errors).as_bytes());
    }

    /// Something said beside the output, on standard error.
    pub fn note(&self, text: &str) {
        // As in `warn`.
        let _ = writeln!(std::io::stderr(), "{}", self.errors.paint(Look::Dim, &human::clean(text)));
    }
}

/// Prints to standard output.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Only here: the agent's socket can break in the same way, and that is an error.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => written.context("writing to standard output"),
    }
}

/// JSON with an end of line.
pub fn json<T: Serialize>(value: &T) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("writing JSON")? + "\n")
}

/// A YAML document with an end of line.
pub fn yaml<T: Serialize>(value: &T) -> Result<String> {
    let text = serde_saphyr::to_string(value).context("writing YAML")?;
    Ok(text.trim_end().to_owned() + "\n")
}
