//! The work queue: which channels are to be reconciled now, which later, and which are under way. Pure: moments come in.
//!
//! A channel is in it once at most. What is added while it is under way is not lost: it is reconciled again as soon as
//! that pass is over. An earlier moment wins over a later one.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use super::object_key::ObjectKey;

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// In the row.
    Ready,
    /// It comes into the row then.
    Later(Instant),
    /// A pass is under way.
    UnderWay {
        /// Another is to follow at once.
        again: bool,
    },
}

/// All that is to be done.
#[derive(Debug, Default)]
pub(super) struct WorkQueue {
    slots: HashMap<ObjectKey, Slot>,
    /// In the order of coming. Who is in here and not `Ready` (it was forgotten meanwhile) is passed over.
    row: VecDeque<ObjectKey>,
    later: BTreeSet<(Instant, ObjectKey)>,
}

impl WorkQueue {
    /// A channel is to be reconciled now.
    pub fn add(&mut self, key: &ObjectKey) {
        match self.slots.get_mut(key) {
            Some(Slot::Ready) => return,
            Some(Slot::UnderWay { again }) => {
                *again = true;
                return;
            }
            Some(slot @ Slot::Later(_)) => {
                if let Slot::Later(at) = std::mem::replace(slot, Slot::Ready) {
                    self.later.remove(&(at, key.clone()));
                }
            }
            None => {
                self.slots.insert(key.clone(), Slot::Ready);
            }
        }
        self.row.push_back(key.clone());
    }

    /// The next one whose pass may begin: it is under way then, until [`done`](Self::done).
    pub fn next(&mut self, now: Instant) -> Option<ObjectKey> {
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((_, key)) = self.later.pop_first()
        {
            self.slots.insert(key.clone(), Slot::Ready);
            self.row.push_back(key);
        }
        while let Some(key) = self.row.pop_front() {
            if let Some(slot @ Slot::Ready) = self.slots.get_mut(&key) {
                *slot = Slot::UnderWay { again: false };
                return Some(key);
            }
        }
        // A burst needs its room only while it lasts.
        self.row.shrink_to(64);
        None
    }

    /// A pass is over. Without another one to come `at` a moment, the channel leaves the queue.
    pub fn done(&mut self, key: &ObjectKey, at: Option<Instant>) {
        let Some(slot @ Slot::UnderWay { .. }) = self.slots.get_mut(key) else {
            return;
        };
        match (*slot, at) {
            (Slot::UnderWay { again: true }, _) => {
                *slot = Slot::Ready;
                self.row.push_back(key.clone());
            }
            (_, Some(at)) => {
                *slot = Slot::Later(at);
                self.later.insert((at, key.clone()));
            }
            (_, None) => {
                self.slots.remove(key);
            }
        }
    }

    /// The channel is gone. A pass that is under way goes on, and is the last.
    pub fn forget(&mut self, key: &ObjectKey) {
        match self.slots.get_mut(key) {
            Some(Slot::UnderWay { again }) => *again = false,
            Some(slot) => {
                if let Slot::Later(at) = *slot {
                    self.later.remove(&(at, key.clone()));
                }
                self.slots.remove(key);
            }
            None => {}
        }
    }

    /// When the next one comes into the row by itself.
    pub fn next_at(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// How many are in the row: they wait for a place.
    pub fn depth(&self) -> usize {
        self.slots.values().filter(|slot| **slot == Slot::Ready).count()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> ObjectKey {
        ObjectKey::new("n", n.to_string())
    }

    #[test]
    fn they_come_in_the_order_of_coming_and_each_once() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for n in [2, 1, 2, 3, 1] {
            queue.add(&key(n));
        }
        assert_eq!(queue.depth(), 3);
        let order: Vec<_> = std::iter::from_fn(|| queue.next(now)).collect();
        assert_eq!(order, [key(2), key(1), key(3)]);
    }

    #[test]
    fn what_is_added_while_it_is_under_way_comes_again_at_once_however_late_it_was_to_come() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.add(&key(1));
        assert_eq!(queue.next(now), Some(key(1)));
        queue.add(&key(1));
        assert_eq!(queue.next(now), None, "not twice at the same time");
        queue.done(&key(1), Some(now + Duration::from_secs(3600)));
        assert_eq!(queue.next(now), Some(key(1)));
    }

    #[test]
    fn an_earlier_moment_wins_and_a_later_one_is_waited_for() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for n in [1, 2] {
            queue.add(&key(n));
            queue.next(now);
            queue.done(&key(n), Some(now + Duration::from_secs(u64::from(n))));
        }
        assert_eq!(queue.next(now), None);
        assert_eq!(queue.next_at(), Some(now + Duration::from_secs(1)));
        queue.add(&key(2));
        assert_eq!(queue.next(now), Some(key(2)));
        assert_eq!(queue.next(now + Duration::from_secs(1)), Some(key(1)));
        assert_eq!(queue.next_at(), None);
    }

    #[test]
    fn who_is_gone_does_not_come() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        for n in [1, 2, 3] {
            queue.add(&key(n));
        }
        queue.next(now);
        queue.done(&key(1), Some(now));
        assert_eq!(queue.next(now), Some(key(2)));
        queue.add(&key(2));
        for n in [1, 2, 3] {
            queue.forget(&key(n));
        }
        queue.done(&key(2), None);
        assert_eq!(queue.next(now), None);
        assert_eq!((queue.depth(), queue.next_at()), (0, None));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add(u8),
        Next,
        Done(u8, Option<u8>),
        Forget(u8),
        Wait(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..5).prop_map(Op::Add),
            Just(Op::Next),
            (0u8..5, proptest::option::of(0u8..9)).prop_map(|(n, at)| Op::Done(n, at)),
            (0u8..5).prop_map(Op::Forget),
            (0u8..5).prop_map(Op::Wait),
        ]
    }

    proptest! {
        /// Beside a model that is plain and slow: for each channel whether it is wanted, when, and whether it is under way.
        #[test]
        fn nothing_is_forgotten_nor_done_twice_at_once(ops in proptest::collection::vec(op(), 0..200)) {
            let start = Instant::now();
            let (mut queue, mut now) = (WorkQueue::default(), start);
            let mut wanted: BTreeMap<u8, Instant> = BTreeMap::new();
            let mut under_way: BTreeSet<u8> = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Add(n) => {
                        queue.add(&key(n));
                        wanted.entry(n).and_modify(|at| *at = now.min(*at)).or_insert(now);
                    }
                    Op::Next => {
                        let due = wanted.iter().any(|(n, at)| *at <= now && !under_way.contains(n));
                        let got = queue.next(now);
                        prop_assert_eq!(got.is_some(), due);
                        if let Some(got) = got {
                            let n: u8 = got.name.parse().unwrap();
                            let at = wanted.remove(&n);
                            prop_assert!(at.is_some_and(|at| at <= now), "nobody wanted {}", n);
                            prop_assert!(under_way.insert(n), "{} is under way already", n);
                        }
                    }
                    Op::Done(n, after) => {
                        let at = after.map(|after| now + Duration::from_secs(after.into()));
                        queue.done(&key(n), at);
                        if under_way.remove(&n) && let Some(at) = at {
                            wanted.entry(n).and_modify(|known| *known = at.min(*known)).or_insert(at);
                        }
                    }
                    Op::Forget(n) => {
                        queue.forget(&key(n));
                        wanted.remove(&n);
                    }
                    Op::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                }
                let waiting = || wanted.iter().filter(|(n, _)| !under_way.contains(n)).map(|(_, at)| *at);
                if waiting().all(|at| at > now) {
                    prop_assert_eq!(queue.next_at(), waiting().min());
                }
            }
        }
    }
}
