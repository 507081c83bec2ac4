//! How often Kernel is called: evenly, so many calls a second. Pure.

use std::time::{Duration, Instant};

/// The generic cell rate algorithm: calls come evenly, and after a rest a burst of two seconds' worth is free.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    burst: Duration,
    /// When the next call would be due if calls came evenly.
    due: Option<Instant>,
}

impl Pace {
    /// So many calls a second.
    pub fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            burst: Duration::from_secs(2).saturating_sub(interval),
            due: None,
        }
    }

    /// Changes the rate; what was taken stays taken.
    pub fn set(&mut self, per_second: u32) {
        *self = Self {
            due: self.due,
            ..Self::new(per_second)
        };
    }

    /// When the next call may go. Taking it is counted.
    pub fn take(&mut self, now: Instant) -> Instant {
        let due = self.due.map_or(now, |due| due.max(now));
        self.due = Some(due + self.interval);
        due.checked_sub(self.burst).map_or(now, |at| at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_calls_go_at_the_stated_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(5);
        let times: Vec<_> = (0..15)
            .map(|_| pace.take(start).duration_since(start).as_millis())
            .collect();
        assert_eq!(times[..10], [0; 10], "two seconds' worth at once");
        assert_eq!(times[10..], [200, 400, 600, 800, 1000]);
        pace.set(1);
        assert_eq!(pace.take(start).duration_since(start).as_millis(), 2000);
        let rested = start + Duration::from_secs(60);
        assert_eq!(pace.take(rested), rested);
    }
}
