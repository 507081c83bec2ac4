//! What a journal knows of its own lineage: a small file in its directory, so that a copy of the journal takes it along.
//! Pure.

use serde::{Deserialize, Serialize};

use crate::{
    api::ChannelId,
    delivery::OfChannel,
    journal::Pending,
    lineage::{JournalId, Mark, NUMBERS_PASSED_OVER, Own, Record, Verdict, judge},
};

const FORMAT: u32 = 1;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    format: u32,
    id: JournalId,
    /// It has seen itself in the cluster's record.
    was_recorded: bool,
    /// How far it had got at the first start that has not been judged yet: what is accepted since makes it no younger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unjudged: Option<Found>,
    /// The record that it took the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    follows: Option<Followed>,
    /// No message gets a number below this one.
    next_number: u64,
    /// Which of its messages wait for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<Held>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    mark: Mark,
    next_number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Followed {
    id: JournalId,
    mark: Mark,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    /// Those with a lower number, as far as they are pending,
    below: u64,
    /// but for those of channels that a person has released.
    released: Vec<ChannelId>,
}

impl Kept {
    /// That of a journal that has none.
    pub fn new(id: JournalId) -> Self {
        Self {
            format: FORMAT,
            id,
            was_recorded: false,
            unjudged: None,
            follows: None,
            next_number: 0,
            held: None,
        }
    }

    /// Reads it; `None` where it is not one that this release understands.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes)
            .ok()
            .filter(|kept: &Self| kept.format == FORMAT)
    }

    /// A process has found the journal like this.
    #[must_use]
    pub fn found(mut self, mark: Mark, next_number: u64) -> Self {
        self.unjudged.get_or_insert(Found { mark, next_number });
        self
    }

    /// Which journal it is.
    pub fn id(&self) -> JournalId {
        self.id
    }

    /// The lowest number that its next message may get.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// The journal is judged by the cluster's record. `fresh` is its id if it takes that one's place; `waived`: a person
    /// has said already that what it held may be sent.
    pub fn judged(&self, recorded: Option<&Record>, fresh: JournalId, waived: bool) -> (Self, Verdict) {
        let found = self.unjudged.unwrap_or(Found {
            mark: Mark::default(),
            next_number: 0,
        });
        let verdict = judge(
            recorded,
            &Own {
                id: self.id,
                was_recorded: self.was_recorded,
                mark: found.mark,
                follows: self.follows.map(|followed| (followed.id, followed.mark)),
            },
        );
        let mut kept = self.clone();
        kept.unjudged = None;
        if verdict == Verdict::Current {
            kept.sees(recorded);
            return (kept, verdict);
        }
        kept.id = fresh;
        kept.was_recorded = false;
        kept.follows = recorded.map(|record| Followed {
            id: record.id,
            mark: record.mark,
        });
        let given = recorded
            .map_or(0, |record| record.next_number)
            .max(found.next_number);
        kept.next_number = kept.next_number.max(given.saturating_add(NUMBERS_PASSED_OVER));
        if let (Verdict::Rewound(_), false) = (verdict, waived) {
            kept.held = Some(Held {
                below: found.next_number,
                released: Vec::new(),
            });
        }
        (kept, verdict)
    }

    /// Takes note of the cluster's record. Says whether the journal stands in it.
    pub fn sees(&mut self, recorded: Option<&Record>) -> bool {
        let is_there = recorded.is_some_and(|record| record.id == self.id);
        if is_there {
            self.was_recorded = true;
            self.follows = None;
        }
        is_there
    }

    /// Whether a message waits for a person.
    pub fn holds(&self, message: &Pending) -> bool {
        let channel = ChannelId::from_bytes(message.address.channel);
        self.held
            .as_ref()
            .is_some_and(|held| message.seq.0 < held.below && !held.released.contains(&channel))
    }

    /// A person releases those that wait for him.
    #[must_use]
    pub fn released(&self, of: OfChannel) -> Self {
        let mut kept = self.clone();
        match (of, &mut kept.held) {
            (None, held) => *held = None,
            (Some(channel), Some(held)) if !held.released.contains(&channel) => held.released.push(channel),
            (Some(_), _) => {}
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{Address, ContactKey, Direction, Note, Seq},
        lineage::Why,
    };

    const OWN: JournalId = JournalId(1);
    const FRESH: JournalId = JournalId(2);

    fn mark(segment: u64, bytes: u64) -> Mark {
        Mark { segment, bytes }
    }

    fn record(id: JournalId, mark: Mark) -> Record {
        Record {
            id,
            mark,
            next_number: 500,
            pending: 3,
        }
    }

    fn message(seq: u64, channel: u8) -> Pending {
        Pending {
            seq: Seq(seq),
            address: Address {
                direction: Direction::ToAura,
                channel: [channel; 16],
                environment: [1; 8],
                tag: [2; 6],
                contact: ContactKey([1; 16]),
            },
            accepted_at_ms: 1,
            request: None,
            note: Note::default(),
            replayed: false,
            origin: crate::journal::Origin::default(),
        }
    }

    /// A journal that was found like this, and stands in the record.
    fn recorded_journal(at: Mark) -> Kept {
        let mut kept = Kept::new(OWN).found(at, 40);
        assert!(kept.sees(Some(&record(OWN, at))));
        kept
    }

    #[test]
    fn what_is_accepted_before_a_journal_is_judged_makes_an_old_copy_no_younger() {
        let copy = recorded_journal(mark(3, 64));
        // It has accepted messages since, and was started again, once more without the API server.
        let copy = copy.found(mark(9, 640), 90);
        let (kept, verdict) = copy.judged(Some(&record(OWN, mark(5, 64))), FRESH, false);
        assert_eq!(verdict, Verdict::Rewound(Why::Older));
        assert!(kept.holds(&message(39, 1)));
        assert!(!kept.holds(&message(40, 1)), "that one is new");
        assert_eq!(kept.id(), FRESH);
        assert!(kept.next_number() > 500, "{}", kept.next_number());
    }

    #[test]
    fn a_judged_journal_is_current_at_its_next_start_and_still_holds_what_it_held() {
        let recorded = record(OWN, mark(5, 64));
        let (kept, _) = recorded_journal(mark(3, 64)).judged(Some(&recorded), FRESH, false);
        // The controller has not recorded it yet, or has.
        for recorded in [recorded, record(FRESH, mark(4, 64))] {
            let next = kept.clone().found(mark(4, 640), 700);
            let (next, verdict) = next.judged(Some(&recorded), JournalId(3), false);
            assert_eq!(verdict, Verdict::Current);
            assert_eq!(next.id(), FRESH);
            assert!(next.holds(&message(39, 1)));
        }
        // And the one that it was a copy of is a stranger from then on.
        let original = recorded_journal(mark(6, 64));
        let (_, verdict) = original.judged(Some(&record(FRESH, mark(4, 64))), JournalId(3), false);
        assert_eq!(verdict, Verdict::Rewound(Why::Another));
    }

    #[test]
    fn a_person_releases_a_channel_or_all() {
        let recorded = record(OWN, mark(5, 64));
        let (kept, _) = recorded_journal(mark(3, 64)).judged(Some(&recorded), FRESH, false);
        let channel = ChannelId::from_bytes([1; 16]);
        let some = kept.released(Some(channel)).released(Some(channel));
        assert!(!some.holds(&message(1, 1)) && some.holds(&message(1, 2)));
        let all = some.released(None);
        assert!(!all.holds(&message(1, 2)));
        assert_eq!(all.released(Some(channel)), all);
    }

    #[test]
    fn what_a_person_has_waived_is_not_held_and_the_journal_is_another_all_the_same() {
        let recorded = record(OWN, mark(5, 64));
        let (kept, verdict) = recorded_journal(mark(3, 64)).judged(Some(&recorded), FRESH, true);
        assert_eq!((verdict, kept.id()), (Verdict::Rewound(Why::Older), FRESH));
        assert!(!kept.holds(&message(1, 1)));
    }

    #[test]
    fn an_empty_journal_holds_nothing_and_passes_over_the_numbers_of_the_one_before() {
        let empty = Kept::new(OWN).found(Mark::default(), 1);
        let (kept, verdict) = empty.judged(Some(&record(JournalId(9), mark(5, 64))), FRESH, false);
        assert_eq!(verdict, Verdict::Replaced);
        assert!(!kept.holds(&message(1, 1)));
        assert_eq!(kept.next_number(), 500 + NUMBERS_PASSED_OVER);
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_another_format_is_none() {
        let recorded = record(OWN, mark(5, 64));
        let (kept, _) = recorded_journal(mark(3, 64)).judged(Some(&recorded), FRESH, false);
        let kept = kept
            .released(Some(ChannelId::from_bytes([1; 16])))
            .found(mark(7, 7), 8);
        let bytes = serde_json::to_vec(&kept).unwrap();
        assert_eq!(Kept::read(&bytes), Some(kept));
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            Kept::read(text.replace("\"format\":1", "\"format\":2").as_bytes()),
            None
        );
        assert_eq!(Kept::read(&text.as_bytes()[..text.len() / 2]), None);
    }
}
