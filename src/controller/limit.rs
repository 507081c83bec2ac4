//! Polite use of Kernel: so many calls a second and so many at once, per environment, shared by all its channels.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use crate::config::Registration;

/// Limits the calls to one environment's Kernel.
pub(super) struct Limiter {
    places: Semaphore,
    pace: Mutex<Pace>,
}

/// The generic cell rate algorithm: calls come evenly, and after a rest a burst of two seconds' worth is free.
struct Pace {
    interval: Duration,
    burst: Duration,
    /// When the next call would be due if calls came evenly.
    due: Option<Instant>,
}

impl Pace {
    /// When the next call may go. Taking it is counted.
    fn take(&mut self, now: Instant) -> Instant {
        let due = self.due.map_or(now, |due| due.max(now));
        self.due = Some(due + self.interval);
        due.checked_sub(self.burst).map_or(now, |at| at.max(now))
    }
}

impl Limiter {
    pub fn new(limits: &Registration) -> Self {
        let interval = Duration::from_secs(1) / limits.per_second.max(1);
        Self {
            places: Semaphore::new(limits.concurrent.max(1) as usize),
            pace: Mutex::new(Pace {
                interval,
                burst: Duration::from_secs(2).saturating_sub(interval),
                due: None,
            }),
        }
    }

    /// Waits for a turn; the call is over when the permit is dropped.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.places.acquire().await.ok();
        let at = self
            .pace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(Instant::now());
        tokio::time::sleep_until(at).await;
        permit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_burst_calls_go_at_the_stated_rate() {
        let limiter = Limiter::new(&Registration {
            per_second: 5,
            concurrent: 4,
            one_webhook_per_client: true,
        });
        let start = Instant::now();
        let mut times = Vec::new();
        for _ in 0..15 {
            let _turn = limiter.turn().await;
            times.push(start.elapsed().as_millis());
        }
        assert_eq!(times[..10], [0; 10], "two seconds' worth at once");
        assert_eq!(times[10..], [200, 400, 600, 800, 1000]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_than_stated_are_under_way_at_once() {
        let limiter = Limiter::new(&Registration {
            per_second: 1000,
            concurrent: 2,
            one_webhook_per_client: true,
        });
        let (_a, _b) = (limiter.turn().await, limiter.turn().await);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), limiter.turn())
                .await
                .is_err()
        );
    }
}
