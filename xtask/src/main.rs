//! `cargo xtask`: what a developer runs. See `USAGE`.

mod commands;
mod system;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  lab [ARGUMENT…]          a lab of network namespaces with the real agent in it; stays up until Ctrl-C.
                           --once: end after the report; --help: everything it takes
  test [--long] [FILTER]   every check and test; with FILTER only the tests whose name contains it.
                           --long: also those that take minutes
  bench [SUITE] [OPTION…]  what the datapath costs, with goals. --json; --quick; --help: everything it takes
  budget                   how many instructions the verifier walks for each program
  schema                   writes policies/schema.json from the agent's types
  build-ebpf [--previous-abi]
                           the kernel half alone; prints where the object is

Each installs what it lacks with ./setup, and says what. Those that make network namespaces or
load programs need root, and use sudo.
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    let done = match command.as_str() {
        "lab" => commands::lab::run(&args),
        "test" => commands::test::run(&args),
        "bench" => commands::bench::run(&args),
        "budget" => commands::budget::run(&args),
        "schema" => commands::schema::run(&args),
        "build-ebpf" => commands::build_ebpf::run(&args),
        // As root, and only by `test` itself.
        commands::test::AS_ROOT => commands::test::run_as_root(&args),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A command that has said all there is to say leaves the message empty.
            if !error.is_empty() {
                eprintln!("{}", error.trim_end());
            }
            ExitCode::FAILURE
        }
    }
}
