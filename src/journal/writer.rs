//! The one writer: takes a group of commands, decides, writes one frame, syncs once, then answers.
//!
//! Not for threads or queues (`thread.rs` feeds it). Upholds law 1: no caller is answered, and the memory is not
//! changed, before the sync has succeeded; and law 2: the duplicate check (`group.rs`) and the append are one step here.
//!
//! A write or sync that fails is final for its file. The next group starts a new file whose header seals the old
//! one at its last synced byte, so whatever the failed commit left there never counts. Reading the file back or
//! syncing it again proves nothing: the kernel may have dropped the pages and reported the error already.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::format::{Link, Place, Record, SEGMENT_HEADER, Salt, SegmentHeader, encode_frame};
use super::group::{Command, Group, Staged};
use super::replay::{Recovered, recover};
use super::state::State;
use super::storage::{SegmentFile, Storage, is_full};
use super::{AppendError, Counters, OpenError, Options, Pending};

/// A buffer larger than this is given back after the commit that needed it.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// Memory that the writer changes and handles read.
pub(super) struct Shared {
    state: Mutex<State>,
    counters: Mutex<Counters>,
    /// Who is told of each accepted message, in the order of their numbers.
    feed: Mutex<Option<mpsc::UnboundedSender<Pending>>>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something ever does, the state is still the last applied one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, every accepted message, once it is durable and in the order of their numbers.
    pub fn feed(&self) -> mpsc::UnboundedReceiver<Pending> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.feed.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    fn tell(&self, staged: &[Staged]) {
        let feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(feed) = feed.as_ref() else { return };
        for one in staged {
            if let Staged::Accepted { seq, entry } = one {
                let _ = feed.send(Pending {
                    seq: *seq,
                    direction: entry.direction,
                    channel: entry.channel,
                    contact: entry.contact.clone(),
                    accepted_at_ms: entry.accepted_at_ms,
                });
            }
        }
    }

    pub fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Active {
    file: Box<dyn SegmentFile>,
    salt: Salt,
}

/// The writer and its files.
pub(super) struct Writer {
    storage: Arc<dyn Storage>,
    shared: Arc<Shared>,
    options: Options,
    /// The file that takes the next frame, at `last.len`; none after a failure.
    active: Option<Active>,
    /// The end of the chain: everything up to it is synced.
    last: Link,
    /// What `last` was before the active segment, to fall back to if that one never takes a frame.
    before_last: Link,
    next_number: u64,
    discard: Vec<u64>,
    buffer: Vec<u8>,
}

impl Writer {
    /// Replays the journal and starts a new segment, which seals the last one.
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<(Self, Vec<Pending>), OpenError> {
        let window_ms = u64::try_from(options.dedup_window.as_millis()).unwrap_or(u64::MAX);
        let Recovered {
            state,
            pending,
            last,
            next_number,
            discard,
        } = recover(&*storage, window_ms)?;
        let shared = Shared {
            state: Mutex::new(state),
            counters: Mutex::default(),
            feed: Mutex::default(),
        };
        let mut writer = Self {
            storage,
            shared: Arc::new(shared),
            options,
            active: None,
            last,
            before_last: last,
            next_number,
            discard,
            buffer: Vec::new(),
        };
        match writer.start_segment() {
            Ok(active) => writer.active = Some(active),
            // On a full disk what is pending can still be delivered; the first commit tries again.
            Err(error) if is_full(&error) => tracing::warn!("the journal's disk is full"),
            Err(source) => {
                return Err(OpenError::Io {
                    doing: "start a segment",
                    source,
                });
            }
        }
        Ok((writer, pending))
    }

    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Carries out a group of commands with at most one write and one sync, and answers all of them. Returns the
    /// segments that may be removed now, off the path of a commit.
    pub fn commit(&mut self, commands: Vec<Command>) -> Vec<u64> {
        let mut group = Group::default();
        let mut replies = Vec::with_capacity(commands.len());
        let mut trim = None;
        {
            let mut state = self.shared.state();
            for command in commands {
                replies.push(group.decide(&mut state, &self.options, command));
            }
            if let Some(first_live) = state.trimmable(self.last) {
                let trimmed = state
                    .segment_numbers()
                    .take_while(|number| *number < first_live)
                    .collect();
                trim = Some((first_live, trimmed));
            }
        }
        let mut records: Vec<_> = group.records.iter().map(Staged::record).collect();
        if let Some((first_live, _)) = trim {
            records.push(Record::Trimmed { first_live });
        }
        let result = if records.is_empty() {
            Ok(())
        } else {
            self.write(&records)
        };
        if result.is_ok() {
            self.shared.tell(&group.records);
        }
        for reply in replies {
            reply.send(result.as_ref().err());
        }
        // Not before the record that gives them up is durable, or a missing segment would look like a lost one.
        trim.filter(|_| result.is_ok())
            .map(|(_, trimmed)| trimmed)
            .unwrap_or_default()
    }

    fn write(&mut self, records: &[Record<'_>]) -> Result<(), AppendError> {
        let result = self.try_write(records);
        let mut counters = self.shared.counters();
        match result {
            Ok((places, took)) => {
                counters.commits += 1;
                counters.committed_records += records.len() as u64;
                counters.last_sync = took;
                drop(counters);
                self.shared
                    .state()
                    .apply(self.last.number, places.into_iter().zip(records));
                Ok(())
            }
            Err(error) => {
                counters.failed_commits += 1;
                Err(AppendError::from_io(error))
            }
        }
    }

    fn try_write(&mut self, records: &[Record<'_>]) -> io::Result<(Vec<Place>, Duration)> {
        let active = match self.active.take() {
            Some(active) if !self.segment_is_full() => active,
            _ => self.start_segment()?,
        };
        let newest_ms = self.shared.state().newest_ms();
        let start = self.last.len;
        let places = match encode_frame(&mut self.buffer, active.salt, start, newest_ms, records) {
            Ok(places) => places,
            Err(error) => {
                self.active = Some(active);
                return Err(error);
            }
        };
        let end = start + self.buffer.len() as u64;
        // From here on `active` is gone unless the sync succeeds.
        if let Err(error) = active.file.write_all_at(start, &self.buffer) {
            self.give_up_after_failed_write(&active, end);
            return Err(error);
        }
        let clock = Instant::now();
        if let Err(error) = active.file.sync() {
            tracing::error!(segment = self.last.number, %error, "sync failed; going on in a new segment");
            self.shared.state().set_bytes(self.last.number, end);
            return Err(error);
        }
        let took = clock.elapsed();
        self.last.len = end;
        self.shared.state().set_bytes(self.last.number, end);
        self.active = Some(active);
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        Ok((places, took))
    }

    /// An empty segment takes one frame whatever its limit.
    fn segment_is_full(&self) -> bool {
        self.last.len >= self.options.segment_bytes && self.last.len > SEGMENT_HEADER as u64
    }

    /// A frame whose write failed is incomplete and can never be valid. Its bytes are given back, which on a full
    /// disk is what makes room for settling. A file without any frame leaves the chain, or an hour of a full disk
    /// would leave thousands of empty ones.
    fn give_up_after_failed_write(&mut self, active: &Active, end: u64) {
        let number = self.last.number;
        let left = if active.file.truncate(self.last.len).is_ok() {
            self.last.len
        } else {
            end
        };
        let mut state = self.shared.state();
        if self.last.len == SEGMENT_HEADER as u64 {
            state.drop_segment(number);
            drop(state);
            self.discard.push(number);
            self.last = self.before_last;
        } else {
            state.set_bytes(number, left);
        }
    }

    /// Starts the next segment: its header is synced and its name is in a synced directory before it is used.
    fn start_segment(&mut self) -> io::Result<Active> {
        let number = self.next_number;
        // A number is used for one file only, also when its creation fails: its salt must never come back.
        self.next_number = number.checked_add(1).ok_or(io::ErrorKind::QuotaExceeded)?;
        let salt = Salt {
            number,
            nonce: fastrand::u64(..),
        };
        let header = {
            let state = self.shared.state();
            let (next_seq, newest_ms) = (state.next_seq(), state.newest_ms());
            SegmentHeader {
                salt,
                previous: self.last,
                next_seq,
                newest_ms,
            }
        };
        let file = match self.create(number, &header) {
            Ok(file) => file,
            Err(error) => {
                if self.storage.remove(number).is_err() {
                    self.discard.push(number);
                }
                return Err(error);
            }
        };
        self.before_last = self.last;
        self.last = Link {
            number,
            len: SEGMENT_HEADER as u64,
        };
        self.shared.state().add_segment(salt, self.last.len);
        // Only now: while it was the end of the chain, an empty segment sealed the one before it.
        let storage = &self.storage;
        self.discard.retain(|number| storage.remove(*number).is_err());
        Ok(Active { file, salt })
    }

    fn create(&self, number: u64, header: &SegmentHeader) -> io::Result<Box<dyn SegmentFile>> {
        let file = self.storage.create(number)?;
        file.write_all_at(0, &header.encode())?;
        file.sync()?;
        self.storage.sync_directory()?;
        Ok(file)
    }
}
