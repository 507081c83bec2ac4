//! What people may ask of the lanes: to hold a conversation, to let it go on, to give a message up, to try one now. Pure.
//!
//! A conversation is also parked after a dead letter, where its channel says `onUndeliverable: HoldConversation`. Its
//! messages do not age meanwhile (Law 3: what is behind does not overtake what a person looks at). That a lane is
//! parked outlives the process: whoever runs the lanes writes [`Event::Parked`] down and says so to the next by
//! [`Lanes::was_parked`]. A dead letter that a person wants delivered after all is accepted again as a
//! [`Message`] that is `replayed`.

use std::time::Duration;

use super::{
    age::signed,
    backlog::{Flag, LaneId, State},
    channels::{parts, side, slot},
    ends::dropped,
    key::LaneKey,
    lanes::Lanes,
    types::{Event, Message},
};
use crate::journal::Seq;

/// Conversations' directions that may be parked at once; beyond, a dead letter parks no further one.
pub(super) const PARKED_MOST: usize = 100_000;

/// A lane that is parked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    /// What its channel's clock showed.
    since: i64,
    /// A person asked for it.
    by_person: bool,
}

/// What came of giving a message up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It is dropped.
    Now,
    /// It is under way: it is dropped unless it arrives.
    UnlessDelivered,
    /// No message with this place waits.
    NotFound,
}

impl Lanes {
    /// Holds a conversation's direction: what is under way ends, and nothing follows. Says whether it was not held.
    pub fn park(&mut self, lane: LaneKey, now: Duration) -> bool {
        self.at(now);
        let number = self.channel_number(lane.channel);
        let id = self.lane(number, slot(number, lane.direction), lane.contact);
        self.park_lane(id, true)
    }

    /// A conversation's direction was held when the run before ended, by a dead letter or a person.
    pub fn was_parked(&mut self, lane: LaneKey, now: Duration) {
        self.at(now);
        let number = self.channel_number(lane.channel);
        let id = self.lane(number, slot(number, lane.direction), lane.contact);
        self.park_lane(id, false);
    }

    /// Lets a conversation's direction go on. Says whether it was held.
    pub fn unpark(&mut self, lane: LaneKey, now: Duration) -> bool {
        self.at(now);
        let found = self.find(lane).filter(|id| self.release(*id));
        if let Some(id) = found {
            self.go_on(id);
        }
        found.is_some()
    }

    /// Gives a message up.
    pub fn drop_message(&mut self, seq: Seq, now: Duration) -> Dropped {
        self.at(now);
        let Some((id, is_head)) = self.find_message(seq) else {
            return Dropped::NotFound;
        };
        match self.backlog.lane(id).map(|lane| lane.state) {
            Some(State::UnderWay) if is_head => {
                if let Some(head) = self.backlog.head_mut(id) {
                    head.set(Flag::Dropped, true);
                }
                Dropped::UnlessDelivered
            }
            Some(State::Settling) if is_head => Dropped::NotFound,
            state => {
                self.backlog.take(id, true, |node| node.seq == seq.0);
                if let Some(lane) = self.key(id) {
                    self.settle_aside(seq, lane, dropped());
                }
                if is_head && matches!(state, Some(State::Retrying | State::Ordered)) {
                    self.rest(id);
                }
                Dropped::Now
            }
        }
    }

    /// Tries a lane's next message now if it waits for its retry. Says whether it did.
    pub fn retry_now(&mut self, lane: LaneKey, now: Duration) -> bool {
        self.at(now);
        let waits = |lanes: &Self, id| lanes.backlog.lane(id).map(|lane| lane.state) == Some(State::Retrying);
        let found = self.find(lane).filter(|id| waits(self, *id));
        if let Some(id) = found {
            self.make_ready(id);
        }
        found.is_some()
    }

    /// As [`Lanes::retry_now`], by the message that waits.
    pub fn retry_message_now(&mut self, seq: Seq, now: Duration) -> bool {
        match self.find_message(seq) {
            Some((id, true)) => self.key(id).is_some_and(|lane| self.retry_now(lane, now)),
            _ => false,
        }
    }

    /// Whether a conversation's direction is held for a person.
    pub fn is_parked(&self, lane: LaneKey) -> bool {
        self.find(lane).is_some_and(|id| self.parked.contains_key(&id))
    }

    pub(super) fn park_lane(&mut self, id: LaneId, by_person: bool) -> bool {
        if self.parked.contains_key(&id) {
            return false;
        }
        let (Some(key), Some(since)) = (self.key(id), self.clock_of(id)) else {
            return false;
        };
        self.parked.insert(id, Parked { since, by_person });
        if let Some(lane) = self.backlog.lane_mut(id) {
            lane.parked = true;
            if matches!(lane.state, State::Retrying | State::Ordered) {
                lane.state = State::Resting;
                lane.timer = 0;
            }
        }
        self.tell(Event::Parked(key));
        true
    }

    /// Takes the hold of a lane away, and the time that it was parked off its messages' age. Says whether it was held;
    /// then [`Lanes::go_on`] is to follow.
    pub(super) fn release(&mut self, id: LaneId) -> bool {
        let (Some(parked), Some(reads)) = (self.parked.remove(&id), self.clock_of(id)) else {
            return false;
        };
        self.backlog.change(id, |node| {
            node.born += (reads - parked.since.max(node.born)).max(0);
        });
        if let Some(lane) = self.backlog.lane_mut(id) {
            lane.parked = false;
        }
        if let Some(key) = self.key(id) {
            self.tell(Event::Unparked(key));
        }
        true
    }

    pub(super) fn unpark_those_after_dead_letters(&mut self, channel: u32) {
        let of_it =
            |lanes: &Self, id: LaneId| lanes.backlog.lane(id).map(|lane| lane.slot / 2) == Some(channel);
        let ids: Vec<LaneId> = self
            .parked
            .iter()
            .filter(|(id, parked)| !parked.by_person && of_it(self, **id))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.release(id);
            self.go_on(id);
        }
    }

    fn clock_of(&self, id: LaneId) -> Option<i64> {
        let (channel, direction) = parts(self.backlog.lane(id)?.slot);
        let channel = self.channels.get(channel as usize)?;
        Some(channel.sides[side(direction)].clock.reads(self.now))
    }

    /// How old a message is as far as it counts, in ms.
    pub(super) fn age(&self, id: LaneId) -> i64 {
        let born = self.backlog.head(id).map_or(0, |head| head.born);
        self.clock_of(id).unwrap_or_default() - born
    }

    /// What a channel's clock showed when a message was accepted. Of one that has just come that is now, whatever the
    /// wall clock did since the start; of one that a run before accepted, nothing but the wall clock knows.
    pub(super) fn born(&self, slot: u32, message: &Message) -> i64 {
        let (channel, direction) = parts(slot);
        let reads = self
            .channels
            .get(channel as usize)
            .map_or(0, |channel| channel.sides[side(direction)].clock.reads(self.now));
        if message.left_over {
            reads - signed((self.started_ms + self.now).saturating_sub(message.accepted_at_ms))
        } else {
            reads
        }
    }

    /// The lane of a message, and whether it is the first there. Looks through all: people ask rarely.
    fn find_message(&self, seq: Seq) -> Option<(LaneId, bool)> {
        self.backlog.lanes().find_map(|(id, _)| {
            let position = self.backlog.each(id).position(|node| node.seq == seq.0)?;
            Some((id, position == 0))
        })
    }
}
