//! Colours: only where they are wanted.

use std::io::IsTerminal;

use clap::ValueEnum;

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless the environment says no.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl Color {
    /// What `--color` says, before the command line is parsed: its own help is coloured as well.
    pub fn from_arguments() -> Self {
        let arguments: Vec<_> = std::env::args().take_while(|argument| argument != "--").collect();
        let value = arguments.iter().enumerate().rev().find_map(|(i, argument)| match argument.strip_prefix("--color") {
            Some("") => arguments.get(i + 1).map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        });
        value.and_then(|value| Self::from_str(value, false).ok()).unwrap_or(Self::Auto)
    }

    /// As clap calls it.
    pub fn for_clap(self) -> clap::ColorChoice {
        match self {
            Self::Auto => clap::ColorChoice::Auto,
            Self::Always => clap::ColorChoice::Always,
            Self::Never => clap::ColorChoice::Never,
        }
    }

    /// For what goes to standard output.
    pub fn on_stdout(self) -> Paint {
        Paint(self.resolve(std::io::stdout().is_terminal()))
    }

    /// For what goes to standard error.
    pub fn on_stderr(self) -> Paint {
        Paint(self.resolve(std::io::stderr().is_terminal()))
    }

    fn resolve(self, terminal: bool) -> bool {
        let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => terminal && unset("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        }
    }
}

/// Colours text, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(bool);

/// How text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Headings.
    Bold,
    /// Good, added.
    Green,
    /// Changed, on the way.
    Yellow,
    /// Bad, removed.
    Red,
    /// Places in a diff.
    Cyan,
    /// Of no interest.
    Dim,
}

impl Paint {
    /// Never any colour.
    #[cfg(test)]
    pub const OFF: Self = Self(false);

    /// `text`, looking like this.
    pub fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Bold => "1",
            Look::Green => "32",
            Look::Yellow => "33",
            Look::Red => "31",
            Look::Cyan => "36",
            Look::Dim => "2",
            Look::Plain => return text.to_owned(),
        };
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The look of whether an endpoint is under rules.
pub fn of_policy(policy: &str) -> Look {
    match policy {
        "quarantined" => Look::Red,
        "policed" => Look::Green,
        _ => Look::Plain,
    }
}

/// The look of a state of a member, an endpoint or a tag source.
pub fn of_state(state: &str) -> Look {
    match state {
        "active" | "attached" | "established" | "replied" | "ok" | "enforced" => Look::Green,
        "draining" | "unknown" | "absent" | "half-open" | "silent" | "waiting" => Look::Yellow,
        "closing" | "closed" => Look::Dim,
        "down" | "ejected" | "lost" => Look::Red,
        state if state.starts_with("failed") => Look::Red,
        _ => Look::Plain,
    }
}
