//! Runs the lanes: starts the attempts they name, records how messages end, wakes them when time is up.
//!
//! Thin on purpose: what may happen when is decided in `lanes`.

use std::{
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    ends::dropped,
    key::LaneKey,
    lanes::Lanes,
    people::Dropped,
    reports::Reports,
    standing::Standing,
    types::{
        Attempt, Attempted, Effect, Ended, Event, Failure, Item, Limits, Message, Place, RecordFirst, Report,
        Settings, Stats,
    },
    withheld::{OfChannel, Withheld},
};
use crate::{
    api::ChannelId,
    journal::{AppendError, Entry, Lane, Log, Note, Origin, Outcome, Pending, ReadError, Seq},
};

/// Delivers one message, once.
pub trait Deliver: Send + Sync + 'static {
    /// Makes one attempt. It must end within a bounded time.
    fn attempt(&self, entry: Entry, attempt: Attempt) -> impl Future<Output = Attempted> + Send;
    /// Looks at a status of WhatsApp's on a message of ours, and says where it goes. It must end within a bounded time,
    /// and may be asked again.
    fn place(&self, report: Pending) -> impl Future<Output = Place> + Send;
    /// Is told how a message ended, after that is on disk: for logs and metrics.
    fn settled(&self, item: &Item, outcome: &Outcome);
    /// Is told what people may want to know.
    fn told(&self, event: &Event);
    /// Is told how the lanes are, whenever that may have changed.
    fn shows(&self, stats: Stats);
}

/// How to tell the runner what happened, and what people ask.
#[derive(Clone)]
pub struct RunnerHandle {
    news: mpsc::UnboundedSender<News>,
}

enum News {
    Serves(ChannelId, Arc<Settings>),
    Unroutable(ChannelId),
    Deleted(ChannelId),
    Listed,
    Park(LaneKey, oneshot::Sender<bool>),
    Unpark(LaneKey, oneshot::Sender<bool>),
    Retry(LaneKey, oneshot::Sender<bool>),
    Drop(Seq, oneshot::Sender<Dropped>),
    Judged(bool),
    Release(OfChannel, oneshot::Sender<Vec<Seq>>),
    GiveUp(OfChannel, oneshot::Sender<Vec<Seq>>),
    Standing(oneshot::Sender<Standing>),
}

/// The task that delivers.
pub struct Runner<D, L> {
    journal: L,
    deliver: Arc<D>,
    lanes: Lanes,
    reports: Reports<D, L>,
    withheld: Withheld,
    accepted: mpsc::UnboundedReceiver<Pending>,
    news: mpsc::UnboundedReceiver<News>,
    tasks: JoinSet<Done>,
    /// Messages of which something is being written down, and the attempt that waits for that.
    noting: HashMap<Seq, Option<Attempt>>,
    start: Instant,
}

enum Done {
    Ended(Item, Attempted),
    /// How a message ended is on disk.
    Settled(Item, Outcome),
    /// The same for one that was in no lane.
    SettledAside,
    /// Something of this message was written down, or could not be.
    Noted(Seq),
}

/// Messages that are given up at once: each end is a task until it is recorded.
const GIVEN_UP_AT_ONCE: usize = 1000;
/// How long to wait before a record that failed is written again.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

impl RunnerHandle {
    /// A channel is served, and this holds for it: what waits for a change of it is tried now.
    pub fn serves(&self, channel: ChannelId, settings: impl Into<Arc<Settings>>) {
        let _ = self.news.send(News::Serves(channel, settings.into()));
    }

    /// A channel's resource is there, and has no route now: its messages wait.
    pub fn unroutable(&self, channel: ChannelId) {
        let _ = self.news.send(News::Unroutable(channel));
    }

    /// A channel's resource was deleted: it delivers for [`DRAIN`](super::DRAIN) what it can.
    pub fn deleted(&self, channel: ChannelId) {
        let _ = self.news.send(News::Deleted(channel));
    }

    /// All channels that there are have been told of.
    pub fn listed(&self) {
        let _ = self.news.send(News::Listed);
    }

    /// A person holds a conversation's direction. Says whether it was not held; `None`: the delivery has ended.
    pub async fn park(&self, lane: LaneKey) -> Option<bool> {
        self.ask(|answer| News::Park(lane, answer)).await
    }

    /// A person lets it go on. Says whether it was held.
    pub async fn unpark(&self, lane: LaneKey) -> Option<bool> {
        self.ask(|answer| News::Unpark(lane, answer)).await
    }

    /// A person has a lane's next message tried now. Says whether one waited for its retry.
    pub async fn retry_now(&self, lane: LaneKey) -> Option<bool> {
        self.ask(|answer| News::Retry(lane, answer)).await
    }

    /// A person gives a message up.
    pub async fn drop_message(&self, seq: Seq) -> Option<Dropped> {
        self.ask(|answer| News::Drop(seq, answer)).await
    }

    /// Whether what the journal held when it was opened may be delivered: it is the cluster's journal, or not.
    pub fn judged(&self, is_trusted: bool) {
        let _ = self.news.send(News::Judged(is_trusted));
    }

    /// A person lets withheld messages go on; if all, also those that wait for the judgement. Says which.
    pub async fn release(&self, of: OfChannel) -> Option<Vec<Seq>> {
        self.ask(|answer| News::Release(of, answer)).await
    }

    /// A person gives messages up that a judged journal withholds: as many at once as may be. Says which.
    pub async fn give_up(&self, of: OfChannel) -> Option<Vec<Seq>> {
        self.ask(|answer| News::GiveUp(of, answer)).await
    }

    /// What of each channel is not as usual.
    pub async fn standing(&self) -> Option<Standing> {
        self.ask(News::Standing).await
    }

    async fn ask<T>(&self, news: impl FnOnce(oneshot::Sender<T>) -> News) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.news.send(news(answer)).ok()?;
        answered.await.ok()
    }
}

impl<D: Deliver, L: Log> Runner<D, L> {
    /// A runner of what the journal commits. The feed comes from the journal's one writer, so a conversation's messages
    /// come in the order they were accepted. What the journal held before is for [`Runner::withholding`].
    pub fn new(
        journal: L,
        deliver: Arc<D>,
        limits: Limits,
        accepted: mpsc::UnboundedReceiver<Pending>,
    ) -> (Self, RunnerHandle) {
        let (sender, news) = mpsc::unbounded_channel();
        let mut lanes = Lanes::new(limits, wall_ms());
        for lane in journal.parked() {
            lanes.was_parked(lane.into(), Duration::ZERO);
        }
        let reports = Reports::new(journal.clone(), deliver.clone());
        let runner = Self {
            journal,
            deliver,
            lanes,
            reports,
            withheld: Withheld::default(),
            accepted,
            news,
            tasks: JoinSet::new(),
            noting: HashMap::new(),
            start: Instant::now(),
        };
        (runner, RunnerHandle { news: sender })
    }

    /// Has what the journal held when it was opened wait until the journal is judged; those of `is_held` for a person, as a
    /// run before has judged.
    #[must_use]
    pub fn withholding(mut self, pending: Vec<Pending>, is_held: impl Fn(&Pending) -> bool) -> Self {
        self.withheld = Withheld::new(pending, is_held);
        self
    }

    /// Delivers until told to stop; then lets what is under way end, at most for `grace`.
    pub async fn run(mut self, stop: CancellationToken, grace: Duration) {
        loop {
            while let Some(effect) = self.lanes.next(self.start.elapsed()) {
                self.start_effect(effect);
            }
            self.reports.wake(self.start.elapsed());
            let stats = self.lanes.stats();
            self.deliver.shows(Stats {
                queued: stats.queued + self.withheld.len(),
                withheld: self.withheld.len(),
                ..stats
            });
            let wakes = [self.lanes.next_wake(), self.reports.next_wake()];
            let wake = wakes.into_iter().flatten().min().map(|at| self.start + at);
            tokio::select! {
                // What holds deliveries is heard before a message that came after it.
                biased;
                () = stop.cancelled() => break,
                Some(news) = self.news.recv() => self.hear(news),
                Some(pending) = self.accepted.recv() => {
                    if !self.withheld.takes(&pending) {
                        self.take_in(pending, false, self.start.elapsed());
                    }
                }
                Some(done) = self.tasks.join_next() => self.take_done(done),
                (report, place) = self.reports.next() => self.put(report, place),
                () = sleep_until(wake) => {}
            }
        }
        // Nothing new begins; what ended is recorded.
        self.noting.clear();
        let drained = tokio::time::timeout(grace, async {
            while let Some(done) = self.tasks.join_next().await {
                self.take_done(done);
                while let Some(effect) = self.lanes.next(self.start.elapsed()) {
                    if !matches!(effect, Effect::Attempt(_)) {
                        self.start_effect(effect);
                    }
                }
            }
        });
        if drained.await.is_err() {
            tracing::warn!(
                under_way = self.tasks.len(),
                "stopped with deliveries under way: they are tried again"
            );
        }
    }

    fn hear(&mut self, news: News) {
        let now = self.start.elapsed();
        match news {
            News::Serves(channel, settings) => self.lanes.serves(channel, settings, now),
            News::Unroutable(channel) => self.lanes.unroutable(channel, now),
            News::Deleted(channel) => self.lanes.deleted(channel, now),
            News::Listed => self.lanes.listed(now),
            // Who asked may have stopped waiting.
            News::Park(lane, answer) => drop(answer.send(self.lanes.park(lane, now))),
            News::Unpark(lane, answer) => drop(answer.send(self.lanes.unpark(lane, now))),
            News::Retry(lane, answer) => drop(answer.send(self.lanes.retry_now(lane, now))),
            News::Drop(seq, answer) => {
                let dropped = match self.withheld.take_one(seq) {
                    Some(pending) => {
                        self.give_up(&pending, now);
                        Dropped::Now
                    }
                    None => match self.lanes.drop_message(seq, now) {
                        Dropped::NotFound => self.drop_report(seq),
                        found => found,
                    },
                };
                let _ = answer.send(dropped);
            }
            News::Judged(is_trusted) => {
                let go_on = if is_trusted {
                    self.withheld.trusted()
                } else {
                    self.withheld.distrusted()
                };
                self.go_on(&go_on, now);
            }
            News::Release(of, answer) => {
                let go_on = self.withheld.release(of);
                self.go_on(&go_on, now);
                drop(answer.send(seqs(&go_on)));
            }
            News::GiveUp(of, answer) => {
                let room = GIVEN_UP_AT_ONCE.saturating_sub(self.lanes.aside);
                let given_up = self.withheld.take(of, room);
                given_up.iter().for_each(|pending| self.give_up(pending, now));
                drop(answer.send(seqs(&given_up)));
            }
            News::Standing(answer) => drop(answer.send(Standing {
                withheld: self.withheld.held(),
                unjudged: self.withheld.unjudged(),
                ..self.lanes.standing(now)
            })),
        }
    }

    /// Messages that were withheld are tried as if the process had just started.
    fn go_on(&mut self, messages: &[Pending], now: Duration) {
        for pending in messages {
            self.take_in(*pending, true, now);
        }
    }

    /// A message goes to its lane, a status to where it is looked at.
    fn take_in(&mut self, pending: Pending, left_over: bool, now: Duration) {
        if let Some(pending) = self.reports.accepted(pending, left_over) {
            self.lanes.accepted(message(&pending, left_over), now);
        }
    }

    fn give_up(&mut self, pending: &Pending, now: Duration) {
        self.lanes.at(now);
        self.lanes
            .settle_aside(pending.seq, LaneKey::of(&pending.address), dropped());
    }

    fn take_done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let now = self.start.elapsed();
        match done {
            Ok(Done::Ended(item, attempted)) => {
                self.lanes.took(item, attempted.calls, now);
                self.lanes.ended(item, attempted.ended, now, fastrand::f64());
            }
            Ok(Done::Settled(item, outcome)) => {
                self.lanes.settled(item, now);
                if let Outcome::Delivered { reference: Some(_) } = outcome {
                    self.reports.sent(item.seq);
                }
            }
            Ok(Done::Noted(seq)) => {
                if let Some(Some(attempt)) = self.noting.remove(&seq) {
                    self.attempt(attempt);
                }
            }
            Ok(Done::SettledAside) => {}
            // Tasks catch their panics, and nobody aborts them.
            Err(error) => tracing::error!(%error, "a delivery task was lost; its lane waits for a restart"),
        }
    }

    fn start_effect(&mut self, effect: Effect) {
        let (journal, deliver) = (self.journal.clone(), self.deliver.clone());
        match effect {
            Effect::Attempt(attempt) => self.attempt(attempt),
            Effect::Note(item, attempts, unknown) => {
                let known = journal.noted(item.seq);
                let note = Note {
                    attempts,
                    unknown,
                    ..known
                };
                if note != known {
                    self.noting.insert(item.seq, None);
                    self.writes(item.seq, async move { journal.note(item.seq, note).await });
                }
            }
            Effect::Settle(item, outcome) => {
                let settled = self.settle(item, outcome.clone());
                self.tasks.spawn(async move {
                    settled.await;
                    Done::Settled(item, outcome)
                });
            }
            Effect::Tell(event) => {
                let parked = match &event {
                    Event::Parked(lane) => Some((Lane::from(*lane), true)),
                    Event::Unparked(lane) => Some((Lane::from(*lane), false)),
                    _ => None,
                };
                if let Some((lane, parked)) = parked {
                    self.writes(Seq(0), async move { journal.park(lane, parked).await });
                }
                deliver.told(&event);
            }
        }
    }

    /// Makes an attempt; after what is known of the one before is written down, where this one must record something first.
    fn attempt(&mut self, attempt: Attempt) {
        if attempt.record != RecordFirst::default()
            && let Some(waits) = self.noting.get_mut(&attempt.item.seq)
        {
            *waits = Some(attempt);
            return;
        }
        let (journal, deliver) = (self.journal.clone(), self.deliver.clone());
        let item = attempt.item;
        self.tasks.spawn(async move {
            if let Err(error) = record_first(&journal, &attempt).await {
                tracing::warn!(%error, seq = item.seq.0, "can't record that a message is being tried");
                // What may have arrived must not look as if nobody had tried.
                if attempt.record.unknown {
                    return Done::Ended(item, failing().into());
                }
            }
            let attempted = match journal.read(item.seq).await {
                // One that panics may have sent it.
                Ok(entry) => AssertUnwindSafe(deliver.attempt(entry, attempt))
                    .catch_unwind()
                    .await
                    .unwrap_or(Ended::Unknown.into()),
                Err(error) => unreadable(&item, &error).into(),
            };
            Done::Ended(item, attempted)
        });
    }

    /// Records how a message ended, and says so.
    fn settle(&self, item: Item, outcome: Outcome) -> impl Future<Output = ()> + Send + 'static {
        let (journal, deliver) = (self.journal.clone(), self.deliver.clone());
        async move {
            while let Err(error) = journal.settle(item.seq, outcome.clone()).await {
                tracing::error!(%error, seq = item.seq.0, "can't record how a message ended; trying again");
                tokio::time::sleep(RECORD_AGAIN).await;
            }
            crate::failpoint::at!(Settled);
            deliver.settled(&item, &outcome);
        }
    }

    /// A status goes where it was said to.
    fn put(&mut self, report: Report, place: Place) {
        let (pending, left_over) = (report.pending, report.left_over);
        match place {
            Place::Lane(lane) => {
                let message = Message {
                    lane,
                    ..message(&pending, left_over)
                };
                self.lanes.accepted(message, self.start.elapsed());
            }
            Place::Ends(outcome) => {
                let item = Item {
                    seq: pending.seq,
                    lane: LaneKey::of(&pending.address),
                };
                let settled = self.settle(item, outcome);
                self.tasks.spawn(async move {
                    settled.await;
                    Done::SettledAside
                });
            }
            Place::WaitForSend(until) => self.reports.wait(report, until, true, self.start.elapsed()),
            Place::WaitFor(until) => self.reports.wait(report, until, false, self.start.elapsed()),
        }
    }

    /// A person gives a status up that is in no lane.
    fn drop_report(&mut self, seq: Seq) -> Dropped {
        match self.reports.give_up(seq) {
            Some(report) => {
                self.put(report, Place::Ends(dropped()));
                Dropped::Now
            }
            None => Dropped::NotFound,
        }
    }

    /// Writes something down for a next run. Where that fails, it knows less, and nothing else is wrong.
    fn writes(&mut self, seq: Seq, write: impl Future<Output = Result<(), AppendError>> + Send + 'static) {
        self.tasks.spawn(async move {
            if let Err(error) = write.await {
                tracing::warn!(%error, seq = seq.0, "can't write down what a next run is to know");
            }
            Done::Noted(seq)
        });
    }
}

fn seqs(messages: &[Pending]) -> Vec<Seq> {
    messages.iter().map(|message| message.seq).collect()
}

/// Records what is to be on disk before an attempt.
async fn record_first(journal: &impl Log, attempt: &Attempt) -> Result<(), AppendError> {
    let (seq, record) = (attempt.item.seq, attempt.record);
    if record == RecordFirst::default() {
        return Ok(());
    }
    let noted = journal.noted(seq);
    let note = Note {
        begun: noted.begun || record.begun,
        unknown: noted.unknown || record.unknown,
        ..noted
    };
    if note == noted {
        return Ok(());
    }
    journal.note(seq, note).await
}

fn failing() -> Ended {
    Ended::Retry {
        failure: Failure::Failing,
        after: None,
    }
}

fn message(pending: &Pending, left_over: bool) -> Message {
    Message {
        seq: pending.seq,
        lane: LaneKey::of(&pending.address),
        // Where a status has that of the message that it speaks of, it answers nothing.
        request: pending.request.filter(|_| pending.origin != Origin::Report),
        accepted_at_ms: pending.accepted_at_ms,
        attempts: pending.note.attempts,
        uncertain: pending.note.unknown,
        left_over,
        replayed: pending.replayed,
    }
}

fn unreadable(item: &Item, error: &ReadError) -> Ended {
    tracing::error!(%error, seq = item.seq.0, "can't read a message back from the journal");
    match error {
        ReadError::Damaged { .. } | ReadError::NotKept(_) | ReadError::KeyDestroyed(_) => Ended::Fatal {
            reason: "JournalDamaged",
        },
        ReadError::Io(_) => failing(),
    }
}

/// The wall clock, in ms since 1970.
pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
