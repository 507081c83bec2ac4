//! Runs the lanes: starts the attempts they name, records how messages end, wakes them when time is up.
//!
//! Thin on purpose: what may happen when is decided in `lanes`.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    key::{ContactKey, LaneKey},
    lanes::{Attempt, Effect, Ended, Item, Lanes, Limits},
};
use crate::{
    api::ChannelId,
    journal::{Entry, Journal, Outcome, Pending, ReadError},
};

/// Delivers one message, once.
pub trait Deliver: Send + Sync + 'static {
    /// What a contact is known by in the lanes.
    fn contact_key(&self, contact: &str) -> ContactKey;
    /// Makes one attempt. It must end within a bounded time.
    fn attempt(&self, entry: Entry, number: u32) -> impl Future<Output = Ended> + Send;
    /// Is told how a message ended, after that is on disk: for logs and metrics.
    fn settled(&self, item: &Item, outcome: &Outcome);
}

/// How to tell the runner what happened.
#[derive(Clone)]
pub struct RunnerHandle {
    news: mpsc::UnboundedSender<News>,
}

enum News {
    /// A channel's route or credentials changed.
    Poke(ChannelId),
    /// A channel may send so many messages a second.
    Pace(ChannelId, u32),
}

/// The task that delivers.
pub struct Runner<D> {
    journal: Journal,
    deliver: Arc<D>,
    lanes: Lanes,
    accepted: mpsc::UnboundedReceiver<Pending>,
    news: mpsc::UnboundedReceiver<News>,
    tasks: JoinSet<Done>,
    start: Instant,
}

enum Done {
    Ended(Item, Ended),
    Settled(Item),
}

/// How long to wait before a record that failed is written again.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

impl RunnerHandle {
    /// A channel's route or credentials changed: what waits for them is tried now.
    pub fn poke(&self, channel: ChannelId) {
        let _ = self.news.send(News::Poke(channel));
    }

    /// A channel may send so many messages a second to Kernel.
    pub fn pace(&self, channel: ChannelId, per_second: u32) {
        let _ = self.news.send(News::Pace(channel, per_second));
    }
}

impl<D: Deliver> Runner<D> {
    /// A runner that begins with what the journal still holds and goes on with what it commits. The feed comes from
    /// the journal's one writer, so a conversation's messages come in the order they were accepted.
    pub fn new(
        journal: Journal,
        deliver: Arc<D>,
        limits: Limits,
        pending: Vec<Pending>,
        accepted: mpsc::UnboundedReceiver<Pending>,
    ) -> (Self, RunnerHandle) {
        let (sender, news) = mpsc::unbounded_channel();
        let mut lanes = Lanes::new(limits);
        pending
            .into_iter()
            .for_each(|pending| lanes.accepted(item(&*deliver, &pending)));
        let runner = Self {
            journal,
            deliver,
            lanes,
            accepted,
            news,
            tasks: JoinSet::new(),
            start: Instant::now(),
        };
        (runner, RunnerHandle { news: sender })
    }

    /// Delivers until told to stop; then lets what is under way end, at most for `grace`.
    pub async fn run(mut self, stop: CancellationToken, grace: Duration) {
        loop {
            while let Some(effect) = self.lanes.next(self.start.elapsed()) {
                self.start_effect(effect);
            }
            let wake = self.lanes.next_wake().map(|at| self.start + at);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(pending) = self.accepted.recv() => self.lanes.accepted(item(&*self.deliver, &pending)),
                Some(news) = self.news.recv() => match news {
                    News::Poke(channel) => self.lanes.poke(channel),
                    News::Pace(channel, per_second) => self.lanes.pace(channel, per_second),
                },
                Some(done) = self.tasks.join_next() => self.take_done(done),
                () = sleep_until(wake) => {}
            }
        }
        let drained = tokio::time::timeout(grace, async {
            while let Some(done) = self.tasks.join_next().await {
                self.take_done(done);
            }
        });
        if drained.await.is_err() {
            tracing::warn!(
                under_way = self.tasks.len(),
                "stopped with deliveries under way: they are tried again"
            );
        }
    }

    fn take_done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Ended(item, ended)) => {
                let now = self.start.elapsed();
                if let Some(effect) = self.lanes.ended(&item, ended, now, fastrand::f64()) {
                    self.start_effect(effect);
                }
            }
            Ok(Done::Settled(item)) => self.lanes.settled(&item),
            // Tasks catch their panics, and nobody aborts them.
            Err(error) => tracing::error!(%error, "a delivery task was lost; its lane waits for a restart"),
        }
    }

    fn start_effect(&mut self, effect: Effect) {
        let (journal, deliver) = (self.journal.clone(), self.deliver.clone());
        match effect {
            Effect::Attempt(Attempt { item, number }) => {
                self.tasks.spawn(async move {
                    let ended = match journal.read(item.seq).await {
                        Ok(entry) => AssertUnwindSafe(deliver.attempt(entry, number))
                            .catch_unwind()
                            .await
                            .unwrap_or(Ended::Retry { after: None }),
                        Err(error) => unreadable(&item, &error),
                    };
                    Done::Ended(item, ended)
                });
            }
            Effect::Settle(item, outcome) => {
                self.tasks.spawn(async move {
                    while let Err(error) = journal.settle(item.seq, outcome.clone()).await {
                        tracing::error!(%error, seq = item.seq.0, "can't record how a message ended; trying again");
                        tokio::time::sleep(RECORD_AGAIN).await;
                    }
                    deliver.settled(&item, &outcome);
                    Done::Settled(item)
                });
            }
        }
    }
}

fn item(deliver: &impl Deliver, pending: &Pending) -> Item {
    Item {
        seq: pending.seq,
        lane: LaneKey {
            direction: pending.direction,
            channel: ChannelId::from_bytes(pending.channel),
            contact: deliver.contact_key(&pending.contact),
        },
    }
}

fn unreadable(item: &Item, error: &ReadError) -> Ended {
    tracing::error!(%error, seq = item.seq.0, "can't read a message back from the journal");
    match error {
        ReadError::Damaged { .. } | ReadError::NotPending(_) => Ended::Fatal {
            reason: "JournalDamaged",
        },
        ReadError::Io(_) => Ended::Retry { after: None },
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
