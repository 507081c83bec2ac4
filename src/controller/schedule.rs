//! When to look at a channel again. Pure.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{
    decide::{Next, Verdict},
    memory::{Fingerprint, Memory},
};
use crate::delivery::backoff::Backoff;

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

/// Waits between tries of a channel that fails: they double from here, and a change of its spec or Secret starts them anew.
const RETRY_FROM: Duration = Duration::from_secs(1);
/// The same for a look at a webhook that is registered: nobody waits for it, and a short trouble is none.
const LOOK_AGAIN_FROM: Duration = Duration::from_secs(5);

/// What a pass has come to.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Outcome<'a> {
    pub verdict: &'a Verdict,
    pub fingerprint: Fingerprint,
    pub fresh: bool,
    pub registered: bool,
    /// Kernel can't be read back.
    pub blind: bool,
    /// A call was not made because nobody's get through.
    pub parked: bool,
    /// Kernel said what it holds.
    pub heard: bool,
}

/// The time at the end of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock<'a> {
    /// The resource's UID, which fixes its moment.
    pub uid: &'a str,
    /// How often it is looked at.
    pub period: Duration,
    pub wall: Timestamp,
    pub now: Instant,
    /// From 0 to 1.
    pub chance: f64,
}

/// The waits of what fails, up to this one.
pub(super) fn retry(cap: Duration) -> Backoff {
    retry_from(RETRY_FROM, cap)
}

fn retry_from(base: Duration, cap: Duration) -> Backoff {
    Backoff {
        base: base.min(cap),
        cap,
    }
}

/// What is remembered after a pass, and how long until the next one: more than nothing, and no longer than the period or
/// what Kernel asked for. What fails again and again is tried once a period in the end, at its own moment, like a channel
/// that is well (Law 7).
pub(super) fn after(memory: &Memory, pass: &Outcome<'_>, clock: &Clock<'_>) -> (Memory, Duration) {
    let mut memory = memory.clone();
    let fingerprint = pass.fingerprint;
    if pass.heard {
        memory.looked_at = Some(clock.wall.as_second());
    }
    let moment = until_moment(clock.uid, clock.period, since_epoch(clock.wall));
    memory.not_before = None;
    let wait = match pass.verdict.next {
        Next::AtMoment => {
            memory.misses = 0;
            memory.failures = None;
            let due = match &memory.verified {
                Some((_, due)) if pass.fresh => due.saturating_duration_since(clock.now),
                _ => moment,
            };
            memory.verified = Some((fingerprint, clock.now + due));
            due
        }
        Next::OnChange => {
            memory.verified = None;
            memory.failures = Some((fingerprint, 0));
            moment
        }
        // A hold changes nothing about what was verified.
        Next::In(wait) => wait,
        Next::Retry { after } => {
            let before = match memory.failures {
                Some((of, failures)) if of == fingerprint => failures,
                _ => 0,
            };
            let still_good = pass.registered && pass.verdict.reason.is_good();
            if still_good {
                memory.misses += u32::from(!pass.parked);
                memory.verified.get_or_insert((fingerprint, clock.now));
            } else {
                memory.verified = None;
            }
            if pass.parked {
                // The gate wakes it when calls get through again.
                memory.failures = Some((fingerprint, before));
                moment
            } else {
                let failures = before.saturating_add(1);
                memory.failures = Some((fingerprint, failures));
                let base = if still_good { LOOK_AGAIN_FROM } else { RETRY_FROM };
                let wait = retry_from(base, clock.period).wait_at_least(failures, after, clock.chance);
                let wait = if wait >= clock.period / 2 {
                    moment.max(after.unwrap_or_default())
                } else {
                    wait
                };
                memory.not_before = after.map(|asked| (fingerprint, clock.now + asked));
                wait
            }
        }
    };
    (memory, wait.max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::decide::Verified, *};
    use crate::api::conditions::Reason;

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

    fn verdict(reason: Reason, next: Next) -> Verdict {
        Verdict {
            reason,
            message: String::new(),
            verified: Verified::AsBefore,
            registered_now: false,
            took_over: false,
            authenticated: true,
            next,
        }
    }

    fn outcome(verdict: &Verdict, registered: bool) -> Outcome<'_> {
        Outcome {
            verdict,
            fingerprint: 7,
            fresh: false,
            registered,
            blind: false,
            parked: false,
            heard: false,
        }
    }

    fn clock(now: Instant, period: Duration, chance: f64) -> Clock<'static> {
        Clock {
            uid: "6f1c2a9e",
            period,
            wall: Timestamp::from_second(1_800_000_000).unwrap(),
            now,
            chance,
        }
    }

    /// The waits of a channel that fails so often in a row, in seconds.
    fn waits(count: usize, verdict: &Verdict, registered: bool) -> Vec<f64> {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..count {
            let (next, wait) = after(
                &memory,
                &outcome(verdict, registered),
                &clock(now, Duration::from_secs(3600), 1.0),
            );
            memory = next;
            now += wait;
            waits.push(wait.as_secs_f64());
        }
        waits
    }

    #[test]
    fn what_fails_is_tried_less_and_less_and_in_the_end_once_a_period_at_its_own_moment() {
        let retry = Next::Retry { after: None };
        let failing = verdict(Reason::UpstreamUnavailable, retry);
        let waits_of_new = waits(14, &failing, false);
        assert_eq!(
            waits_of_new[..11],
            [1., 2., 4., 8., 16., 32., 64., 128., 256., 512., 1024.]
        );
        let moment = until_moment(
            "6f1c2a9e",
            Duration::from_secs(3600),
            Duration::from_secs(1_800_000_000),
        )
        .as_secs_f64();
        assert_eq!(
            waits_of_new[12..],
            [moment, moment],
            "the clock of this test stands still"
        );
        let verified = verdict(Reason::Succeeded, retry);
        assert_eq!(waits(4, &verified, true), [5., 10., 20., 40.]);
    }

    #[test]
    fn another_spec_or_secret_starts_the_waits_anew_and_a_success_forgets_them() {
        let failing = verdict(Reason::RateLimited, Next::Retry { after: None });
        let (now, period) = (Instant::now(), Duration::from_secs(3600));
        let mut memory = Memory::default();
        for _ in 0..5 {
            memory = after(&memory, &outcome(&failing, false), &clock(now, period, 1.0)).0;
        }
        let other = Outcome {
            fingerprint: 8,
            ..outcome(&failing, false)
        };
        assert_eq!(after(&memory, &other, &clock(now, period, 1.0)).1, RETRY_FROM);
        let good = verdict(Reason::Succeeded, Next::AtMoment);
        let (memory, _) = after(&memory, &outcome(&good, false), &clock(now, period, 1.0));
        assert_eq!(memory.failures, None);
        assert!(memory.verified.is_some_and(|(of, due)| of == 7 && due > now));
    }

    #[test]
    fn what_kernel_asks_for_is_remembered_until_then() {
        let asked = Duration::from_secs(600);
        let limited = verdict(Reason::RateLimited, Next::Retry { after: Some(asked) });
        let (now, period) = (Instant::now(), Duration::from_secs(3600));
        let (memory, wait) = after(
            &Memory::default(),
            &outcome(&limited, false),
            &clock(now, period, 0.0),
        );
        assert!(wait >= asked);
        assert_eq!(
            memory.not_before,
            Some((7, now + asked)),
            "not our own wait beyond that"
        );
        let failing = verdict(Reason::UpstreamTimeout, Next::Retry { after: None });
        let (memory, _) = after(&memory, &outcome(&failing, false), &clock(now, period, 0.0));
        assert_eq!(memory.not_before, None);
    }

    #[test]
    fn only_looks_that_were_made_and_failed_are_misses() {
        let missed = verdict(Reason::Succeeded, Next::Retry { after: None });
        let (now, period) = (Instant::now(), Duration::from_secs(3600));
        let parked = Outcome {
            parked: true,
            ..outcome(&missed, true)
        };
        let (memory, wait) = after(&Memory::default(), &parked, &clock(now, period, 0.5));
        assert_eq!(memory.misses, 0);
        assert!(wait <= period, "the gate wakes it before that");
        let (memory, _) = after(&memory, &outcome(&missed, true), &clock(now, period, 0.5));
        assert_eq!(memory.misses, 1);
        let good = verdict(Reason::Succeeded, Next::AtMoment);
        assert_eq!(
            after(&memory, &outcome(&good, true), &clock(now, period, 0.5))
                .0
                .misses,
            0
        );
    }

    fn next() -> impl Strategy<Value = Next> {
        prop_oneof![
            Just(Next::AtMoment),
            Just(Next::OnChange),
            (1u64..600).prop_map(|wait| Next::In(Duration::from_secs(wait))),
            proptest::option::of(1u64..3600).prop_map(|after| Next::Retry {
                after: after.map(Duration::from_secs)
            }),
        ]
    }

    proptest! {
        /// Whatever came before, whatever was found: the next pass comes, not at once, and within the period.
        #[test]
        fn the_next_pass_comes_within_bounds(
            passes in proptest::collection::vec((next(), any::<[bool; 4]>(), 0u64..3), 1..30),
            period in 60u64..604_800,
            chance in 0.0f64..1.0,
        ) {
            let (period, mut now) = (Duration::from_secs(period), Instant::now());
            let mut memory = Memory::default();
            for (next, [good, fresh, registered, parked], fingerprint) in passes {
                let reason = if good { Reason::Succeeded } else { Reason::UpstreamUnavailable };
                let verdict = verdict(reason, next);
                let outcome = Outcome {
                    fingerprint,
                    fresh: fresh && memory.verified.is_some(),
                    parked,
                    ..outcome(&verdict, registered)
                };
                let (after, wait) = after(&memory, &outcome, &clock(now, period, chance));
                let longest = match next {
                    Next::Retry { after: Some(asked) } => period.max(asked.mul_f64(1.1)),
                    Next::In(wait) => wait,
                    _ => period,
                };
                prop_assert!(wait > Duration::ZERO && wait <= longest, "{wait:?} after {verdict:?}");
                if let Next::Retry { after: Some(asked) } = next && !parked {
                    prop_assert!(wait >= asked);
                }
                memory = after;
                now += wait;
            }
        }
    }
}
