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
//! - `format`: the bytes
//! - `replay`: what files mean, and when to refuse them
//! - `state`: what is known in memory
//! - `group`: what a group of commands amounts to; `writer`: its commit; `thread`: where groups come from
//! - `storage`: file operations
//!
//! The journal reads no wall clock. Its time is the newest `accepted_at_ms` it was given; a caller that passes a
//! time far in the future makes it forget ids early.
//!
//! Limits of this form: bodies are not encrypted and segments not preallocated; every remembered id is in memory
//! (about 80 bytes each); settled bodies stay on disk until their segment is older than the window.

mod error;
mod format;
mod group;
#[cfg(any(test, feature = "sim"))]
mod memory;
mod replay;
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

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use self::error::{AppendError, OpenError, ReadError};
use self::format::{Record, decode_record};
use self::group::Command;
use self::storage::{Directory, DirectoryError, Storage};
use self::thread::Job;
use self::types::Counters;
pub use self::types::{
    Appended, DedupKey, Direction, Entry, MAX_CONTACT_BYTES, MAX_REASON_BYTES, MAX_REFERENCE_BYTES, NewEntry,
    Options, Outcome, Pending, Seq, Stats,
};
use self::writer::{Shared, Writer};

/// A handle to an open journal; cheap to clone.
#[derive(Clone)]
pub struct Journal {
    backend: Backend,
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
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
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Vec<Pending>), OpenError> {
        let (directory, lock) = Directory::open(dir).map_err(|error| match error {
            DirectoryError::Locked => OpenError::Locked(dir.to_owned()),
            DirectoryError::Io(source) => OpenError::Io {
                doing: "open the journal's directory",
                source,
            },
        })?;
        Self::open_on(Arc::new(directory), options, lock)
    }

    fn open_on(
        storage: Arc<dyn Storage>,
        options: Options,
        held: impl Send + 'static,
    ) -> Result<(Self, Vec<Pending>), OpenError> {
        let (gather, queue) = (options.gather, options.queue.max(1));
        let (writer, pending) = Writer::open(Arc::clone(&storage), options)?;
        let shared = writer.shared();
        let (sender, queue) = mpsc::channel(queue);
        thread::spawn(writer, Arc::clone(&storage), queue, gather, held).map_err(|source| OpenError::Io {
            doing: "start the writer's thread",
            source,
        })?;
        Ok((
            Self {
                backend: Backend::Thread(sender),
                shared,
                storage,
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
        let (writer, _) = Writer::open(Arc::clone(&storage), options).expect("an empty journal opens");
        let shared = writer.shared();
        Self {
            backend: Backend::Inline(Arc::new(Mutex::new(Some(writer)))),
            shared,
            storage,
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
        let (reply, answer) = oneshot::channel();
        self.send(Command::Append { entries, reply }).await?;
        answer.await.map_err(|_| AppendError::Closed)?
    }

    /// Records how a message ended; durable when this returns. Settling twice, or a message that was never accepted,
    /// changes and writes nothing. Goes on when the journal is over [`Options::max_bytes`].
    ///
    /// # Errors
    /// [`AppendError`]; the message may still be pending after a restart. [`AppendError::Full`] if the disk itself
    /// is full.
    pub async fn settle(&self, seq: Seq, outcome: Outcome) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Settle { seq, outcome, reply }).await?;
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
                let trimmed = writer.as_mut().ok_or(AppendError::Closed)?.commit(vec![command]);
                for number in trimmed {
                    let _ = self.storage.remove(number);
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

    /// Reads a pending message from disk and checks it.
    ///
    /// # Errors
    /// [`ReadError`]; never another message's or altered bytes.
    pub async fn read(&self, seq: Seq) -> Result<Entry, ReadError> {
        #[cfg(any(test, feature = "sim"))]
        if let Backend::Inline(_) = &self.backend {
            return read(&self.shared, &*self.storage, seq);
        }
        let (shared, storage) = (Arc::clone(&self.shared), Arc::clone(&self.storage));
        let read = tokio::task::spawn_blocking(move || read(&shared, &*storage, seq));
        read.await
            .map_err(|error| ReadError::Io(io::Error::other(error)))?
    }

    /// Numbers for metrics. Cheap: reads memory only.
    pub fn stats(&self) -> Stats {
        let counters = *self.shared.counters();
        let state = self.shared.state();
        Stats {
            pending_to_aura: state.pending_in(Direction::ToAura),
            pending_to_kernel: state.pending_in(Direction::ToKernel),
            bytes_on_disk: state.bytes(),
            segments: state.segment_count(),
            dedup_ids: state.remembered_ids(),
            dead_letters: state.dead_letters(),
            commits: counters.commits,
            committed_records: counters.committed_records,
            failed_commits: counters.failed_commits,
            last_sync: counters.last_sync,
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

fn read(shared: &Shared, storage: &dyn Storage, seq: Seq) -> Result<Entry, ReadError> {
    let (position, salt) = shared.state().position(seq).ok_or(ReadError::NotPending(seq))?;
    let (offset, len) = (position.place.offset, position.place.len as usize);
    let bytes = Bytes::from(storage.read(position.segment, offset, len)?);
    match decode_record(salt, offset, &bytes) {
        Some((Record::Accepted(entry), end)) if entry.seq == seq => Ok(Entry {
            seq,
            direction: entry.direction,
            channel: entry.channel,
            contact: entry.contact.to_owned(),
            accepted_at_ms: entry.accepted_at_ms,
            body: bytes.slice(end - entry.body.len()..end),
        }),
        _ => Err(ReadError::Damaged {
            seq,
            file: storage.name(position.segment),
            offset,
        }),
    }
}
