//! Tests of the journal: its bytes, its behaviour, crashes, damage. Builders they share are here.

mod behaviour;
mod bytes;
mod crash;
mod damage;
mod disk;
mod erase;
mod faults;
mod golden;
mod sealing;
mod spares;
mod standing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::bytes::Bytes;
use tokio::sync::oneshot;

pub(super) use self::disk::Disk;
use super::group::Command;
use super::keeper::Keeper;
pub(super) use super::memory::Runs;
use super::seal::Encoded;
use super::writer::{Chores, Writer};
use super::{
    Address, AppendError, Appended, ContactKey, DedupKey, Direction, Entry, Journal, NewEntry, Note,
    OpenError, Options, Origin, Outcome, Pending, ReadError, Reference, RequestId, Seq, Surroundings, fits,
    read,
};

const HOUR_MS: u64 = 3_600_000;
/// When the tests begin: an hour, and not its first moment.
const START_MS: u64 = 480_000 * HOUR_MS + 1_000;

/// A message that differs from all others by its number, id and body included.
pub(super) fn entry(number: u64) -> NewEntry {
    NewEntry {
        address: Address {
            direction: if number.is_multiple_of(2) {
                Direction::ToAura
            } else {
                Direction::ToKernel
            },
            channel: [3; 16],
            environment: [4; 8],
            tag: [5; 6],
            contact: ContactKey([u8::try_from(number % 200).unwrap(); 16]),
        },
        contact: format!("contact-{number}"),
        dedup: DedupKey(fastrand::Rng::with_seed(number).u128(..).to_le_bytes()),
        born_ms: Some(START_MS),
        accepted_at_ms: START_MS,
        request: Some(RequestId([6; 16])),
        trace: format!("trace-{number}"),
        body: Bytes::from(format!("body {number}")),
        origin: Origin::Peer,
        set_aside: None,
    }
}

impl NewEntry {
    fn at(mut self, ms: u64) -> Self {
        self.accepted_at_ms = ms;
        self
    }

    fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

fn encoded(entries: impl IntoIterator<Item = NewEntry>) -> Vec<Encoded> {
    let entries = entries.into_iter();
    entries.map(|entry| Encoded::new(&entry, None).unwrap()).collect()
}

pub(super) fn delivered() -> Outcome {
    Outcome::Delivered { reference: None }
}

pub(super) fn dead(reason: &str) -> Outcome {
    Outcome::DeadLetter {
        reason: reason.to_owned(),
    }
}

/// A wall clock that a test sets.
#[derive(Clone)]
pub(super) struct Wall(Arc<AtomicU64>);

impl Default for Wall {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(START_MS)))
    }
}

impl Wall {
    fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn surroundings(&self) -> Surroundings {
        let wall = self.clone();
        Surroundings {
            wall: Arc::new(move || wall.now()),
            ..Surroundings::default()
        }
    }
}

/// A journal without threads: what a test does happens at once and in order.
pub(super) struct Bench {
    pub writer: Writer,
    keeper: Keeper,
    pub disk: Disk,
    runs: Runs,
    wall: Wall,
    options: Options,
}

impl Bench {
    pub fn open(disk: &Disk, options: &Options) -> Result<(Self, Vec<Pending>), OpenError> {
        Self::open_with(disk, &Runs::default(), options, &Wall::default())
    }

    pub fn open_with(
        disk: &Disk,
        runs: &Runs,
        options: &Options,
        wall: &Wall,
    ) -> Result<(Self, Vec<Pending>), OpenError> {
        let (writer, pending) =
            Writer::open(Arc::new(disk.clone()), runs, options.clone(), wall.surroundings())?;
        let keeper = Keeper {
            storage: Arc::new(disk.clone()),
            shared: writer.shared(),
            runs: Arc::new(runs.clone()),
            keyring: None,
            options: options.clone(),
            rounds: 0,
            sealing: None,
            merging: None,
        };
        let bench = Self {
            writer,
            keeper,
            disk: disk.clone(),
            runs: runs.clone(),
            wall: wall.clone(),
            options: options.clone(),
        };
        Ok((bench, pending))
    }

    pub fn new(options: &Options) -> Self {
        Self::open(&Disk::default(), options).unwrap().0
    }

    /// As a new process finds it.
    fn reopen(self) -> Result<(Self, Vec<Pending>), OpenError> {
        Self::open_with(&self.disk, &self.runs, &self.options, &self.wall)
    }

    /// Commits, and does what is to be done then.
    fn commit(&mut self, commands: Vec<Command>) {
        let chores = self.writer.commit(commands);
        if !chores.is_empty() {
            self.round(chores);
        }
    }

    /// What the keeper does from time to time.
    fn keep(&mut self) {
        let chores = self.writer.commit(vec![Command::Tick]);
        self.round(chores);
    }

    fn round(&mut self, chores: Chores) {
        let writer = &mut self.writer;
        let mut more = vec![chores];
        while let Some(chores) = more.pop() {
            self.keeper.round(chores, &mut |command| {
                let chores = writer.commit(vec![command]);
                if !chores.is_empty() {
                    more.push(chores);
                }
            });
        }
    }

    pub fn append(&mut self, entries: Vec<NewEntry>) -> Result<Vec<Appended>, AppendError> {
        fits(&entries, &self.options)?;
        let newest = entries.iter().map(|entry| entry.accepted_at_ms).max();
        self.wall.set(self.wall.now().max(newest.unwrap_or_default()));
        self.append_encoded(encoded(entries))
    }

    /// Sends a dead letter on its way again, as this message.
    pub fn replay(&mut self, dead: Seq, entry: NewEntry) -> Result<Vec<Appended>, AppendError> {
        let mut entries = encoded(vec![entry]);
        entries[0].replaces = Some(dead);
        self.append_encoded(entries)
    }

    fn append_encoded(&mut self, entries: Vec<Encoded>) -> Result<Vec<Appended>, AppendError> {
        let (reply, mut answer) = oneshot::channel();
        self.commit(vec![Command::Append { entries, reply }]);
        answer.try_recv().expect("every command is answered")
    }

    pub fn settle(&mut self, seq: Seq) -> Result<(), AppendError> {
        self.settle_as(seq, delivered())
    }

    pub fn settle_as(&mut self, seq: Seq, outcome: Outcome) -> Result<(), AppendError> {
        let (reply, mut answer) = oneshot::channel();
        let at_ms = self.wall.now();
        self.commit(vec![Command::Settle {
            seq,
            outcome,
            at_ms,
            reply,
        }]);
        answer.try_recv().expect("every command is answered")
    }

    fn note(&mut self, seq: Seq, note: Note) -> Result<(), AppendError> {
        let (reply, mut answer) = oneshot::channel();
        self.commit(vec![Command::Note {
            seq,
            note,
            part: None,
            reply,
        }]);
        answer.try_recv().expect("every command is answered")
    }

    fn note_part(
        &mut self,
        seq: Seq,
        note: Note,
        part: u16,
        reference: Reference,
    ) -> Result<(), AppendError> {
        let (reply, mut answer) = oneshot::channel();
        self.commit(vec![Command::Note {
            seq,
            note,
            part: Some((part, reference)),
            reply,
        }]);
        answer.try_recv().expect("every command is answered")
    }

    pub fn read(&self, seq: Seq) -> Result<Entry, ReadError> {
        read(&self.writer.shared(), &self.disk, None, seq).map(|(_, _, entry)| entry)
    }
}

pub(super) fn seqs(pending: &[Pending]) -> Vec<u64> {
    pending.iter().map(|message| message.seq.0).collect()
}

fn open_threaded(disk: &Disk, options: Options) -> (Journal, Vec<Pending>) {
    let runs = Arc::new(Runs::default());
    Journal::open_on(Arc::new(disk.clone()), runs, options, Surroundings::default(), ()).unwrap()
}

/// Room for everything, and no file larger than what is in it.
pub(super) fn roomy() -> Options {
    Options {
        preallocate: false,
        channel_share: 100,
        environment_share: 100,
        ..Options::default()
    }
}

pub(super) fn small_segments() -> Options {
    Options {
        segment_bytes: 600,
        ..roomy()
    }
}

/// Ids are remembered for so many hours.
fn window(hours: u64) -> Options {
    Options {
        dedup_window: Duration::from_secs(3600 * hours),
        ..small_segments()
    }
}
