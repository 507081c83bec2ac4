//! Whether a journal is the one that the cluster knows, and not older. Pure.
//!
//! A volume that was restored from a backup, or cloned, still holds messages as pending that were delivered since. Nothing
//! in the volume can tell: whatever is written there is restored with it. So the cluster keeps a record outside, a
//! ConfigMap that the controller writes from what the bridge tells: the journal's id, and how far it had got. A bridge
//! compares before it delivers anything that a run before it accepted.
//!
//! Not for reading or writing either: `bridge/lineage` and `controller/bridge.rs` do.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize, de::Error as _};

/// The record's name, in the release's namespace, unless another is set.
pub const DEFAULT_RECORD: &str = "aura-whatsapp-operator-journal";

/// How many numbers a journal passes over that takes another's place: more than the other can have given away between
/// what is recorded of it and its end. A message's number is part of what WhatsApp tells
/// back of a send, so none may come twice.
pub const NUMBERS_PASSED_OVER: u64 = 1 << 24;

/// What tells one journal from another: chance, made with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct JournalId(pub u128);

/// How far a journal has got: its newest segment, and the bytes of that which are synced. Every commit moves it on, be it
/// of a message or of a message's end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Mark {
    /// The segment's number; 0: there is none.
    pub segment: u64,
    /// Bytes of it.
    pub bytes: u64,
}

/// What the cluster knows of the journal, and what a bridge tells for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Which journal.
    pub id: JournalId,
    /// How far it had got, at least.
    pub mark: Mark,
    /// The number that its next message would have had.
    pub next_number: u64,
    /// Messages that were not settled.
    pub pending: u64,
}

/// What a bridge tells of its journal: nothing before it has judged it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Told {
    /// What is to be recorded.
    pub journal: Option<Record>,
}

/// What is written is no id, no mark or no record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not understood: {0}")]
pub struct NotUnderstood(&'static str);

/// A journal as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// Which one it says it is.
    pub id: JournalId,
    /// It has seen itself in the cluster's record.
    pub was_recorded: bool,
    /// How far it had got when it was found, or when it was first found without being judged.
    pub mark: Mark,
    /// The record that it took the place of when it got its id.
    pub follows: Option<(JournalId, Mark)>,
}

/// What is so of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is the cluster's, or the first.
    Current,
    /// It is empty, and the one that the cluster knew is gone. Nothing is sent twice; what that one held is lost.
    Replaced,
    /// What it holds may have been delivered already.
    Rewound(Why),
}

/// Why a journal is not trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It is the cluster's as it was before: restored.
    Older,
    /// The cluster knows another: a clone, or one that was restored or repaired beside it.
    Another,
    /// It was recorded once, and not in this cluster, or its record is gone.
    NotRecorded,
}

/// Judges a journal.
pub fn judge(recorded: Option<&Record>, own: &Own) -> Verdict {
    let is_empty = own.mark == Mark::default();
    match recorded {
        None if own.was_recorded && !is_empty => Verdict::Rewound(Why::NotRecorded),
        None => Verdict::Current,
        Some(record) if record.id == own.id && own.mark >= record.mark => Verdict::Current,
        // It was judged against this very record before, and nothing has been recorded since.
        Some(record)
            if own
                .follows
                .is_some_and(|(id, mark)| id == record.id && mark >= record.mark) =>
        {
            Verdict::Current
        }
        Some(_) if is_empty => Verdict::Replaced,
        Some(record) if record.id == own.id => Verdict::Rewound(Why::Older),
        Some(_) => Verdict::Rewound(Why::Another),
    }
}

/// What is to be recorded; `None`: nothing new. The mark never goes back: that would forget what it is for.
pub fn to_record(recorded: Option<&Record>, told: Told) -> Option<Record> {
    let told = told.journal?;
    match recorded {
        Some(record) if record.id == told.id && record.mark >= told.mark => None,
        _ => Some(told),
    }
}

impl Why {
    /// It, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Older => "it is older than what the cluster has recorded of it: restored from a copy",
            Self::Another => "the cluster has recorded another journal: this one is a copy, or was repaired",
            Self::NotRecorded => "it was recorded once, and this cluster has no record of it",
        }
    }
}

impl Record {
    /// The data of its ConfigMap.
    pub fn data(&self) -> BTreeMap<String, String> {
        [
            ("id", self.id.to_string()),
            ("mark", self.mark.to_string()),
            ("nextNumber", self.next_number.to_string()),
            ("pending", self.pending.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    /// Reads the data of its ConfigMap.
    ///
    /// # Errors
    /// When it is not a record's.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Self, NotUnderstood> {
        fn part<T: FromStr>(data: &BTreeMap<String, String>, key: &'static str) -> Result<T, NotUnderstood> {
            let text = data.get(key).ok_or(NotUnderstood(key))?;
            text.parse().map_err(|_| NotUnderstood(key))
        }
        Ok(Self {
            id: part(data, "id")?,
            mark: part(data, "mark")?,
            next_number: part(data, "nextNumber")?,
            pending: part(data, "pending")?,
        })
    }
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for JournalId {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        let is_hex = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or(NotUnderstood("a journal's id"))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.segment, self.bytes)
    }
}

impl FromStr for Mark {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        let parts = text.split_once('.');
        let mark = parts.and_then(|(segment, bytes)| {
            Some(Self {
                segment: segment.parse().ok()?,
                bytes: bytes.parse().ok()?,
            })
        });
        mark.ok_or(NotUnderstood("a journal's mark"))
    }
}

/// As text, in JSON as in the ConfigMap: a number of 128 bits is none that every reader of JSON keeps.
macro_rules! as_text {
    ($($kind:ident),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

as_text!(JournalId, Mark);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: JournalId = JournalId(0xa);
    const B: JournalId = JournalId(0xb);

    fn mark(segment: u64, bytes: u64) -> Mark {
        Mark { segment, bytes }
    }

    fn record(id: JournalId, mark: Mark) -> Record {
        Record {
            id,
            mark,
            next_number: 7,
            pending: 2,
        }
    }

    fn own(id: JournalId, mark: Mark) -> Own {
        Own {
            id,
            was_recorded: true,
            mark,
            follows: None,
        }
    }

    #[test]
    fn a_journal_that_has_got_as_far_as_its_record_or_further_is_current() {
        let recorded = record(A, mark(3, 640));
        for at in [mark(3, 640), mark(3, 704), mark(4, 64)] {
            assert_eq!(judge(Some(&recorded), &own(A, at)), Verdict::Current, "{at}");
        }
    }

    #[test]
    fn a_restored_copy_is_rewound_however_little_is_missing() {
        let recorded = record(A, mark(3, 640));
        for at in [mark(3, 608), mark(2, 9_000), mark(1, 64)] {
            assert_eq!(
                judge(Some(&recorded), &own(A, at)),
                Verdict::Rewound(Why::Older),
                "{at}"
            );
        }
    }

    #[test]
    fn another_journal_is_rewound_however_far_it_has_got() {
        let recorded = record(A, mark(3, 640));
        assert_eq!(
            judge(Some(&recorded), &own(B, mark(900, 64))),
            Verdict::Rewound(Why::Another)
        );
        let fresh = Own {
            was_recorded: false,
            ..own(B, mark(2, 64))
        };
        assert_eq!(
            judge(Some(&recorded), &fresh),
            Verdict::Rewound(Why::Another),
            "a journal from before there were records"
        );
    }

    #[test]
    fn an_empty_journal_in_the_place_of_another_is_no_rewind() {
        let recorded = record(A, mark(3, 640));
        assert_eq!(
            judge(Some(&recorded), &own(B, Mark::default())),
            Verdict::Replaced
        );
        assert_eq!(
            judge(Some(&recorded), &own(A, Mark::default())),
            Verdict::Replaced,
            "its segments were removed by hand"
        );
    }

    #[test]
    fn without_a_record_only_a_journal_that_had_one_is_rewound() {
        let first = Own {
            was_recorded: false,
            ..own(A, mark(2, 64))
        };
        assert_eq!(
            judge(None, &first),
            Verdict::Current,
            "an upgrade, or no controller that records"
        );
        assert_eq!(judge(None, &own(A, Mark::default())), Verdict::Current);
        assert_eq!(
            judge(None, &own(A, mark(2, 64))),
            Verdict::Rewound(Why::NotRecorded)
        );
    }

    #[test]
    fn a_journal_that_was_judged_is_not_judged_by_the_same_record_again() {
        let recorded = record(A, mark(3, 640));
        let judged = Own {
            follows: Some((A, mark(3, 640))),
            was_recorded: false,
            ..own(B, mark(5, 64))
        };
        assert_eq!(judge(Some(&recorded), &judged), Verdict::Current);
        // Somebody has gone on with the other one since.
        let later = record(A, mark(3, 704));
        assert_eq!(judge(Some(&later), &judged), Verdict::Rewound(Why::Another));
    }

    #[test]
    fn only_a_judged_journal_is_recorded_and_its_mark_never_goes_back() {
        let told = |id, at| Told {
            journal: Some(record(id, at)),
        };
        let recorded = record(A, mark(3, 640));
        assert_eq!(to_record(None, Told::default()), None);
        assert_eq!(to_record(Some(&recorded), Told::default()), None);
        assert_eq!(to_record(Some(&recorded), told(A, mark(3, 640))), None);
        assert_eq!(to_record(Some(&recorded), told(A, mark(3, 608))), None);
        let on = record(A, mark(3, 672));
        assert_eq!(to_record(Some(&recorded), told(A, mark(3, 672))), Some(on));
        let other = record(B, mark(1, 64));
        assert_eq!(to_record(Some(&recorded), told(B, mark(1, 64))), Some(other));
        assert_eq!(to_record(None, told(B, mark(1, 64))), Some(other));
    }

    #[test]
    fn what_is_no_record_is_not_read_as_one() {
        let good = record(A, mark(3, 640)).data();
        assert_eq!(Record::read(&good), Ok(record(A, mark(3, 640))));
        for (key, value) in [
            ("id", "a"),
            ("id", "+000000000000000000000000000000a"),
            ("mark", "3"),
            ("mark", "-1.2"),
            ("nextNumber", ""),
            ("pending", "many"),
        ] {
            let mut data = good.clone();
            data.insert(key.to_owned(), value.to_owned());
            assert!(Record::read(&data).is_err(), "{key}: {value}");
            data.remove(key);
            assert!(Record::read(&data).is_err(), "without {key}");
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            id: u128, segment: u64, bytes: u64, next_number: u64, pending: u64,
        ) {
            let record = Record { id: JournalId(id), mark: mark(segment, bytes), next_number, pending };
            prop_assert_eq!(Record::read(&record.data()), Ok(record));
            let json = serde_json::to_string(&record).unwrap();
            prop_assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
        }

        /// Whatever was recorded of a journal while it ran, an older copy of it is never current.
        #[test]
        fn no_older_copy_is_ever_current(
            marks in prop::collection::vec((0_u64..4, 1_u64..50), 2..20), copied in 0_usize..19,
        ) {
            let mut marks: Vec<Mark> = marks.into_iter().map(|(a, b)| mark(a + 1, b * 32)).collect();
            marks.sort();
            marks.dedup();
            let mut recorded = None;
            for at in &marks {
                let told = Told { journal: Some(record(A, *at)) };
                recorded = to_record(recorded.as_ref(), told).or(recorded);
            }
            let copy = marks[copied % marks.len()];
            let is_newest = Some(&copy) == marks.last();
            let verdict = judge(recorded.as_ref(), &own(A, copy));
            prop_assert_eq!(verdict == Verdict::Current, is_newest);
        }
    }
}
