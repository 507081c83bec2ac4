//! Tests of the journal: its bytes, its behaviour, crashes, damage. Builders they share are here.

mod behaviour;
mod bytes;
mod crash;
mod damage;
mod disk;
mod faults;

use std::sync::Arc;
use std::time::Duration;

use ::bytes::Bytes;
use tokio::sync::oneshot;

use self::disk::Disk;
use super::group::Command;
use super::storage::Storage;
use super::writer::Writer;
use super::{
    AppendError, Appended, DedupKey, Direction, Entry, Journal, NewEntry, OpenError, Options, Outcome,
    Pending, ReadError, Seq, read,
};

/// A message that differs from all others by its number, id and body included.
fn entry(number: u64) -> NewEntry {
    let mut dedup = [7; 16];
    dedup[..8].copy_from_slice(&number.to_le_bytes());
    NewEntry {
        direction: if number.is_multiple_of(2) {
            Direction::ToAura
        } else {
            Direction::ToKernel
        },
        channel: [3; 16],
        contact: format!("contact-{number}"),
        dedup: DedupKey(dedup),
        accepted_at_ms: 1_000,
        body: Bytes::from(format!("body {number}")),
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

fn delivered() -> Outcome {
    Outcome::Delivered { reference: None }
}

/// A journal without thread: what a test does happens at once and in order.
struct Bench {
    writer: Writer,
    disk: Disk,
}

impl Bench {
    fn open(disk: &Disk, options: &Options) -> Result<(Self, Vec<Pending>), OpenError> {
        let (writer, pending) = Writer::open(Arc::new(disk.clone()), options.clone())?;
        Ok((
            Self {
                writer,
                disk: disk.clone(),
            },
            pending,
        ))
    }

    fn new(options: &Options) -> Self {
        Self::open(&Disk::default(), options).unwrap().0
    }

    fn commit(&mut self, commands: Vec<Command>) {
        for number in self.writer.commit(commands) {
            let _ = self.disk.remove(number);
        }
    }

    fn append(&mut self, entries: Vec<NewEntry>) -> Result<Vec<Appended>, AppendError> {
        let (reply, mut answer) = oneshot::channel();
        self.commit(vec![Command::Append { entries, reply }]);
        answer.try_recv().expect("every command is answered")
    }

    fn settle(&mut self, seq: Seq) -> Result<(), AppendError> {
        let (reply, mut answer) = oneshot::channel();
        self.commit(vec![Command::Settle {
            seq,
            outcome: delivered(),
            reply,
        }]);
        answer.try_recv().expect("every command is answered")
    }

    fn read(&self, seq: Seq) -> Result<Entry, ReadError> {
        read(&self.writer.shared(), &self.disk, seq)
    }
}

fn seqs(pending: &[Pending]) -> Vec<u64> {
    pending.iter().map(|message| message.seq.0).collect()
}

fn open_threaded(disk: &Disk, options: Options) -> (Journal, Vec<Pending>) {
    Journal::open_on(Arc::new(disk.clone()), options, ()).unwrap()
}

fn small_segments() -> Options {
    Options {
        segment_bytes: 600,
        ..Options::default()
    }
}

fn window(ms: u64) -> Options {
    Options {
        dedup_window: Duration::from_millis(ms),
        ..small_segments()
    }
}
