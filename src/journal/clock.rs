//! What time it is for things that expire: a clock that jumps must not make the journal forget (the time rule). Pure.
//!
//! Wall clocks are set, by hand and by NTP after a cold start. A jump of over an hour (or a stop that took as long:
//! from within they look alike) makes nothing expire until an hour of uptime has passed; by then either the jump was
//! right, or somebody has set the clock again.

use std::time::Duration;

/// A step of the wall clock that is taken for a jump, and how long nothing expires after one.
const JUMP: Duration = Duration::from_secs(60 * 60);
const JUMP_MS: u64 = 60 * 60 * 1000;

/// What time it is for what is judged between two looks at the clock, of which the last one believed `last_ms`; 0: there
/// was none.
pub(super) fn believed(last_ms: u64, wall_ms: u64) -> u64 {
    let jumped = last_ms != 0 && wall_ms > last_ms.saturating_add(JUMP_MS);
    if jumped { last_ms } else { wall_ms }
}

/// The rule, and what it has seen.
#[derive(Debug, Clone)]
pub(super) struct ExpiryClock {
    /// The highest wall time that was believed, ms since the epoch; 0 when none is known.
    highest_ms: u64,
    /// When a jump was seen, in uptime.
    jumped_at: Option<Duration>,
}

impl ExpiryClock {
    /// Goes on from the highest wall time that is known.
    pub fn new(highest_ms: u64) -> Self {
        Self {
            highest_ms,
            jumped_at: None,
        }
    }

    /// The time by which things may expire, ms since the epoch: never later than the wall clock, and standing still
    /// for an hour of uptime after a jump forward.
    pub fn now(&mut self, wall_ms: u64, uptime: Duration) -> u64 {
        if believed(self.highest_ms, wall_ms) != wall_ms {
            let since = *self.jumped_at.get_or_insert(uptime);
            if uptime.saturating_sub(since) < JUMP {
                return self.highest_ms;
            }
        }
        self.jumped_at = None;
        self.highest_ms = self.highest_ms.max(wall_ms);
        wall_ms
    }

    /// Whether nothing expires at present.
    pub fn holds(&self) -> bool {
        self.jumped_at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * JUMP_MS;
    const START: u64 = 20_000 * DAY_MS;

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    #[test]
    fn after_a_jump_forward_nothing_expires_for_an_hour_of_uptime() {
        let mut clock = ExpiryClock::new(START);
        assert_eq!(clock.now(START + 1, minutes(0)), START + 1);
        assert_eq!(clock.now(START + DAY_MS, minutes(1)), START + 1);
        assert!(clock.holds());
        assert_eq!(clock.now(START + DAY_MS + 1, minutes(60)), START + 1);
        assert_eq!(clock.now(START + DAY_MS + 2, minutes(61)), START + DAY_MS + 2);
        assert!(!clock.holds());
    }

    #[test]
    fn between_two_looks_a_jump_is_not_believed_either() {
        assert_eq!(believed(0, START), START);
        assert_eq!(believed(START, START + JUMP_MS), START + JUMP_MS);
        assert_eq!(believed(START, START + JUMP_MS + 1), START);
        assert_eq!(believed(START, START - DAY_MS), START - DAY_MS);
    }

    #[test]
    fn a_jump_that_is_taken_back_leaves_no_trace() {
        let mut clock = ExpiryClock::new(START);
        clock.now(START + DAY_MS, minutes(1));
        assert_eq!(clock.now(START + 5, minutes(2)), START + 5);
        assert_eq!(
            clock.now(START + DAY_MS, minutes(70)),
            START + 5,
            "another jump is waited out anew"
        );
    }

    #[test]
    fn a_clock_that_goes_back_expires_later_and_never_earlier() {
        let mut clock = ExpiryClock::new(START);
        assert_eq!(clock.now(START - DAY_MS, minutes(1)), START - DAY_MS);
        assert_eq!(
            clock.now(START + 1, minutes(2)),
            START + 1,
            "back again is no jump"
        );
    }

    #[test]
    fn a_long_stop_looks_like_a_jump_and_a_new_journal_has_none() {
        let mut stopped = ExpiryClock::new(START);
        assert_eq!(stopped.now(START + 3 * DAY_MS, minutes(0)), START);
        assert_eq!(ExpiryClock::new(0).now(START, minutes(0)), START);
    }
}
