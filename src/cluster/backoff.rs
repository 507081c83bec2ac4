//! How long to wait before a watch that broke is tried again.
//!
//! The library's own schedule goes up to 30 s: so long would a bridge serve old routes after the API server is back.
//! Two processes that ask every few seconds are no burden to one.
//!
//! The library starts the waits anew with every event, and that a list begins is one, also where it then fails: a list
//! that fails again and again would be tried several times a second. So time alone starts them anew.

use std::time::Duration;

use kube::runtime::{utils::Backoff as Schedule, watcher};
use tokio::time::Instant;

use crate::delivery::backoff::Backoff;

const WAITS: Backoff = Backoff {
    base: Duration::from_millis(400),
    cap: Duration::from_secs(5),
};

/// Objects in one page of a list. Fewer than usual: with what fields were managed by whom a page takes several times
/// its JSON for a moment, and a process keeps the room of its busiest moment.
const LISTED_AT_ONCE: u32 = 250;
/// How long one watch lasts, in seconds, before it is begun anew where it was. A peer that is gone without a word is
/// noticed no later than that: nothing else tells it from one that has nothing to say.
const WATCH_LASTS: u32 = 60;

/// How both roles watch.
pub fn watch_config() -> watcher::Config {
    watcher::Config::default()
        .page_size(LISTED_AT_ONCE)
        .timeout(WATCH_LASTS)
}

/// A failure that comes so long after the one before is a new trouble. Longer than the longest wait.
const APART: Duration = Duration::from_secs(30);

/// Waits of a watch: endless, growing, with jitter; anew after a time without failure.
#[derive(Default)]
pub struct WatchBackoff {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > APART) {
            self.failures = 0;
        }
        self.last = Some(now);
        self.failures = self.failures.saturating_add(1);
        Some(WAITS.wait(self.failures, fastrand::f64()))
    }
}

impl Schedule for WatchBackoff {
    /// Left to time.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use kube::runtime::WatchStreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_that_begins_and_fails_is_tried_less_and_less_and_a_new_trouble_begins_anew() {
        let tries = stream::iter(0..1000).flat_map(|_| stream::iter([Ok("begins"), Err("fails")]));
        let mut tries = std::pin::pin!(tries.backoff(WatchBackoff::default()));
        let (start, mut failed) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(30) {
            failed += usize::from(matches!(tries.next().await, Some(Err(_))));
        }
        assert!((8..=18).contains(&failed), "{failed} times in half a minute");

        let mut waits = WatchBackoff::default();
        waits.by_ref().take(9).for_each(drop);
        tokio::time::advance(APART + Duration::from_secs(1)).await;
        assert!(waits.next().unwrap() <= WAITS.base);
    }
}
