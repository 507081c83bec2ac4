//! What the lanes do, case by case; `properties` holds what they never do.

use std::time::Duration;

use super::{
    ContactKey, DRAIN, Dropped, Effect, Ended, Event, FOREVER, Failure, Item, LaneKey, Lanes, Limits,
    Message, RequestId, Settings, Standing,
    backoff::{Backoff, Retries},
    reason,
};
use crate::{
    api::{
        ChannelDefaults, ChannelId, Effective, OnUndeliverable, OnUnknownSend, ReplyOrder,
        WhatsAppChannelSpec,
    },
    journal::{Direction, Outcome, Seq},
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
const NOTHING: [u64; 0] = [];
/// The wall clock at the start, in ms.
pub(super) const STARTED: u64 = 1_700_000_000_000;

pub(super) fn limits() -> Limits {
    let waits = |cap: u64| Backoff {
        base: SECOND,
        cap: Duration::from_secs(cap),
    };
    Limits {
        channel_concurrency: 2,
        concurrency: 100,
        retries: Retries {
            attempts: 3,
            waits: waits(60),
        },
        blocked: waits(30),
        outage: waits(60),
    }
}

pub(super) fn channel(n: u8) -> ChannelId {
    ChannelId::from_bytes([n; 16])
}

pub(super) fn settings() -> Settings {
    let effective = Effective::new(&WhatsAppChannelSpec::example(), &ChannelDefaults::default());
    Settings::new(&effective, "es-pro", None)
}

pub(super) fn request(n: u8) -> RequestId {
    RequestId([n; 16])
}

/// The lanes, with what is under way and how messages ended. Channels 1 to 3 are served.
pub(super) struct Machine {
    pub lanes: Lanes,
    pub now: Duration,
    pub under_way: Vec<(Item, u32, bool)>,
    pub ended: Vec<(Item, String)>,
    pub told: Vec<Event>,
    next: u64,
}

impl Machine {
    pub fn new(limits: Limits) -> Self {
        let mut machine = Self {
            lanes: Lanes::new(limits, STARTED),
            now: 10 * SECOND,
            under_way: Vec::new(),
            ended: Vec::new(),
            told: Vec::new(),
            next: 0,
        };
        for n in 1..=3 {
            machine.serves(n, |_| {});
        }
        machine.begins();
        machine
    }

    pub fn serves(&mut self, n: u8, change: impl FnOnce(&mut Settings)) {
        let mut settings = settings();
        change(&mut settings);
        self.lanes.serves(channel(n), settings, self.now);
    }

    pub fn message(
        &mut self,
        direction: Direction,
        of: u8,
        contact: u8,
        request: Option<RequestId>,
    ) -> Message {
        self.next += 1;
        Message {
            seq: Seq(self.next),
            lane: LaneKey {
                direction,
                channel: channel(of),
                contact: ContactKey([contact; 16]),
            },
            request,
            accepted_at_ms: STARTED + u64::try_from(self.now.as_millis()).unwrap(),
            attempts: 0,
            uncertain: false,
            left_over: false,
            replayed: false,
        }
    }

    pub fn accept(&mut self, message: Message) -> u64 {
        self.lanes.accepted(message, self.now);
        message.seq.0
    }

    /// A user's message.
    pub fn asks(&mut self, of: u8, contact: u8, n: u8) -> u64 {
        let message = self.message(Direction::ToAura, of, contact, Some(request(n)));
        self.accept(message)
    }

    /// A reply to the user's message of this number; 0: to none.
    pub fn answers(&mut self, of: u8, contact: u8, n: u8) -> u64 {
        let named = (n > 0).then(|| request(n));
        let message = self.message(Direction::ToKernel, of, contact, named);
        self.accept(message)
    }

    /// What begins now.
    pub fn begins(&mut self) -> Vec<u64> {
        let mut begun = Vec::new();
        let mut settled = Vec::new();
        while let Some(effect) = self.lanes.next(self.now) {
            match effect {
                Effect::Attempt(attempt) => {
                    begun.push(attempt.item.seq.0);
                    self.under_way
                        .push((attempt.item, attempt.number, attempt.uncertain));
                }
                Effect::Settle(item, outcome) => {
                    let how = match outcome {
                        Outcome::Delivered { .. } => "Delivered".to_owned(),
                        Outcome::DeadLetter { reason } | Outcome::Dropped { reason } => reason,
                    };
                    self.ended.push((item, how));
                    settled.push(item);
                }
                Effect::Note(..) => {}
                Effect::Tell(event) => self.told.push(event),
            }
            for item in std::mem::take(&mut settled) {
                self.lanes.settled(item, self.now);
            }
        }
        begun
    }

    pub fn ends(&mut self, seq: u64, result: Ended) {
        let place = self.under_way.iter().position(|(item, ..)| item.seq.0 == seq);
        let (item, ..) = self
            .under_way
            .remove(place.unwrap_or_else(|| panic!("{seq} is not under way")));
        self.lanes.ended(item, result, self.now, 1.0);
    }

    pub fn delivers(&mut self, seq: u64) {
        self.ends(seq, Ended::Delivered { reference: None });
    }

    /// Aura has a user's message.
    pub fn asked(&mut self, of: u8, contact: u8, n: u8) -> u64 {
        let seq = self.asks(of, contact, n);
        assert_eq!(self.begins(), [seq]);
        self.delivers(seq);
        assert_eq!(self.begins(), NOTHING);
        seq
    }

    pub fn waits(&mut self, time: Duration) {
        self.now += time;
    }

    /// Goes on to when something may happen by itself.
    pub fn wakes(&mut self) -> Vec<u64> {
        self.now = self.now.max(self.lanes.next_wake().expect("a timer"));
        self.begins()
    }

    /// What begins next, whenever that is.
    pub fn begins_next(&mut self) -> Vec<u64> {
        loop {
            let mut begun = self.begins();
            if begun.is_empty() {
                assert!(self.lanes.next_wake().is_some(), "nothing will happen any more");
                begun = self.wakes();
            }
            if !begun.is_empty() {
                return begun;
            }
        }
    }

    pub fn how(&self) -> Vec<(u64, &str)> {
        self.ended
            .iter()
            .map(|(item, how)| (item.seq.0, how.as_str()))
            .collect()
    }

    pub fn lane(&self, seq: u64) -> LaneKey {
        let all = self.under_way.iter().map(|(item, ..)| item);
        let mut all = all.chain(self.ended.iter().map(|(item, _)| item));
        all.find(|item| item.seq.0 == seq).unwrap().lane
    }
}

fn failing() -> Ended {
    Ended::Retry {
        failure: Failure::Failing,
        after: None,
    }
}

pub(super) fn nobody() -> Ended {
    Ended::Retry {
        failure: Failure::Unreachable,
        after: None,
    }
}

fn refused() -> Ended {
    Ended::Fatal { reason: "Refused" }
}

pub(super) fn lane(direction: Direction, of: u8, contact: u8) -> LaneKey {
    LaneKey {
        direction,
        channel: channel(of),
        contact: ContactKey([contact; 16]),
    }
}

#[test]
fn a_lane_has_one_message_under_way_and_the_next_goes_only_after_its_record() {
    let mut m = Machine::new(limits());
    let (first, second) = (m.asks(1, 1, 1), m.asks(1, 1, 2));
    assert_eq!(m.begins(), [first]);
    let item = m.under_way[0].0;
    m.lanes
        .ended(item, Ended::Delivered { reference: None }, m.now, 0.5);
    let delivered = Outcome::Delivered { reference: None };
    assert_eq!(m.lanes.next(m.now), Some(Effect::Settle(item, delivered)));
    assert_eq!(m.begins(), NOTHING);
    m.lanes.settled(item, m.now);
    assert_eq!(m.begins(), [second]);
}

#[test]
fn a_retry_holds_its_own_lane_only() {
    let mut m = Machine::new(limits());
    let (first, _, other) = (m.asks(1, 1, 1), m.asks(1, 1, 2), m.asks(1, 2, 3));
    assert_eq!(m.begins(), [first, other]);
    m.ends(first, failing());
    m.delivers(other);
    assert_eq!(m.begins(), NOTHING);
    assert_eq!(m.lanes.next_wake(), Some(m.now + SECOND));
    assert_eq!(m.wakes(), [first]);
}

#[test]
fn exhausted_attempts_and_fatal_errors_become_dead_letters() {
    let mut m = Machine::new(limits());
    let first = m.asks(1, 1, 1);
    assert_eq!(m.begins(), [first]);
    for _ in 0..2 {
        m.ends(first, failing());
        assert_eq!(m.begins(), NOTHING);
        assert_eq!(m.wakes(), [first]);
    }
    assert_eq!(m.under_way[0].1, 3, "the third attempt");
    m.ends(first, failing());
    let second = m.asks(1, 1, 2);
    assert_eq!(m.begins(), [second]);
    m.ends(second, refused());
    m.begins();
    assert_eq!(
        m.how(),
        [(first, reason::ATTEMPTS_EXHAUSTED), (second, "Refused")]
    );
    assert_eq!(m.lanes.stats().lanes, 0);
}

#[test]
fn attempts_of_an_earlier_run_count() {
    let mut m = Machine::new(limits());
    let mut message = m.message(Direction::ToKernel, 1, 1, None);
    (message.attempts, message.uncertain, message.left_over) = (2, true, true);
    let seq = m.accept(message);
    m.begins();
    assert_eq!(m.under_way, [(m.under_way[0].0, 3, true)]);
    m.ends(seq, failing());
    m.begins();
    assert_eq!(m.how(), [(seq, reason::ATTEMPTS_EXHAUSTED)]);
}

#[test]
fn rejected_credentials_open_the_channels_circuit_count_no_attempt_and_have_one_probe_at_a_time() {
    let mut m = Machine::new(limits());
    let (first, second) = (m.answers(1, 1, 0), m.answers(1, 2, 0));
    let other_way = m.asks(1, 1, 1);
    let mut begun = m.begins();
    begun.sort_unstable();
    assert_eq!(begun, [first, second, other_way]);
    m.ends(first, Ended::Blocked);
    m.ends(second, Ended::Blocked);
    m.delivers(other_way);
    assert_eq!(m.begins(), NOTHING);
    assert_eq!(m.lanes.stats().open_channels, 1);
    for wait in [1, 2, 4, 8, 16, 30, 30] {
        let before = m.now;
        let probe = m.wakes();
        assert_eq!(probe.len(), 1, "one probe");
        assert_eq!(m.now, before + wait * SECOND);
        m.ends(probe[0], Ended::Blocked);
        assert_eq!(m.begins(), NOTHING);
    }
    // Something about the channel changes: it is tried at once, by one message.
    m.serves(1, |_| {});
    let probe = m.begins();
    assert_eq!(probe.len(), 1);
    assert_eq!(m.under_way[0].1, 1, "no attempt was counted");
    m.delivers(probe[0]);
    assert_eq!(m.begins().len(), 1);
    assert_eq!(m.lanes.stats().open_channels, 0);
}

#[test]
fn what_has_nothing_to_deliver_says_nothing_of_the_peer_and_lets_the_next_one_try() {
    let mut m = Machine::new(limits());
    let (one, two) = (m.asks(1, 1, 1), m.asks(1, 2, 2));
    m.begins();
    m.ends(one, Ended::Blocked);
    m.ends(two, Ended::Blocked);
    assert_eq!(m.begins(), NOTHING);
    let probe = m.wakes()[0];
    let reason = "StatusLate";
    m.ends(probe, Ended::Dropped { reason });
    assert_eq!(m.lanes.stats().open_channels, 1);
    let next = m.begins();
    assert_eq!((next.len(), next[0] == probe), (1, false));
    m.delivers(next[0]);
    m.begins();
    assert_eq!(m.lanes.stats().open_channels, 0);
    assert_eq!(m.how(), [(probe, reason), (next[0], "Delivered")]);
}

#[test]
fn a_channel_has_no_more_under_way_than_it_may_and_channels_take_turns() {
    let mut m = Machine::new(limits());
    let flood: Vec<u64> = (0..20).map(|n| m.asks(1, n, n + 1)).collect();
    let (other, third) = (m.asks(2, 1, 1), m.asks(3, 1, 1));
    assert_eq!(m.begins(), [flood[0], other, third, flood[1]]);
    m.delivers(flood[1]);
    assert_eq!(m.begins(), [flood[2]]);
}

#[test]
fn places_are_bounded_and_an_environment_has_no_more_than_its_share() {
    let mut m = Machine::new(Limits {
        channel_concurrency: 50,
        concurrency: 8,
        ..limits()
    });
    m.serves(2, |settings| settings.environment = "br-pro".into());
    for contact in 0..50 {
        m.asks(1, contact, contact + 1);
    }
    assert_eq!(m.begins().len(), 6, "three quarters");
    let others: Vec<u64> = (0..5).map(|n| m.asks(2, n, n + 1)).collect();
    assert_eq!(m.begins(), others[..2]);
    m.delivers(others[0]);
    assert_eq!(m.begins(), [others[2]]);
    let first = m.under_way[0].0.seq.0;
    m.delivers(first);
    assert_eq!(m.begins(), [others[3]], "a place for who has fewer");
}

#[test]
fn a_channel_whose_calls_find_nobody_has_one_place_until_one_is_answered() {
    let mut m = Machine::new(limits());
    let all: Vec<u64> = (0..6).map(|n| m.asks(1, n, n + 1)).collect();
    assert_eq!(m.begins(), all[..2]);
    m.ends(all[0], nobody());
    assert_eq!(m.begins(), NOTHING, "the other is still under way");
    m.ends(all[1], nobody());
    assert_eq!(m.begins(), [all[2]]);
    m.delivers(all[2]);
    assert_eq!(m.begins(), all[3..5]);
}

#[test]
fn a_channel_sends_no_more_often_than_it_may_and_others_do_not_wait_for_it() {
    let mut m = Machine::new(Limits {
        channel_concurrency: 100,
        ..limits()
    });
    m.serves(1, |settings| settings.messages_per_second = 2);
    m.begins();
    let paced: Vec<u64> = (0..6).map(|n| m.answers(1, n, 0)).collect();
    let (other, inbound) = (m.answers(2, 1, 0), m.asks(1, 1, 1));
    let start = m.now;
    assert_eq!(m.begins(), [paced[0], other, inbound]);
    for expected in &paced[1..] {
        assert_eq!(m.wakes(), [*expected]);
    }
    assert_eq!(m.now, start + 5 * SECOND / 2);
}

#[test]
fn a_long_reply_counts_for_as_many_messages_as_it_takes() {
    let mut m = Machine::new(limits());
    m.serves(1, |settings| settings.messages_per_second = 2);
    m.begins();
    let (long, next) = (m.answers(1, 1, 0), m.answers(1, 2, 0));
    let start = m.now;
    assert_eq!(m.begins(), [long]);
    m.lanes.took(m.under_way[0].0, 3, m.now);
    m.delivers(long);
    assert_eq!(m.begins_next(), [next]);
    assert_eq!(m.now, start + 3 * SECOND / 2);
    // What Aura is told has no such limit.
    let (one, other) = (m.asks(1, 1, 1), m.asks(1, 2, 2));
    assert_eq!(m.begins(), [one, other]);
    m.lanes.took(m.under_way[1].0, 3, m.now);
    m.delivers(one);
    let third = m.asks(1, 3, 3);
    assert_eq!(m.begins(), [third]);
}

#[test]
fn a_message_that_has_just_come_is_new_whatever_the_wall_clock_says() {
    let mut m = Machine::new(limits());
    for hours in [-100_i64, 100] {
        let mut reply = m.message(Direction::ToKernel, 1, 1, None);
        let shift = hours * 3_600_000;
        reply.accepted_at_ms = reply.accepted_at_ms.checked_add_signed(shift).unwrap();
        let seq = m.accept(reply);
        assert_eq!(m.begins(), [seq]);
        m.ends(seq, failing());
        assert_eq!(m.wakes(), [seq], "it does not age by what the clock does");
        m.delivers(seq);
        m.begins();
    }
    assert!(
        m.how().iter().all(|(_, how)| *how == "Delivered"),
        "{:?}",
        m.how()
    );
}

#[test]
fn a_gateway_that_had_no_answer_leaves_open_whether_the_message_arrived_and_uses_up_no_attempts() {
    let unanswered = || Ended::Retry {
        failure: Failure::Unanswered,
        after: None,
    };
    let mut m = Machine::new(limits());
    for of in 1..=3 {
        m.answers(of, 1, 0);
    }
    let mut begun = m.begins();
    while m.lanes.stats().open_environments == 0 {
        for seq in begun {
            m.ends(seq, unanswered());
        }
        begun = m.begins_next();
    }
    // One at a time tries, more often than there are attempts.
    for _ in 0..6 {
        let [probe] = begun[..] else { panic!("{begun:?}") };
        m.ends(probe, unanswered());
        begun = m.begins_next();
        assert!(m.under_way[0].2, "it may be a duplicate");
    }
    assert_eq!(m.how(), []);
    while m.how().len() < 3 {
        for seq in begun {
            m.delivers(seq);
        }
        begun = m.begins();
        if begun.is_empty() && m.how().len() < 3 {
            begun = m.begins_next();
        }
    }
    assert!(m.how().iter().all(|(_, how)| *how == "Delivered"));
    m.serves(1, |settings| settings.on_unknown_send = OnUnknownSend::Hold);
    let held = m.answers(1, 1, 0);
    assert_eq!(m.begins_next(), [held]);
    m.ends(held, unanswered());
    m.begins();
    assert_eq!(m.how()[3..], [(held, reason::UNKNOWN_OUTCOME)]);
}

#[test]
fn what_was_being_sent_when_the_run_before_ended_is_left_to_a_person_where_the_channel_says_so() {
    let mut m = Machine::new(limits());
    m.serves(1, |settings| settings.on_unknown_send = OnUnknownSend::Hold);
    let left = |m: &mut Machine, of: u8, direction: Direction, contact: u8| {
        let mut message = m.message(direction, of, contact, None);
        (message.attempts, message.uncertain, message.left_over) = (1, true, true);
        m.accept(message)
    };
    let held = left(&mut m, 1, Direction::ToKernel, 1);
    let next = m.answers(1, 1, 0);
    let again = left(&mut m, 2, Direction::ToKernel, 1);
    let inbound = left(&mut m, 1, Direction::ToAura, 2);
    let mut begun = m.begins();
    begun.sort_unstable();
    assert_eq!(begun, [next, again, inbound]);
    assert_eq!(m.how(), [(held, reason::UNKNOWN_OUTCOME)]);
}

#[test]
fn that_it_may_arrive_is_recorded_first_only_for_replies_that_a_person_would_look_into() {
    let mut m = Machine::new(limits());
    m.serves(1, |settings| settings.on_unknown_send = OnUnknownSend::Hold);
    m.begins();
    let (held, retried, inbound) = (m.answers(1, 1, 0), m.answers(2, 1, 0), m.asks(1, 2, 1));
    let mut first = Vec::new();
    while let Some(effect) = m.lanes.next(m.now) {
        if let Effect::Attempt(attempt) = effect {
            first.push((attempt.item.seq.0, attempt.record.unknown));
        }
    }
    first.sort_unstable();
    assert_eq!(first, [(held, true), (retried, false), (inbound, false)]);
}

#[test]
fn an_environment_is_not_kept_waiting_by_the_probe_of_a_channel_that_has_left_it() {
    let mut m = Machine::new(limits());
    for of in 1..=3 {
        m.asks(of, 1, 1);
    }
    while m.lanes.stats().open_environments == 0 {
        for seq in m.begins_next() {
            m.ends(seq, nobody());
        }
    }
    let probe = m.begins_next()[0];
    let of = m.lane(probe).channel;
    let number = (1..=3).find(|n| channel(*n) == of).unwrap();
    m.serves(number, |settings| settings.environment = "elsewhere".into());
    let next = m.begins_next()[0];
    assert_ne!(m.lane(next).channel, of, "another of the environment tries");
    m.delivers(next);
    m.delivers(probe);
    assert_eq!(m.lanes.stats().open_environments, 0);
}

#[test]
fn an_environment_that_is_down_is_probed_by_one_call_whose_success_releases_all_bit_by_bit() {
    let mut m = Machine::new(limits());
    let seqs: Vec<u64> = (0..12).map(|n| m.answers(n % 3 + 1, n, 0)).collect();
    let other_way = m.asks(1, 1, 1);
    while m.told.is_empty() {
        let under_way: Vec<u64> = m.under_way.iter().map(|(item, ..)| item.seq.0).collect();
        for seq in under_way {
            if seq == other_way {
                m.delivers(seq);
            } else {
                m.ends(seq, nobody());
            }
        }
        if m.begins().is_empty() && m.under_way.is_empty() && m.told.is_empty() {
            m.wakes();
        }
    }
    let circuit = |open| Event::Circuit {
        environment: "es-pro".into(),
        direction: Direction::ToKernel,
        open,
    };
    assert_eq!(m.told, [circuit(true)]);
    while let Some((item, ..)) = m.under_way.first().copied() {
        m.ends(item.seq.0, nobody());
    }
    // For an hour: one at a time, and nobody's attempts are used up.
    let until = m.now + 3600 * SECOND;
    let mut probes = 0;
    while m.now < until {
        let begun = m.wakes();
        assert!(begun.len() <= 1);
        if let [probe] = begun[..] {
            probes += 1;
            m.ends(probe, nobody());
            assert_eq!(m.begins(), NOTHING);
        }
    }
    assert!((60..70).contains(&probes), "{probes} probes");
    assert_eq!(m.how(), [(other_way, "Delivered")]);
    let probe = loop {
        if let [probe] = m.wakes()[..] {
            break probe;
        }
    };
    m.delivers(probe);
    let start = m.now;
    let mut times = Vec::new();
    while m.ended.len() < seqs.len() + 1 {
        let begun = if times.is_empty() { m.begins() } else { m.wakes() };
        for seq in begun {
            times.push(m.now);
            m.delivers(seq);
        }
        m.begins();
    }
    assert_eq!(m.told[1], circuit(false));
    assert!(
        times
            .windows(2)
            .all(|pair| pair[0] < pair[1] || pair[1] > start + SECOND),
        "{times:?}"
    );
}

#[test]
fn a_reply_waits_for_the_answers_to_earlier_messages_and_then_they_leave_in_the_messages_order() {
    let mut m = Machine::new(limits());
    for n in 1..=3 {
        m.asked(1, 1, n);
    }
    let third = m.answers(1, 1, 3);
    let second = m.answers(1, 1, 2);
    assert_eq!(m.begins(), NOTHING);
    let first = m.answers(1, 1, 1);
    assert_eq!(m.begins(), [first]);
    let again = m.answers(1, 1, 1);
    for expected in [first, again, second, third] {
        m.delivers(expected);
        m.begins();
    }
    assert_eq!(m.told, []);
}

#[test]
fn a_reply_waits_no_longer_than_so_long_after_aura_has_the_earlier_message() {
    let mut m = Machine::new(limits());
    m.asked(1, 1, 1);
    m.waits(3 * SECOND);
    m.asked(1, 1, 2);
    m.waits(SECOND);
    let second = m.answers(1, 1, 2);
    assert_eq!(m.begins(), NOTHING);
    let before = m.now;
    assert_eq!(m.wakes(), [second]);
    assert_eq!(m.now, before + 6 * SECOND, "ten after Aura had it");
    assert_eq!(m.told, [Event::Overtook(lane(Direction::ToKernel, 1, 1))]);
    // What comes too late leaves as it comes.
    let first = m.answers(1, 1, 1);
    m.delivers(second);
    assert_eq!(m.begins(), [first]);
}

#[test]
fn a_reply_that_comes_when_the_wait_is_over_already_overtakes_all_the_same() {
    let mut m = Machine::new(limits());
    let overtook = [Event::Overtook(lane(Direction::ToKernel, 1, 1))];
    m.asked(1, 1, 1);
    m.asked(1, 1, 2);
    m.waits(11 * SECOND);
    let second = m.answers(1, 1, 2);
    assert_eq!(m.begins(), [second]);
    assert_eq!(m.told, overtook);
    // Trying again is no second time.
    m.ends(second, failing());
    assert_eq!(m.begins(), NOTHING);
    assert_eq!(m.wakes(), [second]);
    m.delivers(second);
    // And the answer that comes late overtakes nobody.
    let first = m.answers(1, 1, 1);
    assert_eq!(m.begins(), [first]);
    assert_eq!(m.told, overtook);
}

#[test]
fn the_wait_counts_from_when_aura_has_the_message_however_long_it_was_away() {
    let mut m = Machine::new(limits());
    m.asks(1, 1, 1);
    m.asks(1, 1, 2);
    m.waits(1800 * SECOND);
    let first = m.begins()[0];
    m.delivers(first);
    let second = m.begins()[0];
    let early = m.answers(1, 1, 2);
    assert_eq!(m.begins(), NOTHING, "Aura answered before it said that it has it");
    m.delivers(second);
    m.waits(9 * SECOND);
    assert_eq!(m.begins(), NOTHING);
    let answer = m.answers(1, 1, 1);
    assert_eq!(m.begins(), [answer]);
    m.delivers(answer);
    assert_eq!(m.begins(), [early]);
}

#[test]
fn a_message_that_aura_does_not_have_holds_nobodys_reply() {
    let mut m = Machine::new(limits());
    m.asked(1, 1, 1);
    let stuck = m.asks(1, 1, 2);
    assert_eq!(m.begins(), [stuck]);
    m.ends(stuck, failing());
    let answer = m.answers(1, 1, 1);
    assert_eq!(m.begins(), [answer]);
    // Nor does one that Aura refused.
    m.delivers(answer);
    assert_eq!(m.begins(), NOTHING);
    assert_eq!(m.wakes(), [stuck]);
    m.ends(stuck, refused());
    m.begins();
    m.asked(1, 1, 3);
    let answer = m.answers(1, 1, 3);
    assert_eq!(m.begins(), [answer]);
}

#[test]
fn what_aura_sends_of_its_own_accord_waits_for_replies_only() {
    let mut m = Machine::new(limits());
    m.asked(1, 1, 1);
    m.asked(1, 1, 2);
    let news = m.answers(1, 1, 0);
    assert_eq!(m.begins(), [news]);
    let (held, later) = (m.answers(1, 1, 2), m.answers(1, 1, 0));
    m.delivers(news);
    assert_eq!(m.begins(), NOTHING);
    let first = m.answers(1, 1, 1);
    for expected in [first, held, later] {
        assert_eq!(m.begins(), [expected]);
        m.delivers(expected);
    }
}

#[test]
fn as_received_means_as_received_and_may_be_said_at_any_time() {
    let mut m = Machine::new(limits());
    m.asked(1, 1, 1);
    m.asked(1, 1, 2);
    let second = m.answers(1, 1, 2);
    assert_eq!(m.begins(), NOTHING);
    m.serves(1, |settings| settings.reply_order = ReplyOrder::AsReceived);
    assert_eq!(m.begins(), [second]);
    let first = m.answers(1, 1, 1);
    m.delivers(second);
    assert_eq!(m.begins(), [first]);
    assert_eq!(m.told, []);
}

#[test]
fn a_reply_that_is_given_up_takes_the_rest_of_its_group_with_it_and_what_comes_later() {
    let mut m = Machine::new(limits());
    m.asked(1, 1, 1);
    m.asked(1, 1, 2);
    let group: Vec<u64> = (0..3).map(|_| m.answers(1, 1, 1)).collect();
    let other = m.answers(1, 1, 2);
    assert_eq!(m.begins(), [group[0]]);
    m.delivers(group[0]);
    assert_eq!(m.begins(), [group[1]]);
    m.ends(group[1], refused());
    assert_eq!(m.begins(), [other]);
    let late = m.answers(1, 1, 1);
    m.delivers(other);
    assert_eq!(m.begins(), NOTHING);
    assert_eq!(
        m.how()[2..],
        [
            (group[0], "Delivered"),
            (group[2], reason::GROUP_CANCELLED),
            (group[1], "Refused"),
            (late, reason::GROUP_CANCELLED),
            (other, "Delivered"),
        ]
    );
    // A person may have it delivered after all.
    let mut replayed = m.message(Direction::ToKernel, 1, 1, Some(request(1)));
    replayed.replayed = true;
    let replayed = m.accept(replayed);
    assert_eq!(m.begins(), [replayed]);
}

#[test]
fn a_failure_that_may_pass_keeps_a_group_together() {
    let mut m = Machine::new(limits());
    m.asked(1, 1, 1);
    m.asked(1, 1, 2);
    let (first, second) = (m.answers(1, 1, 1), m.answers(1, 1, 2));
    assert_eq!(m.begins(), [first]);
    m.ends(first, failing());
    let rest = m.answers(1, 1, 1);
    assert_eq!(m.begins(), NOTHING);
    assert_eq!(m.wakes(), [first]);
    for expected in [first, rest, second] {
        m.delivers(expected);
        m.begins();
    }
    assert_eq!(m.ended.len(), 5);
}

#[test]
fn a_conversation_is_held_after_a_dead_letter_until_a_person_lets_it_go_on() {
    let mut m = Machine::new(limits());
    m.serves(1, |settings| {
        settings.on_undeliverable = OnUndeliverable::HoldConversation;
    });
    let bad = m.answers(1, 1, 0);
    let other = m.answers(1, 2, 0);
    m.begins();
    m.ends(bad, refused());
    m.delivers(other);
    assert_eq!(m.begins(), NOTHING);
    let held = m.answers(1, 1, 0);
    assert_eq!(m.begins(), NOTHING);
    assert_eq!((m.lanes.stats().parked, m.told.len()), (1, 1));
    // For longer than it may get old.
    m.waits(10 * 3600 * SECOND);
    let (direction, another) = (Direction::ToKernel, m.answers(1, 2, 0));
    assert_eq!(m.begins(), [another]);
    assert!(m.lanes.unpark(lane(direction, 1, 1), m.now));
    assert!(!m.lanes.unpark(lane(direction, 1, 1), m.now));
    assert_eq!(m.begins(), [held]);
    // It is held again by the next one, and goes on when the channel says so.
    m.ends(held, refused());
    let last = m.answers(1, 1, 0);
    assert_eq!(m.begins(), NOTHING);
    m.serves(1, |_| {});
    assert_eq!(m.begins(), [last]);
    assert_eq!(m.lanes.stats().parked, 0);
}

#[test]
fn a_person_holds_a_conversation_gives_messages_up_and_has_one_tried_now() {
    let mut m = Machine::new(limits());
    let there = lane(Direction::ToKernel, 1, 1);
    assert!(m.lanes.park(there, m.now) && !m.lanes.park(there, m.now));
    let seqs: Vec<u64> = (0..4).map(|_| m.answers(1, 1, 0)).collect();
    assert_eq!(m.begins(), NOTHING);
    assert_eq!(m.lanes.drop_message(Seq(seqs[0]), m.now), Dropped::Now);
    assert_eq!(m.lanes.drop_message(Seq(seqs[2]), m.now), Dropped::Now);
    assert_eq!(m.lanes.drop_message(Seq(99), m.now), Dropped::NotFound);
    // What a channel says of dead letters lets nothing go on that a person holds.
    m.serves(1, |_| {});
    assert_eq!(m.begins(), NOTHING);
    m.lanes.unpark(there, m.now);
    assert_eq!(m.begins(), [seqs[1]]);
    m.ends(seqs[1], failing());
    assert!(m.lanes.retry_now(there, m.now));
    assert_eq!(m.begins(), [seqs[1]]);
    assert!(!m.lanes.retry_now(there, m.now));
    assert_eq!(
        m.lanes.drop_message(Seq(seqs[1]), m.now),
        Dropped::UnlessDelivered
    );
    m.ends(seqs[1], failing());
    assert_eq!(m.begins(), [seqs[3]]);
    m.ends(seqs[3], failing());
    m.begins();
    assert_eq!(m.lanes.drop_message(Seq(seqs[3]), m.now), Dropped::Now);
    m.begins();
    let dropped: Vec<u64> = m
        .how()
        .iter()
        .filter(|(_, how)| *how == reason::DROPPED)
        .map(|(seq, _)| *seq)
        .collect();
    assert_eq!(dropped, [seqs[0], seqs[2], seqs[1], seqs[3]]);
    assert_eq!(m.lanes.stats().lanes, 0);
}

#[test]
fn what_may_have_arrived_is_tried_again_and_says_so_or_is_left_to_a_person() {
    let mut m = Machine::new(limits());
    let first = m.answers(1, 1, 0);
    m.begins();
    assert!(!m.under_way[0].2);
    m.ends(first, Ended::Unknown);
    m.begins();
    assert_eq!(m.wakes(), [first]);
    assert!(m.under_way[0].2, "it may be a duplicate");
    m.delivers(first);
    m.begins();
    m.serves(1, |settings| settings.on_unknown_send = OnUnknownSend::Hold);
    let (second, rest) = (m.answers(1, 1, 7), m.answers(1, 1, 7));
    m.begins();
    m.ends(second, Ended::Unknown);
    assert_eq!(
        m.begins(),
        [rest],
        "it may have arrived: the rest of its group follows"
    );
    assert_eq!(m.how()[1..], [(second, reason::UNKNOWN_OUTCOME)]);
    // Aura recognises what comes again by its id.
    let inbound = m.asks(1, 2, 9);
    m.begins();
    m.ends(inbound, Ended::Unknown);
    m.delivers(rest);
    m.begins();
    assert_eq!(m.wakes(), [inbound]);
}

#[test]
fn a_message_gets_too_old_but_not_by_a_hold_or_an_outage() {
    let mut m = Machine::new(Limits {
        retries: Retries {
            attempts: 10_000,
            ..limits().retries
        },
        ..limits()
    });
    let hour = 3600 * SECOND;
    let old = m.answers(1, 1, 0);
    assert_eq!(m.begins(), [old]);
    while m.ended.is_empty() {
        if !m.under_way.is_empty() {
            m.ends(old, failing());
        }
        m.begins();
        if m.ended.is_empty() {
            m.wakes();
        }
    }
    assert_eq!(m.how(), [(old, reason::TOO_OLD)]);
    assert!(m.now > hour && m.now < hour + 120 * SECOND);
    // On hold for a day, which ends by itself.
    let until = STARTED + u64::try_from((m.now + 24 * hour).as_millis()).unwrap();
    m.serves(1, |settings| settings.held_until_ms = Some(until));
    let held = m.answers(1, 1, 0);
    assert_eq!(m.begins(), NOTHING);
    let before = m.now;
    assert_eq!(m.wakes(), [held]);
    assert_eq!(m.now, before + 24 * hour);
    // With rejected credentials for a day.
    m.ends(held, Ended::Blocked);
    m.begins();
    while m.now < before + 48 * hour {
        for probe in m.wakes() {
            m.ends(probe, Ended::Blocked);
        }
        m.begins();
    }
    m.serves(1, |_| {});
    assert_eq!(m.begins(), [held]);
    m.delivers(held);
    m.begins();
    assert_eq!(m.how()[1..], [(held, "Delivered")]);
}

#[test]
fn what_an_earlier_run_left_gets_one_attempt_whatever_its_age() {
    let mut m = Machine::new(limits());
    let mut message = m.message(Direction::ToKernel, 1, 1, None);
    message.accepted_at_ms = STARTED - 24 * 3_600_000;
    message.left_over = true;
    let seq = m.accept(message);
    assert_eq!(m.begins(), [seq]);
    m.ends(seq, failing());
    m.begins();
    assert_eq!(m.wakes(), NOTHING);
    assert_eq!(m.how(), [(seq, reason::TOO_OLD)]);
}

#[test]
fn a_deleted_channel_drains_for_so_long_and_the_rest_becomes_dead_letters() {
    let mut m = Machine::new(limits());
    let seqs: Vec<u64> = (0..200).map(|n| m.answers(1, n, 0)).collect();
    assert_eq!(m.begins(), seqs[..2]);
    m.lanes.deleted(channel(1), m.now);
    m.delivers(seqs[0]);
    assert_eq!(m.begins(), [seqs[2]]);
    m.ends(seqs[2], failing());
    m.begins();
    m.waits(DRAIN);
    assert_eq!(m.begins(), NOTHING);
    m.delivers(seqs[1]);
    let still = m.under_way[0].0.seq.0;
    m.ends(still, failing());
    m.begins();
    assert_eq!(m.ended.len(), 200);
    let delivered: Vec<u64> = m
        .how()
        .iter()
        .filter(|(_, how)| *how == "Delivered")
        .map(|(seq, _)| *seq)
        .collect();
    assert_eq!(delivered, seqs[..2]);
    assert!(
        m.how()
            .iter()
            .all(|(_, how)| ["Delivered", reason::CHANNEL_DELETED].contains(how))
    );
    assert_eq!((m.lanes.stats().queued, m.lanes.stats().lanes), (0, 0));
    // It comes back.
    m.serves(1, |_| {});
    let again = m.answers(1, 1, 0);
    assert_eq!(m.begins(), [again]);
}

#[test]
fn channels_that_go_together_are_emptied_together_and_no_other_is() {
    let mut m = Machine::new(limits());
    let mut gone = Vec::new();
    for of in [1, 2] {
        for n in 0..5 {
            gone.push(m.answers(of, n, 0));
        }
        gone.push(m.asks(of, 9, 1));
        m.lanes.park(lane(Direction::ToAura, of, 9), m.now);
    }
    let stays = m.answers(3, 1, 0);
    let begun = m.begins();
    for seq in begun {
        m.ends(seq, failing());
    }
    for of in [1, 2] {
        m.lanes.deleted(channel(of), m.now);
    }
    m.lanes.park(lane(Direction::ToKernel, 3, 1), m.now);
    m.waits(DRAIN);
    m.begins();
    let mut ended: Vec<u64> = m.how().iter().map(|(seq, _)| *seq).collect();
    ended.sort_unstable();
    gone.sort_unstable();
    assert_eq!(ended, gone);
    assert!(m.how().iter().all(|(_, how)| *how == reason::CHANNEL_DELETED));
    assert_eq!(
        (m.lanes.stats().queued, m.lanes.stats().parked),
        (1, 1),
        "{stays} waits"
    );
}

#[test]
fn a_channel_that_returns_in_time_or_is_only_not_routable_loses_nothing() {
    let mut m = Machine::new(limits());
    m.serves(1, |settings| settings.held_until_ms = Some(FOREVER));
    let first = m.answers(1, 1, 0);
    m.lanes.deleted(channel(1), m.now);
    m.waits(DRAIN.saturating_sub(SECOND));
    m.begins();
    m.lanes.unroutable(channel(1), m.now);
    m.waits(1000 * DRAIN);
    assert_eq!(m.begins(), NOTHING);
    m.serves(1, |_| {});
    assert_eq!(m.begins(), [first]);
}

#[test]
fn a_channel_that_nobody_tells_of_waits_until_all_are_known() {
    let mut m = Machine::new(limits());
    let early = m.asks(9, 1, 1);
    m.waits(1000 * DRAIN);
    assert_eq!(m.begins(), NOTHING);
    m.lanes.listed(m.now);
    m.waits(DRAIN.saturating_sub(SECOND));
    assert_eq!(m.begins(), NOTHING);
    let late = m.asks(8, 1, 1);
    m.waits(SECOND);
    m.begins();
    assert_eq!(m.how(), [(early, reason::CHANNEL_DELETED)]);
    m.waits(DRAIN);
    m.begins();
    assert_eq!(m.how()[1..], [(late, reason::CHANNEL_DELETED)]);
}

#[test]
fn the_lane_of_an_ended_message_is_told_as_it_was() {
    let mut m = Machine::new(limits());
    let seq = m.answers(2, 7, 0);
    m.begins();
    m.delivers(seq);
    m.begins();
    assert_eq!(m.lane(seq), lane(Direction::ToKernel, 2, 7));
}

#[test]
fn what_of_a_channel_is_not_as_usual_is_told_and_no_longer_when_it_is() {
    let mut m = Machine::new(limits());
    assert_eq!(m.lanes.standing(m.now), Standing::default());
    m.serves(1, |settings| settings.held_until_ms = Some(FOREVER));
    let blocked = m.answers(2, 1, 0);
    m.begins();
    m.ends(blocked, Ended::Blocked);
    m.lanes.unroutable(channel(3), m.now);
    let standing = m.lanes.standing(m.now);
    assert_eq!(
        (standing.held, standing.blocked, standing.unrouted),
        (vec![channel(1)], vec![channel(2)], vec![channel(3)])
    );
    (1..=3).for_each(|n| m.serves(n, |_| {}));
    let probe = m.begins();
    m.delivers(probe[0]);
    assert_eq!(m.lanes.standing(m.now), Standing::default());
}
