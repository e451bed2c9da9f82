//! Asking before something is done that cannot be taken back.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result};

use crate::failure::Misused;

/// Asks `question` on the terminal. Where there is none: an error that says `without`, and that it needs `--yes`.
pub fn confirmed(question: &str, without: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Misused(format!("{without}: without a terminal to ask on, it needs --yes")).into());
    }
    eprint!("{question} Go on? [y/N] ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
