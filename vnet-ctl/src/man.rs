//! `man`: the manual pages.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;

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
    let writing = || format!("writing the manual pages to {}", args.directory.display());
    std::fs::create_dir_all(&args.directory).with_context(writing)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &args.directory).with_context(writing)?;
    session.note(&format!("the manual pages are in {}", args.directory.display()));
    Ok(0)
}
