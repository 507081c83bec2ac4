//! What the lanes never do, whatever happens: random schedules, failures and crashes. A crash is lanes that are built
//! anew of what is not settled.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use proptest::prelude::*;

use super::{
    Effect, Ended, Failure, Item, Lanes, Limits, Message,
    backoff::Retries,
    lanes_tests::{Machine, SECOND, STARTED, channel, lane, limits, nobody, request},
    reason,
};
use crate::{
    api::{OnUndeliverable, OnUnknownSend, ReplyOrder},
    journal::{Direction, Outcome, Seq},
};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A user's message of this conversation, or a reply to one of the last few (0: to none).
    Asks(u8, u8),
    Answers(u8, u8, u8),
    /// One that is under way ends.
    Ends(u8, u8),
    /// One end is recorded.
    Settles(u8),
    Waits(u16),
    Crashes,
    Changes(u8, bool, bool, bool),
    Deletes(u8),
    Parks(u8, u8, bool),
    Drops(u8),
    Retries(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let (of, contact) = (1u8..4, 0u8..3);
    prop_oneof![
        6 => (of.clone(), contact.clone()).prop_map(|(a, b)| Step::Asks(a, b)),
        6 => (of.clone(), contact.clone(), 0u8..5).prop_map(|(a, b, c)| Step::Answers(a, b, c)),
        14 => (any::<u8>(), 0u8..10).prop_map(|(a, b)| Step::Ends(a, b)),
        12 => any::<u8>().prop_map(Step::Settles),
        4 => (0u16..20_000).prop_map(Step::Waits),
        1 => Just(Step::Crashes),
        1 => (of.clone(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(a, b, c, d)| Step::Changes(a, b, c, d)),
        1 => of.clone().prop_map(Step::Deletes),
        1 => (of.clone(), contact.clone(), any::<bool>()).prop_map(|(a, b, c)| Step::Parks(a, b, c)),
        1 => any::<u8>().prop_map(Step::Drops),
        1 => (of, contact).prop_map(|(a, b)| Step::Retries(a, b)),
    ]
}

/// What the journal would hold, and what must hold.
struct World {
    m: Machine,
    /// Accepted and not settled.
    pending: BTreeMap<u64, Message>,
    recording: Vec<Item>,
    settled: HashMap<u64, String>,
    /// Messages that were tried, with attempts as durable notes would tell.
    attempts: HashMap<u64, u32>,
    asked: HashMap<(u8, u8), u8>,
    next: u64,
}

impl World {
    fn new() -> Self {
        Self {
            m: Machine::new(the_limits()),
            pending: BTreeMap::new(),
            recording: Vec::new(),
            settled: HashMap::new(),
            attempts: HashMap::new(),
            asked: HashMap::new(),
            next: 0,
        }
    }

    fn accept(&mut self, direction: Direction, of: u8, contact: u8, n: u8) {
        let named = (n > 0).then(|| request(n));
        let mut message = self.m.message(direction, of, contact, named);
        self.next += 1;
        message.seq = Seq(self.next);
        self.pending.insert(self.next, message);
        self.m.lanes.accepted(message, self.m.now);
    }

    /// Takes all effects; checks what begins.
    fn runs(&mut self) {
        while let Some(effect) = self.m.lanes.next(self.m.now) {
            match effect {
                Effect::Attempt(attempt) => {
                    let item = attempt.item;
                    assert!(self.pending.contains_key(&item.seq.0), "{} has ended", item.seq.0);
                    assert!(!self.recording.contains(&item), "its end is being recorded");
                    assert!(
                        self.m.under_way.iter().all(|(other, ..)| other.lane != item.lane),
                        "two of one lane under way"
                    );
                    let under_way = self.m.under_way.iter().filter(|(other, ..)| {
                        (other.lane.channel, other.lane.direction) == (item.lane.channel, item.lane.direction)
                    });
                    assert!(under_way.count() < the_limits().channel_concurrency);
                    assert!(self.m.under_way.len() < the_limits().concurrency);
                    assert!(!self.m.lanes.is_parked(item.lane), "it is parked");
                    assert!(attempt.number <= the_limits().retries.attempts);
                    self.in_order(item);
                    self.attempts.insert(item.seq.0, attempt.number);
                    self.m.under_way.push((item, attempt.number, attempt.uncertain));
                }
                Effect::Settle(item, outcome) => {
                    let how = match outcome {
                        Outcome::Delivered { .. } => "Delivered".to_owned(),
                        Outcome::DeadLetter { reason } | Outcome::Dropped { reason } => reason,
                    };
                    assert!(
                        self.settled.insert(item.seq.0, how).is_none(),
                        "{} ends twice",
                        item.seq.0
                    );
                    self.recording.push(item);
                }
                Effect::Note(..) | Effect::Tell(_) => {}
            }
        }
    }

    /// What begins is never behind an earlier one of its lane and its group: user's messages in the order accepted,
    /// the replies to one request likewise, and those to none.
    fn in_order(&self, item: Item) {
        let request = self.pending[&item.seq.0].request;
        let earlier = self.pending.range(..item.seq.0).find(|(seq, other)| {
            let same_group = item.lane.direction == Direction::ToAura || other.request == request;
            other.lane == item.lane && same_group && !self.settled.contains_key(seq)
        });
        assert_eq!(earlier, None, "before {}", item.seq.0);
    }

    fn ends(&mut self, which: u8, how: u8) {
        if self.m.under_way.is_empty() {
            return;
        }
        let place = usize::from(which) % self.m.under_way.len();
        let (item, ..) = self.m.under_way.swap_remove(place);
        let result = match how {
            0 => Ended::Retry {
                failure: Failure::Limited,
                after: Some(3 * SECOND),
            },
            1 => nobody(),
            2 => Ended::Unknown,
            3 => Ended::Blocked,
            4 => Ended::Fatal { reason: "Refused" },
            _ => Ended::Delivered { reference: None },
        };
        self.m.lanes.ended(item, result, self.m.now, 0.5);
    }

    fn settles(&mut self, which: u8) {
        if self.recording.is_empty() {
            return;
        }
        let place = usize::from(which) % self.recording.len();
        let item = self.recording.swap_remove(place);
        self.pending.remove(&item.seq.0);
        self.m.lanes.settled(item, self.m.now);
    }

    /// All in memory is lost; what is not settled comes again.
    fn crashes(&mut self) {
        for item in self.recording.drain(..) {
            self.settled.remove(&item.seq.0);
        }
        self.m.under_way.clear();
        self.m.lanes = Lanes::new(the_limits(), STARTED);
        for (seq, message) in &mut self.pending {
            message.left_over = true;
            message.attempts = self.attempts.get(seq).copied().unwrap_or_default();
            message.uncertain = message.attempts > 0;
        }
        for message in self.pending.values() {
            self.m.lanes.accepted(*message, self.m.now);
        }
        for n in 1..=3 {
            self.m.serves(n, |_| {});
        }
        self.m.lanes.listed(self.m.now);
    }

    fn takes(&mut self, step: Step) {
        let now = self.m.now;
        let lane = |of, contact| lane(Direction::ToKernel, of, contact);
        match step {
            Step::Asks(of, contact) => {
                let n = self.asked.entry((of, contact)).or_default();
                *n = n.wrapping_add(1).max(1);
                let n = *n;
                self.accept(Direction::ToAura, of, contact, n);
            }
            Step::Answers(of, contact, back) => {
                let last = self.asked.get(&(of, contact)).copied().unwrap_or_default();
                let n = if back == 0 {
                    0
                } else {
                    last.saturating_sub(back - 1)
                };
                self.accept(Direction::ToKernel, of, contact, n);
            }
            Step::Ends(which, how) => self.ends(which, how),
            Step::Settles(which) => self.settles(which),
            Step::Waits(ms) => self.m.waits(Duration::from_millis(ms.into())),
            Step::Crashes => self.crashes(),
            Step::Changes(of, a, b, c) => self.m.serves(of, |settings| {
                if a {
                    settings.reply_order = ReplyOrder::AsReceived;
                }
                if b {
                    settings.on_undeliverable = OnUndeliverable::HoldConversation;
                }
                if c {
                    settings.on_unknown_send = OnUnknownSend::Hold;
                    settings.environment = "br-pro".into();
                }
            }),
            Step::Deletes(of) => self.m.lanes.deleted(channel(of), now),
            Step::Parks(of, contact, true) => drop(self.m.lanes.park(lane(of, contact), now)),
            Step::Parks(of, contact, false) => drop(self.m.lanes.unpark(lane(of, contact), now)),
            Step::Drops(which) => {
                if let Some(seq) = self
                    .pending
                    .keys()
                    .nth(usize::from(which) % self.pending.len().max(1))
                {
                    self.m.lanes.drop_message(Seq(*seq), now);
                }
            }
            Step::Retries(of, contact) => drop(self.m.lanes.retry_now(lane(of, contact), now)),
        }
        self.runs();
    }

    /// All goes well from now on: everything ends.
    fn drains(&mut self) {
        for n in 1..=3 {
            self.m.serves(n, |_| {});
        }
        for (of, contact) in (1..=3).flat_map(|of| (0..3).map(move |contact| (of, contact))) {
            for direction in [Direction::ToAura, Direction::ToKernel] {
                self.m.lanes.unpark(lane(direction, of, contact), self.m.now);
            }
        }
        for _ in 0..20_000 {
            self.runs();
            if let Some((item, ..)) = self.m.under_way.pop() {
                self.m
                    .lanes
                    .ended(item, Ended::Delivered { reference: None }, self.m.now, 0.5);
            } else if !self.recording.is_empty() {
                self.settles(0);
            } else if let Some(at) = self.m.lanes.next_wake() {
                self.m.now = self.m.now.max(at);
            } else {
                break;
            }
        }
    }
}

fn the_limits() -> Limits {
    Limits {
        concurrency: 5,
        retries: Retries {
            attempts: 200,
            ..limits().retries
        },
        ..limits()
    }
}

proptest! {
    /// Each message ends once, none is forgotten, a lane's order holds, and no bound is passed: whatever the schedule.
    #[test]
    fn every_message_ends_once_and_in_order(steps in proptest::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        world.runs();
        for step in steps {
            world.takes(step);
            let stats = world.m.lanes.stats();
            prop_assert_eq!(stats.queued, world.pending.len());
            prop_assert_eq!(stats.under_way, world.m.under_way.len());
        }
        world.drains();
        prop_assert!(world.pending.is_empty(), "left: {:?}", world.pending);
        prop_assert_eq!(world.settled.len(), usize::try_from(world.next).unwrap());
        let stats = world.m.lanes.stats();
        prop_assert_eq!((stats.queued, stats.lanes, stats.under_way, stats.parked), (0, 0, 0, 0));
    }

    /// With every request answered in time, in whatever order, and nothing failing, the replies leave in the order of
    /// their requests, and of one request in the order accepted.
    #[test]
    fn replies_leave_in_the_order_of_their_requests(
        order in Just((1u8..=6).collect::<Vec<_>>()).prop_shuffle(),
        further in proptest::collection::vec(1u8..=6, 0..6),
        gaps in proptest::collection::vec(0u64..700, 12),
    ) {
        let mut m = Machine::new(limits());
        for n in 1..=6 {
            m.asked(1, 1, n);
        }
        let mut of = HashMap::new();
        let mut left = Vec::new();
        for (n, gap) in order.into_iter().chain(further).zip(gaps) {
            m.waits(Duration::from_millis(gap));
            of.insert(m.answers(1, 1, n), n);
            m.begins();
        }
        loop {
            while let Some((item, ..)) = m.under_way.first().copied() {
                left.push((of[&item.seq.0], item.seq.0));
                m.delivers(item.seq.0);
                m.begins();
            }
            match m.lanes.next_wake() {
                Some(_) => drop(m.wakes()),
                None => break,
            }
        }
        prop_assert_eq!(left.len(), of.len());
        prop_assert_eq!(&m.told, &[]);
        prop_assert!(left.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", left);
    }

    /// However many requests stay without an answer, no reply waits longer than the bound after it came.
    #[test]
    fn no_reply_waits_longer_than_the_bound(
        requests in 1u8..20,
        answered in proptest::collection::vec(1u8..20, 1..20),
        gaps in proptest::collection::vec(0u64..9000, 40),
    ) {
        let mut m = Machine::new(limits());
        let mut gaps = gaps.into_iter();
        for n in 1..=requests {
            m.waits(Duration::from_millis(gaps.next().unwrap_or_default()));
            m.asked(1, 1, n);
        }
        let mut came = HashMap::new();
        for n in answered {
            came.insert(m.answers(1, 1, n), m.now);
            m.begins();
        }
        while let Some((seq, at)) = loop {
            if let Some((item, ..)) = m.under_way.first() {
                break Some((item.seq.0, m.now.saturating_sub(came[&item.seq.0])));
            }
            if m.lanes.next_wake().is_none() {
                break None;
            }
            m.wakes();
        } {
            prop_assert!(at <= 10 * SECOND, "{seq} waited {at:?}");
            m.delivers(seq);
            m.begins();
            came.remove(&seq);
        }
        prop_assert!(came.is_empty());
    }

    /// A channel that hangs, fails or floods changes no other's order of service: among channels with something to
    /// send, none gets two turns before another has had one.
    #[test]
    fn turns_are_even(loads in proptest::collection::vec(1u8..30, 3)) {
        let mut m = Machine::new(Limits { channel_concurrency: 1, ..limits() });
        for n in 1..=3 {
            m.serves(n, |settings| settings.messages_per_second = 10_000);
        }
        for (n, load) in loads.iter().enumerate() {
            for contact in 0..*load {
                m.answers(u8::try_from(n).unwrap() + 1, contact, 0);
            }
        }
        let mut left = loads.clone();
        loop {
            m.begins();
            let served: Vec<Item> = m.under_way.iter().map(|(item, ..)| *item).collect();
            let some = left.iter().filter(|load| **load > 0).count();
            prop_assert_eq!(served.len(), some, "each that has something has one under way");
            if served.is_empty() {
                break;
            }
            for item in served {
                let place = usize::from(item.lane.channel.as_bytes()[0]) - 1;
                left[place] -= 1;
                m.delivers(item.seq.0);
            }
        }
    }
}

#[test]
fn a_group_is_cancelled_as_a_whole_or_not_at_all() {
    // Which of four replies is refused: those before it have arrived, those behind it are cancelled.
    for bad in 0..4 {
        let mut m = Machine::new(limits());
        m.asked(1, 1, 1);
        let seqs: Vec<u64> = (0..4).map(|_| m.answers(1, 1, 1)).collect();
        m.begins();
        for (n, seq) in seqs.iter().enumerate() {
            if n > bad {
                break;
            }
            if n == bad {
                m.ends(*seq, Ended::Fatal { reason: "Refused" });
            } else {
                m.delivers(*seq);
            }
            m.begins();
        }
        let how: HashMap<u64, &str> = m.how().into_iter().collect();
        for (n, seq) in seqs.iter().enumerate() {
            let expected = match n.cmp(&bad) {
                std::cmp::Ordering::Less => "Delivered",
                std::cmp::Ordering::Equal => "Refused",
                std::cmp::Ordering::Greater => reason::GROUP_CANCELLED,
            };
            assert_eq!(how[seq], expected);
        }
    }
}

#[test]
fn many_channels_that_hang_leave_room_for_those_that_do_not() {
    // Two hundred channels of one environment hang; another environment's channel is served within its turn.
    let mut m = Machine::new(Limits {
        channel_concurrency: 16,
        concurrency: 64,
        ..limits()
    });
    for n in 10..210 {
        m.serves(n, |settings| settings.environment = "hangs".into());
        for contact in 0..5 {
            m.answers(n, contact, 0);
        }
    }
    assert_eq!(m.begins().len(), 48, "three quarters of the places");
    let fine = m.answers(1, 1, 0);
    assert_eq!(m.begins(), [fine]);
    m.delivers(fine);
    m.begins();
    // Time-outs: the circuit opens, and all places but one are free.
    m.waits(15 * SECOND);
    while let Some((item, ..)) = m.under_way.first().copied() {
        m.ends(item.seq.0, Ended::Unknown);
        if m.under_way.len() < 48 {
            m.begins();
        }
        if m.lanes.stats().open_environments == 1 {
            break;
        }
    }
    assert_eq!(m.lanes.stats().open_environments, 1);
    let fine = m.answers(1, 1, 0);
    assert_eq!(m.begins(), [fine]);
}
