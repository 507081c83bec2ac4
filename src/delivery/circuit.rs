//! Circuits: while nothing gets through, one message at a time tries (Laws 7 and 8). Pure; times are ms since some
//! start.
//!
//! A channel's direction has one, opened by credentials that are missing or rejected; an environment's direction
//! another, opened when the calls of several channels in a row find nobody there. Half-open means one probe: the next
//! starts after the one before has ended. What ends an environment's outage lets all its channels go on, not at once
//! but at a rate that doubles each second.

use std::{collections::VecDeque, time::Duration};

use super::{backoff::Backoff, fair::Slot};

/// Failures in a row that open an environment's circuit.
const OUTAGE_AFTER: u32 = 5;
/// The different channels that they must be of, unless the environment has fewer.
const OUTAGE_CHANNELS: usize = 3;
/// How soon after the last probe a channel that did not fail itself may be the next one, however long the wait is by
/// then: those that failed may be alone in it (Law 4).
const EARLY_PROBE: u64 = 2000;
/// Messages a second that begin after an outage.
const RAMP_FIRST: u64 = 50;
/// How long the rate doubles each second; after that it has no bound of its own.
const RAMP_SECONDS: u64 = 8;

/// Whether a message may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Yes,
    /// Not before this time.
    At(u64),
    /// Not before something else happens.
    No,
}

/// One circuit.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// Failures since it was closed; 0: it is closed.
    failures: u32,
    until: u64,
    /// The probe that is under way: the place in the journal of its message.
    probe: Option<u64>,
}

impl Circuit {
    /// Whether nothing, or one message at a time, gets through.
    pub fn is_open(&self) -> bool {
        self.failures > 0
    }

    /// Whether a message may be tried now.
    pub fn admits(&self, now: u64) -> Admission {
        match (self.failures, self.probe) {
            (0, _) => Admission::Yes,
            (_, Some(_)) => Admission::No,
            _ if self.until > now => Admission::At(self.until),
            _ => Admission::Yes,
        }
    }

    /// An attempt starts: while the circuit is open it is the probe.
    pub fn starts(&mut self, seq: u64) {
        if self.is_open() {
            self.probe = Some(seq);
        }
    }

    /// An attempt ended; says whether it was the probe.
    pub fn ends(&mut self, seq: u64) -> bool {
        let was = self.probe == Some(seq);
        if was {
            self.probe = None;
        }
        was
    }

    /// Opens it, or goes on waiting if this was the probe. What was under way when it opened changes nothing.
    pub fn fails(&mut self, probe: bool, now: u64, waits: Backoff, chance: f64) {
        if self.is_open() && !probe {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.until = now + ms(waits.wait(self.failures, chance));
    }

    /// Closes it; says whether it was open.
    pub fn close(&mut self) -> bool {
        self.probe = None;
        std::mem::take(&mut self.failures) > 0
    }

    /// Something changed that may be what it waits for: the next probe may start, and waits are short again.
    pub fn try_now(&mut self) {
        self.failures = self.failures.min(1);
        self.until = 0;
    }
}

/// An environment's direction.
#[derive(Debug, Default)]
pub(super) struct Gate {
    circuit: Circuit,
    /// Attempts in a row that found nobody, and of which channels (a few of them).
    streak: u32,
    channels: Vec<u32>,
    /// When the last probe ended.
    probed: u64,
    /// Since when it lets more and more through, and when the next may.
    ramp: Option<(u64, u64)>,
    /// Messages under way.
    pub in_flight: usize,
    /// The channels that wait here, in turn.
    pub waiting: VecDeque<Slot>,
    /// When it is looked at again by itself.
    pub timer: Option<u64>,
}

impl Gate {
    /// Whether its circuit is open.
    pub fn is_open(&self) -> bool {
        self.circuit.is_open()
    }

    /// Whether a channel may try a message now; `well`: its own calls did not fail.
    pub fn admits(&self, well: bool, now: u64) -> Admission {
        match self.circuit.admits(now) {
            Admission::At(at) if well => match at.min(self.probed + EARLY_PROBE) {
                early if early > now => Admission::At(early),
                _ => Admission::Yes,
            },
            Admission::Yes if !self.is_open() => match self.ramp {
                Some((_, next)) if next > now => Admission::At(next),
                _ => Admission::Yes,
            },
            other => other,
        }
    }

    /// An attempt starts.
    pub fn starts(&mut self, seq: u64, now: u64) {
        self.circuit.starts(seq);
        self.in_flight += 1;
        if let Some((since, _)) = self.ramp {
            let seconds = now.saturating_sub(since) / 1000;
            self.ramp =
                (seconds < RAMP_SECONDS).then(|| (since, now + 1.max(1000 / (RAMP_FIRST << seconds))));
        }
    }

    /// An attempt ended; says whether it was the probe.
    pub fn ends(&mut self, seq: u64, now: u64) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        let probe = self.circuit.ends(seq);
        if probe {
            self.probed = now;
        }
        probe
    }

    /// Attempts that are under way end elsewhere.
    pub fn lets_go(&mut self, seqs: &[u64], in_flight: usize) {
        self.in_flight = self.in_flight.saturating_sub(in_flight);
        for seq in seqs {
            self.circuit.ends(*seq);
        }
    }

    /// The peer answered. Says whether that ends an outage.
    pub fn answered(&mut self, now: u64) -> bool {
        self.streak = 0;
        self.channels.clear();
        let ends = self.circuit.close();
        if ends {
            self.ramp = Some((now, now));
        }
        ends
    }

    /// Nobody was there. `of` is how many channels the environment has. Says whether that begins an outage.
    pub fn unreachable(
        &mut self,
        channel: u32,
        probe: bool,
        of: impl FnOnce() -> usize,
        now: u64,
        waits: Backoff,
        chance: f64,
    ) -> bool {
        self.streak = self.streak.saturating_add(1);
        if self.channels.len() < OUTAGE_CHANNELS && !self.channels.contains(&channel) {
            self.channels.push(channel);
        }
        if self.is_open() {
            self.circuit.fails(probe, now, waits, chance);
            return false;
        }
        let begins = self.streak >= OUTAGE_AFTER
            && (self.channels.len() >= OUTAGE_CHANNELS || self.channels.len() >= of());
        if begins {
            self.ramp = None;
            self.probed = now;
            self.circuit.fails(true, now, waits, chance);
        }
        begins
    }
}

/// In ms, rounded up: nothing happens early.
pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Backoff = Backoff {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(60),
    };

    fn open(gate: &mut Gate) {
        for n in 0..OUTAGE_AFTER {
            gate.unreachable(n % 3, false, || 10, 0, WAITS, 1.0);
        }
        assert!(gate.is_open());
    }

    #[test]
    fn half_open_is_one_probe_and_a_failed_one_waits_longer() {
        let mut circuit = Circuit::default();
        circuit.fails(false, 0, WAITS, 1.0);
        assert_eq!(circuit.admits(999), Admission::At(1000));
        assert_eq!(circuit.admits(1000), Admission::Yes);
        circuit.starts(7);
        assert_eq!(circuit.admits(1000), Admission::No);
        assert!(!circuit.ends(8), "another that was under way");
        circuit.fails(false, 1500, WAITS, 1.0);
        assert!(circuit.ends(7));
        circuit.fails(true, 2000, WAITS, 1.0);
        assert_eq!(circuit.admits(2000), Admission::At(4000));
        circuit.try_now();
        assert_eq!(circuit.admits(2000), Admission::Yes);
        assert!(circuit.close() && !circuit.close());
    }

    #[test]
    fn an_outage_is_told_by_several_channels_or_all_there_are() {
        let mut gate = Gate::default();
        let fail =
            |gate: &mut Gate, channel, of: usize| gate.unreachable(channel, false, || of, 0, WAITS, 1.0);
        for _ in 0..20 {
            assert!(!fail(&mut gate, 1, 2), "one channel alone");
        }
        assert!(fail(&mut gate, 2, 2));
        let mut alone = Gate::default();
        let begins: Vec<bool> = (0..5).map(|_| fail(&mut alone, 1, 1)).collect();
        assert_eq!(begins, [false, false, false, false, true]);
        let mut answered = Gate::default();
        for n in 0..20 {
            assert!(!fail(&mut answered, n, 10));
            answered.answered(0);
        }
    }

    #[test]
    fn a_channel_that_did_not_fail_itself_need_not_wait_for_the_long_waits() {
        let mut gate = Gate::default();
        open(&mut gate);
        for probe in 1..5 {
            assert!(!gate.unreachable(1, true, || 10, 10_000 * probe, WAITS, 1.0));
        }
        gate.circuit.starts(1);
        assert!(gate.ends(1, 40_000));
        assert_eq!(gate.admits(false, 41_000), Admission::At(56_000));
        assert_eq!(gate.admits(true, 41_000), Admission::At(42_000));
        assert_eq!(gate.admits(true, 42_000), Admission::Yes);
        gate.circuit.starts(2);
        assert_eq!(gate.admits(true, 50_000), Admission::No, "one at a time");
    }

    #[test]
    fn after_an_outage_more_and_more_is_let_through() {
        let mut gate = Gate::default();
        open(&mut gate);
        assert!(gate.answered(10_000));
        let (mut now, mut by_second) = (10_000, vec![0; 10]);
        while now < 20_000 {
            match gate.admits(true, now) {
                Admission::Yes => {
                    gate.starts(1, now);
                    by_second[usize::try_from(now / 1000 - 10).unwrap()] += 1;
                    // Without a bound any number may start.
                    if gate.ramp.is_none() {
                        break;
                    }
                }
                Admission::At(at) => now = at,
                Admission::No => panic!("it is closed"),
            }
        }
        assert_eq!(by_second[..4], [50, 100, 200, 500]);
        assert_eq!(now, 18_000);
    }
}
