//! The embedded journal: what makes an accepted message durable before its sender is answered.
//!
//! A segmented log with one writer. Each commit is one buffer, one write, one sync, shared by all callers that
//! wait at that moment. Bodies stay on disk; memory holds positions and remembered ids. It is not a queue: lanes,
//! retries and order of delivery are `delivery/`, which is handed what is pending when the journal opens.
//!
//! Upholds law 1 (acked is kept: an answer means synced; damage is refused, never truncated), law 2 (once per id:
//! the duplicate check and the append are one step) and law 11 (disk, bodies, batches and the queue have limits).
//!
//! - `types`, `error`: the words
//! - `format`: the bytes; `seal`: what of them is nobody's business; `keyring`: the keys of that
//! - `replay`: what files mean, and when to refuse them
//! - `state`: what is known in memory; `ids`: which ids are remembered
//! - `group`: what a group of commands amounts to; `writer`: its commit; `thread`: where groups come from
//! - `keeper`: space, keys and retention, off the path of a commit; `clock`: what time it is for things that expire
//! - `erase`: takes one contact out of the files
//! - `log`: what delivering needs of a log, so that another one can stand in for this
//! - `look`: what a person is shown of what is kept
//! - `storage`: file operations
//!
//! Two times: a message's `accepted_at_ms` is its caller's; what expires does so by the machine's wall clock, under the
//! rule in `clock`.

mod clock;
mod erase;
mod error;
mod format;
mod gather;
mod group;
pub mod inspect;
// Reachable for the measurement in benches/journal alone.
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod ids;
#[cfg(not(feature = "sim"))]
mod ids;
mod keeper;
mod keyring;
mod log;
mod look;
#[cfg(any(test, feature = "sim"))]
mod memory;
mod replay;
mod seal;
mod state;
mod storage;
#[cfg(test)]
mod tests;
mod thread;
mod types;
mod writer;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
#[cfg(any(test, feature = "sim"))]
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

use crate::lineage::Mark;

pub use self::erase::{Erased, Whose};
pub use self::error::{AppendError, OpenError, ReadError};
use self::format::{Head, Link, Record, decode_record};
use self::group::{Answer, Command, fits};
use self::ids::{RunDirectory, RunStorage};
use self::keeper::Keeper;
pub use self::keyring::{Keyring, KeyringError, WrappingKey};
pub use self::log::Log;
use self::seal::{BodyKey, Encoded};
pub use self::state::{Backlog, Kind};
use self::storage::{Directory, DirectoryError, Storage};
use self::thread::Job;
use self::types::Counters;
pub use self::types::{
    Address, Appended, ContactKey, DeadLetter, DedupKey, Direction, Entry, Kept, Lane, MAX_CONTACT_BYTES,
    MAX_REASON_BYTES, MAX_TRACE_BYTES, NewEntry, Note, Options, Origin, Outcome, Page, Pending, Reference,
    RequestId, Sent, Seq, Standing, Stats, Wanted,
};
use self::writer::{Shared, Writer};

/// What the journal is given from outside, beside its options.
#[derive(Clone)]
pub struct Surroundings {
    /// The keys that bodies are sealed with; without them they stand in the clear.
    pub keyring: Option<Arc<Keyring>>,
    /// Told of each commit: how many records, and how long its sync took.
    pub on_commit: Arc<dyn Fn(usize, Duration) + Send + Sync>,
    /// The wall clock, ms since the epoch.
    pub wall: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            keyring: None,
            on_commit: Arc::new(|_, _| {}),
            wall: Arc::new(wall_ms),
        }
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    writer::millis(since)
}

/// A handle to an open journal; cheap to clone.
#[derive(Clone)]
pub struct Journal {
    backend: Backend,
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    options: Arc<Options>,
    surroundings: Surroundings,
}

#[derive(Clone)]
enum Backend {
    Thread(mpsc::Sender<Job>),
    /// Commits on the caller's task, for tests with paused time; none once closed.
    #[cfg(any(test, feature = "sim"))]
    Inline(Arc<Mutex<Option<Writer>>>),
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal in `dir`, which is created if it is not there, and says what is pending, oldest first.
    ///
    /// Blocks: it reads every segment. Takes an exclusive lock on the directory until the journal is closed, or
    /// every handle is dropped and the writer has come to rest.
    ///
    /// # Errors
    /// [`OpenError`]; the files are left as they are.
    pub fn open(
        dir: &Path,
        options: Options,
        surroundings: Surroundings,
    ) -> Result<(Self, Vec<Pending>), OpenError> {
        let (directory, lock) = Directory::open(dir).map_err(|error| match error {
            DirectoryError::Locked => OpenError::Locked(dir.to_owned()),
            DirectoryError::Io(source) => OpenError::Io {
                doing: "open the journal's directory",
                source,
            },
        })?;
        let directory = directory.with_spares(options.max_bytes / 4 / options.segment_bytes.max(1));
        let runs = RunDirectory::open(dir).map_err(|source| OpenError::Io {
            doing: "open the directory of remembered ids",
            source,
        })?;
        Self::open_on(Arc::new(directory), Arc::new(runs), options, surroundings, lock)
    }

    fn open_on(
        storage: Arc<dyn Storage>,
        runs: Arc<dyn RunStorage>,
        options: Options,
        surroundings: Surroundings,
        held: impl Send + 'static,
    ) -> Result<(Self, Vec<Pending>), OpenError> {
        let (gather, queue) = (options.gather, options.queue.max(1));
        let (writer, pending) = Writer::open(
            Arc::clone(&storage),
            &*runs,
            options.clone(),
            surroundings.clone(),
        )?;
        let shared = writer.shared();
        let keeper = Keeper {
            storage: Arc::clone(&storage),
            shared: Arc::clone(&shared),
            runs,
            rounds: 0,
            sealing: None,
            merging: None,
            keyring: surroundings.keyring.clone(),
            options: options.clone(),
        };
        let (sender, queue) = mpsc::channel(queue);
        thread::spawn(writer, keeper, queue, sender.downgrade(), gather, held).map_err(|source| {
            OpenError::Io {
                doing: "start the journal's threads",
                source,
            }
        })?;
        Ok((
            Self {
                backend: Backend::Thread(sender),
                shared,
                storage,
                options: Arc::new(options),
                surroundings,
            },
            pending,
        ))
    }

    /// A journal that keeps its files in memory and commits on the caller's task: no thread, no timer, so tests may
    /// pause time. For tests and the simulators.
    #[cfg(any(test, feature = "sim"))]
    pub fn in_memory() -> Self {
        Self::in_memory_with(Options::default())
    }

    /// As [`Journal::in_memory`], with limits.
    #[cfg(any(test, feature = "sim"))]
    #[allow(clippy::expect_used, clippy::missing_panics_doc)]
    pub fn in_memory_with(options: Options) -> Self {
        let storage: Arc<dyn Storage> = Arc::new(memory::Memory::default());
        let mut options = options;
        options.preallocate = false;
        let surroundings = Surroundings::default();
        let runs = memory::Runs::default();
        let (writer, _) = Writer::open(Arc::clone(&storage), &runs, options.clone(), surroundings.clone())
            .expect("an empty journal opens");
        let shared = writer.shared();
        Self {
            backend: Backend::Inline(Arc::new(Mutex::new(Some(writer)))),
            shared,
            storage,
            options: Arc::new(options),
            surroundings,
        }
    }

    /// Accepts messages: all are durable when this returns, or none is. An id that is remembered, or comes twice in
    /// `entries`, is answered with the message it was first accepted as, once that one is durable.
    ///
    /// A caller that stops waiting may find the messages accepted or not; sending them again is safe.
    ///
    /// # Errors
    /// [`AppendError`]; of the entries none was accepted by this call, except that after [`AppendError::Io`] and
    /// [`AppendError::Closed`] a crash may bring them back as pending.
    pub async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<Appended>, AppendError> {
        fits(&entries, &self.options)?;
        let mut encoded = Vec::with_capacity(entries.len());
        for mut entry in entries {
            if entry.trace.len() > MAX_TRACE_BYTES {
                entry.trace = String::new();
            }
            let key = self.key(entry.address.environment, entry.accepted_at_ms).await?;
            encoded.push(Encoded::new(&entry, key.as_deref()).map_err(|_| no_randomness())?);
        }
        self.append_encoded(encoded).await
    }

    /// Sends a dead letter on its way again, as a new message at the end of its lane; it is no dead letter any more
    /// when this returns.
    ///
    /// # Errors
    /// [`AppendError::NoDeadLetter`] if it is none, or its body can't be read any more; as for [`Journal::append`].
    pub async fn replay(&self, seq: Seq) -> Result<Seq, AppendError> {
        let (head, contact, entry) = self.read_with_head(seq).await.map_err(|error| match error {
            ReadError::Io(error) => AppendError::from_io(error),
            _ => AppendError::NoDeadLetter(seq),
        })?;
        let now = (self.surroundings.wall)();
        let key = self.key(head.address.environment, now).await?;
        let head = Head {
            written_again: false,
            replayed: true,
            accepted_at_ms: now,
            key: key.as_deref().map_or(0, |key| key.id),
            ..head
        };
        let mut encoded = Encoded::seal(head, &entry.trace, &contact, &entry.body, key.as_deref())
            .map_err(|_| no_randomness())?;
        encoded.replaces = Some(seq);
        match self.append_encoded(vec![encoded]).await?.first() {
            Some(Appended::New(seq) | Appended::Duplicate(seq)) => Ok(*seq),
            None => Err(AppendError::Closed),
        }
    }

    async fn append_encoded(&self, entries: Vec<Encoded>) -> Result<Vec<Appended>, AppendError> {
        self.ask(|reply| Command::Append { entries, reply }).await
    }

    /// The key that a message is sealed with: made on the first message of an environment's day.
    async fn key(&self, environment: [u8; 8], at_ms: u64) -> Result<Option<Arc<BodyKey>>, AppendError> {
        let Some(keyring) = &self.surroundings.keyring else {
            return Ok(None);
        };
        if let Some(key) = keyring.ready(environment, at_ms) {
            return Ok(Some(key));
        }
        let keyring = Arc::clone(keyring);
        let made = tokio::task::spawn_blocking(move || keyring.make(environment, at_ms)).await;
        let made = made.unwrap_or_else(|error| Err(io::Error::other(error)));
        made.map(Some).map_err(AppendError::from_io)
    }

    /// Records how a message ended; durable when this returns. Settling twice, or a message that was never accepted,
    /// changes and writes nothing; but a dead letter may still be dropped, or turn out to have been sent under a
    /// reference. Goes on when the journal is over [`Options::max_bytes`].
    ///
    /// # Errors
    /// [`AppendError`]; the message may still be pending after a restart. [`AppendError::Full`] if the disk itself
    /// is full.
    pub async fn settle(&self, seq: Seq, outcome: Outcome) -> Result<(), AppendError> {
        let at_ms = (self.surroundings.wall)();
        self.ask(|reply| Command::Settle {
            seq,
            outcome,
            at_ms,
            reply,
        })
        .await
    }

    /// Records what is to be known after a restart of a pending message's attempts, or of a sent one what was told of
    /// it; durable when this returns. Of a sent one `told` alone counts, and only if it is more than before.
    ///
    /// # Errors
    /// [`AppendError`]; the note may be there or not after a restart.
    pub async fn note(&self, seq: Seq, note: Note) -> Result<(), AppendError> {
        self.noting(seq, note, None).await
    }

    /// As [`Journal::note`]; also that a part of the message, which is not its last one, was sent under a reference.
    ///
    /// # Errors
    /// As [`Journal::note`].
    pub async fn note_part(
        &self,
        seq: Seq,
        note: Note,
        part: u16,
        reference: Reference,
    ) -> Result<(), AppendError> {
        self.noting(seq, note, Some((part, reference))).await
    }

    async fn noting(&self, seq: Seq, note: Note, part: Option<(u16, Reference)>) -> Result<(), AppendError> {
        self.ask(|reply| Command::Note {
            seq,
            note,
            part,
            reply,
        })
        .await
    }

    /// Records that a lane is parked, or no longer; durable when this returns. What that means is the delivery's.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn park(&self, lane: Lane, parked: bool) -> Result<(), AppendError> {
        self.ask(|reply| Command::Park { lane, parked, reply }).await
    }

    /// Overwrites contact and body of all messages of a contact that nobody needs any more: delivered, dropped, or sent.
    /// What is pending or a dead letter stays, and is counted in [`Erased::left`]: drop it before. The ids stay
    /// remembered. Reads every segment, so it takes seconds where the journal is large; commits go on meanwhile.
    ///
    /// # Errors
    /// [`AppendError`]; a part may be erased. A second call goes on with the rest.
    pub async fn erase(&self, whose: Whose) -> Result<Erased, AppendError> {
        self.ask(|reply| Command::Erase { whose, reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| AppendError::Closed)?
    }

    async fn send(&self, command: Command) -> Result<(), AppendError> {
        match &self.backend {
            Backend::Thread(queue) => queue
                .send(Job::Command(command))
                .await
                .map_err(|_| AppendError::Closed),
            #[cfg(any(test, feature = "sim"))]
            Backend::Inline(writer) => {
                let mut writer = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let chores = writer.as_mut().ok_or(AppendError::Closed)?.commit(vec![command]);
                for number in chores.retire {
                    let _ = self.storage.retire(number);
                }
                Ok(())
            }
        }
    }

    /// Every message accepted from now on, once it is durable, in the order of their numbers: what the delivery
    /// works from, since callers of [`Journal::append`] may go on in any order. A second call takes the feed over
    /// from the first. Its queue has no bound of its own; what waits in it is bounded by the journal.
    pub fn committed(&self) -> mpsc::UnboundedReceiver<Pending> {
        self.shared.feed()
    }

    /// Reads a message that is kept (pending, a dead letter, or sent not long ago) from disk and checks it.
    ///
    /// # Errors
    /// [`ReadError`]; never another message's or altered bytes.
    pub async fn read(&self, seq: Seq) -> Result<Entry, ReadError> {
        Ok(self.read_with_head(seq).await?.2)
    }

    async fn read_with_head(&self, seq: Seq) -> Result<(Head, String, Entry), ReadError> {
        #[cfg(any(test, feature = "sim"))]
        if let Backend::Inline(_) = &self.backend {
            return read(
                &self.shared,
                &*self.storage,
                self.surroundings.keyring.as_deref(),
                seq,
            );
        }
        let (shared, storage) = (Arc::clone(&self.shared), Arc::clone(&self.storage));
        let keyring = self.surroundings.keyring.clone();
        let read = tokio::task::spawn_blocking(move || read(&shared, &*storage, keyring.as_deref(), seq));
        read.await
            .map_err(|error| ReadError::Io(io::Error::other(error)))?
    }

    /// What is recorded of a message's attempts.
    pub fn noted(&self, seq: Seq) -> Note {
        self.shared.state().note(seq)
    }

    /// The message that was sent, or a part of which was, under this reference, if it is still known.
    pub fn sent(&self, reference: &Reference) -> Option<Sent> {
        self.shared.state().sent(reference)
    }

    /// Why a message is kept; `None` if it is not.
    pub fn kind(&self, seq: Seq) -> Option<Kind> {
        self.shared.state().kind(seq)
    }

    /// All references that a message, or a part of it, was sent under.
    pub fn references(&self, seq: Seq) -> Vec<Reference> {
        self.shared.state().references(seq)
    }

    /// All dead letters, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.shared.state().dead_letters()
    }

    /// The lanes that are parked.
    pub fn parked(&self) -> Vec<Lane> {
        self.shared.state().parked().collect()
    }

    /// What each channel has that has anything.
    pub fn backlogs(&self) -> Vec<Backlog> {
        loop {
            // Let go in between: a commit must not wait for a long look.
            let mut state = self.shared.state();
            if state.find_oldest(AT_ONCE) {
                return state.backlogs();
            }
        }
    }

    /// How far it had got when it was opened.
    pub fn found(&self) -> Mark {
        mark(self.shared.found)
    }

    /// How far it has got: all up to there is synced, and every commit moves it on.
    pub fn mark(&self) -> Mark {
        mark(self.shared.counters().end)
    }

    /// The number that the next message gets.
    pub fn next_seq(&self) -> Seq {
        Seq(self.shared.state().next_seq())
    }

    /// Gives no message a number below this one from now on. It outlives a restart from the next commit on.
    pub fn never_reuse_below(&self, seq: Seq) {
        self.shared.state().never_reuse_below(seq.0);
    }

    /// The time by which things may expire, ms since the epoch, where this is the wall clock's: behind that one for an
    /// hour after a jump.
    pub fn expiry_ms(&self, wall_ms: u64) -> u64 {
        clock::believed(self.shared.expiry_ms(), wall_ms)
    }

    /// Numbers for metrics. Cheap: reads memory only.
    pub fn stats(&self) -> Stats {
        let counters = *self.shared.counters();
        let keyring = self.surroundings.keyring.as_ref();
        let state = self.shared.state();
        Stats {
            pending_to_aura: state.pending_in(Direction::ToAura),
            pending_to_kernel: state.pending_in(Direction::ToKernel),
            bytes_on_disk: state.bytes(),
            live_bytes: state.live_bytes(),
            segments: state.segment_count(),
            dedup_ids: self.shared.ids(),
            dead_letters: state.dead_letter_count(),
            expired: self.shared.expired(),
            sent: state.sent_count(),
            parked: state.parked_count(),
            body_keys: keyring.map_or(0, |keyring| keyring.len() as u64),
            commits: counters.commits,
            committed_records: counters.committed_records,
            failed_commits: counters.failed_commits,
            last_sync: counters.last_sync,
            failing: counters.failing,
        }
    }

    /// Carries out what was asked before, stops the writer and releases the directory. Other handles answer
    /// [`AppendError::Closed`] from then on.
    pub async fn close(self) {
        match self.backend {
            Backend::Thread(queue) => {
                let (reply, closed) = oneshot::channel();
                if queue.send(Job::Close(reply)).await.is_ok() {
                    let _ = closed.await;
                }
            }
            #[cfg(any(test, feature = "sim"))]
            Backend::Inline(writer) => {
                writer
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .take();
            }
        }
    }
}

fn mark(end: Link) -> Mark {
    Mark {
        segment: end.number,
        bytes: end.len,
    }
}

fn no_randomness() -> AppendError {
    AppendError::Io(Arc::new(io::Error::other("no randomness")))
}

/// Messages that are looked at while the journal's lock is held: far less than a millisecond.
const AT_ONCE: usize = 2_048;
/// Tries of a read whose message was written elsewhere meanwhile.
const READ_TRIES: usize = 3;

fn read(
    shared: &Shared,
    storage: &dyn Storage,
    keyring: Option<&Keyring>,
    seq: Seq,
) -> Result<(Head, String, Entry), ReadError> {
    for tried in 1.. {
        let (position, salt) = shared.state().position(seq).ok_or(ReadError::NotKept(seq))?;
        let (offset, len) = (position.place.offset, position.place.len as usize);
        let bytes = storage.read(position.segment, offset, len);
        let note = shared.state().note(seq);
        // Between the two it may have been written again, and its old segment have gone.
        let moved = shared
            .state()
            .position(seq)
            .is_none_or(|(now, _)| now != position);
        if moved && tried < READ_TRIES {
            continue;
        }
        let bytes = bytes?;
        let damaged = || ReadError::Damaged {
            seq,
            file: storage.name(position.segment),
            offset,
        };
        let Some((Record::Accepted(entry), _)) = decode_record(salt, offset, &bytes) else {
            return Err(damaged());
        };
        if entry.head.seq != seq {
            return Err(damaged());
        }
        let key = keyring.and_then(|keyring| keyring.get(entry.head.key));
        if entry.head.key != 0 && key.is_none() {
            return Err(ReadError::KeyDestroyed(seq));
        }
        let (contact, body) = seal::open(&entry, key.as_deref()).ok_or_else(damaged)?;
        let whole = Entry {
            seq,
            dedup: entry.head.dedup,
            address: entry.head.address,
            contact: contact.clone(),
            accepted_at_ms: entry.head.accepted_at_ms,
            request: entry.head.request,
            trace: entry.trace.to_owned(),
            note,
            replayed: entry.head.replayed,
            origin: entry.head.origin,
            body,
        };
        return Ok((entry.head, contact, whole));
    }
    Err(ReadError::NotKept(seq))
}
