//! The writer's thread: gathers commands into groups. Beside it the keeper's, which does what must not stand in the
//! way of a commit.
//!
//! Not for what a commit does (`writer.rs`) or what is kept (`keeper.rs`). Upholds law 4 in small: one sync serves every
//! caller that waits.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver, WeakSender};
use tokio::sync::oneshot;

use super::gather::Gather;
use super::group::Command;
use super::keeper::Keeper;
use super::writer::{Chores, Writer};

/// A group is closed at this many commands or bytes of bodies, so that nobody waits for an endless one.
const GROUP_COMMANDS: usize = 1024;
const GROUP_BYTES: usize = 4 << 20;
/// How long a busy writer without work waits before it says that its last frame was whole: who was answered may be
/// about to ask again, and would find it waiting for the disk.
const BEFORE_MARK: Duration = Duration::from_micros(100);

/// How often the keeper looks whether time alone has changed anything.
const KEEPER_ROUND: Duration = Duration::from_secs(10);

/// What goes through the queue.
pub(super) enum Job {
    Command(Command),
    /// Everything before it is carried out; answered when the thread has let the directory go.
    Close(oneshot::Sender<()>),
}

/// Starts the threads of the writer and the keeper. `held` is dropped at their end: the directory's lock.
pub(super) fn spawn(
    writer: Writer,
    keeper: Keeper,
    queue: Receiver<Job>,
    sender: WeakSender<Job>,
    gather: Duration,
    held: impl Send + 'static,
) -> io::Result<()> {
    let (chores, to_do) = mpsc::channel();
    let keeper = thread::Builder::new()
        .name("journal-keeper".to_owned())
        .spawn(move || keep(keeper, &to_do, &sender))?;
    thread::Builder::new()
        .name("journal-writer".to_owned())
        .spawn(move || {
            let closed = run(writer, queue, gather, &chores);
            drop(chores);
            // It must not touch files of a directory that somebody else has opened.
            let _ = keeper.join();
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
    chores: &mpsc::Sender<Chores>,
) -> Option<oneshot::Sender<()>> {
    let mut last_group = 0;
    loop {
        let job = match next_soon(&mut queue, last_group > 1) {
            Some(job) => job,
            None => {
                writer.mark();
                queue.blocking_recv()?
            }
        };
        let mut group = Filling::default();
        group.push(job);
        group.drain(&mut queue);
        if last_group > 1 {
            let begun = Instant::now();
            let mut plan = Gather::new(gather, last_group);
            while group.is_open()
                && let Some(wait) = plan.next(begun.elapsed(), group.commands.len())
            {
                thread::sleep(wait);
                group.drain(&mut queue);
            }
        }
        last_group = group.commands.len();
        let to_do = writer.commit(group.commands);
        if !to_do.is_empty() {
            let _ = chores.send(to_do);
        }
        if let Some(closed) = group.close {
            writer.mark();
            return Some(closed);
        }
    }
}

/// The next job, if it is there or, with several callers, comes in a moment.
fn next_soon(queue: &mut Receiver<Job>, several: bool) -> Option<Job> {
    let job = queue.try_recv().ok();
    if job.is_some() || !several {
        return job;
    }
    thread::sleep(BEFORE_MARK);
    queue.try_recv().ok()
}

/// Does what is to be done, as it comes up and from time to time. It asks the writer like any caller, but keeps no
/// journal open by that.
fn keep(mut keeper: Keeper, to_do: &mpsc::Receiver<Chores>, sender: &WeakSender<Job>) {
    let mut ask = |command| {
        if let Some(sender) = sender.upgrade() {
            let _ = sender.blocking_send(Job::Command(command));
        }
    };
    // At once: the first segment was started before anything was made ready.
    let mut wait = Duration::ZERO;
    loop {
        let chores = match to_do.recv_timeout(wait) {
            Ok(chores) => chores,
            Err(RecvTimeoutError::Timeout) => {
                ask(Command::Tick);
                Chores::default()
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        wait = KEEPER_ROUND;
        keeper.round(chores, &mut ask);
    }
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
                    self.bytes += entries.iter().map(|entry| entry.content.len()).sum::<usize>();
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
