//! When something may be done again without anything else happening. Pure; times are ms since some start.
//!
//! A timer is never taken back: what it was for says whether it is still waited for. So one costs 24 bytes until its
//! time, and there are no more than waits.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{backlog::LaneId, fair::Slot};

/// What is looked at when its time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A lane, if it still waits for the timer of this number.
    Lane(LaneId, u32),
    /// A channel's direction.
    Slot(Slot),
    /// A channel.
    Channel(u32),
    /// An environment's direction, by the numbers of both.
    Gate(u32, u8),
}

/// All timers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(u64, Timer)>>,
    last: u32,
}

impl Timers {
    pub fn set(&mut self, at: u64, timer: Timer) {
        self.heap.push(Reverse((at, timer)));
    }

    /// Sets a lane's timer. The lane keeps its number, which is not 0.
    pub fn set_for_lane(&mut self, at: u64, lane: LaneId) -> u32 {
        self.last = self.last.wrapping_add(1).max(1);
        self.set(at, Timer::Lane(lane, self.last));
        self.last
    }

    /// The next timer whose time has come.
    pub fn due(&mut self, now: u64) -> Option<Timer> {
        let Reverse((at, timer)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        Some(timer)
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}
