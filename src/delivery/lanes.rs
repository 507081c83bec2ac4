//! The lanes: which message may be tried now. A pure state machine: what happened comes in with the time and chance,
//! effects go out.
//!
//! A lane is one direction of one conversation. It has at most one message under way; the others wait behind it in
//! order, so a retry holds its own lane and no other (Law 3). A channel has a bounded number of messages under way per
//! direction, and channels take turns, so none waits for another's flood (Law 4).
//!
//! Beside this file, each a concern of the same machine: `backlog` what waits, `order` in which order replies leave,
//! `serve` whose
//! message is tried, `ends` what its end means, `circuit` what happens while nothing gets through, `fair` whose turn it is, `age` how old a message is, `pace` how
//! often a channel may send, `channels` what is known of each, `people` what people may ask.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use slab::Slab;

use super::{
    backlog::{Backlog, Flag, LaneId, Node, State},
    channels::{Channel, Environment, Presence, parts, side, slot},
    ends::dead_letter,
    fair::{Places, Slot, Turns},
    key::{ContactKey, LaneKey},
    order::{Cancelled, Requests, tag},
    pace::Paces,
    people::{PARKED_MOST, Parked},
    timers::Timers,
    types::{Effect, Ended, Event, Failure, Item, Limits, Message, Stats, reason},
};
use crate::{
    api::ChannelId,
    journal::{Direction, Outcome},
};

/// The state of all lanes. Time is a duration since some start, and never goes back.
pub struct Lanes {
    pub(super) limits: Limits,
    /// The wall clock at the start, in ms since 1970.
    pub(super) started_ms: u64,
    /// The time, in ms since the start.
    pub(super) now: u64,
    pub(super) backlog: Backlog,
    pub(super) channels: Slab<Channel>,
    pub(super) numbers: HashMap<ChannelId, u32>,
    pub(super) environments: Vec<Environment>,
    pub(super) turns: Turns,
    pub(super) places: Places,
    pub(super) paces: Paces,
    pub(super) requests: Requests,
    pub(super) cancelled: Cancelled,
    pub(super) parked: HashMap<LaneId, Parked>,
    pub(super) timers: Timers,
    pub(super) effects: VecDeque<Effect>,
    /// Messages outside the lanes whose end is being recorded.
    pub(super) aside: usize,
    /// Channels whose time is up, and whose lanes have not been looked at.
    pub(super) gone: Vec<u32>,
    /// All channels that there are have been told of.
    pub(super) listed: bool,
    pub(super) open_channels: usize,
}

impl Lanes {
    /// No lanes. `started_ms` is the wall clock now, in ms since 1970.
    pub fn new(limits: Limits, started_ms: u64) -> Self {
        Self {
            limits,
            started_ms,
            now: 0,
            backlog: Backlog::default(),
            channels: Slab::new(),
            numbers: HashMap::new(),
            environments: Vec::new(),
            turns: Turns::default(),
            places: Places::new(limits.concurrency),
            paces: Paces::default(),
            requests: Requests::default(),
            cancelled: Cancelled::default(),
            parked: HashMap::new(),
            timers: Timers::default(),
            effects: VecDeque::new(),
            aside: 0,
            gone: Vec::new(),
            listed: false,
            open_channels: 0,
        }
    }

    /// A message was accepted. Those of one lane must come in the order of their places in the journal.
    pub fn accepted(&mut self, message: Message, now: Duration) {
        self.at(now);
        let key = message.lane;
        let number = self.channel_number(key.channel);
        let slot = slot(number, key.direction);
        let (conversation, tag) = ((key.channel, key.contact), tag(message.request));
        let mut node = Node::new(message.seq.0, tag, self.born(slot, &message), message.attempts);
        node.set(Flag::Uncertain, message.uncertain);
        node.set(Flag::LeftOver, message.left_over);
        node.set(Flag::Replayed, message.replayed);
        let mut in_order = false;
        if key.direction == Direction::ToKernel && tag != 0 && !message.replayed {
            let known = self.answered(number, conversation, tag);
            if self.cancelled.has(conversation, tag) {
                self.look_again_at_order(slot, key.contact);
                self.settle_aside(message.seq, key, dead_letter(reason::GROUP_CANCELLED));
                self.forget_channel(number);
                return;
            }
            if let Some(known) = known {
                node.order = known.seq;
                in_order = !known.newest && self.orders(number);
            }
        }
        let id = self.lane(number, slot, key.contact);
        if in_order {
            self.backlog.push_in_order(id, node);
        } else {
            self.backlog.push(id, node);
        }
        if self
            .backlog
            .lane(id)
            .is_some_and(|lane| lane.state == State::Resting)
        {
            self.rest(id);
        }
        self.look_again_at_order(slot, key.contact);
    }

    /// An attempt ended. `chance` is in 0..1.
    pub fn ended(&mut self, item: Item, result: Ended, now: Duration, chance: f64) {
        self.at(now);
        let Some(id) = self.find(item.lane) else { return };
        let is_it = self.backlog.head(id).is_some_and(|head| head.seq == item.seq.0)
            && self
                .backlog
                .lane(id)
                .is_some_and(|lane| lane.state == State::UnderWay);
        if !is_it {
            return;
        }
        self.judge(item, &result, chance);
        let Some(slot) = self.backlog.lane(id).map(|lane| lane.slot) else {
            return;
        };
        let Some(channel) = self.channels.get(parts(slot).0 as usize) else {
            return;
        };
        let is_gone = channel.presence == Presence::Gone;
        let holds_unknown = channel.holds_unknown(item.lane.direction);
        let outage = self
            .environments
            .get(channel.environment as usize)
            .is_some_and(|environment| environment.gates[side(item.lane.direction)].is_open());
        let Some(head) = self.backlog.head_mut(id) else {
            return;
        };
        let attempts = head.attempts();
        let given_up = head.is(Flag::Dropped);
        let may_have_arrived = matches!(
            result,
            Ended::Unknown
                | Ended::Retry {
                    failure: Failure::Unanswered,
                    ..
                }
        );
        if may_have_arrived {
            head.set(Flag::Uncertain, true);
        }
        match result {
            Ended::Delivered { reference } => {
                let (tag, answered) = (head.tag, head.is(Flag::Answered));
                if item.lane.direction == Direction::ToAura && tag != 0 {
                    self.aura_has(item, tag, answered);
                }
                self.end(id, Outcome::Delivered { reference }, false);
            }
            Ended::Fatal { reason } => self.give_up(id, reason),
            Ended::Dropped { reason } => {
                let reason = reason.to_owned();
                self.end(id, Outcome::Dropped { reason }, false);
            }
            _ if may_have_arrived && holds_unknown => self.give_up(id, reason::UNKNOWN_OUTCOME),
            _ if given_up => self.give_up(id, reason::DROPPED),
            _ if is_gone => self.give_up(id, reason::CHANNEL_DELETED),
            Ended::Blocked => {
                head.uncount_attempt();
                self.note(id);
                // At the back: another lane's message tries out whether the block is over, so that one message that
                // nobody takes can't hold up the channel for ever.
                self.rest(id);
            }
            // Nobody is there for anybody, which is no word on this message.
            Ended::Retry {
                failure: Failure::Unreachable | Failure::Unanswered,
                ..
            } if outage => {
                head.uncount_attempt();
                self.note(id);
                self.rest(id);
            }
            Ended::Retry { .. } | Ended::Unknown if attempts >= self.limits.retries.attempts => {
                self.give_up(id, reason::ATTEMPTS_EXHAUSTED);
            }
            Ended::Retry { failure, after } => {
                self.note(id);
                let wait = self.limits.retries.wait(attempts, failure, after, chance);
                self.retry_after(id, wait);
            }
            Ended::Unknown => {
                self.note(id);
                let wait = self
                    .limits
                    .retries
                    .wait(attempts, Failure::Unreachable, None, chance);
                self.retry_after(id, wait);
            }
        }
    }

    /// An attempt took so many calls: all but the first, which counted when it began, count now.
    pub fn took(&mut self, item: Item, calls: u32, now: Duration) {
        self.at(now);
        if item.lane.direction == Direction::ToKernel {
            let now = Duration::from_millis(self.now);
            self.paces.take(item.lane.channel, calls.saturating_sub(1), now);
        }
    }

    /// A message's end was recorded: the next one of its lane may go.
    pub fn settled(&mut self, item: Item, now: Duration) {
        self.at(now);
        let ended = self.find(item.lane).filter(|id| {
            self.backlog.head(*id).is_some_and(|head| head.seq == item.seq.0)
                && self
                    .backlog
                    .lane(*id)
                    .is_some_and(|lane| lane.state == State::Settling)
        });
        let Some(id) = ended else {
            self.aside = self.aside.saturating_sub(1);
            return;
        };
        self.backlog.pop(id);
        let Some(lane) = self.backlog.lane_mut(id) else {
            return;
        };
        let (slot, park) = (lane.slot, std::mem::take(&mut lane.park_next));
        if let Some(channel) = self.channels.get_mut(parts(slot).0 as usize) {
            let state = &mut channel.sides[side(item.lane.direction)];
            state.settling = state.settling.saturating_sub(1);
        }
        self.turns.take(slot);
        // The channel may say otherwise by now.
        if park && self.holds_conversations(id) && self.parked.len() < PARKED_MOST {
            self.park_lane(id, false);
        }
        self.rest(id);
    }

    /// What to do now. Called until it returns nothing; then nothing happens before [`Lanes::next_wake`].
    pub fn next(&mut self, now: Duration) -> Option<Effect> {
        self.at(now);
        while let Some(timer) = self.timers.due(self.now) {
            self.fire(timer);
        }
        self.let_go_of_gone();
        self.requests.sweep(self.now);
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            if self.places.full() {
                return None;
            }
            let slot = self.turns.next()?;
            self.serve(slot);
            self.pass_gate(slot);
            self.pass_place();
        }
    }

    /// When [`Lanes::next`] may have something to do again without anything else happening.
    pub fn next_wake(&self) -> Option<Duration> {
        self.timers.next().map(Duration::from_millis)
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> Stats {
        let gates = self
            .environments
            .iter()
            .flat_map(|environment| &environment.gates);
        Stats {
            queued: self.backlog.messages() + self.aside,
            lanes: self.backlog.lane_count(),
            under_way: self.places.taken,
            parked: self.parked.len(),
            withheld: 0,
            open_channels: self.open_channels,
            open_environments: gates.filter(|gate| gate.is_open()).count(),
        }
    }

    pub(super) fn at(&mut self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.now = self.now.max(now);
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.effects.push_back(Effect::Tell(event));
    }

    pub(super) fn find(&self, lane: LaneKey) -> Option<LaneId> {
        let number = *self.numbers.get(&lane.channel)?;
        self.backlog.find(slot(number, lane.direction), lane.contact)
    }

    /// The lane of a contact, which is made if there is none.
    pub(super) fn lane(&mut self, number: u32, slot: Slot, contact: ContactKey) -> LaneId {
        let before = self.backlog.lane_count();
        let id = self.backlog.find_or_add(slot, contact);
        if let Some(channel) = self.channels.get_mut(number as usize) {
            channel.lanes += self.backlog.lane_count() - before;
        }
        id
    }

    pub(super) fn key(&self, id: LaneId) -> Option<LaneKey> {
        let lane = self.backlog.lane(id)?;
        let (number, direction) = parts(lane.slot);
        Some(LaneKey {
            direction,
            channel: self.channels.get(number as usize)?.id,
            contact: lane.contact,
        })
    }

    /// A lane that does nothing: what it does next.
    pub(super) fn rest(&mut self, id: LaneId) {
        let empty = self.backlog.head(id).is_none();
        let Some(lane) = self.backlog.lane_mut(id) else {
            return;
        };
        // It is in its row: it is looked at when it is taken from there.
        if lane.state == State::Ready {
            return;
        }
        lane.state = State::Resting;
        if lane.parked {
            return;
        }
        if !empty {
            self.make_ready(id);
            return;
        }
        let number = lane.slot / 2;
        self.backlog.remove_lane(id);
        if let Some(channel) = self.channels.get_mut(number as usize) {
            channel.lanes -= 1;
        }
        self.forget_channel(number);
    }

    /// As [`Lanes::rest`], for a lane that may be doing something, which then goes on by itself.
    pub(super) fn go_on(&mut self, id: LaneId) {
        if self.backlog.lane(id).map(|lane| lane.state) == Some(State::Resting) {
            self.rest(id);
        }
    }

    pub(super) fn make_ready(&mut self, id: LaneId) {
        let Some(slot) = self.backlog.lane(id).map(|lane| lane.slot) else {
            return;
        };
        let (number, direction) = parts(slot);
        if let Some(channel) = self.channels.get_mut(number as usize) {
            self.backlog
                .make_ready(&mut channel.sides[side(direction)].ready, id);
        }
        self.turns.take(slot);
    }
}
