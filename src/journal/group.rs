//! One group of commands: what to write for them and what to answer, decided before anything is written.
//!
//! Pure but for the ids' look-up: no file of its own and no clock. Upholds law 2: a message is new only if neither the
//! memory nor this group knows its id; law 1: an answer that rests on the group says so (`waits`), and turns into its
//! error if it fails; and law 4: a channel or environment that has its share is told so, and no other.

use std::sync::Arc;

// What is hashed here are numbers of our own and keyed digests: nobody outside can choose them.
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use tokio::sync::oneshot;

use super::erase::{Erased, Whose};
use super::format::{FRAME_OVERHEAD, Part, Record, SMALL_RECORD, record_len, set_seq};
use super::ids::{Ids, Listed, Run};
use super::seal::Encoded;
use super::state::{Kind, Position, State};
use super::{
    AppendError, Appended, DedupKey, Lane, MAX_CONTACT_BYTES, Note, Options, Outcome, Reference, Seq,
};

/// Bytes that a batch takes of what a channel and its environment may have.
type Taken = ([u8; 16], [u8; 8], u64);

/// Where the answer to a command goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, AppendError>>;

/// What the writer is asked for.
pub(super) enum Command {
    Append {
        entries: Vec<Encoded>,
        reply: Answer<Vec<Appended>>,
    },
    Settle {
        seq: Seq,
        outcome: Outcome,
        at_ms: u64,
        reply: Answer<()>,
    },
    Note {
        seq: Seq,
        note: Note,
        /// A part that was sent, and under which reference.
        part: Option<(u16, Reference)>,
        reply: Answer<()>,
    },
    Park {
        lane: Lane,
        parked: bool,
        reply: Answer<()>,
    },
    /// Writes messages again that are still where they were, so that their old segments, or their old keys, may go.
    WriteAgain {
        messages: Vec<(Position, Encoded)>,
        reply: Answer<()>,
    },
    /// Overwrites what nobody needs of a contact's messages.
    Erase { whose: Whose, reply: Answer<Erased> },
    /// Sent messages are about to be erased: nothing that is reported of them is known from now on.
    Forget { seqs: Vec<Seq>, reply: Answer<()> },
    /// A run of remembered ids is durable: answer from it.
    Adopt(Run),
    /// Time has passed: see whether anything may go.
    Tick,
}

/// A record that owns what it says until it is written.
pub(super) enum Staged {
    Accepted(Encoded),
    Record(Record<'static>),
}

impl Staged {
    /// Bytes that it takes in a frame, at most.
    pub fn len(&self) -> u64 {
        match self {
            Self::Accepted(encoded) => record_len(&encoded.content),
            Self::Record(_) => SMALL_RECORD,
        }
    }

    pub fn part(&self) -> Part<'_> {
        match self {
            Self::Accepted(encoded) => Part::Content(&encoded.content),
            Self::Record(record) => Part::Record(record),
        }
    }
}

/// The answer to a command. `waits` says whether it holds only once the group is durable.
pub(super) enum Reply {
    Append {
        to: Answer<Vec<Appended>>,
        answer: Result<Vec<Appended>, AppendError>,
        waits: bool,
    },
    Done {
        to: Answer<()>,
        answer: Result<(), AppendError>,
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
            Self::Done { to, answer, waits } => {
                let failed = failed.filter(|_| waits).cloned();
                let _ = to.send(failed.map_or(answer, Err));
            }
        }
    }
}

/// What the active segment has room for.
#[derive(Copy, Clone, Debug)]
pub(super) struct Room {
    /// Where the next frame goes; none without an active segment.
    pub at: Option<u64>,
    /// Bytes that the active segment's file has already.
    pub allocated: u64,
}

impl Room {
    /// How much larger the journal becomes by a frame of so many bytes.
    fn growth(self, options: &Options, frame: u64) -> u64 {
        match self.at {
            Some(at) if at + frame <= options.segment_bytes => (at + frame).saturating_sub(self.allocated),
            _ if options.preallocate => frame.max(options.segment_bytes),
            _ => frame,
        }
    }
}

/// What is known when a group is decided.
pub(super) struct Known<'a> {
    pub state: &'a mut State,
    pub ids: &'a mut Ids,
    pub options: &'a Options,
    pub room: Room,
}

/// What the commands of one group amount to, before anything is written.
pub(super) struct Group {
    pub records: Vec<Staged>,
    /// Files of ids that are no longer needed.
    pub forgotten: Vec<Listed>,
    /// Contacts to take out of the files.
    pub erasures: Vec<(Whose, Answer<Erased>)>,
    keys: HashMap<DedupKey, Seq>,
    settled: HashSet<Seq>,
    bytes: u64,
    taken: HashMap<[u8; 16], u64>,
    taken_in: HashMap<[u8; 8], u64>,
}

impl Group {
    /// A group of about so many commands.
    pub fn new(commands: usize) -> Self {
        Self {
            records: Vec::with_capacity(commands),
            forgotten: Vec::new(),
            erasures: Vec::new(),
            keys: HashMap::with_capacity(commands),
            settled: HashSet::with_capacity(commands),
            bytes: 0,
            taken: HashMap::new(),
            taken_in: HashMap::new(),
        }
    }

    /// Decides on a command; `None` if nobody waits for an answer.
    pub fn decide(&mut self, known: &mut Known<'_>, command: Command) -> Option<Reply> {
        Some(match command {
            Command::Append { entries, reply } => {
                let (answer, waits) = match self.append(known, entries) {
                    Ok((answer, waits)) => (Ok(answer), waits),
                    Err(error) => (Err(error), false),
                };
                Reply::Append {
                    to: reply,
                    answer,
                    waits,
                }
            }
            Command::Settle {
                seq,
                outcome,
                at_ms,
                reply,
            } => {
                known.state.observe(at_ms);
                let waits = self.settle(known.state, seq, outcome, at_ms);
                done(reply, waits)
            }
            Command::Note {
                seq,
                note,
                part,
                reply,
            } => {
                let kept = matches!(known.state.kind(seq), Some(Kind::Pending | Kind::Sent));
                let waits = kept && !self.settled.contains(&seq);
                if waits {
                    self.push(Record::Noted { seq, note });
                }
                if let (true, Some((part, reference))) = (waits, part) {
                    self.push(Record::Part { seq, part, reference });
                }
                done(reply, waits)
            }
            Command::Park { lane, parked, reply } => {
                self.push(Record::Parked { lane, parked });
                done(reply, true)
            }
            Command::WriteAgain { messages, reply } => {
                for (from, encoded) in messages {
                    self.write_again(known.state, from, encoded);
                }
                done(reply, true)
            }
            Command::Adopt(run) => {
                self.forgotten.extend(known.ids.adopt(run));
                return None;
            }
            Command::Forget { seqs, reply } => {
                known.state.forget_erased(&seqs);
                done(reply, false)
            }
            Command::Erase { whose, reply } => {
                self.erasures.push((whose, reply));
                return None;
            }
            Command::Tick => return None,
        })
    }

    fn push(&mut self, record: Record<'static>) {
        self.records.push(Staged::Record(record));
    }

    /// A message ends once; a dead letter may still be dropped, or turn out to have been sent.
    fn settle(&mut self, state: &State, seq: Seq, outcome: Outcome, at_ms: u64) -> bool {
        let may = match state.kind(seq) {
            Some(Kind::Pending) => true,
            Some(Kind::DeadLetter) => {
                matches!(
                    outcome,
                    Outcome::Dropped { .. } | Outcome::Delivered { reference: Some(_) }
                )
            }
            Some(Kind::Sent) | None => false,
        };
        if may && self.settled.insert(seq) {
            let outcome = outcome.cut();
            self.push(Record::Settled { seq, outcome, at_ms });
            return true;
        }
        self.settled.contains(&seq)
    }

    fn write_again(&mut self, state: &State, from: Position, encoded: Encoded) {
        let seq = encoded.head.seq;
        // Settled meanwhile, by this group or before: then it needs no other place.
        if self.settled.contains(&seq) || state.position(seq).is_none_or(|(position, _)| position != from) {
            return;
        }
        let aftermath = state.aftermath(seq);
        self.records.push(Staged::Accepted(encoded));
        self.records.extend(aftermath.into_iter().map(Staged::Record));
    }

    /// All entries or none. Also says whether the answer depends on the group's commit.
    fn append(
        &mut self,
        known: &mut Known<'_>,
        entries: Vec<Encoded>,
    ) -> Result<(Vec<Appended>, bool), AppendError> {
        for entry in &entries {
            // Also for a batch that is refused: time passes for a full journal as well.
            known.state.observe(entry.head.accepted_at_ms);
        }
        let mut before = Vec::with_capacity(entries.len());
        // Nothing is allocated for one entry, which most calls hold.
        let (mut fresh, several) = (HashSet::new(), entries.len() > 1);
        let (mut bytes, mut waits) = (self.bytes, false);
        let mut taken: Vec<Taken> = Vec::with_capacity(1);
        for entry in &entries {
            let head = &entry.head;
            let earlier = match (entry.replaces, self.keys.get(&head.dedup)) {
                (Some(dead), _) => {
                    let there =
                        known.state.kind(dead) == Some(Kind::DeadLetter) && !self.settled.contains(&dead);
                    if !there {
                        return Err(AppendError::NoDeadLetter(dead));
                    }
                    None
                }
                (None, Some(seq)) => {
                    waits = true;
                    Some(*seq)
                }
                (None, None) => {
                    let found = known.ids.find(&head.dedup, head.born(), head.accepted_at_ms);
                    found.map_err(|error| AppendError::Io(Arc::new(error)))?
                }
            };
            if earlier.is_none() && (entry.replaces.is_some() || !several || fresh.insert(head.dedup)) {
                waits = true;
                let len = record_len(&entry.content);
                bytes += len;
                let (channel, environment) = (head.address.channel, head.address.environment);
                // What takes a dead letter's place takes its room.
                let len = if entry.replaces.is_some() { 0 } else { len };
                // A call's messages are of one channel: what comes from elsewhere may be of a few.
                match taken.iter_mut().find(|of| (of.0, of.1) == (channel, environment)) {
                    Some((_, _, taken)) => *taken += len,
                    None => taken.push((channel, environment, len)),
                }
            }
            before.push(earlier);
        }
        self.has_room(known, bytes, &taken)?;

        self.bytes = bytes;
        for (channel, environment, len) in taken {
            *self.taken.entry(channel).or_default() += len;
            *self.taken_in.entry(environment).or_default() += len;
        }
        let mut answer = Vec::with_capacity(entries.len());
        for (mut entry, earlier) in entries.into_iter().zip(before) {
            let earlier = earlier.or_else(|| match entry.replaces {
                None => self.keys.get(&entry.head.dedup).copied(),
                Some(_) => None,
            });
            answer.push(if let Some(seq) = earlier {
                Appended::Duplicate(seq)
            } else {
                let seq = known.state.take_seq();
                entry.head.seq = seq;
                set_seq(&mut entry.content, seq);
                let (replaces, at_ms) = (entry.replaces, entry.head.accepted_at_ms);
                let set_aside = entry.set_aside;
                if replaces.is_none() {
                    self.keys.insert(entry.head.dedup, seq);
                }
                self.records.push(Staged::Accepted(entry));
                if let Some(reason) = set_aside {
                    let outcome = Outcome::DeadLetter {
                        reason: reason.to_owned(),
                    };
                    // One that comes back from elsewhere was accepted long ago, and is a dead letter from now on.
                    let at_ms = at_ms.max(known.state.newest_ms());
                    self.push(Record::Settled { seq, outcome, at_ms });
                }
                if let Some(dead) = replaces {
                    self.settled.insert(dead);
                    let outcome = Outcome::Dropped {
                        reason: "Replayed".to_owned(),
                    };
                    self.push(Record::Settled {
                        seq: dead,
                        outcome,
                        at_ms,
                    });
                }
                Appended::New(seq)
            });
        }
        Ok((answer, waits))
    }

    /// Whether the journal, the channels and the environments have room for what is new.
    fn has_room(&self, known: &Known<'_>, bytes: u64, taken: &[Taken]) -> Result<(), AppendError> {
        if taken.is_empty() {
            return Ok(());
        }
        let options = known.options;
        let growth = known.room.growth(options, bytes + FRAME_OVERHEAD);
        // The ids of what is staged in this group are counted as well as they can be: each entry has one.
        let ids = self.keys.len() + taken.len().max(1);
        if known.state.bytes().saturating_add(growth) > options.max_bytes || !known.ids.has_room(ids) {
            return Err(AppendError::Full);
        }
        for (channel, environment, more) in taken.iter().filter(|(_, _, more)| *more > 0) {
            let (of_channel, of_environment) = known.state.taken(*channel, *environment);
            let staged = self.taken.get(channel).copied().unwrap_or_default();
            if of_channel + staged + more > options.share(options.channel_share) {
                return Err(AppendError::ChannelFull);
            }
            let staged = self.taken_in.get(environment).copied().unwrap_or_default();
            if of_environment + staged + more > options.share(options.environment_share) {
                return Err(AppendError::EnvironmentFull);
            }
        }
        Ok(())
    }
}

fn done(to: Answer<()>, waits: bool) -> Reply {
    Reply::Done {
        to,
        answer: Ok(()),
        waits,
    }
}

/// Whether the messages may be accepted at all, whatever the journal holds.
///
/// # Errors
/// [`AppendError::TooLarge`].
pub(super) fn fits(entries: &[super::NewEntry], options: &Options) -> Result<(), AppendError> {
    let mut total = 0;
    for entry in entries {
        if entry.contact.len() > MAX_CONTACT_BYTES || entry.body.len() > options.max_body_bytes {
            return Err(AppendError::TooLarge);
        }
        total += entry.body.len() as u64 + 256;
    }
    if total > options.max_batch_bytes() {
        return Err(AppendError::TooLarge);
    }
    Ok(())
}
