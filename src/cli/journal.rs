//! `journal check|dump|repair`: the files of a bridge's journal, for people in trouble. Wiring and words only.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{Output, exit, print};
use crate::journal::inspect::{self, Repaired, Report};

/// The journal is the directory `journal` on the bridge's volume. Stop the bridge first (scale it to 0): a journal in
/// use is left alone. Run this in a pod that mounts the volume.
///
/// A bridge that says "the journal is damaged" has changed nothing. See what is wrong with `check`; restore the named
/// file from a snapshot of the volume if there is one; else `repair`.
#[derive(Debug, Args)]
pub(super) struct JournalFiles {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Read everything and say what is there and what is damaged; changes nothing
    ///
    /// Exit status 0: all is whole. 1: something is damaged. 2: it could not be judged.
    Check {
        /// The journal's directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// How the report looks
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print each record that is whole, one a line; never a contact or a text
    Dump {
        /// The journal's directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a journal of what is whole; the damaged one is kept beside it
    ///
    /// What was pending when the damage was met may have been delivered, for its end may have stood in the damaged
    /// part: it becomes a dead letter with the reason `Repaired`, for a person to replay or drop. What is damaged is
    /// lost and counted. Ids that only the damaged part knew are no longer known: such a message is delivered again if
    /// Kernel sends it again.
    Repair {
        /// The journal's directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Do it: without this, only what `check` says is printed
        #[arg(long)]
        yes: bool,
        /// How the report looks
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// As large as the bridge makes them at most.
const SEGMENT_BYTES: u64 = 64 << 20;

impl JournalFiles {
    /// Runs the verb; the exit status.
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Check { dir, output } => check(&dir, output),
            Verb::Dump { dir } => {
                let mut out = std::io::BufWriter::new(std::io::stdout().lock());
                let mut written = Ok(());
                inspect::dump(&dir, |record| {
                    let seq = record.seq.map_or(String::new(), |seq| format!(" seq={}", seq.0));
                    let line = format!(
                        "{:020}+{} {}{seq} {}",
                        record.segment, record.offset, record.kind, record.rest
                    );
                    if written.is_ok() {
                        written = writeln!(out, "{}", line.trim_end());
                    }
                })?;
                written?;
                out.flush()?;
                Ok(0)
            }
            Verb::Repair {
                dir,
                yes: false,
                output,
            } => {
                let code = check(&dir, output)?;
                if output == Output::Human {
                    print(
                        output,
                        "\nnothing was changed: add --yes to repair\n",
                        &json!(null),
                    )?;
                }
                Ok(code)
            }
            Verb::Repair {
                dir,
                yes: true,
                output,
            } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
                let now_ms = u64::try_from(since.as_millis())?;
                let repaired = inspect::repair(&dir, SEGMENT_BYTES, now_ms)?;
                print(output, &repaired_text(&repaired), &repaired_json(&repaired))?;
                Ok(0)
            }
        }
    }
}

fn check(dir: &Path, output: Output) -> anyhow::Result<u8> {
    let report = inspect::check(dir)?;
    print(output, &text(&report), &as_json(&report))?;
    let damaged =
        report.refused.is_some() || report.segments.iter().any(|segment| !segment.damage.is_empty());
    Ok(exit(damaged, false))
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for segment in &report.segments {
        let (commits, records) = (segment.commits, segment.records);
        let _ = writeln!(
            out,
            "{}  {} bytes, {commits} commits, {records} records",
            segment.file.display(),
            segment.bytes
        );
        for damage in &segment.damage {
            let _ = writeln!(
                out,
                "  DAMAGED  bytes {} to {}: {}; {} records in there are whole",
                damage.from, damage.to, damage.problem, damage.salvaged
            );
        }
    }
    let _ = match &report.refused {
        None => writeln!(
            out,
            "whole: {} messages to be delivered, {} dead letters",
            report.pending, report.dead_letters
        ),
        Some(error) => writeln!(
            out,
            "the bridge does not open it: {error}\n\
             next: restore that file from a snapshot of the volume, or run `journal repair` on the directory"
        ),
    };
    out
}

fn as_json(report: &Report) -> serde_json::Value {
    let segments = report.segments.iter().map(|segment| {
        let damage = segment.damage.iter().map(|damage| {
            json!({"from": damage.from, "to": damage.to, "problem": damage.problem, "salvaged": damage.salvaged})
        });
        json!({
            "file": segment.file, "bytes": segment.bytes, "commits": segment.commits, "records": segment.records,
            "damage": damage.collect::<Vec<_>>(),
        })
    });
    json!({
        "segments": segments.collect::<Vec<_>>(),
        "pending": report.pending,
        "deadLetters": report.dead_letters,
        "refused": report.refused.as_ref().map(ToString::to_string),
    })
}

fn repaired_text(repaired: &Repaired) -> String {
    format!(
        "repaired: {} messages to be delivered, {} dead letters from before\n\
         {} more are dead letters with the reason Repaired: they may have been delivered; look at them with `messages list`\n\
         lost: {} damaged places, {} bytes\n\
         {}the damaged journal is kept as {}; remove it when nobody needs it any more\n",
        repaired.pending,
        repaired.dead_letters,
        repaired.uncertain,
        repaired.damaged,
        repaired.damaged_bytes,
        lost_ids_text(&repaired.lost_ids),
        repaired.kept_as.display()
    )
}

fn lost_ids_text(lost: &[PathBuf]) -> String {
    let mut out = String::new();
    for file in lost {
        let _ = writeln!(
            out,
            "lost: the ids in {}: what Kernel or Aura sends again of their hours is delivered again",
            file.display()
        );
    }
    out
}

fn repaired_json(repaired: &Repaired) -> serde_json::Value {
    json!({
        "pending": repaired.pending,
        "deadLetters": repaired.dead_letters,
        "uncertain": repaired.uncertain,
        "damaged": repaired.damaged,
        "damagedBytes": repaired.damaged_bytes,
        "lostIds": repaired.lost_ids,
        "keptAs": repaired.kept_as,
    })
}
