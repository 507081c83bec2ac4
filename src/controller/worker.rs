//! Makes the passes that the work queue says are due, each in a task of its own, so many at once at most. Thin.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::ResourceExt;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    context::Context,
    health::Watchdog,
    object_key::ObjectKey,
    reconcile::{on_error, reconcile},
    workqueue::WorkQueue,
};

/// How long a channel waits whose pass ended by a fault of the program.
const AFTER_A_FAULT: Duration = Duration::from_secs(60);

/// When a channel is reconciled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// So long after this pass, or when it changes.
    After(Duration),
    /// When it changes.
    OnChange,
}

/// The work queue, and word of what comes into it.
#[derive(Default)]
pub(super) struct Work {
    queue: Mutex<WorkQueue>,
    news: Notify,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, WorkQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a channel reconciled now.
    pub fn add(&self, key: &ObjectKey) {
        self.lock().add(key);
        self.news.notify_one();
    }

    /// The channel is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.lock().forget(key);
    }

    /// How many channels wait for a place.
    pub fn depth(&self) -> usize {
        self.lock().depth()
    }

    /// The next channel whose pass is due.
    pub fn next(&self) -> Option<ObjectKey> {
        self.lock().next(Instant::now().into_std())
    }

    /// A pass is over.
    pub fn done(&self, key: &ObjectKey, again: Again) {
        let at = match again {
            Again::After(wait) => Some(Instant::now() + wait),
            Again::OnChange => None,
        };
        self.lock().done(key, at.map(Instant::into_std));
    }
}

/// A pass that is under way; over when it is dropped, also by a panic.
struct UnderWay<'a> {
    work: &'a Work,
    key: ObjectKey,
    again: Again,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.work.done(&self.key, self.again);
    }
}

/// Makes passes until told to stop, then waits for those under way.
pub(super) async fn run(
    context: Arc<Context>,
    places: usize,
    watchdog: Arc<Watchdog>,
    stop: CancellationToken,
) {
    let mut passes = JoinSet::new();
    while !stop.is_cancelled() {
        while passes.len() < places
            && let Some(key) = context.work.next()
        {
            passes.spawn(pass(key, context.clone(), watchdog.clone()));
        }
        let next = context.work.lock().next_at();
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = passes.join_next() => told(ended),
            () = context.work.news.notified(), if passes.len() < places => {}
            () = due, if passes.len() < places => {}
        }
    }
    while let Some(ended) = passes.join_next().await {
        told(ended);
    }
}

fn told(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(
            "a reconciliation ended by a fault of the program; it is tried again in {AFTER_A_FAULT:?}"
        );
    }
}

async fn pass(key: ObjectKey, context: Arc<Context>, watchdog: Arc<Watchdog>) {
    let _watched = watchdog.begin();
    let mut under_way = UnderWay {
        work: &context.work,
        key: key.clone(),
        again: Again::After(AFTER_A_FAULT),
    };
    let start = Instant::now();
    let resource = context.roster().resource(&key);
    under_way.again = match resource {
        None => {
            // It went while its pass was on the way to a gate: a place that was kept for it is given on.
            for (_, gate) in context.setup().gates() {
                gate.forget(&key);
            }
            Again::OnChange
        }
        Some(channel) => match reconcile(key.clone(), &channel, &context).await {
            Ok(again) => again,
            Err(error) => on_error(&key, &channel.uid().unwrap_or_default(), &error, &context),
        },
    };
    context
        .metrics
        .reconcile_seconds
        .observe(start.elapsed().as_secs_f64());
}
