//! The lanes: which message may be tried now. A pure state machine: time and chance come in, effects go out.
//!
//! A lane is one direction of one conversation. It has at most one message under way; the others wait behind it in
//! the order they were accepted, so a retry holds its own lane and no other (Law 3). A channel has a bounded number
//! of messages under way per direction, and channels take turns, so none waits for another's flood (Law 4).

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::{backoff::Backoff, key::LaneKey, pace::Paces};
use crate::{
    api::ChannelId,
    journal::{Direction, Outcome, Seq},
};

/// One accepted message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Its place in the journal.
    pub seq: Seq,
    /// Its lane.
    pub lane: LaneKey,
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It arrived; `reference` is the other side's id of it.
    Delivered {
        /// The other side's id of the message.
        reference: Option<String>,
    },
    /// It did not, and may later.
    Retry {
        /// How long the peer asks us to wait.
        after: Option<Duration>,
    },
    /// It never will.
    Fatal {
        /// Why, in one word.
        reason: &'static str,
    },
    /// The channel can't deliver now (no route, no credentials, on hold): no attempt is counted, and the channel's
    /// lanes in this direction wait together.
    Blocked,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Try this message.
    Attempt(Attempt),
    /// Record how this message ended, then say so by [`Lanes::settled`].
    Settle(Item, Outcome),
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The message.
    pub item: Item,
    /// Which attempt it is, from 1.
    pub number: u32,
}

/// Bounds and waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages under way at once per channel and direction.
    pub channel_concurrency: usize,
    /// Attempts before a message becomes a dead letter.
    pub attempts: u32,
    /// Waits between attempts.
    pub retry: Backoff,
    /// Waits of a blocked channel.
    pub blocked: Backoff,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Seq>,
    /// The head may be tried again at this time.
    retry_at: Option<Duration>,
    /// Attempts of the head so far.
    attempts: u32,
}

#[derive(Default)]
struct Channel {
    /// Lanes whose head may be tried, in turn.
    ready: VecDeque<LaneKey>,
    in_flight: usize,
    blocked_until: Option<Duration>,
    blocks: u32,
    /// It has sent as often as it may: it gets its next turn then.
    paced_until: Option<Duration>,
}

type ChannelKey = (ChannelId, Direction);

/// The state of all lanes. Time is a duration since some start, and never goes back.
pub struct Lanes {
    limits: Limits,
    lanes: HashMap<LaneKey, Lane>,
    channels: HashMap<ChannelKey, Channel>,
    /// Channels with something ready, in turn, each at most once.
    turns: VecDeque<ChannelKey>,
    in_turns: HashSet<ChannelKey>,
    timers: BTreeMap<(Duration, u64), Timer>,
    next_timer: u64,
    paces: Paces,
}

enum Timer {
    Lane(LaneKey),
    Channel(ChannelKey),
}

fn channel_of(lane: LaneKey) -> ChannelKey {
    (lane.channel, lane.direction)
}

impl Lanes {
    /// No lanes.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: HashMap::new(),
            channels: HashMap::new(),
            turns: VecDeque::new(),
            in_turns: HashSet::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            paces: Paces::default(),
        }
    }

    /// How many messages a second a channel may send to Kernel.
    pub fn pace(&mut self, channel: ChannelId, per_second: u32) {
        self.paces.set(channel, per_second);
    }

    /// A message was accepted. Those of one lane must come in the order of their places in the journal.
    pub fn accepted(&mut self, item: Item) {
        let lane = self.lanes.entry(item.lane).or_default();
        lane.waiting.push_back(item.seq);
        if lane.waiting.len() == 1 {
            self.make_ready(item.lane);
        }
    }

    /// An attempt ended. `chance` is in 0..1.
    pub fn ended(&mut self, item: &Item, result: Ended, now: Duration, chance: f64) -> Option<Effect> {
        let key = channel_of(item.lane);
        if let Some(channel) = self.channels.get_mut(&key) {
            channel.in_flight = channel.in_flight.saturating_sub(1);
            if !matches!(result, Ended::Blocked) {
                channel.blocks = 0;
            }
        }
        self.take_turn(key);
        let lane = self
            .lanes
            .get_mut(&item.lane)
            .filter(|lane| lane.waiting.front() == Some(&item.seq))?;
        match result {
            Ended::Delivered { reference } => Some(Effect::Settle(*item, Outcome::Delivered { reference })),
            Ended::Fatal { reason } => Some(Effect::Settle(
                *item,
                Outcome::DeadLetter {
                    reason: reason.to_owned(),
                },
            )),
            Ended::Retry { .. } if lane.attempts >= self.limits.attempts => Some(Effect::Settle(
                *item,
                Outcome::DeadLetter {
                    reason: "AttemptsExhausted".to_owned(),
                },
            )),
            Ended::Retry { after } => {
                let at = now + self.limits.retry.wait_at_least(lane.attempts, after, chance);
                lane.retry_at = Some(at);
                self.set_timer(at, Timer::Lane(item.lane));
                None
            }
            Ended::Blocked => {
                lane.attempts = lane.attempts.saturating_sub(1);
                // At the back: another lane's message tries out whether the block is over, so that one message that
                // nobody takes can't hold up the channel for ever.
                self.make_ready(item.lane);
                self.block(key, now, chance);
                None
            }
        }
    }

    /// A message's end was recorded: the next one of its lane may go.
    pub fn settled(&mut self, item: &Item) {
        let Some(lane) = self
            .lanes
            .get_mut(&item.lane)
            .filter(|lane| lane.waiting.front() == Some(&item.seq))
        else {
            return;
        };
        lane.waiting.pop_front();
        lane.attempts = 0;
        if lane.waiting.is_empty() {
            self.lanes.remove(&item.lane);
        } else {
            self.make_ready(item.lane);
        }
    }

    /// Something about a channel changed (its route, its Secret): what waits for the channel is tried now. A message
    /// that waits for its own retry goes on waiting.
    pub fn poke(&mut self, channel: ChannelId) {
        for direction in [Direction::ToAura, Direction::ToKernel] {
            let key = (channel, direction);
            if let Some(state) = self.channels.get_mut(&key) {
                state.blocked_until = None;
                state.blocks = 0;
            }
            self.take_turn(key);
        }
    }

    /// What to do now. Called until it returns nothing; then nothing happens before [`Lanes::next_wake`].
    pub fn next(&mut self, now: Duration) -> Option<Effect> {
        self.fire_timers(now);
        while let Some(key) = self.turns.pop_front() {
            self.in_turns.remove(&key);
            let Some(channel) = self.channels.get_mut(&key) else {
                continue;
            };
            let may_go = channel.in_flight < self.limits.channel_concurrency
                && channel.blocked_until.is_none_or(|until| until <= now)
                // While a block is being tried out, one message at a time.
                && (channel.blocks == 0 || channel.in_flight == 0);
            // Towards Aura nobody has stated a limit.
            let paced = (key.1 == Direction::ToKernel)
                .then(|| self.paces.waits(key.0, now))
                .flatten();
            if let (true, Some(at), false) = (may_go, paced, channel.ready.is_empty()) {
                if channel.paced_until.is_none_or(|until| until <= now) {
                    channel.paced_until = Some(at);
                    self.set_timer(at, Timer::Channel(key));
                }
                continue;
            }
            let Some(lane_key) = (if may_go { channel.ready.pop_front() } else { None }) else {
                if channel.ready.is_empty()
                    && channel.in_flight == 0
                    && channel.blocked_until.is_none_or(|at| at <= now)
                {
                    self.channels.remove(&key);
                }
                continue;
            };
            let Some(lane) = self.lanes.get_mut(&lane_key) else {
                self.take_turn(key);
                continue;
            };
            let Some(&seq) = lane.waiting.front() else {
                continue;
            };
            lane.retry_at = None;
            lane.attempts += 1;
            channel.in_flight += 1;
            if key.1 == Direction::ToKernel {
                self.paces.take(key.0, now);
            }
            let number = lane.attempts;
            self.take_turn(key);
            return Some(Effect::Attempt(Attempt {
                item: Item { seq, lane: lane_key },
                number,
            }));
        }
        None
    }

    /// When [`Lanes::next`] may have something to do again without anything else happening.
    pub fn next_wake(&self) -> Option<Duration> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// How many messages are not settled.
    pub fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.waiting.len()).sum()
    }

    /// Whether nothing waits or is under way.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    fn make_ready(&mut self, lane: LaneKey) {
        let key = channel_of(lane);
        self.channels.entry(key).or_default().ready.push_back(lane);
        self.take_turn(key);
    }

    fn take_turn(&mut self, key: ChannelKey) {
        if self.channels.contains_key(&key) && self.in_turns.insert(key) {
            self.turns.push_back(key);
        }
    }

    fn block(&mut self, key: ChannelKey, now: Duration, chance: f64) {
        let channel = self.channels.entry(key).or_default();
        if channel.blocked_until.is_some_and(|until| until > now) {
            return;
        }
        channel.blocks = channel.blocks.saturating_add(1);
        let at = now + self.limits.blocked.wait(channel.blocks, chance);
        channel.blocked_until = Some(at);
        self.set_timer(at, Timer::Channel(key));
    }

    fn set_timer(&mut self, at: Duration, timer: Timer) {
        self.next_timer += 1;
        self.timers.insert((at, self.next_timer), timer);
    }

    fn fire_timers(&mut self, now: Duration) {
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Timer::Channel(key) => self.take_turn(key),
                Timer::Lane(key) => {
                    if let Some(lane) = self.lanes.get_mut(&key)
                        && lane.retry_at.is_some_and(|at| at <= now)
                    {
                        lane.retry_at = None;
                        self.make_ready(key);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delivery::ContactKey;

    fn limits() -> Limits {
        Limits {
            channel_concurrency: 2,
            attempts: 3,
            retry: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(60),
            },
            blocked: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(30),
            },
        }
    }

    fn item(seq: u64, channel: u8, contact: u8) -> Item {
        Item {
            seq: Seq(seq),
            lane: LaneKey {
                direction: Direction::ToAura,
                channel: ChannelId::from_bytes([channel; 16]),
                contact: ContactKey([contact; 16]),
            },
        }
    }

    fn attempts(lanes: &mut Lanes, now: Duration) -> Vec<u64> {
        std::iter::from_fn(|| lanes.next(now))
            .map(|effect| match effect {
                Effect::Attempt(attempt) => attempt.item.seq.0,
                Effect::Settle(..) => panic!("next() only attempts"),
            })
            .collect()
    }

    const NOW: Duration = Duration::from_secs(10);

    fn delivered() -> Ended {
        Ended::Delivered { reference: None }
    }

    #[test]
    fn a_lane_has_one_message_under_way_and_the_next_goes_only_after_its_record() {
        let mut lanes = Lanes::new(limits());
        lanes.accepted(item(1, 1, 1));
        lanes.accepted(item(2, 1, 1));
        assert_eq!(attempts(&mut lanes, NOW), [1]);
        let settle = lanes.ended(&item(1, 1, 1), delivered(), NOW, 0.5);
        assert_eq!(
            settle,
            Some(Effect::Settle(
                item(1, 1, 1),
                Outcome::Delivered { reference: None }
            ))
        );
        assert_eq!(attempts(&mut lanes, NOW), [] as [u64; 0]);
        lanes.settled(&item(1, 1, 1));
        assert_eq!(attempts(&mut lanes, NOW), [2]);
    }

    #[test]
    fn a_retry_holds_its_own_lane_only() {
        let mut lanes = Lanes::new(limits());
        for one in [item(1, 1, 1), item(2, 1, 1), item(3, 1, 2)] {
            lanes.accepted(one);
        }
        assert_eq!(attempts(&mut lanes, NOW), [1, 3]);
        assert_eq!(
            lanes.ended(&item(1, 1, 1), Ended::Retry { after: None }, NOW, 1.0),
            None
        );
        lanes.ended(&item(3, 1, 2), delivered(), NOW, 0.5);
        lanes.settled(&item(3, 1, 2));
        assert_eq!(attempts(&mut lanes, NOW), [] as [u64; 0]);
        assert_eq!(lanes.next_wake(), Some(NOW + Duration::from_secs(1)));
        assert_eq!(attempts(&mut lanes, NOW + Duration::from_secs(1)), [1]);
    }

    #[test]
    fn exhausted_attempts_and_fatal_errors_become_dead_letters() {
        let mut lanes = Lanes::new(limits());
        lanes.accepted(item(1, 1, 1));
        let mut now = NOW;
        for _ in 0..2 {
            assert_eq!(attempts(&mut lanes, now), [1]);
            assert_eq!(
                lanes.ended(&item(1, 1, 1), Ended::Retry { after: None }, now, 0.5),
                None
            );
            now = lanes.next_wake().unwrap();
        }
        assert_eq!(attempts(&mut lanes, now), [1]);
        let end = lanes.ended(&item(1, 1, 1), Ended::Retry { after: None }, now, 0.5);
        let dead = |reason: &str| Outcome::DeadLetter {
            reason: reason.to_owned(),
        };
        assert_eq!(
            end,
            Some(Effect::Settle(item(1, 1, 1), dead("AttemptsExhausted")))
        );
        lanes.settled(&item(1, 1, 1));
        lanes.accepted(item(2, 1, 1));
        assert_eq!(attempts(&mut lanes, now), [2]);
        let end = lanes.ended(&item(2, 1, 1), Ended::Fatal { reason: "Refused" }, now, 0.5);
        assert_eq!(end, Some(Effect::Settle(item(2, 1, 1), dead("Refused"))));
    }

    #[test]
    fn a_blocked_channel_waits_as_a_whole_counts_no_attempt_and_goes_on_when_poked() {
        let mut lanes = Lanes::new(limits());
        lanes.accepted(item(1, 1, 1));
        lanes.accepted(item(2, 1, 2));
        lanes.accepted(item(3, 2, 1));
        assert_eq!(attempts(&mut lanes, NOW), [1, 3, 2]);
        for _ in 0..20 {
            lanes.ended(&item(1, 1, 1), Ended::Blocked, NOW, 0.5);
            lanes.ended(&item(2, 1, 2), Ended::Blocked, NOW, 0.5);
            assert_eq!(attempts(&mut lanes, NOW), [] as [u64; 0]);
            lanes.poke(ChannelId::from_bytes([1; 16]));
            assert_eq!(attempts(&mut lanes, NOW).len(), 2);
        }
        lanes.ended(&item(1, 1, 1), Ended::Blocked, NOW, 0.5);
        lanes.ended(&item(2, 1, 2), Ended::Blocked, NOW, 0.5);
        let wake = lanes.next_wake().unwrap();
        assert_eq!(
            attempts(&mut lanes, wake).len(),
            1,
            "one message tries out whether the block is over"
        );
    }

    #[test]
    fn a_message_that_is_always_blocked_does_not_hold_up_the_other_conversations() {
        let mut lanes = Lanes::new(Limits {
            channel_concurrency: 1,
            ..limits()
        });
        lanes.accepted(item(1, 1, 1));
        lanes.accepted(item(2, 1, 2));
        let mut now = NOW;
        for _ in 0..4 {
            match attempts(&mut lanes, now)[..] {
                [1] => assert_eq!(lanes.ended(&item(1, 1, 1), Ended::Blocked, now, 0.5), None),
                [2] => {
                    assert!(lanes.ended(&item(2, 1, 2), delivered(), now, 0.5).is_some());
                    return;
                }
                ref other => panic!("one attempt expected, not {other:?}"),
            }
            now = lanes.next_wake().unwrap();
        }
        panic!("the second conversation was never tried");
    }

    #[test]
    fn channels_take_turns_and_none_has_more_under_way_than_allowed() {
        let mut lanes = Lanes::new(limits());
        for n in 0..10 {
            lanes.accepted(item(n, 1, u8::try_from(n).unwrap()));
        }
        lanes.accepted(item(10, 2, 1));
        assert_eq!(attempts(&mut lanes, NOW), [0, 10, 1]);
    }

    fn reply(seq: u64, channel: u8, contact: u8) -> Item {
        let mut item = item(seq, channel, contact);
        item.lane.direction = Direction::ToKernel;
        item
    }

    #[test]
    fn a_channel_sends_no_more_often_than_it_may_and_others_do_not_wait_for_it() {
        let mut lanes = Lanes::new(Limits {
            channel_concurrency: 100,
            ..limits()
        });
        lanes.pace(ChannelId::from_bytes([1; 16]), 2);
        for n in 0..6 {
            lanes.accepted(reply(n, 1, u8::try_from(n).unwrap()));
        }
        lanes.accepted(reply(6, 2, 1));
        lanes.accepted(item(7, 1, 1));
        assert_eq!(
            attempts(&mut lanes, NOW),
            [0, 6, 7, 1],
            "a second's worth, and the others"
        );
        let mut now = NOW;
        for expected in 2..6 {
            now = lanes.next_wake().unwrap();
            assert_eq!(attempts(&mut lanes, now), [expected]);
        }
        assert_eq!(now, NOW + Duration::from_secs(2));
    }

    proptest! {
        /// Whatever happens to attempts, every lane delivers in order, each message ends exactly once, and
        /// nothing is forgotten.
        #[test]
        fn order_holds_and_every_message_ends_once(
            lanes_of in proptest::collection::vec((0u8..3, 0u8..3), 1..60),
            results in proptest::collection::vec((0u8..8, 0.0f64..1.0), 2000),
        ) {
            let mut lanes = Lanes::new(Limits { attempts: 50, ..limits() });
            let mut now = NOW;
            for (seq, (channel, contact)) in lanes_of.iter().enumerate() {
                lanes.accepted(item(seq as u64, *channel, *contact));
            }
            let mut ended: Vec<Item> = Vec::new();
            let mut under_way: VecDeque<Item> = VecDeque::new();
            for (result, chance) in results {
                while let Some(Effect::Attempt(attempt)) = lanes.next(now) {
                    prop_assert!(!under_way.iter().any(|one| one.lane == attempt.item.lane));
                    under_way.push_back(attempt.item);
                }
                let Some(one) = under_way.pop_front() else {
                    match lanes.next_wake() { Some(at) => { now = now.max(at); continue }, None => break }
                };
                let result = match result {
                    0 => Ended::Retry { after: None },
                    1 => Ended::Blocked,
                    2 => Ended::Fatal { reason: "Refused" },
                    _ => delivered(),
                };
                if let Some(Effect::Settle(item, _)) = lanes.ended(&one, result, now, chance) {
                    ended.push(item);
                    lanes.settled(&item);
                }
            }
            prop_assert_eq!(ended.len() + lanes.len(), lanes_of.len());
            prop_assert!(lanes.is_empty(), "everything ends");
            for one in &ended {
                let seqs: Vec<_> = ended.iter().filter(|other| other.lane == one.lane).map(|other| other.seq).collect();
                prop_assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
    }
}
