//! `completions`: what a shell needs to complete our command lines.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::output::{Session, print};

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl completions bash > /etc/bash_completion.d/vnet-ctl
  vnet-ctl completions zsh > \"${fpath[1]}/_vnet-ctl\"
  vnet-ctl completions fish > ~/.config/fish/completions/vnet-ctl.fish")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs it.
pub fn run(_: &Session, args: Args) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vnet-ctl", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
