//! The one writer: takes a group of commands, decides, writes one frame, syncs once, then answers.
//!
//! Not for threads or queues (`thread.rs` feeds it). Upholds law 1: no caller is answered, and the memory is not
//! changed, before the sync has succeeded; and law 2: the duplicate check (`group.rs`) and the append are one step here.
//!
//! A write or sync that fails is final for its file. The next group starts a new file whose header seals the old
//! one at its last synced byte, so whatever the failed commit left there never counts. Reading the file back or
//! syncing it again proves nothing: the kernel may have dropped the pages and reported the error already.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::clock::ExpiryClock;
use super::erase::{Erased, Erasure, Whose};
use super::format::{
    Accepted, FRAME_OVERHEAD, Link, Part, Place, Record, SEGMENT_HEADER, Salt, SegmentHeader, encode_frame,
};
use super::group::{Answer, Command, Group, Known, Room, Staged};
use super::ids::{self, Frozen, Ids, Listed, Merge, RunStorage};
use super::replay::{Recovered, recover};
use super::state::State;
use super::storage::{SegmentFile, Storage, is_full};
use super::{AppendError, Counters, OpenError, Options, Pending, Seq, Surroundings};

/// A buffer larger than this is given back after the commit that needed it.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// Memory that the writer changes and handles read.
pub(super) struct Shared {
    state: Mutex<State>,
    /// The end of what the files held when they were opened.
    pub found: Link,
    counters: Mutex<Counters>,
    /// The time by which things may expire, as of the last commit, ms.
    expiry_ms: AtomicU64,
    /// How many ids are remembered.
    ids: AtomicU64,
    /// Dead letters whose time was over.
    expired: AtomicU64,
    /// Who is told of each accepted message, in the order of their numbers.
    feed: Mutex<Option<mpsc::UnboundedSender<Pending>>>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something ever does, the state is still the last applied one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn expiry_ms(&self) -> u64 {
        self.expiry_ms.load(Ordering::Relaxed)
    }

    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// A dead letter's time is over.
    pub fn expires(&self) {
        self.expired.fetch_add(1, Ordering::Relaxed);
    }

    pub fn ids(&self) -> u64 {
        self.ids.load(Ordering::Relaxed)
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
            if let Staged::Accepted(encoded) = one
                && !encoded.head.written_again
                && encoded.set_aside.is_none()
            {
                let _ = feed.send(Pending::of(&encoded.head));
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
    /// Where the next frame goes.
    end: u64,
    /// Bytes that the file has.
    allocated: u64,
    /// There is a mark where the next frame goes.
    marked: bool,
}

/// What is to be done off the path of a commit.
#[derive(Default)]
pub(super) struct Chores {
    /// Segments that nobody needs any more.
    pub retire: Vec<u64>,
    /// The segment is half full: the one after it should be made ready.
    pub prepare: bool,
    /// Ids to write to the disk.
    pub seal: Option<Frozen>,
    /// Runs of ids to make one of.
    pub merge: Option<Merge>,
    /// Files of ids that are no longer needed.
    pub forget: Vec<Listed>,
    /// Contacts to take out of the files.
    pub erase: Vec<Erasure>,
}

impl Chores {
    pub fn is_empty(&self) -> bool {
        self.retire.is_empty()
            && !self.prepare
            && self.seal.is_none()
            && self.merge.is_none()
            && self.forget.is_empty()
            && self.erase.is_empty()
    }
}

/// The writer and its files.
pub(super) struct Writer {
    storage: Arc<dyn Storage>,
    shared: Arc<Shared>,
    options: Options,
    surroundings: Surroundings,
    ids: Ids,
    /// A merge of runs is under way.
    merging: bool,
    /// There are other runs than when a merge was looked for.
    adopted: bool,
    clock: ExpiryClock,
    started: Instant,
    /// The file that takes the next frame; none after a failure.
    active: Option<Active>,
    /// The end of the chain: everything up to it is synced.
    last: Link,
    /// What `last` was before the active segment, to fall back to if that one never takes a frame.
    before_last: Link,
    next_number: u64,
    discard: Vec<u64>,
    buffer: Vec<u8>,
    /// The next segment was asked for.
    prepared: bool,
}

impl Writer {
    /// Replays the journal and starts a new segment, which seals the last one.
    pub fn open(
        storage: Arc<dyn Storage>,
        runs: &dyn RunStorage,
        options: Options,
        surroundings: Surroundings,
    ) -> Result<(Self, Vec<Pending>), OpenError> {
        let mut ids = Ids::open(
            runs,
            ids::Options {
                window: options.dedup_window,
                ..ids::Options::default()
            },
        )?;
        let Recovered {
            state,
            pending,
            last,
            next_number,
            discard,
        } = recover(&*storage, &mut ids)?;
        let clock = ExpiryClock::new(state.newest_ms());
        let counters = Counters {
            end: last,
            ..Counters::default()
        };
        let shared = Shared {
            state: Mutex::new(state),
            found: last,
            counters: Mutex::new(counters),
            expiry_ms: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            ids: AtomicU64::new(ids.count()),
            feed: Mutex::default(),
        };
        let mut writer = Self {
            storage,
            shared: Arc::new(shared),
            options,
            surroundings,
            ids,
            merging: false,
            adopted: true,
            clock,
            started: Instant::now(),
            active: None,
            last,
            before_last: last,
            next_number,
            discard,
            buffer: Vec::new(),
            prepared: false,
        };
        // What is over by now goes with the first commit.
        drop(writer.tell_time());
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

    /// Takes the time; says which files of ids are over by it.
    fn tell_time(&mut self) -> Vec<Listed> {
        let held = self.clock.holds();
        let now = self.clock.now((self.surroundings.wall)(), self.started.elapsed());
        if self.clock.holds() && !held {
            tracing::warn!(
                "the clock went forward by over an hour since the last commit: nothing expires for an hour"
            );
        }
        self.shared.expiry_ms.store(now, Ordering::Relaxed);
        let oldest_sent = now.saturating_sub(millis(self.options.sent_retention));
        self.shared
            .state()
            .forget_sent(oldest_sent, self.options.sent_max);
        self.ids
            .forget_before(now.saturating_sub(millis(self.options.dedup_window)))
    }

    /// Carries out a group of commands with at most one write and one sync, and answers all of them. Returns what is
    /// to be done off the path of a commit.
    pub fn commit(&mut self, commands: Vec<Command>) -> Chores {
        let mut group = Group::new(commands.len());
        group.forgotten = self.tell_time();
        let mut replies = Vec::with_capacity(commands.len());
        let mut trimmed = Vec::new();
        {
            let mut state = self.shared.state();
            let mut known = Known {
                state: &mut state,
                ids: &mut self.ids,
                options: &self.options,
                room: Room {
                    at: self.active.as_ref().map(|active| active.end),
                    allocated: self.active.as_ref().map_or(0, |active| active.allocated),
                },
            };
            for command in commands {
                if matches!(command, Command::Adopt(_)) {
                    self.merging = false;
                    self.adopted = true;
                }
                replies.extend(group.decide(&mut known, command));
            }
            if let Some(first_live) = state.trimmable(self.last, self.ids.sealed_through()) {
                let numbers = state.segment_numbers();
                trimmed = numbers.take_while(|number| *number < first_live).collect();
                let still = state.parked().map(|lane| Record::Parked { lane, parked: true });
                group.records.extend(still.map(Staged::Record));
                group.records.push(Staged::Record(Record::Trimmed { first_live }));
            }
        }
        let result = if group.records.is_empty() {
            Ok(())
        } else {
            self.write(&group.records)
        };
        crate::failpoint::at!(JournalSynced);
        if result.is_ok() {
            self.shared.tell(&group.records);
        }
        for reply in replies {
            reply.send(result.as_ref().err());
        }
        let erase = self.begin_erasures(group.erasures);
        let seal = self.freeze();
        Chores {
            forget: group.forgotten,
            erase,
            merge: self.merge(seal.is_some()),
            seal,
            // Not before the record that gives them up is durable, or a missing segment would look like a lost one.
            retire: if result.is_ok() { trimmed } else { Vec::new() },
            prepare: self.prepare(),
        }
    }

    /// What is erased is written anew, file by file: so the file that takes the next frame must be another one.
    fn begin_erasures(&mut self, erasures: Vec<(Whose, Answer<Erased>)>) -> Vec<Erasure> {
        if erasures.is_empty() {
            return Vec::new();
        }
        let begun = match self.active.take() {
            Some(active) if active.end == SEGMENT_HEADER as u64 => Ok(active),
            _ => self.start_segment(),
        };
        match begun {
            Ok(active) => {
                self.active = Some(active);
                let below = self.last.number;
                let of = |(whose, reply)| Erasure { whose, below, reply };
                erasures.into_iter().map(of).collect()
            }
            Err(error) => {
                let error = AppendError::from_io(error);
                for (_, reply) in erasures {
                    let _ = reply.send(Err(error.clone()));
                }
                Vec::new()
            }
        }
    }

    /// Whether the next segment should be made ready: not before this one is half full, so that a bridge with little to
    /// do, or one that is started again and again, does not write files that nobody needs.
    fn prepare(&mut self) -> bool {
        let half = self.options.segment_bytes / 2;
        let due = self.options.preallocate && self.active.as_ref().is_some_and(|active| active.end > half);
        due && !std::mem::replace(&mut self.prepared, true)
    }

    /// The ids in memory, if it is time for them to go to the disk: they are many, an hour is over, or segments are
    /// needed that only they hold.
    fn freeze(&mut self) -> Option<Frozen> {
        let now = self.shared.expiry_ms();
        let due = self.ids.freeze_due(now) || {
            let state = self.shared.state();
            state.nearly_full(self.options.segment_bytes, self.options.max_bytes)
                && state.trimmable(self.last, self.ids.sealed_through())
                    < state.trimmable(self.last, Seq(u64::MAX))
        };
        if due { self.ids.freeze() } else { None }
    }

    /// Runs of ids to make one of, one merge at a time and none while a table is being written.
    fn merge(&mut self, sealing: bool) -> Option<Merge> {
        if self.merging || sealing || self.ids.frozen().is_some() || !self.adopted {
            return None;
        }
        self.adopted = false;
        let merge = self.ids.merge();
        self.merging = merge.is_some();
        merge
    }

    fn write(&mut self, records: &[Staged]) -> Result<(), AppendError> {
        let result = self.try_write(records);
        let mut counters = self.shared.counters();
        match result {
            Ok((places, took)) => {
                counters.commits += 1;
                counters.committed_records += records.len() as u64;
                counters.last_sync = took;
                counters.failing = false;
                counters.end = self.last;
                drop(counters);
                (self.surroundings.on_commit)(records.len(), took);
                self.apply(records, &places);
                Ok(())
            }
            Err(error) => {
                counters.failed_commits += 1;
                counters.failing = true;
                Err(AppendError::from_io(error))
            }
        }
    }

    /// Takes in what is durable now.
    fn apply(&mut self, records: &[Staged], places: &[Place]) {
        let mut state = self.shared.state();
        for (staged, place) in records.iter().zip(places) {
            match staged {
                Staged::Record(record) => state.apply(self.last.number, *place, record),
                Staged::Accepted(encoded) => {
                    let head = encoded.head;
                    let record = Record::Accepted(Accepted {
                        head,
                        trace: "",
                        sealed: &[],
                    });
                    state.apply(self.last.number, *place, &record);
                    if head.is_new() {
                        self.ids
                            .insert(&head.dedup, head.born(), head.accepted_at_ms, head.seq);
                    }
                }
            }
        }
        drop(state);
        self.shared.ids.store(self.ids.count(), Ordering::Relaxed);
    }

    fn try_write(&mut self, records: &[Staged]) -> io::Result<(Vec<Place>, Duration)> {
        let parts: Vec<Part<'_>> = records.iter().map(Staged::part).collect();
        let clock = Instant::now();
        let newest_ms = self.shared.state().newest_ms();
        let active = match self.active.take() {
            Some(active) if self.fits(&active, records) => active,
            _ => self.start_segment()?,
        };
        let places = match encode_frame(&mut self.buffer, active.salt, active.end, newest_ms, &parts) {
            Ok(places) => places,
            Err(error) => {
                self.active = Some(active);
                return Err(error);
            }
        };
        let start = active.end;
        let end = start + self.buffer.len() as u64;
        // From here on `active` is gone unless the sync succeeds.
        crate::failpoint::at!(JournalBeforeWrite);
        if let Err(error) = active.file.write_all_at(start, &self.buffer) {
            self.give_up_after_failed_write(&active, end);
            return Err(error);
        }
        crate::failpoint::at!(JournalWritten);
        if let Err(error) = active.file.sync() {
            tracing::error!(segment = self.last.number, %error, "sync failed; going on in a new segment");
            self.shared
                .state()
                .set_bytes(self.last.number, end.max(active.allocated));
            return Err(error);
        }
        let took = clock.elapsed();
        self.last.len = end;
        let allocated = end.max(active.allocated);
        self.shared.state().set_bytes(self.last.number, allocated);
        self.active = Some(Active {
            end,
            allocated,
            marked: false,
            ..active
        });
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        Ok((places, took))
    }

    /// Says behind the last frame, if nobody waits, that it was whole: without this, damage to the newest frame looks
    /// like a write that was cut off by a crash. Not synced, for it is no promise, and the next frame takes its place: a
    /// mark that is lost in front of a frame that is not would look like damage.
    pub fn mark(&mut self) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        if active.marked || active.end == SEGMENT_HEADER as u64 {
            return;
        }
        let newest_ms = self.shared.state().newest_ms();
        let marked = encode_frame(&mut self.buffer, active.salt, active.end, newest_ms, &[])
            .and_then(|_| active.file.write_all_at(active.end, &self.buffer));
        match marked {
            Ok(()) => active.marked = true,
            // The next commit goes to another file, where nothing half-written is in its way.
            Err(_) => self.active = None,
        }
    }

    /// Whether a frame goes into the active segment: an empty one takes any.
    fn fits(&self, active: &Active, records: &[Staged]) -> bool {
        let bytes: u64 = records.iter().map(Staged::len).sum();
        active.end + bytes + FRAME_OVERHEAD <= self.options.segment_bytes
            || active.end == SEGMENT_HEADER as u64
    }

    /// A frame whose write failed never counts. Its bytes are given back, which on a full disk is what makes room for
    /// settling. A file without any frame leaves the chain, or an hour of a full disk would leave thousands of empty
    /// ones; but only if none is in it for certain: of a write that failed the whole frame may be there, if what is
    /// missing are its zeros at the end.
    fn give_up_after_failed_write(&mut self, active: &Active, end: u64) {
        let number = self.last.number;
        let is_cut = active.file.truncate(self.last.len).is_ok();
        let left = if is_cut {
            self.last.len
        } else {
            end.max(active.allocated)
        };
        let mut state = self.shared.state();
        if is_cut && self.last.len == SEGMENT_HEADER as u64 {
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
        let (file, allocated) = match self.create(number, &header) {
            Ok(created) => created,
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
        self.prepared = false;
        let allocated = allocated.max(self.last.len);
        self.shared.state().add_segment(salt, allocated);
        // Only now: while it was the end of the chain, an empty segment sealed the one before it.
        let storage = &self.storage;
        self.discard.retain(|number| storage.remove(*number).is_err());
        Ok(Active {
            file,
            salt,
            end: self.last.len,
            allocated,
            marked: false,
        })
    }

    fn create(&self, number: u64, header: &SegmentHeader) -> io::Result<(Box<dyn SegmentFile>, u64)> {
        let (file, allocated) = self.storage.create(number)?;
        file.write_all_at(0, &header.encode())?;
        file.sync()?;
        self.storage.sync_directory()?;
        Ok((file, allocated))
    }
}

/// A duration in milliseconds, at most `u64::MAX`.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
