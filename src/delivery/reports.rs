//! WhatsApp's reports on sent messages, before they are in a lane: each is looked at by whoever delivers, who knows
//! what it speaks of and says where it goes.
//!
//! Thin: who waits for what is kept in `waiting`, what is done about a status is decided by who is asked. They come out
//! in the order in which they were accepted, a bounded number is looked at at once (Law 11), and of one message one at a
//! time, so that what was heard of it last is known.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream::FuturesOrdered};

use super::{
    circuit::ms,
    key::LaneKey,
    runner::{Deliver, wall_ms},
    types::{Place, Report},
    waiting::Waiting,
};
use crate::journal::{Log, Pending, Reference, Seq};

/// Reports that are looked at at once.
const AT_ONCE: usize = 32;

type Looking = Pin<Box<dyn Future<Output = (Report, Place)> + Send>>;

/// The reports that are in no lane yet.
pub(super) struct Reports<D, L> {
    journal: L,
    deliver: Arc<D>,
    queue: VecDeque<Report>,
    looking: FuturesOrdered<Looking>,
    looked_at: HashSet<Reference>,
    waiting: Waiting,
}

impl<D: Deliver, L: Log> Reports<D, L> {
    pub fn new(journal: L, deliver: Arc<D>) -> Self {
        Self {
            journal,
            deliver,
            queue: VecDeque::new(),
            looking: FuturesOrdered::new(),
            looked_at: HashSet::new(),
            waiting: Waiting::default(),
        }
    }

    /// One was accepted. Gives back what is none.
    pub fn accepted(&mut self, pending: Pending, left_over: bool) -> Option<Pending> {
        match Report::of(pending, left_over) {
            Some(report) => self.queue.push_back(report),
            None => return Some(pending),
        }
        None
    }

    /// A message's send is recorded: those that wait for it are looked at.
    pub fn sent(&mut self, seq: Seq) {
        if self.waiting.for_no_send() {
            return;
        }
        for reference in self.journal.references(seq) {
            let reports = self.waiting.take(&reference);
            self.first(reports);
        }
    }

    /// One is given up. Says whether it was here, and not looked at just now.
    pub fn give_up(&mut self, seq: Seq) -> Option<Report> {
        if let Some(report) = self.waiting.remove(seq) {
            return Some(report);
        }
        let place = self.queue.iter().position(|report| report.pending.seq == seq)?;
        self.queue.remove(place)
    }

    /// Looks at those whose time has come.
    pub fn wake(&mut self, now: Duration) {
        let due = self.waiting.due(ms(now));
        self.queue.extend(due);
    }

    /// When the next one's time comes.
    pub fn next_wake(&self) -> Option<Duration> {
        self.waiting.next().map(Duration::from_millis)
    }

    /// The next report that was looked at, and where it goes; never, if none is looked at. May be dropped and called
    /// again.
    pub async fn next(&mut self) -> (Report, Place) {
        self.look();
        match self.looking.next().await {
            Some((report, place)) => {
                self.looked_at.remove(&report.about);
                (report, place)
            }
            None => std::future::pending().await,
        }
    }

    /// One waits until then, in ms since 1970; `for_send`: or until its message's send is recorded. `now` is the time
    /// since the start.
    pub fn wait(&mut self, report: Report, until_ms: u64, for_send: bool, now: Duration) {
        let about = report.about;
        let until = ms(now).saturating_add(until_ms.saturating_sub(wall_ms()));
        self.waiting.add(report, until, for_send);
        // It may have been recorded between the look and this.
        if for_send && self.journal.sent(&about).is_some() {
            let reports = self.waiting.take(&about);
            self.first(reports);
        }
    }

    /// They go before those that came after them.
    fn first(&mut self, reports: Vec<Report>) {
        for report in reports.into_iter().rev() {
            self.queue.push_front(report);
        }
    }

    fn look(&mut self) {
        while self.looking.len() < AT_ONCE
            && let Some(report) = self.queue.front()
            && !self.looked_at.contains(&report.about)
        {
            // Some of its message may wait for the send that is recorded by now: they were first.
            if !self.waiting.for_no_send() && self.journal.sent(&report.about).is_some() {
                let before = self.waiting.take(&report.about);
                if !before.is_empty() {
                    self.first(before);
                    continue;
                }
            }
            let Some(report) = self.queue.pop_front() else {
                return;
            };
            self.looked_at.insert(report.about);
            let deliver = self.deliver.clone();
            self.looking.push_back(Box::pin(async move {
                let place = AssertUnwindSafe(deliver.place(report.pending)).catch_unwind();
                let own = LaneKey::of(&report.pending.address);
                let place = place.await.unwrap_or(Place::Lane(own));
                (report, place)
            }));
        }
    }
}
