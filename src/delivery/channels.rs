//! What is known of each channel, and what becomes of its messages when it comes, changes or goes (Laws 8 and 9). Pure.
//!
//! A channel whose resource is deleted delivers for [`DRAIN`] what it can with what it had; the rest becomes dead
//! letters. One that is only not routable (its environment is not in the configuration, another resource holds it)
//! waits, however long. Before the API server's lists are known, one that nobody has told of waits as well; after, it
//! is one that was deleted while nobody looked.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{
    age::{Clock, Stop},
    backlog::{Lane, LaneId, Ready, State},
    circuit::{Circuit, Gate, ms},
    fair::Slot,
    lanes::Lanes,
    timers::Timer,
    types::Settings,
};
use crate::{
    api::{ChannelId, OnUndeliverable, OnUnknownSend},
    journal::Direction,
};

/// How long a deleted channel goes on delivering.
pub const DRAIN: Duration = Duration::from_secs(30);

/// Whether a channel is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Nobody has told of it yet.
    Unknown,
    /// It is served.
    Served,
    /// Its resource is there, and has no route.
    Unroutable,
    /// It was deleted, and delivers until this time.
    Leaving(u64),
    /// What it has becomes dead letters.
    Gone,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub id: ChannelId,
    pub presence: Presence,
    pub settings: Option<Arc<Settings>>,
    /// The number of its environment.
    pub environment: u32,
    pub sides: [Side; 2],
    /// Its lanes.
    pub lanes: usize,
}

impl Channel {
    /// Whether what may have arrived is not tried again but left to a person.
    pub fn holds_unknown(&self, direction: Direction) -> bool {
        direction == Direction::ToKernel
            && self
                .settings
                .as_ref()
                .is_some_and(|settings| settings.on_unknown_send == OnUnknownSend::Hold)
    }
}

/// One direction of a channel.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub ready: Ready,
    pub in_flight: usize,
    /// Its lanes whose head's end is being recorded.
    pub settling: usize,
    pub circuit: Circuit,
    pub clock: Clock,
    /// Its last call found nobody: one at a time.
    pub struck: bool,
    /// It waits at its environment's gate, or for a place.
    pub at_gate: bool,
    pub at_places: bool,
    /// When it is looked at again by itself.
    pub timer: Option<u64>,
}

/// One environment: its Aura and its Kernel.
#[derive(Debug)]
pub(super) struct Environment {
    pub name: Arc<str>,
    pub gates: [Gate; 2],
}

/// A direction's number.
pub(super) fn side(direction: Direction) -> usize {
    match direction {
        Direction::ToAura => 0,
        Direction::ToKernel => 1,
    }
}

/// The slot of a channel's direction.
pub(super) fn slot(channel: u32, direction: Direction) -> Slot {
    channel * 2 + u32::from(direction == Direction::ToKernel)
}

/// The channel's number and the direction of a slot.
pub(super) fn parts(slot: Slot) -> (u32, Direction) {
    let direction = if slot.is_multiple_of(2) {
        Direction::ToAura
    } else {
        Direction::ToKernel
    };
    (slot / 2, direction)
}

const BOTH: [Direction; 2] = [Direction::ToAura, Direction::ToKernel];

impl Lanes {
    /// A channel is served, and this holds for it from now on. Whatever waits for a change of the channel is tried now;
    /// a message that waits for its own retry goes on waiting.
    pub fn serves(&mut self, channel: ChannelId, settings: impl Into<Arc<Settings>>, now: Duration) {
        let settings = settings.into();
        self.at(now);
        let number = self.channel_number(channel);
        let environment = self.environment_number(&settings);
        self.paces.set(channel, settings.messages_per_second);
        let opened = [0, 1].map(|side| self.environments[environment as usize].gates[side].is_open());
        let Some(record) = self.channels.get_mut(number as usize) else {
            return;
        };
        record.presence = Presence::Served;
        if record.environment != environment {
            self.leave_gates(number);
            self.hand_over(number, environment);
        }
        let Some(record) = self.channels.get_mut(number as usize) else {
            return;
        };
        record.environment = environment;
        let reorders = record.settings.as_ref().is_some_and(|before| {
            (before.reply_order, before.unanswered_after) != (settings.reply_order, settings.unanswered_after)
        });
        let held_conversations = record
            .settings
            .as_ref()
            .is_some_and(|before| before.on_undeliverable == OnUndeliverable::HoldConversation);
        let lets_go_on = held_conversations && settings.on_undeliverable == OnUndeliverable::Continue;
        record.settings = Some(settings);
        for direction in BOTH {
            let state = &mut record.sides[side(direction)];
            state.circuit.try_now();
            state
                .clock
                .set(Stop::Environment, opened[side(direction)], self.now);
            state.timer = None;
            self.turns.take(slot(number, direction));
        }
        self.look_at_hold(number);
        if reorders {
            self.wake(number, |state| state == State::Ordered);
        }
        if lets_go_on {
            self.unpark_those_after_dead_letters(number);
        }
    }

    /// A channel's resource is there, and can't be routed now: its messages wait.
    pub fn unroutable(&mut self, channel: ChannelId, now: Duration) {
        self.at(now);
        let number = self.channel_number(channel);
        if let Some(record) = self.channels.get_mut(number as usize) {
            record.presence = Presence::Unroutable;
        }
        self.look_at_hold(number);
    }

    /// A channel's resource was deleted.
    pub fn deleted(&mut self, channel: ChannelId, now: Duration) {
        self.at(now);
        if let Some(number) = self.numbers.get(&channel).copied() {
            self.leaves(number);
        }
    }

    /// All channels that there are have been told of.
    pub fn listed(&mut self, now: Duration) {
        self.at(now);
        self.listed = true;
        let unknown: Vec<u32> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.presence == Presence::Unknown)
            .filter_map(|(number, _)| u32::try_from(number).ok())
            .collect();
        unknown.into_iter().for_each(|number| self.leaves(number));
    }

    fn leaves(&mut self, number: u32) {
        let until = self.now + ms(DRAIN);
        if let Some(channel) = self.channels.get_mut(number as usize)
            && !matches!(channel.presence, Presence::Leaving(_) | Presence::Gone)
        {
            channel.presence = Presence::Leaving(until);
            self.timers.set(until, Timer::Channel(number));
            self.look_at_hold(number);
            BOTH.into_iter()
                .for_each(|direction| self.turns.take(slot(number, direction)));
        }
    }

    /// A channel's time is up, if it is still leaving.
    pub(super) fn channel_is_due(&mut self, number: u32) {
        let now = self.now;
        let Some(channel) = self.channels.get_mut(number as usize) else {
            return;
        };
        if !matches!(channel.presence, Presence::Leaving(until) if until <= now) {
            return;
        }
        channel.presence = Presence::Gone;
        self.gone.push(number);
    }

    /// Nothing holds the lanes of channels that are gone any more. All such channels at once: lanes may be many to look
    /// through, and a namespace's channels go together.
    pub(super) fn let_go_of_gone(&mut self) {
        let gone = std::mem::take(&mut self.gone);
        let has_lanes = |number: &u32| {
            self.channels
                .get(*number as usize)
                .is_some_and(|channel| channel.lanes > 0)
        };
        let with_lanes: HashSet<u32> = gone.iter().copied().filter(has_lanes).collect();
        if !with_lanes.is_empty() {
            let of_them =
                |(id, lane): (LaneId, &Lane)| with_lanes.contains(&parts(lane.slot).0).then_some(id);
            let lanes: Vec<LaneId> = self.backlog.lanes().filter_map(of_them).collect();
            for id in lanes {
                if self.release(id) {
                    self.go_on(id);
                }
                self.wake_lane(id, &|state| matches!(state, State::Retrying | State::Ordered));
            }
        }
        for number in gone {
            BOTH.into_iter()
                .for_each(|direction| self.turns.take(slot(number, direction)));
            self.forget_channel(number);
        }
    }

    /// The number of a channel, which is made known if it is not.
    pub(super) fn channel_number(&mut self, id: ChannelId) -> u32 {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let number = u32::try_from(self.channels.insert(Channel {
            id,
            presence: Presence::Unknown,
            settings: None,
            environment: u32::MAX,
            sides: Default::default(),
            lanes: 0,
        }))
        .unwrap_or(u32::MAX);
        self.numbers.insert(id, number);
        self.look_at_hold(number);
        if self.listed {
            self.leaves(number);
        }
        number
    }

    /// Forgets a channel of which nothing is left.
    pub(super) fn forget_channel(&mut self, number: u32) {
        let over = self.channels.get(number as usize).is_some_and(|channel| {
            channel.lanes == 0 && matches!(channel.presence, Presence::Unknown | Presence::Gone)
        });
        if !over {
            return;
        }
        self.leave_gates(number);
        if let Some(channel) = self.channels.try_remove(number as usize) {
            self.numbers.remove(&channel.id);
            let open = channel.sides.iter().filter(|side| side.circuit.is_open());
            self.open_channels -= open.count();
        }
    }

    /// Takes a channel out of the rows at its environment's gates.
    fn leave_gates(&mut self, number: u32) {
        let Some(channel) = self.channels.get_mut(number as usize) else {
            return;
        };
        let Some(environment) = self.environments.get_mut(channel.environment as usize) else {
            return;
        };
        for direction in BOTH {
            if std::mem::take(&mut channel.sides[side(direction)].at_gate) {
                let of_it = slot(number, direction);
                environment.gates[side(direction)]
                    .waiting
                    .retain(|waits| *waits != of_it);
            }
        }
    }

    /// What a channel has under way counts for the environment that it comes to: the one that it leaves would wait for
    /// ever for the end of a probe that nobody tells it of.
    fn hand_over(&mut self, number: u32, to: u32) {
        let Some(channel) = self.channels.get(number as usize) else {
            return;
        };
        let from = channel.environment;
        let in_flight = [0, 1].map(|side| channel.sides[side].in_flight);
        // As a rule; the lanes are many to look through.
        if in_flight == [0, 0] {
            return;
        }
        let is_under_way = |id: &LaneId| {
            self.backlog
                .lane(*id)
                .is_some_and(|lane| lane.state == State::UnderWay)
        };
        let lanes = self.lanes_of(number).into_iter().filter(is_under_way);
        let seqs: Vec<u64> = lanes.filter_map(|id| Some(self.backlog.head(id)?.seq)).collect();
        for (side, in_flight) in in_flight.into_iter().enumerate() {
            if let Some(left) = self.environments.get_mut(from as usize) {
                left.gates[side].lets_go(&seqs, in_flight);
            }
            if let Some(entered) = self.environments.get_mut(to as usize) {
                entered.gates[side].in_flight += in_flight;
            }
            self.pass(from, side);
        }
    }

    fn environment_number(&mut self, settings: &Settings) -> u32 {
        let found = self
            .environments
            .iter()
            .position(|environment| environment.name == settings.environment);
        let number = found.unwrap_or_else(|| {
            self.environments.push(Environment {
                name: settings.environment.clone(),
                gates: Default::default(),
            });
            self.environments.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Until when a channel delivers nothing; `None`: it does.
    pub(super) fn held(&self, channel: &Channel) -> Option<u64> {
        match (channel.presence, &channel.settings) {
            (Presence::Served | Presence::Leaving(_), Some(settings)) => settings
                .held_until_ms
                .map(|until| until.saturating_sub(self.started_ms))
                .filter(|until| *until > self.now),
            (Presence::Gone, _) => None,
            _ => Some(u64::MAX),
        }
    }

    /// Stops a channel's clocks while it delivers nothing, and sees to it that it is looked at when that ends by itself.
    pub(super) fn look_at_hold(&mut self, number: u32) {
        let Some(channel) = self.channels.get(number as usize) else {
            return;
        };
        let held = self.held(channel);
        if let Some(channel) = self.channels.get_mut(number as usize) {
            for state in &mut channel.sides {
                state.clock.set(Stop::Hold, held.is_some(), self.now);
            }
        }
        if let Some(until) = held.filter(|until| *until < u64::MAX / 2) {
            self.timers.set(until, Timer::Channel(number));
        }
    }

    fn lanes_of(&self, number: u32) -> Vec<LaneId> {
        let lanes = self.backlog.lanes();
        lanes
            .filter(|(_, lane)| lane.slot / 2 == number)
            .map(|(id, _)| id)
            .collect()
    }

    /// Has the channel's lanes that do something like this looked at again.
    fn wake(&mut self, number: u32, which: impl Fn(State) -> bool) {
        for id in self.lanes_of(number) {
            self.wake_lane(id, &which);
        }
    }

    fn wake_lane(&mut self, id: LaneId, which: &impl Fn(State) -> bool) {
        if self.backlog.lane(id).is_some_and(|lane| which(lane.state)) {
            self.make_ready(id);
        }
    }
}
