//! How old a message is, as far as its age counts: a channel's clock stands still while the channel can't deliver
//! for reasons that are not the message's. Pure; times are ms since some start.
//!
//! `delivery.maxAge` is judged by it, so that a hold or an outage turns no backlog into dead letters (Law 8).

/// Why a clock stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The channel is on hold, or has no route.
    Hold = 1,
    /// The channel's circuit is open.
    Channel = 2,
    /// Its environment's circuit is open.
    Environment = 4,
}

/// The clock of one channel's direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// How long it stood still before.
    stood: u64,
    /// Since when it stands still.
    since: u64,
    reasons: u8,
}

impl Clock {
    /// Stops it for this reason, or lets this reason go.
    pub fn set(&mut self, reason: Stop, stops: bool, now: u64) {
        let before = self.reasons;
        if stops {
            self.reasons |= reason as u8;
        } else {
            self.reasons &= !(reason as u8);
        }
        match (before, self.reasons) {
            (0, 0) => {}
            (0, _) => self.since = now,
            (_, 0) => self.stood += now.saturating_sub(self.since),
            _ => {}
        }
    }

    /// What it shows.
    pub fn reads(&self, now: u64) -> i64 {
        let now = if self.reasons == 0 {
            now
        } else {
            self.since.min(now)
        };
        signed(now) - signed(self.stood)
    }
}

/// A time that may be before the start.
pub(super) fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_while_nothing_stops_it_and_reasons_that_overlap_count_once() {
        let mut clock = Clock::default();
        assert_eq!(clock.reads(10), 10);
        clock.set(Stop::Hold, true, 10);
        clock.set(Stop::Environment, true, 15);
        clock.set(Stop::Hold, false, 20);
        assert_eq!(clock.reads(25), 10);
        clock.set(Stop::Environment, false, 30);
        clock.set(Stop::Environment, false, 40);
        assert_eq!(clock.reads(50), 30);
    }
}
