//! Under which hour an id is filed, and under which hours it is looked for. Pure.
//!
//! Not for files or tables. Upholds law 2 (once per id): wherever an id was filed, the same message finds it again
//! for the whole window, whatever the clock did in between. docs/decisions/0013 has the reasons.

use std::ops::RangeInclusive;

/// Milliseconds of an hour.
pub(super) const HOUR_MS: u64 = 3_600_000;

/// The message's own time, as its sender wrote it: the same each time the message comes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Born {
    /// ms since the epoch.
    At(u64),
    /// It has none.
    Unknown,
}

/// How far back ids are looked for, and which own times are believed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// ms; older messages are set aside before they come here.
    pub window_ms: u64,
    /// ms; for ids without an own time.
    pub look_back_ms: u64,
    /// ms; an own time further ahead of the clock than this is not believed.
    pub ahead_ms: u64,
}

/// An hour since the epoch, and what it is the hour of. In order: first by that, then by hour.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Shelf(u32);

const KIND: u32 = 30;
const LAST_HOUR: u32 = (1 << KIND) - 1;
/// The hour is that of the message's own time.
const OWN: u32 = 0;
/// The message has no own time: the hour is that of its acceptance.
const ACCEPTED: u32 = 1;
/// The message's own time could not be believed: the hour is that of its acceptance.
const DOUBTED: u32 = 2;

impl Shelf {
    fn new(kind: u32, ms: u64) -> Self {
        Self(kind << KIND | hour_of(ms))
    }

    /// Where an id is filed.
    pub fn of(born: Born, accepted_at_ms: u64, reach: Reach) -> Self {
        let believed =
            accepted_at_ms.saturating_sub(reach.window_ms)..=accepted_at_ms.saturating_add(reach.ahead_ms);
        match born {
            Born::At(ms) if believed.contains(&ms) => Self::new(OWN, ms),
            Born::At(_) => Self::new(DOUBTED, accepted_at_ms),
            Born::Unknown => Self::new(ACCEPTED, accepted_at_ms),
        }
    }

    /// Where it is looked for. An own time that is believed now may have been doubted when the message came first,
    /// so that the doubted hours of the whole window belong to every search; nearly always there is none.
    pub fn search(
        born: Born,
        accepted_at_ms: u64,
        reach: Reach,
    ) -> impl Iterator<Item = RangeInclusive<Self>> {
        let since = |kind, back_ms| {
            Self::new(kind, accepted_at_ms.saturating_sub(back_ms))..=Self(kind << KIND | LAST_HOUR)
        };
        let ranges = match born {
            Born::At(ms) => {
                let own = Self::new(OWN, ms);
                [Some(own..=own), Some(since(DOUBTED, reach.window_ms))]
            }
            Born::Unknown => [Some(since(ACCEPTED, reach.look_back_ms)), None],
        };
        ranges.into_iter().flatten()
    }

    /// Hours since the epoch.
    pub fn hour(self) -> u32 {
        self.0 & LAST_HOUR
    }

    pub fn to_bits(self) -> u32 {
        self.0
    }

    pub fn from_bits(bits: u32) -> Option<Self> {
        (bits >> KIND <= DOUBTED).then_some(Self(bits))
    }
}

/// The hour of a moment, since the epoch.
pub(super) fn hour_of(ms: u64) -> u32 {
    u32::try_from(ms / HOUR_MS).unwrap_or(LAST_HOUR).min(LAST_HOUR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REACH: Reach = Reach {
        window_ms: 168 * HOUR_MS,
        look_back_ms: 24 * HOUR_MS,
        ahead_ms: 24 * HOUR_MS,
    };

    fn found(born: Born, filed_at: u64, sought_at: u64) -> bool {
        let shelf = Shelf::of(born, filed_at, REACH);
        Shelf::search(born, sought_at, REACH).any(|range| range.contains(&shelf))
    }

    #[test]
    fn an_id_is_looked_for_in_the_hour_of_its_message_alone() {
        let now = 500_000 * HOUR_MS;
        let ranges: Vec<_> = Shelf::search(Born::At(now - 5), now, REACH).collect();
        assert_eq!(ranges[0], Shelf(499_999)..=Shelf(499_999));
        assert_eq!(Shelf::of(Born::At(now - 5), now, REACH), Shelf(499_999));
        assert!(!ranges[1].contains(&Shelf::of(Born::At(now), now, REACH)));
        assert!(!ranges[1].contains(&Shelf::of(Born::Unknown, now, REACH)));
    }

    proptest! {
        #[test]
        fn a_message_finds_its_id_for_the_whole_window(
            filed_at in 0..2_000 * HOUR_MS,
            later in 0..=168 * HOUR_MS,
            born in prop_oneof![any::<u64>(), 0..3_000 * HOUR_MS],
        ) {
            prop_assert!(found(Born::At(born), filed_at, filed_at + later));
            // A clock that goes back hides nothing.
            prop_assert!(found(Born::At(born), filed_at, filed_at.saturating_sub(later)));
        }

        #[test]
        fn an_id_without_a_time_is_found_for_the_look_back(
            filed_at in 0..2_000 * HOUR_MS,
            later in 0..=24 * HOUR_MS,
        ) {
            prop_assert!(found(Born::Unknown, filed_at, filed_at + later));
            prop_assert!(!found(Born::Unknown, filed_at, filed_at + 25 * HOUR_MS));
        }
    }
}
