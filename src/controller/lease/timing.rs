//! The three times of an election, and the relations between them that keep two from leading at once.

use std::time::Duration;

/// The three times. Of two candidates whose clocks run at rates that differ by less than
/// `duration / renew_deadline`, never both lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    duration: Duration,
    renew_deadline: Duration,
    retry_period: Duration,
}

/// The times don't fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTiming {
    /// No time between two tries.
    #[error("the retry period must be at least {least:?}, not {0:?}", least = MIN_RETRY)]
    RetryTooShort(Duration),
    /// One failed renewal would end the claim.
    #[error("the renew deadline ({renew:?}) must be longer than the retry period ({retry:?})")]
    RenewNotAboveRetry {
        /// The renew deadline.
        renew: Duration,
        /// The retry period.
        retry: Duration,
    },
    /// Another may lead before the claim has ended.
    #[error(
        "the lease duration ({duration:?}) must be longer than the renew deadline ({renew:?}) by a tenth or more, \
         so that a leader's claim ends before another may take the Lease"
    )]
    DurationNotAboveRenew {
        /// The lease duration.
        duration: Duration,
        /// The renew deadline.
        renew: Duration,
    },
    /// A dead leader would not be replaced for too long.
    #[error("the lease duration must be at most {most:?}, not {0:?}", most = MAX_DURATION)]
    DurationTooLong(Duration),
}

/// The longest lease duration, also that of another's record: a dead holder is waited for no longer.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(600);
/// The shortest time between two tries: a candidate is no burden to the API server.
const MIN_RETRY: Duration = Duration::from_millis(100);

impl Timing {
    /// Checks the times: `retry_period < renew_deadline < duration`. `duration` is written into the Lease in whole
    /// seconds, rounded up.
    ///
    /// # Errors
    /// When they don't fit together, with what to put right.
    pub fn new(
        duration: Duration,
        renew_deadline: Duration,
        retry_period: Duration,
    ) -> Result<Self, InvalidTiming> {
        if retry_period < MIN_RETRY {
            return Err(InvalidTiming::RetryTooShort(retry_period));
        }
        if renew_deadline <= retry_period {
            return Err(InvalidTiming::RenewNotAboveRetry {
                renew: renew_deadline,
                retry: retry_period,
            });
        }
        if duration < renew_deadline.saturating_add(renew_deadline / 10) {
            return Err(InvalidTiming::DurationNotAboveRenew {
                duration,
                renew: renew_deadline,
            });
        }
        if duration > MAX_DURATION {
            return Err(InvalidTiming::DurationTooLong(duration));
        }
        Ok(Self {
            duration,
            renew_deadline,
            retry_period,
        })
    }

    /// How long the others leave the Lease alone after its record last changed.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// How long a leader leads on after it sent the last renewal that succeeded.
    pub fn renew_deadline(&self) -> Duration {
        self.renew_deadline
    }

    /// How often a leader renews, at most how long a candidate waits between two looks, and the longest that one
    /// request may take.
    pub fn retry_period(&self) -> Duration {
        self.retry_period
    }

    /// Times that the check refuses, to see what comes of them.
    #[cfg(test)]
    pub(super) fn unchecked(duration: Duration, renew_deadline: Duration, retry_period: Duration) -> Self {
        Self {
            duration,
            renew_deadline,
            retry_period,
        }
    }
}

impl Default for Timing {
    /// 12 s, 8 s, 2 s: a dead leader is replaced within 14 s, and three renewals may fail in a row.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(12),
            renew_deadline: Duration::from_secs(8),
            retry_period: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(duration: u64, renew: u64, retry: u64) -> Result<Timing, InvalidTiming> {
        let ms = Duration::from_millis;
        Timing::new(ms(duration), ms(renew), ms(retry))
    }

    #[test]
    fn the_defaults_and_other_sound_times_are_taken() {
        assert_eq!(timing(12_000, 8_000, 2_000), Ok(Timing::default()));
        assert!(timing(60_000, 50_000, 10_000).is_ok());
        assert!(timing(1_100, 1_000, 100).is_ok());
    }

    #[test]
    fn times_that_do_not_fit_together_are_refused_with_what_to_put_right() {
        for (times, words) in [
            ((12_000, 8_000, 99), "the retry period must be at least 100ms"),
            (
                (12_000, 2_000, 2_000),
                "the renew deadline (2s) must be longer than the retry period (2s)",
            ),
            (
                (8_000, 8_000, 2_000),
                "the lease duration (8s) must be longer than the renew deadline (8s)",
            ),
            ((8_700, 8_000, 2_000), "by a tenth or more"),
            ((601_000, 8_000, 2_000), "at most 600s"),
        ] {
            let (duration, renew, retry) = times;
            let error = timing(duration, renew, retry).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
