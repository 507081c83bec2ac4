//! One group of commands: what to write for them and what to answer, decided before anything is written.
//!
//! Pure: no file and no clock. Upholds law 2: a message is new only if neither the memory nor this group knows its
//! id; and law 1: an answer that rests on the group says so (`waits`), and turns into its error if it fails.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use super::format::{Accepted, FRAME_OVERHEAD, Record, accepted_len};
use super::state::State;
use super::{AppendError, Appended, DedupKey, MAX_CONTACT_BYTES, NewEntry, Options, Outcome, Seq};

/// What the writer is asked for.
pub(super) enum Command {
    Append {
        entries: Vec<NewEntry>,
        reply: oneshot::Sender<Result<Vec<Appended>, AppendError>>,
    },
    Settle {
        seq: Seq,
        outcome: Outcome,
        reply: oneshot::Sender<Result<(), AppendError>>,
    },
}

/// A record that owns its message until it is written.
pub(super) enum Staged {
    Accepted { seq: Seq, entry: NewEntry },
    Settled { seq: Seq, outcome: Outcome },
}

impl Staged {
    pub fn record(&self) -> Record<'_> {
        match self {
            Self::Accepted { seq, entry } => Record::Accepted(Accepted {
                seq: *seq,
                direction: entry.direction,
                channel: entry.channel,
                contact: &entry.contact,
                dedup: entry.dedup,
                accepted_at_ms: entry.accepted_at_ms,
                body: &entry.body,
            }),
            Self::Settled { seq, outcome } => Record::Settled {
                seq: *seq,
                outcome: outcome.clone(),
            },
        }
    }
}

/// The answer to a command. `waits` says whether it holds only once the group is durable.
pub(super) enum Reply {
    Append {
        to: oneshot::Sender<Result<Vec<Appended>, AppendError>>,
        answer: Result<Vec<Appended>, AppendError>,
        waits: bool,
    },
    Settle {
        to: oneshot::Sender<Result<(), AppendError>>,
        waits: bool,
    },
}

impl Reply {
    /// Callers that went away are not an error: what they asked for is done.
    pub fn send(self, failed: Option<&AppendError>) {
        match self {
            Self::Append { to, answer, waits } => {
                let failed = failed.filter(|_| waits).cloned();
                let _ = to.send(failed.map_or(answer, Err));
            }
            Self::Settle { to, waits } => {
                let _ = to.send(failed.filter(|_| waits).cloned().map_or(Ok(()), Err));
            }
        }
    }
}

/// What the commands of one group amount to, before anything is written.
#[derive(Default)]
pub(super) struct Group {
    pub records: Vec<Staged>,
    keys: HashMap<DedupKey, Seq>,
    settled: HashSet<Seq>,
    bytes: u64,
}

impl Group {
    pub fn decide(&mut self, state: &mut State, options: &Options, command: Command) -> Reply {
        match command {
            Command::Append { entries, reply } => {
                let (answer, waits) = match self.append(state, options, entries) {
                    Ok((answer, waits)) => (Ok(answer), waits),
                    Err(error) => (Err(error), false),
                };
                Reply::Append {
                    to: reply,
                    answer,
                    waits,
                }
            }
            Command::Settle { seq, outcome, reply } => {
                let waits = if state.is_pending(seq) && self.settled.insert(seq) {
                    self.records.push(Staged::Settled {
                        seq,
                        outcome: outcome.cut(),
                    });
                    true
                } else {
                    self.settled.contains(&seq)
                };
                Reply::Settle { to: reply, waits }
            }
        }
    }

    /// All entries or none. Also says whether the answer depends on the group's commit.
    fn append(
        &mut self,
        state: &mut State,
        options: &Options,
        entries: Vec<NewEntry>,
    ) -> Result<(Vec<Appended>, bool), AppendError> {
        let mut total = 0;
        for entry in &entries {
            // Also for a batch that is refused: with a full journal this is what lets old segments go.
            state.observe(entry.accepted_at_ms);
            if entry.contact.len() > MAX_CONTACT_BYTES || entry.body.len() > options.max_body_bytes {
                return Err(AppendError::TooLarge);
            }
            total += accepted_len(&entry.contact, &entry.body);
        }
        if total > options.max_batch_bytes() {
            return Err(AppendError::TooLarge);
        }

        let mut waits = false;
        let mut fresh = HashSet::new();
        let mut bytes = self.bytes;
        for entry in &entries {
            if self.keys.contains_key(&entry.dedup) {
                waits = true;
            } else if state.duplicate_of(&entry.dedup).is_none() && fresh.insert(entry.dedup) {
                waits = true;
                bytes += accepted_len(&entry.contact, &entry.body);
            }
        }
        let room = options.max_bytes.saturating_sub(FRAME_OVERHEAD);
        if !fresh.is_empty() && state.bytes().saturating_add(bytes) > room {
            return Err(AppendError::Full);
        }

        self.bytes = bytes;
        let mut answer = Vec::with_capacity(entries.len());
        for entry in entries {
            let known = self
                .keys
                .get(&entry.dedup)
                .copied()
                .or_else(|| state.duplicate_of(&entry.dedup));
            answer.push(if let Some(seq) = known {
                Appended::Duplicate(seq)
            } else {
                let seq = state.take_seq();
                self.keys.insert(entry.dedup, seq);
                self.records.push(Staged::Accepted { seq, entry });
                Appended::New(seq)
            });
        }
        Ok((answer, waits))
    }
}
