//! `man`: the manual pages.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::Cli;
use crate::output::Session;

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl man /usr/local/share/man/man1 && man vnet-ctl-lb-drain")]
pub struct Args {
    /// The directory; made if it is not there
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    directory: PathBuf,
}

/// Runs it.
pub fn run(session: &Session, args: Args) -> Result<u8> {
    std::fs::create_dir_all(&args.directory).with_context(|| format!("making the directory {}", args.directory.display()))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write(&command, &args.directory)?;
    session.note(&format!("the manual pages are in {}", args.directory.display()));
    Ok(0)
}

/// Writes the page of `command`, and those of its subcommands.
fn write(command: &Command, directory: &Path) -> Result<()> {
    let page = Man::new(command.clone()).source(concat!("vnet-ctl ", env!("CARGO_PKG_VERSION"))).manual("vnet");
    let path = directory.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)
        .and_then(|()| std::fs::write(&path, titled(&text)))
        .with_context(|| format!("writing {}", path.display()))?;
    command.get_subcommands().try_for_each(|command| write(command, directory))
}

/// What follows the options is one section to clap, called "extra": its headings become sections.
fn titled(page: &[u8]) -> String {
    let line = |line| match line {
        ".SH EXTRA" => String::new(),
        "Examples:" => ".SH EXAMPLES\n".to_owned(),
        "Exit codes:" => ".SH \"EXIT STATUS\"\n".to_owned(),
        other => format!("{other}\n"),
    };
    String::from_utf8_lossy(page).lines().map(line).collect()
}
