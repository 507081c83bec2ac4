//! Whose turn it is, and how many places there are (Law 4). Pure.
//!
//! Channels take turns: deficit round robin with a message as the unit, so that a turn is one message. A message and
//! not its bytes, because what is scarce is a call and the place that it holds until it is answered; bodies are small
//! (1 MiB at most) and not read before their turn.
//!
//! What is under way at once is bounded, and no party may hold all of it: one environment's direction has three
//! quarters at most, so that an Aura or Kernel that hangs leaves room for the others; channels whose last call found
//! nobody have half of it together, and each one at a time.

use std::collections::{HashSet, VecDeque};

/// A channel's direction: twice the channel's number, and one for Kernel.
pub(super) type Slot = u32;

/// The turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    queue: VecDeque<Slot>,
    queued: HashSet<Slot>,
}

impl Turns {
    /// Gives it a turn, at the end, if it has none.
    pub fn take(&mut self, slot: Slot) {
        if self.queued.insert(slot) {
            self.queue.push_back(slot);
        }
    }

    /// Whose turn it is.
    pub fn next(&mut self) -> Option<Slot> {
        let slot = self.queue.pop_front()?;
        self.queued.remove(&slot);
        Some(slot)
    }
}

/// The places for messages that are under way.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    pub taken: usize,
    /// By channels whose last call found nobody.
    pub by_struck: usize,
    /// Such channels that wait, in turn.
    pub waiting: VecDeque<Slot>,
}

impl Places {
    pub fn new(all: usize) -> Self {
        Self {
            all: all.max(1),
            taken: 0,
            by_struck: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether every place is taken.
    pub fn full(&self) -> bool {
        self.taken >= self.all
    }

    /// Whether an environment's direction with so many under way has its share.
    pub fn has_share(&self, in_flight: usize) -> bool {
        in_flight >= (self.all - self.all / 4).max(1)
    }

    /// Whether the channels whose last call found nobody have theirs.
    pub fn struck_full(&self) -> bool {
        self.by_struck >= (self.all / 2).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_turn_in_the_order_of_asking() {
        let mut turns = Turns::default();
        for slot in [3, 1, 3, 2, 1] {
            turns.take(slot);
        }
        assert_eq!(turns.next(), Some(3));
        turns.take(3);
        assert_eq!(std::iter::from_fn(|| turns.next()).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn nobody_may_hold_every_place_unless_there_is_one() {
        let places = Places::new(8);
        assert!(!places.has_share(5) && places.has_share(6));
        assert!(!places.full() && !places.struck_full());
        let one = Places::new(1);
        assert!(!one.has_share(0) && one.has_share(1) && !one.struck_full());
    }
}
