//! Who may look may also change: so each change leaves a line that says what was done and why. (Who did it says the API
//! server's own audit log, which has the port-forward.)
//!
//! A line holds digests, numbers and the given reason: no text of a message and no phone number (Law 6).

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::view::time;
use crate::{api::ChannelId, bridge::state::now_ms, journal::Seq};

/// The most numbers of messages in one line; the count tells of all.
const MAX_SEQS: usize = 100;

/// Where the lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AuditLog {
    /// The log, on target `audit`.
    #[default]
    Log,
    /// Standard output, which nothing else is written to.
    Stdout,
    /// A file, which is appended to.
    File(PathBuf),
}

/// The open stream.
pub(in crate::bridge) enum Audit {
    Log,
    Stream(Mutex<Box<dyn Write + Send>>),
}

/// One change.
#[derive(Default)]
pub(super) struct Change<'a> {
    pub verb: &'static str,
    pub channel: Option<ChannelId>,
    /// The contact's digest, shortened.
    pub contact: Option<String>,
    pub direction: Option<&'static str>,
    pub reason: Option<&'a str>,
    pub seqs: &'a [Seq],
    /// What became of it.
    pub outcome: &'a str,
    /// What a person is given to keep.
    pub receipt: Option<&'a Value>,
    pub because: &'a str,
}

impl Audit {
    /// Opens the stream.
    ///
    /// # Errors
    /// When the file can't be opened for appending.
    pub fn open(log: &AuditLog) -> io::Result<Self> {
        let stream: Box<dyn Write + Send> = match log {
            AuditLog::Log => return Ok(Self::Log),
            AuditLog::Stdout => Box::new(io::stdout()),
            AuditLog::File(path) => {
                Box::new(std::fs::OpenOptions::new().append(true).create(true).open(path)?)
            }
        };
        Ok(Self::Stream(Mutex::new(stream)))
    }

    /// Writes the line of a change. A stream that can't be written to does not lose it: then the log has it.
    pub(super) fn tell(&self, change: &Change<'_>) {
        let line = line(change, now_ms()).to_string();
        let Self::Stream(stream) = self else {
            tracing::info!(target: "audit", "{line}");
            return;
        };
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        let written = stream
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stream.flush());
        if let Err(error) = written {
            tracing::error!(%error, "the audit log can't be written to");
            tracing::info!(target: "audit", "{line}");
        }
    }
}

fn line(change: &Change<'_>, now_ms: u64) -> Value {
    let mut line = json!({
        "time": time(now_ms),
        "verb": change.verb,
        "count": change.seqs.len(),
        "outcome": change.outcome,
    });
    if !change.seqs.is_empty() {
        let seqs: Vec<u64> = change.seqs.iter().take(MAX_SEQS).map(|seq| seq.0).collect();
        line["seqs"] = seqs.into();
    }
    if let Some(receipt) = change.receipt {
        line["receipt"] = receipt.clone();
    }
    let words = [
        ("channel", change.channel.map(|channel| channel.to_string())),
        ("contact", change.contact.clone()),
        ("direction", change.direction.map(ToOwned::to_owned)),
        ("reason", change.reason.map(ToOwned::to_owned)),
        (
            "because",
            Some(change.because.to_owned()).filter(|text| !text.is_empty()),
        ),
    ];
    for (key, word) in words {
        if let Some(word) = word {
            line[key] = word.into();
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_done_to_whom_and_why() {
        let seqs: Vec<Seq> = (1..=150).map(Seq).collect();
        let change = Change {
            verb: "replay",
            channel: Some(ChannelId::from_bytes([7; 16])),
            contact: Some("abababababab".to_owned()),
            seqs: &seqs,
            outcome: "done",
            because: "CHG-1",
            ..Change::default()
        };
        let line = line(&change, 1_800_000_000_000);
        assert_eq!(line["time"], "2027-01-15T08:00:00Z");
        assert_eq!(
            (&line["count"], line["seqs"].as_array().unwrap().len()),
            (&150.into(), MAX_SEQS)
        );
        assert_eq!(
            (&line["because"], &line["contact"]),
            (&"CHG-1".into(), &"abababababab".into())
        );
        assert!(line.get("direction").is_none());
    }

    #[test]
    fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.ndjson");
        for _ in 0..2 {
            let audit = Audit::open(&AuditLog::File(path.clone())).unwrap();
            audit.tell(&Change {
                verb: "drop",
                outcome: "done",
                ..Change::default()
            });
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.lines()
                .all(|line| serde_json::from_str::<Value>(line).unwrap()["verb"] == "drop")
        );
    }
}
