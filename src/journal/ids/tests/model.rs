//! Against a plain map: whatever happens in between, what must be known is known with its number, and what was never
//! accepted is not.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::disk::Disk;
use super::{Born, HOUR_MS, START, alike, key, merge_all, open, remove, small};
use crate::journal::ids::{Frozen, Ids};
use crate::journal::{DedupKey, Seq};

#[derive(Clone, Debug)]
enum Step {
    /// So many new ids, born so many minutes from now (none: without a time).
    Insert(u16, Option<i32>),
    /// All ids of the model, with their own times, and some unknown ones.
    FindAll,
    Later(u32),
    Freeze,
    /// Writes and adopts what is frozen; true: the disk is full.
    Write(bool),
    Merge,
    Forget,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let minutes = prop_oneof![
        6 => -90..30,
        2 => -10_000..1_500,
        1 => any::<i32>(),
    ];
    prop_oneof![
        6 => (0..250u16, proptest::option::weighted(0.8, minutes)).prop_map(|(n, born)| Step::Insert(n, born)),
        2 => Just(Step::FindAll),
        3 => (0..400u32).prop_map(Step::Later),
        1 => (0..6_000u32).prop_map(Step::Later),
        3 => Just(Step::Freeze),
        4 => any::<bool>().prop_map(Step::Write),
        2 => Just(Step::Merge),
        1 => Just(Step::Forget),
        1 => Just(Step::Reopen),
    ]
}

struct World {
    disk: Disk,
    ids: Ids,
    frozen: Option<Frozen>,
    now_ms: u64,
    horizon_ms: u64,
    key: fn(u64) -> DedupKey,
    /// By number: its own time and that of its acceptance.
    accepted: BTreeMap<u64, (Born, u64)>,
}

impl World {
    fn new(key: fn(u64) -> DedupKey) -> Self {
        let disk = Disk::default();
        Self {
            ids: open(&disk),
            disk,
            frozen: None,
            now_ms: START + 5 * HOUR_MS / 7,
            horizon_ms: 0,
            key,
            accepted: BTreeMap::new(),
        }
    }

    /// Whether the law wants it known: for the window after its acceptance, unless it is too old by its own time.
    fn must_be_known(&self, born: Born, accepted_at_ms: u64) -> bool {
        let age_ms = self.now_ms - accepted_at_ms;
        let window_ms = 168 * HOUR_MS;
        let not_forgotten = match born {
            Born::At(ms) => age_ms <= window_ms && ms >= self.now_ms - window_ms && ms >= self.horizon_ms,
            Born::Unknown => age_ms <= 24 * HOUR_MS,
        };
        not_forgotten && accepted_at_ms >= self.horizon_ms
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Insert(count, minutes) => {
                let born = minutes.map_or(Born::Unknown, |minutes| {
                    Born::At(self.now_ms.saturating_add_signed(i64::from(minutes) * 60_000))
                });
                for _ in 0..*count {
                    let number = self.accepted.len() as u64 + 1;
                    self.ids
                        .insert(&(self.key)(number), born, self.now_ms, Seq(number));
                    self.accepted.insert(number, (born, self.now_ms));
                }
            }
            Step::FindAll => self.find_all(),
            Step::Later(minutes) => self.now_ms += u64::from(*minutes) * 60_000,
            Step::Freeze => self.frozen = self.ids.freeze().or(self.ids.frozen()),
            Step::Write(full) => {
                self.disk.set_full(*full);
                let written = self.frozen.as_ref().map(|frozen| frozen.write(&self.disk));
                self.disk.set_full(false);
                match written {
                    Some(Ok(run)) => {
                        assert!(self.ids.adopt(run).is_empty());
                        self.frozen = None;
                    }
                    Some(Err(_)) => assert!(full),
                    None => {}
                }
            }
            Step::Merge => {
                merge_all(&mut self.ids, &self.disk);
            }
            Step::Forget => {
                self.horizon_ms = self.now_ms - 168 * HOUR_MS;
                let files = self.ids.forget_before(self.horizon_ms);
                remove(&self.disk, files);
            }
            Step::Reopen => {
                // What is in no run comes from the journal's log.
                self.ids = open(&self.disk);
                self.frozen = None;
                let sealed = self.ids.sealed_through();
                for (number, (born, at_ms)) in self.accepted.range(sealed.0 + 1..) {
                    self.ids.insert(&(self.key)(*number), *born, *at_ms, Seq(*number));
                }
            }
        }
        let held = self.ids.stats();
        assert!(held.filter_bytes <= small().filter_bytes as u64, "{held:?}");
    }

    fn find_all(&mut self) {
        for (number, (born, accepted_at_ms)) in &self.accepted {
            let found = self.ids.find(&(self.key)(*number), *born, self.now_ms).unwrap();
            if found.is_some() || self.must_be_known(*born, *accepted_at_ms) {
                assert_eq!(found, Some(Seq(*number)), "{born:?} at {accepted_at_ms}");
            }
            let unknown = (self.key)(*number + 1_000_000);
            assert_eq!(self.ids.find(&unknown, *born, self.now_ms).unwrap(), None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_must_be_known_is_known(
        steps in proptest::collection::vec(step(), 1..60),
        uniform in proptest::bool::weighted(0.8),
    ) {
        let mut world = World::new(if uniform { key } else { alike });
        for step in &steps {
            world.step(step);
        }
        world.find_all();
    }
}
