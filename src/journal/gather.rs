//! How long a commit waits for company. Pure.
//!
//! A commit costs the same whatever is in it, some 200 us of processor time where a sync is dear: the more messages share
//! one the better, as long as they keep coming. Callers that all wait for this very commit are known by nobody coming
//! after them, one step later.
//! Upholds law 4 in small: one sync serves every caller that waits.

use std::time::Duration;

/// The gather ends with this many commands: more would not make the sync much cheaper for each.
const ENOUGH: usize = 256;
/// After a group of so many the next one is likely to be full in half a step.
const MANY: usize = 64;
/// The time between two looks at who has come: looking is a sleep and a wake, dearer than what few commands would save.
const STEP: Duration = Duration::from_millis(1);
/// Fewer arrivals than this in a step are not worth another.
const FEW: usize = 3;

/// The plan of one gather.
#[derive(Debug)]
pub(super) struct Gather {
    longest: Duration,
    /// After a crowd.
    crowd: bool,
    stage: Stage,
    /// What was there when the last step began.
    commands: usize,
    /// How long the last step is.
    step: Duration,
}

/// What was waited for last.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Begin,
    HalfAStep,
    /// Those who waited for the last commit come again.
    FirstStep,
    /// Whoever comes now comes of their own accord.
    LaterStep,
}

impl Gather {
    /// After a group of so many commands.
    pub fn new(longest: Duration, last_group: usize) -> Self {
        Self {
            longest,
            crowd: last_group >= MANY,
            stage: Stage::Begin,
            commands: 0,
            step: STEP,
        }
    }

    /// How long to wait before the next look; `None` when the group should be written. `elapsed` is the time since the
    /// first command came, `commands` what is there.
    pub fn next(&mut self, elapsed: Duration, commands: usize) -> Option<Duration> {
        let left = self.longest.checked_sub(elapsed).filter(|left| !left.is_zero())?;
        if commands >= ENOUGH {
            return None;
        }
        let came = commands - self.commands;
        let wait = match self.stage {
            Stage::Begin if self.crowd => {
                self.stage = Stage::HalfAStep;
                STEP / 2
            }
            Stage::HalfAStep => {
                self.stage = Stage::FirstStep;
                return Some(left.min(STEP / 2));
            }
            Stage::Begin => {
                self.stage = Stage::FirstStep;
                STEP
            }
            Stage::FirstStep | Stage::LaterStep if came < FEW => return None,
            Stage::FirstStep => {
                self.stage = Stage::LaterStep;
                STEP
            }
            // One wait until it is full, if they go on like this.
            Stage::LaterStep => {
                let missing = u32::try_from(ENOUGH - commands).unwrap_or(u32::MAX);
                self.step = self.step * missing / u32::try_from(came).unwrap_or(u32::MAX);
                self.step
            }
        };
        self.commands = commands;
        Some(left.min(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As by default.
    const LONGEST: Duration = Duration::from_millis(4);

    /// The waits of a gather and what it ends with; `there` says how many commands have come by a time.
    fn gather(last_group: usize, there: impl Fn(Duration) -> usize) -> (Vec<u128>, usize) {
        let (mut plan, mut now, mut waits) = (Gather::new(LONGEST, last_group), Duration::ZERO, Vec::new());
        while let Some(wait) = plan.next(now, there(now)) {
            now += wait;
            waits.push(wait.as_micros());
        }
        (waits, there(now))
    }

    /// So many a millisecond, beside those that are there.
    fn steady(at_first: usize, per_ms: usize) -> impl Fn(Duration) -> usize {
        move |now| at_first + usize::try_from(now.as_micros()).unwrap() * per_ms / 1000
    }

    #[test]
    fn it_waits_for_company_that_keeps_coming_and_looks_seldom() {
        assert_eq!(gather(20, steady(1, 20)), (vec![1000, 1000, 2000], 81));
        assert_eq!(gather(160, steady(80, 20)), (vec![500, 500, 1000, 2000], 160));
        // Until it is full.
        assert_eq!(gather(20, steady(6, 100)), (vec![1000, 1000, 500], 256));
        // So few that the next step would not pay.
        assert_eq!(gather(20, steady(4, 3)), (vec![1000, 1000, 2000], 16));
        assert_eq!(gather(20, steady(2, 2)), (vec![1000], 4));
    }

    #[test]
    fn it_does_not_wait_for_callers_who_wait_for_it() {
        // All of them are there after a moment.
        let all = |n: usize| move |now: Duration| if now.is_zero() { 1 } else { n };
        assert_eq!(gather(3, all(3)), (vec![1000], 3));
        assert_eq!(gather(40, all(40)), (vec![1000, 1000], 40));
        assert_eq!(gather(200, all(200)), (vec![500, 500, 1000], 200));
        assert_eq!(
            gather(256, all(256)),
            (vec![500], 256),
            "a full one is written at once"
        );
        assert_eq!(gather(1024, all(1024)), (vec![500], 1024));
        assert_eq!(gather(1024, steady(300, 0)), (vec![], 300));
    }

    #[test]
    fn it_never_waits_longer_than_it_may() {
        for (last_group, per_ms) in [(2, 3), (20, 7), (63, 11), (64, 30), (1000, 1)] {
            let (waits, _) = gather(last_group, steady(1, per_ms));
            assert!(waits.iter().sum::<u128>() <= LONGEST.as_micros(), "{waits:?}");
        }
    }
}
