//! The circuit of one server of an environment: when nobody's calls get through, one channel at a time tries, and its
//! success lets all go on (Law 7). Pure: moments come in, what to do goes out.
//!
//! A channel that fails alone does not open it: at least [`DISTINCT`] different channels (or all there are) must fail
//! with nobody succeeding in between. While it is open a channel that would call is parked: it is given the error that
//! the others got, and is woken when the circuit closes. A channel whose resource has just changed may try at once: a
//! person may have put right what was wrong.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use indexmap::IndexSet;

use super::object_key::ObjectKey;
use crate::{delivery::backoff::Backoff, kernel::KernelError};

/// How many different channels must fail in a row.
pub(super) const DISTINCT: usize = 3;
/// Waits between probes: the first after about a second, then less and less often, at least once a minute.
const PROBES: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(60),
};
/// How long a probe may be under way before another channel is chosen: the one that was may be gone.
const PROBE_PATIENCE: Duration = Duration::from_secs(30);
/// The least time between two calls of channels that were changed.
const BETWEEN_CHANGES: Duration = Duration::from_secs(1);

/// Whether a call may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Go,
    /// Not now: this is what the others got. The channel is parked, and woken when the circuit closes.
    Parked(KernelError),
}

/// What became of the circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// It opened: nobody's calls get through.
    Opened,
    /// It closed: these may go on.
    Closed(Vec<ObjectKey>),
}

#[derive(Debug)]
enum State {
    Closed { failing: BTreeSet<ObjectKey> },
    Open(Open),
}

#[derive(Debug)]
struct Open {
    error: KernelError,
    /// Probes that failed.
    failed: u32,
    probe_at: Instant,
    /// Until when the server has asked us to wait.
    asked_until: Option<Instant>,
    probing: Option<Probe>,
    last_change: Option<Instant>,
    /// In the order in which they try.
    parked: IndexSet<ObjectKey>,
}

/// A channel that tries for all.
#[derive(Debug)]
struct Probe {
    who: ObjectKey,
    since: Instant,
    /// It has asked to call.
    called: bool,
    /// It was not chosen, but was changed a moment ago.
    out_of_turn: bool,
}

impl Probe {
    fn is(&self, who: &ObjectKey) -> bool {
        self.who == *who
    }
}

/// The circuit of one server.
#[derive(Debug)]
pub(super) struct Circuit {
    state: State,
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            state: State::Closed {
                failing: BTreeSet::new(),
            },
        }
    }
}

impl Circuit {
    /// Whether this channel may call now. `changed` says that its resource or Secret is another than when it failed.
    pub fn admit(&mut self, who: &ObjectKey, changed: bool, now: Instant) -> Admission {
        let State::Open(open) = &mut self.state else {
            return Admission::Go;
        };
        match &mut open.probing {
            Some(probe) if probe.is(who) => {
                probe.called = true;
                return Admission::Go;
            }
            None if changed
                && open.last_change.is_none_or(|at| now >= at + BETWEEN_CHANGES)
                && open.asked_until.is_none_or(|at| now >= at) =>
            {
                open.last_change = Some(now);
                open.probing = Some(Probe {
                    who: who.clone(),
                    since: now,
                    called: true,
                    out_of_turn: true,
                });
                return Admission::Go;
            }
            _ => {}
        }
        open.park(who);
        Admission::Parked(open.error.clone())
    }

    /// A call ended: `outage` is its error where that speaks of the whole environment, none where the server answered.
    /// `population` is how many channels there are; `random` is from 0 to 1.
    pub fn ended(
        &mut self,
        who: &ObjectKey,
        outage: Option<&KernelError>,
        population: usize,
        now: Instant,
        random: f64,
    ) -> Change {
        let Some(error) = outage else {
            return match std::mem::take(self).state {
                State::Closed { .. } => Change::None,
                State::Open(open) => Change::Closed(open.parked.into_iter().collect()),
            };
        };
        match &mut self.state {
            State::Closed { failing } => {
                failing.insert(who.clone());
                if failing.len() < DISTINCT.min(population.max(1)) {
                    return Change::None;
                }
                let parked = std::mem::take(failing).into_iter().collect();
                self.state = State::Open(Open {
                    error: error.clone(),
                    failed: 0,
                    probe_at: now + PROBES.wait_at_least(1, error.retry_after(), random),
                    asked_until: error.retry_after().map(|wait| now + wait),
                    probing: None,
                    last_change: None,
                    parked,
                });
                Change::Opened
            }
            State::Open(open) => {
                open.park(who);
                if let Some(probe) = open.probing.take_if(|probe| probe.is(who)) {
                    open.error = error.clone();
                    open.asked_until = error.retry_after().map(|wait| now + wait);
                    // Those that were changed try beside the others: they must not put off the others' next try.
                    if !probe.out_of_turn {
                        open.failed = open.failed.saturating_add(1);
                        open.probe_at = now
                            + PROBES.wait_at_least(
                                open.failed.saturating_add(1),
                                error.retry_after(),
                                random,
                            );
                    } else if let Some(until) = open.asked_until {
                        open.probe_at = open.probe_at.max(until);
                    }
                }
                Change::None
            }
        }
    }

    /// A call of this channel ended, or was not made, and says nothing of the server; it may have asked to wait. If the
    /// channel was to try for all, another one will, no sooner than that.
    pub fn undecided(&mut self, who: &ObjectKey, asked: Option<Duration>, now: Instant, random: f64) {
        let State::Open(open) = &mut self.state else {
            return;
        };
        open.park(who);
        if open.probing.take_if(|probe| probe.is(who)).is_some() {
            open.probe_at = now + PROBES.wait_at_least(open.failed.saturating_add(1), asked, random);
            open.asked_until = asked.map(|wait| now + wait);
        }
    }

    /// When [`Circuit::tick`] has something to do.
    pub fn next_tick(&self) -> Option<Instant> {
        match &self.state {
            State::Closed { .. } => None,
            State::Open(open) => Some(match &open.probing {
                Some(probe) => probe.since + PROBE_PATIENCE,
                None => open.probe_at,
            }),
        }
    }

    /// Whom to wake for a probe, if it is time for one.
    pub fn tick(&mut self, now: Instant) -> Option<ObjectKey> {
        if self.next_tick().is_none_or(|at| now < at) {
            return None;
        }
        let State::Open(open) = &mut self.state else {
            return None;
        };
        match open.parked.shift_remove_index(0) {
            Some(who) => {
                // To the end of the row: one channel that fails on its own must not be the only one to try.
                open.parked.insert(who.clone());
                open.probing = Some(Probe {
                    who: who.clone(),
                    since: now,
                    called: false,
                    out_of_turn: false,
                });
                Some(who)
            }
            // Nobody wants to call: the next one that does may find out.
            None => {
                *self = Self::default();
                None
            }
        }
    }

    /// A pass of the channel is over. If it was to try and had nothing to ask, another one tries at once; it is parked
    /// again when it would call. Answers whether [`Circuit::tick`] has something to do now.
    pub fn over(&mut self, who: &ObjectKey, now: Instant) -> bool {
        let State::Open(open) = &mut self.state else {
            return false;
        };
        let idle = open.probing.take_if(|probe| probe.is(who) && !probe.called);
        if idle.is_some() {
            open.parked.shift_remove(who);
            open.probe_at = now;
        }
        idle.is_some()
    }

    /// The channel is gone.
    pub fn forget(&mut self, who: &ObjectKey) {
        match &mut self.state {
            State::Closed { failing } => {
                failing.remove(who);
            }
            State::Open(open) => {
                open.parked.shift_remove(who);
                if open.probing.as_ref().is_some_and(|probe| probe.is(who)) {
                    open.probing = None;
                }
            }
        }
    }

    /// Whether calls are let through.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }
}

impl Open {
    fn park(&mut self, who: &ObjectKey) {
        if !self.parked.contains(who) {
            self.parked.insert(who.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn who(n: u8) -> ObjectKey {
        ObjectKey::new("n", n.to_string())
    }

    const DOWN: KernelError = KernelError::Unavailable {
        status: 503,
        retry_after: None,
    };

    fn opened(now: Instant) -> Circuit {
        let mut circuit = Circuit::default();
        assert_eq!(circuit.ended(&who(1), Some(&DOWN), 9, now, 0.5), Change::None);
        assert_eq!(circuit.ended(&who(1), Some(&DOWN), 9, now, 0.5), Change::None);
        assert_eq!(circuit.ended(&who(2), Some(&DOWN), 9, now, 0.5), Change::None);
        assert_eq!(circuit.ended(&who(3), Some(&DOWN), 9, now, 0.5), Change::Opened);
        circuit
    }

    #[test]
    fn a_channel_that_fails_alone_among_others_never_opens_it() {
        let mut circuit = Circuit::default();
        for _ in 0..100 {
            assert_eq!(
                circuit.ended(&who(1), Some(&DOWN), 9, Instant::now(), 0.5),
                Change::None
            );
        }
        assert_eq!(
            circuit.ended(&who(2), Some(&DOWN), 9, Instant::now(), 0.5),
            Change::None
        );
        circuit.ended(&who(3), None, 9, Instant::now(), 0.5);
        assert_eq!(
            circuit.ended(&who(4), Some(&DOWN), 9, Instant::now(), 0.5),
            Change::None
        );
        assert!(circuit.is_closed());
    }

    #[test]
    fn the_only_channel_of_an_environment_opens_it_alone() {
        let mut circuit = Circuit::default();
        assert_eq!(
            circuit.ended(&who(1), Some(&DOWN), 1, Instant::now(), 0.5),
            Change::Opened
        );
    }

    #[test]
    fn while_it_is_open_one_channel_at_a_time_tries_and_its_success_releases_all() {
        let start = Instant::now();
        let mut circuit = opened(start);
        assert_eq!(circuit.admit(&who(4), false, start), Admission::Parked(DOWN));
        assert_eq!(circuit.tick(start), None, "not before its time");
        let at = circuit.next_tick().unwrap();
        assert!(at > start && at <= start + Duration::from_secs(1));
        let prober = circuit.tick(at).unwrap();
        assert_eq!(circuit.tick(at), None, "one at a time");
        for n in 1..=4 {
            let expected = if who(n) == prober {
                Admission::Go
            } else {
                Admission::Parked(DOWN)
            };
            assert_eq!(circuit.admit(&who(n), false, at), expected);
        }
        circuit.ended(&prober, Some(&DOWN), 9, at, 0.5);
        let next = circuit.next_tick().unwrap();
        assert!(
            next >= at + Duration::from_secs(1) && next <= at + Duration::from_secs(2),
            "less often"
        );
        let second = circuit.tick(next).unwrap();
        assert_ne!(second, prober, "they take turns");
        let Change::Closed(mut released) = circuit.ended(&second, None, 9, next, 0.5) else {
            panic!("the circuit closes")
        };
        released.sort();
        assert_eq!(released, [who(1), who(2), who(3), who(4)]);
        assert_eq!(circuit.admit(&who(9), false, next), Admission::Go);
    }

    #[test]
    fn a_changed_channel_may_try_at_once_but_a_flood_of_changes_may_not() {
        let start = Instant::now();
        let mut circuit = opened(start);
        assert_eq!(circuit.admit(&who(7), true, start), Admission::Go);
        assert_eq!(circuit.admit(&who(8), true, start), Admission::Parked(DOWN));
        circuit.ended(&who(7), Some(&DOWN), 9, start, 0.5);
        let soon = start + Duration::from_millis(10);
        assert_eq!(circuit.admit(&who(8), true, soon), Admission::Parked(DOWN));
        let later = start + Duration::from_secs(1);
        assert_eq!(circuit.admit(&who(8), true, later), Admission::Go);
    }

    /// People apply channels while Kernel is away: what they try is no reason to leave the others waiting.
    #[test]
    fn those_that_were_changed_obey_what_the_server_asks_and_put_nobody_off() {
        let start = Instant::now();
        let mut circuit = opened(start);
        let due = circuit.next_tick().unwrap();
        circuit.admit(&who(7), true, start);
        circuit.ended(&who(7), Some(&DOWN), 9, start, 0.5);
        assert_eq!(circuit.next_tick(), Some(due));
        let asks = KernelError::Unavailable {
            status: 503,
            retry_after: Some(Duration::from_secs(40)),
        };
        let at = start + Duration::from_secs(2);
        assert_eq!(circuit.admit(&who(8), true, at), Admission::Go);
        circuit.ended(&who(8), Some(&asks), 9, at, 0.0);
        assert!(circuit.next_tick().unwrap() >= at + Duration::from_secs(40));
        let soon = at + Duration::from_secs(39);
        assert_eq!(circuit.admit(&who(9), true, soon), Admission::Parked(asks));
        assert_eq!(
            circuit.admit(&who(9), true, at + Duration::from_secs(40)),
            Admission::Go
        );
    }

    #[test]
    fn a_prober_that_is_told_to_wait_has_all_wait() {
        let start = Instant::now();
        let mut circuit = opened(start);
        let at = circuit.next_tick().unwrap();
        let prober = circuit.tick(at).unwrap();
        assert_eq!(circuit.admit(&prober, false, at), Admission::Go);
        circuit.undecided(&prober, Some(Duration::from_secs(600)), at, 0.0);
        assert!(!circuit.is_closed());
        assert!(circuit.next_tick().unwrap() >= at + Duration::from_secs(600));
        let soon = at + Duration::from_secs(60);
        assert!(matches!(circuit.admit(&who(9), true, soon), Admission::Parked(_)));
    }

    #[test]
    fn a_prober_that_is_gone_is_followed_by_another_and_nobody_left_closes_it() {
        let start = Instant::now();
        let mut circuit = opened(start);
        let at = circuit.next_tick().unwrap();
        let prober = circuit.tick(at).unwrap();
        circuit.forget(&prober);
        let second = circuit.tick(circuit.next_tick().unwrap()).unwrap();
        assert_ne!(second, prober);
        // This one never ends its pass.
        let third = circuit.tick(circuit.next_tick().unwrap()).unwrap();
        assert_ne!(third, second);
        circuit.forget(&second);
        circuit.forget(&third);
        assert_eq!(circuit.tick(start + Duration::from_secs(3600)), None);
        assert!(circuit.is_closed());
    }

    #[test]
    fn a_prober_with_nothing_to_ask_gives_its_turn_on_at_once() {
        let start = Instant::now();
        let mut circuit = opened(start);
        let at = circuit.next_tick().unwrap();
        let idle = circuit.tick(at).unwrap();
        assert!(!circuit.over(&who(9), at), "that was no prober");
        assert!(circuit.over(&idle, at));
        let second = circuit.tick(at).unwrap();
        assert_ne!(second, idle);
        assert_eq!(circuit.admit(&second, false, at), Admission::Go);
        assert!(
            !circuit.over(&second, at),
            "its call says nothing: it has had its turn"
        );
        assert_eq!(circuit.tick(at), None);
        let Change::Closed(released) = circuit.ended(&second, None, 9, at, 0.5) else {
            panic!("the circuit closes")
        };
        assert_eq!(released.len(), 2, "the idle one waits for nothing");
    }

    #[test]
    fn it_waits_as_long_as_the_server_asks_for() {
        let start = Instant::now();
        let asks = KernelError::Unavailable {
            status: 503,
            retry_after: Some(Duration::from_secs(40)),
        };
        let mut circuit = Circuit::default();
        circuit.ended(&who(1), Some(&asks), 1, start, 0.0);
        assert!(circuit.next_tick().unwrap() >= start + Duration::from_secs(40));
    }

    proptest! {
        /// Whatever happens: while it is open at most one channel is let through between two moments of choice, every
        /// parked channel is released at the end, and there is always a next probe within a minute and a half.
        #[test]
        fn nobody_is_forgotten(events in prop::collection::vec((0u8..6, 0u8..5, 0u64..3000), 1..200)) {
            let mut now = Instant::now();
            let mut circuit = Circuit::default();
            let (mut parked, mut touched) = (BTreeSet::new(), BTreeSet::new());
            for (n, what, wait) in events {
                now += Duration::from_millis(wait);
                let (channel, wake) = (who(n), circuit.tick(now));
                prop_assert!(wake.is_none_or(|wake| touched.contains(&wake)));
                if what < 2 {
                    touched.insert(channel.clone());
                }
                match what {
                    0 => {
                        if matches!(circuit.admit(&channel, false, now), Admission::Parked(_)) {
                            parked.insert(channel);
                        }
                    }
                    1 => {
                        let change = circuit.ended(&channel, Some(&DOWN), 6, now, 0.3);
                        if change == Change::Opened || !circuit.is_closed() {
                            parked.insert(channel);
                        }
                    }
                    2 => {
                        if let Change::Closed(released) = circuit.ended(&channel, None, 6, now, 0.3) {
                            let released: BTreeSet<_> = released.into_iter().collect();
                            prop_assert!(parked.is_subset(&released));
                            parked.clear();
                        }
                    }
                    3 => {
                        if circuit.over(&channel, now) {
                            parked.remove(&channel);
                        }
                    }
                    _ => {
                        circuit.forget(&channel);
                        parked.remove(&channel);
                        touched.remove(&channel);
                    }
                }
                if circuit.is_closed() {
                    parked.clear();
                } else {
                    let next = circuit.next_tick().unwrap();
                    prop_assert!(next <= now + Duration::from_secs(90));
                }
            }
        }
    }
}
