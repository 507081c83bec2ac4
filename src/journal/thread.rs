//! The writer's thread: gathers commands into groups, and removes old segments beside it.
//!
//! Not for what a commit does (`writer.rs`). Upholds law 4 in small: one sync serves every caller that waits, and
//! removing a 64 MiB file, which takes tens of milliseconds, never stands in the way of a commit.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::group::Command;
use super::storage::Storage;
use super::writer::Writer;

/// A group is closed at this many commands or bytes of bodies, so that nobody waits for an endless one.
const GROUP_COMMANDS: usize = 1024;
const GROUP_BYTES: usize = 4 << 20;
/// The gather ends early with this many: more would not make the sync much cheaper for each.
const GATHER_COMMANDS: usize = 256;
/// The gather sleeps in slices: cheaper than waking for every arrival.
const GATHER_SLICE: Duration = Duration::from_micros(500);

/// What goes through the queue.
pub(super) enum Job {
    Command(Command),
    /// Everything before it is carried out; answered when the thread has let the directory go.
    Close(oneshot::Sender<()>),
}

/// Starts the writer's thread. `held` is dropped at its end: the directory's lock.
pub(super) fn spawn(
    writer: Writer,
    storage: Arc<dyn Storage>,
    queue: Receiver<Job>,
    gather: Duration,
    held: impl Send + 'static,
) -> io::Result<()> {
    let (remover, removals) = Remover::spawn(storage)?;
    thread::Builder::new()
        .name("journal-writer".to_owned())
        .spawn(move || {
            let closed = run(writer, queue, gather, &removals);
            drop(removals);
            // It must not remove files of a directory that somebody else has opened.
            let _ = remover.join();
            drop(held);
            if let Some(closed) = closed {
                let _ = closed.send(());
            }
        })?;
    Ok(())
}

fn run(
    mut writer: Writer,
    mut queue: Receiver<Job>,
    gather: Duration,
    removals: &mpsc::Sender<u64>,
) -> Option<oneshot::Sender<()>> {
    let mut last_group = 0;
    while let Some(job) = queue.blocking_recv() {
        let mut group = Filling::default();
        group.push(job);
        group.drain(&mut queue);
        if last_group > 1 {
            let deadline = Instant::now() + gather;
            while group.is_open() && group.commands.len() < GATHER_COMMANDS {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                thread::sleep(left.min(GATHER_SLICE));
                group.drain(&mut queue);
            }
        }
        last_group = group.commands.len();
        for number in writer.commit(group.commands) {
            let _ = removals.send(number);
        }
        if let Some(closed) = group.close {
            return Some(closed);
        }
    }
    None
}

#[derive(Default)]
struct Filling {
    commands: Vec<Command>,
    bytes: usize,
    close: Option<oneshot::Sender<()>>,
}

impl Filling {
    fn push(&mut self, job: Job) {
        match job {
            Job::Close(reply) => self.close = Some(reply),
            Job::Command(command) => {
                if let Command::Append { entries, .. } = &command {
                    self.bytes += entries.iter().map(|entry| entry.body.len()).sum::<usize>();
                }
                self.commands.push(command);
            }
        }
    }

    fn is_open(&self) -> bool {
        self.close.is_none() && self.commands.len() < GROUP_COMMANDS && self.bytes < GROUP_BYTES
    }

    fn drain(&mut self, queue: &mut Receiver<Job>) {
        while self.is_open() {
            let Ok(job) = queue.try_recv() else { return };
            self.push(job);
        }
    }
}

struct Remover;

impl Remover {
    fn spawn(storage: Arc<dyn Storage>) -> io::Result<(JoinHandle<()>, mpsc::Sender<u64>)> {
        let (sender, numbers) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("journal-remover".to_owned())
            .spawn(move || {
                for number in numbers {
                    if let Err(error) = storage.remove(number) {
                        // The next opening removes it.
                        tracing::warn!(segment = number, %error, "an old segment could not be removed");
                    }
                }
            })?;
        Ok((thread, sender))
    }
}
