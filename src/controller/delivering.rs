//! Which conditions `Delivering` are to be written, from what the bridge tells time after time. Pure: it counts looks and
//! knows no clock.
//!
//! Only a change is written, and only one that lasts (Law 7): worse news when it is told twice in a row, better news when it
//! is told for as long as a minute takes. So a channel that goes back and forth costs two writes a minute at most, and none
//! if it is never bad for two looks.

use std::collections::HashMap;

use super::object_key::ObjectKey;
use crate::api::{ChannelId, Deliveries, Delivering};

/// Looks in a row that worse news, or the first, must be told for.
const WORSE_AFTER: u32 = 2;
/// The same for better news.
const BETTER_AFTER: u32 = 12;
/// Looks in a row that failed, before nothing is known of the channels any more.
const UNKNOWN_AFTER: u32 = 24;
/// Conditions that are written after one look: what concerns every channel is spread.
const WRITES_AT_ONCE: usize = 100;

/// A channel, as the controller knows it.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    pub key: ObjectKey,
    /// The channel it claims; `None` where another resource holds it.
    pub id: Option<ChannelId>,
    /// What its condition says; `None`: there is none.
    pub said: Option<Delivering>,
}

/// What was told of a channel that is not in its status.
#[derive(Clone, Copy, Debug)]
struct Seen {
    what: Delivering,
    /// For so many looks.
    looks: u32,
}

/// What is known from look to look.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    failed: u32,
    seen: HashMap<ObjectKey, Seen>,
    /// Written, and the watch has not told of it yet: for so many looks more nothing is written again.
    written: HashMap<ObjectKey, Seen>,
}

impl Tracker {
    /// The bridge was asked. `page` is what it answered, if it did. Says what to write.
    pub fn looked(
        &mut self,
        page: Option<&Deliveries>,
        channels: impl IntoIterator<Item = Channel>,
    ) -> Vec<(ObjectKey, Delivering)> {
        self.failed = if page.is_some() { 0 } else { self.failed + 1 };
        if page.is_none() && self.failed < UNKNOWN_AFTER {
            return Vec::new();
        }
        let (seen, written) = (std::mem::take(&mut self.seen), std::mem::take(&mut self.written));
        let mut due = Vec::new();
        // What is gone is forgotten with the old maps.
        for channel in channels {
            let Some((what, after)) = news(page, &channel) else {
                continue;
            };
            let waits = written
                .get(&channel.key)
                .filter(|written| written.what == what && written.looks > 0);
            if let Some(waits) = waits {
                let looks = waits.looks - 1;
                self.written.insert(channel.key, Seen { what, looks });
                continue;
            }
            let before = seen.get(&channel.key).filter(|seen| seen.what == what);
            let looks = before.map_or(1, |seen| seen.looks + 1);
            if looks >= after && due.len() < WRITES_AT_ONCE {
                let written = Seen {
                    what,
                    looks: BETTER_AFTER,
                };
                self.written.insert(channel.key.clone(), written);
                due.push((channel.key, what));
            } else {
                self.seen.insert(channel.key, Seen { what, looks });
            }
        }
        due
    }

    /// It could not be written: the next look tries again.
    pub fn not_written(&mut self, key: &ObjectKey) {
        if let Some(seen) = self.written.remove(key) {
            let looks = BETTER_AFTER;
            self.seen.insert(key.clone(), Seen { looks, ..seen });
        }
    }
}

/// What is to be said of a channel that is not in its status, and for how many looks it must be so.
fn news(page: Option<&Deliveries>, channel: &Channel) -> Option<(Delivering, u32)> {
    let what = match (page, channel.id) {
        (Some(page), Some(id)) => page.of(id),
        (Some(_), None) | (None, _) => Delivering::Unknown,
    };
    let after = match channel.said {
        Some(said) if said == what => return None,
        // A condition that was never there says no less than one that nothing is known for.
        None if what == Delivering::Unknown => return None,
        Some(_) if page.is_none() => 1,
        None | Some(Delivering::Unknown) => WORSE_AFTER,
        Some(_) if what == Delivering::Unknown => WORSE_AFTER,
        // They are in the order of how bad they are.
        Some(said) if what < said => WORSE_AFTER,
        Some(_) => BETTER_AFTER,
    };
    Some((what, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Delivering as D;

    const ID: ChannelId = ChannelId(uuid::Uuid::nil());

    fn page(what: D) -> Deliveries {
        let mut page = Deliveries::default();
        if what != D::Flowing {
            page.add(ID, what);
        }
        page
    }

    /// One channel, with the API server as it should be: what is written is told at once.
    struct One {
        tracker: Tracker,
        said: Option<D>,
        writes: Vec<D>,
    }

    impl One {
        fn new(said: Option<D>) -> Self {
            Self {
                tracker: Tracker::default(),
                said,
                writes: Vec::new(),
            }
        }

        fn looks(&mut self, told: Option<D>, times: u32) -> &[D] {
            let before = self.writes.len();
            for _ in 0..times {
                let channel = Channel {
                    key: ObjectKey::new("n", "a"),
                    id: Some(ID),
                    said: self.said,
                };
                let page = told.map(page);
                for (_, what) in self.tracker.looked(page.as_ref(), [channel]) {
                    self.said = Some(what);
                    self.writes.push(what);
                }
            }
            &self.writes[before..]
        }
    }

    #[test]
    fn what_does_not_change_is_written_once_and_never_again() {
        let mut one = One::new(None);
        assert_eq!(one.looks(Some(D::Flowing), 1), []);
        assert_eq!(one.looks(Some(D::Flowing), 1000), [D::Flowing]);
    }

    #[test]
    fn bad_news_is_written_soon_and_good_news_when_it_lasts() {
        let mut one = One::new(Some(D::Flowing));
        assert_eq!(one.looks(Some(D::TokenRejected), 1), []);
        assert_eq!(one.looks(Some(D::TokenRejected), 1), [D::TokenRejected]);
        assert_eq!(one.looks(Some(D::Held), 2), [D::Held], "worse");
        assert_eq!(one.looks(Some(D::DeadLetters), 11), [], "better");
        assert_eq!(one.looks(Some(D::DeadLetters), 1), [D::DeadLetters]);
        assert_eq!(one.looks(Some(D::Flowing), 12), [D::Flowing]);
    }

    #[test]
    fn a_lane_that_goes_back_and_forth_is_not_written_each_time() {
        let mut one = One::new(Some(D::Flowing));
        for _ in 0..500 {
            one.looks(Some(D::TokenRejected), 1);
            one.looks(Some(D::Flowing), 1);
        }
        assert_eq!(one.writes, []);
        one.looks(Some(D::TokenRejected), 2);
        for _ in 0..500 {
            one.looks(Some(D::Flowing), 5);
            one.looks(Some(D::TokenRejected), 1);
        }
        assert_eq!(one.writes, [D::TokenRejected], "it is not well for a minute");
    }

    #[test]
    fn a_bridge_that_is_started_anew_changes_nothing_and_one_that_stays_away_makes_it_unknown() {
        let mut one = One::new(Some(D::DeadLetters));
        assert_eq!(one.looks(None, 23), []);
        assert_eq!(one.looks(Some(D::DeadLetters), 1), []);
        assert_eq!(one.looks(None, 23), []);
        assert_eq!(one.looks(None, 100), [D::Unknown]);
        assert_eq!(one.looks(Some(D::DeadLetters), 2), [D::DeadLetters]);
        let mut never = One::new(None);
        assert_eq!(never.looks(None, 100), [], "nothing was ever said");
    }

    #[test]
    fn a_resource_that_another_one_has_taken_the_channel_from_is_unknown() {
        let mut tracker = Tracker::default();
        let mut look = |said| {
            let channel = Channel {
                key: ObjectKey::new("n", "a"),
                id: None,
                said,
            };
            let written = tracker.looked(Some(&page(D::Held)), [channel]);
            written.into_iter().map(|(_, what)| what).collect::<Vec<_>>()
        };
        assert_eq!((look(None), look(None), look(None)), (vec![], vec![], vec![]));
        assert_eq!(look(Some(D::Flowing)), []);
        assert_eq!(look(Some(D::Flowing)), [D::Unknown]);
    }

    #[test]
    fn what_was_written_is_not_written_again_while_the_watch_is_behind_and_what_failed_is() {
        let mut tracker = Tracker::default();
        let look = |tracker: &mut Tracker| {
            let channel = Channel {
                key: ObjectKey::new("n", "a"),
                id: Some(ID),
                said: Some(D::Flowing),
            };
            tracker.looked(Some(&page(D::Held)), [channel]).len()
        };
        assert_eq!((look(&mut tracker), look(&mut tracker)), (0, 1));
        for _ in 0..12 {
            assert_eq!(look(&mut tracker), 0, "the watch is behind");
        }
        assert_eq!(
            (look(&mut tracker), look(&mut tracker)),
            (0, 1),
            "somebody took it out"
        );
        tracker.not_written(&ObjectKey::new("n", "a"));
        assert_eq!(look(&mut tracker), 1);
    }

    #[test]
    fn what_concerns_every_channel_is_spread_over_several_looks() {
        let mut tracker = Tracker::default();
        let mut said = vec![Some(D::Flowing); 250];
        let mut counts = Vec::new();
        for look in 0..29 {
            let channels = said.iter().enumerate().map(|(n, said)| Channel {
                key: ObjectKey::new("n", n.to_string()),
                id: Some(ID),
                said: *said,
            });
            let due = tracker.looked(None, channels.collect::<Vec<_>>());
            if look >= 23 {
                counts.push(due.len());
            }
            for (key, what) in due {
                said[key.name.parse::<usize>().unwrap()] = Some(what);
            }
        }
        assert_eq!(counts, [100, 100, 50, 0, 0, 0]);
    }

    proptest! {
        /// Whatever is told, a channel is written twice in a minute's looks at most, and what is told for long enough stands
        /// in the status.
        #[test]
        fn writes_are_few_and_the_last_word_arrives(told in prop::collection::vec(0_usize..7, 1..200)) {
            let mut one = One::new(None);
            let mut at = Vec::new();
            for (look, told) in told.iter().enumerate() {
                let written = one.looks(D::ALL.get(*told).copied(), 1).len();
                at.extend((0..written).map(|_| look));
            }
            for times in at.windows(8) {
                prop_assert!(times[7] - times[0] >= BETTER_AFTER as usize / 2, "{at:?}");
            }
            one.looks(Some(D::Held), BETTER_AFTER + 1);
            prop_assert_eq!(one.said, Some(D::Held));
            one.looks(Some(D::Flowing), BETTER_AFTER + 1);
            prop_assert_eq!(one.said, Some(D::Flowing));
        }
    }
}
