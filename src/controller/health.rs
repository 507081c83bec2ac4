//! Whether a reconciliation is stuck: every call has a deadline, so one that lasts for minutes is a fault that only a new
//! start would mend.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How long a pass may take: its calls to Kernel and to the API server together take less.
const STUCK: Duration = Duration::from_secs(600);

/// The passes that are under way.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    next: AtomicU64,
    under_way: Mutex<BTreeMap<u64, Instant>>,
}

/// One pass; over when it is dropped.
pub(super) struct UnderWay<'a> {
    watchdog: &'a Watchdog,
    id: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.watchdog.lock().remove(&self.id);
    }
}

impl Watchdog {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass begins.
    pub fn begin(&self) -> UnderWay<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Instant::now());
        UnderWay { watchdog: self, id }
    }

    /// What is stuck, in words.
    pub fn stuck(&self) -> Option<String> {
        // They begin in the order of their ids: the first is the oldest.
        let oldest = *self.lock().first_key_value()?.1;
        let age = oldest.elapsed();
        (age > STUCK).then(|| format!("a reconciliation has been under way for {} s", age.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_does_not_end_is_told_of_and_one_that_ended_is_not() {
        let watchdog = Watchdog::default();
        let first = watchdog.begin();
        tokio::time::advance(STUCK.saturating_sub(Duration::from_secs(1))).await;
        let _second = watchdog.begin();
        assert_eq!(watchdog.stuck(), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(watchdog.stuck().unwrap().contains("601 s"));
        drop(first);
        assert_eq!(watchdog.stuck(), None);
    }
}
