//! How long to wait before a watch that broke is tried again.
//!
//! The library's own schedule goes up to 30 s: so long would a bridge serve old routes after the API server is back.
//! Two processes that ask every few seconds are no burden to one.

use std::time::Duration;

use kube::runtime::utils::Backoff as Schedule;

use crate::delivery::backoff::Backoff;

const WAITS: Backoff = Backoff {
    base: Duration::from_millis(400),
    cap: Duration::from_secs(5),
};

/// Waits of a watch: endless, growing, with jitter; a watch that works starts them anew.
#[derive(Default)]
pub struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        Some(WAITS.wait(self.failures, fastrand::f64()))
    }
}

impl Schedule for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
