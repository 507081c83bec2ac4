//! The program's entry: parses the command line and runs one subcommand.

use std::process::ExitCode;

use aura_whatsapp_operator::cli;
use clap::Parser;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
