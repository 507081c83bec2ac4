//! What a message's end means for the others: the next of its lane, the rest of its group, those that wait for an
//! answer (Laws 1 and 3). Pure.
//!
//! The replies to one request are a group. One that is given up takes the rest of its group with it, as far as it has
//! not left, also what comes later (as long as that is remembered): half an answer is worse than none. Not so one
//! that may have arrived, or that a person gave up. A failure that may pass keeps the group together: the lane waits.

use std::time::Duration;

use super::{
    backlog::{Flag, LaneId, State},
    channels::{parts, side, slot},
    circuit::ms,
    fair::Slot,
    key::{ContactKey, LaneKey},
    lanes::Lanes,
    order::{Conversation, Known, Tag},
    types::{Effect, Item, Settings, reason},
};
use crate::{
    api::{OnUndeliverable, ReplyOrder},
    journal::{Direction, Outcome, Seq},
};

pub(super) fn dead_letter(why: &'static str) -> Outcome {
    Outcome::DeadLetter {
        reason: why.to_owned(),
    }
}

/// What a person gives up is kept as a dead letter: it may have been the wrong one.
pub(super) fn dropped() -> Outcome {
    dead_letter(reason::DROPPED)
}

impl Lanes {
    /// What a next run is to know of a lane's head.
    pub(super) fn note(&mut self, id: LaneId) {
        if let (Some(lane), Some(head)) = (self.key(id), self.backlog.head(id)) {
            let item = Item {
                seq: Seq(head.seq),
                lane,
            };
            let note = Effect::Note(item, head.attempts(), head.is(Flag::Uncertain));
            self.effects.push_back(note);
        }
    }

    /// A lane's head is given up.
    pub(super) fn give_up(&mut self, id: LaneId, why: &'static str) {
        let (Some(lane), Some(head)) = (self.key(id), self.backlog.head(id).copied()) else {
            return;
        };
        let is_last_word = !matches!(
            why,
            reason::UNKNOWN_OUTCOME | reason::CHANNEL_DELETED | reason::DROPPED
        );
        if is_last_word && lane.direction == Direction::ToKernel && head.tag != 0 {
            self.cancelled.add((lane.channel, lane.contact), head.tag);
            let group = self
                .backlog
                .take(id, false, |node| node.tag == head.tag && !node.is(Flag::Replayed));
            for seq in group {
                self.settle_aside(Seq(seq), lane, dead_letter(reason::GROUP_CANCELLED));
            }
        }
        let holds = !matches!(why, reason::CHANNEL_DELETED | reason::DROPPED) && self.holds_conversations(id);
        let outcome = match why {
            reason::DROPPED => dropped(),
            why => dead_letter(why),
        };
        self.end(id, outcome, holds);
    }

    /// A lane's head has ended: that is to be recorded; then the lane is parked, or goes on.
    pub(super) fn end(&mut self, id: LaneId, outcome: Outcome, park: bool) {
        let (Some(lane), Some(head)) = (self.key(id), self.backlog.head(id)) else {
            return;
        };
        let item = Item {
            seq: Seq(head.seq),
            lane,
        };
        let Some(lane) = self.backlog.lane_mut(id) else {
            return;
        };
        lane.state = State::Settling;
        lane.park_next = park;
        let (number, direction) = parts(lane.slot);
        if let Some(channel) = self.channels.get_mut(number as usize) {
            channel.sides[side(direction)].settling += 1;
        }
        self.effects.push_back(Effect::Settle(item, outcome));
    }

    /// A message that is in no lane ends.
    pub(super) fn settle_aside(&mut self, seq: Seq, lane: LaneKey, outcome: Outcome) {
        self.aside += 1;
        self.effects
            .push_back(Effect::Settle(Item { seq, lane }, outcome));
    }

    /// A lane's head is tried again after this time, unless a person has parked the lane meanwhile.
    pub(super) fn retry_after(&mut self, id: LaneId, wait: Duration) {
        if self.backlog.lane(id).is_none_or(|lane| lane.parked) {
            return self.rest(id);
        }
        let timer = self.timers.set_for_lane(self.now + ms(wait), id);
        if let Some(lane) = self.backlog.lane_mut(id) {
            lane.state = State::Retrying;
            lane.timer = timer;
        }
    }

    /// A reply names a request: it is answered. Its place among the others, if it is known.
    pub(super) fn answered(&mut self, number: u32, conversation: Conversation, tag: Tag) -> Option<Known> {
        if let Some(known) = self.requests.answered(conversation, tag) {
            return Some(known);
        }
        // A reply may come before Aura's answer to the message itself.
        let id = self
            .backlog
            .find(slot(number, Direction::ToAura), conversation.1)?;
        let head = self.backlog.head_mut(id).filter(|head| head.tag == tag)?;
        head.set(Flag::Answered, true);
        Some(Known {
            seq: head.seq,
            newest: true,
        })
    }

    /// Aura has taken a request.
    pub(super) fn aura_has(&mut self, item: Item, tag: Tag, answered: bool) {
        let settings = self.find(item.lane).and_then(|id| self.settings(id));
        let bound = settings.map_or(0, |settings| ms(settings.unanswered_after));
        let conversation = (item.lane.channel, item.lane.contact);
        self.requests
            .taken(conversation, tag, item.seq.0, answered, self.now, bound);
    }

    /// Whether a channel's replies leave in the order of their requests.
    pub(super) fn orders(&self, number: u32) -> bool {
        let channel = self.channels.get(number as usize);
        channel
            .and_then(|channel| channel.settings.as_ref())
            .is_some_and(|settings| settings.reply_order == ReplyOrder::AfterEarlierRequests)
    }

    /// A request was answered: the reply that waits for it may leave.
    pub(super) fn look_again_at_order(&mut self, slot: Slot, contact: ContactKey) {
        let Some(id) = self.backlog.find(slot, contact) else {
            return;
        };
        if let Some(lane) = self.backlog.lane_mut(id)
            && lane.state == State::Ordered
        {
            self.make_ready(id);
        }
    }

    /// Whether a lane's channel has conversations held after a dead letter.
    pub(super) fn holds_conversations(&self, id: LaneId) -> bool {
        self.settings(id)
            .is_some_and(|settings| settings.on_undeliverable == OnUndeliverable::HoldConversation)
    }

    fn settings(&self, id: LaneId) -> Option<&Settings> {
        let (number, _) = parts(self.backlog.lane(id)?.slot);
        self.channels.get(number as usize)?.settings.as_deref()
    }
}
