//! When to look at a channel again. Pure.

use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// How long until a channel's own moment in the period comes round. The moment is fixed by the resource's UID, so
/// many channels spread evenly and a restart moves none of them (Law 7).
///
/// `now` is the time since 1970. The answer is more than nothing and at most `period`.
pub(super) fn until_moment(uid: &str, period: Duration, now: Duration) -> Duration {
    let period_ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1);
    let hash = Sha256::digest(uid.as_bytes());
    let phase = u64::from_be_bytes(*hash.first_chunk().unwrap_or(&[0; 8])) % period_ms;
    let within = u64::try_from(now.as_millis() % u128::from(period_ms)).unwrap_or_default();
    let wait = (phase + period_ms - within) % period_ms;
    Duration::from_millis(if wait == 0 { period_ms } else { wait })
}

/// The wall clock, as a time since 1970.
pub(super) fn since_epoch(now: Timestamp) -> Duration {
    Duration::try_from(now.as_duration()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_moment_is_the_same_whenever_it_is_asked_for(uid in "[a-f0-9-]{36}", now in 0u64..10_000_000, later in 0u64..3_599_000) {
            let period = Duration::from_secs(3600);
            let now = Duration::from_millis(now);
            let wait = until_moment(&uid, period, now);
            prop_assert!(wait > Duration::ZERO && wait <= period);
            let at = now + wait;
            let again = now + Duration::from_millis(later);
            if again < at {
                prop_assert_eq!(again + until_moment(&uid, period, again), at);
            }
        }
    }

    #[test]
    fn channels_spread_over_the_period() {
        let period = Duration::from_secs(3600);
        let waits: Vec<_> = (0..1000)
            .map(|n| until_moment(&format!("uid-{n}"), period, Duration::ZERO).as_secs() / 360)
            .collect();
        for tenth in 0..10 {
            let share = waits.iter().filter(|wait| **wait == tenth).count();
            assert!((60..140).contains(&share), "{share} of 1000 in one tenth");
        }
    }
}
