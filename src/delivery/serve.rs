//! Whose message is tried: from a channel's turn to an attempt, past all that may hold it up (Laws 3, 4 and 8). Pure.

use super::{
    age::{Stop, signed},
    backlog::{Flag, LaneId, State},
    channels::{Presence, parts, side},
    circuit::{Admission, ms},
    fair::Slot,
    lanes::Lanes,
    timers::Timer,
    types::{Attempt, Effect, Ended, Event, Failure, Item, RecordFirst, reason},
};
use crate::journal::{Direction, Seq};

/// Ends of messages that are recorded at once per channel and direction: a backlog that is given up goes bit by bit.
const SETTLING: usize = 64;

/// What an attempt's end says of the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// It answered.
    Answered,
    /// Nobody was there.
    Nobody,
    /// It says nothing of the peer: the channel could not even ask, or was refused as a whole.
    Blocked,
    /// Nothing was asked.
    Silent,
}

impl Evidence {
    fn of(result: &Ended) -> Self {
        match result {
            Ended::Blocked => Self::Blocked,
            Ended::Dropped { .. } => Self::Silent,
            Ended::Unknown
            | Ended::Retry {
                failure: Failure::Unreachable | Failure::Unanswered,
                ..
            } => Self::Nobody,
            Ended::Delivered { .. } | Ended::Fatal { .. } | Ended::Retry { .. } => Self::Answered,
        }
    }
}

impl Lanes {
    /// A timer's time has come.
    pub(super) fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Slot(slot) => {
                let (number, direction) = parts(slot);
                if let Some(channel) = self.channels.get_mut(number as usize) {
                    channel.sides[side(direction)].timer = None;
                }
                self.turns.take(slot);
            }
            Timer::Channel(number) => {
                self.channel_is_due(number);
                self.look_at_hold(number);
                self.turns.take(number * 2);
                self.turns.take(number * 2 + 1);
            }
            Timer::Gate(environment, direction) => {
                if let Some(environment) = self.environments.get_mut(environment as usize) {
                    environment.gates[usize::from(direction)].timer = None;
                }
                self.pass(environment, usize::from(direction));
            }
            Timer::Lane(id, number) => {
                if let Some(lane) = self.backlog.lane_mut(id)
                    && lane.timer == number
                    && matches!(lane.state, State::Retrying | State::Ordered)
                {
                    self.make_ready(id);
                }
            }
        }
    }

    /// A channel's turn: at most one of its messages is tried, or given up.
    pub(super) fn serve(&mut self, slot: Slot) {
        let (number, direction) = parts(slot);
        let Some(channel) = self.channels.get(number as usize) else {
            return;
        };
        let state = &channel.sides[side(direction)];
        if state.ready.is_empty() || state.settling >= SETTLING || self.held(channel).is_some() {
            return;
        }
        if channel.presence != Presence::Gone && !self.is_admitted(slot) {
            return;
        }
        while let Some(id) = self.next_ready(slot) {
            if self.begin(id, slot) {
                break;
            }
        }
        let channel = self.channels.get(number as usize);
        if channel.is_some_and(|channel| !channel.sides[side(direction)].ready.is_empty()) {
            self.turns.take(slot);
        }
    }

    fn next_ready(&mut self, slot: Slot) -> Option<LaneId> {
        let (number, direction) = parts(slot);
        let channel = self.channels.get_mut(number as usize)?;
        self.backlog.next_ready(&mut channel.sides[side(direction)].ready)
    }

    /// Whether a channel may try a message now. If not, it gets its next turn when that may have changed.
    fn is_admitted(&mut self, slot: Slot) -> bool {
        let (number, direction) = parts(slot);
        let now = self.now;
        let Some(channel) = self.channels.get_mut(number as usize) else {
            return false;
        };
        let state = &mut channel.sides[side(direction)];
        let alone = state.struck || state.circuit.is_open();
        if state.in_flight
            >= if alone {
                1
            } else {
                self.limits.channel_concurrency.max(1)
            }
        {
            return false;
        }
        let paced = (direction == Direction::ToKernel)
            .then(|| {
                self.paces
                    .waits(channel.id, std::time::Duration::from_millis(now))
            })
            .flatten();
        let wait = match (state.circuit.admits(now), paced) {
            (Admission::No, _) => return false,
            (Admission::At(at), _) => Some(at),
            (Admission::Yes, paced) => paced.map(ms),
        };
        if let Some(at) = wait {
            if state.timer.is_none_or(|timer| timer > at) {
                state.timer = Some(at);
                self.timers.set(at, Timer::Slot(slot));
            }
            return false;
        }
        let Some(environment) = self.environments.get_mut(channel.environment as usize) else {
            return false;
        };
        let gate = &mut environment.gates[side(direction)];
        let admission = gate.admits(!state.struck, now);
        if admission != Admission::Yes || self.places.has_share(gate.in_flight) {
            if !std::mem::replace(&mut state.at_gate, true) {
                if state.struck {
                    gate.waiting.push_back(slot);
                } else {
                    gate.waiting.push_front(slot);
                }
            }
            return false;
        }
        if state.struck && self.places.struck_full() {
            if !std::mem::replace(&mut state.at_places, true) {
                self.places.waiting.push_back(slot);
            }
            return false;
        }
        true
    }

    /// Looks at a lane whose turn it is. Says whether something began: an attempt, or a message's end.
    fn begin(&mut self, id: LaneId, slot: Slot) -> bool {
        let (number, direction) = parts(slot);
        let (Some(lane), Some(channel)) = (self.backlog.lane(id), self.channels.get(number as usize)) else {
            return false;
        };
        let (parked, contact) = (lane.parked, lane.contact);
        let Some(head) = self.backlog.head(id).copied() else {
            self.rest(id);
            return false;
        };
        if channel.presence == Presence::Gone {
            self.give_up(id, reason::CHANNEL_DELETED);
            return true;
        }
        let (false, Some(settings)) = (parked, &channel.settings) else {
            return false;
        };
        let conversation = (channel.id, contact);
        let bound = ms(settings.unanswered_after);
        // It was being sent when the run before this one ended.
        if channel.holds_unknown(direction) && head.is(Flag::LeftOver) && head.is(Flag::Uncertain) {
            self.give_up(id, reason::UNKNOWN_OUTCOME);
            return true;
        }
        if !head.is(Flag::LeftOver) && self.age(id) > signed(ms(settings.max_age(direction))) {
            self.give_up(id, reason::TOO_OLD);
            return true;
        }
        let in_order = direction == Direction::ToKernel && head.order > 0 && head.attempts() == 0;
        if in_order
            && self.orders(number)
            && let Some(until) = self
                .requests
                .held_until(conversation, head.order, self.now, bound)
        {
            let timer = self.timers.set_for_lane(until, id);
            if let Some(lane) = self.backlog.lane_mut(id) {
                lane.state = State::Ordered;
                lane.timer = timer;
            }
            return false;
        }
        let overtakes = in_order && self.orders(number) && self.requests.overtakes(conversation, head.order);
        self.start(id, slot);
        if overtakes && let Some(key) = self.key(id) {
            self.tell(Event::Overtook(key));
        }
        true
    }

    fn start(&mut self, id: LaneId, slot: Slot) {
        let (number, direction) = parts(slot);
        let Some(lane) = self.key(id) else { return };
        let (Some(head), Some(channel)) = (self.backlog.head_mut(id), self.channels.get_mut(number as usize))
        else {
            return;
        };
        let holds_unknown = channel.holds_unknown(direction);
        head.count_attempt();
        head.set(Flag::LeftOver, false);
        let seq = head.seq;
        let attempt = Attempt {
            item: Item { seq: Seq(seq), lane },
            number: head.attempts(),
            uncertain: head.is(Flag::Uncertain),
            replayed: head.is(Flag::Replayed),
            record: RecordFirst {
                begun: head.is(Flag::Jumped),
                unknown: holds_unknown,
            },
        };
        let state = &mut channel.sides[side(direction)];
        state.in_flight += 1;
        state.circuit.starts(seq);
        self.places.taken += 1;
        self.places.by_struck += usize::from(state.struck);
        if let Some(environment) = self.environments.get_mut(channel.environment as usize) {
            environment.gates[side(direction)].starts(seq, self.now);
        }
        if direction == Direction::ToKernel {
            self.paces
                .take(channel.id, 1, std::time::Duration::from_millis(self.now));
        }
        if let Some(lane) = self.backlog.lane_mut(id) {
            lane.state = State::UnderWay;
        }
        self.effects.push_back(Effect::Attempt(attempt));
    }

    /// Lets the next channel that waits for a place have its turn, if there is one: each whose turn it was passes on.
    pub(super) fn pass_place(&mut self) {
        if self.places.struck_full() {
            return;
        }
        let Some(waits) = self.places.waiting.pop_front() else {
            return;
        };
        let (number, direction) = parts(waits);
        if let Some(channel) = self.channels.get_mut(number as usize) {
            channel.sides[side(direction)].at_places = false;
        }
        self.turns.take(waits);
    }

    /// Lets the next channel that waits at this one's gate have its turn, if it may.
    pub(super) fn pass_gate(&mut self, slot: Slot) {
        let (number, direction) = parts(slot);
        if let Some(channel) = self.channels.get(number as usize) {
            self.pass(channel.environment, side(direction));
        }
    }

    pub(super) fn pass(&mut self, number: u32, direction: usize) {
        let Some(environment) = self.environments.get_mut(number as usize) else {
            return;
        };
        let gate = &mut environment.gates[direction];
        let Some(first) = gate.waiting.front().copied() else {
            return;
        };
        if self.places.has_share(gate.in_flight) {
            return;
        }
        let channel = self.channels.get_mut(parts(first).0 as usize);
        let state = channel.map(|channel| &mut channel.sides[direction]);
        match gate.admits(state.as_ref().is_none_or(|state| !state.struck), self.now) {
            Admission::Yes => {
                gate.waiting.pop_front();
                if let Some(state) = state {
                    state.at_gate = false;
                }
                self.turns.take(first);
            }
            Admission::At(at) => {
                if gate.timer.is_none_or(|timer| timer > at) {
                    gate.timer = Some(at);
                    self.timers.set(at, Timer::Gate(number, u8::from(direction == 1)));
                }
            }
            Admission::No => {}
        }
    }

    /// Gives back what an attempt held, and takes what its end says of the channel and its environment.
    pub(super) fn judge(&mut self, item: Item, result: &Ended, chance: f64) {
        let Some(number) = self.numbers.get(&item.lane.channel).copied() else {
            return;
        };
        let (now, direction, seq) = (self.now, side(item.lane.direction), item.seq.0);
        let evidence = Evidence::of(result);
        let Some(channel) = self.channels.get_mut(number as usize) else {
            return;
        };
        let environment = channel.environment;
        let state = &mut channel.sides[direction];
        state.in_flight = state.in_flight.saturating_sub(1);
        self.places.taken = self.places.taken.saturating_sub(1);
        if state.struck {
            self.places.by_struck = self.places.by_struck.saturating_sub(1);
        }
        let struck = match evidence {
            Evidence::Answered => false,
            Evidence::Nobody => true,
            Evidence::Blocked | Evidence::Silent => state.struck,
        };
        match (state.struck, struck) {
            (false, true) => self.places.by_struck += state.in_flight,
            (true, false) => self.places.by_struck = self.places.by_struck.saturating_sub(state.in_flight),
            _ => {}
        }
        state.struck = struck;
        let (probe, was_open) = (state.circuit.ends(seq), state.circuit.is_open());
        match evidence {
            Evidence::Answered => {
                state.circuit.close();
            }
            // Of a probe that found nobody it is not known what the channel would have been told.
            Evidence::Nobody | Evidence::Silent if !was_open => {}
            Evidence::Silent => state.circuit.try_now(),
            Evidence::Nobody | Evidence::Blocked => {
                state.circuit.fails(probe, now, self.limits.blocked, chance);
            }
        }
        let open = state.circuit.is_open();
        state.clock.set(Stop::Channel, open, now);
        self.open_channels = self.open_channels + usize::from(open) - usize::from(was_open);
        self.turns.take(number * 2 + u32::from(direction == 1));
        self.judge_environment(environment, number, item, evidence, chance);
        self.pass(environment, direction);
    }

    fn judge_environment(&mut self, number: u32, channel: u32, item: Item, evidence: Evidence, chance: f64) {
        let (now, direction) = (self.now, side(item.lane.direction));
        let Some(environment) = self.environments.get_mut(number as usize) else {
            return;
        };
        let gate = &mut environment.gates[direction];
        let probe = gate.ends(item.seq.0, now);
        let channels = &self.channels;
        let has = || {
            let of_it = channels.iter().filter(|(_, other)| other.environment == number);
            of_it.take(10).count()
        };
        let changed = match evidence {
            Evidence::Answered => gate.answered(now),
            Evidence::Nobody => gate.unreachable(channel, probe, has, now, self.limits.outage, chance),
            // Whether anybody is there is not known: the next one tries.
            Evidence::Blocked | Evidence::Silent => false,
        };
        if !changed {
            return;
        }
        let (open, name) = (gate.is_open(), environment.name.clone());
        for (_, channel) in &mut self.channels {
            if channel.environment == number {
                channel.sides[direction].clock.set(Stop::Environment, open, now);
            }
        }
        self.tell(Event::Circuit {
            environment: name,
            direction: item.lane.direction,
            open,
        });
    }
}
