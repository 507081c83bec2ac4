//! Exponential backoff with jitter, and how often and how soon a message is tried again. Pure: chance comes in as a
//! number. Every retry has a bound (Law 11).

use std::time::Duration;

use super::types::Failure;

/// A schedule of waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The upper bound of the first wait.
    pub base: Duration,
    /// The upper bound of every wait.
    pub cap: Duration,
}

impl Backoff {
    /// The wait after the `failures`-th failure in a row (from 1): anywhere in the upper half of a bound that
    /// doubles up to `cap`. The upper half, and not from nothing on, so that a failing peer is called less and
    /// less, never at once; half of it is chance, so that many do not call together. `chance` is in 0..1.
    pub fn wait(&self, failures: u32, chance: f64) -> Duration {
        let doubled = self
            .base
            .saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.cap).mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }

    /// As [`Backoff::wait`], but no shorter than what the peer asked for, to which chance is added.
    pub fn wait_at_least(&self, failures: u32, asked: Option<Duration>, chance: f64) -> Duration {
        let own = self.wait(failures, chance);
        match asked {
            Some(asked) => own.max(asked + asked.mul_f64(0.1 * chance.clamp(0.0, 1.0))),
            None => own,
        }
    }
}

/// How often a message is tried, and how soon again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Attempts before it becomes a dead letter.
    pub attempts: u32,
    /// The waits between them.
    pub waits: Backoff,
}

/// How much longer a peer that limits the rate is left alone than one that fails: it is there, and more calls are what
/// it can't take.
const LIMITED: u32 = 4;

impl Retries {
    /// The wait after the `attempts`-th attempt failed like this; no shorter than what the peer asked for.
    pub fn wait(&self, attempts: u32, failure: Failure, asked: Option<Duration>, chance: f64) -> Duration {
        let waits = match failure {
            Failure::Unreachable | Failure::Unanswered | Failure::Failing => self.waits,
            Failure::Limited => Backoff {
                base: self.waits.base.saturating_mul(LIMITED).min(self.waits.cap),
                ..self.waits
            },
        };
        waits.wait_at_least(attempts, asked, chance)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(300),
    };

    #[test]
    fn waits_grow_to_the_cap_and_honour_what_was_asked_for() {
        let bounds: Vec<u64> = (1..=12).map(|n| BACKOFF.wait(n, 1.0).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(
            BACKOFF.wait_at_least(1, Some(Duration::from_secs(60)), 0.0),
            Duration::from_secs(60)
        );
    }

    #[test]
    fn who_limits_the_rate_is_left_alone_for_longer() {
        let retries = Retries {
            attempts: 5,
            waits: BACKOFF,
        };
        let wait = |failure, asked| retries.wait(2, failure, asked, 1.0).as_secs();
        assert_eq!(wait(Failure::Failing, None), 2);
        assert_eq!(wait(Failure::Unreachable, None), 2);
        assert_eq!(wait(Failure::Limited, None), 8);
        assert_eq!(wait(Failure::Limited, Some(Duration::from_secs(100))), 110);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_nothing_and_never_over_the_cap(failures in 0u32..5000, chance in 0.0f64..1.0) {
            let wait = BACKOFF.wait(failures, chance);
            prop_assert!(wait >= BACKOFF.base / 2 && wait <= BACKOFF.cap);
        }
    }
}
