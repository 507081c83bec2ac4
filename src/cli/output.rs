//! How a subcommand that judges ends and what its report looks like: the same for all of them.

use std::{io::Write, process::ExitCode};

use clap::ValueEnum;

/// What the report looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Lines for people.
    #[default]
    Human,
    /// One JSON object, for programs.
    Json,
}

/// Prints a report in the form that was asked for.
pub(super) fn print(output: Output, human: &str, json: &serde_json::Value) -> anyhow::Result<()> {
    let text = match output {
        Output::Human => human.to_owned(),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(json)?),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A problem was found.
pub(super) const FOUND: u8 = 1;
/// Something could not be judged. (As for a command line that can't be understood.)
pub(super) const NOT_JUDGED: u8 = 2;

/// The exit status of a run that found problems or not, and judged everything or not.
pub(super) fn exit(found: bool, unjudged: bool) -> u8 {
    match (unjudged, found) {
        (true, _) => NOT_JUDGED,
        (false, true) => FOUND,
        (false, false) => 0,
    }
}

/// The exit status. An error is told of in one line.
pub(super) fn ended(result: anyhow::Result<u8>, failed: u8) -> ExitCode {
    let code = result.unwrap_or_else(|error| {
        #[allow(
            clippy::print_stderr,
            reason = "the last word before the end; logging may not have started"
        )]
        {
            eprintln!("error: {error:#}");
        }
        failed
    });
    ExitCode::from(code)
}
